"""Quantized bases: real ones are described, and what does not fit together is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bases.describe import describe_base
from adapters.bases.engine_limits import engine_refusal, layer_refusal
from adapters.errors import BaseError
from adapters.models import BaseDescriptor, Quantization
from tests.adapters.bases.quantized_dirs import (
    AUTOAWQ,
    AUTOGPTQ,
    TRAINED,
    edit_config,
    edit_model,
    edit_tensors,
    tensors_of,
    write_nf4,
    write_w4a16,
    write_w8a8,
)

PLAIN = ("lm_head",)


@pytest.fixture
def awq(tmp_path: Path) -> Path:
    return shutil.copytree(AUTOAWQ, tmp_path / "awq")


@pytest.fixture
def gptq(tmp_path: Path) -> Path:
    return shutil.copytree(AUTOGPTQ, tmp_path / "gptq")


@pytest.fixture(scope="module")
def w4a16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_w4a16(tmp_path_factory.mktemp("w4a16") / "base")


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_w8a8(tmp_path_factory.mktemp("w8a8") / "base")


def older_release(path: Path) -> None:
    """As AutoGPTQ wrote it before transformers knew of it: nothing in config.json."""
    edit_model(path, quantization_config=None)


def test_what_autoawq_wrote() -> None:
    found = describe_base(AUTOAWQ)
    assert found.quantization == Quantization(
        method="awq", layout="awq", bits=4, group_size=32, symmetric=False, plain=PLAIN
    )
    assert list(found.modules) == list(describe_base(TRAINED).modules)


def test_what_auto_gptq_wrote() -> None:
    """Under its own file name, with a bias of zeros for every layer."""
    found = describe_base(AUTOGPTQ)
    assert found.quantization == Quantization(
        method="gptq", layout="gptq", bits=4, group_size=32, symmetric=True, plain=PLAIN
    )


def test_what_old_releases_of_auto_gptq_wrote(gptq: Path) -> None:
    older_release(gptq)
    found = describe_base(gptq).quantization
    assert found is not None
    assert (found.method, found.bits, found.group_size) == ("gptq", 4, 32)
    assert found.beside == "quantize_config.json"


def test_what_compressed_tensors_writes(w4a16: Path, w8a8: Path) -> None:
    assert describe_base(w4a16).quantization == Quantization(
        method="compressed-tensors",
        layout="pack-quantized",
        bits=4,
        group_size=32,
        symmetric=False,
        plain=PLAIN,
    )
    int8 = describe_base(w8a8)
    assert engine_refusal(int8, cpu=True) is None
    assert int8.quantization == Quantization(
        method="compressed-tensors",
        layout="int-quantized",
        bits=8,
        symmetric=True,
        activation_bits=8,
        plain=PLAIN,
    )


def test_bitsandbytes_is_described_but_not_served(tmp_path: Path) -> None:
    found = describe_base(write_nf4(tmp_path / "nf4"))
    assert found.quantization is not None
    assert (found.quantization.method, found.quantization.bits) == ("bitsandbytes", 4)
    assert "does not serve" in (engine_refusal(found, cpu=False) or "")


def test_auto_round_names_the_layout_in_its_own_way(gptq: Path) -> None:
    edit_model(
        gptq,
        quantization_config={
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            "bits": 4,
            "group_size": 32,
            "sym": True,
            "data_type": "int",
        },
    )
    found = describe_base(gptq).quantization
    assert found is not None
    assert (found.method, found.layout) == ("auto-round", "gptq")


def test_layers_of_several_kinds_are_measured_one_by_one(gptq: Path) -> None:
    """gptqmodel's `dynamic`: one layer in groups of another size."""
    edit_config(gptq, dynamic={r"+:.*\.0\.mlp\.up_proj": {"group_size": 64}})
    name = "model.layers.0.mlp.up_proj"
    _, tensors = tensors_of(gptq)
    for leaf in ("scales", "qzeros"):
        tensors[f"{name}.{leaf}"] = tensors[f"{name}.{leaf}"][::2].clone()
    edit_tensors(gptq, tensors)
    assert describe_base(gptq).quantization is not None
    edit_tensors(gptq, {f"{name}.qzeros": tensors[f"{name}.qzeros"][:1].clone()})
    with pytest.raises(BaseError, match=r"up_proj\.qzeros"):
        describe_base(gptq)


def test_a_16_bit_base_is_not_quantized() -> None:
    assert describe_base(TRAINED).quantization is None


def test_descriptors_of_before_are_read_as_they_were() -> None:
    stored = describe_base(TRAINED).model_dump_json(exclude={"quantization"})
    assert BaseDescriptor.model_validate_json(stored).quantization is None


def test_a_quantizer_that_the_table_does_not_have_is_left_to_the_engine(awq: Path) -> None:
    said = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    edit_model(awq, quantization_config=said)
    assert describe_base(awq).quantization == Quantization(method="fp8")


Q = "model.layers.1.self_attn.q_proj"
Spoil = Callable[[Path], None]


def _config(**changes: Any) -> Spoil:
    return lambda path: edit_config(path, **changes)


