"""`adapterctl keys`, on a store and over a server's admin API alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.server.cli.command_line import CommandLine, admin_server


@dataclass(frozen=True)
class Place:
    """A store and the command line on it, one way or the other."""

    store: Path
    cli: CommandLine


@pytest.fixture(params=["store", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    store = tmp_path / "store"
    Catalog.init(store).close()
    if request.param == "store":
        yield Place(store, CommandLine(("--store", str(store))))
        return
    with admin_server(store) as url:
        yield Place(store, CommandLine(("--server", url)))


def test_a_key_is_made_shown_once_and_revoked(place: Place) -> None:
    assert place.cli.ok("keys", "ls") == []
    made = place.cli.ok("keys", "create", "--label", "web shop", "--tenant", "acme")
    assert (made["tenant"], made["label"], made["scopes"]) == ("acme", "web shop", ["infer"])
    assert made["secret"].startswith(f"ak-{made['id']}-")
    with Catalog.open(place.store) as catalog:
        found = catalog.key_for(made["secret"])
        assert found is not None
        assert (found.id, found.tenant) == (made["id"], "acme")
        assert set(catalog.snapshot().keys.values()) == {found}
    (listed,) = place.cli.ok("keys", "ls")
    assert listed == {key: value for key, value in made.items() if key != "secret"}
    assert "usable" in place.cli("keys", "ls").out
    revoked = place.cli.ok("keys", "revoke", made["id"])
    assert revoked["revoked_at"] is not None
    assert place.cli.ok("keys", "revoke", made["id"]) == revoked
    with Catalog.open(place.store) as catalog:
        assert catalog.key_for(made["secret"]) is None
        assert not catalog.snapshot().keys
    assert "revoked" in place.cli("keys", "ls").out


def test_for_people_the_secret_is_all_of_the_output(place: Place) -> None:
    answer = place.cli("keys", "create", "--scope", "admin", "--scope", "infer")
    assert (answer.code, len(answer.out.split())) == (0, 1)
    assert "not shown again" in answer.err
    with Catalog.open(place.store) as catalog:
        found = catalog.key_for(answer.out.strip())
        assert found is not None
        assert (found.scopes, found.tenant) == (("admin", "infer"), "default")


def test_limits_are_kept_and_shown(place: Place) -> None:
    made = place.cli.ok(
        *("keys", "create", "--scope", "register", "--adapter", "acme-*", "--adapter", "tone"),
        *("--expires", "30d", "--requests-per-minute", "60", "--tokens-per-minute", "9000"),
        *("--concurrent", "4"),
    )
    assert (made["scopes"], made["adapters"]) == (["register"], ["acme-*", "tone"])
    quotas = [made[name] for name in ("requests_per_minute", "tokens_per_minute", "concurrent")]
    assert quotas == [60, 9000, 4]
    days = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert timedelta(days=29.9) < days <= timedelta(days=30)
    (listed,) = place.cli.ok("keys", "ls")
    assert listed == {key: value for key, value in made.items() if key != "secret"}
    shown = place.cli("keys", "ls").out
    for text in ("acme-*, tone", "60 requests/min, 9000 tokens/min, 4 at once", "usable until"):
        assert text in shown


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code", "message"),
    [
        (("create", "--tenant", "a b"), "usage", 2, "no valid name of a tenant"),
        (("create", "--tenant", ""), "usage", 2, "no valid name of a tenant"),
        (("create", "--label", "two\nlines"), "usage", 2, "one line"),
        (("create", "--label", "x" * 129), "usage", 2, "128"),
        (("create", "--scope", "root"), "usage", 2, "'root' is not one of"),
        (("create", "--scope", "inference"), "usage", 2, "'inference' is not one of"),
        (("create", "--adapter", "bot:prod"), "usage", 2, "no pattern for names"),
        (("create", "--adapter", "a", "--scope", "admin"), "usage", 2, "may do everything"),
        (("create", "--expires", "tomorrow"), "usage", 2, "12h, 30d or 2w"),
        (("create", "--expires", "2020-01-01"), "usage", 2, "is over already"),
        (("create", "--concurrent", "0"), "usage", 2, "0 is not in the range"),
        (("revoke", "0123456789ab"), "not_found", 1, "adapterctl keys ls"),
        (("revoke", "../bases"), "not_found", 1, "adapterctl keys ls"),
        (("revoke", ""), "not_found", 1, "adapterctl keys ls"),
    ],
)
def test_refusals(
    place: Place, arguments: tuple[str, ...], code: str, exit_code: int, message: str
) -> None:
    found, error = place.cli.refused("keys", *arguments)
    assert (found, error["code"]) == (exit_code, code)
    assert message in error["message"]


SECRET = "ak-0123456789ab-" + "s3cr3t-_" * 5 + "xyz"


def test_a_secret_that_a_manager_made_becomes_a_key_once(place: Place, tmp_path: Path) -> None:
    """On a store; a server's admin API never gets to see one."""
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    on_store = CommandLine(("--store", str(place.store)))
    words = ("keys", "create", "--scope", "admin", "--label", "chart", "--secret-file", str(file))
    made = on_store.ok(*words)
    assert made["id"] == "0123456789ab"
    assert SECRET not in str(made)
    assert SECRET not in on_store(*words).out
    assert len(on_store.ok("keys", "ls")) == 1
    with Catalog.open(place.store) as catalog:
        found = catalog.key_for(SECRET)
        assert found is not None and found.scopes == ("admin",)
    file.write_text(SECRET[:-1] + "A")
    assert "has another secret" in on_store(*words).err
    on_store.ok("keys", "revoke", made["id"])
    file.write_text(SECRET)
    assert "was revoked" in on_store(*words).err
    file.write_text("password")
    assert "is none that a key can have" in on_store(*words).err
    assert "cannot be read" in on_store(*words[:-1], str(tmp_path / "none")).err
    if place.cli != on_store:
        assert "on the server's machine" in place.cli(*words).err
