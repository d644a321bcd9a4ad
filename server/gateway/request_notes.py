"""What the parts of the application leave in a request's scope for each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:
    from server.gateway.settle import Exchange
    from server.gateway.tracing import RequestSpan

# The server's own `send`.
SERVER_SEND = "adapterctl.send"
# Writes a part of an answer's body at once: see ClientConnection.
SERVER_WRITE = "adapterctl.write"
# A request's Notes.
NOTES = "adapterctl.notes"


@dataclass(slots=True)
class Notes:
    """What a request leaves for its line in the log.

    `status` None: nothing was sent. `outcome`: the code of an error that was answered; that of an
    engine's route is in its `exchange`. `span` None: it is not traced.
    """

    request_id: str
    status: int | None = None
    outcome: str | None = None
    exchange: Exchange | None = None
    span: RequestSpan | None = None


def notes_of(scope: Scope) -> Notes | None:
    """The notes of a request; None where it did not come through an Entry."""
    found: Notes | None = scope.get(NOTES)
    return found
