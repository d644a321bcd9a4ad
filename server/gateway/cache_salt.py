"""Each tenant its own part of the engine's prefix cache.

vLLM answers a prompt faster whose beginning it has computed before, whoever asked: from the time to
the first token one tenant could tell, block by block, what another has sent (for one adapter or for
the base; different adapters share nothing). With vLLM's `cache_salt` in the body a block is found
only by requests with the same salt (https://docs.vllm.ai/en/latest/design/prefix_caching/,
"Cache Isolation for Security").
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
    own = document.get(FIELD)
    if own is None:
        document[FIELD] = f"tenant-{tenant}"
        return
    if not isinstance(own, str) or not own:
        raise InvalidRequest(f"'{FIELD}' must be a text that is not empty", param=FIELD)
    hashed = hashlib.sha256(f"{tenant}\0{own}".encode("utf-8", "surrogatepass")).hexdigest()
    document[FIELD] = f"own-{hashed}"
