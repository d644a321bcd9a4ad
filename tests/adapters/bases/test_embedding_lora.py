"""The table of embedding LoRA against vLLM's sources, read and not imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from adapters.bases.embedding_lora import (
    EMBEDDING_LORA,
    MAX_LM_HEAD_VOCABULARY,
    embedding_refusal,
)


def _vllm() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return Path(spec.origin).parent


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _registry() -> dict[str, tuple[str, str]]:
    """Architecture -> (module, class) of vLLM's text generation models."""
    for node in ast.walk(_tree(_vllm() / "model_executor/models/registry.py")):
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "_TEXT_GENERATION_MODELS" for t in node.targets
        ):
            found = ast.literal_eval(node.value)
            assert isinstance(found, dict)
            return found
    raise AssertionError("vLLM's registry has moved")


def _embedding_modules(module: str, name: str) -> dict[str, str] | None:
    """The class's own `embedding_modules`, or a base class's, by reading."""
    path = _vllm() / "model_executor/models" / f"{module}.py"
    tree = _tree(path)
    imported = {
        alias.asname or alias.name: node.module.lstrip(".").rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        return None
    for statement in cls.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "embedding_modules" for t in statement.targets
        ):
            value = ast.literal_eval(statement.value)
            assert isinstance(value, dict)
            return value
    for parent in cls.bases:
        if not isinstance(parent, ast.Name) or not parent.id.endswith("ForCausalLM"):
            continue
        found = _embedding_modules(imported.get(parent.id, module), parent.id)
        if found is not None:
            return found
    return None


@pytest.mark.parametrize("architecture", EMBEDDING_LORA)
def test_vllm_takes_embedding_lora_for_every_row(architecture: str) -> None:
    names = EMBEDDING_LORA[architecture]
    modules = _embedding_modules(*_registry()[architecture])
    assert modules == {
        names.input.rpartition(".")[2]: "input_embeddings",
        names.output.rpartition(".")[2]: "output_embeddings",
    }


@pytest.mark.parametrize("architecture", EMBEDDING_LORA)
def test_the_tied_head_stays_a_layer_of_its_own(architecture: str) -> None:
    """`self.lm_head = self.model.embed_tokens` would make one LoRA serve both ends."""
    module, name = _registry()[architecture]
    text = (_vllm() / "model_executor/models" / f"{module}.py").read_text(encoding="utf-8")
    if "ParallelLMHead(" not in text:
        parent = re.search(rf"class {name}\((\w+)\)", text)
        assert parent and parent[1] in EMBEDDING_LORA, "a head that was not read"
        return
    assert not re.search(r"self\.lm_head = self\.model\.embed_tokens", text)
    assert "self.logits_processor(self.lm_head, hidden_states" in text


@pytest.mark.parametrize(
    "architecture", ["MistralForCausalLM", "Qwen2ForCausalLM", "Gemma2ForCausalLM"]
)
def test_architectures_vllm_refuses_are_not_in_the_table(architecture: str) -> None:
    assert not _embedding_modules(*_registry()[architecture])
    assert architecture not in EMBEDDING_LORA


def test_the_vocabulary_limit_is_vllm_s() -> None:
    text = (_vllm() / "lora/layers/logits_processor.py").read_text(encoding="utf-8")
    limits = re.findall(r"vocab_size > (\d+)", text)
    assert limits == [str(MAX_LM_HEAD_VOCABULARY)]


def test_refusals() -> None:
    def ask(module: str, rows: int = 100, base: int = 100) -> str | None:
        return embedding_refusal("LlamaForCausalLM", module, vocabulary=rows, base_vocabulary=base)

    assert ask("lm_head") is None
    assert ask("model.embed_tokens", 300_000, 300_000) is None
    assert "up to 258048" in (ask("lm_head", 300_000, 300_000) or "")
    assert "vocabulary is 128" in (ask("lm_head", 100, 128) or "")
    assert "takes no LoRA" in (ask("model.embed_positions") or "")
