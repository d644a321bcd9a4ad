"""A request's id: the client's own where it can be trusted to be one, else made here."""

from __future__ import annotations

import re
import uuid

HEADER = "x-request-id"
# What may stand in headers, logs and shells without being taken for anything else.
_SAFE = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")


def request_id(said: str | None) -> str:
    """The id that a client sent, if it is one; a new one otherwise."""
    return said if said is not None and _SAFE.fullmatch(said) else new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return uuid.uuid4().hex
