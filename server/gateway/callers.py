"""Who calls: the tenant of a request, by its API key or by what a trusted proxy says, and what it
may use.

Nothing is read from the disk: keys come with the registry's snapshot, by the sha256 of their
secret. Finding one is a look-up by that hash, whose time says nothing about any other secret: to
choose what is looked up, one would have to invert sha256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from adapters.access import ALL, Access, access
from adapters.errors import Forbidden, InvalidRequest, Unauthorized
from adapters.registry.key_lookup import hash_secret
from adapters.registry.key_record import KeyRecord
from adapters.registry.snapshot import Snapshot
from adapters.tenants import ADMIN, DEFAULT_TENANT, INFER, Quota, Scope, is_tenant
from server.settings import RequireKey

_KEY_PREFIX = "ak-"
# No key is longer; what is, need not be hashed.
_LONGEST_KEY = 128
# One sentence for all: what is wrong with a key is not for whoever tries some.
NO_SUCH_KEY = "this key is unknown, revoked or expired"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is.

    `weight`: the tenant's share when there is not enough for all. `key`: the id of the key that
    says so, None without one. `quota`: the key's own; None: it has none.
    """

    tenant: str
    weight: float
    key: str | None
    scopes: tuple[str, ...] = (INFER,)
    access: Access = ALL
    quota: Quota | None = None
    # The key's, for logs and for people.
    label: str = ""

    def allows(self, name: str) -> bool:
        """Whether it may use the adapter or base of that name."""
        return self.access.allows(name)

    def needs(self, scope: Scope) -> None:
        """Raises Forbidden where the key is not for this; `admin` is for everything."""
        if scope not in self.scopes and ADMIN not in self.scopes:
            raise Forbidden(f"key '{self.label or self.key}' has no scope '{scope}'")


class Callers:
    """Knows the callers of requests; asked once for each, from the event loop."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        weights: Mapping[str, float] | None = None,
        adapters: Mapping[str, Sequence[str]] | None = None,
        tenant_header: str | None = None,
        require: RequireKey = "auto",
        public: bool = False,
    ):
        """`weights` by tenant, 1 where there is none; `adapters`: what any of a tenant's requests
        may use at most, as patterns. `tenant_header` names the header in which a trusted proxy
        says the tenant; None: no header is believed. `public`: others than this machine can reach
        the server, so that `auto` asks for keys even where none is left."""
        self._snapshot = snapshot
        self._header = tenant_header
        self._require = require
        self._public = public
        self.tell(weights or {}, adapters or {})

    def tell(self, weights: Mapping[str, float], adapters: Mapping[str, Sequence[str]]) -> None:
        """Other weights and limits of tenants; they count from the next request on."""
        self._weights = dict(weights)
        self._limits = {tenant: tuple(patterns) for tenant, patterns in adapters.items()}
        self._nobody = self._of(DEFAULT_TENANT)
        # By the hash of the secret; right as long as the snapshot has the same record.
        self._known: dict[str, tuple[KeyRecord, Caller]] = {}

    @property
    def key_needed(self) -> bool:
        """Whether a request needs a key, or a trusted proxy that speaks for it."""
        if self._require == "auto":
            return self._public or bool(self._snapshot().keys)
        return self._require == "always"

    @property
    def told_apart(self) -> bool:
        """Whether tenants are more than names that everybody shares."""
        return self._header is not None or self.key_needed

    def caller(self, headers: Headers, scope: Scope = INFER) -> Caller:
        """The proxy's word, else the key's tenant, else `default`.

        Where keys are needed, raises Unauthorized for none and for one that opens nothing;
        elsewhere such a one counts as none. Raises Forbidden for a key without `scope`, and
        InvalidRequest where the proxy's header names no tenant, or more than one.
        """
        secret = _secret(headers)
        key = None if secret is None else self._of_key(secret)
        if key is not None:
            key.needs(scope)
        said = [] if self._header is None else headers.getlist(self._header)
        if said:
            return self._behind_proxy(self._told(said), secret, key)
        if key is not None:
            return key
        if self.key_needed:
            raise _refusal(headers)
        return self._nobody

    def weight(self, tenant: str) -> float:
        """A tenant's share against the others'."""
        return self._weights.get(tenant, 1.0)

    def access_of(self, key: KeyRecord) -> Access:
        """What a key may use: its own patterns, within its tenant's."""
        return access(key.adapters or None, self._limits.get(key.tenant))

    def _of(self, tenant: str) -> Caller:
        return Caller(tenant, self.weight(tenant), None, access=access(self._limits.get(tenant)))

    def _of_key(self, secret: str) -> Caller | None:
        """Whose key it is; None for one that is unknown, revoked or expired."""
        hashed = hash_secret(secret)
        record = self._snapshot().keys.get(hashed)
        if record is None or not record.usable:
            return None
        known = self._known.get(hashed)
        if known is not None and known[0] is record:
            return known[1]
        if len(self._known) > 2 * len(self._snapshot().keys):
            self._known.clear()  # Keys that are gone by now.
        caller = Caller(
            record.tenant,
            self.weight(record.tenant),
            record.id,
            record.scopes,
            self.access_of(record),
            None if record.quota.unlimited else record.quota,
            record.label,
        )
        self._known[hashed] = record, caller
        return caller

    def _behind_proxy(self, tenant: str, secret: str | None, key: Caller | None) -> Caller:
        """The tenant that the proxy names; a key of ours beside it says what it may do there."""
        if key is None:
            if self._require == "always" or (secret is not None and self.key_needed):
                raise Unauthorized(NO_SUCH_KEY if secret else _NO_KEY)
            return self._of(tenant)
        limits = self._limits.get(tenant)
        allowed = key.access if limits is None else Access((*key.access.limits, limits))
        return Caller(
            tenant, self.weight(tenant), key.key, key.scopes, allowed, key.quota, key.label
        )

    def _told(self, said: list[str]) -> str:
        tenant = said[0].strip()
        # Two of them: the client's own beside the proxy's, and nobody knows which is which.
        if len(said) > 1 or not is_tenant(tenant):
            raise InvalidRequest(
                f"the header '{self._header}' must name one tenant: 1 to 64 letters, digits, '.', "
                "'_' and '-', first and last a letter or digit"
            )
        return tenant


_NO_KEY = "this server needs a key: send 'Authorization: Bearer KEY', or 'x-api-key: KEY'"


def _refusal(headers: Headers) -> Unauthorized:
    sent = "authorization" in headers or "x-api-key" in headers
    return Unauthorized(NO_SUCH_KEY if sent else _NO_KEY)


def _secret(headers: Headers) -> str | None:
    """What may be a key of ours: OpenAI's clients send a bearer token, Anthropic's `x-api-key`."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    secret = text.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not secret.startswith(_KEY_PREFIX) or len(secret) > _LONGEST_KEY:
        return None
    return secret
