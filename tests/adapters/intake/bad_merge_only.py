"""Bad artifacts of the tuners that only a merge can serve, each a spoilt one of PEFT's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
)
from tests.adapters.intake.artifact_builders import PREFIX, Config, Tensors
from tests.adapters.intake.bad_tuners import narrower, not_a_number

Spoil = Callable[[Tensors, Config], None]


@dataclass(frozen=True)
class Spoilt:
    """What is done to the artifact of the kind `of`, and how it must be refused."""

    of: str
    change: Spoil
    error: type[ArtifactError]
    says: tuple[str, ...]


def config_with(**values: Any) -> Spoil:
    return lambda _, config: config.update(values)


def without_key(key: str) -> Spoil:
    return lambda _, config: config.__delitem__(key)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return lambda tensors, _: tensors.update({name: change(tensors[name])})


def without(name: str) -> Spoil:
    return lambda tensors, _: tensors.__delitem__(name)


def added(name: str, *shape: int) -> Spoil:
    return lambda tensors, _: tensors.update({name: torch.ones(shape)})


def renamed(name: str, old: str, new: str) -> Spoil:
    return lambda tensors, _: tensors.update({name.replace(old, new): tensors.pop(name)})


def twice(name: str) -> Spoil:
    return lambda tensors, _: tensors.update({name.removeprefix(PREFIX): tensors[name] * 1})


def first(tensor: torch.Tensor, value: int) -> torch.Tensor:
    """The same with another first index."""
    new = tensor.clone()
    new.view(-1)[0] = value
    return new


Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"
# A tensor of each tuner: that of q_proj in the first layer, or of a norm.
PARTS = {
    "ia3": f"{Q0}.ia3_l",
    "oft": f"{Q0}.oft_R.weight",
    "boft": f"{Q0}.boft_s",
    "ln": f"{PREFIX}model.layers.0.input_layernorm.ln_tuning_layers.weight",
    "hira": f"{Q0}.hira_B",
    "randlora": f"{Q0}.randlora_gamma",
    "fourierft": f"{Q0}.fourierft_spectrum",
    "c3a": f"{Q0}.c3a_kernel",
    "miss-bat": f"{Q0}.miss_block",
    "road": f"{Q0}.road_theta",
    "waveft": f"{Q0}.waveft_spectrum",
    "shira": f"{Q0}.shira_weight",
    "beft": f"{Q0}.beft_bias",
    "glora": f"{Q0}.glora_A.Xd",
    "frod": f"{Q0}.frod_lambda_l",
    "osf": f"{Q0}.osf_svd_params.S_low",
    "supertuning-lora": f"{Q0}.supertuning_values",
}
_ALONE = ("ia3", "oft", "ln", "fourierft", "c3a", "miss-bat", "waveft", "beft")


def _common(kind: str, name: str) -> dict[str, Spoilt]:
    """The faults that every tuner's artifact can have."""
    module = "input_layernorm" if kind == "ln" else "q_proj"
    few = "model.norm" if kind == "ln" else "k_proj"
    short = name.rpartition("layers.0.")[2]
    missing = ("no tensors for it",) if kind in _ALONE else (f"has no {_part(name)}", "missing")

    def one(change: Spoil, error: type[ArtifactError], *says: str) -> Spoilt:
        return Spoilt(kind, change, error, says)

    return {
        f"{kind}-without": one(without(name), DamagedArtifact, *missing),
        f"{kind}-shape": one(changed(name, lambda t: t[None]), DamagedArtifact, short, "must be"),
        f"{kind}-empty": one(changed(name, lambda t: t[:0]), DamagedArtifact, short, "shape [0"),
        f"{kind}-integers": one(
            changed(name, lambda t: t.to(torch.int8)), DamagedArtifact, short, "I8"
        ),
        f"{kind}-nan": one(changed(name, not_a_number), DamagedArtifact, short, "1 NaN"),
        f"{kind}-unknown-module": one(
            renamed(name, module, "query"), BaseMismatch, "query", "nearest one is"
        ),
        f"{kind}-layer-77": one(
            renamed(name, "s.0.", "s.77."), BaseMismatch, "layers.77", "has layers 0 to"
        ),
        f"{kind}-another-tuner's": one(
            added(f"{Q0}.lokr_t2", 4, 4), InvalidConfig, "lokr_t2", "none of"
        ),
        f"{kind}-twice": one(twice(name), DamagedArtifact, "one too many"),
        f"{kind}-two-adapters": one(
            renamed(name, _part(name).partition(".")[0], f"{_part(name).partition('.')[0]}.other"),
            DamagedArtifact,
            "mixes several adapters",
        ),
        f"{kind}-not-targeted": one(
            config_with(target_modules=[few]), InvalidConfig, "does not cover"
        ),
        f"{kind}-target-missing": one(
            config_with(target_modules=".*"), DamagedArtifact, "targets 'lm_head'"
        ),
        f"{kind}-modules-to-save": one(
            added(f"{PREFIX}lm_head.weight", 96, 32),
            NotServable,
            "lm_head.weight",
            "not supported beside",
        ),
        f"{kind}-nothing": one(
            lambda tensors, _: tensors.clear(), DamagedArtifact, "holds no", "tensors"
        ),
    }


