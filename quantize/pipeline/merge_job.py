"""A merge job from end to end: checked, merged, quantized, measured, judged, published."""

from __future__ import annotations

from datetime import datetime

import torch

from adapters.frozen import Frozen
from adapters.jobs.orders import MergeOrder
from quantize.jobs.context import JobContext, Rejected
from quantize.pipeline.building import Made, made, prepare_tools
from quantize.pipeline.checking import SIDE, check_published, checked, key_of
from quantize.pipeline.comparing import Judged, judged
from quantize.pipeline.ledger import Ledger
from quantize.pipeline.models import MergeResult
from quantize.pipeline.publishing import clear, keep_rejected, publish, published
from quantize.pipeline.reporting import now
from quantize.pipeline.room import check_room
from quantize.pipeline.workshop import Workshop, place_for


class _Begun(Frozen):
    """The date of the report, whenever the job ends."""

    at: datetime


def run_merge(context: JobContext, order: MergeOrder) -> MergeResult:
    """Does what was ordered; killed at any point and run again, it ends with the same bytes.

    Raises Rejected for a model that a gate refuses, which is kept aside.
    """
    if (known := published(context, order)) is not None:
        return known
    # Blocks are small: threads would wait for each other after every step, and on a machine that
    # serves meanwhile that is most of the time (measured with two: 30 s for 2.2 GB).
    torch.set_num_threads(1)
    context.watch.step(f"checking {order.reference} and its base")
    plan = checked(context, order)
    ledger = Ledger(context.work, key_of(plan), keep={SIDE})
    check_published(plan)
    shop = Workshop(context, plan, ledger, place_for(context, plan.out))
    check_room(shop)
    begun = ledger.read("begun", _Begun) or _Begun(at=now())
    ledger.note("begun", begun)
    verdict = ledger.read("judged", Judged)
    if verdict is None:
        prepare_tools(shop)
        weights: Made = made(shop)
        verdict = judged(shop, weights, begun.at)
        ledger.note("judged", verdict)
    if verdict.refusal is not None:
        raise Rejected(verdict.refusal, keep_rejected(shop, verdict.result, verdict.report))
    done = publish(shop, verdict.result, verdict.report)
    clear(shop)
    context.watch.progress(1, 1)
    return done
