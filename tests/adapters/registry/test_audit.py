"""The audit log: what is in it, and that nothing goes out of it."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.audit import AuditFilter, AuditRecord, Origin
from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, AdapterNotFound, InUse, StoreError
from adapters.expiry import parse_since
from adapters.registry.writer import RegistryWriter
from adapters.tenants import Quota
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source

# Of the catalog's methods that write: those that are nobody's action.
NO_ACTIONS = {
    "claim_turn",  # a job's own process takes its turn
    "note",  # the log itself
    "prune_audit",  # a part of gc, and told by a row of its own
}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        for seed in (1, 2):
            source = write_source(tmp_path / f"source-{seed}", seed)
            catalog.register(str(source), name="bot", base="small", actor="ann")
        yield catalog


def last(catalog: Catalog) -> AuditRecord:
    return catalog.audit(AuditFilter(limit=1))[0]


def test_every_method_that_writes_is_an_action() -> None:
    writing = {
        name
        for name, method in inspect.getmembers(Catalog, inspect.isfunction)
        if not name.startswith("_") and "_writer" in inspect.getsource(inspect.unwrap(method))
    }
    actions = {
        name
        for name, method in inspect.getmembers(Catalog, inspect.isfunction)
        if "audited" in vars(method)
    }
    assert {"register", "tag", "create_key", "finish_job", "gc", "deploy"} <= actions
    assert writing - actions == NO_ACTIONS


def test_a_row_says_who_did_what_from_where(catalog: Catalog) -> None:
    catalog.origin = Origin("cli")
    digest = catalog.show("bot:v2").digest
    registered = catalog.audit()[-1]
    assert (registered.action, registered.subject, registered.actor) == ("register", "bot", "ann")
    assert (registered.origin, registered.outcome) == ("local", "ok")
    assert registered.before == {"bot:latest": "v1"}
    assert registered.after == {"bot:v2": digest, "bot:latest": "v2"}
    assert (registered.key, registered.request, registered.message) == (None, None, None)
    assert datetime.now(UTC) - registered.at < timedelta(minutes=5)

    catalog.tag("bot:prod", "v1", actor="bob")
    row = last(catalog)
    assert (row.actor, row.origin, row.action, row.subject) == ("bob", "cli", "tag", "bot:prod")
    assert (row.before, row.after) == (None, {"bot:prod": "v1"})
    catalog.tag("bot:prod", "v2", default=True)
    row = last(catalog)
    assert row.before == {"bot:prod": "v1", "default tag of bot": "latest"}
    assert row.after == {"bot:prod": "v2", "default tag of bot": "prod"}
    catalog.rollback("bot:prod")
    assert (last(catalog).action, last(catalog).after) == ("rollback", {"bot:prod": "v1"})


def test_keys_are_told_without_their_secret(catalog: Catalog) -> None:
    key_id, secret = catalog.create_key(["infer"], "app", "acme", quota=Quota(concurrent=3))
    row = last(catalog)
    assert (row.action, row.subject) == ("keys.create", f"key {key_id}")
    assert row.after is not None
    told = row.after[f"key {key_id}"]
    assert (told["tenant"], told["scopes"], told["concurrent"]) == ("acme", ["infer"], 3)
    catalog.revoke_key(key_id)
    row = last(catalog)
    assert (row.action, row.subject) == ("keys.revoke", key_id)
    assert (row.before, row.after) == (
        {f"key {key_id}": "usable"},
        {f"key {key_id}": "revoked"},
    )
    assert not any(secret.split("-", 2)[2] in one.model_dump_json() for one in catalog.audit())


def test_what_is_refused_is_told(catalog: Catalog) -> None:
    with pytest.raises(InUse):
        catalog.base_rm("small")
    row = last(catalog)
    assert (row.action, row.subject, row.outcome) == ("base.rm", "small", "in_use")
    assert row.message is not None
    assert "is used by 2 versions" in row.message
    assert (row.before, row.after) == (None, None)
    with pytest.raises(AdapterNotFound):
        catalog.tag("nobody:prod", "v1", actor="mallory")
    assert (last(catalog).actor, last(catalog).outcome) == ("mallory", "model_not_found")


def test_what_is_so_already_is_told_without_a_change(catalog: Catalog) -> None:
    catalog.tag("bot:prod", "v1")
    catalog.tag("bot:prod", "v1")
    row = last(catalog)
    assert (row.action, row.outcome, row.before, row.after) == ("tag", "ok", None, None)


def test_lanes_and_removals_are_told(catalog: Catalog) -> None:
    catalog.undeploy("bot:v1")
    row = last(catalog)
    assert (row.action, row.subject) == ("undeploy", "bot:v1")
    assert row.before != row.after
    catalog.deploy("bot:v1")
    catalog.route("bot:latest", splits=["v1=5%"])
    row = last(catalog)
    assert row.action == "route"
    assert row.after is not None
    assert "v1" in str(row.after["route of bot:latest"])
    catalog.quarantine("bot:v1", "NaN", actor="engine")
    row = last(catalog)
    assert (row.actor, row.action) == ("engine", "quarantine")
    assert set(row.after or {}) | set(row.before or {}) >= {"route of bot:latest"}
    catalog.rm("bot", force=True)
    row = last(catalog)
    assert row.before is not None
    assert {"bot:v1", "bot:v2", "bot:latest"} <= row.before.keys()
    assert row.after is None


def test_a_dry_run_is_no_action(catalog: Catalog, tmp_path: Path) -> None:
    known = len(catalog.audit())
    source = str(write_source(tmp_path / "third", 3))
    catalog.register(source, name="bot", base="small", dry_run=True)
    catalog.gc(dry_run=True)
    assert len(catalog.audit()) == known


def test_a_change_and_its_row_are_one(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the row cannot be written the change is not made."""
    connection = sqlite3.connect(catalog.layout.database)
    connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room'); END"
    )
    connection.commit()
    with pytest.raises(StoreError, match="no room"):
        catalog.tag("bot:prod", "v1")
    assert "prod" not in catalog.adapter("bot").tags
    connection.execute("DROP TRIGGER full")
    connection.commit()
    connection.close()
    catalog.tag("bot:prod", "v1")
    assert last(catalog).after == {"bot:prod": "v1"}


