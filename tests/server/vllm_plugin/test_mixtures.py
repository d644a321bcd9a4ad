"""Mixtures of experts: their CPU kernels kept, an adapter for experts refused."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from server.vllm_plugin import mixtures

# In a process of its own: what is changed stays so.
_INSTALLED = """
import sys
from server.vllm_plugin import mixtures
mixtures.install()
mixtures.install()
print("vllm" in sys.modules)
from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA
from vllm.model_executor.layers.fused_moe import config
mixtures.install()
mixtures.install_in_worker()
mixtures.install_in_worker()
print(len([f for f in sys.meta_path if type(f).__name__ == "_AfterImport"]))
made = config.FusedMoEConfig.__post_init__
print(made.__name__, hasattr(made.__wrapped__, "__wrapped__"))
asked = dict(source_layer=None, lora_config=None, packed_modules_list=["w1", "w3"])
print([c.can_replace_layer(**asked) for c in (FusedMoEWithLoRA, FusedMoE3DWithLoRA)])

class Config:
    is_lora_enabled = True
    moe_parallel_config = None
one = Config()
try:
    made(one)
except AttributeError:
    print(one.is_lora_enabled)
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager
print(hasattr(Manager._load_adapter.__wrapped__, "refuses_experts"))
"""


def test_experts_keep_their_kernels_and_are_not_wrapped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INSTALLED],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6:] == [
        "False",
        "0",
        "__post_init__ False",
        "[False, False]",
        "False",
        "False",
    ]


def test_what_is_replaced_is_still_there() -> None:
    assert list(inspect.signature(LRUCacheWorkerLoRAManager._load_adapter).parameters) == [
        "self",
        "lora_request",
    ]


def _loaded(*names: str) -> Any:
    adapter = SimpleNamespace(loras=dict.fromkeys(names))
    load = mixtures.without_experts(lambda manager, request: adapter)
    return load(None, SimpleNamespace(lora_name="tenant"))


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.experts", "model.layers.0.mlp.experts.3.gate_proj"]
)
def test_an_adapter_for_experts_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"tenant: a CPU engine applies no LoRA to .*experts"):
        _loaded("model.layers.0.self_attn.q_proj", name)


def test_one_for_the_rest_of_a_mixture_is_not() -> None:
    names = ("model.layers.0.mlp.gate", "model.layers.0.mlp.shared_experts.down_proj")
    assert set(_loaded(*names).loras) == set(names)
