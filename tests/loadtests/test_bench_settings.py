"""What the benchmarks of engine settings are told, and what they count."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.bases.headers import Header, TensorInfo
from adapters.bases.shards import BaseFiles
from loadtests.bench_bandwidth import bandwidth, cache_bytes, weights_read
from loadtests.bench_settings import Variant


def test_a_variant_says_what_it_is_started_with() -> None:
    found = Variant.parse("few spins GOMP_SPINCOUNT=10 --block-size=32 --seed 'A=b c' +together")
    assert found.name == "few spins"
    assert found.environment == {"GOMP_SPINCOUNT": "10", "A": "b c"}
    assert found.arguments == ("--block-size", "32", "--seed")
    assert (found.engines, found.merged) == (2, False)
    assert Variant.parse("x +merged") == Variant("x", {}, (), merged=True, engines=1)


@pytest.mark.parametrize("text", ["", "A=b", "x +twice"])
def test_what_is_no_variant_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="not a variant"):
        Variant.parse(text)


@pytest.mark.parametrize(("tied", "read"), [(True, 1600), (False, 1000)])
def test_a_step_reads_every_weight_but_an_embedding_that_is_only_looked_up(
    tied: bool, read: int
) -> None:
    tensors = {
        "model.embed_tokens.weight": TensorInfo("BF16", (300,), 0, 600),
        "model.layers.0.mlp.weight": TensorInfo("BF16", (500,), 600, 1600),
    }
    config = {"tie_word_embeddings": tied, "num_hidden_layers": 3, "hidden_size": 64}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    shard = Header(tensors, {}, b"", 0)
    files = BaseFiles(Path("base"), config, {"model.safetensors": shard})
    assert weights_read(files) == read
    assert cache_bytes(files) == 3 * 2 * 16 * 2 * 2


def test_the_bandwidth_is_that_of_all_threads_together() -> None:
    assert bandwidth(1 << 20, 2) > 0.01
