"""Full fine-tunes that are damaged, of another base or traps; `BAD` is the list, as code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapters.errors import (
    AmbiguousFormat,
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
    SourceUnreadable,
    UnknownFormat,
    UnsafePickle,
)
from tests.adapters.intake.artifact_builders import CallOnLoad

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"
UP7 = "model.layers.7.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Spoil = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BadTune:
    """A way to spoil a right fine-tune in its folder, and the refusal that must follow."""

    spoil: Spoil
    error: type[ArtifactError]
    says: tuple[str, ...]
    inside: str = "."


def _tensors(change: Callable[[Tensors], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / ONE)
        change(tensors)
        save_file(tensors, folder / ONE, metadata={"format": "pt"})

    return spoil


def _value(name: str, value: float) -> Spoil:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = value

    return _tensors(change)


def _replaced(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return _tensors(lambda tensors: tensors.update({name: value(tensors[name]).contiguous()}))


def _config(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def _both(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


def sharded(folder: Path) -> None:
    """Two shards and their index in the place of the one file."""
    tensors = load_file(folder / ONE)
    (folder / ONE).unlink()
    halves = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(halves.values()):
        part = {name: value for name, value in tensors.items() if halves[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": halves}))


def _index(change: Callable[[dict[str, str]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        sharded(folder)
        value = json.loads((folder / INDEX).read_text())
        change(value["weight_map"])
        (folder / INDEX).write_text(json.dumps(value))

    return spoil


def _written(name: str, raw: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return spoil


def _truncated(folder: Path) -> None:
    raw = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(raw[: len(raw) * 2 // 3])


def _hostile_pickle(folder: Path) -> None:
    (folder / ONE).unlink()
    torch.save({"model.norm.weight": CallOnLoad()}, folder / "pytorch_model.bin")


def _checkpoints_only(folder: Path) -> None:
    for step in (5, 10):
        inner = folder / f"checkpoint-{step}"
        inner.mkdir()
        for name in ("config.json", ONE):
            shutil.copy(folder / name, inner / name)
    for name in ("config.json", ONE):
        (folder / name).unlink()


def _with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")


def _resized(rows: int) -> Spoil:
    def change(tensors: Tensors) -> None:
        for name in (EMBEDDING, HEAD):
            tensors[name] = torch.ones(rows, tensors[name].shape[1])

    return _tensors(change)


BAD: dict[str, BadTune] = {
    "missing-shard": BadTune(
        _both(sharded, lambda folder: next(folder.glob("model-00002*")).unlink()),
        DamagedArtifact,
        ("model-00002-of-00002.safetensors", "missing", "1 of 2"),
    ),
    "no-index": BadTune(
        _both(sharded, lambda folder: (folder / INDEX).unlink()), DamagedArtifact, ("no index",)
    ),
    "shard-elsewhere": BadTune(
        _index(lambda where: where.update({Q0: "../model.safetensors"})),
        DamagedArtifact,
        ("no plain file name",),
    ),
    "index-of-another-save": BadTune(
        _index(lambda where: where.update({Q0: next(v for v in where.values() if v != where[Q0])})),
        DamagedArtifact,
        (Q0, "it is not there"),
    ),
    "empty-index": BadTune(
        _index(lambda where: where.clear()), DamagedArtifact, ("no weight_map",)
    ),
    "two-sets": BadTune(
        _both(sharded, lambda folder: save_file({"x": torch.ones(1)}, folder / ONE)),
        DamagedArtifact,
        ("two sets of weights",),
    ),
    "in-two-shards": BadTune(
        _both(
            sharded,
            lambda folder: save_file(
                {
                    **load_file(folder / "model-00001-of-00002.safetensors"),
                    **load_file(folder / "model-00002-of-00002.safetensors"),
                },
                folder / "model-00001-of-00002.safetensors",
            ),
        ),
        DamagedArtifact,
        ("is in both",),
    ),
    "truncated": BadTune(_truncated, DamagedArtifact, ("truncated",)),
    "empty": BadTune(_written(ONE, b""), DamagedArtifact, ("is empty",)),
    "nan": BadTune(_value(Q0, float("nan")), DamagedArtifact, (Q0, "1 NaN or infinite")),
    "infinity": BadTune(_value(NORM, float("inf")), DamagedArtifact, (NORM, "infinite")),
    "lacks-a-tensor": BadTune(
        _tensors(lambda tensors: tensors.__delitem__(Q0)), DamagedArtifact, (Q0, "lacks")
    ),
    "one-tensor-more": BadTune(
        _tensors(
            lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": torch.ones(2)})
        ),
        BaseMismatch,
        ("model.layers.7.mlp.up_proj.weight", "layers 0 to 2"),
    ),
    "wrong-shape": BadTune(
        _replaced(Q0, lambda value: value[:16]), BaseMismatch, (Q0, "[16, 32]", "[32, 32]")
    ),
    "wrong-width": BadTune(
        _replaced(EMBEDDING, lambda value: value[:, :16]), BaseMismatch, (EMBEDDING, "[96, 16]")
    ),
    "not-gathered": BadTune(
        _replaced(Q0, lambda value: torch.empty(0)), DamagedArtifact, (Q0, "ZeRO-3")
    ),
    "integers": BadTune(
        _replaced(Q0, lambda value: value.to(torch.int8)), DamagedArtifact, (Q0, "I8")
    ),
    "other-architecture": BadTune(
        _config(model_type="mistral", architectures=["MistralForCausalLM"]),
        BaseMismatch,
        ("MistralForCausalLM", "LlamaForCausalLM"),
    ),
    "classifier": BadTune(
        _config(architectures=["LlamaForSequenceClassification"]),
        NotServable,
        ("LlamaForSequenceClassification", "does not produce text"),
    ),
    "reward-head": BadTune(
        _tensors(lambda tensors: tensors.update({"score.weight": torch.ones(1, 32)})),
        NotServable,
        ("score.weight",),
    ),
    "other-heads": BadTune(_config(num_attention_heads=8, head_dim=4), BaseMismatch, ("head_dim",)),
    "quantized": BadTune(
        _config(quantization_config={"quant_method": "bitsandbytes"}), NotServable, ("quantized",)
    ),
    "refused-config": BadTune(
        _config(num_attention_heads="many"), InvalidConfig, ("transformers refuses",)
    ),
    "config-no-json": BadTune(
        _written("config.json", b"{"),
        InvalidConfig,
        ("config.json is not valid JSON",),
    ),
    "tied-but-not": BadTune(
        _config(tie_word_embeddings=True), InvalidConfig, (HEAD, "tie_word_embeddings")
    ),
    "tokens-but-no-config": BadTune(_resized(100), InvalidConfig, ("vocab_size 96", "100 rows")),
    "head-without-tokens": BadTune(
        _both(_config(vocab_size=100), _replaced(HEAD, lambda value: torch.ones(100, 32))),
        DamagedArtifact,
        ("differ in their vocabulary",),
    ),
    "hostile-pickle": BadTune(_hostile_pickle, UnsafePickle, ("more than tensors",)),
    "checkpoints-only": BadTune(_checkpoints_only, AmbiguousFormat, ("checkpoint-10",)),
    "adapter-beside": BadTune(_with_an_adapter, AmbiguousFormat, ("peft or full", "--format")),
    "one-file-of-it": BadTune(
        lambda folder: None, SourceUnreadable, ("give the directory it is in",), inside=ONE
    ),
    "config-alone": BadTune(
        lambda folder: (folder / ONE).unlink(), UnknownFormat, ("no weights that belong to it",)
    ),
}
