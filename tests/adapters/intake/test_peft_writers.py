"""What each of PEFT's many writers leaves on disk: taken as the adapter it is, or refused.

The trainers themselves want GPUs or do not install here; the files are laid out as their sources
lay them out, around one adapter, and what is stored has to be that adapter byte for byte.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import (
    AdapterctlError,
    AmbiguousFormat,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
    UnknownFormat,
)
from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import (
    WEIGHTS,
    Config,
    Tensors,
    adapter_parts,
    write_parts,
)
from tests.adapters.intake.writer_layouts import (
    Layout,
    automodel,
    autotrain,
    axolotl,
    deepspeed,
    fireworks,
    h2o,
    llama_factory,
    ludwig,
    ludwig_model,
    openrlhf,
    root_layout,
    swift_layout,
    swift_native,
    torchtune_pair,
    trl,
    trl_checkpoint,
    trl_two,
    unsloth,
    verl,
)

RIGHT: dict[str, Layout] = {
    "unsloth": unsloth,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "swift": swift_layout,
    "swift-native": swift_native,
    "autotrain": autotrain,
    "ludwig": ludwig,
    "ludwig-model": ludwig_model,
    "h2o": h2o,
    "openrlhf": openrlhf,
    "verl": verl,
    "automodel": automodel,
    "torchtune-pair": torchtune_pair,
    "fireworks": fireworks,
    "deepspeed-names": deepspeed,
    "trl-dpo": trl,
    "trl-two-adapters": trl_two,
    "trl-checkpoint": trl_checkpoint,
}


def _stored(source: Path, base: BaseDescriptor, staging: Path) -> dict[str, bytes]:
    staging.mkdir(parents=True)
    take_in(source, base=base, staging=staging, format=None)
    return {item.name: item.read_bytes() for item in staging.iterdir()}


@pytest.mark.parametrize("name", RIGHT)
def test_is_the_very_adapter(name: str, llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    write_parts(tmp_path / "plain", tensors, config)
    wanted = _stored(tmp_path / "plain", llama, tmp_path / "wanted")
    (tmp_path / "run").mkdir()
    source = RIGHT[name](tmp_path / "run", tensors, config)
    found = examine(source, bases=[("tiny", llama)], format=None)
    assert (found.problems, found.format, found.lane) == ((), "peft", Lane.HOT)
    assert _stored(source, llama, tmp_path / "found") == wanted


def test_a_quantized_copy_is_the_base_it_was_made_from(
    llama: BaseDescriptor, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    source = unsloth(tmp_path / "run", *adapter_parts(llama))
    bases = [("other", llama), ("tiny", llama)]
    found = examine(source, bases=bases, format=None)
    assert found.base == "tiny"
    assert found.trainer == "Unsloth"
    said = " ".join(found.reasons)
    assert "unsloth/tiny-unsloth-bnb-4bit; its base in 16 bits is unsloth/tiny" in said
    assert "another base" not in said


@dataclass(frozen=True)
class Wrong:
    """An artifact to refuse: what its folder holds, the error, parts of its sentence."""

    build: Layout
    error: type[AdapterctlError]
    says: tuple[str, ...]


def _inside(layout: Layout, name: str) -> Layout:
    return lambda folder, tensors, config: layout(folder, tensors, config) / name


def _empty(*files: str, folders: tuple[str, ...] = ()) -> Layout:
    def build(folder: Path, tensors: Tensors, config: Config) -> Path:
        for name in folders:
            (folder / name).mkdir()
        for name in files:
            (folder / name).touch()
        return folder

    return build


def _fast_pissa(folder: Path, tensors: Tensors, config: Config) -> Path:
    llama_factory(folder, tensors, config)
    return root_layout(folder, tensors, config, init_lora_weights="pissa_niter_16")


def _lora_ga(folder: Path, tensors: Tensors, config: Config) -> Path:
    write_parts(folder / "converted" / "default", tensors, config)
    return root_layout(folder, tensors, config, init_lora_weights="lora-ga")


def _swift_other(**values: Any) -> Layout:
    return lambda folder, tensors, config: root_layout(folder, tensors, config, **values)


def _h2o_with(name: str, text: str = "") -> Layout:
    def build(folder: Path, tensors: Tensors, config: Config) -> Path:
        (h2o(folder, tensors, config) / name).write_text(text)
        return folder

    return build


def _value_head(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "value_head.safetensors").touch()
    return root_layout(folder, tensors, config)


def _forty_bytes(folder: Path, tensors: Tensors, config: Config) -> Path:
    root_layout(folder, tensors, config)
    save_file({}, folder / WEIGHTS, metadata={"format": "pt"})
    assert (folder / WEIGHTS).stat().st_size == 40
    return folder


def _zero_size(folder: Path, tensors: Tensors, config: Config) -> Path:
    return root_layout(folder, {name: torch.zeros(0) for name in tensors}, config)


def _checkpoints(folder: Path, tensors: Tensors, config: Config) -> Path:
    for name in ("checkpoint-2", "checkpoint-10"):
        write_parts(folder / name, tensors, config)
    return folder


def _alpha_0(folder: Path, tensors: Tensors, config: Config) -> Path:
    return verl(folder, tensors, {**config, "lora_alpha": 0})


WRONG: dict[str, Wrong] = {
    "pissa-init": Wrong(
        _inside(llama_factory, "pissa_init"), NotServable, ("register pissa_converted",)
    ),
    "pissa-backup": Wrong(
        _inside(llama_factory, "pissa_backup"), NotServable, ("register pissa_converted",)
    ),
    "fast-pissa": Wrong(_fast_pissa, NotHotServable, ("pissa_niter_16", "pissa_converted, where")),
    "value-head": Wrong(_value_head, NotServable, ("value_head.safetensors", "reward model")),
    "swift-initial-model": Wrong(
        _inside(swift_layout, "initial_model"), NotServable, ("register converted/default",)
    ),
    "swift-lora-ga": Wrong(_lora_ga, NotHotServable, ("lora-ga", "converted/default, where")),
    "swift-tuner": Wrong(_swift_other(swift_type="REFT"), InvalidConfig, ("'REFT'", "ms-swift")),
    "swift-merged-linear": Wrong(
        _swift_other(swift_type="LORA", use_merged_linear=True),
        NotHotServable,
        ("use_merged_linear", "swift export"),
    ),
    "h2o-classifier": Wrong(
        _h2o_with("classification_head.pth"), NotServable, ("classification_head.pth",)
    ),
    "h2o-unfrozen": Wrong(
        _h2o_with("cfg.yaml", "training:\n  lora_unfreeze_layers: !!python/tuple\n  - norm\n"),
        NotHotServable,
        ("lora_unfreeze_layers", "checkpoint.pth"),
    ),
    "h2o-unfrozen-inline": Wrong(
        _h2o_with("cfg.yaml", "lora_unfreeze_layers: [norm]\n"),
        NotHotServable,
        ("lora_unfreeze_layers",),
    ),
    "verl-alpha-0": Wrong(_alpha_0, InvalidConfig, ("lora_alpha is 0", "verl")),
    "deepspeed-40-bytes": Wrong(_forty_bytes, DamagedArtifact, ("no LoRA tensors", "ZeRO-3")),
    "deepspeed-zero-size": Wrong(_zero_size, DamagedArtifact, ("[0]", "ZeRO-3")),
    "trl-reference": Wrong(_inside(trl, "ref"), NotServable, ("'ref'", "DPO", "instead")),
    "trl-reference-of-two": Wrong(_inside(trl_two, "reference"), NotServable, ("DPO",)),
    "trl-checkpoints": Wrong(_checkpoints, AmbiguousFormat, ("checkpoint-10",)),
    "xtuner": Wrong(_empty("iter_500.pth"), UnknownFormat, ("XTuner", "pth_to_hf")),
    "xtuner-deepspeed": Wrong(
        _empty("last_checkpoint", folders=("iter_500.pth",)), UnknownFormat, ("XTuner",)
    ),
    "maxtext": Wrong(
        _empty("_CHECKPOINT_METADATA", folders=("default",)), UnknownFormat, ("Orbax", "MaxText")
    ),
    "tunix": Wrong(
        _empty("_METADATA", "manifest.ocdbt", folders=("d", "ocdbt.process_0")),
        UnknownFormat,
        ("Orbax",),
    ),
    "nemo-2": Wrong(
        _empty(folders=("weights", "context")), UnknownFormat, ("NeMo 2", "llm.export_ckpt")
    ),
    "megatron-bridge": Wrong(
        _empty(".metadata", "common.pt", "__0_0.distcp"),
        UnknownFormat,
        ("Megatron-Bridge", "export_adapter.py"),
    ),
    "deepspeed-checkpoint": Wrong(
        _empty("zero_to_fp32.py", "latest", folders=("global_step4",)),
        UnknownFormat,
        ("DeepSpeed", "zero_to_fp32.py"),
    ),
    "diffusers": Wrong(
        _empty("pytorch_lora_weights.safetensors"), NotServable, ("diffusers", "image model")
    ),
    "unknown": Wrong(
        _empty("weights.npz"),
        UnknownFormat,
        ("found: weights.npz", "peft (adapter_config.json", "mlx (", "gguf (", "litgpt ("),
    ),
    "only-folders": Wrong(_empty(folders=("some", "where")), UnknownFormat, ("some/, where/",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_is_refused_by_name(name: str, llama: BaseDescriptor, tmp_path: Path) -> None:
    wrong = WRONG[name]
    (tmp_path / "run").mkdir()
    source = wrong.build(tmp_path / "run", *adapter_parts(llama))
    with pytest.raises(wrong.error) as refused:
        _stored(source, llama, tmp_path / "staging")
    assert type(refused.value) is wrong.error
    for part in wrong.says:
        assert part in refused.value.message
    found = examine(source, bases=[("tiny", llama)], format=None)
    assert refused.value.message in found.problems


def test_torchtunes_pair_for_qwen_is_refused(
    bases: dict[str, tuple[Path, BaseDescriptor]], tmp_path: Path
) -> None:
    """Its export reorders rows that were never reordered: see docs/intake.md for the figures."""
    base = bases["qwen3"][1]
    (tmp_path / "run").mkdir()
    source = torchtune_pair(tmp_path / "run", *adapter_parts(base))
    with pytest.raises(BaseMismatch, match="--format torchtune"):
        _stored(source, base, tmp_path / "staging")
    path = source / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": "CAUSAL_LM"}))
    assert _stored(source, base, tmp_path / "other")


def test_an_adapter_that_happens_to_be_called_reference_is_one(
    llama: BaseDescriptor, tmp_path: Path
) -> None:
    write_parts(tmp_path / "reference", *adapter_parts(llama))
    assert _stored(tmp_path / "reference", llama, tmp_path / "one")
    shutil.copytree(tmp_path / "reference", tmp_path / "run" / "reference")
    assert _stored(tmp_path / "run", llama, tmp_path / "two")
