"""A merge from end to end: one version and its base in, a Hugging Face directory out."""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import adapters
from adapters.catalog import Catalog
from adapters.jobs.orders import BaseWeights, Dtype
from adapters.models import Origin
from quantize.merging.base_weights import Asked
from quantize.merging.comparing import compared_shard
from quantize.merging.layout import Shard, planned_shards
from quantize.merging.measuring import Compared, Measured, comparison_of, drowning, rounding_of
from quantize.merging.models import Merged, MergeReport, UsedWeights
from quantize.merging.side_files import notes_on, side_files
from quantize.merging.source import MergeSource, open_source
from quantize.merging.workspace import REPORT, Workspace, check_out, written
from quantize.merging.writing import Begun, Writer, seal_shard

# What a merge of the same inputs writes; raised when that changes, so that no run goes on from
# shards of another kind.
_RECIPE = 1
# The report and the state; whatever they take, it is less.
_SLACK = 4 << 20


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears of a new step, and of (done, total) bytes."""

    step: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


def merge(
    catalog: Catalog,
    reference: str,
    out: Path | None,
    *,
    dtype: Dtype | None = None,
    base_weights: BaseWeights = "original",
    nf4_checkpoint: Path | None = None,
    compare_base_weights: bool = False,
    watch: Watcher | None = None,
) -> Merged:
    """Merge the version `reference` into its base and write the model to the directory `out`.

    W' is computed in fp32 (fp64 for a base in fp64) and rounded once to the output dtype: the
    base's own for each tensor, or `dtype` for every floating-point tensor. `out` None is
    NAME-VERSION-merged in the working directory. `base_weights` says what W is, and
    `nf4_checkpoint` where to read it when it is not the original; `compare_base_weights` computes
    the other one, too, and reports how far both are from each other. The same inputs give the
    same bytes, but for merge_report.json, which holds this run's cost. Raises AdapterctlError
    subclasses.
    """
    began = time.monotonic()
    watch = watch or Watcher()
    watch.step(f"checking {reference} and its base")
    asked = Asked(base_weights, nf4_checkpoint, compare_base_weights)
    source = open_source(catalog, reference, asked)
    label = f"{source.version.adapter}-{source.version.label}"
    target = (Path(f"{label}-merged") if out is None else out).absolute()
    check_out(target)
    shards = planned_shards(source.files, source.base, source.plan, dtype, source.weights.places)
    beside = side_files(source, shards, dtype)
    with Workspace(target, _digest(source, shards, beside, dtype)) as space:
        resumed = [shard for shard in shards if space.finished(shard.name) is not None]
        measured = _write_shards(space, source, shards, beside, watch)
        source.check_unchanged()
        used = _used_weights(space, source, shards)
        report = _report(source, shards, measured, used, len(resumed), dtype, began)
        merged = Merged(
            name=source.version.adapter,
            version=source.version.label,
            digest=source.version.digest,
            path=str(target),
            report=report,
        )
        with written(target):
            for name, content in beside.items():
                (space.path / name).parent.mkdir(exist_ok=True)
                (space.path / name).write_bytes(content)
            (space.path / REPORT).write_text(merged.model_dump_json(indent=2) + "\n")
            space.publish()
    return merged


def _write_shards(
    space: Workspace,
    source: MergeSource,
    shards: Sequence[Shard],
    beside: dict[str, bytes],
    watch: Watcher,
) -> tuple[Measured, ...]:
    places, others = source.weights.places, source.weights.others
    total = sum(shard.size for shard in shards)
    open_shards = [shard for shard in shards if space.finished(shard.name) is None]
    left = sum(shard.size for shard in open_shards)
    space.check_space(left + sum(len(content) for content in beside.values()) + _SLACK)
    done = total - left
    if done:
        watch.step(f"going on after {len(shards) - len(open_shards)} of {len(shards)} shards")
    else:
        watch.step("merging")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch.progress(done, total)

    def seal(shard: Shard, measured: tuple[Measured, ...], compared: tuple[Compared, ...]) -> None:
        seal_shard(shard, space.path)
        space.finish(shard.name, measured, compared)

    found: dict[str, tuple[Measured, ...]] = {}
    # The disk finishes one shard while the next is computed.
    with (
        written(space.out),
        ThreadPoolExecutor(1) as sealer,
        Writer(space.path, places, advance) as writer,
    ):
        last: Future[None] | None = None
        # To compare takes memory as well: then it is one shard after the other.
        for shard, begun in _begun(writer, open_shards, ahead=others is None):
            found[shard.name] = begun.result()
            compared = () if others is None else compared_shard(shard, places, others)
            if last is not None:
                last.result()
            last = sealer.submit(seal, shard, found[shard.name], compared)
        if last is not None:
            last.result()
    return tuple(
        item
        for shard in shards
        for item in found.get(shard.name) or space.finished(shard.name) or ()
    )


def _begun(
    writer: Writer, shards: Sequence[Shard], *, ahead: bool
) -> Iterator[tuple[Shard, Begun]]:
    """Every shard, begun; with `ahead` the one that follows it, too."""
    waiting: deque[tuple[Shard, Begun]] = deque()
    for shard in shards:
        waiting.append((shard, writer.begin(shard)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _digest(
    source: MergeSource, shards: Sequence[Shard], beside: dict[str, bytes], dtype: str | None
) -> str:
    """What makes two runs the same: all that their bytes depend on."""
    total = hashlib.sha256(f"merge {_RECIPE} {torch.__version__} {dtype}\n".encode())
    total.update(f"{source.version.base_digest} {source.version.digest}\n".encode())
    compared = source.weights.others is not None
    total.update(f"{source.weights.used.model_dump_json()} {compared}\n".encode())
    for shard in shards:
        total.update(f"{shard.name}\n".encode() + shard.header)
    for name, content in beside.items():
        total.update(f"{name} {len(content)}\n".encode() + content)
    return f"sha256:{total.hexdigest()}"


def _used_weights(space: Workspace, source: MergeSource, shards: Sequence[Shard]) -> UsedWeights:
    used = source.weights.used
    if source.weights.others is None:
        return used
    found = [item for shard in shards for item in space.compared(shard.name)]
    return used.model_copy(update={"compared": comparison_of(found)})


def _report(
    source: MergeSource,
    shards: Sequence[Shard],
    measured: Sequence[Measured],
    used: UsedWeights,
    resumed: int,
    dtype: str | None,
    began: float,
) -> MergeReport:
    version, manifest = source.version, source.manifest
    slots = [slot for shard in shards for slot in shard.slots]
    edited = [slot for slot in slots if slot.edits]
    known = source.files.tensors()
    rounding = rounding_of(measured)
    delta = math.sqrt(math.fsum(m.delta for m in measured))
    before = math.sqrt(math.fsum(m.before for m in measured))
    return MergeReport(
        method=version.method,
        lane=version.lane,
        dtype=dtype or source.base.dtype,
        base=Origin(reference=version.base, digest=version.base_digest),
        adapter=Origin(reference=f"{version.adapter}:{version.label}", digest=version.digest),
        composed_from=manifest.composed_from,
        base_weights=used,
        parameters_changed=len(edited),
        values_changed=sum(math.prod(slot.shape) for slot in edited),
        added=tuple(slot.name for slot in edited if slot.name not in known),
        resized=tuple(
            slot.name
            for slot in edited
            if slot.name in known and slot.source and slot.source.info.shape != slot.shape
        ),
        delta=delta,
        relative=delta / before if before else None,
        rounding=rounding,
        changed=tuple(m.changed() for m in measured),
        size=sum(shard.size for shard in shards),
        size_computed=sum(slot.size for slot in slots if not slot.copied),
        shards=len(shards),
        shards_resumed=resumed,
        seconds=round(time.monotonic() - began, 3),
        # Linux counts it in KiB.
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        tools={"adapterctl": adapters.__version__, "torch": torch.__version__},
        notes=notes_on(source),
        warnings=(*source.weights.warnings, *drowning(rounding, dtype or source.base.dtype)),
    )
