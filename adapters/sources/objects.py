"""s3://, gs:// and az://: one object, or an adapter's files below a prefix."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from adapters.errors import AdapterctlError, DamagedArtifact, SourceRefused, SourceUnreadable
from adapters.sources.adapter_files import is_wanted, judge_listing, too_large
from adapters.sources.archives import tame_name
from adapters.sources.download import Progress
from adapters.sources.members import create_file, member_parts
from adapters.sources.object_faults import object_errors
from adapters.sources.object_stores import PROVIDERS, Provider, open_store
from adapters.sources.policy import Policy
from adapters.sources.uri import Address, bucket_and_key

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from adapters.sources.object_stores import Store

_CHUNK = 1 << 20
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}


def fetch_objects(address: Address, place: Path, policy: Policy, progress: Progress | None) -> Path:
    """Downloads into `place`: the object of that very key as a file, else a prefix as a directory.

    Sizes and names are judged before anything is downloaded. What breaks off is taken up where it
    ended, and only while the object is still the one that was listed.
    """
    bucket, key = bucket_and_key(address.text)
    provider = PROVIDERS[address.scheme]
    with object_errors(address.shown, provider):
        store = open_store(address.scheme, bucket, policy)
    fetching = _Fetching(store, provider, address.shown, policy, progress)
    return _finished(fetching.into(place, key, bucket))


def _finished(work: Coroutine[Any, Any, Path]) -> Path:
    """Runs it on a loop of its own: the library's blocking calls would keep a Ctrl-C waiting."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:  # a caller in a notebook has a loop already
        return pool.submit(asyncio.run, work).result()


@dataclass(slots=True)
class _Fetching:
    store: Store
    provider: Provider
    shown: str
    policy: Policy
    progress: Progress | None
    arrived: int = 0
    total: int = 0

    async def into(self, place: Path, key: str, bucket: str) -> Path:
        name = tame_name(key.rpartition("/")[2] or bucket)
        single = await self._object(key) if key else None
        if single is not None:
            self.total = single["size"]
            if self.total > self.policy.max_bytes:
                raise too_large(self.shown, self.policy)
            await self._download(single, place / name)
            return place / name
        listed = await self._below(key)
        sizes = {path: meta["size"] for path, meta in listed.items() if is_wanted(path)}
        self.total = judge_listing(self.shown, sizes, self.policy)
        target = place / name
        target.mkdir()
        made = {target}
        for path in sizes:
            file = target.joinpath(*member_parts(self.shown, path))
            if file.parent not in made:
                file.parent.mkdir(parents=True, exist_ok=True)
                made.add(file.parent)
            await self._download(listed[path], file)
        return target

    async def _object(self, key: str) -> ObjectMeta | None:
        """The object of this very key; None if there is none."""
        try:
            with object_errors(self.shown, self.provider):
                return await self.store.head_async(key)
        except FileNotFoundError:
            return None

    async def _below(self, key: str) -> Mapping[str, ObjectMeta]:
        """What lies below a prefix, by its path from there."""
        found: dict[str, ObjectMeta] = {}
        start = f"{key}/" if key else ""
        try:
            with object_errors(self.shown, self.provider):
                async for page in self.store.list(key or None):
                    for meta in page:
                        if meta["path"].startswith(start):
                            found[meta["path"][len(start) :]] = meta
                    if len(found) > self.policy.max_members:
                        raise SourceRefused(
                            f"{self.shown} holds more than {self.policy.max_members} objects: "
                            "give the prefix of the adapter's own files"
                        )
        except FileNotFoundError:
            found = {}
        if not found:
            raise SourceUnreadable(f"there is nothing at {self.shown}")
        return found

    async def _download(self, meta: ObjectMeta, file: Path) -> None:
        """The whole object, in as many requests as it takes."""
        failures = done = 0
        with create_file(file) as opened:
            while True:
                before = done
                try:
                    done = await self._receive(meta, opened, done)
                    if done == meta["size"]:
                        return
                    fault: AdapterctlError = SourceUnreadable(
                        f"{self.shown} cannot be read: only {done} of {meta['size']} bytes arrive"
                    )
                except _BrokenOff as broken:
                    done, fault = broken.done, broken.fault
                # Getting further counts as a fresh start: a long download may be cut many times.
                failures = 1 if done > before else failures + 1
                if failures >= self.policy.attempts:
                    raise fault
                await asyncio.sleep(self.policy.backoff * 2 ** (failures - 1))

    async def _receive(self, meta: ObjectMeta, opened: BinaryIO, done: int) -> int:
        """One request; returns the bytes that are there after it."""
        try:
            with object_errors(self.shown, self.provider):
                result = await self.store.get_async(
                    meta["path"],
                    options={"if_match": meta["e_tag"], "range": {"offset": done}}
                    if done
                    else {"if_match": meta["e_tag"]},
                )
        except FileNotFoundError:
            raise SourceUnreadable(
                f"{self.shown} changed while it was read: run the same command again"
            ) from None
        try:
            with object_errors(self.shown, self.provider):
                async for chunk in result.stream(min_chunk_size=_CHUNK):
                    if done + len(chunk) > meta["size"]:
                        raise DamagedArtifact(
                            f"{self.shown} is damaged: {meta['path']!a} has more than the "
                            f"{meta['size']} bytes that are listed"
                        )
                    opened.write(chunk)
                    done += len(chunk)
                    self._tell(len(chunk))
        except SourceUnreadable as fault:
            raise _BrokenOff(done, fault) from None
        except OSError as fault:
            if fault.errno in _DISK:
                raise
            raise _BrokenOff(done, SourceUnreadable(f"{self.shown} cannot be read")) from None
        return done

    def _tell(self, count: int) -> None:
        self.arrived += count
        if self.progress is not None:
            self.progress(self.arrived, self.total)


class _BrokenOff(Exception):
    """An answer that ended too early: `done` bytes of the object are there."""

    def __init__(self, done: int, fault: AdapterctlError):
        super().__init__(fault.message)
        self.done = done
        self.fault = fault
