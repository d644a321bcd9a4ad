"""The one error tree, and the one table of what each error means outside.

    AdapterctlError
    ├── UsageError             the caller asked for something that cannot be asked
    │   └── InvalidReference   a `model` or REF that does not parse
    ├── NotFound
    │   ├── StoreNotFound · BaseNotFound · AdapterNotFound · VersionNotFound · TagNotFound
    │   └── NotDeployed        registered, but not in service; Quarantined: for what it answered
    ├── Conflict
    │   ├── AlreadyExists      a name that is taken by something else
    │   └── InUse              removal refused: a tag, a version or a running engine uses it
    ├── ArtifactError          the artifact as it lies on disk
    │   ├── SourceUnreadable   missing, no permission, not a directory, not to be downloaded
    │   ├── SourceRefused      leads where it may not, or is a trap: escapes, bombs, too large
    │   ├── UnknownFormat · AmbiguousFormat
    │   ├── UnsafePickle       a .bin that wants more than tensors
    │   ├── DamagedArtifact    truncated, non-finite, zero-size, half a pair
    │   ├── InvalidConfig      what the config says is wrong or contradicts the tensors
    │   ├── BaseMismatch       a tensor does not fit the base
    │   ├── BaseNotAtHand      the base's own weights are needed and cannot be read
    │   └── NotHotServable · NotServable  right, but no plain LoRA, or nothing here can serve it
    ├── BaseError              the base's directory is not a usable model
    ├── StoreError             the store itself
    │   ├── StoreDamaged · StoreBusy · StoreTooNew · StoreReadOnly · DiskFull
    ├── ToolFailed             a quantizer or another tool in a process of its own
    ├── ServerUnreachable      no adapterctl server answers at the CLI's --server
    ├── AccessError            Unauthorized · Forbidden
    ├── RequestError           what a client sent
    │   ├── InvalidRequest · RequestTooLarge · HeadersTooLarge · RequestTimeout
    │   ├── RouteNotServed · Overloaded
    │   └── QuotaExceeded · QuotaStorageDown
    ├── ServerStopping         this server ends: another one, or the next, answers
    └── EngineError
        ├── EngineUnavailable  starting, restarting or down: try again
        ├── EngineTimeout      no connection, no first token, or no end in time
        ├── EngineDied         gone in the middle of an answer
        ├── EngineStartFailed  did not come up; carries the log's last lines
        ├── OutputNotFinite    NaN or infinity in place of an answer; BaseNotFinite: the base's own
        └── AdapterNotLoadable the running engine cannot hold this adapter

`code` is stable: it is the `code` of the HTTP body and of the SSE error frame, the metric's
label and the `error.code` of `--json`. Status and exit derive from the class, nowhere else.
"""

from __future__ import annotations

# Again under their own names: everybody takes them from here.
from adapters.error_root import AdapterctlError as AdapterctlError  # noqa: PLC0414
from adapters.request_errors import AccessError as AccessError  # noqa: PLC0414
from adapters.request_errors import Forbidden as Forbidden  # noqa: PLC0414
from adapters.request_errors import HeadersTooLarge as HeadersTooLarge  # noqa: PLC0414
from adapters.request_errors import InvalidRequest as InvalidRequest  # noqa: PLC0414
from adapters.request_errors import Overloaded as Overloaded  # noqa: PLC0414
from adapters.request_errors import QuotaExceeded as QuotaExceeded  # noqa: PLC0414
from adapters.request_errors import QuotaStorageDown as QuotaStorageDown  # noqa: PLC0414
from adapters.request_errors import RequestError as RequestError  # noqa: PLC0414
from adapters.request_errors import RequestTimeout as RequestTimeout  # noqa: PLC0414
from adapters.request_errors import RequestTooLarge as RequestTooLarge  # noqa: PLC0414
from adapters.request_errors import RouteNotServed as RouteNotServed  # noqa: PLC0414
from adapters.request_errors import ServerStopping as ServerStopping  # noqa: PLC0414
from adapters.request_errors import Unauthorized as Unauthorized  # noqa: PLC0414


class UsageError(AdapterctlError):
    """What was asked for cannot be asked: a wrong option, argument or setting."""

    code = "usage"
    http_status = 400
    exit_code = 2
    openai_type = "invalid_request_error"


class InvalidReference(UsageError):
    """A name, tag, digest or reference that does not parse."""

    code = "invalid_reference"


class NotFound(AdapterctlError):
    """Something that was named does not exist."""

    code = "not_found"
    http_status = 404
    openai_type = "invalid_request_error"


class StoreNotFound(NotFound):
    """There is no store at the directory: `adapterctl init` makes one."""

    code = "store_not_found"


class BaseNotFound(NotFound):
    """No base of that name is registered."""

    code = "base_not_found"


class AdapterNotFound(NotFound):
    """No adapter or base of that name is registered; near names are listed."""

    # OpenAI's own code for an unknown `model`; its clients look for it.
    code = "model_not_found"


class VersionNotFound(NotFound):
    """The adapter has no such version; what it has is listed."""

    code = "version_not_found"


