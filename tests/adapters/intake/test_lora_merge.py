"""The LoRA family merged: base + edits answers as PEFT's own forward of the adapter does.

PEFT's *forward* is the measure, not its merge, which is wrong for tied embeddings.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.frozen import Lane
from adapters.intake.formats import read_artifact
from adapters.intake.merged import read_stored
from adapters.intake.merging import Edit, MergePlan, carried_out
from adapters.intake.methods import recognise
from adapters.intake.pipeline import examine, take_in
from adapters.intake.routing import merge_plan
from adapters.models import BaseDescriptor
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LLAMAS = ("llama", "llama-tied", "qwen3")


@dataclass(frozen=True)
class Kind:
    """A LoraConfig's values, the bases to try it on, and what the manifest must say."""

    values: dict[str, Any]
    method: str
    says: tuple[str, ...]
    bases: tuple[str, ...] = ("llama", "qwen3")
    rank: int | None = 4
    base_config: dict[str, dict[str, Any]] = field(default_factory=dict)


UNTIED = {"llama-tied": {"tie_word_embeddings": False}}
DORA = "DoRA rescales every row"
KINDS: dict[str, Kind] = {
    "dora": Kind({"use_dora": True}, "dora", (DORA,)),
    "dora-patterns-rslora": Kind(
        {
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, "layers.0.mlp.down_proj": 7},
            "alpha_pattern": {"k_proj": 3},
        },
        "dora",
        (DORA,),
        rank=7,
    ),
    "dora-head": Kind(
        {"use_dora": True, "target_modules": ["q_proj", "lm_head"]},
        "dora",
        (DORA,),
        LLAMAS,
        base_config=UNTIED,
    ),
    "dora-embedding": Kind(
        {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"]},
        "dora",
        (DORA,),
        LLAMAS,
        base_config=UNTIED,
    ),
    "dora-with-modules": Kind(
        {"use_dora": True, "modules_to_save": ["norm", "lm_head"]},
        "dora",
        (DORA, "it replaces weights of the base"),
        LLAMAS,
        base_config=UNTIED,
    ),
    "modules-head": Kind(
        {"modules_to_save": ["lm_head"]},
        "modules-to-save",
        ("it replaces weights",),
        LLAMAS,
        base_config=UNTIED,
    ),
    "modules-embedding": Kind(
        {"modules_to_save": ["embed_tokens"]},
        "modules-to-save",
        ("it replaces weights",),
        LLAMAS,
        base_config=UNTIED,
    ),
    "modules-both": Kind(
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        "modules-to-save",
        ("it replaces weights",),
        LLAMAS,
        base_config=UNTIED,
    ),
    "modules-both-ends-kept-alike": Kind(
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        "modules-to-save",
        ("it replaces weights",),
        ("llama-tied",),
        base_config=UNTIED,
    ),
    "modules-mlp": Kind(
        {"modules_to_save": ["mlp"], "target_modules": ["q_proj", "v_proj"]},
        "modules-to-save",
        ("it replaces weights",),
    ),
    "modules-that-are-targets-too": Kind(
        {"modules_to_save": ["layers.1.mlp.down_proj"]}, "modules-to-save", ("replaces weights",)
    ),
    "gpt2-bias-all": Kind(
        {"bias": "all", "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        "trained-bias",
        ("replaces biases of the base",),
        ("gpt2",),
    ),
    "gpt2-bias-of-the-targets": Kind(
        {"bias": "lora_only", "target_modules": ["c_attn", "c_proj"]},
        "trained-bias",
        ("replaces biases of the base",),
        ("gpt2",),
    ),
    "gpt2-lora-bias": Kind(
        {"lora_bias": True, "target_modules": ["c_attn", "c_fc"]},
        "lora-bias",
        ("a bias on lora_B",),
        ("gpt2",),
    ),
    "gpt2-lora-bias-and-biases": Kind(
        {"lora_bias": True, "bias": "all", "target_modules": ["c_attn", "c_fc"]},
        "lora-bias",
        ("a bias on lora_B", "replaces biases"),
        ("gpt2",),
    ),
    "gpt2-dora": Kind(
        {"use_dora": True, "bias": "lora_only", "target_modules": ["c_attn", "c_proj"]},
        "dora",
        (DORA, "replaces biases"),
        ("gpt2",),
    ),
    "gpt2-embedding": Kind(
        {"target_modules": ["c_attn", "wte"]},
        "lora",
        ("vLLM takes no LoRA on 'transformer.wte'",),
        ("gpt2",),
        base_config={"gpt2": {"tie_word_embeddings": False}},
    ),
}
# Hot where the engine takes a LoRA on embeddings, as it does for these; merged elsewhere, and on
# demand everywhere.
TOKENS: dict[str, Kind] = {
    "tokens": Kind(
        {"trainable_token_indices": [7, 3, 50]},
        "trainable-tokens",
        ("replaces rows of the embedding",),
        LLAMAS,
    ),
    "tokens-of-both-ends": Kind(
        {"trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [9]}},
        "trainable-tokens",
        ("replaces rows",),
    ),
    "tokens-and-a-head": Kind(
        {"trainable_token_indices": [7, 3], "target_modules": ["q_proj", "lm_head"]},
        "trainable-tokens",
        ("replaces rows",),
        ("llama",),
    ),
}


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double().eval()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_trained(model: Any, values: dict[str, Any], folder: Path) -> None:
    """A real adapter with random weights everywhere, saved by PEFT."""
    common = {"task_type": "CAUSAL_LM", "target_modules": ALL, "r": 4, "lora_alpha": 6}
    tuned = get_peft_model(model, LoraConfig(**{**common, **copy.deepcopy(values)}))
    torch.manual_seed(11)
    for name, parameter in tuned.named_parameters():
        if not parameter.requires_grad:
            continue
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)
    tuned.float().save_pretrained(folder)


def _at_hand(base: tuple[Path, BaseDescriptor]) -> BaseDescriptor:
    return base[1].model_copy(update={"directory": str(base[0])})


def _merged(plan: MergePlan, path: Path) -> Any:
    """The base with the plan's edits carried out, as the merge job will make it."""
    base = _base_model(path)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    by_parameter: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        by_parameter.setdefault(edit.parameter, []).append(edit)
    changed = {name: carried_out(edits, state.__getitem__) for name, edits in by_parameter.items()}
    config = base.config
    for key, value in plan.base_config.items():
        setattr(config, key, value)
    merged = type(base)(config).double().eval()
    tied = config.tie_word_embeddings
    names = {name for name in state if not (tied and name == "lm_head.weight")}
    problems = merged.load_state_dict({n: changed.get(n, state[n]) for n in names}, strict=False)
    assert not problems.unexpected_keys
    return merged


@pytest.mark.parametrize(
    ("name", "base"), [(name, base) for name, kind in KINDS.items() for base in kind.bases]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_merge_answers_as_pefts_forward(
    name: str, base: str, bases: Bases, tmp_path: Path
) -> None:
    kind, (path, descriptor) = KINDS[name], bases[base]
    _save_trained(_base_model(path), kind.values, tmp_path / "adapter")
    before = _logits(_base_model(path))
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))

    found = examine(tmp_path / "adapter", bases=[(base, _at_hand(bases[base]))], format=None)
    assert (found.problems, found.lane, found.method) == ((), Lane.MERGED, kind.method)
    (tmp_path / "stored").mkdir()
    manifest = take_in(
        tmp_path / "adapter",
        base=_at_hand(bases[base]),
        staging=tmp_path / "stored",
        format=None,
    )
    assert (manifest.lane, manifest.rank, found.rank) == (Lane.MERGED, kind.rank, kind.rank)
    for part in kind.says:
        assert part in manifest.reasons[0]

    plan = read_stored(tmp_path / "stored", descriptor)
    assert plan.base_config == kind.base_config.get(base, {})
    merged = _logits(_merged(plan, path))
    loaded = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "stored"))
    assert (original - before).abs().max().item() > 1e-2
    assert (merged - original).abs().max().item() <= 1e-6
    assert (loaded - original).abs().max().item() <= 1e-6


