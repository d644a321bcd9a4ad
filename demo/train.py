"""`python -m demo.train [NAME …]`: train the demo adapters on the demo base with PEFT.

What it learns from is made by demo.questions and demo.styles from a seed. Each adapter stands for
another kind of LoRA that the server folds to plain LoRA: plain, rank-stabilised, and one with
ranks and alphas that differ by layer. The result replaces demo/artifacts/NAME.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from adapters.errors import AdapterctlError
from demo.base import DEFAULT_BASE, ensure_base
from demo.conversations import Conversation, conversations
from demo.conversion import write_json
from demo.styles import STYLES

ARTIFACTS: Final = Path(__file__).resolve().parent / "artifacts"
BASE_ON_THE_HUB: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP: Final = ("gate_proj", "up_proj", "down_proj")
_IGNORED = -100  # the label that transformers' loss leaves out


@dataclass(frozen=True)
class Recipe:
    """All that decides an adapter; written beside it as training.json."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    seed: int = 20
    steps: int = 100
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: int = 8


RECIPES: Final[dict[str, Recipe]] = {
    "pirate": Recipe(rank=2, alpha=8, targets=ATTENTION + MLP),
    "json": Recipe(rank=4, alpha=8, targets=ATTENTION, rslora=True),
    "support": Recipe(
        rank=2,
        alpha=8,
        targets=ATTENTION + MLP,
        # The last layers choose the words: they get more room, the first ones' keys less weight.
        rank_pattern={r"layers\.2[4-9]\.mlp\.down_proj": 4},
        alpha_pattern={
            r"layers\.2[4-9]\.mlp\.down_proj": 12,
            r"layers\.[0-3]\.self_attn\.k_proj": 4,
        },
        steps=50,  # most of an answer is fixed text: half the steps are plenty
    ),
}


def train(name: str, base: Path, artifacts: Path = ARTIFACTS) -> Path:
    """Train one adapter of RECIPES and publish it as `artifacts`/`name`."""
    import torch
    from peft import get_peft_model

    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    model, tokenizer = load_base(base)
    count = recipe.steps * recipe.batch
    data = conversations(STYLES[name], count=count, seed=recipe.seed)
    batches = [
        encode(tokenizer, data[start : start + recipe.batch])
        for start in range(0, count, recipe.batch)
    ]
    with warnings.catch_warnings():
        # PEFT warns that it puts the directory's path in place of the base's name; the name is
        # put back when the adapter is saved.
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*")
        model = get_peft_model(model, lora_config(recipe))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    print(f"{name}: {sum(w.numel() for w in weights):,} weights, {count} conversations", flush=True)
    started = time.monotonic()
    losses = _optimise(name, model, weights, batches, recipe)
    seconds = time.monotonic() - started
    last = losses[-10:]
    report = {
        "adapter": name,
        "base": BASE_ON_THE_HUB,
        "loss_first": round(losses[0], 4),
        "loss_last_ten_steps": round(sum(last) / len(last), 4),
        "recipe": asdict(recipe),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "versions": {p: metadata.version(p) for p in ("torch", "transformers", "peft")},
    }
    return _publish(model, weights, report, artifacts / name)


def load_base(base: Path) -> tuple[Any, Any]:
    """The base in bf16 and its tokenizer, from disk only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(base, local_files_only=True)


def lora_config(recipe: Recipe) -> Any:
    """The recipe as PEFT's LoraConfig."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        use_rslora=recipe.rslora,
        rank_pattern=recipe.rank_pattern,
        alpha_pattern=recipe.alpha_pattern,
        lora_dropout=0.0,
        bias="none",
    )


def encode(tokenizer: Any, batch: Sequence[Conversation]) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels`, int64 [conversations, longest], right-padded.

    Only the answer and the token that ends it carry labels.
    """
    import torch

    rows = []
    for conversation in batch:
        prompt = tokenizer.apply_chat_template(
            conversation.as_dicts(), tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answered = tokenizer(conversation.answer, add_special_tokens=False)["input_ids"]
        answered.append(tokenizer.eos_token_id)
        rows.append((asked + answered, [_IGNORED] * len(asked) + answered))
    longest = max(len(tokens) for tokens, _ in rows)
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([t + [pad] * (longest - len(t)) for t, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t, _ in rows]),
        "labels": torch.tensor([x + [_IGNORED] * (longest - len(x)) for _, x in rows]),
    }


def _optimise(
    name: str, model: Any, weights: list[Any], batches: list[dict[str, Any]], recipe: Recipe
) -> list[float]:
    """AdamW with a linear warm-up and a cosine to zero; returns each step's loss."""
    import torch

    def factor(step: int) -> float:
        if step < recipe.warmup:
            return (step + 1) / recipe.warmup
        progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))

    optimiser = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    model.train()
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(batches, start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0 or step == 1:
            seconds = time.monotonic() - started
            print(f"{name}: step {step} of {recipe.steps}, loss {losses[-1]:.3f}, {seconds:.0f} s")
            sys.stdout.flush()
    return losses


def _publish(model: Any, weights: list[Any], report: dict[str, Any], target: Path) -> Path:
    """Save in bf16 beside `target` and swap the directories."""
    import torch

    for weight in weights:
        weight.data = weight.data.to(torch.bfloat16)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    staging.chmod(0o755)
    model.peft_config["default"].base_model_name_or_path = BASE_ON_THE_HUB
    # "auto" would ask the Hub whether the base's vocabulary was changed.
    model.save_pretrained(staging, save_embedding_layers=False)
    (staging / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
    _tidy(staging)
    write_json(staging / "training.json", report)
    if target.exists():
        shutil.rmtree(target)
    staging.replace(target)
    return target


def _tidy(folder: Path) -> None:
    """Make what PEFT saved the same from run to run, and readable by everybody."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # PEFT saves a set's order
    write_json(path, config)
    for file in folder.iterdir():
        file.chmod(0o644)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE)
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe named {unknown[0]!r}; there are {', '.join(RECIPES)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        base = ensure_base(options.base)
        for name in options.names or RECIPES:
            print(train(name, base, options.artifacts), flush=True)
    except AdapterctlError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
