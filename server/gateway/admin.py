"""`/admin/v1`: what the CLI does on a store, over HTTP.

A reference stands in a path as one segment, `NAME:TAG` or `NAME@sha256:…`: names, tags and digests
hold no slash, and colon and at-sign are plain characters of a path (RFC 3986, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from adapters.audit import AuditFilter, AuditRecord
from adapters.catalog import Catalog
from adapters.models import AdapterRecord, BaseRecord, Inspection, Registered, TagChange
from adapters.registry.filtering import AdapterFilter
from server.gateway.admin_audit import AdminAudit
from server.gateway.admin_jobs import JobRunner
from server.gateway.admin_keys import add_key_routes
from server.gateway.admin_lanes import LaneOperations, add_lane_routes
from server.gateway.admin_long_jobs import add_job_routes
from server.gateway.admin_models import (
    BaseAdd,
    Check,
    ComposeRequest,
    GcAnswer,
    GcRequest,
    InspectRequest,
    RegisterRequest,
    Removed,
    Shown,
    StoreInfo,
    TagRequest,
    Uploaded,
    VerifyAnswer,
)
from server.gateway.admin_route import (
    EVENTS,
    actor_of,
    answer_with_job,
    guarded_route,
    streaming_route,
)
from server.gateway.admin_scopes import (
    admitted,
    check_new,
    check_reference,
    check_source,
    check_visible,
    owner_of,
    shown_base,
    shown_manifest,
    visible,
)
from server.gateway.auth import AccessOf, AdminGate, own_access
from server.gateway.lane_states import merged_rows
from server.gateway.uploads import UploadJobs, UploadShelf

Engines = Callable[[], list[dict[str, Any]]]

UploadName = Annotated[
    str, Query(description="What the file is called: its end says what it is, e.g. bot.tar.gz.")
]

# For /docs only: the gate has looked at the header before FastAPI comes to it.
_BEARER = Security(HTTPBearer(auto_error=False, description="An admin key."))


def admin_router(
    catalog: Catalog,
    *,
    refresh: Callable[[], object],
    engines: Engines,
    lanes: LaneOperations,
    require_admin_key: bool,
    jobs_at_once: int | None = None,
    access_of: AccessOf = own_access,
) -> APIRouter:
    """The admin API of the store behind `catalog`.

    `refresh` is called after every change, so that the server's snapshot has it before the
    client is answered. `engines` describes the base's engine, a JSON object; `lanes` is what else
    the server runs and sees. `require_admin_key`: whether every request needs a key; without,
    programs on this machine need none. `access_of`: what a key that only registers may use.
    `jobs_at_once`: how many jobs run at the same time; None:
    as the environment says.
    """
    gate = AdminGate(catalog.key_for, require_key=require_admin_key, access_of=access_of)
    audit = AdminAudit(catalog.note)
    router = APIRouter(
        prefix="/admin/v1",
        tags=["admin"],
        route_class=guarded_route(gate, refresh, audit),
        dependencies=[_BEARER],
    )
    jobs = JobRunner(catalog.layout.root, refresh)
    _add_base_routes(router, catalog, jobs)
    shelf = UploadShelf(catalog.layout)
    _add_intake_routes(router, jobs, shelf)
    _add_upload_routes(router, shelf, streaming_route(gate, audit))
    _add_adapter_routes(router, catalog)
    _add_tag_routes(router, catalog)
    _add_store_routes(router, catalog, jobs)
    add_key_routes(router, catalog)
    _add_audit_route(router, catalog)
    add_job_routes(router, catalog, at_once=jobs_at_once)
    add_lane_routes(router, catalog, lanes, refresh, at_once=jobs_at_once)
    _add_server_routes(router, catalog, engines, lanes)
    return router


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    """How /docs describes a job: its result, or events if the client accepts them."""
    return {
        200: {
            "model": model,
            "description": f"The result; with `Accept: {EVENTS}` a stream of JSON lines: "
            '`{"step"}`, `{"progress": [done, total]}`, at last `{"result"}` or `{"error"}`.',
        }
    }


def _add_base_routes(router: APIRouter, catalog: Catalog, jobs: JobRunner) -> None:
    @router.get("/bases", summary="List the bases")
    def bases(request: Request) -> list[BaseRecord]:
        return [shown_base(request, base) for base in catalog.bases()]

    @router.post("/bases", summary="Register a base", responses=_answers(BaseRecord))
    async def base_add(request: Request, body: BaseAdd) -> Response:
        return await answer_with_job(request, jobs, "base_add", body)

    @router.get("/bases/{name}", summary="Show a base")
    def base(request: Request, name: str) -> BaseRecord:
        return shown_base(request, catalog.base(name))

    @router.delete("/bases/{name}", summary="Forget a base")
    def base_rm(name: str) -> Removed:
        catalog.base_rm(name)
        return Removed(removed=(name,))


def _add_intake_routes(router: APIRouter, jobs: JobRunner, shelf: UploadShelf) -> None:
    @router.post("/adapters", summary="Register an artifact", responses=_answers(Registered))
    async def register(request: Request, body: RegisterRequest) -> Response:
        check_new(request, body.name, body.source)
        about = UploadJobs(
            jobs, shelf, body.source, consume=not body.dry_run, owner=owner_of(request)
        )
        return await answer_with_job(request, about, "register", body)

    @router.post(
        "/compositions", summary="Compose adapters into one", responses=_answers(Registered)
    )
    async def compose(request: Request, body: ComposeRequest) -> Response:
        return await answer_with_job(request, jobs, "compose", body)

    @router.post("/inspect", summary="What an artifact is", responses=_answers(Inspection))
    async def inspect(request: Request, body: InspectRequest) -> Response:
        check_source(request, body.source)
        about = UploadJobs(jobs, shelf, body.source, consume=False, owner=owner_of(request))
        return await answer_with_job(request, about, "inspect", body)


def _add_upload_routes(router: APIRouter, shelf: UploadShelf, streaming: type[APIRoute]) -> None:
    async def upload(request: Request, name: UploadName = "") -> Uploaded:
        return await shelf.receive(request, name, admitted(request).key)

    body = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
    router.add_api_route(
        "/uploads",
        upload,
        methods=["POST"],
        summary="Send an artifact: one file or an archive as the body",
        route_class_override=streaming,
        openapi_extra={"requestBody": {"required": True, **body}},
    )

    @router.delete("/uploads/{upload}", summary="Remove an upload that is not needed")
    async def upload_rm(request: Request, upload: str) -> Removed:
        shelf.check_owner(upload, owner_of(request))
        await shelf.remove(upload)
        return Removed(removed=(f"upload:{upload}",))


def _add_adapter_routes(router: APIRouter, catalog: Catalog) -> None:
    @router.get("/adapters", summary="List the adapters")
    def adapters(
        request: Request, wanted: Annotated[AdapterFilter, Query()]
    ) -> list[AdapterRecord]:
        return visible(request, catalog.adapters(wanted))

    @router.get("/adapters/{name}", summary="Show an adapter: its versions and tags")
    def adapter(request: Request, name: str) -> AdapterRecord:
        check_visible(request, name)
        return catalog.adapter(name)

    @router.get("/adapters/{name}/history", summary="Every move of its tags")
    def history(request: Request, name: str) -> list[TagChange]:
        check_visible(request, name)
        return list(catalog.history(name))

    @router.get("/references/{reference}", summary="Show the version a reference names")
    def show(request: Request, reference: str) -> Shown:
        check_reference(request, reference)
        bases = [base.name for base in catalog.bases()]
        version = catalog.show(reference)
        return Shown(
            reference=reference,
            adapter=catalog.adapter(version.adapter),
            version=version,
            manifest=shown_manifest(request, catalog.version_manifest(reference), bases),
            serving=catalog.serving(reference),
        )

    @router.delete("/references/{reference}", summary="Remove a version or a whole adapter")
    def rm(
        request: Request,
        reference: str,
        force: Annotated[bool, Query(description="Also while something uses it.")] = False,
    ) -> Removed:
        removed = catalog.rm(reference, force=force, actor=actor_of(request))
        return Removed(removed=tuple(removed))


def _add_tag_routes(router: APIRouter, catalog: Catalog) -> None:
    path = "/adapters/{name}/tags/{tag}"

    @router.put(path, summary="Point a tag at a version")
    def tag_put(request: Request, name: str, tag: str, body: TagRequest) -> TagChange:
        check_visible(request, name)
        return catalog.tag(
            f"{name}:{tag}", body.version, actor=actor_of(request), default=body.default
        )

    @router.delete(path, summary="Remove a tag")
    def tag_delete(request: Request, name: str, tag: str) -> TagChange:
        check_visible(request, name)
        return catalog.delete_tag(f"{name}:{tag}", actor=actor_of(request))

    @router.post(f"{path}/rollback", summary="Point a tag back at what it named before")
    def rollback(request: Request, name: str, tag: str) -> TagChange:
        check_visible(request, name)
        return catalog.rollback(f"{name}:{tag}", actor=actor_of(request))


def _add_store_routes(router: APIRouter, catalog: Catalog, jobs: JobRunner) -> None:
    @router.get("/store", summary="Which store this server works on")
    def store() -> StoreInfo:
        return StoreInfo(store=str(catalog.layout.root), created=False)

    @router.post("/gc", summary="Remove what no version needs and no engine holds")
    def gc(body: GcRequest) -> GcAnswer:
        return GcAnswer.of(catalog.gc(dry_run=body.dry_run, audit_older_than=body.audit_older_than))

    @router.post("/verify", summary="Hash everything again", responses=_answers(VerifyAnswer))
    async def verify(request: Request) -> Response:
        return await answer_with_job(request, jobs, "verify", None)


def _add_audit_route(router: APIRouter, catalog: Catalog) -> None:
    @router.get("/audit", summary="The audit log: its newest rows that match, the oldest first")
    def audit(wanted: Annotated[AuditFilter, Query()]) -> list[AuditRecord]:
        return catalog.audit(wanted)


def _add_server_routes(
    router: APIRouter, catalog: Catalog, engines: Engines, lanes: LaneOperations
) -> None:
    @router.get("/engines", summary="The engines of this server")
    async def engine_list() -> list[dict[str, Any]]:
        return [*engines(), *merged_rows(lanes.merged())]

    @router.get("/doctor", summary="Check environment, store and server")
    def doctor() -> list[Check]:
        from server.cli.doctor import examine

        return examine(catalog.layout.root)
