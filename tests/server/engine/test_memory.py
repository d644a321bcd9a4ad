"""What an engine is planned to need, and how much there is for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import server.engine.memory as memory_module
from adapters.bases.headers import ITEM_SIZE
from adapters.bases.shards import open_base
from adapters.models import BaseDescriptor, ModuleSpec
from server.engine.capacity import MOST_SLOTS, Capacity
from server.engine.cgroups import Machine
from server.engine.memory import (
    AHEAD,
    CPU_OVERHEAD,
    GIB,
    GPU_OVERHEAD,
    BasePlan,
    MemoryPlan,
    gib,
    memory_limit,
    plan_merged,
    weight_bytes,
)
from server.settings import ServeSettings
from tests.server.engine.test_capacity import version

REPOSITORY = Path(__file__).parents[3]
HIDDEN, INNER, VOCABULARY = 8, 16, 32
CONFIG = {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY}
TENSORS = {
    "model.embed_tokens.weight": ("BF16", (VOCABULARY, HIDDEN)),
    "model.layers.0.q_proj.weight": ("F32", (HIDDEN, HIDDEN)),
    "model.layers.0.k_proj.qweight": ("I32", (HIDDEN, 1)),
    "model.layers.0.v_proj.weight": ("I8", (HIDDEN, HIDDEN)),
}


def write_model(
    directory: Path,
    tensors: dict[str, tuple[str, tuple[int, int]]] | None = None,
    config: dict[str, object] | None = None,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or CONFIG))
    header, end = {}, 0
    for name, (dtype, (rows, columns)) in (tensors or TENSORS).items():
        size = rows * columns * ITEM_SIZE[dtype]
        header[name] = {
            "dtype": dtype, "shape": [rows, columns], "data_offsets": [end, end + size]
        }  # fmt: skip
        end += size
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(end)
    )
    return directory


def settings(**values: object) -> ServeSettings:
    return ServeSettings.model_validate({"store": "x", "base": "b", **values})


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "on_cpu", lambda: False)


HEAD = VOCABULARY * HIDDEN * 2
# 32 bits become 16 in the engine; what is quantized stays as it is stored.
STORED = HEAD + HIDDEN * HIDDEN * 2 + HIDDEN * 4 + HIDDEN * HIDDEN


def test_weights_are_counted_as_the_engine_holds_them(tmp_path: Path) -> None:
    files = open_base(write_model(tmp_path))
    assert weight_bytes(settings(), files) == STORED + HEAD


def test_weights_on_a_gpu_have_no_second_head(tmp_path: Path, on_gpu: None) -> None:
    assert weight_bytes(settings(), open_base(write_model(tmp_path))) == STORED


@pytest.mark.parametrize("arguments", [["--dtype", "float32"], ["--dtype=float32"]])
def test_who_asks_for_32_bits_needs_twice_as_much(tmp_path: Path, arguments: list[str]) -> None:
    files = open_base(write_model(tmp_path))
    wide = weight_bytes(settings(engine_arguments=arguments), files)
    assert wide == 2 * (2 * HEAD + HIDDEN * HIDDEN * 2) + HIDDEN * 4 + HIDDEN * HIDDEN


def test_a_merged_engine_has_its_own_cache_and_no_adapters(tmp_path: Path) -> None:
    plan = plan_merged(
        settings(merged_kv_cache_gib=3, kv_cache_gib=7), open_base(write_model(tmp_path))
    )
    assert plan.kv_cache == 3 * GIB
    assert plan.adapters == 0
    assert plan.total == plan.weights + plan.kv_cache + plan.overhead


def test_a_larger_batch_needs_more(tmp_path: Path) -> None:
    files = open_base(write_model(tmp_path))
    usual = plan_merged(settings(), files).overhead
    assert usual > CPU_OVERHEAD
    for arguments in (["--max-num-seqs=100000"], ["--max-num-batched-tokens", "100000"]):
        assert plan_merged(settings(engine_arguments=arguments), files).overhead > usual
    nested = write_model(tmp_path / "nested", config={"text_config": CONFIG})
    assert plan_merged(settings(), open_base(nested)).overhead == usual
    strange = write_model(tmp_path / "strange", config={"n_embd": 8})
    assert plan_merged(settings(), open_base(strange)).overhead == CPU_OVERHEAD


def test_the_base_is_counted_with_all_adapters_it_may_hold(tmp_path: Path) -> None:
    descriptor = BaseDescriptor(
        digest="sha256:" + "b" * 64,
        architecture="X",
        model_type="x",
        dtype="bfloat16",
        vocab_size=VOCABULARY,
        context_length=8,
        tied_embeddings=True,
        modules=(
            ModuleSpec(name="q", kind="linear", in_features=HIDDEN, out_features=HIDDEN),
            ModuleSpec(name="e", kind="embedding", in_features=VOCABULARY, out_features=HIDDEN),
        ),
        parameters={},
    )
    base = BasePlan(settings(), write_model(tmp_path), descriptor)
    versions = [version(1, size=1000), version(2, size=5000)]
    plan = base.plan(Capacity(slots=2, cpu_adapters=10, max_rank=16), versions)
    # Two slots of A [16, in] and B [out, 16] in 16 bits, the embedding's once more for the output
    # head; both adapters, and as many more as there may be, as large as the largest.
    features = (HIDDEN + HIDDEN) + 2 * (VOCABULARY + HIDDEN)
    assert plan.adapters == 2 * 16 * features * 2 + 1000 + (9 + AHEAD) * 5000
    assert plan.kv_cache == GIB
    # Not started yet: as it would be.
    would = base.capacity(versions)
    assert would.slots == MOST_SLOTS
    assert base.plan(None, versions) == base.plan(would, versions)
    few = BasePlan(settings(engine_arguments=["--max-num-seqs=9"]), tmp_path, descriptor)
    assert few.capacity(versions).slots == 9


def test_the_memory_planned_for_reading_ahead_is_what_the_worker_keeps() -> None:
    assert f"KEPT = {AHEAD}\n" in (REPOSITORY / "server/vllm_plugin/ahead.py").read_text()


def test_the_limit_is_a_share_of_the_machine_and_not_what_others_use() -> None:
    assert memory_limit(settings(), Machine(100 * GIB, 99 * GIB)) == 85 * GIB
    assert memory_limit(settings(), Machine(100 * GIB, 20 * GIB)) == 20 * GIB
    assert memory_limit(settings(memory_gib=1.5), Machine(0, 0)) == 3 * GIB // 2
    assert memory_limit(settings()) > 0


def test_the_limit_on_a_gpu_is_of_its_memory(tmp_path: Path, on_gpu: None) -> None:
    assert memory_limit(settings()) == memory_limit(settings(memory_gib=9)) == 0
    assert memory_limit(settings(device_memory_gib=80)) == int(80 * 0.85 * GIB)
    assert memory_limit(settings(device_memory_gib=80, memory_gib=40)) == 40 * GIB
    assert plan_merged(settings(), open_base(write_model(tmp_path))).overhead > GPU_OVERHEAD


def test_a_plan_says_its_parts_and_rounds_up() -> None:
    plan = MemoryPlan(weights=1, kv_cache=GIB, adapters=GIB // 4, overhead=2 * GIB)
    assert str(plan) == "0.1 weights + 1.0 KV cache + 0.3 adapters + 2.0 processes"
    assert (gib(0), gib(GIB), gib(GIB + 1)) == ("0.0", "1.0", "1.1")
