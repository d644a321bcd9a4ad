"""What trainers leave beside an adapter. The texts are shortened from what they really write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.intake.locate import list_directory
from adapters.serving.training import Training, described, precision_of_name, read_training
from tests.adapters.serving.manifests import manifest

AXOLOTL_CARD = """\
---
library_name: peft
base_model: TinyLlama/TinyLlama-1.1B-Chat-v1.0
---
<details><summary>See axolotl config</summary>

axolotl version: `0.11.0`
```yaml
base_model: TinyLlama/TinyLlama-1.1B-Chat-v1.0
adapter: qlora
load_in_8bit: false
load_in_4bit: true
bf16: auto
```

</details><br>

### Framework versions

- PEFT 0.15.2
"""
TRL_CARD = """\
# Model Card for out

It has been trained using [TRL](https://github.com/huggingface/trl).

### Framework versions

- PEFT 0.17.0
- TRL: 0.21.0
- Transformers: 4.55.0
"""
BNB_CARD = """\
## Training procedure

The following `bitsandbytes` quantization config was used during training:
- quant_method: bitsandbytes
- load_in_8bit: False
- load_in_4bit: True
- bnb_4bit_quant_type: fp4
"""
BNB_8_CARD = BNB_CARD.replace("8bit: False", "8bit: True").replace("4bit: True", "4bit: False")
SWIFT = {
    "swift_version": "3.5.1",
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "tuner_backend": "peft",
    "template": "qwen2_5",
    "system": "You answer in rhymes.",
    "quant_method": None,
    "quant_bits": None,
    "torch_dtype": "bfloat16",
}


def told(directory: Path, files: dict[str, str]) -> Training:
    for name, text in files.items():
        (directory / name).write_text(text)
    return read_training(list_directory(directory))


@pytest.mark.parametrize(
    ("files", "trainer", "version", "precision"),
    [
        ({"README.md": AXOLOTL_CARD}, "Axolotl", "Axolotl 0.11.0", "nf4"),
        (
            {"README.md": AXOLOTL_CARD.replace("load_in_4bit: true", "load_in_4bit: false")},
            "Axolotl",
            "Axolotl 0.11.0",
            None,
        ),
        (
            {"README.md": AXOLOTL_CARD.replace("4bit: true", "4bit: false").replace("auto", "yes")},
            "Axolotl",
            "Axolotl 0.11.0",
            "bf16",
        ),
        ({"README.md": TRL_CARD}, "TRL", "TRL 0.21.0", None),
        ({"README.md": BNB_CARD}, None, None, "fp4"),
        ({"README.md": BNB_CARD.replace("fp4", "nf4")}, None, None, "nf4"),
        (
            {
                "README.md": BNB_CARD.replace("8bit: False", "8bit: True").replace(
                    "4bit: True", "4bit: False"
                )
            },
            None,
            None,
            "int8",
        ),
        ({"args.json": json.dumps(SWIFT)}, "ms-swift", "ms-swift 3.5.1", "bf16"),
        (
            {"args.json": json.dumps({**SWIFT, "quant_method": "bnb", "quant_bits": 4})},
            "ms-swift",
            "ms-swift 3.5.1",
            "nf4",
        ),
        (
            {"args.json": json.dumps({**SWIFT, "quant_method": "hqq", "quant_bits": 4})},
            "ms-swift",
            "ms-swift 3.5.1",
            "hqq-int4",
        ),
        ({"args.json": '{"model": "x", "system": "y"}'}, None, None, None),
        ({"hyperparameters.yaml": "precision: bf16-true\nquantize: null"}, None, None, "bf16"),
        ({"hyperparameters.yaml": "precision: 32-true\nquantize: bnb.nf4-dq"}, None, None, "nf4"),
        ({"hyperparameters.yaml": "precision: 32-true"}, None, None, "fp32"),
        ({"hyperparameters.yaml": "&a [*a]"}, None, None, None),
        ({}, None, None, None),
    ],
)
def test_trainers_are_known_by_what_they_leave(
    tmp_path: Path,
    files: dict[str, str],
    trainer: str | None,
    version: str | None,
    precision: str | None,
) -> None:
    found = told(tmp_path, files)
    assert (found.trainer, found.version, found.precision) == (trainer, version, precision)
    assert (found.evidence is None) == (precision is None)


def test_ms_swift_keeps_the_system_prompt(tmp_path: Path) -> None:
    assert told(tmp_path, {"args.json": json.dumps(SWIFT)}).system_prompt == SWIFT["system"]
    assert told(tmp_path, {"args.json": '{"system": "not its"}'}).system_prompt is None


def test_an_unsloth_card_is_not_trls(tmp_path: Path) -> None:
    card = TRL_CARD + "\nTrained 2x faster with [Unsloth](https://github.com/unslothai/unsloth)\n"
    assert told(tmp_path, {"README.md": card}).trainer is None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["README.md", "args.json", "sft_args.json", "hyperparameters.yaml"]),
    st.binary(max_size=300)
    | st.sampled_from([AXOLOTL_CARD, BNB_CARD, json.dumps(SWIFT)]).flatmap(
        lambda text: st.integers(0, len(text)).map(lambda at: (text[:at] + text[at + 3 :]).encode())
    ),
)
def test_no_content_of_a_hint_raises(tmp_path: Path, name: str, data: bytes) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / name).write_bytes(data)
    found = read_training(list_directory(tmp_path))
    assert found.precision is None or len(found.precision) < 40


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "nf4"),
        ("unsloth/Qwen3-14B-unsloth-bnb-4bit", "nf4"),
        ("somebody/model-bnb-8bit/", "int8"),
        ("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "int4"),
        ("mlx-community/Llama-3.2-1B-Instruct-8bit", "int8"),
        ("mlx-community/Qwen3-0.6B-bf16", "bf16"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "gptq"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "awq"),
        ("RedHatAI/Llama-3.1-8B-FP8-dynamic", "fp8"),
        ("meta-llama/Llama-3.1-8B-Instruct", None),
        ("org-4bit/plain", None),
    ],
)
def test_a_bases_name_may_tell_how_it_was_kept(name: str, precision: str | None) -> None:
    assert precision_of_name(name) == precision


def test_a_file_tells_before_the_bases_name() -> None:
    named = manifest(base_by_trainer="unsloth/llama-3-8b-bnb-4bit", trainer="PEFT")
    by_name = described(named, Training())
    assert (by_name.precision, by_name.trainer) == ("nf4", "PEFT")
    assert by_name.precision_evidence == "its base's name, unsloth/llama-3-8b-bnb-4bit"
    by_file = described(named, Training("Axolotl", "Axolotl 1", "int8", "a file"))
    assert (by_file.precision, by_file.precision_evidence) == ("int8", "a file")
    assert (by_file.trainer, by_file.trainer_version) == ("Axolotl", "Axolotl 1")
