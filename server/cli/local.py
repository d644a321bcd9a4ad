"""LocalBackend: a store on this machine, with no server needed."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.audit import Act, AuditFilter, AuditRecord, Origin
from adapters.catalog import Catalog
from adapters.compositions import Part, Recipe
from adapters.errors import UsageError
from adapters.jobs.models import JobLog, JobRecord
from adapters.jobs.orders import Order
from adapters.models import (
    AdapterRecord,
    Approximate,
    BaseRecord,
    Inspection,
    Manifest,
    Registered,
    TagChange,
    VersionRecord,
)
from adapters.registry.filtering import EVERYTHING, AdapterFilter
from adapters.serving.document import NO_CHOICE, Serving, ServingChoice
from adapters.sources.uri import local_path, public_form
from adapters.store.layout import StoreLayout
from server.cli.backend import Watch
from server.cli.lane_local import LocalLanes, servers_on
from server.gateway.admin_models import Check, GcAnswer, StoreInfo, VerifyAnswer
from server.gateway.key_models import KeyMade, KeyRequest, KeyShown, make_key, shown_keys


class LocalBackend(LocalLanes):
    """The store at `root`, opened at the first use."""

    def __init__(
        self, root: Path, *, actor: str | None = None, origin: Origin | None = None
    ) -> None:
        """`actor` None: the user of this machine. `origin` is for the audit log; None: this
        command line."""
        self._root = root
        self._actor = actor if actor is not None else who()
        self._origin = origin or Origin("cli", self._actor)
        self._opened: Catalog | None = None

    @property
    def _catalog(self) -> Catalog:
        if self._opened is None:
            self._opened = Catalog.open(self._root)
            self._opened.origin = self._origin
        return self._opened

    @property
    def catalog(self) -> Catalog:
        """The store itself, for commands that work on its files."""
        return self._catalog

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def init(self) -> StoreInfo:
        created = not StoreLayout(self._root).marker.exists()
        with Catalog.init(self._root) as catalog:
            if created:
                catalog.note(Act("init", str(self._root), self._actor, self._origin))
        return StoreInfo(store=str(self._root), created=created)

    def base_add(self, name: str, path: str, watch: Watch) -> BaseRecord:
        watch.step(f"reading {path}")
        return self._catalog.base_add(name, local_path(path))

    def bases(self) -> Sequence[BaseRecord]:
        return self._catalog.bases()

    def base(self, name: str) -> BaseRecord:
        return self._catalog.base(name)

    def base_rm(self, name: str) -> None:
        self._catalog.base_rm(name)

    def register(
        self,
        source: str,
        *,
        name: str,
        base: str,
        tag: str | None,
        format: str | None,
        alpha: float | None = None,
        dry_run: bool,
        watch: Watch,
        serving: ServingChoice | dict[str, Any] = NO_CHOICE,
        allow_private_urls: bool = False,
        on_server: bool = False,
        approximate: Approximate | None = None,
    ) -> Registered:
        _no_server(on_server)
        return self._catalog.register(
            source,
            name=name,
            base=base,
            tag=tag,
            format=format,
            alpha=alpha,
            # The worker hands on what came over the wire.
            serving=ServingChoice.model_validate(serving),
            dry_run=dry_run,
            allow_private_urls=allow_private_urls,
            approximate=approximate,
            actor=self._actor,
            on_step=lambda step: _tell(watch, step),
            progress=watch.progress,
        )

    def inspect(
        self,
        source: str,
        *,
        format: str | None,
        alpha: float | None = None,
        base: str | None,
        watch: Watch,
        allow_private_urls: bool = False,
        on_server: bool = False,
        approximate: Approximate | None = None,
    ) -> Inspection:
        _no_server(on_server)
        watch.step(f"reading {public_form(source)}")
        return self._catalog.inspect(
            source,
            format=format,
            alpha=alpha,
            base=base,
            allow_private_urls=allow_private_urls,
            approximate=approximate,
            on_step=lambda step: _tell(watch, step),
            progress=watch.progress,
        )

    def compose(
        self,
        parts: Sequence[Part],
        recipe: Recipe,
        *,
        name: str | None,
        tag: str | None,
        dry_run: bool,
        watch: Watch,
    ) -> Registered:
        return self._catalog.compose(
            parts,
            recipe,
            name=name,
            tag=tag,
            dry_run=dry_run,
            actor=self._actor,
            on_step=lambda step: _tell(watch, step),
            progress=watch.progress,
        )

    def adapters(self, wanted: AdapterFilter = EVERYTHING) -> Sequence[AdapterRecord]:
        return self._catalog.adapters(wanted)

    def adapter(self, name: str) -> AdapterRecord:
        return self._catalog.adapter(name)

    def show(self, reference: str) -> tuple[VersionRecord, Manifest, Serving]:
        catalog = self._catalog
        return (
            catalog.show(reference),
            catalog.version_manifest(reference),
            catalog.serving(reference),
        )

    def rm(self, reference: str, *, force: bool) -> Sequence[str]:
        return self._catalog.rm(reference, force=force, actor=self._actor)

    def history(self, name: str) -> Sequence[TagChange]:
        return self._catalog.history(name)

    def tag(self, reference: str, version: str | None, *, default: bool) -> TagChange:
        return self._catalog.tag(reference, version, actor=self._actor, default=default)

    def delete_tag(self, reference: str) -> TagChange:
        return self._catalog.delete_tag(reference, actor=self._actor)

    def rollback(self, reference: str) -> TagChange:
        return self._catalog.rollback(reference, actor=self._actor)

    def gc(self, *, dry_run: bool, audit_older_than: datetime | None = None) -> GcAnswer:
        report = self._catalog.gc(dry_run=dry_run, audit_older_than=audit_older_than)
        return GcAnswer.of(report)

    def audit(self, wanted: AuditFilter) -> Sequence[AuditRecord]:
        return self._catalog.audit(wanted)

    def verify(self, watch: Watch) -> VerifyAnswer:
        watch.step("hashing every stored file")
        return VerifyAnswer.of(self._catalog.verify(watch.progress))

    def submit_job(self, order: Order) -> JobRecord:
        return self._catalog.submit_job(order, actor=self._actor)

    def jobs(self) -> Sequence[JobRecord]:
        return self._catalog.jobs()

    def job(self, job_id: str) -> JobRecord:
        return self._catalog.job(job_id)

    def job_log(self, job_id: str, offset: int) -> JobLog:
        return self._catalog.job_log(job_id, offset)

    def cancel_job(self, job_id: str) -> JobRecord:
        return self._catalog.cancel_job(job_id)

    def resume_job(self, job_id: str) -> JobRecord:
        return self._catalog.resume_job(job_id)

    def rm_job(self, job_id: str) -> JobRecord:
        return self._catalog.rm_job(job_id)

    def create_key(self, request: KeyRequest) -> KeyMade:
        return make_key(self._catalog, request)

    def keys(self) -> Sequence[KeyShown]:
        return shown_keys(self._catalog)

    def revoke_key(self, key_id: str) -> KeyShown:
        return KeyShown.of(self._catalog.revoke_key(key_id))

    def engines(self) -> Sequence[dict[str, Any]] | None:
        found = [server.engines() for server in servers_on(self._root)]
        return [engine for engines in found for engine in engines] if found else None

    def doctor(self) -> Sequence[Check]:
        from server.cli.doctor import examine

        return examine(self._root)


def _no_server(on_server: bool) -> None:
    if on_server:
        raise UsageError("--on-server is for --server: without one, every path is of this machine")


# What the catalog's steps mean to people; the others are over at once.
_STEPS = {
    "fetch": "downloading",
    "unpack": "unpacking",
    "read": "reading what it is",
    "write": "checking and converting every tensor",
    "compose": "putting the adapters together",
    "seal": "hashing what will be stored",
    "publish": "storing it",
}


def _tell(watch: Watch, step: str) -> None:
    if step in _STEPS:
        watch.step(_STEPS[step])


def who() -> str:
    """Who is at the keyboard, for the history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "local"  # a container's user without a name
