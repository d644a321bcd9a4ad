"""What a command needs, whether a store or a server answers.

LocalBackend (a Catalog) and RemoteBackend (the admin API) implement it and pass the same
contract tests. Every method raises AdapterctlError only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from adapters.audit import AuditFilter, AuditRecord
from adapters.compositions import Part, Recipe
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
from server.cli.lane_backend import LaneBackend
from server.gateway.admin_models import Check, GcAnswer, StoreInfo, VerifyAnswer
from server.gateway.key_models import KeyMade, KeyRequest, KeyShown


def _ignore_step(text: str) -> None:
    pass


def _ignore_progress(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """Who is told how long work goes on: a new step, and how much of it is done."""

    step: Callable[[str], None] = _ignore_step
    progress: Callable[[int, int], None] = _ignore_progress


class Backend(LaneBackend, Protocol):
    """One store, here or behind a server."""

    def close(self) -> None:
        """Release connections; the backend is not used after."""

    def init(self) -> StoreInfo:
        """Make the store if it is not there."""

    def base_add(self, name: str, path: str, watch: Watch) -> BaseRecord:
        """Register the Hugging Face model directory `path` (on the backend's machine)."""

    def bases(self) -> Sequence[BaseRecord]:
        """All bases, by name."""

    def base(self, name: str) -> BaseRecord:
        """One base, or BaseNotFound."""

    def base_rm(self, name: str) -> None:
        """Forget a base; InUse while versions need it."""

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
        serving: ServingChoice = NO_CHOICE,
        allow_private_urls: bool = False,
        on_server: bool = False,
        approximate: Approximate | None = None,
    ) -> Registered:
        """Check an artifact and make it a version; with `dry_run` only check it.

        `on_server`: a path in `source` is the server's own, and nothing is sent.
        """

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
        """What the artifact is; registers nothing."""

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
        """Make versions of one base into a new version of `name`."""

    def adapters(self, wanted: AdapterFilter = EVERYTHING) -> Sequence[AdapterRecord]:
        """The adapters that match, by name."""

    def adapter(self, name: str) -> AdapterRecord:
        """One adapter, or AdapterNotFound."""

    def show(self, reference: str) -> tuple[VersionRecord, Manifest, Serving]:
        """The version a reference names, where it came from, and what it brings to requests."""

    def rm(self, reference: str, *, force: bool) -> Sequence[str]:
        """Remove what the reference names; returns what went."""

    def history(self, name: str) -> Sequence[TagChange]:
        """Every move of every tag of an adapter."""

    def tag(self, reference: str, version: str | None, *, default: bool) -> TagChange:
        """Point NAME:TAG at a version; None, only with `default`, leaves it where it is."""

    def delete_tag(self, reference: str) -> TagChange:
        """Remove NAME:TAG; the version stays."""

    def rollback(self, reference: str) -> TagChange:
        """Point NAME:TAG back at what it named before."""

    def gc(self, *, dry_run: bool, audit_older_than: datetime | None = None) -> GcAnswer:
        """Remove what no version needs and no engine holds, and old rows of the audit log."""

    def audit(self, wanted: AuditFilter) -> Sequence[AuditRecord]:
        """The audit log's newest rows that match, the oldest first."""

    def verify(self, watch: Watch) -> VerifyAnswer:
        """Hash everything again."""

    def submit_job(self, order: Order) -> JobRecord:
        """Order a job, or join the one that does this already; returns at once.

        Paths in the order are of the backend's machine.
        """

    def jobs(self) -> Sequence[JobRecord]:
        """All jobs, the oldest first."""

    def job(self, job_id: str) -> JobRecord:
        """One job by the beginning of its id, or NotFound."""

    def job_log(self, job_id: str, offset: int) -> JobLog:
        """What it printed, from byte `offset` on."""

    def cancel_job(self, job_id: str) -> JobRecord:
        """Ask it to end; Conflict if it has."""

    def resume_job(self, job_id: str) -> JobRecord:
        """Let it go on where it stopped; Conflict if it lives or has a result."""

    def rm_job(self, job_id: str) -> JobRecord:
        """Forget it, its log and its work; InUse while it lives."""

    def create_key(self, request: KeyRequest) -> KeyMade:
        """Make an API key; nobody can read its secret again."""

    def keys(self) -> Sequence[KeyShown]:
        """All API keys, revoked ones too, the oldest first."""

    def revoke_key(self, key_id: str) -> KeyShown:
        """End an API key, or NotFound; again is no error."""

    def engines(self) -> Sequence[dict[str, Any]] | None:
        """The engines of the running server; None when no server runs."""

    def doctor(self) -> Sequence[Check]:
        """What is right and wrong with environment, store and server."""
