"""What of the admin API a key with the scope `register` may use, and on which names.

A literal table: what is not in it is for admins. Whoever is let in by it sees and changes only
names that the key's patterns allow; of any other name it is told that there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from starlette.requests import Request

from adapters.access import no_adapter
from adapters.errors import Forbidden
from adapters.models import AdapterRecord, BaseRecord, Manifest, Origin
from adapters.references import parse_reference
from adapters.sources.uri import scheme_of
from adapters.tenants import ADMIN, REGISTER, Scope
from server.gateway.auth import Admitted

PREFIX = "/admin/v1"

REGISTER_ROUTES = frozenset(
    {
        ("GET", "/bases"),
        ("GET", "/bases/{name}"),
        ("GET", "/adapters"),
        ("POST", "/adapters"),
        ("GET", "/adapters/{name}"),
        ("GET", "/adapters/{name}/history"),
        ("GET", "/adapters/{name}/lanes/history"),
        ("PUT", "/adapters/{name}/tags/{tag}"),
        ("DELETE", "/adapters/{name}/tags/{tag}"),
        ("POST", "/adapters/{name}/tags/{tag}/rollback"),
        ("GET", "/references/{reference}"),
        ("POST", "/inspect"),
        ("POST", "/uploads"),
        ("DELETE", "/uploads/{upload}"),
    }
)

# What stands where a document would name another tenant's adapter.
WITHHELD = "withheld: it names adapters that this key may not use"


def scope_of(methods: Collection[str] | None, path: str) -> Scope:
    """The scope that opens a route, besides `admin`."""
    short = path.removeprefix(PREFIX)
    open_to_register = all((method, short) in REGISTER_ROUTES for method in methods or ())
    return REGISTER if methods and open_to_register else ADMIN


def admitted(request: Request) -> Admitted:
    """Who was let in."""
    found = request.state.admitted
    assert isinstance(found, Admitted)
    return found


def owner_of(request: Request) -> str | None:
    """Whose uploads the caller may name: the id of its key; None: everybody's."""
    who = admitted(request)
    return None if who.admin else who.key


def check_visible(request: Request, name: str) -> None:
    """Raises AdapterNotFound, as for a name that nobody has, where the caller may not use it."""
    if not admitted(request).access.allows(name):
        raise no_adapter(name)


def check_reference(request: Request, reference: str) -> None:
    """As `check_visible`, for the name in a reference; raises InvalidReference."""
    check_visible(request, parse_reference(reference).name)


def check_new(request: Request, name: str, source: str) -> None:
    """Raises Forbidden where the caller may not register `source` as `name`.

    Said before anything is looked up, so that it tells nothing of who has the name. The server's
    own disk, its network and its credentials are not for everybody who may register.
    """
    check_source(request, source)
    allowed = admitted(request).access
    if not allowed.allows(name):
        raise Forbidden(
            f"this key cannot register '{name[:128]}': the names it may use are {allowed}"
        )


def check_source(request: Request, source: str) -> None:
    """Raises Forbidden where the caller may not have the server read `source`."""
    who = admitted(request)
    if not who.admin and scheme_of(source) != "upload":
        raise Forbidden(
            "a key with the scope 'register' sends what it registers: POST it to "
            f"{PREFIX}/uploads and take upload:ID as the source (adapterctl does it for a path)"
        )


def visible(request: Request, adapters: Iterable[AdapterRecord]) -> list[AdapterRecord]:
    """Those that the caller may use."""
    allows = admitted(request).access.allows
    return [adapter for adapter in adapters if allows(adapter.name)]


def shown_base(request: Request, base: BaseRecord) -> BaseRecord:
    """A base; where it lies on the server's disk is for admins."""
    return base if admitted(request).admin else base.model_copy(update={"path": ""})


def shown_manifest(request: Request, manifest: Manifest, bases: Collection[str]) -> Manifest:
    """A manifest without the adapters it was made of that the caller may not use."""
    allows = admitted(request).access.allows

    def seen(origins: tuple[Origin, ...]) -> tuple[Origin, ...]:
        names = ((origin, origin.reference.partition(":")[0]) for origin in origins)
        return tuple(origin for origin, name in names if name in bases or allows(name))

    kept = {
        field: seen(getattr(manifest, field))
        for field in ("composed_from", "merged_from", "extracted_from")
    }
    if all(len(kept[field]) == len(getattr(manifest, field)) for field in kept):
        return manifest
    hidden = {"source": WITHHELD, "source_sha256": "", "scale": WITHHELD, "notes": ()}
    return manifest.model_copy(update={**kept, **hidden, "reasons": (WITHHELD,)})
