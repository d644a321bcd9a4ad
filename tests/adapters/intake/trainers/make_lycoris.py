"""Makes the kohya-style artifacts: LyCORIS's own network around a tiny language model.

LyCORIS comes from image models, but wraps any torch module; names, alphas and shapes are what its
`save_weights` writes. Logits are those of the model that LyCORIS patched.
Made with lycoris-lora 4.1.3, transformers 5.23 and torch 2.13 (CPU), in an environment of their
own:

    pip install lycoris-lora==4.1.3 transformers
    python -m tests.adapters.intake.trainers.make_lycoris
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, write_base

HERE = Path(__file__).parent
# name -> base, prefix of the names, LyCORIS's options
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lycoris-locon": ("llama", "lora", {"algo": "lora", "linear_dim": 4, "linear_alpha": 6}),
    "lycoris-te": (
        "qwen3",
        "lora_te",
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 3},
    ),
    "lycoris-loha": ("llama", "lycoris", {"algo": "loha", "linear_dim": 3, "linear_alpha": 6}),
    "lycoris-lokr": (
        "llama",
        "lycoris",
        {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 4, "decompose_both": True},
    ),
    "lycoris-lokr-whole": (
        "llama",
        "lycoris",
        {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 4},
    ),
}
EXPECTED = HERE / "expected"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS)).logits
    return found.clone()


def train(model: Any, network: Any) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(5)
    for _ in range(8):
        tokens = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
        torch.autograd.backward(model(tokens, labels=tokens).loss)
        optimizer.step()
        optimizer.zero_grad()


def make(name: str, work: Path) -> None:
    kind, prefix, options = KINDS[name]
    base = write_base(work / name, kind)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.requires_grad_(False).eval()
    before = logits(model)
    stem = {"llama": "Llama", "qwen3": "Qwen3"}[kind]
    LycorisNetwork.apply_preset(
        {"lora_prefix": prefix, "target_module": [f"{stem}Attention", f"{stem}MLP"]}
    )
    torch.manual_seed(9)
    network = create_lycoris(model, 1.0, **options)
    network.apply_to()
    train(model, network)
    after = logits(model)
    folder = HERE / "artifacts" / name
    folder.mkdir(parents=True, exist_ok=True)
    network.save_weights(str(folder / "tiny_lora.safetensors"), torch.float32, {})
    save_file({"before": before, "after": after}, EXPECTED / f"{name}.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in KINDS:
            make(name, Path(work))


if __name__ == "__main__":
    main()
