"""Making and opening stores: migrations, concurrency, and every way a store can be unusable."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters.catalog import Catalog
from adapters.errors import (
    AlreadyExists,
    StoreBusy,
    StoreDamaged,
    StoreNotFound,
    StoreTooNew,
)
from adapters.registry import faults, revisions, schema
from adapters.registry.migrate import migration_config
from adapters.registry.writer import RegistryWriter
from adapters.store.layout import StoreLayout
from tests.adapters.registry.small_intake import SmallIntake

Register = Callable[..., str]


def sql(root: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(root / "registry.db", isolation_level=None)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_the_code_and_the_migrations_agree_on_the_revisions() -> None:
    scripts = ScriptDirectory.from_config(migration_config())
    assert scripts.get_heads() == [revisions.HEAD]
    assert [s.revision for s in scripts.walk_revisions()][::-1] == list(revisions.REVISIONS)


def test_the_migrations_lead_to_the_schema(catalog: Catalog) -> None:
    writer = RegistryWriter(catalog.layout.root)
    with writer.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    writer.close()


def test_a_store_of_the_first_revision_is_brought_up_to_date(
    catalog: Catalog, register: Register
) -> None:
    """Its versions, tags and ranks stay; a version without a rank can join them."""
    register(1, tag="prod")
    register(2)
    before = catalog.adapter("bot")
    root = catalog.layout.root
    catalog.close()
    old = root / "old.db"
    old.touch()
    shutil.move(root / "registry.db", root / "new.db")
    shutil.move(old, root / "registry.db")
    writer = RegistryWriter(root)
    with writer.transaction() as connection:
        command.upgrade(migration_config(connection), "0001")
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    writer.close()
    copy = sqlite3.connect(root / "registry.db", isolation_level=None)
    copy.execute("ATTACH ? AS new", (str(root / "new.db"),))
    columns = "id, adapter_id, number, digest, base_id, format, method, lane, rank, size_bytes, "
    for table in ("bases", "adapters", "numbers", "versions", "tags", "tag_history", "changes"):
        names = columns + "manifest, registered_at" if table == "versions" else "*"
        into = f"{table} ({names})" if table == "versions" else table
        copy.execute(f"INSERT INTO {into} SELECT {names} FROM new.{table}")
    copy.execute("INSERT INTO keys VALUES ('k', 'ops', 'hash', '[]', '2026-01-01', NULL)")
    assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    with pytest.raises(sqlite3.IntegrityError, match="rank"):
        copy.execute("UPDATE versions SET rank = NULL")
    copy.close()
    with Catalog.open(root, intake=SmallIntake()) as upgraded:
        assert upgraded.adapter("bot") == before
        assert upgraded.verify().problems == ()
        (key,) = upgraded.keys()
        assert (key.label, key.tenant) == ("ops", "default")
    sql(root, "UPDATE versions SET rank = NULL, lane = 'merged' WHERE number = 2")
    with Catalog.open(root, intake=SmallIntake()) as upgraded:
        version = upgraded.show("bot:v2")
        assert (version.rank, version.reason) == (None, "a plain LoRA")
        assert upgraded.show("bot:v1").reason is None


def test_the_database_is_durable_and_checked(catalog: Catalog) -> None:
    writer = RegistryWriter(catalog.layout.root)
    with writer.transaction() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    writer.close()


def test_init_again_changes_nothing(catalog: Catalog, register: Register) -> None:
    register(1)
    Catalog.init(catalog.layout.root).close()
    assert [a.name for a in catalog.adapters()] == ["bot"]
    assert json.loads(catalog.layout.marker.read_text()) == {"format": 1}


def test_init_finishes_what_was_cut_short(tmp_path: Path) -> None:
    layout = StoreLayout(tmp_path / "store")
    Catalog.init(layout.root).close()
    layout.marker.unlink()
    with pytest.raises(StoreNotFound):
        Catalog.open(layout.root)
    layout.database.write_bytes(b"")
    layout.logs.rmdir()
    with Catalog.init(layout.root) as catalog:
        assert catalog.adapters() == []
        assert layout.logs.is_dir()


def test_init_refuses_a_directory_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AlreadyExists, match=r"thesis\.tex"):
        Catalog.init(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(AlreadyExists, match="is a file"):
        Catalog.init(tmp_path / "thesis.tex")


def test_a_backup_made_as_documented_can_be_restored(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    register(1, tag="prod")
    backup = tmp_path / "backup"
    backup.mkdir()
    # docs/store.md says it with the sqlite3 program.
    sql(catalog.layout.root, f"VACUUM INTO '{backup / 'registry.db'}'")
    register(2)
    shutil.copy(catalog.layout.marker, backup)
    shutil.copytree(catalog.layout.root / "blobs", backup / "blobs")
    with Catalog.init(backup, intake=SmallIntake()) as restored:
        report = restored.verify()
        assert (report.problems, len(report.orphans)) == ((), 1)
        assert restored.adapter("bot").tags == {"latest": 1, "prod": 1}
        source = tmp_path / "source-2"
        assert restored.register(str(source), name="bot", base="small").version == "v2"
        restored.gc()
        assert restored.verify().orphans == ()


INIT = """
import sys
from pathlib import Path
from adapters.catalog import Catalog
import adapters.registry.migrate, adapters.registry.writer
sys.stdin.readline()
Catalog.init(Path(sys.argv[1])).close()
"""


def test_many_processes_init_the_same_store(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", INIT, str(root)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr.decode()
    with Catalog.open(root) as catalog:
        assert catalog.verify().ok


def test_no_store(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(StoreNotFound, match="adapterctl init"):
            Catalog.open(root)


def test_a_newer_store_is_refused_and_left_alone(catalog: Catalog) -> None:
    root = catalog.layout.root
    catalog.close()
    sql(root, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreTooNew, match="9999"):
        Catalog.open(root)
    assert sql(root, "SELECT version_num FROM alembic_version") == [("9999",)]
    catalog.layout.marker.write_text('{"format": 2}')
    with pytest.raises(StoreTooNew, match="format 2"):
        Catalog.open(root)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x"}', '{"format": null}', "{}"])
def test_a_damaged_marker(catalog: Catalog, text: str) -> None:
    catalog.layout.marker.write_text(text)
    with pytest.raises(StoreDamaged, match="marker"):
        Catalog.open(catalog.layout.root)


def test_a_marker_that_is_not_text(catalog: Catalog) -> None:
    catalog.layout.marker.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreDamaged, match="marker"):
        Catalog.open(catalog.layout.root)


def test_a_lost_an_emptied_and_a_foreign_database(catalog: Catalog) -> None:
    root, database = catalog.layout.root, catalog.layout.database
    catalog.close()
    for path in root.glob("registry.db*"):
        path.unlink()
    with pytest.raises(StoreDamaged, match=r"lost its registry\.db"):
        Catalog.open(root)
    with pytest.raises(StoreDamaged, match=r"lost its registry\.db"):
        catalog.base_rm("small")
    assert not database.exists(), "a lost registry was quietly made anew"
    database.write_bytes(b"")
    with pytest.raises(StoreDamaged, match="is empty"):
        Catalog.open(root)
    database.write_bytes(b"This is no database at all. " * 500)
    with pytest.raises(StoreDamaged, match="is damaged"):
        Catalog.open(root)


def test_damaged_pages_are_reported_not_raised_raw(catalog: Catalog, register: Register) -> None:
    for seed in range(5):
        register(seed, name=f"bot{seed}")
    root, database = catalog.layout.root, catalog.layout.database
    catalog.close()
    sql(root, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = database.read_bytes()
    for start in range(4096, len(whole), 4096):
        database.write_bytes(whole[:start] + b"\xa5" * 4096 + whole[start + 4096 :])
        try:
            with Catalog.open(root) as damaged:
                damaged.adapters()
                assert not damaged.verify().ok
        except StoreDamaged as error:
            assert "registry.db" in error.message
    database.write_bytes(whole)
    with Catalog.open(root) as healed:
        assert len(healed.adapters()) == 5


def test_a_locked_database(
    catalog: Catalog, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(1)
    root = catalog.layout.root
    catalog.close()
    monkeypatch.setattr("adapters.registry.writer.BUSY_TIMEOUT_S", 0.2)
    assert faults.BUSY_TIMEOUT_S > 1
    owner = sqlite3.connect(catalog.layout.database, isolation_level=None)
    owner.execute("BEGIN IMMEDIATE")
    with Catalog.open(root) as other:
        assert other.show("bot").number == 1, "a writer must not keep readers out"
        with pytest.raises(StoreBusy, match="try again"):
            other.tag("bot:prod", "v1")
        owner.execute("ROLLBACK")
        owner.close()
        assert other.tag("bot:prod", "v1").new == 1


def test_missing_tables_are_damage(catalog: Catalog) -> None:
    catalog.close()
    sql(catalog.layout.root, "DROP TABLE tags")
    with Catalog.open(catalog.layout.root) as broken, pytest.raises(StoreDamaged, match="lacks"):
        broken.adapters()


def test_a_row_that_refers_to_nothing_is_found(catalog: Catalog, register: Register) -> None:
    register(1)
    sql(catalog.layout.root, "UPDATE tags SET version_id = 4711")
    assert any("missing row of versions" in p for p in catalog.verify().problems)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET lane = 'fast'",
        "UPDATE versions SET registered_at = 'never'",
        "UPDATE versions SET registered_at = 7",
        "UPDATE bases SET added_at = ''",
        "UPDATE tag_history SET at = x'00'",
        "UPDATE tag_history SET old = 'x'",
        "UPDATE keys SET scopes = '['",
        "UPDATE versions SET manifest = '{}'",
        "UPDATE bases SET descriptor = 'x'",
    ],
)
def test_hand_edited_values_are_damage(
    catalog: Catalog, register: Register, statement: str
) -> None:
    register(1)
    catalog.create_key(["admin"], "ops")
    sql(catalog.layout.root, statement)
    with pytest.raises(StoreDamaged):
        for read in (
            catalog.adapters,
            catalog.bases,
            catalog.keys,
            lambda: catalog.history("bot"),
            lambda: catalog.version_manifest("bot"),
            lambda: catalog.base_descriptor("small"),
        ):
            read()


def test_listing_imports_nothing_heavy(catalog: Catalog, register: Register) -> None:
    register(1)
    code = (
        "import sys; from pathlib import Path; from adapters.catalog import Catalog\n"
        "c = Catalog.open(Path(sys.argv[1])); c.adapters(); c.show('bot'); c.snapshot()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(catalog.layout.root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    heavy = {"sqlalchemy", "alembic", "numpy", "safetensors", "torch", "transformers", "rapidfuzz"}
    assert heavy.isdisjoint(done.stdout.split())
