"""PEFT's LoraConfig as far as it changes what a plain LoRA computes, typed and checked."""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.errors import InvalidConfig
from adapters.intake.patterns import Budget, KeyPatterns, compile_pattern, matches
from adapters.models import ModuleSpec

MAX_RANK = 512
# Other tuners' ranks are not the rank of the plain LoRA they become; this only bounds arithmetic.
_MAX_TUNER_RANK = 1 << 20
_MAX_PATTERNS = 50_000
# The layer's number by PEFT's rule: the first numbered component (tuners_utils).
_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


@dataclass(frozen=True, slots=True)
class ModuleScale:
    """What the config says of one module: its rank, alpha, and the factor on B·A."""

    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class LoraSettings:
    """A checked LoraConfig. `targets` None: the config does not say, the tensors decide."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | str | None
    excluded: tuple[str, ...] | str | None
    layers: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    fan_in_fan_out: bool
    # ensure_weight_tying: what is done to one end of tied embeddings is done to the other; it has
    # tensors of its own.
    tying: bool = False
    # Which biases of the base were trained too: `none`, `all`, or the modules' (`lora_only`, …).
    bias: str = "none"

    def scales(self, modules: list[str]) -> dict[str, ModuleScale]:
        """Rank and scale of each module after the patterns; raises InvalidConfig."""
        budget = Budget()
        ranks = KeyPatterns(self.ranks, "rank_pattern", budget)
        alphas = KeyPatterns(self.alphas, "alpha_pattern", budget)
        found: dict[str, ModuleScale] = {}
        for module in modules:
            rank_key, alpha_key = ranks.key_for(module), alphas.key_for(module)
            rank = self.rank if rank_key is None else self.ranks[rank_key]
            alpha = self.alpha if alpha_key is None else self.alphas[alpha_key]
            # PEFT, LoraConfig.use_rslora: alpha/sqrt(r) instead of alpha/r (arXiv 2312.03732).
            divisor = math.sqrt(rank) if self.rslora else rank
            found[module] = ModuleScale(rank, alpha, alpha / divisor)
        return found

    def targeted(self, modules: tuple[ModuleSpec, ...]) -> frozenset[str] | None:
        """The base's modules that PEFT would wrap, by its own rule; None: the config says not."""
        if self.targets is None:
            return None
        budget = Budget()
        names = [m.name for m in modules if not self._is_excluded(m.name, budget)]
        if self.targets == "all-linear":
            kinds = {m.name: m.kind for m in modules}
            # PEFT leaves the output head out of all-linear.
            return frozenset(
                n for n in names if kinds[n] != "embedding" and n.rpartition(".")[2] != "lm_head"
            )
        if isinstance(self.targets, str):
            pattern = compile_pattern(self.targets, "target_modules")
            return frozenset(
                n for n in names if matches(pattern, n, "target_modules", budget, full=True)
            )
        targets = frozenset(self.targets)
        return frozenset(n for n in names if _ends_in(n, targets) and self._in_layers(n, budget))

    def _is_excluded(self, name: str, budget: Budget) -> bool:
        if not self.excluded:
            return False
        if isinstance(self.excluded, str):
            pattern = compile_pattern(self.excluded, "exclude_modules")
            return matches(pattern, name, "exclude_modules", budget, full=True)
        return _ends_in(name, frozenset(self.excluded))

    def _in_layers(self, name: str, budget: Budget) -> bool:
        if self.layers is None:
            return True
        if not self.layers_pattern:
            found = _LAYER.match(name)
            return found is not None and int(found["idx"]) in self.layers
        for text in self.layers_pattern:
            where = "layers_pattern"
            for number in self.layers:
                pattern = compile_pattern(text, where, within=rf"(?:^|.*?\.){{}}\.{number}\.")
                if matches(pattern, name, where, budget):
                    return True
        return False


def _ends_in(name: str, targets: frozenset[str]) -> bool:
    """Is `name`, or a part of it after a dot, among `targets`?"""
    rest = name
    while rest:
        if rest in targets:
            return True
        rest = rest.partition(".")[2]
    return False


def parse_settings(config: Mapping[str, Any]) -> LoraSettings:
    """Check a LoraConfig's values; raises InvalidConfig naming the key, the value and the rule."""
    return tuner_settings(config, limit=MAX_RANK)


