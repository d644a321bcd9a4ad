"""Who calls: the tenant of a request, by its API key or by what a trusted proxy says.

Nothing is read from the disk: keys come with the registry's snapshot, by the sha256 of their
secret. Finding one is a look-up by that hash, whose time says nothing about any other secret: to
choose what is looked up, one would have to invert sha256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from adapters.errors import InvalidRequest
from adapters.registry.key_lookup import hash_secret
from adapters.registry.snapshot import Snapshot
from adapters.tenants import DEFAULT_TENANT, is_tenant

_KEY_PREFIX = "ak-"
# No key is longer; what is, need not be hashed.
_LONGEST_KEY = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `weight`: the tenant's share when there is not enough for all; `key`:
    the id of the key that says so, None without one."""

    tenant: str
    weight: float
    key: str | None


class Callers:
    """Knows the callers of requests; asked once for each, from the event loop."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        weights: Mapping[str, float] | None = None,
        tenant_header: str | None = None,
    ):
        """`weights` by tenant, 1 where there is none. `tenant_header` names the header in which a
        trusted proxy says the tenant; None: no header is believed."""
        self._snapshot = snapshot
        self._weights = dict(weights or {})
        self._header = tenant_header
        self._nobody = self._of(DEFAULT_TENANT, None)

    def caller(self, headers: Headers) -> Caller:
        """The proxy's word, else the key's tenant, else `default`.

        A key that is unknown or revoked counts as none. Raises InvalidRequest where the proxy's
        header names no tenant, or more than one.
        """
        if self._header is not None:
            said = headers.getlist(self._header)
            if said:
                return self._of(self._told(said), None)
        secret = _secret(headers)
        if secret is None:
            return self._nobody
        key = self._snapshot().keys.get(hash_secret(secret))
        return self._nobody if key is None else self._of(key.tenant, key.id)

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Other shares, for requests from now on."""
        self._weights = dict(weights)
        self._nobody = self._of(DEFAULT_TENANT, None)

    def weight(self, tenant: str) -> float:
        """A tenant's share against the others'."""
        return self._weights.get(tenant, 1.0)

    def _of(self, tenant: str, key: str | None) -> Caller:
        return Caller(tenant, self.weight(tenant), key)

    def _told(self, said: list[str]) -> str:
        tenant = said[0].strip()
        # Two of them: the client's own beside the proxy's, and nobody knows which is which.
        if len(said) > 1 or not is_tenant(tenant):
            raise InvalidRequest(
                f"the header '{self._header}' must name one tenant: 1 to 64 letters, digits, '.', "
                "'_' and '-', first and last a letter or digit"
            )
        return tenant


def _secret(headers: Headers) -> str | None:
    """What may be a key of ours: OpenAI's clients send a bearer token, Anthropic's `x-api-key`."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    secret = text.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not secret.startswith(_KEY_PREFIX) or len(secret) > _LONGEST_KEY:
        return None
    return secret
