"""Stores to copy from and to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.adapters.backups.settled_intake import Stores


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


@pytest.fixture
def catalog(stores: Stores) -> Iterator[Catalog]:
    """bot: v1 (prod, by a rollback from v2), v2 (latest); other: v1."""
    with stores.new("store") as catalog:
        stores.register(catalog, 1, tag="prod")
        stores.register(catalog, 2, tag="prod")
        catalog.rollback("bot:prod", actor="bob")
        stores.register(catalog, 3, name="other")
        yield catalog
