"""Filters of `ls` against the plain reading of what they mean."""

from __future__ import annotations

import fnmatch
import itertools
from pathlib import Path

import pytest
from sqlalchemy import update

from adapters.catalog import Catalog
from adapters.frozen import Lane
from adapters.models import AdapterRecord
from adapters.registry import schema
from adapters.registry.filtering import AdapterFilter
from tests.adapters.registry import test_many
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.adapters.serving.manifests import manifest

FIELDS = ("method", "format", "lane", "trainer", "precision")
VALUES = {
    "method": ("LoRA", "DoRA"),
    "format": ("peft", "mlx"),
    "lane": ("hot", "merged"),
    "trainer": ("Unsloth", None),
    "precision": ("nf4", "bf16", None),
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Every combination of the fields above, over and over, ten thousand times."""
    root = tmp_path_factory.mktemp("many")
    catalog = Catalog.init(root / "store", intake=SmallIntake())
    catalog.base_add("small", write_base(root / "small"))
    test_many.fill(root / "store")
    combinations = list(itertools.product(*(VALUES[name] for name in FIELDS)))
    with catalog._writer().transaction() as connection:
        for offset, values in enumerate(combinations):
            said = dict(zip(FIELDS, values, strict=True))
            connection.execute(
                update(schema.versions)
                .where(schema.versions.c.id % len(combinations) == offset)
                .values(
                    method=said["method"],
                    format=said["format"],
                    lane=said["lane"],
                    manifest=manifest(
                        trainer=said["trainer"],
                        precision=said["precision"],
                        targets=tuple(f"module{n}" for n in range(40)),
                    ).model_dump_json(),
                )
            )
    return catalog


@pytest.mark.parametrize(
    "wanted",
    [
        {"method": "lora"},
        {"format": "MLX"},
        {"lane": Lane.MERGED},
        {"trainer": "unsloth"},
        {"precision": "nf4"},
        {"name": "tenant-1?3"},
        {"base": "small", "method": "DoRA", "format": "peft"},
        {"lane": Lane.HOT, "trainer": "Unsloth", "precision": "bf16", "name": "*7"},
        {"base": "other"},
        {"tag": "prod", "precision": "NF4"},
        {"tag": "canary"},
        {"trainer": "Axolotl"},
        {"name": "tenant-[12]*", "lane": Lane.HOT},
    ],
)
def test_all_conditions_hold_for_what_is_listed_and_for_nothing_else(
    catalog: Catalog, wanted: dict[str, str]
) -> None:
    listed = {adapter.name for adapter in catalog.adapters(AdapterFilter(**wanted))}
    assert listed == {a.name for a in catalog.adapters() if _holds(catalog, a, wanted)}


def _holds(catalog: Catalog, adapter: AdapterRecord, wanted: dict[str, str]) -> bool:
    said = _said(adapter)
    for field, value in wanted.items():
        if field == "name":
            if not fnmatch.fnmatchcase(adapter.name, value):
                return False
        elif field == "base":
            if value != "small":
                return False
        elif field == "tag":
            if value not in adapter.tags:
                return False
        elif str(said[field]).lower() != value.lower():
            return False
    return True


def _said(adapter: AdapterRecord) -> dict[str, str | None]:
    combinations = list(itertools.product(*(VALUES[name] for name in FIELDS)))
    number = int(adapter.name.removeprefix("tenant-"))
    return dict(zip(FIELDS, combinations[number % len(combinations)], strict=True))


def test_a_tags_version_is_the_one_judged(tmp_path: Path) -> None:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        one, two = write_source(tmp_path / "1", 1), write_source(tmp_path / "2", 2)
        catalog.register(str(one), name="bot", base="small", format="peft", tag="prod")
        catalog.register(str(two), name="bot", base="small", format="mlx")
        for wanted, names in (
            ({"format": "mlx"}, ["bot"]),
            ({"format": "peft"}, []),
            ({"format": "peft", "tag": "prod"}, ["bot"]),
            ({"format": "mlx", "tag": "prod"}, []),
            ({"tag": "latest"}, ["bot"]),
            ({"tag": "none"}, []),
        ):
            found = catalog.adapters(AdapterFilter(**wanted))
            assert [adapter.name for adapter in found] == names
