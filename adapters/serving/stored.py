"""The documents of stored versions, each read from the disk once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from adapters.errors import StoreDamaged
from adapters.serving.document import SERVING_FILE, Serving, decode
from adapters.store.content import CONTENT_FILE, decode_content
from adapters.store.layout import StoreLayout

_NOTHING = Serving()
# At most 200 kB each, some kB as a rule.
_KEPT = 4096


def read_serving(layout: StoreLayout, digest: str) -> Serving:
    """What the version brings; raises StoreDamaged when that cannot be known.

    content.json says whether there is a document and what its hash is: one that is gone or
    changed is never the same as none.
    """
    blob = layout.blob(digest)
    try:
        content = decode_content((blob / CONTENT_FILE).read_bytes())
        if content is None:
            raise StoreDamaged(f"{CONTENT_FILE} of {digest} is damaged: run `adapterctl verify`")
        wanted = content.files.get(SERVING_FILE)
        if wanted is None:
            return _NOTHING
        data = (blob / SERVING_FILE).read_bytes()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != wanted:
            raise ValueError("its hash is another")
        return decode(data)
    except OSError as error:
        raise StoreDamaged(
            f"version {digest} cannot be read ({error.strerror or error}): run `adapterctl verify`"
        ) from None
    except ValueError as error:
        raise StoreDamaged(
            f"{SERVING_FILE} of {digest} is damaged ({error}): run `adapterctl verify`"
        ) from None


class ServingDocuments:
    """By digest, from memory after the first time; for one event loop."""

    def __init__(self, layout: StoreLayout):
        self._layout = layout
        self._known: OrderedDict[str, Serving] = OrderedDict()

    async def of(self, digest: str) -> Serving:
        """What the version brings; raises StoreDamaged."""
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        found = await asyncio.to_thread(read_serving, self._layout, digest)
        self._known[digest] = found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found
