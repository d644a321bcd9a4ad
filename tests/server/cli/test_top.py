"""top, advice and residency: what the running server says of its traffic."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.catalog import Catalog
from adapters.store.layout import StoreLayout
from server.cli.screen import fitting
from server.cli.top_view import duration, top_lines
from server.gateway.runtime import announced
from tests.server.cli.command_line import CommandLine, admin_server, clean_environment
from tests.server.cli.scripted_lanes import ADVICE, RESIDENT, TOP, ScriptedLanes


@dataclass
class Seen:
    """A store, its server's URL, and what that server says."""

    store: Path
    url: str
    lanes: ScriptedLanes


@pytest.fixture
def seen(small_store: Path) -> Iterator[Seen]:
    with Catalog.open(small_store) as catalog:
        lanes = ScriptedLanes(catalog)
        with (
            admin_server(small_store, lanes=lambda _: lanes) as url,
            announced(StoreLayout(small_store).run, url),
        ):
            yield Seen(small_store, url, lanes)


@pytest.fixture(params=["store", "server"])
def cli(request: pytest.FixtureRequest, seen: Seen) -> CommandLine:
    local = request.param == "store"
    return CommandLine(("--store", str(seen.store)) if local else ("--server", seen.url))


def test_top_as_a_document(cli: CommandLine) -> None:
    assert cli.ok("top") == TOP.model_dump(mode="json")
    found = cli.ok("top", "--window", "15m", "--rows", "1")
    assert (found["window"], [row["adapter"] for row in found["rows"]]) == (900, ["bot"])


def test_top_in_a_pipe(cli: CommandLine) -> None:
    lines = cli("top").out.splitlines()
    assert "last 60 s: 49 requests, 2 failed, 20.0 tokens/s" in lines[0]
    cells = re.split(r"  +", lines[3])
    assert cells == [
        *("bot:v1", "hot", "slot pinned", "40", "3", "20.0", "80%", "0 ms", "210 ms", "1.5 s"),
        *("20 ms", "2", "4", "-"),
    ]
    assert lines[4].split()[:2] == ["tiny", "base"]
    assert lines[5] == "and 1 more with less traffic"
    assert re.split(r"  +", lines[8]) == ["tiny", "base", "ready", "3", "1", "2/8", "-", "-"]
    assert lines[-3:] == [
        "bot:v1 to the merged lane: it has 80 % of all tokens",
        "    gain: about 1.4 times the speed",
        "    adapterctl deploy bot:v1 --lane merged",
    ]
    assert cli("top", "--once").out.splitlines()[2:] == lines[2:]


def test_advice(cli: CommandLine, seen: Seen) -> None:
    assert cli.ok("advice") == [ADVICE.model_dump(mode="json")]
    assert "    adapterctl deploy bot:v1 --lane merged\n" in cli("advice").out
    seen.lanes.advised = []
    assert cli("advice").out.startswith("Nothing to advise")


def test_residency(cli: CommandLine, seen: Seen) -> None:
    assert cli.ok("residency") == [RESIDENT.model_dump(mode="json")]
    lines = cli("residency").out.splitlines()
    assert lines[1].split() == ["slot", "0", "bot:v1", "sha256:abababababab", "yes"]
    assert lines[2].split() == ["slot", "1", "free", "-", "-"]
    assert lines[3] == (
        "tiny, since the engine's start: read from disk 3 times (100 ms each), "
        "2 of them while others were answered, into a slot 4 times (5 ms each), thrown out 1 times"
    )
    seen.lanes.script = ()
    assert cli.refused("residency")[1]["code"] == "engine_unavailable"


@pytest.mark.parametrize("command", [["top"], ["advice"], ["residency"], ["prefetch", "bot"]])
def test_without_a_server(on_small: CommandLine, command: list[str]) -> None:
    code, error = on_small.refused(*command)
    assert (code, error["code"]) == (1, "server_unreachable")
    assert "no server is running on this store" in error["message"]


def test_nothing_yet() -> None:
    empty = TOP.model_copy(update={"rows": (), "engines": (), "advice": ()})
    assert top_lines(empty)[2:] == ["No request yet."]


class Terminal:
    """`adapterctl top` on a terminal of its own."""

    def __init__(self, store: Path) -> None:
        self._master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "server.cli.main", "--store", str(store)),
                *("top", "--interval", "0.2"),
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=clean_environment(TERM="xterm", COLUMNS="60", LINES="20"),
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 1)[0]:
                self.shown += os.read(self._master, 4096).decode()
        self.shown = self.shown.partition(text)[2]

    def press(self, key: str) -> None:
        os.write(self._master, key.encode())

    def close(self) -> int:
        self.until("\x1b[?1049l")
        code = self.process.wait(60)
        os.close(self._master)
        return code


def test_live_on_a_terminal(seen: Seen) -> None:
    """Drawn again with what is new; a server that is gone is said; q and Ctrl-C end it well."""
    terminal = Terminal(seen.store)
    terminal.until("\x1b[?1049h")
    terminal.until("49 requests")
    terminal.until("bot:v1")
    seen.lanes.shown = TOP.model_copy(update={"requests": 51, "rows": TOP.rows[:1]})
    terminal.until("51 requests")
    # No line is longer than the screen is wide, nor are there more than it has rows.
    terminal.until("\x1b[H")
    terminal.until("\x1b[J")
    terminal.press("q")
    assert terminal.close() == 0
    terminal = Terminal(seen.store)
    terminal.until("51 requests")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 0


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z"])), st.integers(1, 80))
def test_what_fits(text: str, columns: int) -> None:
    shown = fitting(f"\x1b[1m{text}\x1b[0m", columns)
    assert shown.startswith("\x1b[1m")
    assert shown.endswith("\x1b[0m")
    inner = shown[4:-4]
    assert text.startswith(inner)
    assert len(inner) <= columns


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (None, 0.0, 0.0123, 1.25, 119.9, 600)]
    assert shown == ["-", "0 ms", "12 ms", "1.2 s", "119.9 s", "10 min"]
