"""Format MLX: mlx-lm's adapters.safetensors beside an adapter_config.json of its arguments.

Factors lie turned (lora_a [in, r], lora_b [r, out]) and `scale` is the factor itself, no alpha/r
(mlx_lm/tuner/lora.py: y + scale · x·A·B). The rank is the tensors': `rank` in the config is that of
the last run's arguments.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import DamagedArtifact, InvalidConfig
from adapters.intake import tensors, translate
from adapters.intake.derived import transposed
from adapters.intake.locate import Listing, read_config
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

WEIGHTS = "adapters.safetensors"
_KEYS = ("fine_tune_type", "lora_parameters")
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
_EXPERTS = re.compile(r"(?P<block>.+)\.switch_mlp\.(?P<leaf>[^.]+)")
_EMBEDDING = "model.embed_tokens"


def recognises(listing: Listing) -> bool:
    return listing.has(r"(\d+_)?adapters\.safetensors") or any(
        key in (listing.config or {}) for key in _KEYS
    )


def read(listing: Listing) -> RawAdapter:
    """Config and tensors' headers; raises ArtifactError subclasses."""
    config = read_config(listing.path)
    if WEIGHTS not in listing.names:
        raise DamagedArtifact(
            f"{listing.path} has no {WEIGHTS}; of a training run's numbered checkpoints, copy "
            "the one to register to that name"
        )
    weights = listing.path / WEIGHTS
    found = tensors.read_safetensors(weights)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise InvalidConfig(
            f"adapter_config.json: fine_tune_type is {str(kind)[:40]!r}; mlx-lm's are lora, dora "
            "and full"
        )
    factors, others = _sorted(found)
    scales: dict[str, float] = {}
    if kind != "full":
        scale = _scale(config)
        scales = dict.fromkeys(factors, scale)
    raw = RawAdapter(
        format="mlx",
        config={
            **translate.config_for(factors if scales else {}, scales),
            "fine_tune_type": kind,
            "use_dora": kind == "dora",
        },
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=listing.path,
            files=(listing.path / "adapter_config.json", weights),
            base_by_trainer=short_text(config, "model"),
            trainer="mlx-lm",
        ),
    )
    if _EMBEDDING not in factors or not scales:
        return raw
    return replace(raw, for_base=partial(_with_tied_head, raw, factors, others, scales))


def _scale(config: dict[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or "scale" not in parameters:
        raise InvalidConfig(
            "adapter_config.json has no 'scale' in lora_parameters; without it the adapter's "
            "strength is unknown"
        )
    if "alpha" in parameters:
        # Up to 2024 the factor was scale · alpha/rank; later versions ignore an old file's alpha.
        raise InvalidConfig(
            "adapter_config.json: lora_parameters has both alpha and scale, which older and newer "
            "versions of mlx-lm read differently; set scale to the factor and delete alpha"
        )
    return translate.positive(parameters["scale"], "adapter_config.json: lora_parameters.scale")


def _sorted(found: dict[str, LazyTensor]) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        key = _LORA.fullmatch(name)
        experts = _EXPERTS.fullmatch(key["module"]) if key is not None else None
        if key is not None and experts is not None:
            # Stacked [E, r, in] and [E, out, r]: not turned.
            module = f"{experts['block']}.experts.{experts['leaf']}"
            translate.put(factors, module, key["side"].upper(), tensor)
        elif key is not None:
            translate.put(factors, key["module"], key["side"].upper(), transposed(tensor))
            factors[key["module"]].embedding = key["module"] == _EMBEDDING
        elif name.endswith(".m"):
            others[f"{name.removesuffix('.m')}.lora_magnitude_vector"] = tensor
        else:
            others[name] = tensor
    return factors, others


def _with_tied_head(
    raw: RawAdapter,
    factors: dict[str, Factors],
    others: dict[str, LazyTensor],
    scales: dict[str, float],
    base: BaseDescriptor,
) -> RawAdapter:
    """mlx-lm's embedding serves as a tied output head with its LoRA (as_linear); PEFT's does not.

    The head's change is the embedding's turned: A of the head is lora_b, B is lora_a.
    """
    if not base.tied_embeddings or "lm_head" in factors:
        return replace(raw, for_base=None)
    embedding = factors[_EMBEDDING]
    head = Factors(
        a=transposed(embedding.b) if embedding.b is not None else None,
        b=transposed(embedding.a) if embedding.a is not None else None,
    )
    both = {**factors, "lm_head": head}
    config = translate.config_for(both, {**scales, "lm_head": scales[_EMBEDDING]})
    return replace(raw, config=config, tensors={**translate.named(both), **others}, for_base=None)
