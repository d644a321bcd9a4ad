"""Tenants and what their keys may do, as words: who they are is not kept anywhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from adapters.errors import NotFound, UsageError

# Who calls without a key that says otherwise.
DEFAULT_TENANT = "default"

Scope = Literal["infer", "register", "admin"]
INFER: Scope = "infer"
REGISTER: Scope = "register"
ADMIN: Scope = "admin"
SCOPES = (INFER, REGISTER, ADMIN)

MAX_LABEL = 128
# Beyond what anything counts in a minute; SQLite's and JavaScript's integers hold it.
MAX_QUOTA = 10**12


@dataclass(frozen=True, slots=True)
class Quota:
    """What a key or a tenant may use at most; None: as much as it likes, else at least 1.

    requests_per_minute: requests begun in any minute; tokens_per_minute: tokens read and written;
    concurrent: requests being answered at the same time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether it holds nobody back."""
        return self == UNLIMITED


UNLIMITED = Quota()

# One word: it is a metric's label, a settings file's key and a header's value.
_TENANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def check_label(label: str) -> str:
    """What a key may be called, or UsageError: one printable line."""
    if len(label) > MAX_LABEL or not label.isprintable():
        raise UsageError(
            f"a key's label is one line of at most {MAX_LABEL} printable characters", param="label"
        )
    return label


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


def check_quota(quota: Quota) -> Quota:
    """A key's quota, or UsageError for a number that lets nothing through, or is too large."""
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
        value = getattr(quota, name)
        if value is not None and not 1 <= value <= MAX_QUOTA:
            raise UsageError(f"{name} must be 1 to {MAX_QUOTA}, not {value}", param=name)
    return quota


def no_key(key_id: str) -> NotFound:
    """What to raise where nobody has the key."""
    return NotFound(f"there is no key '{key_id}': `adapterctl keys ls` lists what there is")
