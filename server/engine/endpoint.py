"""Where HTTP is spoken, and what a request looks like there."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and port, or a unix socket; `prefix` goes before every path."""

    host: str
    port: int
    prefix: str
    authority: str
    tls: ssl.SSLContext | None = None
    socket: Path | None = None

    @classmethod
    def of(cls, url: str, socket: Path | None = None) -> Endpoint:
        """Of an http or https URL; with `socket`, its host is a formality. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no http or https URL")
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if tls else 80)
        authority = parts.netloc.rpartition("@")[2]
        return cls(parts.hostname, port, parts.path.rstrip("/"), authority, tls, socket)

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> bytes:
        """A request as it is sent. Raises ValueError for what would not be one."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {self.authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        head = "\r\n".join(lines)
        # A value with an end of line in it would be a header, or a request, of somebody's own.
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise ValueError("a request's line or header contains an end of line")
        return head.encode("latin-1") + b"\r\n\r\n" + (body or b"")
