"""Documents of stored versions: read once, and never taken for absent when they are lost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.errors import StoreDamaged
from adapters.serving.document import SERVING_FILE, SamplingDefaults, Serving, ServingChoice
from adapters.serving.stored import ServingDocuments, read_serving
from adapters.store.content import CONTENT_FILE
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source

CHOICE = ServingChoice(system_prompt="Be brief.", defaults=SamplingDefaults(temperature=0.0))
SAID = Serving(system_prompt="Be brief.", defaults=SamplingDefaults(temperature=0.0))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = Catalog.init(tmp_path / "store", intake=SmallIntake())
    catalog.base_add("small", write_base(tmp_path / "small"))
    source = str(write_source(tmp_path / "source", 1))
    catalog.register(source, name="plain", base="small")
    catalog.register(source, name="brief", base="small", serving=CHOICE)
    return catalog


def test_it_is_read_from_disk_once(catalog: Catalog) -> None:
    documents = ServingDocuments(catalog.layout)
    digests = [catalog.show(name).digest for name in ("brief", "plain")]

    async def both() -> list[Serving]:
        return [await documents.of(digest) for digest in digests]

    assert asyncio.run(both()) == [SAID, Serving()]
    for digest in digests:
        shutil.rmtree(catalog.layout.blob(digest))
    assert asyncio.run(both()) == [SAID, Serving()]


@pytest.mark.parametrize("damage", ["gone", "changed", "no content", "bad content", "all gone"])
def test_what_is_lost_is_not_nothing(catalog: Catalog, damage: str) -> None:
    digest = catalog.show("brief").digest
    blob = catalog.layout.blob(digest)
    for name in (SERVING_FILE, CONTENT_FILE):
        (blob / name).chmod(0o644)
    match damage:
        case "gone":
            (blob / SERVING_FILE).unlink()
        case "changed":
            (blob / SERVING_FILE).write_text("{}")
        case "no content":
            (blob / CONTENT_FILE).unlink()
        case "bad content":
            (blob / CONTENT_FILE).write_text("{}")
        case "all gone":
            shutil.rmtree(blob)
    with pytest.raises(StoreDamaged, match="adapterctl verify"):
        read_serving(catalog.layout, digest)
