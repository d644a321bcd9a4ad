"""Bases that autoawq and auto-gptq wrote, on the real engine: they go on as they were trained to.

The checkpoints are tiny and know a few sentences by heart (tests/quantize/artifacts): a weight
read wrong, and they no longer do.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAIError

from adapters.catalog import Catalog
from loadtests.live import LiveServer
from tests.adapters.bases.quantized_dirs import ARTIFACTS, AUTOAWQ, AUTOGPTQ
from tests.quantize.artifacts.make import OTHERS, SENTENCES
from tests.server.gateway.otlp import Collector, collector

WORDS = 3
TOKENS = 40

# vLLM in this process alone, with the arguments that the server would give the engine.
OFFLINE = """
import json, sys
from vllm import LLM, SamplingParams

order = json.load(sys.stdin)
model = LLM(
    order["model"], quantization=order["quantization"], max_model_len=128, enforce_eager=True
)
asked = SamplingParams(temperature=0, max_tokens=order["tokens"])
answers = model.generate(order["prompts"], asked, use_tqdm=False)
print(json.dumps([answer.outputs[0].text for answer in answers]))
"""


def opening(sentence: str) -> str:
    return " ".join(sentence.split()[:WORDS])


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """auto-gptq's checkpoint as its old releases wrote it: config.json says nothing."""
    path = tmp_path_factory.mktemp("older") / "base"
    path.mkdir()
    for file in AUTOGPTQ.iterdir():
        (path / file.name).symlink_to(file)
    config = json.loads((AUTOGPTQ / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").unlink()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def offline(older: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts beside the server: each waits for its imports most of the time."""
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-c", OFFLINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert child.stdin is not None
    order = {
        "model": str(older),
        "quantization": "gptq",
        "tokens": TOKENS,
        "prompts": [opening(sentence) for sentence in SENTENCES],
    }
    child.stdin.write(json.dumps(order))
    child.stdin.close()
    yield child
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    """A collector in a loop and a thread of its own: the server lives longer than a test's loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def done(step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result(20)

    context = collector()
    yield done(context.__aenter__())
    done(context.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def awq(
    offline: subprocess.Popen[str], traces: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server on what autoawq wrote; the adapter registered for that, and for the 16-bit base.

    It sends traces of what a client has traced, and of nothing else: that needs no engine of its
    own.
    """
    store = tmp_path_factory.mktemp("quantized") / "store"
    with Catalog.init(store) as catalog:
        catalog.base_add("awq", AUTOAWQ)
        catalog.register(str(ARTIFACTS / "lora"), name="others", base="awq")
        catalog.base_add("trained", ARTIFACTS / "trained")
        catalog.register(str(ARTIFACTS / "lora"), name="sixteen", base="trained")
    server = LiveServer(
        *(store, "--base", "awq", "--port", "0", "--max-model-len", "128"),
        *("--otlp-endpoint", traces.url, "--otlp-sample", "0"),
    )
    server.start()
    yield server
    server.stop()


def said(server: LiveServer, model: str, prompt: str) -> str:
    answer = server.client().completions.create(
        model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
    )
    return prompt + answer.choices[0].text


def test_what_autoawq_wrote_goes_on_as_trained_with_and_without_an_adapter(
    awq: LiveServer,
) -> None:
    asked = [("awq", s) for s in SENTENCES] + [("others", s) for s in OTHERS]
    # At once, so that rows with and without the adapter share batches.
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: said(awq, pair[0], opening(pair[1])), asked))
    assert answers == [sentence for _, sentence in asked]
    assert awq.status("/readyz") == 200
    models = [entry.id for entry in awq.client().models.list().data]
    assert models == ["awq", "others", "others:latest"]


def test_what_old_releases_of_auto_gptq_wrote_goes_on_as_trained(
    older: Path, offline: subprocess.Popen[str], tmp_path: Path
) -> None:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("gptq", older)
        found = catalog.base_descriptor("gptq").quantization
    assert found is not None
    # What the engine is told (tests/server/engine/test_command.py).
    assert (found.method, found.beside) == ("gptq", "quantize_config.json")
    assert offline.stdout is not None
    answers = json.loads(offline.stdout.read().splitlines()[-1])
    assert [opening(s) + a for s, a in zip(SENTENCES, answers, strict=True)] == list(SENTENCES)


def test_an_adapter_for_another_base_is_told_what_to_do(awq: LiveServer) -> None:
    """The 16-bit model is another base than what was quantized of it."""
    with pytest.raises(OpenAIError, match=r"register the adapter for it, too \(`--base awq`\)"):
        said(awq, "sixteen", "The")


async def test_gateway_and_engine_send_spans_of_one_trace(
    awq: LiveServer, traces: Collector
) -> None:
    trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    asked = awq.async_client().completions
    body: dict[str, Any] = {"model": "others", "prompt": opening(OTHERS[0]), "max_tokens": 4}
    # What nobody traces is traced by none of the two.
    await asked.create(**body)
    await asked.create(**body, extra_headers={"traceparent": f"00-{trace}-{client}-01"})
    own = await traces.named("POST /v1/completions")
    below = await traces.named("engine")
    engines = await traces.named("llm_request")
    assert {own.trace, below.trace, engines.trace} == {trace}
    assert (own.parent, below.parent, engines.parent) == (client, own.id, below.id)
    assert (own.service, engines.service) == ("adapterctl", "adapterctl-engine")
    assert own.attributes["adapterctl.version"] == "others:v1"
    counted = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens")
    ours = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    assert [engines.attributes[name] for name in counted] == [own.attributes[n] for n in ours]
    # vLLM's start is a trace of its own; of requests there is this one.
    names = [span.name for span in traces.spans if span.trace == trace or "llm" in span.name]
    assert sorted(names) == ["POST /v1/completions", "engine", "llm_request"]
