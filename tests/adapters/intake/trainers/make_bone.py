"""Makes the Bone artifact and its logits with the last PEFT versions that had Bone.

Made with peft 0.15.2, transformers 4.51.3 and torch 2.13 (CPU), in an environment of their own:

    pip install peft==0.15.2 transformers==4.51.3
    python -m tests.adapters.intake.trainers.make_bone
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import BoneConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.adapters.intake.trainers.tiny_base import TOKENS, write_base

HERE = Path(__file__).parent
KEPT = ("adapter_config.json", "adapter_model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(torch.tensor(TOKENS)).logits
    assert isinstance(found, torch.Tensor)
    return found.contiguous()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = write_base(Path(scratch) / "base", "llama")
        model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32).eval()
        before = logits(model)
        # A rank that does not divide the inputs: the last block is a part.
        config = BoneConfig(r=5, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"])
        tuned = get_peft_model(model, config).eval()
        torch.manual_seed(11)
        for name, parameter in tuned.named_parameters():
            if "bone_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        after = logits(tuned)
        tuned.peft_config["default"].base_model_name_or_path = "somebody/tiny-llama"
        tuned.save_pretrained(Path(scratch) / "adapter")
        kept = HERE / "artifacts" / "peft-bone"
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            (kept / name).write_bytes((Path(scratch) / "adapter" / name).read_bytes())
    save_file({"before": before, "after": after}, HERE / "expected" / "peft-bone.safetensors")


if __name__ == "__main__":
    main()
