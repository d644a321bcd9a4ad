"""Which version and lane a request goes to: a pure function of snapshot and request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.frozen import Lane
from adapters.lanes.models import MERGED_MODEL, Route, Shadow, Split
from adapters.models import AdapterRecord, VersionRecord
from adapters.references import Reference

USER_HEADER = "x-user-id"


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that answers. `lane` None: where it is deployed. `route`: that of the tag."""

    version: VersionRecord
    lane: Lane | None
    role_is_canary: bool
    route: Route | None


def deployed_lane(adapter: AdapterRecord, version: VersionRecord) -> Lane | None:
    """Where a version is served; None: nowhere, so a request for it is refused."""
    deployment = adapter.deployments.get(version.number)
    if deployment is not None:
        return deployment.lane
    return Lane.HOT if version.lane is Lane.HOT else None


def quarantined(adapter: AdapterRecord, version: VersionRecord) -> str | None:
    """Why no engine gets a version; None: nothing is against it."""
    deployment = adapter.deployments.get(version.number)
    return None if deployment is None else deployment.quarantined


def merged_model(adapter: AdapterRecord, version: VersionRecord) -> str | None:
    """The digest of the merged model that can serve a version; None: there is none yet."""
    if version.method == MERGED_MODEL:
        return version.digest
    deployment = adapter.deployments.get(version.number)
    return None if deployment is None else deployment.model


def route_of(adapter: AdapterRecord, ref: Reference) -> Route | None:
    """The route that a reference's requests take; versions and digests have none."""
    if ref.version is not None or ref.digest is not None:
        return None
    return adapter.routes.get(ref.tag or adapter.default_tag)


def choose(
    adapter: AdapterRecord,
    ref: Reference,
    stable: VersionRecord,
    *,
    request_id: str,
    user: str | None,
    headers: Mapping[str, str],
) -> Choice:
    """Where a request for `ref` goes, which means `stable` by itself.

    The same key always gets the same answer, on every server: the request's id, or with a sticky
    route the user (else the header x-user-id, else the request's id). Shares lie one after the
    other from 0, so who is inside at 5 % stays inside at 10 %. A split that nothing could serve,
    or that is what the tag means anyway, counts as the stable version. `headers` are looked up by
    names in lower case.
    """
    route = route_of(adapter, ref)
    if route is None:
        return Choice(stable, None, False, None)
    split = _by_header(adapter, stable, route, headers)
    if split is None and route.splits:
        key = request_id
        if route.sticky == "user":
            key = user or headers.get(USER_HEADER) or request_id
        split = _by_share(route, _point(f"{route.adapter}:{route.tag}:{key}"))
    if split is None or not _differs(adapter, stable, split):
        return Choice(stable, None, False, route)
    return Choice(adapter.versions[split.number], split.lane, True, route)


def shadows_of(route: Route, stable: VersionRecord, request_id: str) -> list[Shadow]:
    """Who gets a copy of a request; each is decided by itself, and apart from the splits."""
    return [
        shadow
        for shadow in route.shadows
        if (shadow.number != stable.number or shadow.lane is not None)
        and _point(f"{route.adapter}:{route.tag}:shadow:{shadow.number}:{shadow.lane}:{request_id}")
        < shadow.share
    ]


def _by_header(
    adapter: AdapterRecord, stable: VersionRecord, route: Route, headers: Mapping[str, str]
) -> Split | None:
    for split in route.splits:
        if split.header is None or not _differs(adapter, stable, split):
            continue
        name, value = split.header
        if headers.get(name) == value:
            return split
    return None


def _by_share(route: Route, point: float) -> Split | None:
    upto = 0.0
    for split in route.splits:
        upto += split.share
        if point < upto:
            return split
    return None


def _differs(adapter: AdapterRecord, stable: VersionRecord, split: Split) -> bool:
    """Whether the split can be served, and by something else than its reference is anyway."""
    version = adapter.versions.get(split.number)
    if version is None or quarantined(adapter, version) is not None:
        return False
    lane = split.lane or deployed_lane(adapter, version)
    if lane is None:
        return False
    if lane is Lane.HOT:
        servable = version.lane is Lane.HOT
    else:
        # Without its model a hot-capable version is answered hot, and that is no canary.
        servable = merged_model(adapter, version) is not None
    same = version.number == stable.number and (
        split.lane is None or lane is deployed_lane(adapter, stable)
    )
    return servable and not same


def _point(text: str) -> float:
    """A text's own place in [0, 1): 53 bits of its sha256, all that a float holds."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)
