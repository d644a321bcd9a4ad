"""Full fine-tunes made by real trainers: the merge answers as the trainer's model, and so, as far
as it says it does, the LoRA that is extracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.bases.describe import describe_base
from adapters.frozen import Lane
from adapters.intake.merged import read_stored
from adapters.intake.merging import carried_out
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor
from tests.adapters.intake.trainers.tiny_base import TOKENS, write_base

HERE = Path(__file__).parent / "trainers"
# name -> base, format, parameters that differ of those it holds, files that go with it
REAL: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "mlx-full": ("llama", "mlx", "9 of the 9", ()),
    "trl-full": (
        "llama-tied",
        "full",
        "20 of the 20",
        ("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    ),
    "transformers-full": ("qwen3", "full", "25 of the 25", ("generation_config.json",)),
}


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, BaseDescriptor]:
    """Its name, its base's directory and descriptor."""
    path = write_base(tmp_path / "base", REAL[request.param][0])
    return request.param, path, describe_base(path).model_copy(update={"directory": str(path)})


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(torch.tensor(TOKENS)).logits
    assert isinstance(found, torch.Tensor)
    return found


def model_of(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_the_merge_answers_as_the_trainers_model(
    real: tuple[str, Path, BaseDescriptor], tmp_path: Path
) -> None:
    name, path, base = real
    _, format, changed, files = REAL[name]
    source = HERE / "artifacts" / name
    expected = load_file(HERE / "expected" / f"{name}.safetensors")
    found = examine(source, bases=[("tiny", base)], format=None)
    assert (found.problems, found.lane, found.format) == ((), Lane.MERGED, format)
    assert found.method == "full-fine-tune"
    assert not found.approximate
    (tmp_path / "kept").mkdir()
    manifest = take_in(source, base=base, staging=tmp_path / "kept", format=None)
    assert f"{changed} parameters" in " ".join(manifest.reasons)
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors"),
        *files,
    }

    plan = read_stored(tmp_path / "kept", base)
    model = model_of(path)
    before, parameters = logits(model), dict(model.named_parameters())
    with torch.no_grad():
        for edit in plan.edits:
            parameters[edit.parameter].copy_(carried_out([edit], parameters.__getitem__))
    size = expected["after"].abs().max().item()
    assert apart(expected["after"], expected["before"]) > 0.1, "the training must do something"
    assert apart(before, expected["before"]) < 3e-6 * size, "not the trainer's base"
    assert apart(logits(model), expected["after"]) < 3e-6 * size


def test_the_extract_of_full_rank_is_the_model_but_for_its_norms(
    real: tuple[str, Path, BaseDescriptor], tmp_path: Path
) -> None:
    name, path, base = real
    source = HERE / "artifacts" / name
    expected = load_file(HERE / "expected" / f"{name}.safetensors")
    errors = []
    for rank in (1, 64):
        kept = tmp_path / f"rank-{rank}"
        kept.mkdir()
        manifest = take_in(source, base=base, staging=kept, format=None, approximate=rank)
        found = manifest.approximation
        assert found is not None
        assert (manifest.lane, manifest.method) == (Lane.HOT, "full-fine-tune")
        assert found.extracted_from == manifest.source_sha256
        assert all("norm.weight" in item.parameter for item in found.left_out)
        adapted = logits(PeftModel.from_pretrained(model_of(path), kept))
        errors.append((found.error, apart(adapted, expected["after"])))
    # What the norms did is small beside the change, and is left.
    effect = apart(expected["after"], expected["before"])
    assert errors[0][0] > 0.2
    assert errors[1][0] < 1e-5
    assert errors[1][1] < min(errors[0][1], 0.2 * effect)
