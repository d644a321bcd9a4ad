"""Tenants and what their keys may do, as words: who they are is not kept anywhere else."""

from __future__ import annotations

import re

from adapters.errors import UsageError

# Who calls without a key that says otherwise.
DEFAULT_TENANT = "default"

ADMIN = "admin"
INFERENCE = "inference"
SCOPES = (INFERENCE, ADMIN)

MAX_LABEL = 128

# One word: it is a metric's label, a settings file's key and a header's value.
_TENANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def is_tenant(name: str) -> bool:
    """Whether a tenant can be called so."""
    return _TENANT.fullmatch(name) is not None


def check_tenant(name: str) -> str:
    """The name of a tenant, or UsageError."""
    if not is_tenant(name):
        raise UsageError(
            f"'{name[:80]}' is no valid name of a tenant: 1 to 64 letters, digits, '.', '_' and "
            "'-', first and last a letter or digit",
            param="tenant",
        )
    return name
