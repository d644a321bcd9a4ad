"""vLLM's own metrics, as its API server tells them, made fit to stand beside those of others.

What is passed on gets a label that says which engine it is of; vLLM's own label of that name (the
number of a data-parallel rank) becomes `exported_engine`, as Prometheus itself would call it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

WAITING = "vllm:num_requests_waiting"
RUNNING = "vllm:num_requests_running"
KV_CACHE = "vllm:kv_cache_usage_perc"
# As vLLM called it until 0.10, and endpoint pickers of that time still do.
OLD_KV_CACHE = "vllm:gpu_cache_usage_perc"
LORA = "vllm:lora_requests_info"

# The gateway says these itself, for the server as a whole: what routes requests to servers reads
# the first series of each name. (And of the last vLLM keeps a series for every set of adapters
# that ever ran together.)
_SUMMED_UP = frozenset({WAITING, RUNNING, KV_CACHE, OLD_KV_CACHE, LORA})
_PREFIX = "vllm:"
_COMMENT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][\w:]*)(?: .*)?")
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: -?\d+)?")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine works on: requests, and the used part of its KV cache (0 to 1, None where it
    does not say)."""

    running: int
    waiting: int
    kv_cache: float | None


@dataclass(slots=True)
class _Family:
    described_by: str
    comments: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def passed_on(texts: Mapping[str, str]) -> str:
    """The metrics of several engines, by engine, as one text in Prometheus' format.

    Every family stands once, with the samples of all engines. What is no sample is left out.
    """
    families: dict[str, _Family] = {}
    for engine, text in texts.items():
        label = f'engine="{_escaped(engine)}"'
        family = ""
        for line in text.split("\n"):
            if comment := _COMMENT.fullmatch(line):
                family = comment[2]
                if _wanted(family):
                    found = families.setdefault(family, _Family(engine))
                    # The first engine that has a family describes it.
                    if found.described_by == engine:
                        found.comments.append(line)
            elif (sample := _SAMPLE.fullmatch(line)) and _wanted(sample[1]) and _wanted(family):
                if not sample[1].startswith(family):
                    continue
                labels = label
                if sample[2]:
                    labels += "," + _LABEL.sub(_renamed, sample[2])
                families[family].samples.append(f"{sample[1]}{{{labels}}} {sample[3]}")
    return "".join(
        line + "\n"
        for family in families.values()
        if family.samples
        for line in (*family.comments, *family.samples)
    )


def figures(text: str) -> EngineFigures:
    """What an engine says of itself; ValueError for what is no number."""
    usage = [value for _, value in _values(text, KV_CACHE)]
    return EngineFigures(
        running=int(sum(value for _, value in _values(text, RUNNING))),
        waiting=int(sum(value for _, value in _values(text, WAITING))),
        kv_cache=max(usage) if usage else None,
    )


def _values(text: str, name: str) -> Iterator[tuple[str, float]]:
    for line in text.split("\n"):
        if line.startswith(name) and (sample := _SAMPLE.fullmatch(line)) and sample[1] == name:
            yield sample[2] or "", float(sample[3])


def _wanted(name: str) -> bool:
    return name.startswith(_PREFIX) and name not in _SUMMED_UP and not name.endswith("_created")


def _renamed(label: re.Match[str]) -> str:
    return "exported_" + label[0] if label[1] == "engine" else label[0]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
