"""Makes the TRL artifacts: runs of SFTTrainer, DPOTrainer, KTOTrainer and GRPOTrainer, as saved.

The DPO run goes on with an adapter that is there already, so that TRL keeps a frozen copy of it as
the reference (`ref/`); the SFT run leaves checkpoints beside its result. Logits are PEFT's, of the
model in the trainer's hands. Files that hold this machine's paths or pickles are left out.
Made with trl 1.16.0, peft 0.21.2, transformers 5.23.0, datasets 5.2.0 and torch 2.13 (CPU), in an
environment of their own:

    pip install trl==1.16.0 peft==0.21.2
    python -m tests.adapters.intake.trainers.make_trl
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, write_base

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
KEPT = ("adapter_config.json", "adapter_model.safetensors", "README.md")
NAME = "tiny/llama"


def tokenizer() -> Any:
    """Words w3 … for the tokens of the tiny base; no training, no download."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def sentences(count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, VOCABULARY, (count, 12), generator=generator)
    return [" ".join(f"w{int(i)}" for i in row) for row in drawn]


def base_model(work: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(write_base(work / "base", "llama"))
    # PEFT writes it into the config; this machine's path says nothing.
    model.__dict__["name_or_path"] = NAME
    model.config._name_or_path = NAME
    return model


def lora(*targets: str) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=6, target_modules=list(targets), task_type="CAUSAL_LM")


def options(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.05,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "seed": 9,
        **more,
    }


def sft(work: Path, out: Path) -> Any:
    rows = Dataset.from_dict({"text": sentences(16, 1)})
    return SFTTrainer(
        model=base_model(work),
        args=SFTConfig(**options(out, save_strategy="steps", save_steps=2, max_length=16)),
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=lora("q_proj", "v_proj", "down_proj"),
    )


def dpo(work: Path, out: Path) -> Any:
    start = HERE / "artifacts" / "trl-sft"
    model = PeftModel.from_pretrained(base_model(work), start, is_trainable=True)
    rows = {"prompt": sentences(16, 2), "chosen": sentences(16, 3), "rejected": sentences(16, 4)}
    return DPOTrainer(
        model=model,
        args=DPOConfig(**options(out)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
    )


def kto(work: Path, out: Path) -> Any:
    rows = {
        "prompt": sentences(16, 5),
        "completion": sentences(16, 6),
        "label": [i % 2 == 0 for i in range(16)],
    }
    return KTOTrainer(
        model=base_model(work),
        args=KTOConfig(**options(out)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
        peft_config=lora("q_proj", "o_proj"),
    )


def grpo(work: Path, out: Path) -> Any:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text.split()))) for text in completions]

    return GRPOTrainer(
        model=base_model(work),
        reward_funcs=reward,
        args=GRPOConfig(**options(out, num_generations=2, max_completion_length=8)),
        train_dataset=Dataset.from_dict({"prompt": sentences(8, 7)}),
        processing_class=tokenizer(),
        peft_config=lora("q_proj", "v_proj"),
    )


RUNS: dict[str, Callable[[Path, Path], Any]] = {
    "trl-sft": sft,
    "trl-dpo": dpo,
    "trl-kto": kto,
    "trl-grpo": grpo,
}


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS)).logits
    return found.clone()


def make(name: str, work: Path) -> None:
    trainer = RUNS[name](work / name, work / name / "out")
    with trainer.model.disable_adapter():
        before = logits(trainer.model)
    trainer.model.train()
    trainer.train()
    after = logits(trainer.model)
    trainer.save_model()
    folder = HERE / "artifacts" / name
    shutil.rmtree(folder, ignore_errors=True)
    for saved in (work / name / "out").rglob("*"):
        if saved.name in KEPT:
            to = folder / saved.relative_to(work / name / "out")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(saved, to)
    save_file({"before": before, "after": after}, EXPECTED / f"{name}.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in RUNS:
            make(name, Path(work))


if __name__ == "__main__":
    main()
