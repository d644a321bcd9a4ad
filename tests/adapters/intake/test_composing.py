"""Compositions against PEFT's own: cat for sums, ties_svd for TIES, numpy for cut ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.compositions import Component, CompositionMethod, Recipe
from adapters.errors import StoreDamaged, UsageError
from adapters.frozen import Lane
from adapters.intake.composing import compose_into
from adapters.intake.pipeline import take_in
from adapters.models import BaseDescriptor, Manifest
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
CONFIGS: dict[str, dict[str, Any]] = {
    "first": {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 9},
    "second": {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 3, "use_rslora": True},
}
DIGESTS = {"first": f"sha256:{1:064x}", "second": f"sha256:{2:064x}"}
WEIGHTS = {"first": 0.7, "second": -0.4}


@pytest.fixture(scope="module")
def model(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """PEFT's model with both adapters, and the folder that they are saved in."""
    path, _ = bases["llama"]
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **CONFIGS["first"]), "first")
    peft.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", **CONFIGS["second"]))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_((torch.randn_like(parameter) * 0.2).float())
    for name in CONFIGS:
        peft.save_pretrained(folder, selected_adapters=[name])
    return peft, folder


@pytest.fixture(scope="module")
def components(
    bases: Bases, model: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Component, Path]]:
    """Both in canonical form, as the store has them."""
    found = []
    for name, weight in WEIGHTS.items():
        staged = tmp_path_factory.mktemp(name)
        take_in(model[1] / name, base=bases["llama"][1], staging=staged, format=None)
        found.append((Component(f"{name}:v1", DIGESTS[name], weight), staged))
    return found


