"""Load a model directory with vLLM and measure it: `python -P -m server.vllm_plugin.probe PID`.

The process PID started it; when that dies, this dies. One JSON line on stdin is the order
(`Order`), stdout tells of it, a JSON document a line: {"step": text}, {"progress": [done, total]}
in texts, at last {"result": {...}} or {"error": {"stage": "loading" | "measuring", "message":
text}}. All else that vLLM and its libraries print goes to stderr.

vLLM runs in this one process (no engine core, no worker of its own) and without compilation: two
imports of everything and the warm-up are what a normal start spends its time on. Kernels, dtypes
and batching are those of the served engine; no LoRA, so none of the plugin's patches. On a GPU the
same is done with CUDA's kernels, and peak_rss is the host's memory only.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bases.engine_limits import on_cpu
from server.engine.command import worker_threads
from server.engine.launch import die_with_parent

# Set in the environment of the process after it replaced itself.
_PREPARED = "ADAPTERCTL_PROBE_PREPARED"
# Prompts that are computed together, and the larger of the two batches whose speed is measured.
_BATCH = 8
_SPEED_PROMPT = 16
_WARM_UP_TOKENS = 4
# vLLM on CPU keeps the cache in blocks of so many tokens.
_BLOCK_TOKENS = 128
_CACHE_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure. Paths are absolute; token ids everywhere.

    `sets` are texts, each at least 2 tokens; figures of set i go to `work`/set-i.npz, and without
    `reference`, the `work` of an earlier run, its distributions go to `work`/set-i.probabilities.
    """

    model: str
    dtype: str
    sets: list[list[list[int]]]
    prompts: list[list[int]]
    # The most tokens of each prompt's answer.
    answer_tokens: list[int]
    # Tokens that each speed is measured with; 0: none is measured.
    speed_tokens: int
    work: str
    reference: str | None


def main() -> None:
    """Prepare the process, then measure."""
    parent = int(sys.argv[1])
    die_with_parent(parent)
    if _PREPARED not in os.environ:
        # Libraries are preloaded and OpenMP is set up when a process begins.
        arguments = [sys.executable, "-P", "-m", "server.vllm_plugin.probe", str(parent)]
        os.execve(sys.executable, arguments, _environment())
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = sys.stdin.buffer.readline()
    if not line:
        return
    stage = "loading"

    def tell(event: dict[str, Any]) -> None:
        nonlocal stage
        stage = event.get("stage", stage)
        events.write(json.dumps(event) + "\n")

    try:
        tell({"result": _measured(Order(**json.loads(line)), tell)})
    except Exception as error:  # noqa: BLE001
        # Whatever a model makes vLLM raise: the trace is in the log, its sentence goes up.
        import traceback

        traceback.print_exc()
        tell({"error": {"stage": stage, "message": str(error) or type(error).__name__}})
        events.flush()
        os._exit(1)
    events.flush()
    # vLLM's own end takes seconds and may hang in OpenMP; everything is written.
    os._exit(0)


