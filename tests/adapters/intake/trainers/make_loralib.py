"""Makes the loralib artifacts: its layers in tiny models, saved by its `lora_state_dict`.

loralib is a handful of layers; where they go is the user's code, as it is here. GPT-2's joint
c_attn is a MergedLinear, as in microsoft/LoRA's own example (there with q and v trained; `-part`
is that one, whose file does not say which parts they are).
Made with loralib 0.1.2, transformers 5.23 and torch 2.13 (CPU), in an environment of their own:

    pip install loralib==0.1.2 transformers
    python -m tests.adapters.intake.trainers.make_loralib
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import loralib
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.adapters.intake.trainers.tiny_base import TOKENS, VOCABULARY, write_base

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
RANK, ALPHA = 4, 6
# name -> base, leaves, which parts of a joint layer are trained
KINDS: dict[str, tuple[str, tuple[str, ...], list[bool]]] = {
    "loralib-llama": ("llama", ("q_proj", "v_proj", "down_proj"), []),
    "loralib-gpt2": ("gpt2", ("c_attn",), [True, True, True]),
    "loralib-gpt2-part": ("gpt2", ("c_attn",), [True, False, True]),
}


def layer_for(old: Any, enabled: list[bool]) -> Any:
    """A layer of loralib's with the weights of `old`."""
    options = {"r": RANK, "lora_alpha": ALPHA, "merge_weights": False}
    if enabled:  # GPT-2's Conv1D keeps its weight as [in, out]
        inputs, outputs = old.weight.shape
        new = loralib.MergedLinear(
            inputs, outputs, enable_lora=enabled, fan_in_fan_out=True, **options
        )
        new.bias.data = old.bias.data
    else:
        outputs, inputs = old.weight.shape
        new = loralib.Linear(inputs, outputs, bias=False, **options)
    new.weight.data = old.weight.data
    return new


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor(TOKENS)).logits
    return found.clone()


def train(model: Any) -> None:
    loralib.mark_only_lora_as_trainable(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    generator = torch.Generator().manual_seed(5)
    for _ in range(8):
        tokens = torch.randint(3, VOCABULARY, (4, 24), generator=generator)
        torch.autograd.backward(model(tokens, labels=tokens).loss)
        optimizer.step()
        optimizer.zero_grad()


def make(name: str, work: Path) -> None:
    kind, leaves, enabled = KINDS[name]
    model = AutoModelForCausalLM.from_pretrained(write_base(work / name, kind)).eval()
    before = logits(model)
    torch.manual_seed(9)
    for path, old in list(model.named_modules()):
        parent, _, leaf = path.rpartition(".")
        if leaf in leaves:
            setattr(model.get_submodule(parent), leaf, layer_for(old, enabled))
    model.eval()
    train(model)
    folder = HERE / "artifacts" / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(loralib.lora_state_dict(model), folder / "my_lora.pt")
    save_file({"before": before, "after": logits(model)}, EXPECTED / f"{name}.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        for name in KINDS:
            make(name, Path(work))
    # There is nothing to compare with: it is there to be refused.
    (EXPECTED / "loralib-gpt2-part.safetensors").unlink()


if __name__ == "__main__":
    main()
