"""Changes of deployments and routes as documents: what the admin API and the CLI on a store share.

The running engines are asked for before the change, so an answer shows what they did until then.
"""

from __future__ import annotations

from adapters.catalog import Catalog
from adapters.errors import UsageError
from adapters.lanes.models import Route
from adapters.lanes.parsing import parse_header
from adapters.references import parse_reference
from server.gateway.lane_models import (
    DeployAnswer,
    DeploymentShown,
    DeployRequest,
    RouteRequest,
    RouteShown,
)
from server.gateway.lane_states import Running, of_version


def deployed(
    catalog: Catalog,
    reference: str,
    request: DeployRequest,
    actor: str,
    running: Running,
    at_once: int | None = None,
) -> DeployAnswer:
    """Says where a version is served; the answer has the job that makes its model, if one does.

    `at_once`: how many jobs run at the same time; None: as the environment says.
    """
    version = catalog.show(reference)
    done = catalog.deploy(
        f"{version.adapter}:{version.label}",
        lane=request.lane,
        merge=request.merge,
        model=request.model,
        switch=request.switch,
        at_once=at_once,
        actor=actor,
    )
    return DeployAnswer(shown=of_version(catalog, version, done.deployment, running), job=done.job)


def undeployed(catalog: Catalog, reference: str, actor: str, running: Running) -> DeploymentShown:
    """Takes a version out of service."""
    version = catalog.show(reference)
    deployment = catalog.undeploy(f"{version.adapter}:{version.label}", actor=actor)
    return of_version(catalog, version, deployment, running)


def repinned(
    catalog: Catalog, reference: str, pin: bool, actor: str, running: Running
) -> DeploymentShown:
    """Pins a version, or no longer."""
    version = catalog.show(reference)
    deployment = catalog.pin(f"{version.adapter}:{version.label}", pin, actor=actor)
    return of_version(catalog, version, deployment, running)


def quarantined(
    catalog: Catalog, reference: str, reason: str | None, actor: str, running: Running
) -> DeploymentShown:
    """Keeps a version from every engine, or (`reason` None) lets it back."""
    version = catalog.show(reference)
    label = f"{version.adapter}:{version.label}"
    if reason is None:
        deployment = catalog.lift(label, actor=actor)
    else:
        deployment = catalog.quarantine(label, reason, actor=actor)
    return of_version(catalog, version, deployment, running)


def routed(catalog: Catalog, reference: str, request: RouteRequest, actor: str) -> Route:
    """Replaces the route of a reference."""
    return catalog.route(
        reference,
        splits=request.splits,
        shadows=request.shadows,
        sticky=request.sticky,
        header=None if request.header is None else parse_header(request.header),
        limits=request.limits,
        actor=actor,
    )


def route_shown(catalog: Catalog, reference: str) -> RouteShown:
    """What NAME:TAG means and how its traffic is split; raises TagNotFound and the like."""
    parsed = parse_reference(reference)
    if parsed.version is not None or parsed.digest is not None:
        raise UsageError(
            f"'{reference}' always means that version and is never routed: name NAME or NAME:TAG"
        )
    version = catalog.show(reference)
    adapter = catalog.adapter(version.adapter)
    tag = parsed.tag or adapter.default_tag
    return RouteShown(
        adapter=adapter.name, tag=tag, stable=version.number, route=adapter.routes.get(tag)
    )
