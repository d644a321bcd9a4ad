"""Bases are described as transformers builds them, told apart by weights, and refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from adapters.bases.describe import describe_base
from adapters.bases.digest import base_digest
from adapters.errors import BaseError

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}


def _save(model: PreTrainedModel, path: Path, **options: Any) -> Path:
    model.save_pretrained(path, **options)
    return path


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in one shard, tied, bf16."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)).to(torch.bfloat16)
    return _save(model, tmp_path_factory.mktemp("bases") / "single")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bases") / "sharded"
    return _save(LlamaForCausalLM(LlamaConfig(**SMALL)), path, max_shard_size="20KB")


@pytest.fixture
def copy(single: Path, tmp_path: Path) -> Path:
    return shutil.copytree(single, tmp_path / "copy")


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "shards")


def test_modules_are_those_of_the_loaded_model(single: Path) -> None:
    found = describe_base(single)
    model = LlamaForCausalLM.from_pretrained(single)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    described = {m.name: m for m in found.modules if m.kind == "linear"}
    assert described.keys() == linear.keys()
    for name, module in linear.items():
        spec = described[name]
        assert (spec.out_features, spec.in_features) == tuple(module.weight.shape)
    embedding = next(m for m in found.modules if m.kind == "embedding")
    assert (embedding.name, embedding.in_features, embedding.out_features) == (
        "model.embed_tokens", 80, 32,
    )  # fmt: skip
    weights = {f"{m.name}.weight" for m in found.modules}
    assert found.parameters == {
        name: tuple(value.shape) for name, value in model.named_parameters() if name not in weights
    }
    assert (found.architecture, found.model_type, found.dtype) == (
        "LlamaForCausalLM", "llama", "bfloat16",
    )  # fmt: skip
    assert (found.vocab_size, found.context_length, found.tied_embeddings) == (80, 64, True)


def test_conv1d_has_its_own_kind(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=80, n_positions=48)
    found = describe_base(_save(GPT2LMHeadModel(config), tmp_path / "gpt2"))
    spec = next(m for m in found.modules if m.name == "transformer.h.0.attn.c_attn")
    assert (spec.kind, spec.in_features, spec.out_features) == ("conv1d", 32, 96)
    assert found.context_length == 48


def test_gpt2_saved_without_its_head_s_prefix(tmp_path: Path) -> None:
    """The hub's own GPT-2 names its tensors h.0.…, not transformer.h.0.…"""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=80)
    path = _save(GPT2LMHeadModel(config), tmp_path / "gpt2")
    tensors = load_file(path / "model.safetensors")
    renamed = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(renamed, path / "model.safetensors")
    assert any(m.name == "transformer.h.0.mlp.c_fc" for m in describe_base(path).modules)


def test_mixture_of_experts_is_described(tmp_path: Path) -> None:
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))
    found = describe_base(_save(model, tmp_path / "mixtral"))
    assert any("experts" in name for name in found.parameters)
    assert not any("experts" in m.name for m in found.modules)


def test_digest_does_not_depend_on_the_place(single: Path, copy: Path) -> None:
    assert describe_base(single) == describe_base(copy)
    assert base_digest(copy) == describe_base(single).digest


def test_digest_ignores_how_the_config_is_written(copy: Path) -> None:
    before = base_digest(copy)
    config = json.loads((copy / "config.json").read_text())
    config["_name_or_path"] = "/somewhere/else"
    config["transformers_version"] = "9.9"
    shuffled = {key: config[key] for key in reversed(list(config))}
    (copy / "config.json").write_text(json.dumps(shuffled, indent=7))
    assert base_digest(copy) == before


