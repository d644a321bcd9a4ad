"""What is asked of a deployment or a route, checked against what there is. Pure, no registry."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import Conflict, NotDeployed, NotHotServable, Quarantined, UsageError
from adapters.frozen import Lane
from adapters.jobs.orders import Calibration, MergeOrder
from adapters.lanes.choosing import deployed_lane, quarantined
from adapters.lanes.models import MERGED_MODEL, Shadow, Split
from adapters.lanes.parsing import Target, check_header, parse_target
from adapters.models import AdapterRecord, MergeRecord, VersionRecord
from adapters.references import Reference
from adapters.registry.snapshot import select_version

_ORDINARY = Calibration()


def wanted_lane(
    version: VersionRecord, lane: Lane | None, merge: MergeOrder | None, model: str | None
) -> Lane:
    """The lane that `deploy` is to see to. Raises UsageError and NotHotServable."""
    label = f"{version.adapter}:{version.label}"
    if merge is not None and model is not None:
        raise UsageError("a model is either named or made: leave the options of the merge out")
    if merge is not None and (merge.out is not None or merge.tag is not None):
        raise UsageError(
            "a model to deploy lies in the store and needs no tag: leave --out and --tag out"
        )
    merging = merge is not None or model is not None
    if lane is None:
        return Lane.MERGED if merging else version.lane
    if lane is Lane.HOT:
        if merging:
            raise UsageError("the hot lane takes no merged model: leave its options out")
        if version.lane is not Lane.HOT:
            raise NotHotServable(
                f"'{label}' cannot be hot ({version.reason or 'it has to be merged'}): deploy it "
                f"with `adapterctl deploy {label} --lane merged`"
            )
    elif merging and version.method == MERGED_MODEL:
        raise UsageError(f"'{label}' is a merged model itself: it is deployed as it is")
    return lane


def fits(order: MergeOrder, record: MergeRecord) -> bool:
    """Whether a model that was made so is what the order would make, in all that it says.

    What an order leaves at its default it does not say, and a report alone is no property of a
    model. Texts of the user's own are only known by what became of them: no record fits those.
    """
    return (
        order.quantize.calibration.path is None
        and _made_as(order, record)
        and _good_enough(order, record)
    )


def _made_as(order: MergeOrder, record: MergeRecord) -> bool:
    asked, calibration = order.quantize, order.quantize.calibration
    pairs: list[tuple[object, object]] = [(order.requantize, record.requantize)]
    if order.dtype is not None:
        pairs.append((order.dtype, record.dtype))
    if order.base_weights != "original" or order.nf4_checkpoint is not None:
        pairs += [
            (order.base_weights, record.base_weights),
            (order.nf4_checkpoint, record.nf4_checkpoint),
        ]
    if asked.group_size is not None:
        pairs.append((asked.group_size, record.group_size))
    if asked.symmetric is not None:
        pairs.append((asked.symmetric, record.symmetric))
    if calibration != _ORDINARY:
        pairs += [
            (calibration.samples, record.samples),
            (calibration.tokens, record.sample_tokens),
            (calibration.seed, record.seed),
        ]
    return all(wanted == made for wanted, made in pairs)


def _good_enough(order: MergeOrder, record: MergeRecord) -> bool:
    """Whether its quality is known and within the order's gates, if it has any."""
    options = order.evaluate
    if options is None or (options.max_kl is None and options.max_ppl_increase is None):
        return True
    if options.task is not None:
        return False
    for quality in record.quality:
        if options.max_kl is not None and (quality.kl is None or quality.kl > options.max_kl):
            return False
        if options.max_ppl_increase is not None:
            before, after = quality.reference_perplexity, quality.perplexity
            if before is None or after is None or after > before * (1 + options.max_ppl_increase):
                return False
    return bool(record.quality)


