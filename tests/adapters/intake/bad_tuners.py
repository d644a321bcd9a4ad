"""Bad artifacts of the tuners that are rewritten as plain LoRA, each a spoilt right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.errors import BaseMismatch, DamagedArtifact, InvalidConfig, NotHotServable
from adapters.models import BaseDescriptor, ModuleSpec
from tests.adapters.intake.artifact_builders import PREFIX, Q0, Config, Tensors, write_parts
from tests.adapters.intake.bad_artifacts import Bad

TARGETS = ("q_proj", "o_proj")


@dataclass(frozen=True)
class Right:
    """A right artifact: its config, each module's tensors, and those that modules share."""

    config: Config
    shapes: Callable[[ModuleSpec], dict[str, tuple[int, ...]]]
    shared: Callable[[BaseDescriptor], dict[str, tuple[int, ...]]] = lambda base: {}

    def parts(self, base: BaseDescriptor) -> tuple[Tensors, Config]:
        generator = torch.Generator().manual_seed(5)
        names = {f"base_model.{name}": shape for name, shape in self.shared(base).items()}
        for spec in base.modules:
            if spec.name.rpartition(".")[2] in TARGETS:
                for part, shape in self.shapes(spec).items():
                    names[f"{PREFIX}{spec.name}.{part}"] = shape
        tensors = {
            name: torch.randn(shape, generator=generator) * 0.3 for name, shape in names.items()
        }
        common = {"task_type": "CAUSAL_LM", "target_modules": list(TARGETS), "bias": "none"}
        return tensors, {**common, **self.config}

    def write(self, folder: Path, base: BaseDescriptor) -> None:
        write_parts(folder, *self.parts(base))

    def spoilt(self, change: Callable[[Tensors, Config], None]) -> Callable[..., None]:
        def build(folder: Path, base: BaseDescriptor) -> None:
            tensors, config = self.parts(base)
            change(tensors, config)
            write_parts(folder, tensors, config)

        return build

    def config_with(self, **values: Any) -> Callable[..., None]:
        return self.spoilt(lambda _, config: config.update(values))

    def without(self, part: str) -> Callable[..., None]:
        return self.spoilt(lambda tensors, _: drop(tensors, part))

    def changed(
        self, part: str, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[..., None]:
        return self.spoilt(lambda tensors, _: tensors.update({q0(part): change(tensors[q0(part)])}))

    def extra(self, part: str, *shape: int) -> Callable[..., None]:
        return self.spoilt(lambda tensors, _: tensors.update({q0(part): torch.ones(shape)}))


def q0(part: str) -> str:
    """A part's name in the file; the shared ones have no module."""
    return f"base_model.{part}" if part in ("vera_A", "vera_B") else f"{PREFIX}{Q0}.{part}"


def drop(tensors: Tensors, part: str) -> None:
    del tensors[q0(part)]


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[1] = float("nan")
    return changed


def narrower(tensor: torch.Tensor) -> torch.Tensor:
    """Three rows less."""
    return tensor[: tensor.shape[0] - 3]


def _largest(base: BaseDescriptor) -> tuple[int, int]:
    specs = [spec for spec in base.modules if spec.name.rpartition(".")[2] in TARGETS]
    return max(s.in_features for s in specs), max(s.out_features for s in specs)


def _loha(rank: int) -> Right:
    return Right(
        {"peft_type": "LOHA", "r": rank, "alpha": 6},
        lambda spec: {
            "hada_w1_a": (spec.out_features, rank),
            "hada_w1_b": (rank, spec.in_features),
            "hada_w2_a": (spec.out_features, rank),
            "hada_w2_b": (rank, spec.in_features),
        },
    )


RIGHT: dict[str, Right] = {
    "adalora": Right(
        {"peft_type": "ADALORA", "init_r": 4, "r": 8, "lora_alpha": 8},
        lambda spec: {
            "lora_A": (4, spec.in_features),
            "lora_B": (spec.out_features, 4),
            "lora_E": (4, 1),
        },
    ),
    "vera": Right(
        {"peft_type": "VERA", "r": 4, "save_projection": True, "projection_prng_key": 0},
        lambda spec: {"vera_lambda_b": (spec.out_features,), "vera_lambda_d": (4,)},
        lambda base: {"vera_A": (4, _largest(base)[0]), "vera_B": (_largest(base)[1], 4)},
    ),
    "loha": _loha(3),
    "lokr": Right(
        {"peft_type": "LOKR", "r": 2, "alpha": 6, "decompose_factor": 2},
        lambda spec: {
            "lokr_w1": (2, 2),
            "lokr_w2_a": (spec.out_features // 2, 2),
            "lokr_w2_b": (2, spec.in_features // 2),
        },
    ),
}


# The tensor of each that has the base's outputs as rows, and the class a wrong number of them is.
_OUTPUTS = {
    "adalora": ("lora_B", BaseMismatch),
    "vera": ("vera_lambda_b", BaseMismatch),
    "loha": ("hada_w2_a", BaseMismatch),
    "lokr": ("lokr_w2_a", InvalidConfig),
}


def _common(name: str, right: Right) -> dict[str, Bad]:
    """The faults that every tuner's artifact can have."""
    part, error = _OUTPUTS[name]
    rank = "init_r" if "init_r" in right.config else "r"
    unknown = right.spoilt(
        lambda tensors, _: tensors.update({q0(part).replace("q_proj", "query"): torch.ones(3)})
    )
    beyond = right.spoilt(
        lambda tensors, _: tensors.update({q0(part).replace("s.0.", "s.77."): torch.ones(3)})
    )
    foreign = right.extra("miss_block", 4, 4)
    return {
        f"{name}-outputs": Bad(right.changed(part, narrower), error, (q0(part), "must be")),
        f"{name}-half": Bad(right.without(part), DamagedArtifact, (part, "is missing")),
        f"{name}-nan": Bad(right.changed(part, not_a_number), DamagedArtifact, (part, "1 NaN")),
        f"{name}-unknown-module": Bad(unknown, BaseMismatch, ("query", "nearest one is", part)),
        f"{name}-layer-77": Bad(beyond, BaseMismatch, ("layers.77", "has layers 0 to", part)),
        f"{name}-empty": Bad(
            right.changed(part, lambda t: t[:0]), DamagedArtifact, (q0(part), "shape [0")
        ),
        f"{name}-integers": Bad(
            right.changed(part, lambda t: t.to(torch.int8)), DamagedArtifact, (q0(part), "I8")
        ),
        f"{name}-another-rank": Bad(
            right.config_with(**{rank: 7}), InvalidConfig, ("must be", "7", "by adapter_config")
        ),
        f"{name}-no-rank": Bad(
            right.spoilt(lambda _, config: config.__delitem__(rank)), InvalidConfig, (f"'{rank}'",)
        ),
        f"{name}-rank-of-text": Bad(
            right.config_with(**{rank: "four"}), InvalidConfig, (rank, "'four'")
        ),
        f"{name}-another-tuner's": Bad(foreign, InvalidConfig, ("miss_block", "none of")),
        f"{name}-target-missing": Bad(
            right.config_with(target_modules=[*TARGETS, "k_proj"]),
            DamagedArtifact,
            ("k_proj", "no tensors for it"),
        ),
        f"{name}-not-targeted": Bad(
            right.config_with(target_modules=["q_proj"]), InvalidConfig, ("o_proj", "not cover")
        ),
        f"{name}-twice": Bad(
            right.spoilt(lambda t, _: t.update({q0(part).removeprefix(PREFIX): t[q0(part)] * 1})),
            DamagedArtifact,
            ("one too many", part),
        ),
        f"{name}-modules-to-save": Bad(
            right.config_with(modules_to_save=["lm_head"]), NotHotServable, ("modules_to_save",)
        ),
    }


_ADALORA, _VERA, _LOHA, _LOKR = (RIGHT[name] for name in ("adalora", "vera", "loha", "lokr"))

BAD_TUNERS: dict[str, Bad] = {
    **{name: bad for tuner, right in RIGHT.items() for name, bad in _common(tuner, right).items()},
    "adalora-alpha-0": Bad(_ADALORA.config_with(lora_alpha=0), InvalidConfig, ("lora_alpha is 0",)),
    "adalora-mask-too-short": Bad(
        _ADALORA.config_with(rank_pattern={f"{Q0}.lora_E": [True, False]}),
        InvalidConfig,
        ("rank_pattern", "init_r = 4 booleans"),
    ),
    "adalora-mask-not-the-tensors": Bad(
        _ADALORA.config_with(rank_pattern={f"{Q0}.lora_E": [True, False, True, True]}),
        InvalidConfig,
        ("lora_A", "must be [3, "),
    ),
    "adalora-mask-a-number": Bad(
        _ADALORA.config_with(rank_pattern={f"{Q0}.lora_E": 3}), InvalidConfig, ("is 3; in AdaLoRA",)
    ),
    "vera-no-projection": Bad(
        _VERA.without("vera_A"), DamagedArtifact, ("no vera_A", "save_projection is true")
    ),
    "vera-projection-nan": Bad(
        _VERA.changed("vera_A", not_a_number), DamagedArtifact, ("vera_A", "1 NaN")
    ),
    "vera-projection-too-small": Bad(
        _VERA.changed("vera_B", narrower), InvalidConfig, ("vera_B", "must be")
    ),
    "vera-projection-ignored": Bad(
        _VERA.config_with(save_projection=False), InvalidConfig, ("draws another",)
    ),
    "vera-projection-of-text": Bad(
        _VERA.config_with(save_projection="yes"), InvalidConfig, ("true or false",)
    ),
    "loha-rank-23": Bad(_loha(23).write, NotHotServable, ("needs rank 529", "up to 512")),
    "loha-convolution": Bad(
        _LOHA.extra("hada_t1", 3, 3, 1, 1), InvalidConfig, ("hada_t1", "contradict")
    ),
    "loha-alpha-0": Bad(_LOHA.config_with(alpha=0), InvalidConfig, ("alpha is 0",)),
    "lokr-both-forms": Bad(
        _LOKR.extra("lokr_w1_a", 2, 2), InvalidConfig, ("lokr_w1_a", "contradict")
    ),
    "lokr-factor-0": Bad(
        _LOKR.config_with(decompose_factor=0), InvalidConfig, ("decompose_factor is 0",)
    ),
    "lokr-another-factor": Bad(
        _LOKR.config_with(decompose_factor=4), InvalidConfig, ("lokr_w1", "must be [4, 4]")
    ),
    "lokr-both-is-text": Bad(
        _LOKR.config_with(decompose_both="no"), InvalidConfig, ("decompose_both",)
    ),
}
