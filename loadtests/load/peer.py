"""The server before the load: what it lists, and how it counts tokens. Plain HTTP, no gevent."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from adapters.errors import ServerUnreachable, UsageError
from loadtests.load.prompts import ESTIMATED, Sizing, calibrated
from loadtests.load.sse import error_message
from loadtests.scenarios import Scenario

_WITHIN = 30.0


class Listed(NamedTuple):
    """What /v1/models says: the adapters, one name each, and the base where there is one."""

    adapters: tuple[str, ...]
    base: str | None


def root_of(url: str) -> str:
    """The URL without a slash and /v1 at its end. Raises UsageError for what is no HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url!r} is no URL of a server: give http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class Peer:
    """An OpenAI-compatible server."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = root_of(url)
        self._headers = {"Content-Type": "application/json", **headers}

    def listed(self) -> Listed:
        """Adapters are what names a parent; where nothing does, all are. Raises
        ServerUnreachable."""
        answer = self._asked("/v1/models", None)
        data = answer.get("data") if isinstance(answer, dict) else None
        entries = [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []
        if not entries:
            raise ServerUnreachable(f"{self.url}/v1/models lists no model")
        adapters: dict[str, str] = {}
        for entry in entries:
            if entry.get("parent"):
                # Several names of one version (its tags) are one adapter.
                adapters.setdefault(str(entry.get("digest") or entry["id"]), str(entry["id"]))
        bases = [str(e["id"]) for e in entries if not e.get("parent")]
        if not adapters:
            return Listed(tuple(bases), bases[0])
        return Listed(tuple(adapters.values()), bases[0] if bases else None)

    def sizing(self, model: str, endpoint: Literal["chat", "completions"]) -> Sizing:
        """How prompts to `model` come to their tokens: by /tokenize where there is one."""

        def count(text: str) -> int:
            return self._tokens({"model": model, "prompt": text})

        def framed(text: str) -> int:
            if endpoint == "completions":
                return count(text)
            messages = [{"role": "user", "content": text}]
            return self._tokens({"model": model, "messages": messages})

        try:
            return calibrated(count, framed)
        except _NoAnswer:
            return ESTIMATED

    def _tokens(self, body: dict[str, Any]) -> int:
        try:
            answer = self._asked("/tokenize", body)
        except ServerUnreachable as error:
            raise _NoAnswer from error
        count = answer.get("count") if isinstance(answer, dict) else None
        if not isinstance(count, int):
            raise _NoAnswer
        return count

    def _asked(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_WITHIN) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            told = error.read(10_000).decode("utf-8", "replace")
            try:
                told = error_message(json.loads(told))
            except ValueError:
                told = told[:200]
            raise ServerUnreachable(f"{self.url}{path}: HTTP {error.code}: {told}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerUnreachable(f"{self.url}{path} does not answer: {reason}") from None


class _NoAnswer(Exception):
    """The server has no /tokenize that can be used."""


def chosen(scenario: Scenario, listed: Listed) -> tuple[str, ...]:
    """The adapters that the scenario asks for, of those that there are. Raises UsageError."""
    needed = scenario.adapters_needed
    have = len(listed.adapters)
    if needed == 0:
        if listed.base is None:
            raise UsageError(f"scenario {scenario.name} asks the base: name it with --base")
        return ()
    if have < (needed or 1):
        names = ", ".join(listed.adapters[:8]) + ("…" if have > 8 else "")
        raise UsageError(
            f"scenario {scenario.name} wants {needed} adapters and there are {have} ({names}): "
            f"register more, or choose among fewer with --adapters {max(1, have)}"
        )
    return listed.adapters if needed is None else listed.adapters[:needed]


def headers_of(
    tenants: Sequence[str],
    api_key: str | None,
    tenant_keys: Mapping[str, str],
    tenant_header: str | None,
) -> dict[str, dict[str, str]]:
    """By tenant, what says who asks. Raises UsageError for a key of a tenant that there is not."""
    unknown = set(tenant_keys) - set(tenants)
    if unknown:
        raise UsageError(
            f"there is no tenant {sorted(unknown)[0]}; the scenario's are {', '.join(tenants)}"
        )
    found: dict[str, dict[str, str]] = {}
    for tenant in tenants:
        key = tenant_keys.get(tenant, api_key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if tenant_header:
            headers[tenant_header] = tenant
        for name, value in headers.items():
            if not (name.isascii() and value.isascii() and value.isprintable()):
                raise UsageError(f"the header {name} of tenant {tenant} cannot be sent: ASCII only")
        found[tenant] = headers
    return found
