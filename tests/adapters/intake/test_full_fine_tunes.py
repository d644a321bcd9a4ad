"""A full fine-tune in the merged lane: the plan carried out is the fine-tune, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adapters.intake.formats import read_artifact
from adapters.intake.merging import MergePlan
from adapters.intake.methods import recognise
from adapters.intake.whole_weights import plan_whole_weights
from adapters.models import BaseDescriptor
from tests.adapters.intake.fine_tunes import everywhere, load, logits, low_rank, merged, tune

Bases = dict[str, tuple[Path, BaseDescriptor]]


def planned(folder: Path, bases: Bases, name: str) -> MergePlan:
    path, descriptor = bases[name]
    raw = read_artifact(folder, None)
    method, _ = recognise(raw)
    assert (raw.format, method.name) == ("full", "full-fine-tune")
    return plan_whole_weights(raw, descriptor.model_copy(update={"directory": str(path)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", ["llama", "llama-tied", "llama-bf16", "qwen3", "gpt2"])
def test_the_plan_carried_out_is_the_fine_tune(
    base: str, dtype: torch.dtype, bases: Bases, tmp_path: Path
) -> None:
    path = bases[base][0]
    tune(path, tmp_path / "tuned", everywhere(0.1), dtype=dtype)
    plan = planned(tmp_path / "tuned", bases, base)
    assert plan.problems == ()
    tuned = load(tmp_path / "tuned")
    assert len(plan.edits) == len(list(tuned.parameters()))
    assert torch.equal(logits(merged(path, plan)), logits(tuned))
    assert not torch.equal(logits(load(path)), logits(tuned))


def test_what_equals_the_base_is_left_out(bases: Bases, tmp_path: Path) -> None:
    path = bases["qwen3"][0]
    tune(path, tmp_path / "tuned", low_rank(2, 0.1))
    plan = planned(tmp_path / "tuned", bases, "qwen3")
    assert {edit.parameter.split(".")[-2] for edit in plan.edits} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert set(plan.uses) == {f"base_model.model.{edit.parameter}" for edit in plan.edits}
    assert "14 of the 25 parameters" in plan.more[0]
    assert "--approximate auto" in plan.more[0]
    assert torch.equal(logits(merged(path, plan)), logits(load(tmp_path / "tuned")))


def test_shards_and_pickles_are_read_alike(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama"][0]
    model = tune(path, tmp_path / "one", everywhere(0.1))
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    _pickled(model, tmp_path / "one" / "config.json", tmp_path / "pickled", shards=1)
    _pickled(model, tmp_path / "one" / "config.json", tmp_path / "pickles", shards=3)
    expected = planned(tmp_path / "one", bases, "llama")
    for name in ("many", "pickled", "pickles"):
        plan = planned(tmp_path / name, bases, "llama")
        assert plan.problems == ()
        assert plan.uses.keys() == expected.uses.keys()
        for key, tensor in plan.uses.items():
            assert torch.equal(tensor.load(), expected.uses[key].load())


def _pickled(model: torch.nn.Module, config: Path, folder: Path, shards: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(config.read_text())
    state = model.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    where = {name: f"pytorch_model-{i % shards}-of-{shards}.bin" for i, name in enumerate(state)}
    for file in set(where.values()):
        torch.save({n: state[n] for n in state if where[n] == file}, folder / file)
    index = {"weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_more_tokens_bring_their_tokenizer(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama"][0]
    model = load(path)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenizer.json").write_text("{}")
    plan = planned(tmp_path / "tuned", bases, "llama")
    assert plan.problems == ()
    assert plan.base_config["vocab_size"] == 100
    assert [file.name for file in plan.files if file.name.startswith("tok")] == ["tokenizer.json"]
    assert {edit.parameter for edit in plan.edits} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert torch.equal(logits(merged(path, plan)), logits(load(tmp_path / "tuned")))


def test_a_head_that_was_untied_is_one_of_its_own(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama-tied"][0]
    model = load(path)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "tuned")
    plan = planned(tmp_path / "tuned", bases, "llama-tied")
    assert plan.problems == ()
    assert plan.base_config["tie_word_embeddings"] is False
    assert [edit.parameter for edit in plan.edits] == ["lm_head.weight"]
    assert torch.equal(logits(merged(path, plan)), logits(load(tmp_path / "tuned")))


def test_a_head_that_was_tied_is_the_embedding(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama"][0]
    model = load(path)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "tuned")
    plan = planned(tmp_path / "tuned", bases, "llama")
    assert plan.problems == ()
    assert [edit.parameter for edit in plan.edits] == ["lm_head.weight"]
    assert torch.equal(logits(merged(path, plan)), logits(load(tmp_path / "tuned")))


def test_another_rope_goes_with_the_merge(bases: Bases, tmp_path: Path) -> None:
    path = bases["llama"][0]
    tune(path, tmp_path / "tuned", low_rank(2, 0.1))
    config = tmp_path / "tuned" / "config.json"
    values = json.loads(config.read_text())
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 50000.0}
    config.write_text(json.dumps({**values, "unsloth_version": "2026.8", "use_cache": False}))
    plan = planned(tmp_path / "tuned", bases, "llama")
    assert plan.problems == ()
    assert dict(plan.base_config) == {"rope_parameters": values["rope_parameters"]}


def test_the_stored_form_gives_the_same_plan(bases: Bases, tmp_path: Path) -> None:
    """What is kept in the merged lane is read again when it is merged."""
    from safetensors.torch import save_file

    path = bases["llama-tied"][0]
    tune(path, tmp_path / "tuned", everywhere(0.1))
    (tmp_path / "tuned" / "chat_template.jinja").write_text("{{ messages }}")
    plan = planned(tmp_path / "tuned", bases, "llama-tied")
    kept = tmp_path / "kept"
    kept.mkdir()
    save_file(
        {name: item.load() for name, item in plan.uses.items()}, kept / "adapter_model.safetensors"
    )
    (kept / "adapter_config.json").write_text(json.dumps(dict(plan.config)))
    for file in plan.files:
        (kept / file.name).write_bytes(file.read_bytes())
    raw = read_artifact(kept, None)
    method, _ = recognise(raw)
    assert (raw.format, method.name) == ("peft", "full-fine-tune")
    descriptor = bases["llama-tied"][1].model_copy(update={"directory": str(path)})
    again = plan_whole_weights(raw, descriptor)
    assert again.problems == ()
    assert again.uses.keys() == plan.uses.keys()
    assert again.base_config == plan.base_config
    assert [file.name for file in again.files] == [file.name for file in plan.files]
    assert "chat_template.jinja" in [file.name for file in plan.files]
    assert torch.equal(logits(merged(path, again)), logits(load(tmp_path / "tuned")))
