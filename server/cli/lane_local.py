"""Lanes on a store of this machine: a part of LocalBackend.

What only a running server knows is asked of those that run on the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, AdapterNotLoadable, BaseMismatch, ServerUnreachable
from adapters.lanes.models import LaneChange, Route
from adapters.store.layout import StoreLayout
from server.cli.session import KEY_VARIABLE
from server.gateway.lane_changes import (
    deployed,
    quarantined,
    repinned,
    route_shown,
    routed,
    undeployed,
)
from server.gateway.lane_models import (
    Advice,
    DeployAnswer,
    DeploymentShown,
    DeployRequest,
    MergedState,
    Prefetched,
    ResidencyDocument,
    RouteRequest,
    RouteShown,
    TopDocument,
)
from server.gateway.lane_states import Running, all_shown, shown_of
from server.running import find_servers

if TYPE_CHECKING:
    from server.cli.remote import RemoteBackend


class LocalLanes:
    """The lanes of one store."""

    _root: Path
    _actor: str

    @property
    def _catalog(self) -> Catalog:
        raise NotImplementedError

    def deploy(self, reference: str, request: DeployRequest) -> DeployAnswer:
        return deployed(self._catalog, reference, request, self._actor, Running(None))

    def undeploy(self, reference: str) -> DeploymentShown:
        return undeployed(self._catalog, reference, self._actor, Running(None))

    def deployments(self) -> Sequence[DeploymentShown]:
        return all_shown(self._catalog, self._running())

    def deployment(self, reference: str) -> DeploymentShown:
        return shown_of(self._catalog, reference, self._running())

    def pin(self, reference: str, pinned: bool) -> DeploymentShown:
        return repinned(self._catalog, reference, pinned, self._actor, Running(None))

    def quarantine(self, reference: str, reason: str | None) -> DeploymentShown:
        return quarantined(self._catalog, reference, reason, self._actor, Running(None))

    def route(self, reference: str, request: RouteRequest) -> Route:
        return routed(self._catalog, reference, request, self._actor)

    def unroute(self, reference: str) -> RouteShown:
        self._catalog.unroute(reference, actor=self._actor)
        return route_shown(self._catalog, reference)

    def route_of(self, reference: str) -> RouteShown:
        """With what the first server that tells us has measured."""
        shown = route_shown(self._catalog, reference)
        if shown.route is not None:
            for server in servers_on(self._root):
                with suppress(AdapterctlError):
                    told = server.route_of(reference)
                    if told.route == shown.route:
                        return told
        return shown

    def routes(self) -> Sequence[Route]:
        return self._catalog.routes()

    def lane_history(self, name: str) -> Sequence[LaneChange]:
        return self._catalog.lane_history(name)

    # --- what only a running server knows -----------------------------------------------------

    def prefetch(self, reference: str) -> Prefetched:
        """By the server that runs the version's base."""
        self._catalog.show(reference)
        refused: AdapterctlError | None = None
        for server in self._servers():
            try:
                return server.prefetch(reference)
            except (AdapterNotLoadable, BaseMismatch) as error:
                refused = error
        assert refused is not None, "there is a server, and it answered or refused"
        raise refused

    def top(self, window: float, rows: int) -> TopDocument:
        """Of several servers together; shares are of each one's own traffic."""
        first, *others = [server.top(window, rows) for server in self._servers()]
        if not others:
            return first
        tops = (first, *others)
        drawn = [row for top in tops for row in top.rows]
        return first.model_copy(
            update={
                "rows": tuple(sorted(drawn, key=lambda row: -row.tokens_per_second)[:rows]),
                "versions": sum(top.versions for top in tops),
                "requests": sum(top.requests for top in tops),
                "tokens_per_second": sum(top.tokens_per_second for top in tops),
                "engines": tuple(engine for top in tops for engine in top.engines),
                # Which is one engine's.
                "residency": None,
                "advice": tuple(advice for top in tops for advice in top.advice),
                "queues": tuple(queue for top in tops for queue in top.queues),
            }
        )

    def advice(self) -> Sequence[Advice]:
        return [advice for server in self._servers() for advice in server.advice()]

    def residency(self) -> Sequence[ResidencyDocument]:
        return [found for server in self._servers() for found in server.residency()]

    def _servers(self) -> Iterator[RemoteBackend]:
        """Those on the store, one after another; raises ServerUnreachable if none runs."""
        found = False
        for server in servers_on(self._root):
            found = True
            yield server
        if not found:
            raise ServerUnreachable(
                "no server is running on this store, and only one that runs can say or do this: "
                "start it with `adapterctl serve --base BASE`, or give --server URL"
            )

    def _running(self) -> Running:
        """What the servers' merged engines do; not known where none runs, or none tells us."""
        engines: list[MergedState] | None = None
        for server in servers_on(self._root):
            # Without a key, say: what the store itself knows is shown all the same.
            with suppress(AdapterctlError):
                shown = server.deployments()
                engines = [*(engines or ()), *(it.engine for it in shown if it.engine is not None)]
        return Running.of(engines)


def servers_on(root: Path) -> Iterator[RemoteBackend]:
    """A backend for each server that runs on the store, closed when the next is asked for."""
    from server.cli.remote import RemoteBackend

    StoreLayout(root).check_marker()
    for running in find_servers(root):
        remote = RemoteBackend(
            running.url, os.environ.get(KEY_VARIABLE) or None, certificate=running.certificate
        )
        try:
            yield remote
        finally:
            remote.close()
