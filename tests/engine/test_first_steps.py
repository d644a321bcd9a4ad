"""docs/deploy.md, followed to the letter: its commands, on the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from loadtests.live import LiveServer
from tests.engine.keys_gone import wait_until_no_key_is_needed

ROOT = Path(__file__).parents[2]


def commands() -> str:
    """The block after `make serve`."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = text.partition("## From a checkout to a first customer")[2].partition("\n## ")[0]
    _, block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return str(block)


@pytest.fixture
def as_it_was(live: LiveServer) -> Iterator[LiveServer]:
    """The server that all tests share, without what the steps leave behind."""
    yield live
    with Catalog.open(live.store) as catalog:
        records = catalog.keys()
        for record in records:
            catalog.revoke_key(record.id)
        if any(adapter.name == "captain" for adapter in catalog.adapters()):
            catalog.rm("captain", force=True)
    wait_until_no_key_is_needed(live)


def test_every_line_works_as_it_stands(as_it_was: LiveServer, tmp_path: Path) -> None:
    script = commands()
    # The server of the tests has another port and store, and the checkout is nobody's to write to.
    for said, meant in (
        ("127.0.0.1:8000", as_it_was.url.removeprefix("http://")),
        ("$PWD/.store", str(as_it_was.store)),
        ("$PWD/.venv/bin", str(Path(sys.executable).parent)),
        (".cache/backup.tar.zst", str(tmp_path / "backup.tar.zst")),
    ):
        assert said in script
        script = script.replace(said, meant)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ADAPTERCTL_")
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    # The customer sees its own, with what is left of its quota, and no other tenant's.
    listed = re.search(r'\{"object":\s*"list".*', said)
    assert listed is not None
    assert "support" in listed.group() and "pirate" not in listed.group()
    assert "x-ratelimit-limit-requests: 60" in said.lower()
    assert "x-adapterctl-version: support:v1" in said.lower()
    assert "adapterctl_requests_total" in said
    assert re.search(r"contents copied now", said)
    assert re.search(r"The backup of .* has \d+ adapters with \d+ versions", said)
