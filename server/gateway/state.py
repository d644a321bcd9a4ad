"""What every route of the gateway works with, made once and passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters.errors import AdapterctlError, AdapterNotLoadable, BaseMismatch, NotDeployed
from adapters.frozen import Lane
from adapters.models import BaseRecord, VersionRecord
from adapters.registry.snapshot import Resolved, Snapshot
from adapters.serving.stored import ServingDocuments
from adapters.store.layout import engine_name
from server.engine.engines import Engine
from server.gateway.compositions import Compositions
from server.gateway.metrics import GatewayMetrics
from server.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class GatewayState:
    """The serving base and engine, the registry, sums, metrics, and what versions bring."""

    settings: ServeSettings
    base: BaseRecord
    engine: Engine
    snapshot: Callable[[], Snapshot]
    compositions: Compositions
    metrics: GatewayMetrics
    documents: ServingDocuments
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What one request goes to: the engine's name for it, and how to speak of it."""

    reference: str
    engine_model: str
    adapter: str
    lane: str
    digest: str
    version: str


def target_of(state: GatewayState, resolved: Resolved) -> Target:
    """The engine's model for a resolved reference.

    Raises where the reference exists but this server cannot answer it, with what to do.
    """
    version = resolved.version
    if resolved.base.digest != state.base.digest:
        raise _other_base(state, resolved)
    if version is None:
        return Target(
            reference=resolved.reference,
            engine_model=state.base.name,
            adapter=state.base.name,
            lane="base",
            digest=state.base.digest,
            version=state.base.name,
        )
    _check_loadable(state, resolved)
    return Target(
        reference=resolved.reference,
        engine_model=engine_name(version.digest),
        adapter=version.adapter,
        lane=version.lane.value,
        digest=version.digest,
        version=f"{version.adapter}:{version.label}",
    )


def _check_loadable(state: GatewayState, resolved: Resolved) -> None:
    version = resolved.version
    assert version is not None
    check_deployed(resolved.reference, version)
    capacity, rank = state.engine.capacity, version.rank or 0
    if capacity is not None and rank > capacity.max_rank:
        raise AdapterNotLoadable(
            f"'{resolved.reference}' has rank {rank}, the running engine holds ranks up to "
            f"{capacity.max_rank}: restart the server, it sizes the engine by the registry",
            param="model",
        )


def check_deployed(reference: str, version: VersionRecord) -> None:
    """Raises NotDeployed for a version that the base's engine can never answer."""
    if version.lane is Lane.HOT:
        return
    if version.method == "merged-model":
        raise NotDeployed(
            f"'{reference}' is {version.adapter}:{version.label}, a merged model, which needs an "
            "engine of its own, and this server starts none: add its directory (`adapterctl show "
            f"{version.adapter}:{version.label}`) with `adapterctl base add NAME DIR` and serve it "
            "with `adapterctl serve --base NAME`",
            param="model",
        )
    why = version.reason or "it cannot be swapped in per request"
    raise NotDeployed(
        f"'{reference}' is {version.adapter}:{version.label}, which only an engine of its own can "
        f"serve (lane {version.lane}: {why}), and this server starts none: ask for a version of "
        "the hot lane, or merge it with `adapterctl merge` and serve the result as a base",
        param="model",
    )


def _other_base(state: GatewayState, resolved: Resolved) -> AdapterctlError:
    if resolved.version is not None and resolved.version.base == state.base.name:
        return BaseMismatch(
            f"'{resolved.reference}' was registered against another content of base "
            f"'{state.base.name}' than this server runs: register it again",
            param="model",
        )
    runs = f"'{resolved.reference}' needs base '{resolved.base.name}'; this server runs "
    runs += f"'{state.base.name}'"
    if resolved.version is not None and state.quantized:
        runs += (
            ", which is quantized and so another base, even if made of the same model: register "
            f"the adapter for it, too (`--base {state.base.name}`)"
        )
    return AdapterNotLoadable(runs, param="model")
