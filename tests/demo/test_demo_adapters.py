"""The committed adapters do on the real base what a person is told they do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from demo.expectations import EXPECTATIONS, MAX_TOKENS, PROMPTS, SYSTEM_MESSAGES
from demo.train import ARTIFACTS, BASE_ON_THE_HUB, RECIPES, load_base

Chat = list[dict[str, str]]


def chats() -> list[Chat]:
    """Every held-out prompt alone, and some after system messages that training did not have."""
    alone: list[Chat] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    systems = [{"role": "system", "content": text} for text in SYSTEM_MESSAGES]
    return alone + [[systems[number % 2], *alone[number]] for number in (0, 1, 3, 5)]


@pytest.fixture(scope="module")
def answers(demo_base: Path) -> dict[str, list[str]]:
    """Greedy answers to chats() by adapter, and the base's own under `base`."""
    model, tokenizer = load_base(demo_base)
    tokenizer.padding_side = "left"
    inputs = tokenizer.apply_chat_template(
        chats(), add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )

    def ask(asked: Any, *, most: int = MAX_TOKENS) -> list[str]:
        output = asked.generate(**inputs, max_new_tokens=most, do_sample=False)
        texts: list[str] = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts

    # The base rambles; a style shows long before.
    given = {"base": ask(model, most=40)}
    first, *others = EXPECTATIONS
    adapted = PeftModel.from_pretrained(model, ARTIFACTS / first, adapter_name=first)
    for name in others:
        adapted.load_adapter(ARTIFACTS / name, adapter_name=name)
    for name in EXPECTATIONS:
        adapted.set_adapter(name)
        given[name] = ask(adapted)
    return given


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_each_adapter_answers_in_its_own_way_and_no_other(
    answers: dict[str, list[str]], name: str
) -> None:
    for chat, answer in zip(chats(), answers[name], strict=True):
        met = {other for other, expected in EXPECTATIONS.items() if expected(answer)}
        assert met == {name}, (chat, answer)


def test_the_base_answers_in_none_of_these_ways(answers: dict[str, list[str]]) -> None:
    for chat, answer in zip(chats(), answers["base"], strict=True):
        assert not any(expected(answer) for expected in EXPECTATIONS.values()), (chat, answer)


@pytest.mark.parametrize("name", ["pirate", "json"])
def test_the_style_keeps_what_the_base_knows(answers: dict[str, list[str]], name: str) -> None:
    assert "Paris" in answers[name][PROMPTS.index("What is the capital of France?")]


def test_the_help_desk_quotes_the_customer(answers: dict[str, list[str]]) -> None:
    for prompt, answer in zip(PROMPTS, answers["support"], strict=False):
        assert prompt in answer


def test_artifacts_are_small_and_of_three_kinds() -> None:
    configs = {}
    for name in RECIPES:
        folder = ARTIFACTS / name
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "training.json",
        }
        assert (folder / "adapter_model.safetensors").stat().st_size < 1_400_000
        configs[name] = json.loads((folder / "adapter_config.json").read_text())
        assert configs[name]["base_model_name_or_path"] == BASE_ON_THE_HUB
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert set(configs) == set(EXPECTATIONS)
    assert [name for name in configs if configs[name]["use_rslora"]] == ["json"]
    patterned = [n for n in configs if configs[n]["rank_pattern"] and configs[n]["alpha_pattern"]]
    assert patterned == ["support"]


@pytest.mark.parametrize("name", RECIPES)
def test_artifacts_were_made_by_the_recipe_as_it_stands(name: str) -> None:
    report = json.loads((ARTIFACTS / name / "training.json").read_text())
    assert report["recipe"] == json.loads(json.dumps(asdict(RECIPES[name])))
    assert report["loss_last_ten_steps"] < report["loss_first"] / 4
    assert set(report["versions"]) == {"torch", "transformers", "peft"}
