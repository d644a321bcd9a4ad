"""Keeping gc away from what is being copied."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator

from adapters.errors import StoreBusy, StoreError
from adapters.store.layout import StoreLayout
from adapters.store.leases import EngineLease
from adapters.store.locks import store_lock

# What the ids of leases begin with that no engine holds; `rm` names them to people.
LEASE_PREFIX = "backup"

Hold = Callable[[Collection[str]], None]


@contextlib.contextmanager
def lease_for_copying(layout: StoreLayout) -> Iterator[Hold]:
    """A lease, as engines have: what it holds stays until the block ends, whatever is removed.

    Where it cannot be written down (a full disk, a store that is read-only) gc has to wait for the
    block to end, or cannot run at all.
    """
    lease = EngineLease(layout, f"{LEASE_PREFIX}-{os.getpid()}-{secrets.token_hex(4)}")
    with contextlib.ExitStack() as stack:
        stack.callback(lease.remove)
        try:
            lease.acquire()
        except StoreBusy:
            raise
        except StoreError:
            yield lambda digests: stack.enter_context(gc_kept_waiting(layout))
            return

        def hold(digests: Collection[str]) -> None:
            try:
                lease.hold_all(digests)
            except StoreBusy:
                raise
            except StoreError:
                stack.enter_context(gc_kept_waiting(layout))

        yield hold


@contextlib.contextmanager
def gc_kept_waiting(layout: StoreLayout) -> Iterator[None]:
    """The store's lock, shared; without it where it cannot be had: there gc cannot run either."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store_lock(layout, shared=True))
        except StoreBusy:
            raise
        except StoreError:
            pass
        yield
