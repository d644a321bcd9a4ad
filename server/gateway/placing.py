"""Where a version may be answered: by the base's engine, by an engine of its own, by neither.

Pure: what is asked is one snapshot's records and what the running engine was started with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.errors import (
    AdapterctlError,
    AdapterNotLoadable,
    BaseMismatch,
    EngineUnavailable,
    NotDeployed,
)
from adapters.frozen import Lane
from adapters.lanes.models import Deployment
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from adapters.store.layout import StoreLayout, engine_name
from server.engine.engines import Engine

BASE = "base"
_MERGED_MODEL = "merged-model"
# Seconds until it is worth asking again whether a job has made a merged model.
_JOB_RETRY = 30


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A merged model that an engine of its own serves; `name` is `pirate:v1`, for people."""

    digest: str
    path: Path
    name: str
    base: str


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

        Raises, with what to do, where nothing here answers it: NotDeployed, EngineUnavailable
        while its merged model is being made, AdapterNotLoadable, BaseMismatch.
        """
        deployment = adapter.deployments.get(version.number)
        if deployment is not None and deployment.lane is None:
            raise _out_of_service(reference, version)
        if lane is None:
            lane = version.lane if deployment is None else deployment.lane
        model = self._model(version, deployment)
        own = deployment is not None and deployment.lane is Lane.MERGED
        try:
            shared = self._shared(reference, version)
        except AdapterctlError:
            if lane is Lane.MERGED and model is not None:
                return Ways(Lane.MERGED.value, None, model)
            if own and deployment is not None and model is None:
                raise _being_made(reference, version, deployment) from None
            raise
        if lane is Lane.MERGED and model is not None:
            return Ways(Lane.MERGED.value, shared, model)
        # Kept from when it was deployed merged, its model still helps while that engine runs.
        return Ways(Lane.HOT.value, shared, model)

    def _model(self, version: VersionRecord, deployment: Deployment | None) -> MergedModel | None:
        if deployment is None:
            return None
        digest = version.digest if version.method == _MERGED_MODEL else deployment.model
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


def _out_of_service(reference: str, version: VersionRecord) -> NotDeployed:
    label = f"{version.adapter}:{version.label}"
    return NotDeployed(
        f"'{reference}' is {label}, which was taken out of service: "
        f"`adapterctl deploy {label}` puts it back",
        param="model",
    )


def _not_deployed(reference: str, version: VersionRecord) -> NotDeployed:
    label = f"{version.adapter}:{version.label}"
    deploy = f"deploy it with `adapterctl deploy {label} --lane merged`"
    if version.method == _MERGED_MODEL:
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


def _being_made(
    reference: str, version: VersionRecord, deployment: Deployment
) -> EngineUnavailable:
    label = f"{version.adapter}:{version.label}"
    job = deployment.job
    how = (
        f"job {job} makes it (`adapterctl jobs show {job}` says how far it is)"
        if job is not None
        else f"`adapterctl deploy {label} --lane merged` makes it"
    )
    return EngineUnavailable(
        f"'{reference}' is {label}, deployed in the merged lane, and its merged model is not there "
        f"yet: {how}; try again in {_JOB_RETRY} s",
        retry_after=_JOB_RETRY,
    )