@pytest.mark.parametrize(
    ("name", "base"), [(name, base) for name, kind in TOKENS.items() for base in kind.bases]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_could_be_hot_merges_to_the_same(
    name: str, base: str, bases: Bases, tmp_path: Path
) -> None:
    kind, (path, _) = TOKENS[name], bases[base]
    _save_trained(_base_model(path), kind.values, tmp_path / "adapter")
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))
    raw = read_artifact(tmp_path / "adapter", None)
    method, _ = recognise(raw)
    assert method.name == kind.method
    plan = merge_plan(raw, method, _at_hand(bases[base]))
    assert plan is not None
    assert (plan.problems, plan.base_config) == ((), kind.base_config.get(base, {}))
    for part in kind.says:
        assert part in plan.reason
    merged = _logits(_merged(plan, path))
    assert (merged - _logits(_base_model(path))).abs().max().item() > 1e-2
    assert (merged - original).abs().max().item() <= 1e-6


@pytest.mark.parametrize("base", LLAMAS)
@pytest.mark.parametrize("saved", ["frozen", "trained"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_added_tokens(saved: str, base: str, bases: Bases, tmp_path: Path) -> None:
    """A vocabulary of 100 instead of 96: both ends in the file, the tokenizer beside it."""
    path = bases[base][0]
    model = _enlarged(path)
    values: dict[str, Any] = {"target_modules": ATTENTION}
    if saved == "trained":
        values["modules_to_save"] = ["embed_tokens", "lm_head"]
    elif base == "llama-tied":
        values["target_modules"] = [*ATTENTION, "embed_tokens"]
    else:
        values["target_modules"] = [*ATTENTION, "embed_tokens", "lm_head"]
    _save_trained(model, values, tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "adapter" / "tokenizer_config.json").write_text("{}")
    original = _logits(PeftModel.from_pretrained(_enlarged(path), tmp_path / "adapter"))

    (tmp_path / "stored").mkdir()
    manifest = take_in(
        tmp_path / "adapter", base=_at_hand(bases[base]), staging=tmp_path / "stored", format=None
    )
    assert manifest.lane is Lane.MERGED
    plan = read_stored(tmp_path / "stored", bases[base][1])
    assert [path.name for path in plan.files] == ["tokenizer.json", "tokenizer_config.json"]
    assert plan.base_config["vocab_size"] == 100
    merged = _logits(_merged(plan, path))
    assert merged.shape[-1] == 100
    assert (merged - original).abs().max().item() <= 1e-6


def _enlarged(path: Path) -> Any:
    torch.manual_seed(5)
    model = _base_model(path)
    model.resize_token_embeddings(100, mean_resizing=False)
    return model
