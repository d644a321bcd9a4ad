"""Counters that several gateways share, in Redis. Imported only where one is set."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.gateway.quotas.windows import MINUTE, Window

log = logging.getLogger(__name__)

# Seconds. A gateway that died gives its places back after this; those that live say so in between.
LEASE = 30
_RENEWAL = LEASE / 3
# What a request waits for Redis at most: it is asked for every one.
PATIENCE = 0.25
_CONNECTIONS = 32
_ANY = 2**53
_PREFIX = "adapterctl"

FAULTS = (RedisError, OSError, TimeoutError)

# By the clock of Redis, the only one that all gateways share.
_ENTER = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('EXPIRE', KEYS[1], 2 * tonumber(ARGV[3]))
return 1
"""
# Only members that are there: one that has left meanwhile must not come back.
_RENEW = """
local now = tonumber(redis.call('TIME')[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + tonumber(ARGV[1]), ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 2 * tonumber(ARGV[1]))
"""


class RedisCounters:
    """Implements Counters; every method raises one of FAULTS while Redis is away."""

    def __init__(self, url: str):
        """`url` as redis-py takes it: redis://, rediss:// or unix://."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=PATIENCE,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            # Once more, for connections that a restart of Redis has closed; the library's own
            # patience is for programs that cannot go on without it.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = Redis(connection_pool=pool)
        self._storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=_PREFIX,
            # Documented so, but typed as the options that a URL could have.
            connection_pool=pool,  # type: ignore[arg-type]
        )
        self._enter = self._redis.register_script(_ENTER)
        self._renew = self._redis.register_script(_RENEW)
        self._inside: dict[str, set[str]] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def look(self, name: str) -> Window:
        return Window(*await self._storage.get_sliding_window(name, MINUTE))

    async def take(self, name: str, units: int, limit: int) -> bool:
        return await self._storage.acquire_sliding_window_entry(name, limit, MINUTE, units)

    async def charge(self, name: str, units: int) -> None:
        await self._storage.acquire_sliding_window_entry(name, _ANY, MINUTE, units)

    async def enter(self, name: str, member: str, limit: int) -> bool:
        if not await self._enter(keys=[_places(name)], args=[member, limit, LEASE]):
            return False
        self._inside.setdefault(name, set()).add(member)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew_all())
        return True

    async def leave(self, name: str, member: str) -> None:
        members = self._inside.get(name, set())
        members.discard(member)
        if not members:
            self._inside.pop(name, None)
        await self._redis.zrem(_places(name), member)

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        with contextlib.suppress(*FAULTS):
            await self._redis.aclose(close_connection_pool=True)

    async def _renew_all(self) -> None:
        """While this gateway has members: say that it lives."""
        while self._inside:
            await asyncio.sleep(_RENEWAL)
            for name, members in list(self._inside.items()):
                # Away: the places are forgotten there, and whoever looks has logged why.
                with contextlib.suppress(*FAULTS):
                    await self._renew(keys=[_places(name)], args=[LEASE, *members])


def _places(name: str) -> str:
    return f"{_PREFIX}/places/{name}"