def tuner_settings(
    config: Mapping[str, Any],
    *,
    rank: str = "r",
    alpha: str | None = "lora_alpha",
    patterns: bool = True,
    limit: int = _MAX_TUNER_RANK,
) -> LoraSettings:
    """The same for another tuner: its keys of rank and alpha, and whether it has patterns.

    Without an alpha the scale is 1.
    """
    base_rank = _rank(config.get(rank, _MISSING), rank, limit)
    ranks = _patterns(config, "rank_pattern") if patterns else {}
    alphas = _patterns(config, "alpha_pattern") if patterns and alpha is not None else {}
    return LoraSettings(
        rank=base_rank,
        alpha=base_rank if alpha is None else _alpha(config.get(alpha, _MISSING), alpha),
        rslora=flag(config, "use_rslora"),
        ranks={key: _rank(value, f"rank_pattern['{key}']", limit) for key, value in ranks.items()},
        alphas={key: _alpha(value, f"alpha_pattern['{key}']") for key, value in alphas.items()},
        targets=names_or_pattern(config, "target_modules"),
        excluded=names_or_pattern(config, "exclude_modules"),
        layers=_layers(config.get("layers_to_transform")),
        layers_pattern=_as_tuple(names_or_pattern(config, "layers_pattern")),
        fan_in_fan_out=flag(config, "fan_in_fan_out"),
        tying=flag(config, "ensure_weight_tying"),
        bias=_bias(config.get("bias")),
    )


def target_settings(config: Mapping[str, Any]) -> LoraSettings:
    """The targets of a tuner that has neither rank nor alpha."""
    return tuner_settings({**config, "r": 1}, alpha=None, patterns=False)


def whole_number(config: Mapping[str, Any], key: str, default: int, low: int) -> int:
    """A whole number of at least `low`; raises InvalidConfig."""
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= _MAX_TUNER_RANK:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; "
            f"it must be a whole number of at least {low}"
        )
    return value


def seed(config: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number that torch takes as a seed; raises InvalidConfig."""
    value = config.get(key, default)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; what was drawn in training can "
            "only be drawn again from the whole number it was"
        )
    return value


def finite_number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A finite number; raises InvalidConfig."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must be a finite number"
        )
    return float(value)


_MISSING = object()


def _rank(value: Any, key: str, limit: int) -> int:
    if value is _MISSING or value is None:
        raise InvalidConfig(f"adapter_config.json has no '{key}'; the rank must be given")
    if type(value) is not int or value <= 0:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; a rank is a whole number > 0"
        )
    if value > limit:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; ranks go up to {limit}"
        )
    return value


def _alpha(value: Any, key: str) -> float:
    if value is _MISSING or value is None:
        raise InvalidConfig(
            f"adapter_config.json has no '{key}'; without it the adapter's strength is unknown"
        )
    if type(value) not in (int, float):
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must be a number"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must be a finite number"
        )
    if number == 0:
        raise InvalidConfig(
            f"adapter_config.json: {key} is 0, so the adapter would have no effect; "
            "give the value used in training with --alpha (verl's merger writes 0)"
        )
    if number < 0:
        raise InvalidConfig(f"adapter_config.json: {key} is {value}; it must be greater than 0")
    return number


def _bias(value: Any) -> str:
    if value in (None, ""):
        return "none"
    if isinstance(value, str) and (value in ("none", "all") or value.endswith("_only")):
        return value
    raise InvalidConfig(
        f"adapter_config.json: bias is {reprlib.repr(value)}; it must be none, all or lora_only"
    )


def flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must be true or false"
        )
    return value


def _patterns(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must map names to numbers"
        )
    if len(value) > _MAX_PATTERNS:
        raise InvalidConfig(f"adapter_config.json: {key} has {len(value)} entries; too many")
    return value


def names_or_pattern(config: Mapping[str, Any], key: str) -> tuple[str, ...] | str | None:
    value = config.get(key)
    if value is None or value in ([], ""):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise InvalidConfig(f"adapter_config.json: {key} must be a list of names or a pattern")


def _as_tuple(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def names_of(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of names (or one name); raises InvalidConfig."""
    return _as_tuple(names_or_pattern(config, key))


def _layers(value: Any) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InvalidConfig("adapter_config.json: layers_to_transform must list layer numbers")
    return frozenset(numbers)


def describe_scale(scales: Mapping[str, ModuleScale], *, rslora: bool) -> str:
    """The scale for people: `alpha/r = 32/16 = 2`, or that it differs by module."""
    distinct = {(item.rank, item.alpha) for item in scales.values()}
    if len(distinct) != 1:
        low = min(item.scale for item in scales.values())
        high = max(item.scale for item in scales.values())
        return f"per module, {low:g} to {high:g}"
    item = next(iter(scales.values()))
    formula = (
        f"sqrt(r) = {item.alpha:g}/sqrt({item.rank})"
        if rslora
        else f"r = {item.alpha:g}/{item.rank}"
    )
    return f"alpha/{formula} = {item.scale:g}"
