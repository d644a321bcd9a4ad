"""Bad artifacts of the tuners that are rewritten as plain LoRA, each a spoilt right one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
)
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
    # What it is recognised as, if not as its name in the table.
    method: str | None = None
    # Makes of random tensors those that cannot be just any.
    finish: Callable[[Tensors], None] = lambda tensors: None

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
        self.finish(tensors)
        common = {"task_type": "CAUSAL_LM", "target_modules": list(TARGETS), "bias": "none"}
        return tensors, {**common, **copy.deepcopy(self.config)}

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


_SHARED = (
    *("vera_A", "vera_B", "pvera_A", "pvera_B"),
    *("vblora_vector_bank", "tinylora_v.0", "unilora_theta_d"),
)


def q0(part: str) -> str:
    """A part's name in the file; the shared ones have no module."""
    return f"base_model.{part}" if part in _SHARED else f"{PREFIX}{Q0}.{part}"


def drop(tensors: Tensors, part: str) -> None:
    del tensors[q0(part)]


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[1] = float("nan")
    return changed


def narrower(tensor: torch.Tensor) -> torch.Tensor:
    """Three rows less."""
    return tensor[: tensor.shape[0] - 3]


def largest(base: BaseDescriptor) -> tuple[int, int]:
    specs = [spec for spec in base.modules if spec.name.rpartition(".")[2] in TARGETS]
    return max(s.in_features for s in specs), max(s.out_features for s in specs)


