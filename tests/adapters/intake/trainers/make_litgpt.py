"""Makes the LitGPT artifacts with `litgpt finetune_lora` itself, and LitGPT's own logits.

Made with litgpt 0.5.13 and torch 2.13 (CPU), in an environment of their own:

    pip install litgpt==0.5.13 requests
    python -m tests.adapters.intake.trainers.make_litgpt
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from litgpt import Config
from litgpt.lora import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import save_config
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, config_of, write_base

HERE = Path(__file__).parent
KEPT = ("lit_model.pth.lora", "hyperparameters.yaml", "model_config.yaml")
# name -> which layers are adapted
KINDS: dict[str, tuple[str, ...]] = {
    "litgpt-default": ("query", "value"),
    "litgpt-all": ("query", "key", "value", "projection", "mlp", "head"),
}


def litgpt_config() -> Config:
    base = config_of("llama")
    return Config(
        name="tiny-llama",
        hf_config={"org": "somebody", "name": "tiny-llama"},
        block_size=64,
        n_layer=base["num_hidden_layers"],
        n_embd=base["hidden_size"],
        n_head=base["num_attention_heads"],
        n_query_groups=base["num_key_value_heads"],
        head_size=base["head_dim"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        norm_class_name="RMSNorm",
        norm_eps=base["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        intermediate_size=base["intermediate_size"],
        rope_base=10000,
    )


def write_checkpoint(folder: Path, base: Path) -> None:
    """The base as LitGPT keeps it, by LitGPT's own conversion, with a tokenizer of digits."""
    folder.mkdir(parents=True)
    config = litgpt_config()
    qkv: dict[int, Any] = {}
    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, qkv, state, load_file(base / "model.safetensors"))
    torch.save(state, folder / "lit_model.pth")
    save_config(config, folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {str(i): i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrained"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')


def train(checkpoint: Path, out: Path, adapted: tuple[str, ...], data: Path) -> None:
    switches = [
        f"--lora_{part}={str(part in adapted).lower()}"
        for part in ("query", "key", "value", "projection", "mlp", "head")
    ]
    subprocess.run(
        [
            sys.executable, "-m", "litgpt", "finetune_lora", checkpoint.name,
            f"--out_dir={out}", "--precision=32-true", "--lora_r=4", "--lora_alpha=6",
            "--lora_dropout=0.0", *switches,
            "--data=JSON", f"--data.json_path={data}", "--data.val_split_fraction=0.2",
            "--data.num_workers=0",
            "--train.epochs=3", "--train.global_batch_size=4", "--train.micro_batch_size=4",
            "--train.max_seq_length=48", "--train.lr_warmup_steps=1",
            '--optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}',
            "--eval.initial_validation=false",
            "--eval.final_validation=false", "--eval.max_iters=1", "--eval.interval=1000",
        ],
        check=True,
        cwd=checkpoint.parent,
    )  # fmt: skip


def logits(checkpoint: Path, adapter: Path | None, adapted: tuple[str, ...]) -> torch.Tensor:
    from litgpt.lora import Config as LoraConfig

    switches = {f"lora_{part}": True for part in adapted} if adapter is not None else {}
    config = LoraConfig.from_file(
        checkpoint / "model_config.yaml", lora_r=4, lora_alpha=6, lora_dropout=0.0, **switches
    )
    model = GPT(config).eval()
    state: dict[str, Any] = torch.load(checkpoint / "lit_model.pth", weights_only=True)
    if adapter is not None:
        state |= torch.load(adapter, weights_only=True)["model"]
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS))
    return found.clone()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        checkpoint = work / "checkpoints"
        write_checkpoint(checkpoint, write_base(work / "llama", "llama"))
        lines = [
            {"instruction": f"{i + 3} {i + 4} {i + 9}", "output": f"{i + 5} {2 * i + 6} {i + 11}"}
            for i in range(20)
        ]
        (work / "lines.json").write_text(json.dumps(lines))
        for name, adapted in KINDS.items():
            train(checkpoint, work / name, adapted, work / "lines.json")
            folder = HERE / "artifacts" / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for file in KEPT:
                shutil.copy(work / name / "final" / file, folder)
            settings = folder / "hyperparameters.yaml"
            settings.write_text(settings.read_text().replace(str(work), "work"))
            save_file(
                {
                    "before": logits(checkpoint, None, adapted),
                    "after": logits(checkpoint, folder / "lit_model.pth.lora", adapted),
                },
                HERE / "expected" / f"{name}.safetensors",
            )


if __name__ == "__main__":
    main()
