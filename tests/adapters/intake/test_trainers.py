"""Artifacts made by the real trainers: base + canonical form answers as the trainer's own model.

`trainers/make_<trainer>.py` made each artifact and, with the trainer's code, the logits of its base
before and after. The base's own logits show how far the trainer's arithmetic and Hugging Face's are
apart without any adapter; with the adapter they may be no further apart than fp32 explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.bases.describe import describe_base
from adapters.errors import InvalidConfig, NotServable
from adapters.frozen import Lane
from adapters.intake.merged import read_stored
from adapters.intake.merging import carried_out
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.trainers.tiny_base import CONFIGS, TOKENS, write_base

HERE = Path(__file__).parent / "trainers"
TinyBases = dict[str, tuple[Path, BaseDescriptor]]


@dataclass(frozen=True)
class Real:
    """A committed artifact: its base, what `inspect` must say of it."""

    base: str
    format: str
    targets: tuple[str, ...]
    scale: str
    file: str = "."
    method: str = "lora"
    alpha: float | None = None


_ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
_ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
_WITH_HEAD = tuple(sorted((*_ALL, "lm_head")))

REAL: dict[str, Real] = {
    "mlx-lora": Real("llama", "mlx", _ALL, "alpha/r = 10/4 = 2.5"),
    "mlx-qwen3": Real("qwen3", "mlx", _ALL, "alpha/r = 10/4 = 2.5"),
    "mlx-tied-embedding": Real(
        "llama-tied", "mlx", ("embed_tokens", "lm_head", "q_proj"), "alpha/r = 10/4 = 2.5"
    ),
    "litgpt-default": Real("llama", "litgpt", ("q_proj", "v_proj"), "alpha/r = 6/4 = 1.5"),
    "litgpt-all": Real("llama", "litgpt", _WITH_HEAD, "alpha/r = 6/4 = 1.5"),
    "torchtune-llama": Real("llama", "torchtune", _WITH_HEAD, "alpha/r = 6/4 = 1.5"),
    # PEFT itself, of a version that had a tuner which newer ones do not load.
    "peft-bone": Real("llama", "peft", ("down_proj", "q_proj"), "1", method="bone"),
    "torchtune-qwen2": Real("qwen2", "torchtune", _ATTENTION, "alpha/r = 6/4 = 1.5"),
    "trl-sft": Real("llama", "peft", ("down_proj", "q_proj", "v_proj"), "alpha/r = 6/2 = 3"),
    "trl-dpo": Real("llama", "peft", ("down_proj", "q_proj", "v_proj"), "alpha/r = 6/2 = 3"),
    "trl-kto": Real("llama", "peft", ("o_proj", "q_proj"), "alpha/r = 6/2 = 3"),
    "trl-grpo": Real("llama", "peft", ("q_proj", "v_proj"), "alpha/r = 6/2 = 3"),
    "loralib-llama": Real(
        "llama",
        "loralib",
        ("down_proj", "q_proj", "v_proj"),
        "alpha/r = 6/4 = 1.5",
        "my_lora.pt",
        alpha=6,
    ),
    "loralib-gpt2": Real("gpt2", "loralib", ("c_attn",), "alpha/r = 18/12 = 1.5", alpha=6),
    "lycoris-locon": Real("llama", "kohya", _ALL, "alpha/r = 6/4 = 1.5"),
    "lycoris-te": Real("qwen3", "kohya", _ALL, "alpha/r = 3/4 = 0.75", "tiny_lora.safetensors"),
    "lycoris-loha": Real("llama", "kohya", _ALL, "alpha/r = 6/3 = 2", method="loha"),
    "lycoris-lokr": Real("llama", "kohya", _ALL, "alpha/r = 3/1 = 3", method="lokr"),
    "lycoris-lokr-whole": Real("llama", "kohya", _ALL, "alpha/r = 1/1 = 1", method="lokr"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBases:
    root = tmp_path_factory.mktemp("tiny")
    paths = {kind: write_base(root / kind, kind) for kind in CONFIGS}
    return {kind: (path, describe_base(path)) for kind, path in paths.items()}


def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(torch.tensor(TOKENS)).logits
    assert isinstance(logits, torch.Tensor)
    return logits


# Of fp32, relative to the largest logit: the trainer's own arithmetic and BLAS sum in other orders,
# and BLAS in another one on another processor (3.4e-6 was seen).
_NEAR = 1e-5


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("name", REAL)
def test_canonical_form_answers_as_the_trainer(name: str, tiny: TinyBases, tmp_path: Path) -> None:
    real = REAL[name]
    path, descriptor = tiny[real.base]
    source = HERE / "artifacts" / name / real.file
    expected = load_file(HERE / "expected" / f"{name}.safetensors")

    found = examine(source, bases=[(real.base, descriptor)], format=None, alpha=real.alpha)
    assert (found.problems, found.lane, found.format) == ((), Lane.HOT, real.format)
    assert found.method == real.method
    manifest = take_in(source, base=descriptor, staging=tmp_path, format=None, alpha=real.alpha)
    assert manifest.targets == real.targets
    assert manifest.scale == real.scale

    base = _logits(_model(path))
    adapted = _logits(PeftModel.from_pretrained(_model(path), tmp_path))
    size = expected["after"].abs().max().item()
    assert _apart(expected["after"], expected["before"]) > 0.1, "the adapter must do something"
    assert _apart(base, expected["before"]) < _NEAR * size, "not the trainer's base"
    assert _apart(adapted, expected["after"]) < _NEAR * size


@pytest.mark.parametrize("name", ["mlx-dora", "torchtune-dora"])
def test_dora_merged_answers_as_the_trainer(name: str, tiny: TinyBases, tmp_path: Path) -> None:
    path, descriptor = tiny["llama"]
    expected = load_file(HERE / "expected" / f"{name}.safetensors")
    base = descriptor.model_copy(update={"directory": str(path)})
    manifest = take_in(HERE / "artifacts" / name, base=base, staging=tmp_path, format=None)
    assert (manifest.lane, manifest.method) == (Lane.MERGED, "dora")
    model = _model(path)
    state = model.state_dict()
    for edit in read_stored(tmp_path, descriptor).edits:
        state[edit.parameter].copy_(carried_out([edit], state.__getitem__))
    size = expected["after"].abs().max().item()
    assert _apart(expected["after"], expected["before"]) > 0.1
    assert _apart(_logits(_model(path)), expected["before"]) < _NEAR * size
    assert _apart(_logits(model), expected["after"]) < _NEAR * size
    # The same through PEFT, which gets the magnitudes from what is stored.
    loaded = PeftModel.from_pretrained(_model(path), tmp_path)
    assert _apart(_logits(loaded), expected["after"]) < _NEAR * size


def test_what_dpo_started_from_is_not_its_result(tiny: TinyBases, tmp_path: Path) -> None:
    """TRL's own `ref/`, which loads as well as the result; and the checkpoints beside one."""
    path, base = tiny["llama"]
    with pytest.raises(NotServable, match=r"register .*trl-dpo instead"):
        take_in(HERE / "artifacts/trl-dpo/ref", base=base, staging=tmp_path, format=None)
    last = HERE / "artifacts/trl-sft/checkpoint-4"
    take_in(last, base=base, staging=tmp_path, format=None)
    adapted = _logits(PeftModel.from_pretrained(_model(path), tmp_path))
    expected = load_file(HERE / "expected/trl-sft.safetensors")["after"]
    assert _apart(adapted, expected) < _NEAR * expected.abs().max().item()