def loha(rank: int) -> Right:
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
        lambda base: {"vera_A": (4, largest(base)[0]), "vera_B": (largest(base)[1], 4)},
    ),
    "loha": loha(3),
    "lokr": Right(
        {"peft_type": "LOKR", "r": 2, "alpha": 6, "decompose_factor": 2},
        lambda spec: {
            "lokr_w1": (2, 2),
            "lokr_w2_a": (spec.out_features // 2, 2),
            "lokr_w2_b": (2, spec.in_features // 2),
        },
    ),
}


RIGHT |= {
    "miss": Right(
        {"peft_type": "MISS", "r": 4, "init_weights": True, "mini_r": 1},
        lambda spec: {"miss_block": (4, spec.out_features)},
    ),
    "gralora": Right(
        {"peft_type": "GRALORA", "r": 4, "alpha": 6, "gralora_k": 2, "hybrid_r": 0},
        lambda spec: {
            "gralora_A": (2, spec.in_features // 2, 4),
            "gralora_B": (2, 4, spec.out_features // 2),
        },
    ),
    "delora": Right(
        {"peft_type": "DELORA", "r": 4, "delora_lambda": 15},
        lambda spec: {
            "delora_A": (4, spec.in_features),
            "delora_B": (spec.out_features, 4),
            "delora_lambda": (1,),
            "delora_w_norm": (spec.in_features,),
        },
    ),
    "bdlora": Right(
        {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 6,
            "use_bdlora": {
                "nblocks": 2,
                "target_modules_bd_a": ["o_proj"],
                "target_modules_bd_b": ["q_proj"],
                "match_strict": True,
            },
        },
        lambda spec: {
            "lora_A.weight": (4, spec.in_features // (2 if "o_proj" in spec.name else 1)),
            "lora_B.weight": (spec.out_features, 2 if "q_proj" in spec.name else 4),
        },
    ),
}
RIGHT["vblora"] = Right(
    {"peft_type": "VBLORA", "r": 4, "num_vectors": 6, "vector_length": 8, "topk": 2},
    lambda spec: {
        "vblora_logits_A": (4, spec.in_features // 8, 6),
        "vblora_logits_B": (spec.out_features // 8, 4, 6),
    },
    lambda base: {"vblora_vector_bank": (6, 8)},
)


# The tensor of each that has the base's outputs as rows, and the class a wrong number of them is.
_OUTPUTS = {
    "adalora": ("lora_B", BaseMismatch),
    "vera": ("vera_lambda_b", BaseMismatch),
    "loha": ("hada_w2_a", BaseMismatch),
    "lokr": ("lokr_w2_a", InvalidConfig),
    "miss": ("miss_block", InvalidConfig),
    "gralora": ("gralora_B", InvalidConfig),
    "delora": ("delora_B", BaseMismatch),
    "bdlora": ("lora_B.weight", BaseMismatch),
    "vblora": ("vblora_logits_B", InvalidConfig),
}


def _beside(name: str) -> tuple[type[ArtifactError], tuple[str, ...]]:
    """The refusal of whole modules beside a tuner that is not LoRA."""
    key = {"bdlora": "use_bdlora", "qalora": "use_qalora", "kasa": "kasa_config"}.get(name)
    return NotServable, (key or "modules_to_save", "supported")


def common_faults(
    name: str, right: Right, part: str, error: type[ArtifactError], six: str = "6"
) -> dict[str, Bad]:
    """The faults that every tuner's artifact can have.

    `part` has the outputs as rows; `error` is what a wrong number of them is; `six` is what is
    said when the rank is 6.
    """
    rank = "init_r" if "init_r" in right.config else "r"
    unknown = right.spoilt(
        lambda tensors, _: tensors.update({q0(part).replace("q_proj", "query"): torch.ones(3)})
    )
    beyond = right.spoilt(
        lambda tensors, _: tensors.update({q0(part).replace("s.0.", "s.77."): torch.ones(3)})
    )
    foreign = right.extra("lokr_t2", 4, 4) if name != "lokr" else right.extra("miss_block", 4, 4)
    # BD-LoRA is a LoRA by its config: for that, tensors of another tuner are told before.
    not_its = (NotHotServable, "another tuner") if name == "bdlora" else (InvalidConfig, "none of")
    return {
        f"{name}-outputs": Bad(right.changed(part, narrower), error, (q0(part), "must be")),
        f"{name}-half": Bad(right.without(part), DamagedArtifact, ("missing",)),
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
            right.config_with(**{rank: 6}), InvalidConfig, ("must be", six, "by adapter_config")
        ),
        f"{name}-no-rank": Bad(
            right.spoilt(lambda _, config: config.__delitem__(rank)), InvalidConfig, (f"'{rank}'",)
        ),
        f"{name}-rank-of-text": Bad(
            right.config_with(**{rank: "four"}), InvalidConfig, (rank, "'four'")
        ),
        f"{name}-another-tuner's": Bad(foreign, not_its[0], (not_its[1],)),
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
            right.config_with(modules_to_save=["lm_head"]), *_beside(name)
        ),
    }


_ADALORA, _VERA, _LOHA, _LOKR, _MISS, _GRALORA, _DELORA, _BDLORA, _VBLORA = RIGHT.values()


def _blocks(**values: Any) -> Callable[..., None]:
    return _BDLORA.spoilt(lambda _, config: config["use_bdlora"].update(values))


BAD_TUNERS: dict[str, Bad] = {
    **{
        name: bad
        for tuner, right in RIGHT.items()
        for name, bad in common_faults(tuner, right, *_OUTPUTS[tuner]).items()
    },
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
    "miss-mode": Bad(_MISS.config_with(init_weights="maxi"), InvalidConfig, ("'maxi'", "'mini'")),
    "miss-mini-3": Bad(
        _MISS.config_with(init_weights="mini", mini_r=3), InvalidConfig, ("mini_r is 3", "divide")
    ),
    "miss-rank-33": Bad(_MISS.config_with(r=33), InvalidConfig, ("more than the 32 inputs",)),
    "gralora-rank-5": Bad(_GRALORA.config_with(r=5), InvalidConfig, ("gralora_k = 2",)),
    "gralora-k-3": Bad(
        _GRALORA.config_with(gralora_k=3, r=3), InvalidConfig, ("gralora_k is 3", "divide")
    ),
    "gralora-no-hybrid": Bad(
        _GRALORA.config_with(hybrid_r=2), DamagedArtifact, ("no gralora_A_general",)
    ),
    "gralora-k-0": Bad(_GRALORA.config_with(gralora_k=0), InvalidConfig, ("gralora_k is 0",)),
    "delora-norm-missing": Bad(
        _DELORA.without("delora_w_norm"), DamagedArtifact, ("no delora_w_norm",)
    ),
    "delora-lambda-a-matrix": Bad(
        _DELORA.changed("delora_lambda", lambda t: t[None]), DamagedArtifact, ("must be [1]",)
    ),
    "bdlora-of-text": Bad(_BDLORA.config_with(use_bdlora="yes"), InvalidConfig, ("an object",)),
    "bdlora-blocks-3": Bad(_blocks(nblocks=3), InvalidConfig, ("nblocks is 3", "does not divide")),
    "bdlora-both": Bad(
        _blocks(target_modules_bd_b=["q_proj", "o_proj"]), InvalidConfig, ("names both",)
    ),
    "bdlora-none": Bad(_blocks(target_modules_bd_b=["v_proj"]), InvalidConfig, ("names none",)),
    "bdlora-no-list": Bad(
        _blocks(target_modules_bd_a="o_proj"), InvalidConfig, ("must be a list of names",)
    ),
    "vblora-no-bank": Bad(
        _VBLORA.without("vblora_vector_bank"), DamagedArtifact, ("0 tensors vblora_vector_bank",)
    ),
    "vblora-bank-nan": Bad(
        _VBLORA.changed("vblora_vector_bank", not_a_number), DamagedArtifact, ("bank", "1 NaN")
    ),
    "vblora-bank-too-small": Bad(
        _VBLORA.changed("vblora_vector_bank", narrower), InvalidConfig, ("bank", "must be [6, 8]")
    ),
    "vblora-topk-7": Bad(_VBLORA.config_with(topk=7), InvalidConfig, ("topk is 7", "6 vectors")),
    "vblora-length-7": Bad(
        _VBLORA.config_with(vector_length=7), InvalidConfig, ("vector_length is 7", "divide")
    ),
    "vblora-only-topk": Bad(
        _VBLORA.extra("vblora_logits_A_topk_indices", 4, 4, 2),
        InvalidConfig,
        ("vblora_logits_A_topk_indices", "contradict"),
    ),
}
