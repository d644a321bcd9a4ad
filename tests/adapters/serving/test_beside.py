"""What of the files around an adapter is its own, and what the user makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from adapters.errors import ArtifactError, InvalidConfig
from adapters.models import BaseDescriptor
from adapters.serving.beside import Beside, read_beside
from adapters.serving.document import NO_CHOICE, SamplingDefaults, Serving, ServingChoice
from tests.adapters.serving.templates import CHATML, NO_SYSTEM, PIRATE

BASE_FILES: dict[str, Any] = {
    "tokenizer_config.json": {
        "chat_template": CHATML,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": None,
    },
    "tokenizer.json": {
        "added_tokens": [{"id": 2, "content": "</s>"}, {"id": 7, "content": "<|im_end|>"}]
    },
    "generation_config.json": {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2},
}


def write(directory: Path, files: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> BaseDescriptor:
    return BaseDescriptor(
        digest="sha256:" + "0" * 64,
        architecture="LlamaForCausalLM",
        model_type="llama",
        dtype="bfloat16",
        vocab_size=16,
        context_length=32,
        tied_embeddings=False,
        modules=(),
        parameters={},
        directory=str(write(tmp_path / "base", BASE_FILES)),
    )


def read(
    tmp_path: Path, base: BaseDescriptor, files: dict[str, Any], choice: ServingChoice = NO_CHOICE
) -> Beside:
    adapter = write(tmp_path / "adapter", {"adapter_config.json": {}, **files})
    return read_beside(adapter, base=base, choice=choice)


def test_nothing_and_copies_of_the_bases_files_are_nothing(
    tmp_path: Path, base: BaseDescriptor
) -> None:
    assert read(tmp_path, base, {}).serving == Serving()
    assert read(tmp_path, base, BASE_FILES).serving == Serving()
    moved = {"chat_template.jinja": CHATML.replace("\n", "\r\n") + "\r\n"}
    assert read(tmp_path, base, moved).serving == Serving()


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": NO_SYSTEM},
        {"chat_template.jinja": NO_SYSTEM, "tokenizer_config.json": {"chat_template": CHATML}},
        {"tokenizer_config.json": {"chat_template": NO_SYSTEM}},
        {"chat_template.json": {"chat_template": NO_SYSTEM}},
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "tool_use", "template": CHATML},
                    {"name": "default", "template": NO_SYSTEM},
                ]
            }
        },
        {"chat_template.jinja": NO_SYSTEM, "additional_chat_templates/rag.jinja": CHATML},
    ],
)
def test_a_template_of_its_own_is_found_where_trainers_put_it(
    tmp_path: Path, base: BaseDescriptor, files: dict[str, Any]
) -> None:
    found = read(tmp_path, base, files)
    assert found.serving == Serving(chat_template=NO_SYSTEM)
    several = "additional_chat_templates/rag.jinja" in files or "tool_use" in str(files)
    assert len(found.notes) == several


def test_named_templates_without_a_default_are_none(tmp_path: Path, base: BaseDescriptor) -> None:
    named = [{"name": "tool_use", "template": NO_SYSTEM}]
    files = {"tokenizer_config.json": {"chat_template": named}}
    assert read(tmp_path, base, files).serving == Serving()


def test_special_tokens_are_those_of_the_adapters_tokenizer(
    tmp_path: Path, base: BaseDescriptor
) -> None:
    """The engine renders with the base's tokens: the template must not notice."""
    mine = {"bos_token": {"content": "<'s\\>"}, "eos_token": "<|im_end|>"}
    files = {"tokenizer_config.json": {"chat_template": PIRATE, **mine}}
    template = read(tmp_path, base, files).serving.chat_template
    messages = [{"role": "user", "content": "hi"}]
    theirs = {"bos_token": "<s>", "eos_token": "</s>"}
    here, _ = render_jinja_template([messages], chat_template=template, **theirs)
    wanted, _ = render_jinja_template(
        [messages], chat_template=PIRATE, bos_token="<'s\\>", eos_token="<|im_end|>"
    )
    assert here == wanted
    assert "<|im_end|>" in here[0]


def test_an_end_token_of_its_own_ends_answers(tmp_path: Path, base: BaseDescriptor) -> None:
    found = read(tmp_path, base, {"tokenizer_config.json": {"eos_token": "<|im_end|>"}})
    assert found.serving.defaults.said() == {"stop_token_ids": [7]}
    unknown = read(tmp_path, base, {"tokenizer_config.json": {"eos_token": "<|new|>"}})
    assert unknown.serving == Serving()
    assert "<|new|>" in unknown.notes[0]


def test_of_the_generation_config_what_differs_and_can_be_said(
    tmp_path: Path, base: BaseDescriptor
) -> None:
    config = {
        "temperature": 0.2,
        "top_p": 0.9,
        "top_k": 40,
        "max_new_tokens": 99,
        "eos_token_id": [2, 5],
        "stop_strings": "###",
        "num_beams": 4,
        "transformers_version": "5.0",
        "min_p": None,
    }
    found = read(tmp_path, base, {"generation_config.json": config})
    assert found.serving.defaults.said() == {
        "temperature": 0.2,
        "top_k": 40,
        "max_tokens": 99,
        "stop": ["###"],
        "stop_token_ids": [5],
    }
    assert found.notes == (
        "generation_config.json: no field of a request stands for num_beams; left out",
    )


