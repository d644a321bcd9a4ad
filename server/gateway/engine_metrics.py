"""Every engine's own metrics, asked for when somebody looks at the gateway's.

An engine that does not answer is left out, and said to be: it must not keep the others' figures,
and the gateway's, from being seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.errors import EngineError
from server.engine.engines import Engine, EngineState
from server.engine.merged import MergedState, merged_id
from server.engine.pool import EnginePool
from server.engine.transport import EngineAddress, EngineTransport
from server.engine.vllm_metrics import EngineFigures, figures

log = logging.getLogger(__name__)

BASE = "base"
# Seconds that an engine gets; a scrape may take ten.
TIMEOUT = 2.0
# Seconds for which an answer is good: some who look do so many times a second.
_KEPT = 1.0
_ANSWERING = frozenset({MergedState.READY, MergedState.DRAINING})

# By engine: where it answers.
Addresses = Callable[[], Mapping[str, str]]


def engine_addresses(engine: Engine, pool: EnginePool) -> Mapping[str, str]:
    """Those that are up: `base`, and merged ones as `adapterctl engines` names them."""
    found = {}
    status = engine.status()
    if status.state is EngineState.READY:
        found[BASE] = status.address
    for one in pool.statuses():
        if one.state in _ANSWERING and one.address:
            found[merged_id(one.model)] = one.address
    return found


def engine_processes(engine: Engine, pool: EnginePool) -> Mapping[str, int]:
    """The first process of each engine that was started here and is up."""
    found = {}
    base = engine.status().pid
    if base is not None:
        found[BASE] = base
    for one in pool.statuses():
        if one.pid is not None:
            found[merged_id(one.model)] = one.pid
    return found


class EngineMetrics(Collector):
    """The last answers of the engines that are up; as a collector, what they say in short."""

    def __init__(self, addresses: Addresses, *, timeout: float = TIMEOUT):
        self._addresses = addresses
        self._timeout = timeout
        self._texts: dict[str, str | None] = {}
        self._figures: dict[str, EngineFigures] = {}
        self._at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def read(self) -> Mapping[str, str]:
        """What each engine that answers says, by engine; never older than a second."""
        reading = self.refresh()
        if reading is not None:
            # One who hangs up must not take the others' answer along.
            await asyncio.shield(reading)
        return {engine: text for engine, text in self._texts.items() if text is not None}

    def refresh(self) -> asyncio.Task[None] | None:
        """Have the engines asked again; None where their answers are new enough."""
        if time.monotonic() - self._at < _KEPT:
            return None
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return self._reading

    def latest(self) -> Mapping[str, EngineFigures]:
        """What the engines said when they were last asked; nothing is awaited."""
        return self._figures

    async def _read(self) -> None:
        addresses = dict(self._addresses())
        answers = await asyncio.gather(*map(self._ask, addresses.values()))
        self._texts = dict(zip(addresses, answers, strict=True))
        self._figures = {}
        for engine, text in self._texts.items():
            if text is not None:
                try:
                    self._figures[engine] = figures(text)
                except ValueError:
                    log.warning("the metrics of engine %s cannot be read", engine)
        self._at = time.monotonic()

    async def _ask(self, address: str) -> str | None:
        try:
            async with asyncio.timeout(self._timeout):
                transport = EngineTransport(EngineAddress.parse(address), self._timeout)
                try:
                    response = await transport.send("GET", "/metrics", body=None, headers={})
                    async with response:
                        return await response.text() if response.status == 200 else None
                finally:
                    await transport.close()
        except (EngineError, TimeoutError, OSError, ValueError) as error:
            log.warning("the engine at %s does not tell its metrics: %r", address, error)
            return None

    def collect(self) -> Iterator[Metric]:
        """Of the last reading."""
        up = GaugeMetricFamily(
            "adapterctl_engine_metrics_up",
            "1 if the engine told its metrics when it was last asked.",
            labels=["engine"],
        )
        requests = GaugeMetricFamily(
            "adapterctl_engine_requests",
            "Requests that the engine has, by its own count: running, waiting.",
            labels=["engine", "state"],
        )
        usage = GaugeMetricFamily(
            "adapterctl_engine_kv_cache_usage_ratio",
            "The used part of the engine's KV cache, 0 to 1.",
            labels=["engine"],
        )
        for engine, text in self._texts.items():
            up.add_metric([engine], float(text is not None))
        for engine, said in self._figures.items():
            requests.add_metric([engine, "running"], said.running)
            requests.add_metric([engine, "waiting"], said.waiting)
            if said.kv_cache is not None:
                usage.add_metric([engine], said.kv_cache)
        yield from (up, requests, usage)