def planned_splits(
    adapter: AdapterRecord,
    stable: VersionRecord,
    wanted: Sequence[str] | Sequence[Split],
    header: tuple[str, str] | None,
) -> tuple[Split, ...]:
    """The splits of a route, each of which can be served; raises UsageError and NotFound errors."""
    splits = [
        _split(adapter, stable, part, header) if isinstance(part, str) else part for part in wanted
    ]
    if header is not None:
        if len(splits) != 1:
            raise UsageError("a header decides for one target: give exactly one with --header")
        splits = [splits[0].model_copy(update={"header": check_header(*header)})]
    for split in splits:
        if split.header is None and split.share == 0:
            raise UsageError(f"v{split.number} at 0% gets nothing: give a share, or --header")
    checked = tuple(
        split.model_copy(update=_checked(adapter, stable, split.number, split.lane))
        for split in splits
    )
    total = sum(split.share for split in checked)
    if total > 1 + 1e-9:
        raise UsageError(f"the shares come to {total * 100:.6g} %: together at most 100 %")
    _refuse_twice([(split.number, split.lane) for split in checked])
    return checked


def planned_shadows(
    adapter: AdapterRecord, stable: VersionRecord, wanted: Sequence[str] | Sequence[Shadow]
) -> tuple[Shadow, ...]:
    """The shadows of a route, likewise."""
    shadows = [_shadow(adapter, stable, part) if isinstance(part, str) else part for part in wanted]
    checked = tuple(
        shadow.model_copy(update=_checked(adapter, stable, shadow.number, shadow.lane))
        for shadow in shadows
    )
    _refuse_twice([(shadow.number, shadow.lane) for shadow in checked])
    return checked


def _split(
    adapter: AdapterRecord, stable: VersionRecord, text: str, header: tuple[str, str] | None
) -> Split:
    target = parse_target(text)
    if target.share is None and header is None:
        raise UsageError(f"how much should go to '{text}'? Write {text}=5%")
    number = _number(adapter, stable, target)
    return Split(number=number, lane=target.lane, share=target.share or 0.0)


def _shadow(adapter: AdapterRecord, stable: VersionRecord, text: str) -> Shadow:
    target = parse_target(text)
    if not target.share:
        raise UsageError(f"how much should '{text}' get a copy of? Write --shadow v6=10%")
    number = _number(adapter, stable, target)
    return Shadow(number=number, lane=target.lane, share=target.share)


def _number(adapter: AdapterRecord, stable: VersionRecord, target: Target) -> int:
    reference: Reference | None = target.reference(adapter.name)
    return stable.number if reference is None else select_version(adapter, reference).number


def _checked(
    adapter: AdapterRecord, stable: VersionRecord, number: int, lane: Lane | None
) -> dict[str, object]:
    """Whether the target moves with the tag; raises for what nothing can serve."""
    version = select_version(adapter, Reference(adapter.name, version=number))
    label = f"{adapter.name}:{version.label}"
    follows = version.number == stable.number
    if follows and lane is None:
        raise UsageError(
            f"{version.label} is what the reference means already: name another version, or "
            "another lane of the same, as @merged=10%"
        )
    if version.base_digest != stable.base_digest and lane is not Lane.MERGED:
        # A request is answered by the engine of its base; another base has none here.
        raise Conflict(f"'{label}' is for another base than '{adapter.name}:{stable.label}'")
    if (why := quarantined(adapter, version)) is not None:
        raise Quarantined(
            f"'{label}' is quarantined ({why}): lift that first with `adapterctl quarantine "
            f"{label} --lift`"
        )
    place = lane or deployed_lane(adapter, version)
    if place is None:
        raise NotDeployed(
            f"'{label}' is not in service: deploy it first with `adapterctl deploy {label}"
            f"{' --lane merged' if version.lane is Lane.MERGED else ''}`"
        )
    if place is Lane.HOT and version.lane is not Lane.HOT:
        raise NotHotServable(
            f"'{label}' cannot be hot ({version.reason or 'it has to be merged'}): name @merged"
        )
    if lane is Lane.MERGED and version.method != MERGED_MODEL:
        deployment = adapter.deployments.get(number)
        if deployment is None or (deployment.model is None and deployment.job is None):
            raise Conflict(
                f"'{label}' has no merged model: make one first with `adapterctl deploy {label} "
                "--lane merged`, or without moving its traffic with --no-switch"
            )
    return {"follows": follows}


def _refuse_twice(targets: Sequence[tuple[int, Lane | None]]) -> None:
    for number, lane in targets:
        if targets.count((number, lane)) > 1:
            where = "" if lane is None else f"@{lane}"
            raise UsageError(f"v{number}{where} is named twice: once, with its whole share")
