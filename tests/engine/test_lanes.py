"""The merged lane on the real engine: deployed, killed, taken back, and what is for it alone.

One version that both lanes can answer (the demo's pirate), and three that only the merged lane
can: a DoRA, an IA³ and a full fine-tune of PEFT's own making. Tokens are judged as in
test_methods.py: by the model that the version belongs to, in fp32.
"""

from __future__ import annotations

import copy
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.expectations import EXPECTATIONS, MAX_TOKENS
from loadtests.live import ADAPTERCTL, LiveServer, kill_hard
from tests.engine.made_methods import ALL, Made, make
from tests.engine.test_methods import ALL_NOISE, PROMPTS, check_said, faults, tokens_said

ARTIFACTS = Path(__file__).parents[2] / "demo" / "artifacts"
QUESTION = "What is the capital of France?"


def as_full_model(model: PeftModel, folder: Path) -> None:
    """The whole model with its change in it, as a trainer without adapters leaves it."""
    whole = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    whole.to(torch.bfloat16).save_pretrained(folder)


MERGE_ONLY = {
    "dora": Made(
        LoraConfig(r=8, lora_alpha=16, target_modules=ALL, use_dora=True, task_type="CAUSAL_LM"),
        {"lora_A": 0.05, "lora_B": 0.05, "lora_magnitude_vector": 0.05},
        8,
    ),
    "ia3": Made(
        IA3Config(target_modules=ALL, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
        {"ia3_l": 0.3},
        0,
    ),
    "full-fine-tune": Made(
        LoraConfig(r=8, lora_alpha=16, target_modules=ALL, task_type="CAUSAL_LM"),
        {"lora_A": 0.065, "lora_B": 0.065},
        0,
        as_full_model,
    ),
}


def cli(live: LiveServer, *arguments: str) -> Any:
    """Over the admin API: the server knows of it when the command is done."""
    command = [*ADAPTERCTL, "--server", live.url, "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def merged_engine(live: LiveServer) -> dict[str, Any]:
    with urllib.request.urlopen(live.url + "/admin/v1/engines", timeout=5) as response:
        (engine,) = [one for one in json.load(response) if one["kind"] == "merged"]
    found: dict[str, Any] = engine
    return found


def ask(live: LiveServer, model: str, tokens: int = 4) -> tuple[str, str]:
    """The lane that answered, and what it said, in as many tokens at most."""
    raw = live.client().chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
    )
    return raw.headers["x-adapterctl-lane"], raw.parse().choices[0].message.content or ""


@pytest.fixture(scope="module")
def base_path(live: LiveServer) -> Path:
    return Path(cli(live, "base", "show", "smollm2")["path"])


@pytest.fixture(scope="module")
def tokenizer(base_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_path)


@pytest.fixture(scope="module")
def pirate(live: LiveServer) -> Iterator[str]:
    """Deployed in the merged lane; left as the other tests know it."""
    lanes: set[str] = set()
    failed: list[Exception] = []
    deployed = threading.Event()

    def keep_asking() -> None:
        while not deployed.is_set():
            try:
                lanes.add(ask(live, "pirate")[0])
            except openai.OpenAIError as error:
                failed.append(error)
            time.sleep(0.5)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        shown = cli(live, "deploy", "pirate", "--lane", "merged")
    finally:
        deployed.set()
        asking.join()
    assert failed == []
    # While the model was merged and its engine started, the hot lane answered.
    assert "hot" in lanes
    assert json.dumps(shown).count("merged") > 0
    yield "pirate"
    cli(live, "deploy", "pirate", "--lane", "hot")


def test_a_merged_version_answers_as_it_does_in_the_hot_lane(
    live: LiveServer, pirate: str, base_path: Path, tokenizer: Any
) -> None:
    lane, answer = ask(live, pirate, MAX_TOKENS)
    assert lane == "merged"
    assert EXPECTATIONS["pirate"](answer), answer
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype="float32")
    reference = PeftModel.from_pretrained(model, ARTIFACTS / "pirate").eval()
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        said = tokens_said(live, pirate, ids)
        check_said(reference, ids, said)
    with urllib.request.urlopen(live.url + "/metrics", timeout=5) as response:
        text = response.read().decode()
    assert 'adapterctl_merged_engine_events_total{event="start"} 1.0' in text
    # The others are where they were.
    assert ask(live, "support")[0] == "hot"
    assert ask(live, "smollm2")[0] == "base"


def test_when_its_engine_is_killed_the_hot_lane_answers_meanwhile(
    live: LiveServer, pirate: str
) -> None:
    assert ask(live, pirate)[0] == "merged"
    kill_hard(int(merged_engine(live)["pid"]))
    # Nobody fails, whether the death was noticed yet or not; soon it may be there again.
    lanes = [ask(live, pirate)[0] for _ in range(4)]
    assert lanes[0] == "hot"
    assert set(lanes) <= {"hot", "merged"}
    cli(live, "deploy", pirate, "--lane", "hot")
    assert ask(live, pirate)[0] == "hot"
    cli(live, "undeploy", pirate)
    with pytest.raises(openai.NotFoundError, match="taken out of service"):
        ask(live, pirate)
    listed = {model.id for model in live.client().models.list()}
    assert "pirate" not in listed
    assert "support" in listed
    cli(live, "deploy", pirate, "--lane", "hot")
    assert ask(live, pirate)[0] == "hot"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", MERGE_ONLY)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_for_the_merged_lane_alone_is_answered_once_it_is_deployed(
    method: str, live: LiveServer, base_path: Path, tokenizer: Any, tmp_path: Path
) -> None:
    name, source = f"only-{method}", tmp_path / "artifact"
    model = make(MERGE_ONLY[method], base_path, source, seed=11)
    registered = cli(live, "register", str(source), "--name", name, "--base", "smollm2")
    assert (registered["method"], registered["lane"]) == (method, "merged")
    with pytest.raises(openai.NotFoundError, match=f"adapterctl deploy {name}:v1 --lane merged"):
        ask(live, name)
    cli(live, "deploy", name, "--lane", "merged")
    assert ask(live, name)[0] == "merged"
    base = AutoModelForCausalLM.from_pretrained(base_path, dtype="float32").eval()
    differs = 0.0
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        said = tokens_said(live, name, ids)
        check_said(model, ids, said)
        differs += float(faults(base, ids, said).sum())
    assert differs > len(PROMPTS) * ALL_NOISE, "too weak for the comparison to mean anything"
    cli(live, "undeploy", name)
    with pytest.raises(openai.NotFoundError):
        ask(live, name)