def test_digest_tells_fine_tunes_of_one_architecture_apart(copy: Path) -> None:
    """Config and weights index are the same; one weight matrix is not."""
    before = base_digest(copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(copy) != before


def test_digest_sees_a_changed_config(copy: Path) -> None:
    before = base_digest(copy)
    config = json.loads((copy / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (copy / "config.json").write_text(json.dumps(config))
    assert base_digest(copy) != before


def test_digest_needs_no_tensor_library(single: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from adapters.bases.digest import base_digest\n"
        f"base_digest(Path({str(single)!r}))\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_embedding_fingerprints_follow_the_tie(single: Path, sharded: Path) -> None:
    tied = describe_base(single).embedding_weights
    assert tied["lm_head"] == tied["model.embed_tokens"]
    assert tied["lm_head"].startswith("BF16:")
    apart = describe_base(sharded).embedding_weights
    assert apart["lm_head"] != apart["model.embed_tokens"]


def _truncate(path: Path) -> None:
    shard = path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


def _replace_config(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config.update(values)
        (path / "config.json").write_text(json.dumps(config))

    return change


def _only(name: str) -> Callable[[Path], None]:
    return lambda path: _dropped((path / "model.safetensors").rename(path / name))


def _dropped(_: object) -> None:
    """A call's result that nobody wants."""


def _without(tensor: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        del tensors[tensor]
        save_file(tensors, path / "model.safetensors")

    return change


BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no-config": (lambda path: (path / "config.json").unlink(), ("no config.json",)),
    "config-not-json": (
        lambda path: _dropped((path / "config.json").write_text("{")),
        ("not valid JSON",),
    ),
    "config-a-list": (lambda path: _dropped((path / "config.json").write_text("[]")), ("object",)),
    "no-model-type": (_replace_config(model_type=None), ("no model_type",)),
    "unknown-architecture": (_replace_config(model_type="magic"), ("'magic'", "does not know")),
    "config-nonsense": (_replace_config(num_hidden_layers="many"), ("config.json",)),
    "config-of-other-weights": (
        _replace_config(intermediate_size=96),
        ("gate_proj", "[48, 32]", "[96, 32]"),
    ),
    "classifier": (
        _replace_config(architectures=["LlamaForSequenceClassification"]),
        ("LlamaForSequenceClassification", "no causal language model"),
    ),
    "no-weights": (lambda path: (path / "model.safetensors").unlink(), ("no weights",)),
    "only-bin": (_only("pytorch_model.bin"), ("only pickled weights", "safe_serialization")),
    "only-gguf": (_only("model.gguf"), ("GGUF",)),
    "loose-shard": (_only("model-00001-of-00002.safetensors"), ("index is missing",)),
    "truncated": (_truncate, ("model.safetensors is truncated", "fetch the base again")),
    "a-tensor-missing": (
        _without("model.layers.1.mlp.up_proj.weight"),
        ("lack 'model.layers.1.mlp.up_proj.weight'", "incomplete"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_base_is_refused_by_name(name: str, copy: Path) -> None:
    spoil, says = BAD[name]
    spoil(copy)
    with pytest.raises(BaseError) as refused:
        describe_base(copy)
    for part in says:
        assert part in refused.value.message
    assert "\n" not in refused.value.message


def test_missing_shard_is_named(shards: Path) -> None:
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(BaseError, match="which is missing") as refused:
        describe_base(shards)
    assert last.name in refused.value.message


def test_truncated_shard_is_named(shards: Path) -> None:
    last = sorted(shards.glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-4])
    with pytest.raises(BaseError, match="is truncated") as refused:
        describe_base(shards)
    assert last.name in refused.value.message


def test_index_and_shards_must_agree(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(index["weight_map"])
    first, other = names[0], next(
        n for n in names if index["weight_map"][n] != index["weight_map"][names[0]]
    )  # fmt: skip
    index["weight_map"][first] = index["weight_map"][other]
    path.write_text(json.dumps(index))
    with pytest.raises(BaseError, match="but it is not there"):
        describe_base(shards)


@pytest.mark.parametrize("shard", ["../escape.safetensors", "/etc/passwd", 7])
def test_index_cannot_lead_out_of_the_directory(shards: Path, shard: object) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(BaseError, match="not a plain file name"):
        describe_base(shards)


def test_two_sets_of_weights_are_refused(shards: Path, single: Path) -> None:
    shutil.copy(single / "model.safetensors", shards)
    with pytest.raises(BaseError, match="two sets of weights"):
        describe_base(shards)


def test_things_that_are_no_base(single: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, vocab_size=80)  # fmt: skip
    _save(BertModel(bert), tmp_path / "bert")
    for path, says in (
        (tmp_path / "model.gguf", "GGUF file"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "adapter", "is an adapter"),
        (single / "config.json", "is a file"),
        (tmp_path / "bert", "no causal language model"),
    ):
        with pytest.raises(BaseError, match=says):
            describe_base(path)


def test_code_that_comes_with_a_model_is_not_run(copy: Path, tmp_path: Path) -> None:
    _replace_config(
        model_type="magic",
        auto_map={"AutoConfig": "configuration_magic.Magic"},
    )(copy)
    ran = tmp_path / "ran"
    (copy / "configuration_magic.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(BaseError, match="not run"):
        describe_base(copy)
    assert not ran.exists()


def test_the_fixtures_are_what_they_say(single: Path, sharded: Path) -> None:
    assert AutoConfig.from_pretrained(single).tie_word_embeddings is True
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert issubclass(LlamaForSequenceClassification, PreTrainedModel)