def test_greedy_is_temperature_zero(tmp_path: Path, base: BaseDescriptor) -> None:
    config = {"do_sample": False, "temperature": 0.6}
    found = read(tmp_path, base, {"generation_config.json": config})
    assert found.serving.defaults == SamplingDefaults(temperature=0.0)


def test_the_user_comes_before_the_artifact(tmp_path: Path, base: BaseDescriptor) -> None:
    files = {
        "chat_template.jinja": PIRATE,
        "generation_config.json": {"temperature": 0.2, "top_k": 5},
        "args.json": {"swift_version": "3.0", "system": "Old."},
    }
    own = read(tmp_path, base, files).serving
    assert (own.system_prompt, own.defaults.temperature) == ("Old.", 0.2)
    choice = ServingChoice(
        chat_template=CHATML, system_prompt="New.", defaults=SamplingDefaults(temperature=1.0)
    )
    assert read(tmp_path, base, files, choice).serving == Serving(
        chat_template=CHATML,
        system_prompt="New.",
        defaults=SamplingDefaults(temperature=1.0, top_k=5),
    )
    away = ServingChoice(chat_template="", system_prompt="")
    assert read(tmp_path, base, files, away).serving == Serving(defaults=own.defaults)
    alone = ServingChoice(weights_only=True, system_prompt="Only this.")
    assert read(tmp_path, base, files, alone).serving == Serving(system_prompt="Only this.")


def test_what_is_taken_away_need_not_be_servable(tmp_path: Path, base: BaseDescriptor) -> None:
    files = {"chat_template.jinja": "{% if %}", "generation_config.json": "broken"}
    with pytest.raises(InvalidConfig):
        read(tmp_path, base, files)
    files = {"chat_template.jinja": "{% if %}"}
    with pytest.raises(InvalidConfig, match=r"; --weights-only leaves it out$"):
        read(tmp_path, base, files)
    assert read(tmp_path, base, files, ServingChoice(weights_only=True)).serving == Serving()


def test_a_system_prompt_needs_a_base_that_takes_one(tmp_path: Path, base: BaseDescriptor) -> None:
    choice = ServingChoice(system_prompt="Be kind.")
    assert read(tmp_path, base, {}, choice).serving == Serving(system_prompt="Be kind.")
    write(tmp_path / "base", {"tokenizer_config.json": {"chat_template": NO_SYSTEM}})
    with pytest.raises(InvalidConfig, match=r"the base's chat template cannot .* not supported"):
        read(tmp_path, base, {}, choice)


def test_a_file_alone_has_nothing_beside_it(tmp_path: Path, base: BaseDescriptor) -> None:
    directory = write(tmp_path / "models", {"chat_template.jinja": PIRATE, "a.gguf": "GGUF"})
    found = read_beside(directory / "a.gguf", base=base, choice=NO_CHOICE)
    assert found.serving == Serving()


def test_without_the_bases_files_the_template_is_the_adapters(
    tmp_path: Path, base: BaseDescriptor
) -> None:
    for directory in (None, str(tmp_path / "gone")):
        alone = base.model_copy(update={"directory": directory})
        found = read(tmp_path, alone, {"chat_template.jinja": CHATML})
        assert found.serving == Serving(chat_template=CHATML)


@pytest.mark.parametrize(
    ("files", "choice", "words"),
    [
        ({"chat_template.jinja": "{% if %}"}, {}, "chat_template.jinja cannot be served: it does"),
        ({"tokenizer_config.json": "[]"}, {}, "holds a list, not a JSON object"),
        ({"tokenizer_config.json": "{"}, {}, "tokenizer_config.json is not valid JSON"),
        ({"tokenizer_config.json": {"chat_template": 5}}, {}, "neither a text nor a list"),
        ({"tokenizer_config.json": {"chat_template": [5]}}, {}, "neither a text nor a list"),
        ({"generation_config.json": {"temperature": -1}}, {}, "generation_config.json: 'temperat"),
        ({"generation_config.json": {"eos_token_id": 16}}, {}, "16 tokens and no token 16"),
        ({}, {"defaults": SamplingDefaults(stop_token_ids=(99,))}, "no token 99"),
        ({}, {"system_prompt": "x" * 70_000}, "the system prompt has 70000 bytes"),
        ({}, {"chat_template": "mute"}, "the chat template cannot be served: it leaves out"),
        (
            {"chat_template.jinja": NO_SYSTEM},
            {"system_prompt": "Be kind."},
            "chat_template.jinja cannot be served: it cannot render a system message",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    tmp_path: Path,
    base: BaseDescriptor,
    files: dict[str, Any],
    choice: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(tmp_path, base, files, ServingChoice(**choice))
    assert words in caught.value.message
    assert "\n" not in caught.value.message
