"""Turns an engine name into the store's directory, so that nothing has to be loaded beforehand.

vLLM asks a resolver for every `model` it does not know. The name is the content's digest, so it
says everything: no registry is read here, aliases never reach the engine, and a restarted engine
serves the same names at once. vLLM's own directory resolver joins the client's text to a path
(`../x` leaves it); here only `sha256-<64 hex>` is ever turned into one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from adapters.errors import AdapterctlError, NotDeployed, StoreDamaged, VersionNotFound
from adapters.store.content import blob_problem
from adapters.store.layout import StoreLayout, digest_of_engine_name
from adapters.store.leases import EngineLease

# Under vLLM's own logger, which has the handlers in its processes.
logger = logging.getLogger("vllm.adapterctl.resolver")

RESOLVER_NAME = "adapterctl"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# Far above any adapter's header and config; keeps a damaged length from being read into memory.
_HEADER_LIMIT = 64 * 1024 * 1024
_CONFIG_LIMIT = 4 * 1024 * 1024


class StoreResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is untyped here
    """Resolves engine names against one store, holding a lease on everything it hands out."""

    def __init__(self, root: Path, engine_id: str):
        self._layout = StoreLayout(root)
        self._engine_id = engine_id
        self._lease: EngineLease | None = None
        self._lease_lock = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The request that loads `lora_name`, or None (vLLM answers 404).

        Never raises for what a name or a file can cause: vLLM would answer 500.
        """
        try:
            path = await asyncio.to_thread(self.locate, lora_name)
        except (AdapterctlError, OSError) as error:
            logger.warning("adapter %s is not served: %s", lora_name, error)
            return None
        if path is None:
            return None
        # vLLM puts its own number in place of the id, which must only be positive.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(path))

    def locate(self, lora_name: str) -> Path | None:
        """The absolute directory of an engine name, leased and checked; None for other names.

        Reads disk and may wait for the store's lock: not for the event loop. Raises
        AdapterctlError or OSError when the version cannot be served.
        """
        digest = digest_of_engine_name(lora_name)
        if digest is None:
            return None
        if not self._layout.blob(digest).is_dir():
            raise VersionNotFound("the store has no such version")
        # First the lease, then the look: what was checked cannot be removed afterwards.
        self._held(digest)
        root = self._layout.root.resolve(strict=True)
        directory = self._layout.blob(digest).resolve(strict=True)
        weights, config = directory / WEIGHTS, directory / CONFIG
        for path in (directory, weights.resolve(strict=True), config.resolve(strict=True)):
            if not path.is_relative_to(root):
                raise StoreDamaged(f"{path} lies outside the store")
        check_weights(weights)
        check_config(config)
        # Once in an engine's life for each adapter, 9 ms for 10 MB: a bit that turned over on the
        # disk is mostly finite, and then no other check sees it.
        problem = blob_problem(directory, digest)
        if problem is not None:
            raise StoreDamaged(f"the stored files of {digest} are damaged: {problem}")
        return directory

    def _held(self, digest: str) -> None:
        """Record that this engine may read the digest, for as long as this process lives."""
        with self._lease_lock:
            lease = self._lease
            if lease is None:
                lease = EngineLease(self._layout, self._engine_id)
                lease.acquire()
                self._lease = lease
        lease.hold(digest)

    def close(self) -> None:
        """End the lease (tests; a process that ends drops it anyway)."""
        with self._lease_lock:
            if self._lease is not None:
                self._lease.release()
                self._lease = None


def check_weights(path: Path) -> None:
    """Raises StoreDamaged unless the file is as long as its own safetensors header says.

    Raises NotDeployed for what the merged lane keeps: vLLM would take some of it for a plain LoRA
    and answer wrongly.

    A truncated file kills the engine when vLLM reads it again in the middle of a step. Layout of
    the format: 8 bytes little-endian header length, the JSON header, then the data that the
    header's `data_offsets` index (https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_HEADER_LIMIT, size - 8):
            raise StoreDamaged(f"{path} is truncated: {size} bytes do not hold its header")
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends)
        lane = header.get("__metadata__", {}).get("lane", "hot")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise StoreDamaged(f"{path} has no valid safetensors header") from None
    if size != expected:
        raise StoreDamaged(f"{path} is damaged: {size} bytes, its header says {expected}")
    if lane != "hot":
        raise NotDeployed(f"it is for the lane {lane}, not to be swapped in")


def check_config(path: Path) -> None:
    """Raises StoreDamaged unless the adapter's configuration is a JSON object."""
    with path.open("rb") as file:
        text = file.read(_CONFIG_LIMIT + 1)
    try:
        valid = len(text) <= _CONFIG_LIMIT and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise StoreDamaged(f"{path} is not a JSON object")


def install(root: str, engine_id: str) -> None:
    """Register the resolver with vLLM, once per process."""
    if RESOLVER_NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    LoRAResolverRegistry.register_resolver(RESOLVER_NAME, StoreResolver(Path(root), engine_id))
