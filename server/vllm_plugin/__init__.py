"""What runs inside vLLM's own processes: the only package that imports vLLM.

vLLM calls `register` (entry point group `vllm.general_plugins`) in each of its processes: API
server, engine core, workers, and short-lived ones that inspect a model. It does nothing unless
`ADAPTERCTL_ENGINE_STORE` names a store, so the package is inert in anybody else's vLLM.

    probe.py      a process of its own that loads one model and measures it: recorder.py (sees every
                  distribution inside the worker), distributions.py (KL divergence, files)
    warm.py       imports once for an engine, or ahead of time for the next one, made of it then:
                  forking.py (children that were forked before they were needed)
    orphans.py    no engine process outlives the one that started it
    resolver.py   engine name (sha256-<hex>) -> the directory in the store, under a lease
    patches.py    every change to vLLM itself, each with its reason and version
    finite.py     a request whose logits are not finite ends with an error; answering.py: which one
    mixtures.py   mixtures of experts: served at all, and without LoRA on the experts
    budget.py     a step has so many tokens at most
    compiled_ops.py  norms and activations by vLLM's own C++ operators
    punica.py     the CPU LoRA arithmetic: spans.py (who needs what), native/ (compiled C),
                  packs.py (by torch), written.py (changed slots); layers.py: who calls it
    residency.py  what the worker's adapter caches hold, and pins; endpoints.py: HTTP routes for
                  that; reserving.py: the scheduler keeps the pinned ones' slots
    loading.py    an adapter's way into the worker: reading.py (disk -> memory), slots.py (memory ->
                  slot), ahead.py (a thread that reads beside the steps), ordering.py (its orders)

Environment: `ADAPTERCTL_ENGINE_STORE` is the store's root, `ADAPTERCTL_ENGINE_ID` the name under
which this engine holds its lease.
"""

from __future__ import annotations

import os

STORE_VARIABLE = "ADAPTERCTL_ENGINE_STORE"
ENGINE_ID_VARIABLE = "ADAPTERCTL_ENGINE_ID"
# For vLLM's --worker-extension-cls.
WORKER_EXTENSION = "server.vllm_plugin.residency.ResidentAdapters"


def register() -> None:
    """Install everything that the current vLLM process needs; safe to call again.

    Raises RuntimeError on a vLLM version that the CPU patches were not made for: an engine that
    answers with the wrong adapter's weights is worse than one that does not start.
    """
    root = os.environ.get(STORE_VARIABLE)
    if not root:
        return
    # Imported here: the entry point is loaded in every vLLM process of this environment.
    from server.vllm_plugin import endpoints, orphans, patches, reserving, resolver

    orphans.die_with_parent()
    patches.install()
    resolver.install(root, os.environ.get(ENGINE_ID_VARIABLE, ""))
    reserving.install()
    endpoints.install()
