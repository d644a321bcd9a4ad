"""Keys in the registry: their limits, their end, and those that older code wrote."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command

from adapters.catalog import Catalog
from adapters.errors import UsageError
from adapters.registry.migrate import migration_config
from adapters.registry.writer import RegistryWriter
from adapters.tenants import MAX_QUOTA, UNLIMITED, Quota


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.init(tmp_path / "store")


def test_what_a_key_may_is_kept(catalog: Catalog) -> None:
    end = datetime.now(UTC) + timedelta(days=30)
    quota = Quota(requests_per_minute=60, concurrent=2)
    _, secret = catalog.create_key(
        ["infer", "register"],
        "ci",
        "acme",
        adapters=["a-*", "b", "a-*"],
        expires_at=end,
        quota=quota,
    )
    found = catalog.key_for(secret)
    assert found is not None
    assert (found.adapters, found.expires_at, found.quota) == (("a-*", "b"), end, quota)
    assert catalog.keys() == [found] == list(catalog.snapshot().keys.values())
    assert found.usable
    _, plain = catalog.create_key(["infer"], "app")
    free = catalog.key_for(plain)
    assert free is not None
    assert (free.adapters, free.expires_at, free.quota) == ((), None, UNLIMITED)


def test_a_key_ends_by_itself(catalog: Catalog) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    _, secret = catalog.create_key(["infer"], "app", expires_at=soon)
    assert catalog.has_key()
    set_end(catalog, datetime.now(UTC) - timedelta(seconds=1))
    assert catalog.key_for(secret) is None
    assert not catalog.has_key()
    (ended,) = catalog.snapshot().keys.values()  # Listed, and nothing that it opens.
    assert (ended.expired, ended.usable) == (True, False)


def set_end(catalog: Catalog, moment: datetime) -> None:
    with catalog._writer().transaction() as connection:
        connection.exec_driver_sql("UPDATE keys SET expires_at = ?", (moment.isoformat(),))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"adapters": ["a:b"]}, "no pattern for names"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "is over already"),
        ({"quota": Quota(concurrent=0)}, f"concurrent must be 1 to {MAX_QUOTA}, not 0"),
        ({"quota": Quota(tokens_per_minute=MAX_QUOTA + 1)}, "tokens_per_minute must be"),
    ],
)
def test_what_no_key_can_be(catalog: Catalog, limits: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        catalog.create_key(["infer"], "app", **limits)  # type: ignore[arg-type]
    assert catalog.keys() == []


def test_an_admin_key_cannot_be_held_to_names(catalog: Catalog) -> None:
    with pytest.raises(UsageError, match="may do everything"):
        catalog.create_key(["admin"], "ops", adapters=["a-*"])


def test_keys_that_older_code_made_still_open_what_they_did(catalog: Catalog) -> None:
    key_id, secret = catalog.create_key(["infer", "admin"], "both", "acme")
    root = catalog.layout.root
    catalog.close()
    connection = sqlite3.connect(root / "registry.db", isolation_level=None)
    (row,) = connection.execute(
        "SELECT id, label, secret_sha256, created_at, revoked_at, tenant FROM keys"
    )
    connection.close()
    _as_of_revision_6(root)
    connection = sqlite3.connect(root / "registry.db", isolation_level=None)
    connection.execute(
        "INSERT INTO keys (id, label, secret_sha256, scopes, created_at, revoked_at, tenant) "
        'VALUES (?, ?, ?, \'["admin", "inference"]\', ?, ?, ?)',
        row,
    )
    connection.close()
    with Catalog.open(root) as upgraded:
        found = upgraded.key_for(secret)
        assert found is not None
        assert (found.id, found.scopes, found.tenant) == (key_id, ("admin", "infer"), "acme")
        assert (found.adapters, found.expires_at, found.quota) == ((), None, UNLIMITED)


def _as_of_revision_6(root: Path) -> None:
    for file in root.glob("registry.db*"):
        shutil.move(file, file.with_name(f"new-{file.name}"))
    (root / "registry.db").touch()
    writer = RegistryWriter(root)
    with writer.transaction() as connection:
        command.upgrade(migration_config(connection), "0006")
    writer.close()