def _cut(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        edit_tensors(path, {name: tensors_of(path)[1][name][:-1].clone()})

    return spoil


def _without(name: str) -> Spoil:
    return lambda path: edit_tensors(path, {name: None})


def _repacked(path: Path) -> None:
    """One layer of AWQ turned as GPTQ has it."""
    found = tensors_of(path)[1][f"{Q}.qweight"]
    edit_tensors(path, {f"{Q}.qweight": found.T.contiguous()})


def _floats(path: Path) -> None:
    found = tensors_of(path)[1][f"{Q}.qzeros"]
    edit_tensors(path, {f"{Q}.qzeros": found.to(torch.int64)})


BAD_AWQ: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "eight bits": (_config(bits=8), ("AWQ with 8 bits", "4 bits only")),
    "gemv": (_config(version="gemv"), ("'gemv'", "'gemm' only")),
    "no zero_point": (_config(zero_point=None), ("'zero_point'",)),
    "no bits": (_config(bits=None), ("'bits'",)),
    "bits as text": (_config(bits="4"), ("'bits'",)),
    "group of nothing": (_config(group_size=0), ("group size 0",)),
    "group does not divide": (
        _config(group_size=128),
        ("has 192 inputs", "groups of 128 do not divide"),
    ),
    "another group": (_config(group_size=64), (".scales", "[4, 128]", "[2, 128]")),
    "rows missing": (_cut(f"{Q}.qweight"), (f"'{Q}.qweight'", "[127, 16]", "[128, 16]")),
    "packed the other way": (_repacked, (f"'{Q}.qweight'", "[16, 128]", "[128, 16]")),
    "another dtype": (_floats, (f"'{Q}.qzeros'", "I64", "I32")),
    "no scales": (_without(f"{Q}.scales"), (f"'{Q}' lacks its scales", "incomplete")),
    "layer missing": (_without(f"{Q}.qweight"), (f"lack '{Q}.weight'",)),
    "norm missing": (_without("model.norm.weight"), ("lack 'model.norm.weight'",)),
    "norm too short": (_cut("model.norm.weight"), ("'model.norm.weight'", "[127]", "[128]")),
    "says GPTQ": (
        _config(quant_method="gptq", sym=True, desc_act=False),
        ("q_proj.qweight'", "GPTQ"),
    ),
    "nothing said": (
        lambda p: edit_model(p, quantization_config=None),
        ("no quantization_config",),
    ),
    "no method": (_config(quant_method=None), ("no quant_method",)),
}
BAD_GPTQ: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "activation order": (
        _config(desc_act=True),
        ("desc_act=True with groups of 32", "desc_act=False"),
    ),
    "asymmetric": (_config(sym=False), ("asymmetric", "sym=True")),
    "no sym": (_config(sym=None), ("'sym'",)),
    "odd group": (_config(group_size=16), ("groups of 16", "128, 64 or 32")),
    "three bits": (_config(bits=3), ("3 bits", "only 4 and 8")),
    "marlin": (_config(is_marlin_format=True), ("Marlin",)),
    "eight bits on a CPU": (_config(bits=8), ("q_proj.qweight'",)),
    "group does not divide": (_config(group_size=128), ("192 inputs",)),
    "indices too short": (_cut(f"{Q}.g_idx"), (f"'{Q}.g_idx'",)),
    "bias too short": (_cut(f"{Q}.bias"), (f"'{Q}.bias'",)),
    "two sets of weights": (
        lambda p: _dropped(shutil.copy(next(p.glob("*.safetensors")), p / "other.safetensors")),
        ("the index is missing",),
    ),
}


def _dropped(_: object) -> None:
    """A call's result that nobody wants."""


@pytest.mark.parametrize("name", BAD_AWQ)
def test_wrong_awq_is_refused_by_name(name: str, awq: Path) -> None:
    _refused(awq, *BAD_AWQ[name])


@pytest.mark.parametrize("name", BAD_GPTQ)
def test_wrong_gptq_is_refused_by_name(name: str, gptq: Path) -> None:
    _refused(gptq, *BAD_GPTQ[name])


def _refused(path: Path, spoil: Spoil, says: tuple[str, ...]) -> None:
    spoil(path)
    with pytest.raises(BaseError) as refused:
        describe_base(path)
    for part in says:
        assert part in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("leaf", ["weight_scale", "weight_zero_point", "weight_shape"])
def test_compressed_tensors_lacking_a_part(leaf: str, w4a16: Path, tmp_path: Path) -> None:
    path = shutil.copytree(w4a16, tmp_path / "copy")
    edit_tensors(path, {f"{Q}.{leaf}": None})
    with pytest.raises(BaseError, match=f"'{Q}' lacks its {leaf}"):
        describe_base(path)


def test_compressed_tensors_with_activation_order(w4a16: Path, tmp_path: Path) -> None:
    path = shutil.copytree(w4a16, tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseError, match="activation order 'group'"):
        describe_base(path)


def test_what_only_a_cpu_does_not_serve() -> None:
    awq = describe_base(AUTOAWQ)
    assert layer_refusal(awq, cpu=True) is None
    assert awq.quantization is not None
    eight = awq.model_copy(update={"quantization": awq.quantization.model_copy(update={"bits": 8})})
    assert layer_refusal(eight, cpu=False) is None
    assert "4 bits only" in (layer_refusal(eight, cpu=True) or "")
    odd = awq.model_copy(
        update={
            "modules": tuple(
                m.model_copy(update={"in_features": 144}) if m.name.endswith("down_proj") else m
                for m in awq.modules
            )
        }
    )
    assert layer_refusal(odd, cpu=False) is None
    assert "144 inputs" in (layer_refusal(odd, cpu=True) or "")


def test_fused_matrices_count_as_one() -> None:
    """q, k and v of 48, 24 and 24 outputs are one matrix of 96 in vLLM."""
    awq = describe_base(AUTOAWQ)
    outputs = {"q_proj": 48, "k_proj": 24, "v_proj": 24}
    fused = tuple(
        m.model_copy(update={"out_features": outputs[leaf]}) if leaf in outputs else m
        for m, leaf in ((m, m.name.rpartition(".")[2]) for m in awq.modules)
    )
    assert layer_refusal(awq.model_copy(update={"modules": fused}), cpu=True) is None
