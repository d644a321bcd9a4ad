"""SOURCE on the command line: archives and URLs, on a store and over a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.adapters.sources.web import Web, body, web_server
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running


@pytest.fixture
def store(tiny: TinyArtifacts, tmp_path: Path) -> Path:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", tiny.base)
    return tmp_path / "store"


@pytest.fixture
def packed(tiny: TinyArtifacts, tmp_path: Path) -> Path:
    return Path(shutil.make_archive(str(tmp_path / "mine"), "gztar", tiny.first.parent, "first"))


def test_a_store_takes_archives_and_urls(
    store: Path, packed: Path, web: Web, tiny: TinyArtifacts
) -> None:
    cli = CommandLine(("--store", str(store)))
    register = ("--name", "bot", "--base", "tiny")
    first = cli.ok("register", str(packed), *register)
    assert first["created"]
    url = web.serve("/mine.tar.gz", body(packed.read_bytes()))
    _, error = cli.refused("register", url, *register)
    assert error["code"] == "source_refused"
    again = cli.ok("register", f"{url}?key=s3cret", *register, "--allow-private-urls")
    assert (again["created"], again["digest"]) == (False, first["digest"])
    assert cli.ok("register", str(tiny.first), *register)["digest"] == first["digest"]
    shown = cli("inspect", f"{url}?key=s3cret", "--allow-private-urls")
    assert shown.code == 0
    assert "No problems" in shown.out
    assert "downloading" in shown.err
    assert "s3cret" not in shown.out + shown.err


def test_a_server_decides_itself_what_it_may_reach(
    store: Path, packed: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADAPTERCTL_ALLOW_PRIVATE_URLS", raising=False)
    url = web.serve("/mine.tar.gz", body(packed.read_bytes()))
    with admin_server(store) as server:
        cli = CommandLine(("--server", server))
        code, error = cli.refused("inspect", url, "--allow-private-urls")
        assert (code, error["code"]) == (2, "usage")
        assert cli.refused("inspect", url)[1]["code"] == "source_refused"
        # The worker has the server's environment.
        monkeypatch.setenv("ADAPTERCTL_ALLOW_PRIVATE_URLS", "1")
        monkeypatch.chdir(packed.parent)
        first = cli.ok("register", url, "--name", "bot", "--base", "tiny")
        again = cli.ok("register", packed.name, "--name", "bot", "--base", "tiny")
    assert (first["created"], again["created"]) == (True, False)
    assert first["digest"] == again["digest"]
