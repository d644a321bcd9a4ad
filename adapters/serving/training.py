"""How an adapter was trained, as far as the files that its trainer left beside it tell.

All of it is a hint but one thing: ms-swift applies the `system` of its args.json whenever it loads
the checkpoint, so that is the adapter's system prompt. The other trainers write theirs into the
chat template (Axolotl, LLaMA-Factory) or nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidConfig, SourceUnreadable
from adapters.intake.locate import Listing
from adapters.intake.yaml_config import parse_yaml, read_yaml
from adapters.models import Manifest
from adapters.serving.side_files import read_object

_CARD_BYTES = 262_144
_MAX_TEXT = 100


@dataclass(frozen=True, slots=True)
class Training:
    """None: no file tells. `evidence` says which one told the precision."""

    trainer: str | None = None
    version: str | None = None
    precision: str | None = None
    evidence: str | None = None
    system_prompt: str | None = None


def read_training(listing: Listing) -> Training:
    """What the files tell, the first that knows a thing first; never raises for their content."""
    found = Training()
    if listing.single:
        return found
    for read in _READERS:
        try:
            told = read(listing.path)
        except (InvalidConfig, SourceUnreadable):
            continue  # a hint that cannot be read is none
        found = _filled(found, told)
    return found


def described(manifest: Manifest, training: Training) -> Manifest:
    """The manifest with what is known of the training; the base's name is the last to tell."""
    precision, evidence = training.precision, training.evidence
    if precision is None and manifest.base_by_trainer is not None:
        precision = precision_of_name(manifest.base_by_trainer)
        evidence = f"its base's name, {manifest.base_by_trainer}" if precision else None
    return manifest.model_copy(
        update={
            "trainer": training.trainer or manifest.trainer,
            "trainer_version": training.version or manifest.trainer_version,
            "precision": precision,
            "precision_evidence": evidence,
        }
    )


def precision_of_name(name: str) -> str | None:
    """What a model's name says of how its weights are kept.

    bitsandbytes' 4 bits are nf4 in every model published under that suffix; MLX's -4bit is its own
    affine int4.
    """
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((kept for mark, kept in _NAME_MARKS if re.search(mark, last)), None)


_NAME_MARKS = (
    (r"bnb-4bit", "nf4"),
    (r"bnb-8bit", "int8"),
    (r"[-_.]gptq", "gptq"),
    (r"[-_.]awq", "awq"),
    (r"[-_.]fp8", "fp8"),
    (r"[-_.]mxfp4", "mxfp4"),
    (r"[-_.]4-?bit\b", "int4"),
    (r"[-_.]8-?bit\b", "int8"),
    (r"[-_.]bf16\b", "bf16"),
)
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp32": "fp32",
}
_LITGPT = {
    "bf16-true": "bf16",
    "bf16-mixed": "bf16",
    "16-true": "fp16",
    "16-mixed": "fp16",
    "32-true": "fp32",
    "64-true": "fp64",
}


def _filled(known: Training, told: Training) -> Training:
    if known.precision is not None:
        told = replace(told, precision=None, evidence=None)
    if known.trainer is not None:
        told = replace(told, trainer=None, version=None)
    return Training(
        trainer=known.trainer or told.trainer,
        version=known.version or told.version,
        precision=known.precision or told.precision,
        evidence=known.evidence or told.evidence,
        system_prompt=known.system_prompt or told.system_prompt,
    )


def _ms_swift(directory: Path) -> Training:
    """args.json (ms-swift 3 and later), sft_args.json before."""
    for name in ("args.json", "sft_args.json"):
        said = read_object(directory / name)
        # Others write an args.json, too.
        if "swift_version" not in said and not {"template", "tuner_backend"} <= said.keys():
            continue
        version = _short(said.get("swift_version"))
        system = said.get("system") if name == "args.json" else None
        precision = _swift_precision(said)
        return Training(
            trainer="ms-swift",
            version=f"ms-swift {version}" if version else None,
            precision=precision,
            evidence=f"ms-swift's {name}" if precision else None,
            system_prompt=system if isinstance(system, str) and system.strip() else None,
        )
    return Training()