def test_alpha_is_asked_for_where_the_artifact_has_none(tiny: TinyBases, tmp_path: Path) -> None:
    _, base = tiny["llama"]
    source = HERE / "artifacts/loralib-llama"
    with pytest.raises(InvalidConfig, match="--alpha N"):
        take_in(source, base=base, staging=tmp_path, format=None)
    found = examine(source, bases=[("tiny", base)], format=None)
    assert (found.format, found.method) == ("loralib", "lora")
    assert "--alpha N" in found.problems[0]
    manifest = take_in(source, base=base, staging=tmp_path, format=None, alpha=6)
    assert "alpha = 6 was given with --alpha" in manifest.notes


@pytest.mark.parametrize("name", ["mlx-lora", "litgpt-default", "lycoris-locon", "trl-kto"])
def test_an_alpha_that_contradicts_the_artifact(name: str, tiny: TinyBases, tmp_path: Path) -> None:
    """Whatever the format: what the artifact says of its strength is never overridden."""
    _, base = tiny["llama"]
    with pytest.raises(InvalidConfig, match="--alpha 7 contradicts the artifact"):
        take_in(HERE / "artifacts" / name, base=base, staging=tmp_path, format=None, alpha=7)
    stored = 10 if name == "mlx-lora" else 6
    taken = take_in(
        HERE / "artifacts" / name, base=base, staging=tmp_path, format=None, alpha=stored
    )
    assert not [note for note in taken.notes if "alpha" in note]


def test_parts_of_a_joint_layer_are_not_guessed(tiny: TinyBases, tmp_path: Path) -> None:
    _, base = tiny["gpt2"]
    source = HERE / "artifacts/loralib-gpt2-part"
    with pytest.raises(InvalidConfig, match="2 of the 3 parts of a joint layer"):
        take_in(source, base=base, staging=tmp_path, format=None, alpha=6)
