"""Errors of what clients send and may do: a part of the tree in errors.py, which has them all."""

from __future__ import annotations

from adapters.error_root import AdapterctlError


class AccessError(AdapterctlError):
    """The caller may not do this."""

    code = "access"
    http_status = 403
    openai_type = "invalid_request_error"


class Unauthorized(AccessError):
    """The key is missing, unknown, revoked or expired."""

    code = "invalid_api_key"
    http_status = 401
    openai_type = "authentication_error"


class Forbidden(AccessError):
    """The key, or a caller without one, does not reach this far."""

    code = "forbidden"
    openai_type = "permission_error"


class RequestError(AdapterctlError):
    """What a client sent cannot be answered."""

    code = "invalid_request"
    http_status = 400
    openai_type = "invalid_request_error"


class InvalidRequest(RequestError):
    """The body, a parameter or a header is not what the route takes."""


class RequestTooLarge(RequestError):
    """The body is larger than the server accepts."""

    code = "request_too_large"
    http_status = 413


class HeadersTooLarge(RequestError):
    """The request's line and headers are more than the server reads."""

    code = "headers_too_large"
    http_status = 431


class RequestTimeout(RequestError):
    """The request did not arrive in the time that the server gives it."""

    code = "request_timeout"
    http_status = 408


class RouteNotServed(RequestError):
    """There is no such route."""

    code = "route_not_served"
    http_status = 404


class Overloaded(RequestError):
    """The queue is full, or a request waited too long in it: try again after Retry-After."""

    code = "overloaded"
    http_status = 429
    openai_type = "rate_limit_error"


class QuotaExceeded(RequestError):
    """A key or a tenant has used its quota: try again after Retry-After."""

    code = "quota_exceeded"
    http_status = 429
    openai_type = "rate_limit_error"


class QuotaStorageDown(RequestError):
    """What quotas are counted in does not answer, and the server was told to refuse then."""

    code = "quota_storage_down"
    http_status = 503
    openai_type = "server_error"


class ServerStopping(AdapterctlError):
    """The server is being stopped and did not finish this request: send it again."""

    code = "server_stopping"
    http_status = 503
