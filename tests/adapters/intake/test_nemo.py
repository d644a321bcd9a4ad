"""NeMo 1's .nemo files against the PEFT adapters they are made from.

NeMo does not install here: the files are written by the rules of its own converter's sources, row
by row in a loop, so that no formula of the reader is used to test itself.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.errors import (
    AdapterctlError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    SourceRefused,
    UnknownFormat,
    UnsafePickle,
)
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import PREFIX, WEIGHTS, CallOnLoad, Tensors
from tests.adapters.intake.conftest import VOCABULARY
from tests.adapters.intake.nemo_builder import (
    ALPHA,
    RANK,
    nemo_config,
    nemo_members,
    nemo_state,
    pack,
)

Bases = dict[str, tuple[Path, BaseDescriptor]]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Joined in NeMo, so that they have one A.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_peft(path: Path, folder: Path) -> Tensors:
    """A PEFT adapter as NeMo could have trained it; its tensors by module, `….lora_A`."""
    model = get_peft_model(
        _base_model(path),
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ALL, task_type="CAUSAL_LM"),
    )
    torch.manual_seed(11)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
    for leaves in JOINED:
        for name, parameter in parameters.items():
            if f".{leaves[0]}.lora_A" in name:
                for other in leaves[1:]:
                    parameters[name.replace(leaves[0], other)].data = parameter.data.clone()
    model.save_pretrained(folder)
    saved = load_file(folder / WEIGHTS)
    return {k.removeprefix(PREFIX).removesuffix(".weight"): v for k, v in saved.items()}


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_answers_as_the_peft_adapter(
    base: str, joined: bool, mode: str, bases: Bases, tmp_path: Path
) -> None:
    path, descriptor = bases[base]
    size, layers = (8, 3) if base == "llama" else (16, 2)
    tensors = _save_peft(path, tmp_path / "peft")
    state = nemo_state(tensors, layers, size, joined=joined)
    source = pack(tmp_path / "a.nemo", nemo_members(state, nemo_config(size)), mode)
    found = examine(source, bases=[("tiny", descriptor)], format=None)
    assert (found.problems, found.format, found.trainer) == ((), "nemo", "NeMo")
    assert (found.base_by_trainer, found.rank) == ("llama.nemo", RANK)
    (tmp_path / "out").mkdir()
    manifest = take_in(source, base=descriptor, staging=tmp_path / "out", format=None)
    assert manifest.scale == "alpha/r = 10/4 = 2.5"
    before = _logits(_base_model(path))
    wanted = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "peft"))
    adapted = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "out"))
    assert (wanted - before).abs().max().item() > 1e-2
    assert (adapted - wanted).abs().max().item() <= 1e-6


def test_unpacked_it_is_the_same(bases: Bases, tmp_path: Path) -> None:
    path, base = bases["llama"]
    state = nemo_state(_save_peft(path, tmp_path / "peft"), 3, 8, joined=True)
    members = nemo_members(state, nemo_config(8))
    packed = pack(tmp_path / "a.nemo", members)
    (tmp_path / "open").mkdir()
    for name, data in members.items():
        (tmp_path / "open" / name).write_bytes(data)
    stored: list[bytes] = []
    for source in (packed, tmp_path / "open"):
        out = tmp_path / f"out{len(stored)}"
        out.mkdir()
        take_in(source, base=base, staging=out, format=None)
        stored.append((out / WEIGHTS).read_bytes())
    assert stored[0] == stored[1]


def test_without_an_alpha_the_factor_is_1(bases: Bases, tmp_path: Path) -> None:
    path, base = bases["llama"]
    state = nemo_state(_save_peft(path, tmp_path / "peft"), 3, 8, joined=True)
    config = nemo_config(8)
    config["peft"]["lora_tuning"]["alpha"] = None
    source = pack(tmp_path / "a.nemo", nemo_members(state, config))
    assert take_in(source, base=base, staging=tmp_path, format=None).scale == "alpha/r = 4/4 = 1"


def _with(**values: Any) -> Callable[[Tensors], dict[str, bytes]]:
    return lambda state: nemo_members(state, nemo_config(8, **values))


def _ranks(state: Tensors) -> dict[str, bytes]:
    members = nemo_members(state, nemo_config(8, tensor_model_parallel_size=2))
    weights = members.pop("./model_weights.ckpt")
    return {**members, **{f"./mp_rank_0{i}/model_weights.ckpt": weights for i in range(2)}}


def _rank_dim(state: Tensors) -> dict[str, bytes]:
    peft = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 8, "alpha": 8}}
    return nemo_members(state, nemo_config(8, peft=peft))


def _only(name: str) -> Callable[[Tensors], dict[str, bytes]]:
    return lambda state: {name: nemo_members(state, nemo_config(8))[name]}


def _renamed(state: Tensors) -> dict[str, bytes]:
    renamed = {name.replace("lora_4htoh", "lora_mystery"): t for name, t in state.items()}
    return nemo_members(renamed, nemo_config(8))


def _escaping(state: Tensors) -> dict[str, bytes]:
    return {**nemo_members(state, nemo_config(8)), "../../escaped": b"x"}


BAD: dict[
    str, tuple[Callable[[Tensors], dict[str, bytes]], type[AdapterctlError], tuple[str, ...]]
] = {
    "two-parts": (_ranks, UnknownFormat, ("mp_rank_00, mp_rank_01", "saved in parts")),
    "pipeline": (
        _with(pipeline_model_parallel_size=2),
        UnknownFormat,
        ("pipeline parallel 2", "saved in parts"),
    ),
    "no-weights": (_only("./model_config.yaml"), DamagedArtifact, ("no model_weights.ckpt",)),
    "no-config": (_only("./model_weights.ckpt"), InvalidConfig, ("no model_config.yaml",)),
    "whole-model": (_with(peft=None), UnknownFormat, ("without peft is a whole model",)),
    "ptuning": (_with(peft={"peft_scheme": "ptuning"}), UnknownFormat, ("'ptuning'",)),
    "interleaved": (_with(rotary_interleaved=True), UnknownFormat, ("rotary_interleaved",)),
    "no-heads": (_with(num_attention_heads=None), InvalidConfig, ("num_attention_heads",)),
    "groups": (_with(num_query_groups=3), InvalidConfig, ("3 query groups",)),
    "other-heads": (_with(num_query_groups=4), DamagedArtifact, ("kqv_adapter", "96 rows")),
    "rank": (_rank_dim, InvalidConfig, ("rank 4", "model_config.yaml says 8")),
    "name": (_renamed, BaseMismatch, ("lora_mystery_adapter", "does not have")),
    "escape": (_escaping, SourceRefused, ("escaped", "'..'")),
    "runs-code": (
        lambda state: nemo_members({"x": CallOnLoad()}, nemo_config(8)),
        UnsafePickle,
        ("model_weights.ckpt", "print"),
    ),
}


@pytest.fixture(scope="module")
def state(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    tensors = _save_peft(bases["llama"][0], tmp_path_factory.mktemp("peft") / "peft")
    return nemo_state(tensors, 3, 8, joined=True)


@pytest.mark.parametrize("name", BAD)
def test_is_refused_by_name(
    name: str, llama: BaseDescriptor, state: Tensors, tmp_path: Path
) -> None:
    build, error, says = BAD[name]
    source = pack(tmp_path / "a.nemo", build(state))
    with pytest.raises(error) as refused:
        take_in(source, base=llama, staging=tmp_path, format=None)
    assert type(refused.value) is error
    for part in says:
        assert part in refused.value.message
    # Nor does it name the place where it was unpacked, which differs from one time to the next.
    found = examine(source, bases=[("tiny", llama)], format=None)
    assert refused.value.message.partition(";")[0] in " ".join(found.problems)


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\x1f\x8b broken", b"PK\x03\x04 broken"])
def test_what_is_no_archive_is_said_to_be_damaged(
    data: bytes, llama: BaseDescriptor, tmp_path: Path
) -> None:
    (tmp_path / "a.nemo").write_bytes(data)
    with pytest.raises(DamagedArtifact, match=r"a\.nemo"):
        take_in(tmp_path / "a.nemo", base=llama, staging=tmp_path, format=None)
    assert examine(tmp_path / "a.nemo", bases=[], format=None).problems


def test_a_link_in_the_archive_is_refused(llama: BaseDescriptor, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.nemo", "w:") as archive:
        link = tarfile.TarInfo("model_config.yaml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(SourceRefused, match="symbolic link"):
        take_in(tmp_path / "a.nemo", base=llama, staging=tmp_path, format=None)
