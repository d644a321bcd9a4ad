"""`/admin/v1/uploads`: an artifact sent by a client that does not share the server's disk.

The body goes to a file in the store's staging directory as it comes in, and is never held in
memory. `upload:ID` is then a SOURCE for registering and inspecting. An upload is removed when it
has been registered, when the client says so, or an hour after it was last of use; the directory's
lock is held by this process, so of a server that died gc removes it.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import anyio
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from adapters.errors import DiskFull, InvalidRequest, RequestTooLarge, StoreBusy
from adapters.sources.archives import safe_name
from adapters.sources.policy import BYTES_VARIABLE, policy_from_environment
from adapters.store.durable import store_io
from adapters.store.layout import StoreLayout
from adapters.store.publish import stage
from adapters.store.uploads import keep_upload, no_upload, upload_id
from server.gateway.admin_jobs import Event, JobRunner
from server.gateway.admin_models import Uploaded

PREFIX = "upload:"
LIFETIME_S = 3600.0
_MOST = 64
# A client that sends nothing for this long is gone.
_SILENCE_S = 60.0
_CHUNK = 1 << 20


@dataclass(slots=True)
class _Kept:
    """An upload on the disk: what ends its directory, who reads it now, when it expires."""

    stack: ExitStack
    # The id of the key that sent it; None: none was needed.
    owner: str | None = None
    users: int = 0
    doomed: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class UploadShelf:
    """The uploads of this server. Used on its event loop only."""

    def __init__(self, layout: StoreLayout, *, lifetime: float = LIFETIME_S) -> None:
        self._layout = layout
        self._lifetime = lifetime
        self._kept: dict[str, _Kept] = {}
        self._arriving = 0
        atexit.register(self.close)

    async def receive(self, request: Request, name: str, owner: str | None = None) -> Uploaded:
        """Writes the body to the disk; `name` says what it is, as a file's name does. `owner` is
        the id of the key that sends it.

        Raises RequestTooLarge, DiskFull, and InvalidRequest for a client that breaks off.
        """
        if not name or safe_name(name, "") != name:
            raise InvalidRequest(
                f"'{name[:100]}' cannot be the name of an upload: use letters, digits and ._+-",
                param="name",
            )
        if len(self._kept) + self._arriving >= _MOST:
            raise StoreBusy(
                f"{_MOST} uploads are here and not registered: register them, or DELETE them",
                retry_after=60,
            )
        limit = policy_from_environment().max_bytes
        self._check_declared(request, limit)
        self._arriving += 1
        try:
            return await self._keep(request, name, limit, owner)
        finally:
            self._arriving -= 1

    def _check_declared(self, request: Request, limit: int) -> None:
        """All that can be refused before a byte is read."""
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
        if size > limit:
            raise _too_large(limit)
        with store_io(self._layout.root):
            free = shutil.disk_usage(self._layout.staging).free
        if size > free:
            raise DiskFull(
                f"no space for {size} bytes on the disk of the store at {self._layout.root}: "
                f"{free} are free (`adapterctl gc` removes what nothing uses)"
            )

    async def _keep(self, request: Request, name: str, limit: int, owner: str | None) -> Uploaded:
        stack = ExitStack()
        try:
            staging = await run_in_threadpool(stack.enter_context, stage(self._layout))
            part = staging.root / ".part"
            with store_io(self._layout.root):
                opened = await run_in_threadpool(part.open, "xb")
            with opened:
                size, sha256 = await self._write(request, opened, limit)
            if not size:
                raise InvalidRequest("the upload is empty: send the file as the request's body")
            keep_upload(self._layout, staging, part, name)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(stack.close)
            raise
        wanted = upload_id(staging)
        self._kept[wanted] = _Kept(stack, owner)
        self._wind(wanted)
        lifetime = int(self._lifetime)
        return Uploaded(upload=wanted, name=name, bytes=size, sha256=sha256, expires_in=lifetime)

    async def _write(self, request: Request, opened: BinaryIO, limit: int) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            with store_io(self._layout.root):
                opened.write(chunk)

        async with aclosing(_chunks(request)) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                await run_in_threadpool(write, chunk)
        with store_io(self._layout.root):
            await run_in_threadpool(opened.flush)
        return size, digest.hexdigest()

    def _wind(self, wanted: str) -> None:
        """Begins its hour anew."""
        kept, loop = self._kept[wanted], asyncio.get_running_loop()

        def expire() -> None:
            stack = self._taken(wanted)
            if stack is not None:
                loop.run_in_executor(None, stack.close)

        kept.timer = loop.call_later(self._lifetime, expire)

    def _taken(self, wanted: str) -> ExitStack | None:
        """What removes an upload, off the shelf already; None while a job reads it."""
        kept = self._kept[wanted]
        kept.doomed = True
        if kept.users:
            return None
        if kept.timer is not None:
            kept.timer.cancel()
        return self._kept.pop(wanted).stack

    def check_owner(self, wanted: str, owner: str | None) -> None:
        """Raises NotFound where somebody else sent it, as for one that is not there; None is
        everybody's owner."""
        if owner is None:
            return
        kept = self._kept.get(wanted)
        if kept is None or kept.owner != owner:
            raise no_upload(wanted)

    async def remove(self, wanted: str) -> None:
        """Removes an upload, at the end of what reads it now; raises NotFound."""
        if wanted not in self._kept:
            raise no_upload(wanted)
        stack = self._taken(wanted)
        if stack is not None:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(stack.close)

    @asynccontextmanager
    async def in_use(self, source: str, owner: str | None = None) -> AsyncIterator[str | None]:
        """While a job reads `source`: if it is an upload of this server, it stays. Yields its id.

        Another server's upload on the same store is its own business; `owner`, who may name none
        but their own, cannot name it. Raises NotFound.
        """
        wanted = source.removeprefix(PREFIX).partition("#")[0]
        self.check_owner(wanted, owner)
        kept = self._kept.get(wanted) if source.startswith(PREFIX) else None
        if kept is None:
            yield None
            return
        kept.users += 1
        if kept.timer is not None:
            kept.timer.cancel()
        try:
            yield wanted
        finally:
            kept.users -= 1
            if kept.doomed and not kept.users:
                await self.remove(wanted)
            elif not kept.users:
                self._wind(wanted)

    def close(self) -> None:
        """Removes everything: nobody can name it any more."""
        atexit.unregister(self.close)
        while self._kept:
            self._kept.popitem()[1].stack.close()