def composed(
    bases: Bases, components: list[tuple[Component, Path]], recipe: Recipe, folder: Path
) -> Manifest:
    folder.mkdir(exist_ok=True)
    return compose_into(folder, components, recipe, base=bases["llama"][1])


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def served(bases: Bases, folder: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(bases["llama"][0], dtype=torch.float64).eval()
    return logits(PeftModel.from_pretrained(base, folder).double())


def by_peft(model: Any, kind: str, **options: Any) -> torch.Tensor:
    weights = list(WEIGHTS.values())
    model.add_weighted_adapter(list(WEIGHTS), weights, "mixed", combination_type=kind, **options)
    try:
        model.set_adapter("mixed")
        return logits(model)
    finally:
        model.delete_adapter("mixed")


def changes(folder: Path) -> dict[str, np.ndarray]:
    """Each module's whole change."""
    factors = {name: value.double().numpy() for name, value in load_file(folder).items()}
    return {
        name.removesuffix(".lora_A.weight"): factors[name.replace("lora_A", "lora_B")] @ value
        for name, value in factors.items()
        if "lora_A" in name
    }


def test_a_sum_is_exact(
    bases: Bases, model: tuple[Any, Path], components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    manifest = composed(bases, components, Recipe(), tmp_path / "sum")
    wanted = by_peft(model[0], "cat")
    torch.testing.assert_close(served(bases, tmp_path / "sum"), wanted, rtol=0, atol=1e-6)
    assert (manifest.lane, manifest.rank, manifest.method) == (Lane.HOT, 7, "sum-composition")
    assert manifest.reasons == (
        "the exact sum 0.7·first:v1 + -0.4·second:v1: the ranks of its parts are added up",
    )
    assert [(o.reference, o.digest, o.weight) for o in manifest.composed_from] == [
        (f"{name}:v1", DIGESTS[name], weight) for name, weight in WEIGHTS.items()
    ]


def test_the_same_composition_has_the_same_bytes(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    for recipe in (Recipe(), Recipe(method=CompositionMethod.DARE, seed=4)):
        composed(bases, components, recipe, tmp_path / "one")
        composed(bases, components, recipe, tmp_path / "two")
        one, two = (
            (tmp_path / part / "adapter_model.safetensors").read_bytes() for part in ("one", "two")
        )
        assert one == two


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_cut_sum_is_the_nearest_of_its_rank_and_says_how_near(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path, rank: int
) -> None:
    composed(bases, components, Recipe(), tmp_path / "whole")
    manifest = composed(bases, components, Recipe(rank=rank), tmp_path / "cut")
    whole = changes(tmp_path / "whole" / "adapter_model.safetensors")
    cut = changes(tmp_path / "cut" / "adapter_model.safetensors")
    lost = energy = 0.0
    for name, change in whole.items():
        values = np.linalg.svd(change, compute_uv=False)
        error = float(np.linalg.norm(change - cut[name]))
        assert error == pytest.approx(float(np.linalg.norm(values[rank:])), rel=1e-4, abs=1e-6)
        lost += error**2
        energy += float(np.linalg.norm(change)) ** 2
    assert manifest.rank == rank
    told = float(manifest.reasons[0].partition("relative error ")[2].split()[0])
    assert told == pytest.approx((lost / energy) ** 0.5, rel=0.05)


def test_ties_is_as_pefts_on_whole_changes(
    bases: Bases, model: tuple[Any, Path], components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    recipe = Recipe(method=CompositionMethod.TIES, density=0.4, rank=16)
    manifest = composed(bases, components, recipe, tmp_path / "ties")
    wanted = by_peft(model[0], "ties_svd", svd_rank=16, density=0.4)
    torch.testing.assert_close(served(bases, tmp_path / "ties"), wanted, rtol=0, atol=1e-5)
    assert "approximate, relative error" in manifest.reasons[0]


def test_dare_keeps_the_sum_on_average(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    composed(bases, components, Recipe(), tmp_path / "whole")
    whole = changes(tmp_path / "whole" / "adapter_model.safetensors")
    draws = []
    for seed in range(24):
        recipe = Recipe(method=CompositionMethod.DARE, density=0.5, rank=48, seed=seed)
        composed(bases, components, recipe, tmp_path / "dare")
        draws.append(changes(tmp_path / "dare" / "adapter_model.safetensors"))
    for name, change in whole.items():
        one = np.linalg.norm(draws[0][name] - change) / np.linalg.norm(change)
        mean = np.mean([draw[name] for draw in draws], axis=0)
        # Half of the values gone and the others doubled: each draw is off by about 1 of 1, the
        # mean of 24 by 1/sqrt(24).
        assert 0.7 < one < 1.4
        assert np.linalg.norm(mean - change) / np.linalg.norm(change) < 0.35


def test_density_one_is_the_sum(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    composed(bases, components, Recipe(), tmp_path / "whole")
    recipe = Recipe(method=CompositionMethod.DARE, density=1, rank=32)
    composed(bases, components, recipe, tmp_path / "dare")
    torch.testing.assert_close(
        served(bases, tmp_path / "dare"), served(bases, tmp_path / "whole"), rtol=0, atol=1e-5
    )


def test_parts_that_cancel_each_other_are_refused(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    (_, folder), _ = components
    pair = [(Component(f"{n}:v1", f"sha256:{n * 64}", w), folder) for n, w in (("c", 1), ("d", -1))]
    with pytest.raises(UsageError, match="cancel each other"):
        composed(bases, pair, Recipe(rank=4), tmp_path / "none")


def test_a_rank_beyond_the_engines_asks_for_one(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    (_, folder), _ = components
    many = [(Component(f"n{i}:v1", f"sha256:{i:064x}", 1.0), folder) for i in range(129)]
    with pytest.raises(UsageError, match=r"rank 516.*give --rank"):
        composed(bases, many, Recipe(), tmp_path / "many")


def test_a_damaged_component_is_named(
    bases: Bases, components: list[tuple[Component, Path]], tmp_path: Path
) -> None:
    (component, folder), other = components
    shutil.copytree(folder, tmp_path / "damaged")
    config = tmp_path / "damaged" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 5'))
    with pytest.raises(StoreDamaged, match="first:v1 is no sound adapter"):
        composed(bases, [(component, tmp_path / "damaged"), other], Recipe(), tmp_path / "out")
