"""The error of a layer is that of its rounding, whatever channels a tool has rescaled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import BaseError
from quantize.formats.comparing import layer_errors
from tests.quantize.formats.make_artifacts import HERE
from tests.quantize.formats.material import llama, values

ROUNDED = 0.003


def model(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    save_file({f"{n}.weight": t.contiguous() for n, t in tensors.items()}, folder / SHARD)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


SHARD = "model.safetensors"


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return (weight / ROUNDED).round() * ROUNDED


def error(new: torch.Tensor, old: torch.Tensor) -> float:
    return float((new - old).norm() / old.norm())


def test_rounding_is_measured_as_it_is(tmp_path: Path) -> None:
    weight = values((96, 64), 1)
    found = layer_errors(model(tmp_path / "a", x=rounded(weight)), model(tmp_path / "b", x=weight))
    (layer,) = found
    assert layer.module == "x"
    assert layer.error == layer.as_stored == pytest.approx(error(rounded(weight), weight), rel=1e-5)
    assert not layer.rescaled


def test_rescaled_channels_are_no_error(tmp_path: Path) -> None:
    """What AWQ does: columns times a scale before rounding, rows of the layer before divided."""
    weight = values((96, 64), 1)
    columns = 1 + torch.arange(64) / 32
    rows = 1 / (1 + torch.arange(96) / 48)[:, None]
    made = rounded(weight * columns * rows * 4)
    (layer,) = layer_errors(model(tmp_path / "a", x=made), model(tmp_path / "b", x=weight))
    true = error(made / (columns * rows * 4), weight)
    assert layer.rescaled
    assert layer.as_stored > 1
    # Fitted, not known: a little of the rounding is taken for scale.
    assert layer.error == pytest.approx(true, rel=0.05)


def test_an_unchanged_layer_has_none(tmp_path: Path) -> None:
    weight = values((8, 8), 1)
    weight[2] = 0
    model(tmp_path / "a", x=weight, empty=torch.zeros(4, 4))
    for layer in layer_errors(tmp_path / "a", tmp_path / "a"):
        assert layer.error == layer.as_stored == 0


def test_nf4_has_the_error_that_is_known_of_it(tmp_path: Path) -> None:
    """9 % of the weights for normal ones (measured; QLoRA), only where something is quantized."""
    llama(tmp_path / "base", torch.bfloat16)
    found = layer_errors(HERE / "nf4", tmp_path / "base")
    assert len(found) == 2 * 7
    assert all(0.07 < layer.error < 0.11 and not layer.rescaled for layer in found)


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = model(tmp_path / "a", x=values((8, 8), 1))
    for name, tensors in (("b", {"x": values((4, 8), 1)}), ("c", {"y": values((8, 8), 1)})):
        with pytest.raises(BaseError, match=r"'x.weight' is .* the one was not made of the other"):
            layer_errors(one, model(tmp_path / name, **tensors))
