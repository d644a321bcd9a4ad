"""API keys: `ak-<id>-<secret>`. Only the sha256 of the whole text is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import sqlite3

from adapters.registry.key_record import KeyRecord
from adapters.registry.reader import load_key

_KEY = re.compile(r"ak-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


def find_key(connection: sqlite3.Connection, secret: str) -> KeyRecord | None:
    """The key that `secret` is, unless it is unknown or ended; compared in constant time."""
    key_id = id_in(secret)
    found = load_key(connection, key_id) if key_id else None
    if found is None:
        return None
    record, expected = found
    if not hmac.compare_digest(hash_secret(secret), expected) or not record.usable:
        return None
    return record


def id_in(secret: str) -> str | None:
    """The id of the key that has this secret; None for what no secret looks like."""
    parsed = _KEY.fullmatch(secret)
    return parsed.group(1) if parsed else None


def hash_secret(secret: str) -> str:
    """sha256 in hex. The secret has 256 random bits, so it needs neither salt nor stretching."""
    return hashlib.sha256(secret.encode()).hexdigest()
