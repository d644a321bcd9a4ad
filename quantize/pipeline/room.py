"""How much a merge job will take, checked before it takes anything."""

from __future__ import annotations

import math
from pathlib import Path

from quantize.pipeline.checking import Plan
from quantize.pipeline.estimates import ENGINE_BYTES, TOOL_BYTES, check_disks, check_memory
from quantize.pipeline.texts import SAMPLE_TOKENS
from quantize.pipeline.workshop import Workshop

# Notes, reports, tokenizers.
_SLACK = 2 << 20
# Of the engine's distributions: one half-precision number a token of the vocabulary and position.
_PROBABILITY_BYTES = 2
# Scale and zero point of a group, against the values that share them.
_GROUP_BYTES = 4


def check_room(shop: Workshop) -> None:
    """Raises DiskFull or Conflict where the job cannot come to its end on this machine."""
    plan = shop.plan
    model = final_size(plan)
    needed: list[tuple[Path, int]] = [(shop.place, model + _SLACK)]
    work = _distributions(plan) + _SLACK
    if plan.needs_whole:
        whole = sum(shard.size for shard in plan.whole)
        work += whole * (2 if plan.compares_weights else 1)
    needed.append((shop.context.work, work))
    if plan.name is not None and plan.out is not None:
        # The directory is the user's: the store keeps its own copy.
        needed.append((shop.context.catalog.layout.staging, model))
    check_disks(needed)
    check_memory(_memory(plan))


def final_size(plan: Plan) -> int:
    """Bytes of the published weights, for a quantized model an upper bound."""
    recipe = plan.recipe
    if recipe is None:
        return sum(shard.size for shard in plan.final)
    group = 32 if recipe.group_size < 0 else recipe.group_size
    rounded = recipe.bits / 8 + _GROUP_BYTES / group
    total = 0.0
    for shard in plan.whole:
        for slot in shard.slots:
            in_layers = len(slot.shape) == 2 and ".layers." in slot.name
            total += math.prod(slot.shape) * (rounded if in_layers else 2)
        total += len(shard.header)
    return int(total)


def _distributions(plan: Plan) -> int:
    if plan.texts is None:
        tokens = SAMPLE_TOKENS if plan.recipe is not None else 0
    else:
        assert plan.order.evaluate is not None, "texts are asked for by it"
        tokens = 2 * plan.order.evaluate.tokens
    return tokens * plan.source.base.vocab_size * _PROBABILITY_BYTES


def _memory(plan: Plan) -> dict[str, int]:
    needed = {}
    if plan.recipe is not None:
        needed["quantizing"] = 4 * plan.parameters + TOOL_BYTES
        needed["loading the result with vLLM"] = final_size(plan) + ENGINE_BYTES
    if plan.texts is not None:
        needed["measuring the merged model in fp32"] = 4 * plan.parameters + ENGINE_BYTES
    return needed