def _swift_precision(said: Mapping[str, Any]) -> str | None:
    bits = said.get("quant_bits") or said.get("quantization_bit")
    if type(bits) is int and bits > 0:
        method = said.get("quant_method") or "bnb"
        if method == "bnb":
            return _bitsandbytes(bits, said.get("bnb_4bit_quant_type"))
        return f"{str(method)[:20]}-int{bits}"
    return _DTYPES.get(str(said.get("torch_dtype") or said.get("dtype")).lower())


def _bitsandbytes(bits: int, kind: object) -> str:
    return f"int{bits}" if bits != 4 else ("fp4" if kind == "fp4" else "nf4")


def _axolotl(directory: Path) -> Training:
    """The config that Axolotl puts into the model card, behind its version."""
    found = re.search(
        r"axolotl version: `(?P<version>[^`\n]{1,40})`\s*```yaml\n(?P<config>.*?)\n```",
        _card(directory),
        re.DOTALL,
    )
    if found is None:
        return Training()
    trained = Training(trainer="Axolotl", version=f"Axolotl {found['version']}")
    try:
        config = parse_yaml(found["config"].encode())
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return trained
    precision = _axolotl_precision(config) if isinstance(config, dict) else None
    if precision is None:
        return trained
    return replace(trained, precision=precision, evidence="Axolotl's config in the model card")


def _axolotl_precision(config: Mapping[str, Any]) -> str | None:
    if config.get("load_in_4bit") is True:
        return _bitsandbytes(4, config.get("bnb_4bit_quant_type"))
    if config.get("load_in_8bit") is True:
        return "int8"
    if config.get("gptq") is True:
        return "gptq"
    # `auto` depends on the machine.
    return next((name for name in ("bf16", "fp16") if config.get(name) is True), None)


def _litgpt(directory: Path) -> Training:
    path = directory / "hyperparameters.yaml"
    if not path.is_file():
        return Training()
    said = read_yaml(path, "precision")
    quantized = re.fullmatch(r"bnb\.(nf4|fp4|int8)\S*", str(said.get("quantize")))
    precision = quantized[1] if quantized else _LITGPT.get(str(said.get("precision")))
    return Training(precision=precision, evidence="hyperparameters.yaml" if precision else None)


def _model_card(directory: Path) -> Training:
    """What TRL and PEFT write into the model card: versions, bitsandbytes' settings."""
    card = _card(directory)
    version = re.search(r"^- TRL: (\d[\w.+-]{0,30})$", card, re.MULTILINE)
    # Unsloth trains by way of TRL, whose card it keeps.
    own = version is not None and not re.search(r"(?<![\w-])unsloth(?![\w-])", card.lower())
    told = Training(
        trainer="TRL" if own else None, version=f"TRL {version[1]}" if own and version else None
    )
    precision = None
    if re.search(r"^- (?:_?load_in_4bit): True$", card, re.MULTILINE):
        kind = re.search(r"^- bnb_4bit_quant_type: (\w+)$", card, re.MULTILINE)
        precision = _bitsandbytes(4, kind[1] if kind else None)
    elif re.search(r"^- (?:_?load_in_8bit): True$", card, re.MULTILINE):
        precision = "int8"
    if precision is None:
        return told
    return replace(told, precision=precision, evidence="the quantization in the model card")


def _card(directory: Path) -> str:
    try:
        with (directory / "README.md").open("rb") as file:
            return file.read(_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""


def _short(value: object) -> str:
    return " ".join(str(value).split())[:_MAX_TEXT] if isinstance(value, str) else ""


_READERS: tuple[Callable[[Path], Training], ...] = (_ms_swift, _axolotl, _litgpt, _model_card)