def test_what_cannot_be_noted_is_in_the_log(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal stays what it is."""
    connection = sqlite3.connect(catalog.layout.database)
    connection.execute("ALTER TABLE audit RENAME TO elsewhere")
    connection.commit()
    with pytest.raises(InUse):
        catalog.base_rm("small")
    assert "'base.rm' of local is not in the audit log" in caplog.text
    connection.close()


def test_rows_cannot_be_changed_or_removed(catalog: Catalog) -> None:
    connection = sqlite3.connect(catalog.layout.database)
    known = catalog.audit()
    for statement in (
        "UPDATE audit SET actor = 'somebody else'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 1",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            connection.execute(statement)
    connection.close()
    assert catalog.audit() == known


def test_old_rows_go_with_a_row_that_says_so(catalog: Catalog) -> None:
    known = catalog.audit()
    until = known[1].at
    report = catalog.gc(audit_older_than=until)
    assert report.audit_rows == 1
    rows = catalog.audit()
    assert rows[0] == known[1]
    assert [row.action for row in rows[-2:]] == ["audit.prune", "gc"]
    assert datetime.fromisoformat(rows[-2].subject) == until
    # What is younger than that still stays, whoever asks.
    connection = sqlite3.connect(catalog.layout.database)
    with pytest.raises(sqlite3.IntegrityError, match="only added to"):
        connection.execute("DELETE FROM audit")
    connection.close()
    assert catalog.gc(audit_older_than=datetime.now(UTC)).audit_rows == len(rows)


def test_rows_are_found(catalog: Catalog) -> None:
    catalog.origin = Origin("10.0.0.1", "key:ops", "0123456789ab", "req-1")
    catalog.tag("bot:prod", "v1")
    catalog.origin = Origin("local")
    catalog.create_key(["infer"], "app")

    def actions(**wanted: object) -> list[str]:
        return [row.action for row in catalog.audit(AuditFilter.model_validate(wanted))]

    assert actions() == ["base.add", "register", "register", "tag", "keys.create"]
    assert actions(limit=2) == ["tag", "keys.create"]
    page = catalog.audit(AuditFilter(limit=2))
    assert actions(limit=2, before=page[0].id) == ["register", "register"]
    assert actions(actor="key:ops") == actions(actor="0123456789ab") == ["tag"]
    assert actions(subject="bot") == ["register", "register", "tag"]
    assert actions(subject="bot:prod") == ["tag"]
    assert actions(subject="b?t:*") == ["tag"]
    assert actions(subject="[b]ot") == []
    assert actions(action="keys.*") == ["keys.create"]
    assert actions(request="req-1") == ["tag"]
    assert actions(since=page[0].at) == ["tag", "keys.create"]
    assert actions(since=datetime.now(UTC) + timedelta(days=1)) == []


def test_two_transactions_of_one_connection_do_not_mix(tmp_path: Path) -> None:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        writer = RegistryWriter(catalog.layout.root)
        from adapters.registry.auditing import changed

        with pytest.raises(ValueError, match="given up"), writer.transaction() as connection:
            changed(connection, "never", None, "made")
            raise ValueError("given up")
        with writer.transaction() as connection:
            changed(connection, "made", None, "so")
        writer.close()
        row = last(catalog)
        # Nobody said what is done: told all the same.
        assert (row.actor, row.action, row.after) == ("unknown", "change", {"made": "so"})


@given(st.text(max_size=30))
def test_a_time_that_is_over_is_read_or_refused_in_words(text: str) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    try:
        assert parse_since(text, now) <= now
    except AdapterctlError as error:
        assert "write 12h, 30d or 2w" in error.message


def test_times_that_are_over() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert parse_since("30d", now) == datetime(2026, 5, 2, tzinfo=UTC)
    assert parse_since("2026-01-31", now) == datetime(2026, 1, 31, tzinfo=UTC)
    with pytest.raises(AdapterctlError, match="still to come"):
        parse_since("2026-07-01", now)
