"""Makes the torchtune artifacts: its models, its LoRA, its checkpointer, and its own logits.

The training loop is written out here (torchtune's recipes want a tokenizer and a data set); what
is saved, and how, is `FullModelHFCheckpointer.save_checkpoint` as those recipes call it.
Made with torchtune 0.6.1, torchao 0.9.0 and torch 2.13 (CPU), in an environment of their own:

    pip install torchtune==0.6.1 torchao==0.9.0
    python -m tests.adapters.intake.trainers.make_torchtune
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchtune import training
from torchtune.models.llama3 import lora_llama3
from torchtune.models.qwen2 import lora_qwen2
from torchtune.modules.peft import (
    get_adapter_params,
    get_adapter_state_dict,
    get_lora_module_names,
    set_trainable_params,
)
from torchtune.training import FullModelHFCheckpointer

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, config_of, write_base

HERE = Path(__file__).parent
RANK, ALPHA = 4, 6
MODULES = ["q_proj", "k_proj", "v_proj", "output_proj"]
# name -> base, torchtune's model type, DoRA?
KINDS: dict[str, tuple[str, str, bool]] = {
    "torchtune-llama": ("llama", "LLAMA3", False),
    "torchtune-qwen2": ("qwen2", "QWEN2", False),
    "torchtune-dora": ("llama", "LLAMA3", True),
}


def build(kind: str, dora: bool) -> Any:
    base = config_of(kind)
    # The DoRA one is small: q is the projection whose rows are reordered.
    return {"llama": lora_llama3, "qwen2": lora_qwen2}[kind](
        ["q_proj"] if dora else MODULES,
        apply_lora_to_mlp=kind == "llama" and not dora,
        apply_lora_to_output=kind == "llama" and not dora,
        vocab_size=VOCABULARY,
        num_layers=base["num_hidden_layers"],
        num_heads=base["num_attention_heads"],
        num_kv_heads=base["num_key_value_heads"],
        embed_dim=base["hidden_size"],
        intermediate_dim=base["intermediate_size"],
        max_seq_len=64,
        norm_eps=base["rms_norm_eps"],
        rope_base=10_000,
        lora_rank=RANK,
        lora_alpha=ALPHA,
        use_dora=dora,
    )


def targets_of(kind: str, dora: bool) -> list[str]:
    """As torchtune's recipes fill the config in."""
    whole = kind == "llama" and not dora
    found: list[str] = get_lora_module_names(["q_proj"] if dora else MODULES, whole, whole)
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS))
    return found.clone()


def train(model: Any) -> None:
    parameters = get_adapter_params(model)
    set_trainable_params(model, parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.03)
    generator = torch.Generator().manual_seed(5)
    for _ in range(8):
        tokens = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
        found = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(found.flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def make(name: str, work: Path) -> None:
    kind, model_type, dora = KINDS[name]
    base = write_base(work / name / "base", kind)
    checkpointer = FullModelHFCheckpointer(
        checkpoint_dir=str(base),
        checkpoint_files=["model.safetensors"],
        model_type=model_type,
        output_dir=str(work / name / "out"),
    )
    torch.manual_seed(9)
    model = build(kind, dora)
    loaded = checkpointer.load_checkpoint()[training.MODEL_KEY]
    model.load_state_dict(loaded, strict=False)
    for module in model.modules():
        if hasattr(module, "initialize_dora_magnitude"):
            module.initialize_dora_magnitude()
    before = logits(model)
    train(model)
    after = logits(model)
    checkpointer.save_checkpoint(
        {
            training.ADAPTER_KEY: get_adapter_state_dict(model.state_dict()),
            training.ADAPTER_CONFIG: {
                "r": RANK,
                "lora_alpha": ALPHA,
                "target_modules": targets_of(kind, dora),
                "peft_type": "LORA",
            },
        },
        epoch=0,
        intermediate_checkpoint=False,
        adapter_only=True,
    )
    folder = HERE / "artifacts" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saved = work / name / "out" / "epoch_0"
    for file in ("adapter_model.pt", "adapter_config.json"):
        shutil.copy(saved / file, folder)
    save_file({"before": before, "after": after}, expected_of(name))


def expected_of(name: str) -> Path:
    return HERE / "expected" / f"{name}.safetensors"


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in KINDS:
            make(name, Path(work))


if __name__ == "__main__":
    main()
