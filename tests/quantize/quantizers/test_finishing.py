"""What a tool wrote is proved tensor by tensor before anybody takes it for a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.bases.shards import open_base
from adapters.errors import ToolFailed
from adapters.jobs.orders import QuantizeOptions
from quantize.quantizers.checks import check
from quantize.quantizers.finishing import expected_tensors, finish
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.table import quantizer_of
from tests.quantize.tiny import write_model

_TORCH = {"I32": torch.int32, "F16": torch.float16, "BF16": torch.bfloat16}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def recipe(model: Path) -> Recipe:
    files = open_base(model)
    shapes = {name: info.shape for name, (_, info) in files.tensors().items()}
    return check(files.config, shapes, QuantizeOptions(), quantizer_of("gptq"))


@pytest.fixture
def out(model: Path, recipe: Recipe, tmp_path: Path) -> Path:
    """A directory as a tool leaves it: right weights, and files of its own."""
    tensors = {
        name: torch.ones(shape, dtype=_TORCH[dtype])
        for name, (dtype, shape) in expected_tensors(open_base(model), recipe).items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model.safetensors").chmod(0o600)
    (tmp_path / "quant_log.csv").write_text("layer,seconds\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "another"}))
    (tmp_path / "folder").mkdir()
    return tmp_path


def changed(out: Path, change: Callable[[Tensors], object]) -> None:
    path = out / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_only_weights_are_kept_of_what_the_tool_wrote(
    out: Path, model: Path, recipe: Recipe
) -> None:
    finish(out, model, recipe)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quantize_config.json",
    }
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}


def _drop(tensors: Tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.g_idx"]


def _plain(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(192, 128)


def _wide(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()


def _narrow(tensors: Tensors) -> None:
    scales = tensors["model.layers.0.mlp.up_proj.scales"]
    tensors["model.layers.0.mlp.up_proj.scales"] = scales[:1].clone()


def _infinite(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop, "left out 1 tensors, 'model.layers.1.mlp.up_proj.g_idx'"),
        (_plain, "1 tensors too many, 'model.layers.1.mlp.up_proj.weight'"),
        (_wide, "'model.norm.weight' as F32 of shape [128], not as BF16 of shape [128]"),
        (_narrow, "as F16 of shape [1, 192], not as F16 of shape [2, 192]"),
        (_infinite, "values into 'model.layers.0.mlp.up_proj.scales' that are not finite"),
    ],
)
def test_what_is_wrong_is_named(
    out: Path, model: Path, recipe: Recipe, change: Callable[[Tensors], object], said: str
) -> None:
    changed(out, change)
    with pytest.raises(ToolFailed) as failed:
        finish(out, model, recipe)
    assert said in failed.value.message


def test_a_file_that_is_cut_off(out: Path, model: Path, recipe: Recipe) -> None:
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ToolFailed, match=r"wrote model\.safetensors, which is"):
        finish(out, model, recipe)


def test_a_tied_head_may_be_there_or_not(out: Path, model: Path, recipe: Recipe) -> None:
    changed(
        out, lambda tensors: tensors.update({"lm_head.weight": torch.ones(320, 128).bfloat16()})
    )
    finish(out, model, recipe)
