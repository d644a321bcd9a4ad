"""A web server on loopback, and an environment of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.adapters.sources.web import Web, web_server

VARIABLES = ("ALLOW_PRIVATE_URLS", "ALLOW_PLAIN_HTTP", "HTTP_TOKEN", "MAX_SOURCE_BYTES")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SOURCE_TIMEOUT"):
        monkeypatch.delenv(f"ADAPTERCTL_{name}", raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as running:
        yield running
