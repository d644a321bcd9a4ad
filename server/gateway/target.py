"""What one request goes to: one version, chosen once, in the snapshot that resolved its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.lanes.models import Route
from adapters.models import VersionRecord
from adapters.registry.snapshot import Resolved
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
            self.document.get("safety_identifier"),
            self.document.get("user"),
            metadata.get("user_id") if isinstance(metadata, dict) else None,
            self.headers.get("x-user-id"),
        )
        return next((one for one in said if isinstance(one, str) and one), None)


@dataclass(frozen=True, slots=True)
class Target:
    """One version, or the base (`number` None), and where it may be answered."""

    reference: str
    adapter: str
    number: int | None
    digest: str
    # `support-bot:v3`, or the base's name.
    version: str
    ways: Ways
    role: Role = Role.PLAIN
    route: Route | None = None

    @property
    def watched(self) -> bool:
        """Whether somebody judges its answers."""
        return self.route is not None and self.route.limits is not None


def target_of(placing: Placing, resolved: Resolved, asked: Asked) -> Target:
    """The one thing that answers; raises where nothing on this server does, with what to do."""
    version, adapter = resolved.version, resolved.adapter
    if version is None or adapter is None:
        ways = placing.of_base(resolved.reference, resolved.base)
        base = resolved.base
        return Target(resolved.reference, base.name, None, base.digest, base.name, ways)
    return _target(
        resolved.reference,
        version,
        placing.of_version(resolved.reference, adapter, version, None),
        Role.PLAIN,
        None,
    )


def _target(
    reference: str, version: VersionRecord, ways: Ways, role: Role, route: Route | None
) -> Target:
    return Target(
        reference=reference,
        adapter=version.adapter,
        number=version.number,
        digest=version.digest,
        version=f"{version.adapter}:{version.label}",
        ways=ways,
        role=role,
        route=route,
    )
