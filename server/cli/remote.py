"""RemoteBackend: the admin API of a running server, over the standard library's HTTP client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter, ValidationError

from adapters.audit import AuditFilter, AuditRecord
from adapters.compositions import Part, Recipe
from adapters.errors import (
    AdapterctlError,
    InvalidReference,
    NotFound,
    ServerUnreachable,
    UsageError,
)
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
from adapters.references import check_name, parse_reference
from adapters.registry.filtering import EVERYTHING, AdapterFilter
from adapters.serving.document import NO_CHOICE, Serving, ServingChoice
from adapters.sources.checksum import split_checksum
from adapters.sources.policy import PRIVATE_VARIABLE, policy_from_environment
from adapters.sources.uri import completed_source, local_path, scheme_of
from adapters.tenants import no_key
from server.cli.backend import Watch
from server.cli.http import AdminConnection
from server.cli.lane_remote import RemoteLanes
from server.cli.packing import pack
from server.gateway.admin_models import (
    Check,
    ComposeRequest,
    GcAnswer,
    Removed,
    Shown,
    StoreInfo,
    Uploaded,
    VerifyAnswer,
)
from server.gateway.key_models import KeyMade, KeyRequest, KeyShown

T = TypeVar("T")


class RemoteBackend(RemoteLanes):
    """One server. `key` is sent as the bearer token; None sends none."""

    def __init__(self, url: str, key: str | None, *, certificate: Path | None = None) -> None:
        self._http = AdminConnection(url, key, certificate)

    def close(self) -> None:
        self._http.close()

    def init(self) -> StoreInfo:
        return self._get("/store", StoreInfo)

    def base_add(self, name: str, path: str, watch: Watch) -> BaseRecord:
        body = {"name": name, "path": _absolute(path)}
        return self._work("/bases", body, BaseRecord, watch)

    def bases(self) -> list[BaseRecord]:
        return self._get("/bases", list[BaseRecord])

    def base(self, name: str) -> BaseRecord:
        return self._get(f"/bases/{_segment(check_name(name))}", BaseRecord)

    def base_rm(self, name: str) -> None:
        self._call("DELETE", f"/bases/{_segment(check_name(name))}", Removed)

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
        _servers_choice(allow_private_urls)
        if _is_sent(source, on_server):
            # Before megabytes are sent for nothing.
            self.base(base)
        body = {
            "name": name,
            "base": base,
            "tag": tag,
            "format": format,
            "alpha": alpha,
            "serving": serving.model_dump(mode="json"),
            "dry_run": dry_run,
            "approximate": approximate,
        }
        with self._reachable(source, on_server, watch) as found:
            return self._work("/adapters", {"source": found, **body}, Registered, watch)

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
        _servers_choice(allow_private_urls)
        body = {"format": format, "alpha": alpha, "base": base, "approximate": approximate}
        with self._reachable(source, on_server, watch) as found:
            return self._work("/inspect", {"source": found, **body}, Inspection, watch)

    @contextmanager
    def _reachable(self, source: str, on_server: bool, watch: Watch) -> Iterator[str]:
        """`source` as the server can read it: what lies on this machine is sent, for as long."""
        if not _is_sent(source, on_server):
            yield completed_source(source)
            return
        rest, sha256 = split_checksum(source)
        packed = pack(local_path(rest), policy_from_environment())
        if sha256 is not None and not packed.single:
            raise UsageError(f"{rest} is a directory: a checksum is of one file")
        watch.step(f"sending {packed.name}")
        path = f"/uploads?name={_segment(packed.name)}"
        answer = self._http.upload(path, packed.chunks(), packed.size, watch)
        sent = self._read(Uploaded, answer)
        try:
            yield f"upload:{sent.upload}{'' if sha256 is None else f'#sha256={sha256}'}"
        finally:
            # Gone already if it was registered; of a server that is gone too, gc removes it.
            with suppress(AdapterctlError):
                self._http.renew()
                self._call("DELETE", f"/uploads/{sent.upload}", Removed)

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
        order = ComposeRequest(
            parts=tuple(parts), recipe=recipe, name=name, tag=tag, dry_run=dry_run
        )
        return self._work("/compositions", order.model_dump(mode="json"), Registered, watch)

    def adapters(self, wanted: AdapterFilter = EVERYTHING) -> list[AdapterRecord]:
        query = urlencode(wanted.model_dump(mode="json", exclude_none=True))
        return self._get(f"/adapters?{query}" if query else "/adapters", list[AdapterRecord])

    def adapter(self, name: str) -> AdapterRecord:
        return self._get(f"/adapters/{_segment(check_name(name))}", AdapterRecord)

    def show(self, reference: str) -> tuple[VersionRecord, Manifest, Serving]:
        shown = self._get(f"/references/{_reference(reference)}", Shown)
        return shown.version, shown.manifest, shown.serving

    def rm(self, reference: str, *, force: bool) -> Sequence[str]:
        path = f"/references/{_reference(reference)}?force={str(force).lower()}"
        return self._call("DELETE", path, Removed).removed

    def history(self, name: str) -> list[TagChange]:
        return self._get(f"/adapters/{_segment(check_name(name))}/history", list[TagChange])

    def tag(self, reference: str, version: str | None, *, default: bool) -> TagChange:
        body = {"version": version, "default": default}
        return self._call("PUT", _tag_path(reference), TagChange, body)

    def delete_tag(self, reference: str) -> TagChange:
        return self._call("DELETE", _tag_path(reference), TagChange)

    def rollback(self, reference: str) -> TagChange:
        return self._call("POST", f"{_tag_path(reference)}/rollback", TagChange)

    def gc(self, *, dry_run: bool, audit_older_than: datetime | None = None) -> GcAnswer:
        older = None if audit_older_than is None else audit_older_than.isoformat()
        return self._call("POST", "/gc", GcAnswer, {"dry_run": dry_run, "audit_older_than": older})

    def audit(self, wanted: AuditFilter) -> list[AuditRecord]:
        query = urlencode(wanted.model_dump(mode="json", exclude_none=True))
        return self._get(f"/audit?{query}", list[AuditRecord])

    def verify(self, watch: Watch) -> VerifyAnswer:
        return self._work("/verify", {}, VerifyAnswer, watch)

    def submit_job(self, order: Order) -> JobRecord:
        return self._call("POST", "/jobs", JobRecord, order.model_dump(mode="json"))

    def jobs(self) -> list[JobRecord]:
        return self._get("/jobs", list[JobRecord])

    def job(self, job_id: str) -> JobRecord:
        return self._get(_job_path(job_id), JobRecord)

    def job_log(self, job_id: str, offset: int) -> JobLog:
        return self._get(f"{_job_path(job_id)}/log?offset={offset}", JobLog)

    def cancel_job(self, job_id: str) -> JobRecord:
        return self._call("POST", f"{_job_path(job_id)}/cancel", JobRecord)

    def resume_job(self, job_id: str) -> JobRecord:
        return self._call("POST", f"{_job_path(job_id)}/resume", JobRecord)

    def rm_job(self, job_id: str) -> JobRecord:
        return self._call("DELETE", _job_path(job_id), JobRecord)

    def create_key(self, request: KeyRequest) -> KeyMade:
        return self._call("POST", "/keys", KeyMade, request.model_dump(mode="json"))

    def keys(self) -> list[KeyShown]:
        return self._get("/keys", list[KeyShown])

    def revoke_key(self, key_id: str) -> KeyShown:
        if not key_id.isalnum():
            raise no_key(key_id)  # An empty or odd one must not become another route.
        return self._call("DELETE", f"/keys/{_segment(key_id)}", KeyShown)

    def engines(self) -> list[dict[str, Any]]:
        return self._get("/engines", list[dict[str, Any]])

    def doctor(self) -> list[Check]:
        return self._get("/doctor", list[Check])

    def _get(self, path: str, kind: type[T]) -> T:
        return self._call("GET", path, kind)

    def _call(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        return self._read(kind, self._http.call(method, path, body))

    def _work(self, path: str, body: Any, kind: type[T], watch: Watch) -> T:
        return self._read(kind, self._http.work(path, body, watch))

    def _read(self, kind: type[T], document: Any) -> T:
        try:
            # By way of JSON: the strict reading of dates, tuples and enums from text.
            return TypeAdapter(kind).validate_json(json.dumps(document))
        except ValidationError as error:
            raise ServerUnreachable(
                f"{self._http.url} answers in another shape than this adapterctl knows "
                f"({error.error_count()} differences): use the same version on both sides"
            ) from None


def _is_sent(source: str, on_server: bool) -> bool:
    return scheme_of(source) is None and not on_server


def _absolute(path: str) -> str:
    # What the user sees from here; the server has another working directory.
    return str(local_path(path))


def _servers_choice(allow_private_urls: bool) -> None:
    if allow_private_urls:
        raise UsageError(
            "--allow-private-urls is not for the client to say with --server: set "
            f"{PRIVATE_VARIABLE}=1 where the server is started"
        )


def _segment(text: str) -> str:
    return quote(text, safe="")


def _reference(text: str) -> str:
    # Parsed here too: an empty or odd one must not become another route.
    return _segment(str(parse_reference(text)))


def _tag_path(reference: str) -> str:
    parsed = parse_reference(reference)
    if parsed.tag is None:
        raise InvalidReference(f"'{reference}' names no tag: write NAME:TAG, for example bot:prod")
    return f"/adapters/{_segment(parsed.name)}/tags/{_segment(parsed.tag)}"


def _job_path(job_id: str) -> str:
    if not job_id.isalnum():
        raise NotFound(f"there is no job '{job_id}': `adapterctl jobs` lists what there is")
    return f"/jobs/{_segment(job_id)}"
