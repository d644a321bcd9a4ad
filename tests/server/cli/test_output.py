"""Tables, progress and what becomes of hostile text."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import termios
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.cli import output
from tests.server.cli.command_line import clean_environment


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "source"), [("a", "x\x1b[2Jy\nz\u202e")])
    shown = capsys.readouterr().out
    assert "x\\x1b[2Jy\\nz\\u202e" in shown
    assert "\x1b" not in shown


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a", "b"), [("日本", "1"), ("abcd", "2"), ("é", "3")])
    assert capsys.readouterr().out.splitlines() == ["A     B", "日本  1", "abcd  2", "é     3"]


def test_sizes_and_times() -> None:
    assert [output.size(n) for n in (0, 1023, 1024, 1536, 5 * 1024**3)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "5.0 GiB",
    ]
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    assert datetime.fromisoformat(output.local_time(moment)) == moment.replace(microsecond=0)
    assert output.short_digest("sha256:" + "0123456789abcdef" * 4) == "sha256:0123456789ab"


def test_progress_in_a_pipe_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PLAIN_INTERVAL_S", 0.0)
    stream = io.StringIO()
    shown = output.Progress(stream, json_mode=False)
    shown.step("hashing")
    shown.advance(1, 4)
    shown.advance(4, 4)
    shown.close()
    assert stream.getvalue().splitlines() == ["hashing", "hashing: 25 %", "hashing: 100 %"]


def test_progress_keeps_quiet_for_scripts() -> None:
    stream = io.StringIO()
    shown = output.Progress(stream, json_mode=True)
    shown.step("hashing")
    shown.advance(4, 4)
    shown.close()
    assert stream.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away() -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 60))
    with os.fdopen(terminal, "w") as stream:
        shown = output.Progress(stream, json_mode=True)
        shown.step("hashing")
        shown.advance(1, 4)
        shown.close()
        stream.flush()
        raw = bytearray()
        # A terminal hands over what was written piece by piece.
        while select.select([controller], [], [], 0.5)[0]:
            raw += os.read(controller, 65536)
    os.close(controller)
    written = raw.decode()
    assert written.startswith("hashing\r\n")
    assert " 25 % |" in written or "  0 % |" in written
    assert written.endswith("\r")
    assert written.rstrip("\r").endswith(" " * 20)


def _on_terminal(store: Path, **environment: str) -> str:
    """What `adapterctl base ls` writes to a real pseudo-terminal."""
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "server.cli.main", "--store", str(store), "base", "ls"],
        stdout=terminal,
        stderr=terminal,
        env=clean_environment(TERM="xterm", **environment),
    )
    os.close(terminal)
    written = bytearray()
    try:
        while chunk := os.read(controller, 4096):
            written += chunk
    except OSError:
        pass  # Linux says EIO when the other side is closed
    finally:
        os.close(controller)
    assert child.wait(timeout=60) == 0
    return written.decode()


def test_colour_is_for_terminals_that_want_it(small_store: Path) -> None:
    environment = {"NO_COLOR": ""}
    assert "\x1b[1m" in _on_terminal(small_store, **environment)
    plain = _on_terminal(small_store, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "NAME" in plain
