"""Who may use the admin API.

Beyond loopback: whoever holds a key with the scope `admin`, and for some routes (admin_scopes.py)
one with the scope `register`, on the names that it may use. On loopback no key is needed, but
then a web page in a browser on this machine must not get through either: neither by a plain
cross-site request (it says where it comes from) nor by a name that resolves to 127.0.0.1 (it
shows in Host: DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapters.access import ALL, Access, access
from adapters.errors import Forbidden, Unauthorized
from adapters.registry.key_record import KeyRecord
from adapters.tenants import ADMIN, DEFAULT_TENANT, Scope
from server.gateway.callers import NO_SUCH_KEY

# What proxies add: behind one, everybody seems to come from this machine.
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who was let in. `actor` is for the registry's history; `key` is the key's id, None without
    one. `access`: the names that it may use; an admin all of them."""

    actor: str
    access: Access = ALL
    key: str | None = None
    tenant: str = DEFAULT_TENANT
    # False: only names that `access` allows, and what the table in admin_scopes.py has.
    admin: bool = True


AccessOf = Callable[[KeyRecord], Access]


def own_access(key: KeyRecord) -> Access:
    """What a key's own patterns allow."""
    return access(key.adapters or None)


class AdminGate:
    """Lets a request in or raises Unauthorized (401) or Forbidden (403).

    `key_for`: secret -> its record, None for an unknown or ended one; may read the disk.
    `access_of`: what a key without the scope `admin` may use.
    """

    def __init__(
        self,
        key_for: Callable[[str], KeyRecord | None],
        *,
        require_key: bool,
        access_of: AccessOf = own_access,
    ) -> None:
        self._key_for = key_for
        self._require_key = require_key
        self._access_of = access_of

    async def admit(self, request: Request, scope: Scope = ADMIN) -> Admitted:
        """Who asks, for a route that `scope` opens, and `admin` always."""
        header = request.headers.get("authorization")
        if header is not None:
            return await self._by_key(header, scope)
        if self._require_key:
            raise Unauthorized(
                "the admin API needs a key: send 'Authorization: Bearer KEY' "
                "(adapterctl takes it from ADAPTERCTL_KEY)"
            )
        _check_local(request)
        return Admitted("admin")

    async def _by_key(self, header: str, wanted: Scope) -> Admitted:
        scheme, _, secret = header.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise Unauthorized("the Authorization header must read 'Bearer KEY'")
        key = await run_in_threadpool(self._key_for, secret)
        if key is None:
            raise Unauthorized(NO_SUCH_KEY)
        actor = f"key:{key.label}"
        if ADMIN in key.scopes:
            return Admitted(actor, key=key.id, tenant=key.tenant)
        if wanted not in key.scopes:
            raise Forbidden(f"key '{key.label or key.id}' has no scope '{wanted}'")
        return Admitted(actor, self._access_of(key), key.id, key.tenant, admin=False)


def _check_local(request: Request) -> None:
    """Without a key: only a program on this machine, and no web page."""
    host = _host_name(request.headers.get("host", ""))
    if not _loopback(host):
        raise Forbidden(
            f"without a key the admin API answers to loopback names only, not to '{host}': "
            "use http://127.0.0.1 or send a key"
        )
    if any(name in request.headers for name in _PROXY_HEADERS):
        raise Forbidden("a request that comes through a proxy needs a key for the admin API")
    origin, own = request.headers.get("origin"), request.headers.get("host")
    same_host = origin in (None, f"http://{own}", f"https://{own}")
    if not same_host or request.headers.get("sec-fetch-site", "none") not in (
        "none",
        "same-origin",
    ):
        raise Forbidden("a web page of another site cannot use the admin API without a key")


def _host_name(host: str) -> str:
    """The name in a Host header: `localhost:8000` -> `localhost`, `[::1]:8000` -> `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _loopback(host: str) -> bool:
    """Whether a name can only mean this machine: `127.0.0.1.example.com` can mean any."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
