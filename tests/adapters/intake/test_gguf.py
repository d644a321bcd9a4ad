"""GGUF adapters: what they hold comes back, in each of their types and for both rotary orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.conftest import VOCABULARY
from tests.adapters.intake.gguf_builder import write_gguf

Bases = dict[str, tuple[Path, BaseDescriptor]]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
Q = gguf.GGMLQuantizationType
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _peft(path: Path, targets: list[str]) -> Any:
    torch.manual_seed(4)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
            parameter.data = parameter.data.float().double()
    return model


def _factors(model: Any) -> Factors:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in model.state_dict().items():
        if ".lora_" in name:
            module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            side = "A" if "A" in rest.split(".")[0] else "B"
            found.setdefault(module, {})[side] = value.float()
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}


def _logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("base", "architecture", "targets"),
    [
        ("llama", "llama", ALL),
        ("llama", "llama", ["k_proj", "embed_tokens", "lm_head"]),
        ("qwen3", "qwen3", ALL),
    ],
)
def test_canonical_form_answers_as_the_adapter_it_was_made_from(
    base: str, architecture: str, targets: list[str], bases: Bases, tmp_path: Path
) -> None:
    from peft import PeftModel

    path, descriptor = bases[base]
    model = _peft(path, targets)
    source = tmp_path / "any-name.gguf"
    write_gguf(source, _factors(model), architecture=architecture)
    found = examine(source, bases=[(base, descriptor)], format=None)
    assert (found.problems, found.lane, found.format) == ((), Lane.HOT, "gguf")
    staging = tmp_path / "canonical"
    staging.mkdir()
    manifest = take_in(source, base=descriptor, staging=staging, format=None)
    assert manifest.scale == "alpha/r = 6/4 = 1.5"
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    before, wanted = _logits(plain), _logits(model)
    got = _logits(PeftModel.from_pretrained(plain, staging))
    assert (wanted - before).abs().max() > 1e-2
    assert (got - wanted).abs().max() <= 3e-6 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.BF16, Q.Q8_0])
def test_every_type_is_read_as_ggml_reads_it(
    quantization: gguf.GGMLQuantizationType, bases: Bases, tmp_path: Path
) -> None:
    path, descriptor = bases["llama"]
    factors = _factors(_peft(path, ["v_proj", "down_proj"]))
    (tmp_path / "in").mkdir()
    write_gguf(tmp_path / "in" / "x.gguf", factors, quantization=quantization, alpha=4.0)
    # By gguf's own reader and dequantization; alpha/r is 1, and neither module is reordered.
    read = gguf.GGUFReader(tmp_path / "in" / "x.gguf")
    wanted = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in read.tensors}
    (tmp_path / "out").mkdir()
    # The directory does as well as the file.
    take_in(tmp_path / "in", base=descriptor, staging=tmp_path / "out", format=None)
    got = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(got) == len(wanted) == 4 * 3
    for layer in range(3):
        for module, name in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
            for side in "AB":
                written = got[f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"]
                there = wanted[f"blk.{layer}.{name}.weight.lora_{side.lower()}"]
                assert torch.equal(written.float(), torch.tensor(there).float())


def test_alpha_0_means_scale_1_as_in_llama_cpp(bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases["llama"]
    factors = _factors(_peft(path, ["v_proj"]))
    write_gguf(tmp_path / "x.gguf", factors, alpha=0.0)
    found = take_in(tmp_path / "x.gguf", base=descriptor, staging=tmp_path, format=None)
    assert found.scale == "alpha/r = 4/4 = 1"


def test_a_base_added_before_heads_were_noted_is_to_be_added_again(
    bases: Bases, tmp_path: Path
) -> None:
    path, descriptor = bases["llama"]
    write_gguf(tmp_path / "x.gguf", _factors(_peft(path, ["q_proj"])))
    old = descriptor.model_copy(update={"attention_heads": None})
    found = examine(tmp_path / "x.gguf", bases=[("old", old)], format=None)
    assert "base add" in found.problems[0]
