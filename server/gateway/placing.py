"""Where a version may be answered: by the base's engine, by an engine of its own, by neither.

Pure: what is asked is one snapshot's records and what the running engine was started with.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from adapters.errors import (
    AdapterctlError,
    AdapterNotLoadable,
    BaseMismatch,
    EngineUnavailable,
    NotDeployed,
    Quarantined,
)
from adapters.frozen import Lane
from adapters.lanes.choosing import deployed_lane, merged_model, quarantined
from adapters.lanes.models import MERGED_MODEL, Deployment
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from adapters.store.layout import StoreLayout, engine_name
from server.engine.engines import Engine
from server.engine.merged import MergedModel

BASE = "base"
# Seconds until it is worth asking again whether a job has made a merged model.
_JOB_RETRY = 30


@dataclass(frozen=True, slots=True)
class Ways:
    """Where one request may be answered; at least one of `shared` and `merged` is there.

    `lane` is where it belongs: base, hot or merged. `shared` is the base engine's name for it;
    `merged` the model that an engine of its own runs, or would.
    """

    lane: str
    shared: str | None
    merged: MergedModel | None = None

    @property
    def lane_of_shared(self) -> str:
        """What the base's engine answers it as."""
        return BASE if self.lane == BASE else Lane.HOT.value


class Placing:
    """Which ways there are on this server: it runs one base, and any number of merged models."""

    def __init__(self, base: BaseRecord, engine: Engine, layout: StoreLayout, *, quantized: bool):
        # Why engines get a digest no more, while the registry does not say so yet.
        self.kept_back: dict[str, str] = {}
        self._base = base
        self._engine = engine
        self._layout = layout
        self._quantized = quantized

    def of_base(self, reference: str, base: BaseRecord) -> Ways:
        """The base itself; raises AdapterNotLoadable for one that this server does not run."""
        if base.digest != self._base.digest:
            raise self._other_base(reference, base.name, None)
        return Ways(BASE, self._base.name)

    def of_version(
        self, reference: str, adapter: AdapterRecord, version: VersionRecord, lane: Lane | None
    ) -> Ways:
        """A version in `lane`; None: where it is deployed.

        Raises, with what to do, where nothing here answers it: NotDeployed, Quarantined,
        EngineUnavailable while its merged model is being made, AdapterNotLoadable, BaseMismatch.
        """
        why = quarantined(adapter, version) or self.kept_back.get(version.digest)
        if why is not None:
            raise _quarantined(reference, version, why)
        lane = lane or deployed_lane(adapter, version)
        if lane is None:
            raise _not_deployed(reference, version)
        model = self.merged_model(adapter, version)
        if lane is Lane.HOT:
            # Kept from when it was deployed merged, its model helps while that engine still runs.
            return Ways(Lane.HOT.value, self._shared(reference, version), model)
        shared = None
        with contextlib.suppress(AdapterctlError):
            shared = self._shared(reference, version)
        if model is not None:
            return Ways(Lane.MERGED.value, shared, model)
        if shared is not None:
            return Ways(Lane.HOT.value, shared)
        raise _no_model(reference, version, adapter.deployments.get(version.number))

    def merged_model(self, adapter: AdapterRecord, version: VersionRecord) -> MergedModel | None:
        """The model that can serve a version in the merged lane; None: there is none yet."""
        digest = merged_model(adapter, version)
        if digest is None:
            return None
        name = f"{version.adapter}:{version.label}"
        return MergedModel(digest, self._layout.blob(digest), name, version.base)

    def _shared(self, reference: str, version: VersionRecord) -> str:
        """The base engine's name for a version; raises where that engine cannot answer it."""
        if version.lane is not Lane.HOT:
            raise _not_deployed(reference, version)
        if version.base_digest != self._base.digest:
            raise self._other_base(reference, version.base, version)
        capacity, rank = self._engine.capacity, version.rank or 0
        if capacity is not None and rank > capacity.max_rank:
            raise AdapterNotLoadable(
                f"'{reference}' has rank {rank}, the running engine holds ranks up to "
                f"{capacity.max_rank}: restart the server, it sizes the engine by the registry",
                param="model",
            )
        return engine_name(version.digest)

    def _other_base(
        self, reference: str, base: str, version: VersionRecord | None
    ) -> AdapterctlError:
        own = self._base.name
        if version is not None and base == own:
            return BaseMismatch(
                f"'{reference}' was registered against another content of base '{own}' than this "
                "server runs: register it again",
                param="model",
            )
        message = f"'{reference}' needs base '{base}'; this server runs '{own}'"
        if version is not None and self._quantized:
            message += (
                ", which is quantized and so another base, even if made of the same model: "
                f"register the adapter for it, too (`--base {own}`)"
            )
        return AdapterNotLoadable(message, param="model")


def _quarantined(reference: str, version: VersionRecord, why: str) -> Quarantined:
    label = f"{version.adapter}:{version.label}"
    return Quarantined(
        f"'{reference}' is {label}, which is quarantined: {why}; ask for another version, or have "
        f"it lifted with `adapterctl quarantine {label} --lift`",
        param="model",
    )


def _not_deployed(reference: str, version: VersionRecord) -> NotDeployed:
    label = f"{version.adapter}:{version.label}"
    if version.lane is Lane.HOT:
        return NotDeployed(
            f"'{reference}' is {label}, which was taken out of service: "
            f"`adapterctl deploy {label} --lane hot` puts it back",
            param="model",
        )
    deploy = f"deploy it with `adapterctl deploy {label} --lane merged`"
    if version.method == MERGED_MODEL:
        return NotDeployed(
            f"'{reference}' is {label}, a merged model, which needs an engine of its own: {deploy}",
            param="model",
        )
    why = version.reason or "it cannot be swapped in per request"
    return NotDeployed(
        f"'{reference}' is {label}, which only an engine of its own can serve (lane "
        f"{version.lane}: {why}): {deploy}, or ask for a version of the hot lane",
        param="model",
    )


def _no_model(
    reference: str, version: VersionRecord, deployment: Deployment | None
) -> AdapterctlError:
    label = f"{version.adapter}:{version.label}"
    what = f"'{reference}' is {label}, deployed in the merged lane, and its merged model is not"
    job = None if deployment is None else deployment.job
    if deployment is None or job is None or deployment.problem is not None:
        why = "" if deployment is None or job is None else f" (job {job}: {deployment.problem})"
        return NotDeployed(
            f"{what} made{why}: `adapterctl deploy {label} --lane merged` makes it",
            param="model",
        )
    return EngineUnavailable(
        f"{what} there yet: job {job} makes it (`adapterctl jobs show {job}` says how far it is); "
        f"try again in {_JOB_RETRY} s",
        retry_after=_JOB_RETRY,
    )