class TagNotFound(NotFound):
    """The adapter has no such tag; what it has is listed."""

    code = "tag_not_found"


class NotDeployed(NotFound):
    """The version is for the merged lane and not deployed, or was taken out of service."""

    # As for an unknown `model`: OpenAI's SDK does not try a 404 again.
    code = "not_deployed"


class Quarantined(NotDeployed):
    """The version answered with NaN or infinity and is kept from engines until that is lifted."""

    code = "quarantined"


class Conflict(AdapterctlError):
    """The present state does not allow it."""

    code = "conflict"
    http_status = 409
    openai_type = "invalid_request_error"


class AlreadyExists(Conflict):
    """The name is taken by something else."""

    code = "already_exists"


class InUse(Conflict):
    """Removal is refused: a tag, a version or a running engine uses it."""

    code = "in_use"


class ArtifactError(AdapterctlError):
    """The artifact cannot be registered."""

    code = "invalid_artifact"
    http_status = 422
    openai_type = "invalid_request_error"


class SourceUnreadable(ArtifactError):
    """The source is missing, not readable, not a directory, or cannot be downloaded."""

    code = "source_unreadable"


class SourceRefused(ArtifactError):
    """The source leads to a forbidden network, is too large, or is an archive with a trap in it."""

    code = "source_refused"


class UnknownFormat(ArtifactError):
    """No known trainer writes files like these."""

    code = "unknown_format"


class AmbiguousFormat(ArtifactError):
    """The files fit several formats: `--format` decides."""

    code = "ambiguous_format"


class UnsafePickle(ArtifactError):
    """A pickle that wants more than tensors; loading it could run code."""

    code = "unsafe_pickle"


class DamagedArtifact(ArtifactError):
    """Truncated, not finite, of zero size, or half of a pair is missing."""

    code = "damaged_artifact"


class InvalidConfig(ArtifactError):
    """What the artifact's config says is wrong or contradicts its tensors."""

    code = "invalid_config"


class BaseMismatch(ArtifactError):
    """A tensor does not fit the base."""

    code = "base_mismatch"


class BaseNotAtHand(ArtifactError):
    """What it is can only be told from the base's own weights, which cannot be read."""

    code = "base_not_at_hand"


class NotHotServable(ArtifactError):
    """Sound, but no plain LoRA expresses it: it has to be merged."""

    code = "not_hot_servable"


class NotServable(ArtifactError):
    """Sound, but nothing here can serve it."""

    code = "not_servable"


class BaseError(AdapterctlError):
    """The base's directory is not a usable model, or not the one that was registered."""

    code = "invalid_base"
    http_status = 422
    openai_type = "invalid_request_error"


class StoreError(AdapterctlError):
    """The store itself failed."""

    code = "store_error"


class StoreDamaged(StoreError):
    """A file of the store is missing or damaged."""

    code = "store_damaged"


class StoreBusy(StoreError):
    """Another process holds the store: try again."""

    code = "store_busy"
    http_status = 503


class StoreTooNew(StoreError):
    """A newer adapterctl made the store: upgrade."""

    code = "store_too_new"


class StoreReadOnly(StoreError):
    """The store cannot be written."""

    code = "store_read_only"


class DiskFull(StoreError):
    """No space is left on the store's disk."""

    code = "disk_full"
    http_status = 507


class ToolFailed(AdapterctlError):
    """A tool that runs by itself failed, or cannot be installed; its log is named."""

    code = "tool_failed"


class ServerUnreachable(AdapterctlError):
    """No adapterctl server answers at the CLI's `--server`."""

    code = "server_unreachable"
    http_status = 502


class EngineError(AdapterctlError):
    """The engine failed."""

    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    """The engine is starting, restarting or down: try again after Retry-After."""

    code = "engine_unavailable"
    http_status = 503


class EngineTimeout(EngineError):
    """No connection, no first token, or no end in time."""

    code = "engine_timeout"
    http_status = 504


class EngineDied(EngineError):
    """The engine went away in the middle of an answer."""

    code = "engine_died"


class EngineStartFailed(EngineError):
    """The engine did not come up; `log_tail` holds its log's last lines."""

    code = "engine_start_failed"
    http_status = 503

    def __init__(self, message: str, *, log_tail: str = ""):
        super().__init__(message)
        self.log_tail = log_tail


class OutputNotFinite(EngineError):
    """The model's output has NaN or infinity; an adapter that does this is quarantined."""

    code = "output_not_finite"


class BaseNotFinite(OutputNotFinite):
    """The base's output has NaN or infinity, with and without the adapter."""

    code = "base_not_finite"


class AdapterNotLoadable(EngineError):
    """The running engine cannot hold this adapter."""

    code = "adapter_not_loadable"
    http_status = 409
    openai_type = "invalid_request_error"


def error_classes() -> list[type[AdapterctlError]]:
    """Every class of the tree, the root first: documentation and tests go through it."""
    found: list[type[AdapterctlError]] = [AdapterctlError]
    for cls in found:  # It grows meanwhile.
        found.extend(cls.__subclasses__())
    return found