def _part(name: str) -> str:
    """What follows the module's name."""
    return name.partition("q_proj.")[2] or name.partition("layernorm.")[2]


_SHIRA, _SUPER = f"{Q0}.shira_indices", f"{Q0}.supertuning_indices"
_FROD = "self_attn_q_proj"

BAD_MERGE_ONLY: dict[str, Spoilt] = {
    **{name: bad for kind, part in PARTS.items() for name, bad in _common(kind, part).items()},
    "ia3-no-forward": Spoilt(
        "ia3", without_key("feedforward_modules"), InvalidConfig, ("feedforward_modules", "inputs")
    ),
    "ia3-forward-of-a-number": Spoilt(
        "ia3", config_with(feedforward_modules=3), InvalidConfig, ("feedforward_modules must be",)
    ),
    "ia3-other-forward": Spoilt(
        "ia3", config_with(feedforward_modules=["q_proj"]), BaseMismatch, ("must be [32, 1]",)
    ),
    "oft-old": Spoilt("oft", without_key("oft_block_size"), InvalidConfig, ("before 0.14",)),
    "oft-both-sizes": Spoilt("oft", config_with(r=4), InvalidConfig, ("exactly one",)),
    "oft-blocks-of-one": Spoilt("oft", config_with(oft_block_size=1), InvalidConfig, ("size 1",)),
    "oft-other-size": Spoilt(
        "oft", config_with(oft_block_size=16), InvalidConfig, ("must be [3, 120]",)
    ),
    "oft-terms-0": Spoilt(
        "oft", config_with(num_cayley_neumann_terms=0), InvalidConfig, ("at least 1",)
    ),
    "oft-peft-0.17": Spoilt(
        "oft", config_with(peft_version="0.17.1"), NotServable, ("PEFT 0.17.1", "another")
    ),
    "oft-no-version": Spoilt("oft", without_key("peft_version"), NotServable, ("does not say",)),
    "oft-coft-eps": Spoilt("oft", config_with(coft=True, eps=0), InvalidConfig, ("eps is 0",)),
    "oft-coft-of-text": Spoilt("oft", config_with(coft="no"), InvalidConfig, ("coft is 'no'",)),
    "boft-both-sizes": Spoilt("boft", config_with(boft_block_num=4), InvalidConfig, ("exactly",)),
    "boft-size-5": Spoilt(
        "boft", config_with(boft_block_size=5), InvalidConfig, ("does not divide the 48 inputs",)
    ),
    "boft-factors-0": Spoilt(
        "boft", config_with(boft_n_butterfly_factor=0), InvalidConfig, ("at least 1",)
    ),
    "boft-factors-99": Spoilt(
        "boft", config_with(boft_n_butterfly_factor=99), InvalidConfig, ("no module has that many",)
    ),
    "ln-of-a-layer": Spoilt(
        "ln",
        added(f"{Q0}.ln_tuning_layers.weight", 32, 32),
        NotServable,
        ("q_proj", "which is no norm"),
    ),
    "hira-rank": Spoilt("hira", config_with(r=4), InvalidConfig, ("must be [4, 48]",)),
    "hira-no-rank": Spoilt("hira", without_key("r"), InvalidConfig, ("no 'r'",)),
    "hira-embedding": Spoilt(
        "hira",
        added(f"{PREFIX}model.embed_tokens.hira_A", 3, 96),
        NotServable,
        ("embed_tokens", "embedding"),
    ),
    "randlora-not-saved": Spoilt(
        "randlora", config_with(save_projection=False), NotServable, ("not saved",)
    ),
    "randlora-no-bases": Spoilt(
        "randlora", without("base_model.randlora_A"), DamagedArtifact, ("no randlora_A",)
    ),
    "randlora-bases": Spoilt(
        "randlora", changed("base_model.randlora_B", narrower), InvalidConfig, ("[48, 12, 4]",)
    ),
    "randlora-bases-nan": Spoilt(
        "randlora", changed("base_model.randlora_A", not_a_number), DamagedArtifact, ("1 NaN",)
    ),
    "randlora-other-bases": Spoilt(
        "randlora",
        changed(f"{Q0}.randlora_A", lambda t: t * 2),
        DamagedArtifact,
        ("is another than", "share one"),
    ),
    "fourierft-too-many": Spoilt(
        "fourierft", config_with(n_frequency=9999), InvalidConfig, ("more than the 1536 values",)
    ),
    "fourierft-no-seed": Spoilt(
        "fourierft", config_with(random_loc_seed=None), InvalidConfig, ("drawn again",)
    ),
    "fourierft-scaling": Spoilt(
        "fourierft", config_with(scaling="much"), InvalidConfig, ("scaling is 'much'",)
    ),
    "fourierft-patterns": Spoilt(
        "fourierft", config_with(n_frequency_pattern=[3]), InvalidConfig, ("map names to numbers",)
    ),
    "c3a-size-5": Spoilt(
        "c3a", config_with(block_size=5), InvalidConfig, ("does not divide the 48",)
    ),
    "c3a-pattern": Spoilt(
        "c3a", config_with(block_size_pattern={"q_proj": 0}), InvalidConfig, ("at least 1",)
    ),
    "miss-bat-rank-5": Spoilt(
        "miss-bat", config_with(r=5), InvalidConfig, ("does not divide the 48", "bat")
    ),
    "road-variant": Spoilt(
        "road", config_with(variant="road_3"), InvalidConfig, ("'road_3'", "road_4")
    ),
    "road-group-7": Spoilt("road", config_with(group_size=7), InvalidConfig, ("must be even",)),
    "road-group-12": Spoilt(
        "road", config_with(group_size=12), InvalidConfig, ("does not divide the 32 outputs",)
    ),
    "waveft-family": Spoilt(
        "waveft", config_with(wavelet_family="coif5"), InvalidConfig, ("'coif5'", "db1")
    ),
    "waveft-transform": Spoilt(
        "waveft", config_with(use_idwt="yes"), InvalidConfig, ("use_idwt is 'yes'",)
    ),
    "shira-too-many": Spoilt("shira", config_with(r=20), InvalidConfig, ("more than it has",)),
    "shira-no-places": Spoilt("shira", without(_SHIRA), DamagedArtifact, ("no shira_indices",)),
    "shira-place-beyond": Spoilt(
        "shira", changed(_SHIRA, lambda t: first(t, 32)), DamagedArtifact, ("points to 32",)
    ),
    "shira-place-below": Spoilt(
        "shira", changed(_SHIRA, lambda t: first(t, -1)), DamagedArtifact, ("points to -1",)
    ),
    "shira-places-of-floats": Spoilt(
        "shira", changed(_SHIRA, torch.Tensor.float), DamagedArtifact, ("F32", "I32 or I64")
    ),
    "beft-no-bias": Spoilt(
        "beft",
        lambda tensors, config: (
            tensors.update({f"{PREFIX}model.layers.0.mlp.up_proj.beft_bias": torch.ones(1, 48)}),
            config["target_modules"].append("layers.0.mlp.up_proj"),
        )[0],
        NotServable,
        ("up_proj", "has none in the base"),
    ),
    "glora-kind": Spoilt(
        "glora", config_with(config_A_B="matrix"), InvalidConfig, ("'matrix'", "vector")
    ),
    "glora-nothing": Spoilt(
        "glora", config_with(config_A_B="none"), InvalidConfig, ("config_A_B is 'none'",)
    ),
    "glora-zeros": Spoilt(
        "glora", changed(f"{Q0}.glora_C.zeros", lambda t: t + 1), DamagedArtifact, ("not zero",)
    ),
    "frod-not-saved": Spoilt(
        "frod", config_with(save_projection=False), NotServable, ("not saved",)
    ),
    "frod-rate": Spoilt("frod", config_with(sparse_rate=2), InvalidConfig, ("must be 0 to 1",)),
    "frod-other-rate": Spoilt(
        "frod", config_with(sparse_rate=0.5), InvalidConfig, ("must be [2, 1152]",)
    ),
    "frod-no-projection": Spoilt(
        "frod", without(f"base_model.frod_V.{_FROD}"), DamagedArtifact, (f"no frod_V.{_FROD}",)
    ),
    "frod-projection-nan": Spoilt(
        "frod", changed(f"base_model.frod_V.{_FROD}", not_a_number), DamagedArtifact, ("1 NaN",)
    ),
    "frod-place-beyond": Spoilt(
        "frod",
        changed(f"base_model.frod_s_indices.{_FROD}", lambda t: first(t, 77)),
        DamagedArtifact,
        ("points to 77",),
    ),
    "frod-size": Spoilt(
        "frod",
        changed(f"base_model.frod_s_size.{_FROD}", lambda t: first(t, 31)),
        DamagedArtifact,
        ("says [31, 32]", "[32, 32]"),
    ),
    "osf-rank": Spoilt(
        "osf", config_with(effective_rank=32), InvalidConfig, ("some of them and not all",)
    ),
    "osf-rank-0": Spoilt("osf", config_with(effective_rank=0), InvalidConfig, ("greater than 0",)),
    "osf-patterns": Spoilt(
        "osf", config_with(rank_pattern={"(": 3}), InvalidConfig, ("no valid pattern",)
    ),
    "supertuning-not-saved": Spoilt(
        "supertuning-lora",
        config_with(save_precomputed_indices=False),
        NotServable,
        ("was not saved",),
    ),
    "supertuning-sparsity": Spoilt(
        "supertuning-lora", config_with(sparsity=1), InvalidConfig, ("less than 1",)
    ),
    "supertuning-none": Spoilt(
        "supertuning-lora", config_with(sparsity=0.9999), InvalidConfig, ("leaves none",)
    ),
    "supertuning-no-rank": Spoilt(
        "supertuning-lora", config_with(r=None), InvalidConfig, ("and no", "lora_A")
    ),
    "supertuning-place-beyond": Spoilt(
        "supertuning-lora", changed(_SUPER, lambda t: first(t, 1024)), DamagedArtifact, ("1024",)
    ),
}
