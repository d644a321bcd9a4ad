"""The one error tree, and the one table of what each error means outside.

    AdapterctlError
    ├── UsageError             the caller asked for something that cannot be asked
    │   └── InvalidReference   a `model` or REF that does not parse
    ├── NotFound
    │   ├── StoreNotFound · BaseNotFound · AdapterNotFound · VersionNotFound · TagNotFound
    ├── Conflict
    │   ├── AlreadyExists      a name that is taken by something else
    │   └── InUse              removal refused: a tag, a version or a running engine uses it
    ├── ArtifactError          the artifact as it lies on disk
    │   ├── SourceUnreadable   missing, no permission, not a directory
    │   ├── UnknownFormat · AmbiguousFormat
    │   ├── UnsafePickle       a .bin that wants more than tensors
    │   ├── DamagedArtifact    truncated, non-finite, zero-size, half a pair
    │   ├── InvalidConfig      what the config says is wrong or contradicts the tensors
    │   ├── BaseMismatch       a tensor does not fit the base
    │   ├── NotHotServable     right, but no plain LoRA expresses it: merge it
    │   └── NotServable        nothing here can serve it
    ├── BaseError              the base's directory is not a usable model
    ├── StoreError             the store itself
    │   ├── StoreDamaged · StoreBusy · StoreTooNew · StoreReadOnly · DiskFull
    ├── AccessError
    │   ├── Unauthorized · Forbidden
    ├── RequestError           what a client sent
    │   ├── InvalidRequest · RequestTooLarge · RouteNotServed
    └── EngineError
        ├── EngineUnavailable  starting, restarting or down: try again
        ├── EngineTimeout      no connection, no first token, or no end in time
        ├── EngineDied         gone in the middle of an answer
        ├── EngineStartFailed  did not come up; carries the log's last lines
        └── AdapterNotLoadable the running engine cannot hold this adapter

`code` is stable: it is the `code` of the HTTP body and of the SSE error frame, the metric's
label and the `error.code` of `--json`. Status and exit derive from the class, nowhere else.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AdapterctlError(Exception):
    """Something that has one clear sentence to say; never shown as a traceback."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape, as every HTTP route and SSE frame sends it."""
        return {
            "error": {
                "message": self.message,
                "type": self.openai_type,
                "param": self.param,
                "code": self.code,
            }
        }


class UsageError(AdapterctlError):
    code = "usage"
    http_status = 400
    exit_code = 2
    openai_type = "invalid_request_error"


class InvalidReference(UsageError):
    code = "invalid_reference"


class NotFound(AdapterctlError):
    code = "not_found"
    http_status = 404
    openai_type = "invalid_request_error"


class StoreNotFound(NotFound):
    code = "store_not_found"


class BaseNotFound(NotFound):
    code = "base_not_found"


class AdapterNotFound(NotFound):
    # OpenAI's own code for an unknown `model`; its clients look for it.
    code = "model_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class TagNotFound(NotFound):
    code = "tag_not_found"


class Conflict(AdapterctlError):
    code = "conflict"
    http_status = 409
    openai_type = "invalid_request_error"


class AlreadyExists(Conflict):
    code = "already_exists"


class InUse(Conflict):
    code = "in_use"


class ArtifactError(AdapterctlError):
    code = "invalid_artifact"
    http_status = 422
    openai_type = "invalid_request_error"


class SourceUnreadable(ArtifactError):
    code = "source_unreadable"


class UnknownFormat(ArtifactError):
    code = "unknown_format"


class AmbiguousFormat(ArtifactError):
    code = "ambiguous_format"


class UnsafePickle(ArtifactError):
    code = "unsafe_pickle"


class DamagedArtifact(ArtifactError):
    code = "damaged_artifact"


class InvalidConfig(ArtifactError):
    code = "invalid_config"


class BaseMismatch(ArtifactError):
    code = "base_mismatch"


class NotHotServable(ArtifactError):
    code = "not_hot_servable"


class NotServable(ArtifactError):
    code = "not_servable"


class BaseError(AdapterctlError):
    code = "invalid_base"
    http_status = 422
    openai_type = "invalid_request_error"


class StoreError(AdapterctlError):
    code = "store_error"


class StoreDamaged(StoreError):
    code = "store_damaged"


class StoreBusy(StoreError):
    code = "store_busy"
    http_status = 503


class StoreTooNew(StoreError):
    code = "store_too_new"


class StoreReadOnly(StoreError):
    code = "store_read_only"


class DiskFull(StoreError):
    code = "disk_full"
    http_status = 507


class AccessError(AdapterctlError):
    code = "access"
    http_status = 403
    openai_type = "invalid_request_error"


class Unauthorized(AccessError):
    code = "invalid_api_key"
    http_status = 401
    openai_type = "authentication_error"


class Forbidden(AccessError):
    code = "forbidden"
    openai_type = "permission_error"


class RequestError(AdapterctlError):
    code = "invalid_request"
    http_status = 400
    openai_type = "invalid_request_error"


class InvalidRequest(RequestError):
    code = "invalid_request"


class RequestTooLarge(RequestError):
    code = "request_too_large"
    http_status = 413


class RouteNotServed(RequestError):
    code = "route_not_served"
    http_status = 404


class EngineError(AdapterctlError):
    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    code = "engine_unavailable"
    http_status = 503


class EngineTimeout(EngineError):
    code = "engine_timeout"
    http_status = 504


class EngineDied(EngineError):
    code = "engine_died"
    http_status = 502


class EngineStartFailed(EngineError):
    code = "engine_start_failed"
    http_status = 503


class AdapterNotLoadable(EngineError):
    code = "adapter_not_loadable"
    http_status = 409
    openai_type = "invalid_request_error"


def error_classes() -> list[type[AdapterctlError]]:
    """Every class of the tree, the root first: documentation and tests go through it."""
    found: list[type[AdapterctlError]] = []
    pending: list[type[AdapterctlError]] = [AdapterctlError]
    while pending:
        cls = pending.pop(0)
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return found
