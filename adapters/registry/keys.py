"""API keys: making and revoking them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import Connection, insert, select, update

from adapters.errors import AlreadyExists
from adapters.registry import schema
from adapters.registry.auditing import changed
from adapters.registry.key_lookup import hash_secret, id_in
from adapters.registry.reader import KEYS_CHANGED
from adapters.registry.rows import now
from adapters.registry.writer import note_change
from adapters.tenants import Quota, no_key


def add_key(
    connection: Connection,
    scopes: Sequence[str],
    label: str,
    tenant: str,
    *,
    adapters: Sequence[str],
    expires_at: datetime | None,
    quota: Quota,
    secret: str | None = None,
) -> tuple[str, str]:
    """(id, secret to hand out once). `expires_at` has a time zone.

    `secret`: one that exists already, as `ak-ID-…`; the key that has it stays as it is. Raises
    AlreadyExists if that was revoked, or if the id has another secret.
    """
    if secret is None:
        key_id = secrets.token_hex(6)
        secret = f"ak-{key_id}-{secrets.token_urlsafe(32)}"
    else:
        found = id_in(secret)
        assert found is not None, "the caller has looked at its form"
        key_id = found
        if _is_there(connection, key_id, secret):
            return key_id, secret
    connection.execute(
        insert(schema.keys).values(
            id=key_id,
            label=label,
            secret_sha256=hash_secret(secret),
            scopes=json.dumps(sorted(set(scopes))),
            tenant=tenant,
            created_at=now(),
            adapters=json.dumps(list(adapters)),
            expires_at=None if expires_at is None else expires_at.astimezone(UTC).isoformat(),
            **asdict(quota),
        )
    )
    may = {"scopes": sorted(set(scopes)), "adapters": list(adapters), **asdict(quota)}
    ends = None if expires_at is None else expires_at.isoformat()
    told = {"tenant": tenant, "label": label, "expires_at": ends, **may}
    changed(connection, f"key {key_id}", None, told)
    note_change(connection, KEYS_CHANGED)
    return key_id, secret


def _is_there(connection: Connection, key_id: str, secret: str) -> bool:
    table = schema.keys.c
    query = select(table.secret_sha256, table.revoked_at).where(table.id == key_id)
    row = connection.execute(query).first()
    if row is None:
        return False
    if row.revoked_at is not None or row.secret_sha256 != hash_secret(secret):
        what = "was revoked" if row.revoked_at is not None else "has another secret"
        raise AlreadyExists(f"key {key_id} {what}: make a new secret, with another id in it")
    return True


def revoke_key(connection: Connection, key_id: str) -> None:
    """Ends a key; again is no error. Raises NotFound."""
    table = schema.keys.c
    row = connection.execute(select(table.revoked_at).where(table.id == key_id)).first()
    if row is None:
        raise no_key(key_id)
    if row.revoked_at is None:
        connection.execute(update(schema.keys).where(table.id == key_id).values(revoked_at=now()))
        changed(connection, f"key {key_id}", "usable", "revoked")
        note_change(connection, KEYS_CHANGED)
