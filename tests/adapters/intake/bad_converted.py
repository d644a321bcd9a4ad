"""Bad artifacts of the tuners whose change needs the base's weights, drawn numbers or tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    BaseNotAtHand,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
)
from tests.adapters.intake.artifact_builders import Q0, Config, Tensors
from tests.adapters.intake.bad_artifacts import Bad
from tests.adapters.intake.bad_tuners import (
    Right,
    common_faults,
    largest,
    narrower,
    not_a_number,
    q0,
)


def _choose(tensors: Tensors) -> None:
    """Weights that add up to less than 1, and different places for each."""
    for name, tensor in tensors.items():
        if name.endswith("_topk_weights"):
            tensors[name] = tensor.abs().clamp(0.1, 0.4)
        elif name.endswith("_topk_indices"):
            places = torch.arange(tensor.numel()).reshape(tensor.shape) % 6
            tensors[name] = places.to(torch.uint8)


def _point(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if ".unilora_indices_" in name:
            tensors[name] = torch.arange(tensor.numel()).reshape(tensor.shape) % 16


_LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}

RIGHT_CONVERTED: dict[str, Right] = {
    "qalora": Right(
        {**_LORA, "use_qalora": True, "qalora_group_size": 8},
        lambda spec: {
            "lora_A.weight": (4, spec.in_features // 8),
            "lora_B.weight": (spec.out_features, 4),
        },
    ),
    "kasa": Right(
        {**_LORA, "kasa_config": {"beta": 1e-4, "gamma": 1e-3}},
        lambda spec: {
            "lora_A.weight": (4, spec.in_features),
            "lora_B.weight": (spec.out_features, 4),
            "lora_diag": (4,),
        },
    ),
    "hra": Right(
        {"peft_type": "HRA", "r": 4, "apply_GS": True},
        lambda spec: {"hra_u": (spec.in_features, 4)},
    ),
    "deft": Right(
        {"peft_type": "DEFT", "r": 4, "decomposition_method": "relu", "para": False},
        lambda spec: {"deft_P": (spec.out_features, 4), "deft_R": (4, spec.in_features)},
    ),
    "peanut": Right(
        {"peft_type": "PEANUT", "r": 4, "depth": 1, "act_fn": "relu", "scaling": 1.0},
        lambda spec: {
            "peanut_A.weight": (4, spec.out_features),
            "peanut_B.weight": (spec.out_features, 4),
            "peanut_encoders.0.weight": (4, 4),
            "peanut_decoders.0.weight": (4, 4),
        },
    ),
    "pvera": Right(
        {"peft_type": "PVERA", "r": 4, "save_projection": True, "sample_at_inference": False},
        lambda spec: {"pvera_lambda_b": (spec.out_features,), "pvera_lambda_d": (8,)},
        lambda base: {"pvera_A": (8, largest(base)[0]), "pvera_B": (largest(base)[1], 4)},
    ),
    "chosen": Right(
        {
            "peft_type": "VBLORA",
            "r": 4,
            "num_vectors": 6,
            "vector_length": 8,
            "topk": 3,
            "save_only_topk_weights": True,
        },
        lambda spec: {
            "vblora_logits_A_topk_weights": (4, spec.in_features // 8, 2),
            "vblora_logits_A_topk_indices": (4, spec.in_features // 8, 3),
            "vblora_logits_B_topk_weights": (spec.out_features // 8, 4, 2),
            "vblora_logits_B_topk_indices": (spec.out_features // 8, 4, 3),
        },
        lambda base: {"vblora_vector_bank": (6, 8)},
        method="vblora",
        finish=_choose,
    ),
    "tinylora": Right(
        {"peft_type": "TINYLORA", "r": 4, "u": 3, "weight_tying": 1.0, "save_projection": True},
        lambda spec: {
            "tinylora_A": (4, spec.in_features),
            "tinylora_B": (spec.out_features, 4),
            "tinylora_P": (3, 4, 4),
        },
        lambda base: {"tinylora_v.0": (3,)},
    ),
    "bone": Right(
        {"peft_type": "BONE", "r": 4, "init_weights": True},
        lambda spec: {"bone_block": (4, spec.out_features)},
    ),
    "unilora": Right(
        {"peft_type": "UNILORA", "r": 4, "theta_d_length": 16, "save_indices": True},
        lambda spec: {
            "unilora_scales_A": (4, spec.in_features),
            "unilora_indices_A": (4, spec.in_features),
            "unilora_scales_B": (spec.out_features, 4),
            "unilora_indices_B": (spec.out_features, 4),
        },
        lambda base: {"unilora_theta_d": (16,)},
        finish=_point,
    ),
}

# The tensor of each that has the outputs (HRA: inputs) as rows, the class a wrong number of them
# is, and what is said when the rank is 6.
_ROWS: dict[str, tuple[str, type[ArtifactError], str]] = {
    "qalora": ("lora_B.weight", BaseMismatch, "6"),
    "kasa": ("lora_B.weight", BaseMismatch, "6"),
    "hra": ("hra_u", BaseMismatch, "6"),
    "deft": ("deft_P", BaseMismatch, "6"),
    "peanut": ("peanut_B.weight", BaseMismatch, "6"),
    "pvera": ("pvera_lambda_b", BaseMismatch, "12"),
    "chosen": ("vblora_logits_B_topk_weights", InvalidConfig, "6"),
    "tinylora": ("tinylora_B", BaseMismatch, "6"),
    "bone": ("bone_block", InvalidConfig, "6"),
    "unilora": ("unilora_scales_B", BaseMismatch, "6"),
}

_QALORA, _KASA, _HRA, _DEFT, _PEANUT, _PVERA, _CHOSEN, _TINYLORA, _BONE, _UNILORA = (
    RIGHT_CONVERTED.values()
)


def _with_column(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    """HRA with another second column."""

    def change(u: torch.Tensor) -> torch.Tensor:
        return torch.cat([u[:, :1], value(u)[:, None], u[:, 2:]], 1)

    return _HRA.changed("hra_u", change)


def _filled(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _only_the_vector(tensors: Tensors, config: Config) -> None:
    for name in list(tensors):
        if name != q0("unilora_theta_d"):
            del tensors[name]
    config.update(save_indices=False, r=1 << 20)


def _with_a_word_for_seed(tensors: Tensors, config: Config) -> None:
    _only_the_vector(tensors, config)
    config.update(r=4, proj_seed="seven")


BAD_CONVERTED: dict[str, Bad] = {
    **{
        name: bad
        for tuner, right in RIGHT_CONVERTED.items()
        for name, bad in common_faults(tuner, right, *_ROWS[tuner]).items()
    },
    **{
        f"{tuner}-without-the-base": Bad(
            RIGHT_CONVERTED[tuner].write, BaseNotAtHand, ("needs the base's own weights",)
        )
        for tuner in ("kasa", "hra", "deft", "peanut")
    },
    "qalora-groups-of-5": Bad(
        _QALORA.config_with(qalora_group_size=5), InvalidConfig, ("is 5, which does not divide",)
    ),
    "qalora-groups-of-1": Bad(
        _QALORA.config_with(qalora_group_size=1), InvalidConfig, ("it cannot be told",)
    ),
    "qalora-groups-of-0": Bad(
        _QALORA.config_with(qalora_group_size=0), InvalidConfig, ("qalora_group_size is 0",)
    ),
    "qalora-other-groups": Bad(
        _QALORA.config_with(qalora_group_size=16), InvalidConfig, ("lora_A", "must be [4, 2]")
    ),
    "kasa-no-config": Bad(
        _KASA.config_with(kasa_config=None), InvalidConfig, ("has no kasa_config",)
    ),
    "kasa-no-diagonal": Bad(_KASA.without("lora_diag"), DamagedArtifact, ("no lora_diag",)),
    "kasa-rank-32": Bad(_KASA.config_with(r=32), InvalidConfig, ("r is 32", "less than both")),
    "kasa-rank-513": Bad(
        _KASA.config_with(r=513), InvalidConfig, ("r is 513", "ranks go up to 512")
    ),
    "hra-column-of-zeros": Bad(
        _with_column(lambda u: u[:, 1] * 0), DamagedArtifact, ("column 1", Q0, "is zero")
    ),
    "hra-column-twice": Bad(
        _with_column(lambda u: u[:, 0] * 3), DamagedArtifact, ("column 1", "depends on those")
    ),
    "hra-rank-33": Bad(_HRA.config_with(r=33), InvalidConfig, ("r is 33", "32 inputs")),
    "hra-orthogonal-of-text": Bad(
        _HRA.config_with(apply_GS="yes"), InvalidConfig, ("apply_GS", "true or false")
    ),
    "deft-method": Bad(
        _DEFT.config_with(decomposition_method="svd"), InvalidConfig, ("'svd'", "'relu' and 'qr'")
    ),
    "deft-para-with-r": Bad(_DEFT.config_with(para=True), InvalidConfig, ("deft_R", "contradict")),
    "deft-no-r": Bad(_DEFT.without("deft_R"), DamagedArtifact, ("no deft_R",)),
    "deft-alpha-negative": Bad(_DEFT.config_with(alpha=-2), InvalidConfig, ("alpha is -2",)),
    "peanut-activation": Bad(
        _PEANUT.config_with(act_fn="xielu"), NotServable, ("'xielu'", "relu6")
    ),
    "peanut-shallower": Bad(
        _PEANUT.config_with(depth=0), InvalidConfig, ("peanut_decoders.0", "contradict")
    ),
    "peanut-deeper": Bad(_PEANUT.config_with(depth=2), DamagedArtifact, ("no peanut_encoders.1",)),
    "peanut-depth-1000": Bad(_PEANUT.config_with(depth=1000), InvalidConfig, ("goes up to 64",)),
    "peanut-scaling-0": Bad(_PEANUT.config_with(scaling=0), InvalidConfig, ("scaling is 0",)),
    "peanut-scaling-huge": Bad(
        _PEANUT.config_with(scaling=10**400), InvalidConfig, ("scaling is 1000", "finite number")
    ),
    "peanut-layer-nan": Bad(
        _PEANUT.changed("peanut_decoders.0.weight", not_a_number),
        DamagedArtifact,
        ("peanut_decoders.0", "1 NaN"),
    ),
    "pvera-sampling": Bad(
        _PVERA.config_with(sample_at_inference=True), NotServable, ("sample_at_inference to false",)
    ),
    "pvera-no-projection": Bad(
        _PVERA.without("pvera_B"), DamagedArtifact, ("no pvera_B", "save_projection is true")
    ),
    "pvera-projection-too-small": Bad(
        _PVERA.changed("pvera_A", narrower), InvalidConfig, ("pvera_A", "must be [8, 32]")
    ),
    "chosen-twice-the-same": Bad(
        _CHOSEN.changed("vblora_logits_A_topk_indices", _filled(3)),
        DamagedArtifact,
        ("topk_indices", Q0, "twice", "3 different ones"),
    ),
    "chosen-beyond-the-bank": Bad(
        _CHOSEN.changed(
            "vblora_logits_B_topk_indices", lambda t: t + torch.tensor(6, dtype=torch.uint8)
        ),
        DamagedArtifact,
        ("topk_indices", "beyond the 6 vectors"),
    ),
    "chosen-fractions": Bad(
        _CHOSEN.changed("vblora_logits_A_topk_indices", lambda t: t.float()),
        DamagedArtifact,
        ("vblora_logits_A_topk_indices", "F32", "U8, I16"),
    ),
    "chosen-more-than-all": Bad(
        _CHOSEN.changed("vblora_logits_A_topk_weights", _filled(0.7)),
        DamagedArtifact,
        ("topk_weights", "add up to more than 1"),
    ),
    "chosen-not-declared": Bad(
        _CHOSEN.config_with(save_only_topk_weights=False), InvalidConfig, ("contradict",)
    ),
    "chosen-no-indices": Bad(
        _CHOSEN.without("vblora_logits_A_topk_indices"), DamagedArtifact, ("missing",)
    ),
    "tinylora-no-vector": Bad(
        _TINYLORA.without("tinylora_v.0"), DamagedArtifact, ("no tinylora_v.0",)
    ),
    "tinylora-vector-nan": Bad(
        _TINYLORA.changed("tinylora_v.0", not_a_number), DamagedArtifact, ("tinylora_v.0", "1 NaN")
    ),
    "tinylora-vector-too-short": Bad(
        _TINYLORA.changed("tinylora_v.0", lambda t: t[:2]), InvalidConfig, ("must be [3]",)
    ),
    "tinylora-more-groups": Bad(
        _TINYLORA.config_with(weight_tying=0.0), DamagedArtifact, ("no tinylora_v.1",)
    ),
    "tinylora-another-group": Bad(
        _TINYLORA.spoilt(lambda t, _: t.update({"base_model.tinylora_v.7": torch.ones(3)})),
        InvalidConfig,
        ("tinylora_v.7", "by weight_tying there are 1"),
    ),
    "tinylora-tying-2": Bad(
        _TINYLORA.config_with(weight_tying=2), InvalidConfig, ("weight_tying is 2", "from 0 to 1")
    ),
    "tinylora-projection-ignored": Bad(
        _TINYLORA.config_with(save_projection=False), InvalidConfig, ("tinylora_P", "contradict")
    ),
    "tinylora-no-projection": Bad(
        _TINYLORA.without("tinylora_P"), DamagedArtifact, ("no tinylora_P",)
    ),
    "bone-mini": Bad(
        _BONE.config_with(init_weights="mini"), InvalidConfig, ("bone_block", "must be [4, 1]")
    ),
    "unilora-no-vector": Bad(
        _UNILORA.without("unilora_theta_d"), DamagedArtifact, ("0 tensors unilora_theta_d",)
    ),
    "unilora-vector-nan": Bad(
        _UNILORA.changed("unilora_theta_d", not_a_number), DamagedArtifact, ("theta_d", "1 NaN")
    ),
    "unilora-another-length": Bad(
        _UNILORA.config_with(theta_d_length=20), InvalidConfig, ("theta_d", "must be [20]")
    ),
    "unilora-indices-ignored": Bad(
        _UNILORA.config_with(save_indices=False), InvalidConfig, ("ignores it and draws others",)
    ),
    "unilora-beyond-the-vector": Bad(
        _UNILORA.changed("unilora_indices_A", lambda t: t + 1),
        DamagedArtifact,
        ("unilora_indices", Q0, "beyond the 16 entries"),
    ),
    "unilora-too-many-to-draw": Bad(
        _UNILORA.spoilt(_only_the_vector), InvalidConfig, ("indices would have to be drawn",)
    ),
    "unilora-seed-of-text": Bad(
        _UNILORA.spoilt(_with_a_word_for_seed), InvalidConfig, ("proj_seed is 'seven'",)
    ),
}
