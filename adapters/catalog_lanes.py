"""The part of the catalog that is about lanes: deployments and routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapters.audit import audited
from adapters.catalog_quarantine import QuarantineCatalog
from adapters.errors import NotDeployed, NotFound, UsageError
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.lanes.models import (
    MERGED_MODEL,
    Deployed,
    Deployment,
    LaneChange,
    Limits,
    Route,
    Shadow,
    Split,
    Sticky,
)
from adapters.models import AdapterRecord, Manifest, TagChange, VersionRecord
from adapters.references import Reference, check_name, parse_reference
from adapters.registry import lane_reader, reader
from adapters.registry.snapshot import select_version
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.registry.lanes import Kind
    from adapters.registry.writer import RegistryWriter

WATCHED = Limits()


class LaneCatalog(QuarantineCatalog):
    """Where the versions of one store are served; `Catalog` is one of these.

    A change is one transaction, so requests see the state before or after it. What is so already
    leaves no line in the history.
    """

    layout: StoreLayout

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    def show(self, ref: str) -> VersionRecord:
        raise NotImplementedError

    def adapter(self, name: str) -> AdapterRecord:
        raise NotImplementedError

    def version_manifest(self, ref: str) -> Manifest:
        raise NotImplementedError

    def history(self, name: str) -> list[TagChange]:
        raise NotImplementedError

    def job(self, job_id: str) -> JobRecord:
        raise NotImplementedError

    def submit_job(
        self,
        order: MergeOrder | EvaluateOrder,
        *,
        actor: str = "local",
        at_once: int | None = None,
    ) -> JobRecord:
        raise NotImplementedError

    # --- deployments -------------------------------------------------------------------------

    def deployments(self) -> list[Deployment]:
        """What somebody has said of how versions are served, by adapter and number."""
        with reader.reading(self.layout.root) as connection:
            return lane_reader.load_deployments(connection)

    @audited("deploy", "ref")
    def deploy(
        self,
        ref: str,
        *,
        lane: Lane | None = None,
        merge: MergeOrder | None = None,
        model: str | None = None,
        switch: bool = True,
        actor: str = "local",
        at_once: int | None = None,
    ) -> Deployed:
        """Serves the version that `ref` means now in a lane; None is its own one.

        The merged lane needs a model: the one named by `model`, or one that was made of exactly
        this version with the options of `merge` (its references count for nothing), or what a job
        is ordered to make; until the job has succeeded the deployment has none, or the one it had.
        Without both it is served as it was last, else by a merge that is not quantized. With
        `switch` false the lane stays and only the model is seen to. `at_once` as in submit_job.

        Raises NotFound errors, UsageError, NotHotServable.
        """
        from adapters.lanes.planning import wanted_lane

        version = self.show(ref)
        if not switch and lane is Lane.HOT:
            raise UsageError("the hot lane needs nothing made: leave --no-switch out")
        wanted = Lane.MERGED if not switch and lane is None else lane
        wanted = wanted_lane(version, wanted, merge, model)
        if wanted is Lane.HOT:
            return Deployed(deployment=self._change(version, {"lane": wanted}, "deploy", actor))
        moved: dict[str, Any] = {"lane": wanted} if switch else {}
        if version.method == MERGED_MODEL:
            own = {"model": version.digest, "requantize": self._requantize(_label(version))}
            return Deployed(deployment=self._change(version, moved | own, "deploy", actor))
        if model is not None:
            chosen = {**self._named_model(version, model), "job": None, "problem": None}
            return Deployed(deployment=self._change(version, moved | chosen, "deploy", actor))
        return self._deploy_merged(version, moved, merge, actor, at_once)

    @audited("undeploy", "ref")
    def undeploy(self, ref: str, *, actor: str = "local") -> Deployment:
        """Takes the version that `ref` means now out of service; its model is kept."""
        changes = {"lane": None, "pinned": False}
        return self._change(self.show(ref), changes, "undeploy", actor)

    @audited("pin", "ref")
    def pin(self, ref: str, pinned: bool, *, actor: str = "local") -> Deployment:
        """Keeps the version loaded, or no longer; raises NotDeployed for one out of service."""
        from adapters.registry.lanes import adapter_now, change_deployment, deployment_now

        version = self.show(ref)
        with self._writer().transaction() as connection:
            adapter = adapter_now(connection, version.adapter)
            version = select_version(adapter, Reference(adapter.name, version=version.number))
            old = deployment_now(adapter, version)
            if pinned and old.lane is None:
                raise NotDeployed(
                    f"'{_label(version)}' is not in service: deploy it first with `adapterctl "
                    f"deploy {_label(version)}`"
                )
            reason = "pin" if pinned else "unpin"
            changes = {"pinned": pinned}
            return change_deployment(
                connection, old, changes, kind="pin", actor=actor, reason=reason
            )

    # --- routes ------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """All routes, by adapter and tag."""
        with reader.reading(self.layout.root) as connection:
            return lane_reader.load_routes(connection)

    @audited("route", "ref")
    def route(
        self,
        ref: str,
        *,
        splits: Sequence[str] | Sequence[Split] = (),
        shadows: Sequence[str] | Sequence[Shadow] = (),
        sticky: Sticky = "request",
        header: tuple[str, str] | None = None,
        limits: Limits | None = WATCHED,
        actor: str = "local",
    ) -> Route:
        """Says where NAME:TAG's requests go besides the version it means, in place of what was
        said before.

        Targets are `v4=5%`, `beta@merged=2.5%`, `@merged=10%`, each of which must be in service;
        with `header` (name, value) there is one split, which needs no share. `limits` None: nobody
        watches. Raises UsageError, NotFound errors, Conflict.
        """
        from adapters.lanes.planning import planned_shadows, planned_splits
        from adapters.registry.lanes import adapter_now, new_route, put_route, same_route

        parsed = _routed(ref)
        if not splits and not shadows:
            raise UsageError(f"what should '{ref}' be routed to? Write v4=5% or --shadow v6=10%")
        with self._writer().transaction() as connection:
            adapter = adapter_now(connection, parsed.name)
            tag = parsed.tag or adapter.default_tag
            stable = select_version(adapter, Reference(adapter.name, tag=tag))
            parts = planned_splits(adapter, stable, splits, header)
            copies = planned_shadows(adapter, stable, shadows)
            watched = limits if parts else None
            new = new_route(adapter.name, tag, parts, copies, sticky, watched, actor)
            old = adapter.routes.get(tag)
            if old is not None and same_route(old, new):
                return old
            written = put_route(connection, old, new, actor=actor, reason="route")
        assert written is not None, "it has a target"
        return written

    @audited("route.clear", "ref")
    def unroute(self, ref: str, *, actor: str = "local", reason: str = "cleared") -> Route | None:
        """Sends all requests for NAME:TAG to the version it means; what was said before, or None.

        Raises AdapterNotFound, TagNotFound.
        """
        from adapters.registry.lanes import adapter_now, put_route

        parsed = _routed(ref)
        with self._writer().transaction() as connection:
            adapter = adapter_now(connection, parsed.name)
            tag = parsed.tag or adapter.default_tag
            select_version(adapter, Reference(adapter.name, tag=tag))
            old = adapter.routes.get(tag)
            if old is not None:
                new = old.model_copy(update={"splits": (), "shadows": ()})
                put_route(connection, old, new, actor=actor, reason=reason)
            return old

    @audited("route.rollback", lambda given: f"{given['adapter']}:{given['tag']}")
    def roll_back_route(
        self,
        adapter: str,
        tag: str,
        route_id: int,
        number: int,
        lane: Lane | None,
        *,
        reason: str,
        actor: str = "canary",
    ) -> bool:
        """Takes a split back; False if the route is another one by now, or has no such split.

        `lane` is the split's, or where it was answered if the split has none.
        """
        from adapters.registry.lanes import adapter_now, put_route

        with self._writer().transaction() as connection:
            try:
                old = adapter_now(connection, adapter).routes.get(tag)
            except NotFound:
                return False
            if old is None or old.id != route_id:
                return False
            candidates = [split for split in old.splits if split.number == number]
            found = next((s for s in candidates if s.lane is lane), None) or next(
                (s for s in candidates if s.lane is None), None
            )
            if found is None:
                return False
            left = tuple(split for split in old.splits if split is not found)
            new = old.model_copy(update={"splits": left})
            put_route(connection, old, new, kind="rollback", actor=actor, reason=reason)
            return True

    def lane_history(self, name: str) -> list[LaneChange]:
        """Every change of an adapter's deployments and routes, the oldest first; survives its
        removal. Raises AdapterNotFound for a name that never was."""
        check_name(name)
        with reader.reading(self.layout.root) as connection:
            changes = lane_reader.load_lane_history(connection, name)
        if not changes:
            self.history(name)
        return changes

    # --- inside ------------------------------------------------------------------------------

    def _change(
        self, version: VersionRecord, changes: dict[str, Any], kind: Kind, actor: str
    ) -> Deployment:
        from adapters.registry.lanes import adapter_now, change_deployment, deployment_now

        with self._writer().transaction() as connection:
            adapter = adapter_now(connection, version.adapter)
            # Once more: it may have been removed meanwhile.
            version = select_version(adapter, Reference(adapter.name, version=version.number))
            old = deployment_now(adapter, version)
            return change_deployment(connection, old, changes, kind=kind, actor=actor, reason=kind)

    def _deploy_merged(
        self,
        version: VersionRecord,
        moved: dict[str, Any],
        merge: MergeOrder | None,
        actor: str,
        at_once: int | None,
    ) -> Deployed:
        """In the merged lane, by a model that is there or one that a job makes."""
        known = self.adapter(version.adapter).deployments.get(version.number)
        kept = None if known is None else known.model
        if merge is None and kept is not None and self._usable(kept):
            return Deployed(deployment=self._change(version, moved, "deploy", actor))
        order = self._order(version, merge, known)
        if (found := self._attach(version, moved, order, None, actor)) is not None:
            return Deployed(deployment=found)
        job = self.submit_job(order, actor=actor, at_once=at_once)
        # The job may have come to its end before this: then its model is found now.
        found = self._attach(version, moved, order, job, actor)
        assert found is not None, "a job is attached in any case"
        return Deployed(deployment=found, job=None if found.job != job.id else job)

    def _attach(
        self,
        version: VersionRecord,
        moved: dict[str, Any],
        order: MergeOrder,
        job: JobRecord | None,
        actor: str,
    ) -> Deployment | None:
        """Sets the model if it is there, else the job that makes it; None without both."""
        from adapters.registry.jobs import problem_of
        from adapters.registry.lanes import adapter_now, change_deployment, deployment_now
        from adapters.registry.made_models import find_model

        with self._writer().transaction() as connection:
            adapter = adapter_now(connection, version.adapter)
            version = select_version(adapter, Reference(adapter.name, version=version.number))
            old = deployment_now(adapter, version)
            model = find_model(
                connection, version.digest, order, preferred=old.model, usable=self._usable
            )
            changes: dict[str, Any] = {"requantize": order.requantize}
            if model is not None:
                kept = old.job if model == old.model else None
                changes |= {"model": model, "job": kept, "problem": None}
            elif job is None:
                return None
            else:
                # The job may have failed by now, before it could tell.
                pending = {"job": job.id, "problem": problem_of(connection, job.id)}
                # What serves already goes on until the other model is there.
                serves = old.lane is Lane.MERGED and old.model is not None
                changes = pending if serves else changes | {"model": None} | pending
            return change_deployment(
                connection, old, moved | changes, kind="deploy", actor=actor, reason="deploy"
            )

    def _order(
        self, version: VersionRecord, merge: MergeOrder | None, known: Deployment | None
    ) -> MergeOrder:
        """What is to be merged; without options as it was last tried."""
        if merge is None and known is not None and known.job is not None:
            try:
                before = self.job(known.job).order
            except NotFound:
                before = None
            merge = before if isinstance(before, MergeOrder) else None
        if merge is None:
            return MergeOrder(reference=_label(version))
        return merge.model_copy(update={"reference": _label(version)})

    def _named_model(self, version: VersionRecord, ref: str) -> dict[str, Any]:
        """The fields of a deployment that is served by the merged model `ref`."""
        model = self.show(ref)
        label = _label(model)
        if model.method != MERGED_MODEL:
            raise UsageError(f"'{label}' is no merged model: `adapterctl merge` makes one")
        origins = self.version_manifest(label).merged_from
        if len(origins) < 2 or origins[1].digest != version.digest:
            made_of = origins[1].reference if len(origins) > 1 else "something unknown"
            raise UsageError(
                f"'{label}' was made of {made_of}, not of {_label(version)}: name a model of this "
                "version, or leave --model out"
            )
        return {"model": model.digest, "requantize": self._requantize(label)}

    def _requantize(self, label: str) -> str:
        merged = self.version_manifest(label).merged
        return "none" if merged is None else merged.requantize

    def _usable(self, digest: str) -> bool:
        return self.layout.blob(digest).is_dir()


def _label(version: VersionRecord) -> str:
    return f"{version.adapter}:{version.label}"


def _routed(ref: str) -> Reference:
    parsed = parse_reference(ref)
    if parsed.version is not None or parsed.digest is not None:
        raise UsageError(
            f"'{ref}' always means that version and is never routed: name NAME or NAME:TAG"
        )
    return parsed
