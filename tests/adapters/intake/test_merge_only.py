"""Tuners that only a merge can serve: the base, edited, answers as PEFT's own forward does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.frozen import Lane
from adapters.intake.formats import read_artifact
from adapters.intake.merging import MergePlan
from adapters.intake.methods import recognise
from adapters.intake.peft_types import PEFT_TYPES
from adapters.intake.pipeline import take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.bad_merge_only import PARTS
from tests.adapters.intake.conftest import VOCABULARY
from tests.adapters.intake.merge_only_kinds import KINDS, Kind

Bases = dict[str, tuple[Path, BaseDescriptor]]


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def save_trained(kind: Kind, path: Path, folder: Path) -> None:
    """A real adapter with random weights everywhere, saved by PEFT."""
    config = getattr(peft, kind.config)(**{"task_type": "CAUSAL_LM", **kind.values})
    model = get_peft_model(_base_model(path), config)
    torch.manual_seed(11)
    for parameter in model.parameters():
        if parameter.requires_grad:
            change = torch.randn_like(parameter) * kind.spread
            parameter.data = parameter.data + change if kind.around else change
    model.save_pretrained(folder)


def _at_hand(found: tuple[Path, BaseDescriptor]) -> tuple[Path, BaseDescriptor]:
    path, descriptor = found
    return path, descriptor.model_copy(update={"directory": str(path)})


def plan_of(folder: Path, base: BaseDescriptor) -> MergePlan:
    raw = read_artifact(folder, None)
    method, _ = recognise(raw)
    assert method.lane is Lane.MERGED
    assert method.refusal is not None
    assert method.to_merge is not None
    return method.to_merge(raw, base)


def carried_out(plan: MergePlan, path: Path) -> Any:
    """The base with every edit applied, in fp64."""
    model = _base_model(path)
    if plan.base_config:
        assert plan.base_config == {"tie_word_embeddings": False}
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    state = model.state_dict()
    original = {name: value.clone() for name, value in state.items()}
    done: set[str] = set()
    for edit in plan.edits:
        assert edit.reads is not None
        old = state[edit.parameter] if edit.parameter in done else original[edit.reads]
        done.add(edit.parameter)
        new = edit.apply(old, *(tensor.load().to(old.dtype) for tensor in edit.inputs))
        assert (tuple(new.shape), new.dtype) == (edit.shape, old.dtype)
        state[edit.parameter].copy_(new)
    return model


def stored(plan: MergePlan, folder: Path) -> Path:
    """What the store keeps of it: the tensors it uses and its config, in PEFT's layout."""
    folder.mkdir()
    save_file(
        {name: tensor.load() for name, tensor in plan.uses.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": None, **plan.config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


CASES = [(name, base) for name, kind in KINDS.items() for base in kind.bases]


@pytest.mark.parametrize(("name", "base"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_the_edited_base_answers_as_peft(
    name: str, base: str, merge_bases: Bases, tmp_path: Path
) -> None:
    kind = KINDS[name]
    path, descriptor = _at_hand(merge_bases[base])
    with kind.patched():
        save_trained(kind, path, tmp_path / "adapter")
        before = _logits(_base_model(path))
        unmerged = PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter").eval()
        original = _logits(unmerged)
        plan = plan_of(tmp_path / "adapter", descriptor)
        assert plan.problems == ()
        for compare in plan.copies:
            compare()
        edited = _logits(carried_out(plan, path))
        effect = _difference(original, before)
        assert effect > 1e-3, "the adapter must be strong enough for the comparison"
        error = _difference(edited, original)
        assert error <= kind.tolerance, f"{error} of an effect of {effect}"
        if "tied" not in base:
            # With tied embeddings PEFT's own merge changes both.
            merged = unmerged.merge_and_unload(safe_merge=True)
            assert _difference(edited, _logits(merged)) <= kind.tolerance
            # Llama's norms compute in fp32; the weights themselves are compared in fp64.
            ours = carried_out(plan, path).state_dict()
            for parameter, theirs in merged.state_dict().items():
                assert _difference(ours[parameter], theirs) <= kind.weights, parameter
        again = plan_of(stored(plan, tmp_path / "stored"), descriptor)
        assert again.problems == ()
        _assert_equal(plan, again)
        assert _difference(_logits(carried_out(again, path)), edited) == 0
        kept = PeftModel.from_pretrained(_base_model(path), tmp_path / "stored").eval()
        assert _difference(_logits(kept), original) <= kind.tolerance


def _assert_equal(one: MergePlan, other: MergePlan) -> None:
    """The same edits from the same tensors, and the same config to keep."""
    assert one.config == other.config
    assert one.config["peft_type"] in PEFT_TYPES
    assert [_of(e) for e in one.edits] == [_of(e) for e in other.edits]
    assert {n: (t.dtype, t.shape) for n, t in one.uses.items()} == {
        n: (t.dtype, t.shape) for n, t in other.uses.items()
    }
    for name, tensor in one.uses.items():
        assert torch.equal(tensor.load(), other.uses[name].load())


def _of(edit: Any) -> tuple[Any, ...]:
    return edit.parameter, edit.shape, edit.reads, edit.module, [t.shape for t in edit.inputs]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_planning_twice_gives_the_same_and_an_adapters_name_goes(
    name: str, merge_bases: Bases, tmp_path: Path
) -> None:
    kind = KINDS[name]
    path, descriptor = _at_hand(merge_bases[kind.bases[0]])
    with kind.patched():
        save_trained(kind, path, tmp_path / "adapter")
        plan = plan_of(tmp_path / "adapter", descriptor)
        _assert_equal(plan, plan_of(tmp_path / "adapter", descriptor))
        named = {}
        for full, tensor in plan.uses.items():
            part = next((p for p in kind.parts if full.endswith(f".{p}")), None)
            if part is None:
                named[full] = tensor.load()
                continue
            head, _, tail = part.partition(".")
            stem = f"{full.removesuffix(part)}{head}.french"
            named[f"{stem}.{tail}" if tail else stem] = tensor.load()
        assert set(named) != set(plan.uses)
        folder = stored(plan, tmp_path / "named")
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _assert_equal(plan, plan_of(folder, descriptor))


def _as_bone(miss: Path, bone: Path) -> Path:
    """What PEFT 0.14 to 0.17 wrote, from today's MiSS: its tensors' names and its type."""
    bone.mkdir()
    tensors = load_file(miss / "adapter_model.safetensors")
    renamed = {name.replace("miss_", "bone_"): tensor for name, tensor in tensors.items()}
    save_file(renamed, bone / "adapter_model.safetensors", metadata={"format": "pt"})
    values = json.loads((miss / "adapter_config.json").read_text())
    values |= {"peft_type": "BONE", "peft_version": None}
    (bone / "adapter_config.json").write_text(json.dumps(values))
    return bone


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_bone_is_miss(merge_bases: Bases, tmp_path: Path) -> None:
    path, descriptor = merge_bases["llama"]
    save_trained(KINDS["miss-bat"], path, tmp_path / "adapter")
    as_miss = plan_of(tmp_path / "adapter", descriptor)
    bone = _as_bone(tmp_path / "adapter", tmp_path / "bone")
    _assert_equal(as_miss, plan_of(bone, descriptor))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_plain_bone_becomes_a_lora_as_miss_does(merge_bases: Bases, tmp_path: Path) -> None:
    path, descriptor = merge_bases["llama"]
    values = {"target_modules": ["q_proj", "down_proj"], "r": 5}
    save_trained(Kind("MissConfig", values, ()), path, tmp_path / "adapter")
    (tmp_path / "as-miss").mkdir()
    (tmp_path / "as-bone").mkdir()
    take_in(tmp_path / "adapter", base=descriptor, staging=tmp_path / "as-miss", format=None)
    bone = _as_bone(tmp_path / "adapter", tmp_path / "bone")
    manifest = take_in(bone, base=descriptor, staging=tmp_path / "as-bone", format=None)
    assert (manifest.method, manifest.lane, manifest.rank) == ("bone", Lane.HOT, 5)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = (tmp_path / f"as-{kind}" / name for kind in ("miss", "bone"))
        assert one.read_bytes() == other.read_bytes()