def _environment() -> dict[str, str]:
    own = {
        _PREPARED: "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The recorder's seam is there; in the other one it is elsewhere.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # No plugin changes what is measured.
        "VLLM_PLUGINS": "",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    environment = {**os.environ, **own}
    # It would overrule the size that the order needs.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    if on_cpu():
        environment.setdefault("OMP_NUM_THREADS", str(worker_threads()))
        environment["LD_PRELOAD"] = _preloaded()
    return environment


def _preloaded() -> str:
    """LD_PRELOAD with what vLLM preloads into its workers: tcmalloc, and PyTorch's OpenMP."""
    found = os.environ.get("LD_PRELOAD", "").split(":")
    for package, pattern in (("vllm", "libs/libtcmalloc*.so*"), ("torch", "lib/libgomp*.so*")):
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            found += [str(path) for path in sorted(Path(place).glob(pattern))[:1]]
    return ":".join(filter(None, found))


def _measured(order: Order, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    began = time.monotonic()
    tell({"step": "starting vLLM"})
    # Millions of objects are made that stay: looking for garbage among them again and again is
    # 2.4 of 8 processor seconds of the start (vLLM itself collects several times while it loads).
    gc.disable()
    import torch
    import vllm

    from server.vllm_plugin.recorder import EXTENSION, count_model_memory

    gc.freeze()
    gc.enable()
    imported = time.monotonic()
    tell({"step": f"loading {Path(order.model).name}"})
    length = _length(order)
    if on_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        count_model_memory(CPUModelRunner)
    llm = vllm.LLM(
        model=order.model,
        dtype=order.dtype,
        max_model_len=length,
        max_num_seqs=_BATCH,
        kv_cache_memory_bytes=_cache_bytes(order, length),
        enforce_eager=True,
        # A prompt that is found in the cache is not computed, so it could not be seen.
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        worker_extension_cls=EXTENSION,
    )
    loaded = time.monotonic()
    cache, weights = llm.collective_rpc("adapterctl_sizes")[0]
    tell({"stage": "measuring", "step": "answering"})
    total = len(order.prompts) + sum(len(texts) for texts in order.sets)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell({"progress": [done, total]})

    answers = _answers(llm, order, length, advance)
    speeds = _speeds(llm, order, length)
    peak = _peak_rss()
    for index, texts in enumerate(order.sets):
        _record(llm, order, index, texts, advance)
    config = llm.llm_engine.vllm_config
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "import_seconds": imported - began,
        "load_seconds": loaded - imported,
        "seconds": time.monotonic() - began,
        "answers": answers,
        "speeds": speeds,
        "peak_rss": peak,
        "kv_cache_bytes": cache,
        "model_bytes": weights,
    }


def _length(order: Order) -> int:
    """The longest sequence needed: no more than the model has positions, for whom that matters."""
    texts = max((len(text) for texts in order.sets for text in texts), default=0)
    prompts = max((len(prompt) for prompt in order.prompts), default=0)
    answered = max((len(p) + n for p, n in _asked(order)), default=0)
    needed = max(texts, prompts + 1)
    wanted = max(needed, answered, _SPEED_PROMPT + order.speed_tokens)
    known = _config(order)
    positions = known.get("max_position_embeddings") or known.get("n_positions")
    # vLLM says what is wrong with a text that is too long for the model.
    return max(needed, min(wanted, positions)) if isinstance(positions, int) else wanted


def _cache_bytes(order: Order, length: int) -> int:
    """KV cache for some thousand tokens: texts wait for each other, all of them are never in it."""
    known = _config(order)
    heads = known.get("num_attention_heads") or known.get("n_head") or 32
    hidden = known.get("hidden_size") or known.get("n_embd") or 4096
    layers = known.get("num_hidden_layers") or known.get("n_layer") or 32
    size = max(known.get("head_dim") or 0, hidden // heads, 32)
    kept = known.get("num_key_value_heads") or heads
    itemsize = 4 if order.dtype in ("float32", "auto") else 2
    blocks = -(-max(_CACHE_TOKENS, length) // _BLOCK_TOKENS) + _BATCH + 1
    return int(2 * layers * kept * size * itemsize * blocks * _BLOCK_TOKENS)


def _config(order: Order) -> dict[str, Any]:
    try:
        known = json.loads((Path(order.model) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}  # vLLM has a sentence for it
    return {**known, **known.get("text_config", {})} if isinstance(known, dict) else {}


def _asked(order: Order) -> list[tuple[list[int], int]]:
    return list(zip(order.prompts, order.answer_tokens, strict=True))


def _answers(
    llm: Any, order: Order, length: int, advance: Callable[[int], None]
) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    found: list[dict[str, Any]] = []
    for batch in _batches(_asked(order)):
        settings = [
            SamplingParams(temperature=0, max_tokens=min(most, length - len(prompt)))
            for prompt, most in batch
        ]
        prompts = _prompts([prompt for prompt, _ in batch])
        for output in llm.generate(prompts, settings, use_tqdm=False):
            answer = output.outputs[0]
            found.append(
                {
                    "text": answer.text,
                    "tokens": len(answer.token_ids),
                    "finished": answer.finish_reason == "stop",
                }
            )
        advance(len(batch))
    return found


def _speeds(llm: Any, order: Order, length: int) -> list[list[float]]:
    """[batch, generated tokens a second] at batch 1 and 8, of prompts of 16 tokens."""
    from vllm import SamplingParams

    count = min(order.speed_tokens, length - _SPEED_PROMPT)
    if count < 1:
        return []
    found = []
    for batch in (1, _BATCH):
        # Low ids: every vocabulary has them.
        prompts = _prompts([[1 + i % 8 for i in range(_SPEED_PROMPT)]] * batch)
        for tokens in (min(count, _WARM_UP_TOKENS), count):
            settings = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
            )
            began = time.monotonic()
            llm.generate(prompts, settings, use_tqdm=False)
            seconds = time.monotonic() - began
        found.append([batch, batch * count / seconds])
    return found


def _record(
    llm: Any,
    order: Order,
    index: int,
    texts: Sequence[Sequence[int]],
    advance: Callable[[int], None],
) -> None:
    from vllm import SamplingParams

    from server.vllm_plugin.recorder import TEXT

    reference = None if order.reference is None else f"{order.reference}/set-{index}"
    llm.collective_rpc("adapterctl_begin", args=(texts, f"{order.work}/set-{index}", reference))
    for batch in _batches(list(enumerate(texts))):
        settings = [
            SamplingParams(temperature=0, max_tokens=1, detokenize=False, extra_args={TEXT: place})
            for place, _ in batch
        ]
        # What follows the last token is nobody's prediction.
        prompts = _prompts([text[:-1] for _, text in batch])
        llm.generate(prompts, settings, use_tqdm=False)
        advance(len(batch))
    missing = llm.collective_rpc("adapterctl_end")[0]
    if missing:
        raise RuntimeError(f"vLLM computed nothing for {missing} positions of the texts")


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def _prompts(texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(text)} for text in texts]


def _peak_rss() -> int:
    """Bytes, of this process since it began. (getrusage's goes on from the parent's, over exec.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
