"""The audit log of the admin API: what its requests did, and what was refused before they did it.

What a request changes through the catalog is in the log already, with the change. Here is who asks
and from where, and a row for every request that the catalog has none of: uploads, prefetches, dry
runs, what is not valid, and whoever was not let in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import anyio
from fastapi.exceptions import RequestValidationError
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapters.audit import OK, Act, Origin, coming_from
from adapters.errors import AccessError, AdapterctlError, Forbidden, InvalidRequest
from server.gateway.auth import Admitted
from server.gateway.request_ids import HEADER, request_id
from server.gateway.request_notes import notes_of

log = logging.getLogger(__name__)

# Rows a minute about those who were not let in: nobody without a key is to fill the disk.
REFUSALS_A_MINUTE = 60
_PREFIX = "/admin/v1"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# The part of a key that is no secret.
_KEY_ID = re.compile(r"ak-([0-9a-f]{12})-")

# The catalog's `note`: a row of its own, never an error.
Note = Callable[[Act, str, str | None], None]


class AdminAudit:
    """Makes a `Told` for each request. Used on the event loop."""

    def __init__(self, note: Note):
        self._note = note
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._refusals = RateLimitItemPerMinute(REFUSALS_A_MINUTE)
        self._left_out = 0

    def begin(self, request: Request, action: str) -> Told:
        """A request has come; what its task does from here on is told as its doing."""
        origin = Origin(_address(request), "unknown", request=_request_id(request))
        coming_from(origin)
        subject = request.url.path.removeprefix(_PREFIX)
        return Told(self, Act(action, subject, "unknown", origin), request)

    async def write(self, act: Act, outcome: str, message: str | None) -> None:
        """A row; what cannot be written is in the server's log."""
        # Also where the client has gone: what was done, was done.
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(self._note, act, outcome, message)

    async def refused(self, act: Act, error: AdapterctlError) -> None:
        """A row about somebody who was not let in, unless there were too many of late."""
        if not await self._limiter.hit(self._refusals, "refused"):
            if not self._left_out:
                log.warning("too many refused admin requests for the audit log: some are left out")
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        more = f" ({left_out} more were refused and are not in this log)" if left_out else ""
        await self.write(act, error.code, error.message + more)


class Told:
    """One request, told of exactly once."""

    def __init__(self, audit: AdminAudit, act: Act, request: Request):
        self._audit = audit
        self._act = act
        self._request = request
        self._reads = request.method in _READING
        self._admitted = False
        self._open = True
        # What came of an answer that had begun when it failed.
        self.failure: AdapterctlError | None = None

    def admitted(self, who: Admitted) -> Admitted:
        """It was let in."""
        self._admitted = True
        self._act.origin.actor = who.actor
        self._act.origin.key = who.key
        return who

    async def ended(self) -> None:
        """It was answered; further calls change nothing."""
        if self.failure is not None:
            await self.failed(self.failure)
        else:
            await self._tell(OK, None)

    async def failed(self, error: BaseException) -> None:
        """It was refused, or went wrong."""
        if isinstance(error, AccessError) and not self._admitted:
            await self._not_let_in(error)
        elif isinstance(error, AccessError):
            # Let in, but not to this; worth a row also where it only wanted to read.
            await self._tell(error.code, error.message, reads=True)
        elif isinstance(error, AdapterctlError):
            await self._tell(error.code, error.message)
        elif isinstance(error, RequestValidationError):
            await self._tell(InvalidRequest.code, "the body or a parameter is not valid")
        else:
            await self._tell(AdapterctlError.code, f"it ended with {type(error).__name__}")

    async def _not_let_in(self, error: AccessError) -> None:
        if not self._open:
            return
        self._open = False
        claimed = _KEY_ID.search(self._request.headers.get("authorization", ""))
        if claimed is not None:
            self._act.origin.key = claimed.group(1)
            if isinstance(error, Forbidden):
                # The key is right, and only not for this.
                self._act.origin.actor = f"key {claimed.group(1)}"
        await self._audit.refused(self._act, error)

    async def _tell(self, outcome: str, message: str | None, *, reads: bool = False) -> None:
        if not self._open or (self._reads and not reads):
            return
        self._open = False
        if not self._act.origin.rows:
            await self._audit.write(self._act, outcome, message)


def _address(request: Request) -> str:
    return "unknown" if request.client is None else request.client.host


def _request_id(request: Request) -> str:
    notes = notes_of(request.scope)
    return request_id(request.headers.get(HEADER)) if notes is None else notes.request_id
