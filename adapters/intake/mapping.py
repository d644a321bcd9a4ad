"""From the name of a tensor to the module of the base it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from rapidfuzz import fuzz, process

from adapters.models import ModuleSpec

PREFIX = "base_model.model."
# X.lora_A.weight, X.lora_A.<adapter name>.weight, X.lora_embedding_A, X.lora_embedding_A.<name>
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<infix>[^.]+))?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.(?P<infix>[^.]+))?")
# A tuner's tensor with an adapter's name in it: X.hada_w1_a.french, X.lora_A.french.weight.
_NAMED = re.compile(
    r"(.+\.(?:lora|hada|lokr|p?vera|miss|gralora|delora|vblora)_\w+)"
    r"\.(?!(?:weight|bias)$)[^.]+(\.weight|\.bias)?"
)
# X.token_adapter.trainable_tokens_delta, of a tuner of tokens alone without token_adapter
TOKEN_ROWS = re.compile(r"(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?")
_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")


@dataclass(frozen=True, slots=True)
class LoraKey:
    """A tensor's name taken apart. `side` is A or B; `infix` the adapter's name if it is there."""

    module: str
    side: str
    embedding: bool
    infix: str | None


def strip_prefix(name: str) -> str:
    return name.removeprefix(PREFIX)


def stored_name(name: str) -> str:
    """`name` as PEFT saves it: with its prefix, without an adapter's name in it."""
    plain = strip_prefix(name)
    named = _NAMED.fullmatch(plain)
    if named:
        plain = f"{named[1]}{named[2] or ''}"
    # What modules share lies beside the model and has the first half of the prefix only.
    return plain if plain.startswith("base_model.") else f"{PREFIX}{plain}"


def parse_lora_key(name: str) -> LoraKey | None:
    """`name` as a LoRA factor's, or None."""
    plain = strip_prefix(name)
    for pattern, embedding in ((_LINEAR, False), (_EMBEDDING, True)):
        found = pattern.fullmatch(plain)
        if found:
            return LoraKey(found["module"], found["side"], embedding, found["infix"])
    return None


@dataclass(frozen=True)
class ModuleIndex:
    """A base's modules by name, and what is near a name that is none."""

    modules: tuple[ModuleSpec, ...]

    @cached_property
    def by_name(self) -> Mapping[str, ModuleSpec]:
        return {module.name: module for module in self.modules}

    def nearest(self, name: str) -> str | None:
        """The module somebody who wrote `name` most likely meant."""
        nested = [m for m in self.by_name if name.endswith(f".{m}") or m.endswith(f".{name}")]
        if nested:
            return max(nested, key=len)
        found = process.extractOne(name, self.by_name.keys(), scorer=fuzz.ratio, score_cutoff=50)
        return found[0] if found else None

    def explain(self, name: str) -> str:
        """What the base has instead of `name`, as the end of a sentence."""
        for number in _NUMBER.finditer(name):
            before, after = name[: number.start()], name[number.end() :]
            there = self._numbers(before, after)
            if there:
                what = "experts" if before.endswith(".experts.") else "layers"
                return f"the base has {what} {min(there)} to {max(there)} there"
        nearest = self.nearest(name)
        return f"the nearest one is '{nearest}'" if nearest else "the base has nothing like it"

    def _numbers(self, before: str, after: str) -> list[int]:
        return [
            int(middle)
            for name in self.by_name
            if name.startswith(before) and name.endswith(after)
            for middle in [name[len(before) : len(name) - len(after)]]
            if middle.isdigit()
        ]


def leaf_names(modules: Iterable[str]) -> tuple[str, ...]:
    """The last name components, sorted: what target_modules lists."""
    return tuple(sorted({module.rpartition(".")[2] for module in modules}))
