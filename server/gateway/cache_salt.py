"""Each tenant its own part of the engine's prefix cache.

vLLM answers a prompt faster whose beginning it has computed before, whoever asked: from the time to
the first token one tenant could tell, block by block, what another has sent (for one adapter or for
the base; different adapters share nothing). With vLLM's `cache_salt` in the body a block is found
only by requests with the same salt (https://docs.vllm.ai/en/latest/design/prefix_caching/, "Cache
Isolation for Security"). Images and the like are kept under their content's hash, or under the
`uuid` that a request gives them; by another's `uuid` it would be answered from another's image.
"""

from __future__ import annotations

import hashlib

from adapters.errors import InvalidRequest

FIELD = "cache_salt"


def salt_cache(document: dict[str, object], tenant: str) -> None:
    """Put the tenant into the salt, and what the request itself says to part its users.

    A salt of vLLM has at most 128 characters, and neither '@' nor a slash. Raises InvalidRequest
    for one that is no text.
    """
    _own_media(document.get("messages"), tenant)
    own = document.get(FIELD)
    if own is None:
        document[FIELD] = f"tenant-{tenant}"
        return
    if not isinstance(own, str) or not own:
        raise InvalidRequest(f"'{FIELD}' must be a text that is not empty", param=FIELD)
    document[FIELD] = _hashed(tenant, own)


def _own_media(messages: object, tenant: str) -> None:
    """Have the `uuid` of an image mean what this tenant has sent under it."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and isinstance(part.get("uuid"), str):
                part["uuid"] = _hashed(tenant, part["uuid"])


def _hashed(tenant: str, own: str) -> str:
    text = f"{tenant}\0{own}".encode("utf-8", "surrogatepass")
    return f"own-{hashlib.sha256(text).hexdigest()}"
