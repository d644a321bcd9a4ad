"""The engine of a merged model in the store: its plan, its lease, its command, its log."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path

from adapters.bases.engine_limits import on_cpu
from adapters.bases.quantized import declared_quantization
from adapters.bases.shards import open_base
from adapters.store.layout import StoreLayout, digest_hex
from adapters.store.leases import EngineLease
from server.engine.capacity import NO_ADAPTERS, Capacity
from server.engine.cgroups import machine_memory
from server.engine.command import EngineCommand, merged_command
from server.engine.memory import MemoryPlan, plan_merged
from server.engine.merged import MergedModel
from server.engine.pool import EnginePool
from server.engine.process import Spawner
from server.engine.supervisor import SupervisedEngine
from server.settings import ServeSettings

# Models whose logs are kept; each is bounded by the supervisor.
KEPT_LOGS = 50


class StoredEngine:
    """What a merged engine needs before it is started. Implements `PreparedEngine`.

    The lease is the server's, not the engine's own: a model must also be there for the restart of
    an engine that was killed, when there is no process of it.
    """

    def __init__(
        self,
        settings: ServeSettings,
        layout: StoreLayout,
        runtime: Path,
        spawner: Spawner | None,
        model: MergedModel,
    ):
        """Reads the model's headers; raises BaseError."""
        files = open_base(model.path)
        declared = declared_quantization(files)
        self._quantization = declared.quantization if declared else None
        self.plan: MemoryPlan = plan_merged(settings, files)
        self._settings = settings
        self._model = model
        self._spawner = spawner
        self._lease = EngineLease(layout, f"merged-{uuid.uuid4().hex}")
        digits = digest_hex(model.digest)
        # Whole, a digest is too long for the path of a socket (108 bytes).
        self._socket = runtime / f"{digits[:24]}.sock"
        self._log = layout.logs / f"merged-{digits[:12]}.log"

    def hold(self) -> None:
        _prune_logs(self._log)
        self._lease.acquire()
        self._lease.hold(self._model.digest)

    def release(self) -> None:
        self._lease.release()

    def make(self, changed: Callable[[], None]) -> SupervisedEngine:
        def command(_: Capacity, engine_id: str) -> EngineCommand:
            return merged_command(
                self._settings,
                self._model.path,
                self._model.digest,
                self.plan,
                quantization=self._quantization,
                engine_id=engine_id,
                socket=self._socket,
                log=self._log,
            )

        return SupervisedEngine(
            self._settings,
            self._model.base,
            lambda: NO_ADAPTERS,
            command,
            spawner=self._spawner,
            changed=changed,
        )


def merged_pool(
    settings: ServeSettings,
    runtime: Path,
    *,
    limit: int,
    base: Callable[[], int],
    spawner: Spawner | None = None,
) -> EnginePool:
    """The pool for models of the store: `limit` bytes for all engines, the base's own `base()`.

    `runtime` is a short, private directory for sockets; `spawner` as in `SupervisedEngine`.
    """
    layout = StoreLayout(settings.store)

    def prepare(model: MergedModel) -> StoredEngine:
        return StoredEngine(settings, layout, runtime, spawner, model)

    available = (lambda: machine_memory().available) if on_cpu() else None
    return EnginePool(settings, prepare, limit=limit, base=base, available=available)


def _prune_logs(log: Path) -> None:
    """Make room for one more model's log: the oldest of models that were served once go."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        others = [file for file in log.parent.glob("merged-*.log") if file != log]
        others.sort(key=lambda file: file.stat().st_mtime, reverse=True)
        for file in others[KEPT_LOGS - 1 :]:
            file.unlink(missing_ok=True)
            file.with_suffix(".log.1").unlink(missing_ok=True)
