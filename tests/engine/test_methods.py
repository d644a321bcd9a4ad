"""Every method and format on the real base, through the server, against the model it belongs to.

The reference computes in fp32, the engine in bf16 and in batches: where two tokens are closer than
the noise, either may be said. So each token the server says is judged in the reference model with
the same text before it; the very same judgement must find fault with the base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loadtests.live import LiveServer, run_cli
from tests.engine.made_methods import MADE, make

# Of one token and of a whole answer, in nats, between fp32 and the engine's bf16: which near ties
# fall the other way depends on the order of sums. Seen: 0.80 and 1.4.
NOISE, ALL_NOISE = 1.0, 2.0
TOKENS = 24
PROMPTS = (
    "The three most important things about a good breakfast are",
    "To repair a bicycle tyre, first",
)


@pytest.fixture(scope="module")
def base_path(live: LiveServer) -> Path:
    found = run_cli(live.store, "--json", "base", "show", "smollm2")
    return Path(json.loads(found.stdout)["path"])


@pytest.fixture(scope="module")
def tokenizer(base_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_path)


@pytest.fixture(scope="module")
def base(base_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32).eval()


def faults(model: Any, prompt: list[int], said: list[int]) -> torch.Tensor:
    """By how many nats each token said was not the one the model would have said."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + said])).logits[0].float()
    scores = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    taken = scores.gather(1, torch.tensor(said)[:, None])[:, 0]
    return torch.as_tensor(scores.max(dim=-1).values - taken)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_server_says_what_the_trainers_model_says(
    name: str, live: LiveServer, base: Any, base_path: Path, tokenizer: Any, tmp_path: Path
) -> None:
    made = MADE[name]
    model = make(made, base_path, tmp_path / "artifact", seed=5)
    adapter = f"made-{name}"
    done = run_cli(
        live.store,
        *("--json", "register", str(tmp_path / "artifact"), "--name", adapter, "--base", "smollm2"),
    )
    assert done.returncode == 0, done.stderr
    registered = json.loads(done.stdout)
    assert (registered["lane"], registered["rank"]) == ("hot", made.rank)
    assert registered["format"] == (name if name in {"mlx", "litgpt", "gguf"} else "peft")

    differs = 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        said = tokens_said(live, adapter, ids)
        check_said(model, ids, said)
        differs += float(faults(base, ids, said).sum())
    assert differs > len(PROMPTS) * ALL_NOISE, "too weak for the comparison to mean anything"


def check_said(model: Any, prompt: list[int], said: list[int]) -> None:
    """The model itself could have said this, by the engine's rounding."""
    found = faults(model, prompt, said)
    assert found.max() <= NOISE, found.tolist()
    assert found.sum() <= ALL_NOISE, found.tolist()


def tokens_said(live: LiveServer, model: str, prompt: list[int]) -> list[int]:
    """Greedy, by number."""
    answer = live.client().completions.create(
        model=model,
        prompt=prompt,
        max_tokens=TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    said: list[int] = answer.choices[0].model_dump()["token_ids"]
    assert len(said) == TOKENS
    return said
