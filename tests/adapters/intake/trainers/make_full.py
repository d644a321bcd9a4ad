"""Makes full fine-tunes with TRL's SFTTrainer and with Transformers' own Trainer, as they save.

TRL's is trained and saved in fp32 on a tied base; the Trainer's in bf16 throughout, in shards.
Logits are the trained model's, in fp32 of the weights that were saved. Files with this machine's
paths or pickles are left out. Made with trl 1.16.0, transformers 5.23.0, accelerate 1.15.0 and
torch 2.13 (CPU), in an environment of their own:

    pip install trl==1.16.0 accelerate
    python -m tests.adapters.intake.trainers.make_full
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, write_base

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
KEPT = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def tokenizer() -> Any:
    """Words w3 … for the tokens of the tiny base; no training, no download."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, 12), generator=generator)


def options(out: Path) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.005,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "seed": 9,
    }


def with_trl(base: Path, out: Path) -> Any:
    sentences = [" ".join(f"w{int(i)}" for i in row) for row in rows(16, 1)]
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=SFTConfig(**options(out), max_length=16),
        train_dataset=Dataset.from_dict({"text": sentences}),
        processing_class=tokenizer(),
    )


def with_trainer(base: Path, out: Path) -> Any:
    lines = [row.tolist() for row in rows(16, 2)]
    return Trainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        args=TrainingArguments(**options(out)),
        train_dataset=Dataset.from_dict({"input_ids": lines, "labels": lines}),
    )


RUNS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "trl-full": ("llama-tied", with_trl),
    "transformers-full": ("qwen3", with_trainer),
}


def logits(model: Any) -> torch.Tensor:
    model.float().eval()
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS)).logits
    return found.clone()


def make(name: str, work: Path) -> None:
    kind, run = RUNS[name]
    base = write_base(work / name / "base", kind)
    before = logits(AutoModelForCausalLM.from_pretrained(base))
    trainer = run(base, work / name / "out")
    trainer.train()
    trainer.save_model()
    if name == "transformers-full":
        # As it saves a model that is larger than a shard.
        for file in (work / name / "out").glob("model*.safetensors"):
            file.unlink()
        trainer.model.save_pretrained(work / name / "out", max_shard_size="20KB")
    folder = HERE / "artifacts" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for saved in (work / name / "out").iterdir():
        if saved.name in KEPT or saved.name.startswith("model"):
            shutil.copyfile(saved, folder / saved.name)
    after = logits(trainer.model)
    save_file({"before": before, "after": after}, EXPECTED / f"{name}.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in RUNS:
            make(name, Path(work))


if __name__ == "__main__":
    main()
