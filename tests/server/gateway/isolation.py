"""A whole gateway over HTTP, on a real store, with the keys of two tenants and of an admin."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from safetensors.numpy import save_file

from adapters.catalog import Catalog
from adapters.compositions import Part, Recipe
from adapters.registry.snapshot import SnapshotWatcher
from server.gateway.assembly import Parts, Serving, assemble
from server.gateway.serve import application
from server.settings import ServeSettings
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.server.gateway.scripted import ScriptedEngine, no_lifespan, serving

# The scripted engine serves this one.
BASE = "tiny"
ACME = ("acme-*", "shared-*", BASE)


@dataclass
class House:
    """What acme, beta and the admins meet: one store, one server."""

    root: Path
    url: str
    client: aiohttp.ClientSession
    catalog: Catalog
    watcher: SnapshotWatcher
    parts: Parts
    engine: ScriptedEngine
    # By whom.
    keys: dict[str, str]

    def register(self, name: str, seed: int, *, tag: str | None = None) -> str:
        """The digest of a new version."""
        source = write_source(self.root / f"source-{seed}", seed)
        made = self.catalog.register(str(source), name=name, base=BASE, tag=tag)
        self.watcher.refresh()
        return made.digest

    def compose(self, *references: str, name: str | None = None) -> str:
        """Half of each; the new adapter's name."""
        parts = [Part(reference=reference, weight=0.5) for reference in references]
        made = self.catalog.compose(parts, Recipe(), name=name)
        self.watcher.refresh()
        return made.name

    def key(self, who: str, scopes: Sequence[str], **limits: Any) -> None:
        """Makes a key of the tenant that `who` begins with."""
        _, secret = self.catalog.create_key(scopes, who, who.partition(" ")[0], **limits)
        self.keys[who] = secret
        self.watcher.refresh()

    async def ask(
        self, who: str | None, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; what differs from one request to the next is left out."""
        headers["x-request-id"] = "r1"
        if who is not None:
            headers["authorization"] = f"Bearer {self.keys[who]}"
        sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.client.request(method, self.url + path, headers=headers, **sent) as answer:
            shown = {name.lower(): value for name, value in answer.headers.items()}
            shown.pop("date", None)
            return answer.status, shown, await answer.read()


@contextlib.asynccontextmanager
async def house(root: Path, engine: ScriptedEngine, **settings: Any) -> AsyncIterator[House]:
    """The server with acme's adapters, and nothing of beta's yet."""
    with Catalog.init(root / "store", intake=SmallIntake()) as catalog:
        base = write_base(root / BASE)
        # The memory plan wants to see weights.
        save_file({"norm.weight": np.zeros(8, np.float32)}, base / "model.safetensors")
        catalog.base_add(BASE, base)
        watcher = SnapshotWatcher(root / "store", interval=3600)
        watcher.start()
        told = ServeSettings(
            store=root / "store", base=BASE, engine_url=f"unix:{engine.socket}", **settings
        )
        served = Serving(
            told, catalog.base(BASE), catalog.base_descriptor(BASE), catalog, watcher, root
        )
        parts = assemble(served)
        await parts.engine.start()
        app = application(served, parts, no_lifespan)
        async with serving(app) as url, aiohttp.ClientSession() as client:
            yield House(root, url, client, catalog, watcher, parts, engine, {})
        await parts.stop()
        watcher.stop()
