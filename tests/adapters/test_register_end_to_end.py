"""The catalog with the real intake: a PEFT adapter of a real tiny model, and a broken one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.catalog import Catalog
from adapters.errors import BaseError, BaseMismatch
from adapters.frozen import Lane


def tiny_llama(hidden: int) -> LlamaForCausalLM:
    torch.manual_seed(hidden)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[int, int], str]:
    def make(hidden: int, seed: int) -> str:
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(tiny_llama(hidden), config)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        source = tmp_path / f"adapter-{hidden}-{seed}"
        model.save_pretrained(source)
        return str(source)

    return make


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    tiny_llama(16).save_pretrained(tmp_path / "tiny")
    catalog = Catalog.init(tmp_path / "store")
    catalog.base_add("tiny", tmp_path / "tiny")
    return catalog


def test_a_peft_adapter_from_disk_to_reference(
    catalog: Catalog, adapter: Callable[[int, int], str]
) -> None:
    source = adapter(16, 1)
    inspection = catalog.inspect(source)
    assert (inspection.base, inspection.lane, inspection.problems) == ("tiny", Lane.HOT, ())
    seen: list[tuple[int, int]] = []
    done = catalog.register(
        source, name="bot", base="tiny", tag="prod", progress=lambda a, b: seen.append((a, b))
    )
    assert (done.version, done.method, done.rank, done.created) == ("v1", "lora", 4, True)
    assert seen and seen[-1][0] == seen[-1][1]
    version = catalog.snapshot().resolve("bot:prod").version
    assert version is not None
    blob = catalog.layout.blob(version.digest)
    config = json.loads((blob / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 4
    kept = load_file(blob / "adapter_model.safetensors")
    original = load_file(Path(source) / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    # alpha / r = 2 is folded into B, exactly in any float type.
    torch.testing.assert_close(kept[name].float(), 2 * original[name], rtol=1e-2, atol=0)
    # Bit for bit the same a second time, and another when the training was.
    assert catalog.register(source, name="twin", base="tiny").digest == done.digest
    assert catalog.register(source, name="bot", base="tiny").created is False
    assert catalog.register(adapter(16, 2), name="bot", base="tiny").version == "v2"
    assert catalog.verify().ok


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_an_initialisation_took_out_of_the_base_is_read_from_the_base(
    init: str, catalog: Catalog, tmp_path: Path
) -> None:
    """The registered base's own directory is at hand in inspect and in register."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(tiny_llama(16), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    model.save_pretrained(tmp_path / init)
    source = str(tmp_path / init)
    inspection = catalog.inspect(source)
    assert (inspection.method, inspection.rank, inspection.problems) == (init, 8, ())
    done = catalog.register(source, name="bot", base="tiny")
    assert (done.method, done.rank, done.lane) == (init, 8, Lane.HOT)
    # Where the base lies is no part of what is kept of it.
    assert str(tmp_path) not in catalog.base_descriptor("tiny").model_dump_json()


def test_an_adapter_of_another_model_leaves_no_trace(
    catalog: Catalog, adapter: Callable[[int, int], str]
) -> None:
    source = adapter(32, 1)
    with pytest.raises(BaseMismatch, match="q_proj"):
        catalog.register(source, name="bot", base="tiny")
    assert catalog.inspect(source).problems
    assert catalog.adapters() == []
    assert list(catalog.layout.staging.iterdir()) == []
    assert catalog.layout.stored_digests() == []


def test_a_base_that_is_none(catalog: Catalog, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BaseError):
            catalog.base_add("other", path)
    assert [base.name for base in catalog.bases()] == ["tiny"]


@pytest.mark.parametrize("form", ["zip", "gztar", "tar"])
def test_an_archive_with_the_pair_at_its_root(
    form: str, catalog: Catalog, adapter: Callable[[int, int], str], tmp_path: Path
) -> None:
    """As Together takes and gives adapters."""
    source = adapter(16, 1)
    plain = catalog.register(source, name="plain", base="tiny")
    packed = shutil.make_archive(str(tmp_path / "adapter"), form, source)
    done = catalog.register(packed, name="packed", base="tiny")
    assert (done.digest, done.format) == (plain.digest, "peft")
