"""What one request goes to: one version, chosen once, in the snapshot that resolved its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.compositions import is_composition
from adapters.errors import NotDeployed, VersionNotFound
from adapters.frozen import Lane
from adapters.lanes.choosing import Choice, choose
from adapters.lanes.models import Route
from adapters.models import AdapterRecord, VersionRecord
from adapters.references import parse_reference
from adapters.registry.snapshot import Resolved, Snapshot
from server.gateway.observing import Role
from server.gateway.placing import Placing, Ways


@dataclass(frozen=True, slots=True)
class Asked:
    """What a choice between versions looks at, besides the reference."""

    request_id: str
    headers: Mapping[str, str]
    document: Mapping[str, Any]

    @property
    def user(self) -> str | None:
        """Who asks, as OpenAI's and Anthropic's bodies say it, or a header; None: nobody says."""
        metadata = self.document.get("metadata")
        said = (
            self.document.get("user"),
            self.document.get("safety_identifier"),
            metadata.get("user_id") if isinstance(metadata, dict) else None,
            self.headers.get("x-user-id"),
        )
        return next((one for one in said if isinstance(one, str) and one), None)


@dataclass(frozen=True, slots=True)
class Target:
    """One version, or the base (`number` None), and where it may be answered.

    With a route: `stable` is the version that the reference means by itself.
    """

    reference: str
    adapter: str
    number: int | None
    digest: str
    # `support-bot:v3`, or the base's name.
    version: str
    ways: Ways
    role: Role = Role.PLAIN
    route: Route | None = None
    # As a route has chosen it; None: where the version is deployed.
    lane: Lane | None = None
    record: AdapterRecord | None = None
    stable: VersionRecord | None = None

    @property
    def watched(self) -> bool:
        """Whether somebody judges its answers, or compares them with a shadow's."""
        route = self.route
        return route is not None and (route.limits is not None or bool(route.shadows))


# A route's id, a split's version and its own lane.
Withdrawn = Callable[[int, int, Lane | None], bool]


def nothing_withdrawn(route: int, number: int, lane: Lane | None) -> bool:
    """Every split gets its requests."""
    return False


def target_of(
    placing: Placing,
    resolved: Resolved,
    asked: Asked,
    withdrawn: Withdrawn = nothing_withdrawn,
) -> Target:
    """The one thing that answers; raises where nothing on this server does, with what to do.

    `withdrawn`: splits that are being taken back.
    """
    stable, adapter = resolved.version, resolved.adapter
    if stable is None or adapter is None:
        ways = placing.of_base(resolved.reference, resolved.base)
        base = resolved.base
        return Target(resolved.reference, base.name, None, base.digest, base.name, ways)
    # A sum has no route, and is no reference that could have one.
    if not adapter.routes or is_composition(resolved.reference):
        choice = Choice(stable, None, role_is_canary=False, route=None)
    else:
        choice = choose(
            adapter,
            parse_reference(resolved.reference),
            stable,
            request_id=asked.request_id,
            user=asked.user,
            headers=asked.headers,
        )
    route, canary = choice.route, choice.role_is_canary
    if route is not None and canary and withdrawn(route.id, choice.version.number, choice.lane):
        choice = Choice(stable, None, role_is_canary=False, route=route)
    try:
        return _target(placing, resolved.reference, adapter, stable, choice)
    except NotDeployed:
        if not choice.role_is_canary:
            raise
        # Out of service since the route was made: a part of nothing is the stable version's.
        choice = Choice(stable, None, role_is_canary=False, route=choice.route)
        return _target(placing, resolved.reference, adapter, stable, choice)


def _target(
    placing: Placing,
    reference: str,
    adapter: AdapterRecord,
    stable: VersionRecord,
    choice: Choice,
) -> Target:
    version = choice.version
    role = Role.CANARY if choice.role_is_canary else Role.STABLE
    return Target(
        reference=reference,
        adapter=version.adapter,
        number=version.number,
        digest=version.digest,
        version=f"{version.adapter}:{version.label}",
        ways=placing.of_version(reference, adapter, version, choice.lane),
        role=Role.PLAIN if choice.route is None else role,
        route=choice.route,
        lane=choice.lane,
        record=adapter,
        stable=stable,
    )


def placed_again(placing: Placing, target: Target, snapshot: Snapshot) -> Ways:
    """The same version as it is deployed now: for who still waited for how it was before.

    Raises as `target_of`; VersionNotFound where the version was removed.
    """
    assert target.record is not None
    assert target.number is not None
    adapter = snapshot.adapters.get(target.adapter)
    version = None if adapter is None else adapter.versions.get(target.number)
    if adapter is None or version is None or version.digest != target.digest:
        raise VersionNotFound(f"'{target.version}' was removed", param="model")
    return placing.of_version(target.reference, adapter, version, target.lane)
