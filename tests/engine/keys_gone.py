"""The shared server after tests that made keys: it has to take requests without one again."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from loadtests.live import LiveServer


def wait_until_no_key_is_needed(live: LiveServer) -> None:
    """The server sees within a second that the keys of its store are revoked."""
    deadline = time.monotonic() + 30
    while _asks_for_a_key(live):
        assert time.monotonic() < deadline, "it has not seen that the keys are revoked"
        time.sleep(0.05)


def _asks_for_a_key(live: LiveServer) -> bool:
    try:
        urllib.request.urlopen(f"{live.url}/v1/models", timeout=10).close()
    except urllib.error.HTTPError as error:
        assert error.code == 401
        return True
    return False
