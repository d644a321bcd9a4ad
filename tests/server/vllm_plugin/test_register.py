"""What `register` does to a vLLM process, and to one that is not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from server.vllm_plugin import STORE_VARIABLE, patches

_IMPORTED = """
import sys
import server.vllm_plugin as plugin
plugin.register()
print(sorted({name.split(".")[0] for name in sys.modules} & {"vllm", "torch"}))
"""

_INSTALLED = """
import server.vllm_plugin as plugin
plugin.register()
plugin.register()
from vllm.platforms import current_platform
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.kv_cache_interface import KVCacheConfig
print(current_platform.get_punica_wrapper())
print(sorted(LoRAResolverRegistry.get_supported_resolvers()))
from vllm.config import SchedulerConfig
import vllm.plugins
added = vllm.plugins.load_endpoint_plugins(("generate",))
print([type(one).__name__ for one in added])
print(hasattr(SchedulerConfig.get_scheduler_cls, "__wrapped__"))
print(KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[]).needs_kv_cache_zeroing)
"""

# A parent that starts a child by multiprocessing as vLLM does, and is then killed.
_FAMILY = """
import multiprocessing, os, sys, time
from server.vllm_plugin.orphans import die_with_parent

def child(pipe):
    die_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    context.Process(target=child, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(60)
"""


def _run(code: str, **environment: str) -> str:
    known = {key: value for key, value in os.environ.items() if key != STORE_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**known, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_store_nothing_is_imported() -> None:
    assert _run(_IMPORTED).splitlines()[-1] == "[]"


def test_with_a_store_everything_is_installed(tmp_path: Path) -> None:
    variables = {STORE_VARIABLE: str(tmp_path), "ADAPTERCTL_ENGINE_ID": "e"}
    found = _run(_INSTALLED, **variables).splitlines()[-5:]
    wrapper, resolvers, endpoints, scheduler, zeroing = found
    assert wrapper == patches.WRAPPER
    assert "adapterctl" in resolvers
    # Once, though `register` was called twice.
    assert endpoints == "['ResidencyEndpoints']"
    assert scheduler == "True"
    assert zeroing == "True"


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.32.0", "0.3.2"])
def test_another_vllm_version_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match="this is " + version):
        patches.require_supported(version)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_die_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "family.py"
    script.write_text(_FAMILY)
    parent = subprocess.Popen(
        [sys.executable, str(script), method],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        deadline = time.monotonic() + 10
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child outlived its parent"
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
