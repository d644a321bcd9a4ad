"""Makes the MLX artifacts with mlx-lm itself, trained for a few steps, and its own logits.

Made with mlx-lm 0.32.2 and mlx[cpu] 0.32.4, in an environment of their own:

    pip install 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
    python -m tests.adapters.intake.trainers.make_mlx [NAME ...]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.lora import CONFIG_DEFAULTS, train_model
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from safetensors.numpy import save_file

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, write_base

HERE = Path(__file__).parent
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
# name -> base, fine_tune_type, num_layers, keys
KINDS: dict[str, tuple[str, str, int, list[str] | None]] = {
    "mlx-lora": ("llama", "lora", 2, None),
    "mlx-qwen3": ("qwen3", "lora", 1, ATTENTION + MLP),
    "mlx-tied-embedding": ("llama-tied", "lora", 2, ["model.embed_tokens", "self_attn.q_proj"]),
    "mlx-experts": ("qwen3-moe", "lora", 1, None),
    "mlx-dora": ("llama", "dora", 1, ["self_attn.q_proj"]),
    "mlx-full": ("llama", "full", 1, None),
}


class Lines:
    """Token lists as mlx-lm's datasets hand them out."""

    def __init__(self, seed: int):
        stream = np.random.RandomState(seed)
        self._lines = [stream.randint(3, VOCABULARY, size=24).tolist() for _ in range(8)]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> list[int]:
        line: list[int] = self._lines[index]
        return line

    def process(self, line: list[int]) -> tuple[list[int], int]:
        return line, 0


def logits(model: Any) -> np.ndarray[Any, Any]:
    return np.array(model(mx.array(TOKENS)).astype(mx.float32))


def make(name: str, work: Path) -> None:
    kind, fine_tune, layers, keys = KINDS[name]
    base = write_base(work / kind, kind)
    folder = HERE / "artifacts" / name
    shutil.rmtree(folder, ignore_errors=True)
    parameters: dict[str, Any] = {"rank": 4, "dropout": 0.0, "scale": 2.5}
    if keys is not None:
        parameters["keys"] = keys
    arguments = {
        **CONFIG_DEFAULTS,
        "model": f"somebody/{kind}",
        "train": True,
        "fine_tune_type": fine_tune,
        "num_layers": layers,
        "lora_parameters": parameters,
        "batch_size": 4,
        "iters": 6,
        "learning_rate": 0.05 if fine_tune != "full" else 0.004,
        "val_batches": 1,
        "max_seq_length": 32,
        "adapter_path": str(folder),
    }
    model, _ = load_model(base)
    before = logits(model)
    train_model(types.SimpleNamespace(**arguments), model, Lines(1), Lines(2))
    for checkpoint in folder.glob("0*_adapters.safetensors"):
        checkpoint.unlink()
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder), "adapters"))
    # From the files, as a user of the adapter has it.
    tuned, _ = load_model(base)
    after = logits(load_adapters(tuned, str(folder)))
    save_file({"before": before, "after": after}, HERE / "expected" / f"{name}.safetensors")


def main() -> None:
    (HERE / "expected").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name in sys.argv[1:] or KINDS:
            make(name, Path(work))


if __name__ == "__main__":
    main()