class UploadJobs:
    """Jobs whose source may be an upload; `consume`: it is not needed after a success. `owner`:
    the source must be an upload of that key; None: any source."""

    def __init__(
        self,
        jobs: JobRunner,
        shelf: UploadShelf,
        source: str,
        *,
        consume: bool,
        owner: str | None = None,
    ) -> None:
        self._jobs = jobs
        self._shelf = shelf
        self._source = source
        self._consume = consume
        self._owner = owner

    async def events(
        self, operation: str, arguments: BaseModel | None, actor: str
    ) -> AsyncGenerator[Event]:
        """See JobRunner.events. The upload is gone by the time the client hears of the result."""
        result: Event | None = None
        async with self._shelf.in_use(self._source, self._owner) as upload:
            async with aclosing(self._jobs.events(operation, arguments, actor)) as events:
                async for event in events:
                    if "result" in event:
                        result = event
                    else:
                        yield event
            if result is not None and upload is not None and self._consume:
                await self._shelf.remove(upload)
        if result is not None:
            yield result


async def _chunks(request: Request) -> AsyncGenerator[bytes]:
    """The body in pieces large enough to be worth a thread's while."""
    gathered = bytearray()
    stream = aiter(request.stream())
    while True:
        chunk = await _next(stream)
        if chunk is None:
            break
        gathered += chunk
        if len(gathered) >= _CHUNK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        with anyio.fail_after(_SILENCE_S):
            return await anext(stream)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise InvalidRequest(f"nothing came for {_SILENCE_S:.0f} s: send it again") from None
    except ClientDisconnect:
        raise InvalidRequest("the client hung up before its upload was complete") from None


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the upload is larger than the {limit} bytes that this server takes: {BYTES_VARIABLE} "
        "sets the limit where it is started"
    )
