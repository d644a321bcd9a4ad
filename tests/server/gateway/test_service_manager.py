"""What systemd hears, over a socket as it listens on one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gateway.service_manager import READY, STOPPING, notify


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket that NOTIFY_SOCKET names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@adapterctl-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listener


def test_states_and_a_line_for_people_are_one_message(systemd: socket.socket) -> None:
    notify(READY, status="answers at http://127.0.0.1:8000")
    notify(STOPPING)
    assert systemd.recv(1000) == b"READY=1\nSTATUS=answers at http://127.0.0.1:8000"
    assert systemd.recv(1000) == b"STOPPING=1"


def test_a_manager_that_does_not_listen_keeps_nobody(systemd: socket.socket) -> None:
    for _ in range(2000):
        notify(READY)
    # More than the socket holds was sent, and nothing waited for it to be read.
    assert systemd.recv(1000) == b"READY=1"


def test_without_systemd_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY)
    for name in (str(tmp_path / "nobody"), "vsock:2:1", ""):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify(READY)
