"""A merged directory, as transformers loads it, is the model that PEFT ran."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.compositions import Part, Recipe
from quantize.merging import writing
from quantize.merging.merge import merge
from tests.adapters.intake import mixtures
from tests.adapters.intake.conftest import VOCABULARY
from tests.adapters.intake.fine_tunes import everywhere, tune
from tests.quantize.conftest import Shop

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
# One rounding to fp32 of each weight, and PEFT's own.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Kind:
    """A PEFT config, the bases to try it on, and whether PEFT's own merge is right there."""

    values: dict[str, Any]
    bases: tuple[str, ...]
    config: str = "LoraConfig"
    wrong_in_peft: tuple[str, ...] = ()
    untied: tuple[str, ...] = field(default=())


_LLAMAS = ("llama", "llama-tied", "qwen3", "shards")
KINDS: dict[str, Kind] = {
    "lora": Kind({"target_modules": LLAMA}, _LLAMAS),
    "lora-gpt2": Kind({"target_modules": GPT2, "fan_in_fan_out": True}, ("gpt2", "bare")),
    "rslora": Kind(
        {"target_modules": LLAMA, "use_rslora": True, "rank_pattern": {"q_proj": 2}}, _LLAMAS
    ),
    "dora": Kind({"target_modules": LLAMA, "use_dora": True}, _LLAMAS),
    "dora-gpt2": Kind({"target_modules": GPT2, "use_dora": True}, ("gpt2", "bare")),
    "biases": Kind({"target_modules": GPT2, "bias": "all"}, ("gpt2", "bare")),
    "lora-bias": Kind({"target_modules": GPT2, "lora_bias": True}, ("gpt2",)),
    "modules": Kind({"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]}, _LLAMAS),
    "saved-head": Kind(
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        _LLAMAS,
        untied=("llama-tied", "shards"),
    ),
    "lora-on-the-head": Kind(
        {"target_modules": ["q_proj", "lm_head"]},
        _LLAMAS,
        untied=("llama-tied", "shards"),
        wrong_in_peft=("llama-tied", "shards"),
    ),
    "lora-on-the-embedding": Kind(
        {"target_modules": ["q_proj", "embed_tokens"]},
        _LLAMAS,
        untied=("llama-tied", "shards"),
        wrong_in_peft=("llama-tied", "shards"),
    ),
    "lora-on-gpt2s-embedding": Kind(
        {"target_modules": ["c_attn", "wte"]},
        ("gpt2", "bare"),
        untied=("gpt2", "bare"),
        wrong_in_peft=("gpt2", "bare"),
    ),
    # Stored as a plain LoRA on either end, which a merge cannot tell from different ones.
    "tokens": Kind(
        {"target_modules": LLAMA, "trainable_token_indices": [7, 3]},
        _LLAMAS,
        untied=("llama-tied", "shards"),
    ),
    "ia3": Kind(
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        _LLAMAS,
        config="IA3Config",
    ),
    "ia3-gpt2": Kind(
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
        ("gpt2",),
        config="IA3Config",
    ),
    "oft": Kind({"target_modules": LLAMA, "oft_block_size": 8}, ("llama",), config="OFTConfig"),
    "vera": Kind({"target_modules": ["q_proj", "o_proj"]}, ("llama",), config="VeraConfig"),
    "loha": Kind({"target_modules": LLAMA, "r": 3}, ("llama",), config="LoHaConfig"),
    "lokr": Kind({"target_modules": LLAMA, "r": 3}, ("llama",), config="LoKrConfig"),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows a block: all of a tiny model's parameters would fit into one."""
    monkeypatch.setattr(writing, "_BLOCK", 100)


def load(path: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        found = model.double().eval()(tokens).logits
    assert isinstance(found, torch.Tensor)
    return found


def train(model: Any, kind: Kind, folder: Path) -> None:
    """A real adapter with random weights everywhere, saved by PEFT."""
    given = {"task_type": "CAUSAL_LM", **copy.deepcopy(kind.values)}
    if kind.config == "LoraConfig":
        given = {"r": 4, "lora_alpha": 6, **given}
    tuned = get_peft_model(model, getattr(peft, kind.config)(**given))
    torch.manual_seed(11)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.2
    tuned.float().save_pretrained(folder)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize(
    ("name", "base"), [(name, base) for name, kind in KINDS.items() for base in kind.bases]
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_equals_peft(name: str, base: str, shop: Shop, tmp_path: Path) -> None:
    kind, path = KINDS[name], shop.base(base)
    train(load(path, torch.float32), kind, tmp_path / "adapter")
    original = logits(PeftModel.from_pretrained(load(path), tmp_path / "adapter"))
    done = shop.merged(tmp_path / "adapter", base, tmp_path / "merged")
    model = load(tmp_path / "merged")
    merged = logits(model)
    assert difference(original, logits(load(path))) > 1e-3, "the adapter must do something"
    assert difference(merged, original) <= TOLERANCE
    assert (base in kind.untied) == ("lm_head.weight" in done.report.added)
    assert model.config.tie_word_embeddings == (
        load(path).config.tie_word_embeddings and base not in kind.untied
    )
    by_peft = PeftModel.from_pretrained(load(path, torch.float32), tmp_path / "adapter")
    whole = by_peft.merge_and_unload(safe_merge=True)
    if base in kind.wrong_in_peft:
        assert difference(logits(whole), original) > 1e-2, "PEFT is right by now"
        return
    ours = load(tmp_path / "merged", torch.float32).state_dict()
    for parameter, value in whole.float().state_dict().items():
        assert torch.allclose(ours[parameter], value, rtol=1e-5, atol=1e-6), parameter


@pytest.mark.parametrize("base", ["llama", "llama-tied", "qwen3", "shards"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_added_tokens(base: str, shop: Shop, tmp_path: Path) -> None:
    def enlarged(dtype: torch.dtype) -> Any:
        torch.manual_seed(5)
        model = load(shop.base(base), dtype)
        model.resize_token_embeddings(100, mean_resizing=False)
        return model

    values = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    train(enlarged(torch.float32), Kind(values, ()), tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").write_text('{"version": "1.0"}')
    original = logits(PeftModel.from_pretrained(enlarged(torch.float64), tmp_path / "adapter"))
    done = shop.merged(tmp_path / "adapter", base, tmp_path / "merged")
    model = load(tmp_path / "merged")
    assert (model.config.vocab_size, logits(model).shape[-1]) == (100, 100)
    assert "model.embed_tokens.weight" in done.report.resized
    assert difference(logits(model), original) <= TOLERANCE
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == '{"version": "1.0"}'


@pytest.mark.parametrize("base", ["llama", "llama-tied", "llama-bf16", "gpt2", "bare", "shards"])
def test_a_full_fine_tune_is_itself_again(base: str, shop: Shop, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if base == "llama-bf16" else torch.float32
    tuned = tune(shop.base(base), tmp_path / "tuned", everywhere(0.1), dtype=dtype)
    shop.merged(tmp_path / "tuned", base, tmp_path / "merged")
    found = load(tmp_path / "merged", dtype).state_dict()
    for name, value in tuned.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("base", ["moe", "fused"])
def test_experts(base: str, shop: Shop, tmp_path: Path) -> None:
    path = shop.base(base)
    targets = ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"]
    expected = mixtures.train(
        path, tmp_path / "adapter", target_modules=["o_proj"], target_parameters=targets
    )
    before = mixtures.logits(mixtures.load_mixture(path))
    shop.merged(tmp_path / "adapter", base, tmp_path / "merged")
    merged = mixtures.logits(mixtures.load_mixture(tmp_path / "merged"))
    assert difference(expected, before) > 1e-2
    assert difference(merged, expected) <= TOLERANCE * max(1.0, expected.abs().max().item())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_composition_is_the_sum_of_its_parts(shop: Shop, tmp_path: Path) -> None:
    path = shop.base("qwen3")
    changes = []
    for name, targets in (("one", ["q_proj", "v_proj"]), ("other", ["v_proj", "down_proj"])):
        kind = Kind({"target_modules": targets}, ())
        train(load(path, torch.float32), kind, tmp_path / name)
        shop.register(tmp_path / name, f"part-{name}", "qwen3")
        loaded = PeftModel.from_pretrained(load(path), tmp_path / name)
        changes.append(loaded.merge_and_unload().state_dict())
    parts = [Part(reference="part-one", weight=0.7), Part(reference="part-other", weight=-0.4)]
    shop.catalog.compose(parts, Recipe(), name="both")
    done = merge(shop.catalog, "both", tmp_path / "merged")
    assert [(o.reference, o.weight) for o in done.report.composed_from] == [
        ("part-one:v1", 0.7),
        ("part-other:v1", -0.4),
    ]
    base, found = load(path).state_dict(), load(tmp_path / "merged").state_dict()
    for name, value in base.items():
        expected = value + 0.7 * (changes[0][name] - value) - 0.4 * (changes[1][name] - value)
        assert torch.allclose(found[name], expected, atol=1e-6), name
