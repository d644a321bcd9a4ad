"""Where PEFT's many writers put their two files, and what they leave beside them.

Each takes an empty folder and an adapter, and returns the path to register.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.adapters.intake.artifact_builders import PREFIX, WEIGHTS, Config, Tensors, write_parts

# Writes an artifact into the empty folder and returns what to register.
Layout = Callable[[Path, Tensors, Config], Path]


def root_layout(folder: Path, tensors: Tensors, config: Config, **values: Any) -> Path:
    write_parts(folder, tensors, {**config, **values})
    return folder


def unsloth(folder: Path, tensors: Tensors, config: Config) -> Path:
    name = "unsloth/tiny-unsloth-bnb-4bit"
    (root_layout(folder, tensors, config, base_model_name_or_path=name) / "README.md").write_text(
        "tags:\n- unsloth\n"
    )
    return folder


def axolotl(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "merged").mkdir()
    (folder / "merged" / "config.json").write_text("{}")
    (folder / "merged" / "model.safetensors").touch()
    (folder / "debug.log").touch()
    write_parts(folder / "checkpoint-9", tensors, config)
    return root_layout(folder, tensors, config)


def llama_factory(folder: Path, tensors: Tensors, config: Config) -> Path:
    """The output directory of a run with pissa_convert, whose result is in pissa_converted."""
    for name in ("pissa_init", "pissa_backup"):
        write_parts(folder / name, {k: v * 3 for k, v in tensors.items()}, config)
    write_parts(folder / "pissa_converted", tensors, config)
    (folder / "trainer_log.jsonl").touch()
    return folder


def swift_layout(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "args.json").write_text("{}")
    (folder / "additional_config.json").write_text('{"lora_dtype": null}')
    (folder / "training_args.bin").touch()
    write_parts(folder / "initial_model", {k: v * 3 for k, v in tensors.items()}, config)
    return root_layout(folder, tensors, config)


def swift_native(folder: Path, tensors: Tensors, config: Config) -> Path:
    renamed = {
        name.removeprefix(PREFIX).replace(".weight", ".default.weight"): value
        for name, value in tensors.items()
    }
    own = {"swift_type": "LORA", "use_merged_linear": False, "enable_lora": None, "peft_type": None}
    write_parts(folder / "default", renamed, {**config, **own})
    (folder / "configuration.json").write_text("{}")
    return folder


def autotrain(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "training_params.json").write_text("{}")
    return root_layout(folder, tensors, config)


def ludwig(folder: Path, tensors: Tensors, config: Config) -> Path:
    write_parts(folder / "model" / "model_weights", tensors, config)
    (folder / "description.json").write_text("{}")
    (folder / "model" / "model_hyperparameters.json").write_text("{}")
    return folder


def ludwig_model(folder: Path, tensors: Tensors, config: Config) -> Path:
    return ludwig(folder, tensors, config) / "model"


def h2o(folder: Path, tensors: Tensors, config: Config) -> Path:
    write_parts(folder / "adapter_model", tensors, config)
    (folder / "checkpoint.pth").touch()
    (folder / "cfg.yaml").write_text("training:\n    lora_unfreeze_layers: !!python/tuple []\n")
    return folder


def pickle_layout(folder: Path, tensors: Tensors, config: Config) -> Path:
    root_layout(folder, tensors, config)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    return folder


def openrlhf(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return pickle_layout(folder, tensors, config)


def verl(folder: Path, tensors: Tensors, config: Config) -> Path:
    write_parts(folder / "actor" / "lora_adapter", tensors, config)
    (folder / "actor" / "fsdp_config.json").write_text("{}")
    return folder


def automodel(folder: Path, tensors: Tensors, config: Config) -> Path:
    modules = sorted({name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors})
    minimal = {
        "task_type": "CAUSAL_LM",
        "peft_type": "LORA",
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": modules,
        "bias": "none",
        "base_model_name_or_path": "N/A",
    }
    write_parts(folder / "model", tensors, minimal)
    (folder / "model" / "automodel_peft_config.json").write_text('{"dropout": 0.0}')
    (folder / "optim").mkdir()
    (folder / "optim" / "__0_0.distcp").touch()
    return folder


def torchtune_pair(folder: Path, tensors: Tensors, config: Config) -> Path:
    kept = ("r", "lora_alpha", "target_modules", "peft_type")
    write_parts(folder, tensors, {key: config[key] for key in kept})
    return folder


def fireworks(folder: Path, tensors: Tensors, config: Config) -> Path:
    (folder / "fireworks.json").write_text('{"has_lora": true}')
    return root_layout(folder, tensors, config)


def deepspeed(folder: Path, tensors: Tensors, config: Config) -> Path:
    infixed = {name.replace(".weight", ".default.weight"): t for name, t in tensors.items()}
    return root_layout(folder, infixed, config)


def trl(folder: Path, tensors: Tensors, config: Config) -> Path:
    """DPO on an adapter that was there before: its frozen copy is saved beside the result."""
    for name in ("ref", "checkpoint-2", "checkpoint-4"):
        write_parts(folder / name, {k: v * 3 for k, v in tensors.items()}, config)
    (folder / "training_args.bin").touch()
    return root_layout(folder, tensors, config)


def trl_two(folder: Path, tensors: Tensors, config: Config) -> Path:
    """The same with adapters named by the user, as TRL's documentation does it."""
    write_parts(folder / "reference", {k: v * 3 for k, v in tensors.items()}, config)
    write_parts(folder / "train", tensors, config)
    return folder


def trl_checkpoint(folder: Path, tensors: Tensors, config: Config) -> Path:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (root_layout(folder / "checkpoint-4", tensors, config) / name).touch()
    return folder / "checkpoint-4"
