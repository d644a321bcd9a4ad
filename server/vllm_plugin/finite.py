"""An output that is not finite ends its own request, and nobody else's.

Weights that are finite can still overflow: bfloat16 ends at 3.4e38, and a norm makes NaN of an
infinity. vLLM samples from such logits as from any others, so a client gets words of no meaning.
Here the worker looks at each row of logits before it samples (`checked`), and the scheduler ends
the requests of those that are not finite with an error (`guarding`). answering.py says whose
fault it was.

Others are safe from it: no product of a layer mixes rows, a row of attention reads its own
request's blocks, whoever gets those next finds them zeroed (patches.py), and nobody finds them in
the prefix cache any more (`_forget`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch

from server.vllm_plugin.mixtures import after_import

# EngineCoreOutput.stop_reason of a request that was ended here.
STOPPED = "adapterctl:not_finite"
_RUNNER = "vllm.v1.worker.gpu_model_runner"
_SEAM = "update_from_output"
# The scheduler's own set of requests that it ends with an error in this very step.
_FAILED = "encoder_cache_mismatch_reqs"


def install() -> None:
    """Before a model runner is made. Its module is not imported here: that takes seconds."""
    after_import(_RUNNER, _check_samples)


def _check_samples(module: ModuleType) -> None:
    runner = module.GPUModelRunner
    if not hasattr(runner.sample_tokens, "checks_logits"):
        runner.sample_tokens = checked(runner.sample_tokens)


def checked(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """GPUModelRunner.sample_tokens that says in `num_nans_in_logits` whose logits are no good.

    Looked at is what the model gave, before a grammar or a sampler's settings forbid tokens.
    """

    @functools.wraps(original)
    def sample_tokens(runner: Any, grammar_output: Any) -> Any:
        state = runner.execute_model_state
        rows = [] if state is None or state.logits is None else rows_not_finite(state.logits)
        if not rows:
            return original(runner, grammar_output)
        # The sampler gets something it can work with; what comes of it is thrown away.
        state.logits[rows] = 0
        drafts = state.spec_decode_metadata
        bad = requests_of(
            rows, runner.input_batch.req_ids, None if drafts is None else drafts.num_draft_tokens
        )
        output = original(runner, grammar_output)
        output.num_nans_in_logits = dict.fromkeys(bad, 1)
        return output

    sample_tokens.checks_logits = True  # type: ignore[attr-defined]
    return sample_tokens


def rows_not_finite(logits: torch.Tensor) -> list[int]:
    """The rows of `logits` [rows, vocabulary] that have NaN, +inf, or nothing but -inf.

    A model may forbid single tokens with -inf. One sum tells that all is well: NaN and infinities
    survive it. It is a quarter of what the largest value of each row takes, and an eighth of
    `isfinite` (22 us for 8 rows of 49,152 bfloat16; the product that made them takes 16 ms).
    """
    if math.isfinite(logits.sum().item()):
        return []
    return [int(row) for row in (~torch.isfinite(logits.amax(dim=-1))).nonzero().flatten()]


def requests_of(
    rows: Iterable[int], requests: Sequence[str], drafts: Sequence[int] | None
) -> list[str]:
    """Whose rows these are: one a request, and one more for each of its drafted tokens."""
    if drafts is None:
        return [requests[row] for row in rows if row < len(requests)]
    owners = [name for name, count in zip(requests, drafts, strict=False) for _ in range(count + 1)]
    return list(dict.fromkeys(owners[row] for row in rows if row < len(owners)))


def guarding(scheduler: type) -> type:
    """A subclass of vLLM's scheduler that ends requests whose logits are not finite."""
    if not hasattr(scheduler, _SEAM):
        # A scheduler of somebody else's.
        return scheduler

    def update_from_output(self: Any, scheduler_output: Any, output: Any) -> Any:
        found = output.num_nans_in_logits or {}
        ended = {name for name, count in found.items() if count and _leave_out(self, name, output)}
        outputs = getattr(scheduler, _SEAM)(self, scheduler_output, output)
        if ended:
            for one in (one for client in outputs.values() for one in client.outputs):
                if one.request_id in ended:
                    one.stop_reason = STOPPED
        return outputs

    return type(scheduler.__name__, (scheduler,), {_SEAM: update_from_output})


def _leave_out(scheduler: Any, name: str, output: Any) -> bool:
    """Have the step end a request, without what was sampled for it; False if it has ended."""
    request = scheduler.requests.get(name)
    if request is None or request.is_finished():
        return False
    output.prompt_logprobs_dict.pop(name, None)
    output.prompt_token_id_logprobs_dict.pop(name, None)
    index = output.req_id_to_index[name]
    if output.sampled_token_ids:
        output.sampled_token_ids[index] = []
    _forget(scheduler.kv_cache_manager, name)
    getattr(scheduler, _FAILED).add(name)
    return True


def _forget(cache: Any, name: str) -> None:
    """What it computed is found in the prefix cache no more: it may be as bad as the end of it."""
    cache.evict_blocks({block for group in cache.get_block_ids(name) for block in group})
