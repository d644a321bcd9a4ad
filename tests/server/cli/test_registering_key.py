"""The command line with a key that registers: its own names, sent from its own machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from server.cli.session import KEY_VARIABLE
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture
def cli(
    tiny: TinyArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    store = tmp_path / "store"
    with Catalog.init(store) as catalog:
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.second), name="beta-bot", base="tiny")
        _, secret = catalog.create_key(["register"], "ci", "acme", adapters=["acme-*"])
    monkeypatch.setenv(KEY_VARIABLE, secret)
    with admin_server(store, require_key=True) as url:
        yield CommandLine(("--server", url))


def test_what_it_can_do_and_what_not(cli: CommandLine, tiny: TinyArtifacts) -> None:
    made = cli.ok(
        *("register", str(tiny.first), "--name", "acme-bot", "--base", "tiny", "--tag", "prod")
    )
    assert (made["name"], made["version"]) == ("acme-bot", "v1")
    assert [adapter["name"] for adapter in cli.ok("ls")] == ["acme-bot"]
    assert cli("ls").code == cli("show", "acme-bot").code == 0
    assert cli("base", "ls").code == cli("base", "show", "tiny").code == 0
    cli.ok("tag", "acme-bot:next", "v1")
    # It has never been anything else.
    assert cli.refused("rollback", "acme-bot:prod")[1]["code"] == "conflict"
    assert cli.ok("history", "acme-bot")[-1]["actor"] == "key:ci"
    theirs = cli.refused("show", "beta-bot")
    nobodys = cli.refused("show", "gone-bot")
    assert theirs[0] == nobodys[0] == 1
    assert theirs[1]["message"].replace("beta-bot", "gone-bot") == nobodys[1]["message"]
    code, error = cli.refused("register", str(tiny.first), "--name", "beta-bot", "--base", "tiny")
    assert (code, error["code"]) == (1, "forbidden")
    assert "the names it may use are acme-*" in error["message"]
    on_server = ("register", str(tiny.first), "--on-server", "--name", "acme-b", "--base", "tiny")
    assert "upload:ID" in cli.refused(*on_server)[1]["message"]
    for arguments in (("rm", "acme-bot:v1"), ("gc",), ("keys", "ls"), ("top",), ("jobs", "ls")):
        assert cli.refused(*arguments)[1]["code"] == "forbidden"
