"""Which logits count as not finite, whose they are, and how the scheduler ends their requests."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import ExecuteModelState, GPUModelRunner

from server.vllm_plugin import finite

VALUES = (0.0, -3.5, 3.3e38, -3.3e38, math.nan, math.inf, -math.inf)


def test_the_seams_are_still_where_they_were() -> None:
    assert list(inspect.signature(GPUModelRunner.sample_tokens).parameters)[1:] == [
        "grammar_output"
    ]
    assert {"logits", "spec_decode_metadata"} <= set(ExecuteModelState._fields)
    parameters = list(inspect.signature(Scheduler.update_from_output).parameters)
    assert parameters == ["self", "scheduler_output", "model_runner_output"]
    source = inspect.getsource(Scheduler.update_from_output)
    failing = source.index(f"error_req_ids.update(self.{finite._FAILED})")
    assert failing < source.index("error_req_ids, RequestStatus.FINISHED_ERROR")
    assert issubclass(AsyncScheduler, Scheduler)


@given(
    st.integers(1, 9).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from(VALUES), min_size=width, max_size=width),
            min_size=1,
            max_size=9,
        )
    ),
    st.sampled_from((torch.bfloat16, torch.float16, torch.float32)),
)
def test_rows_are_bad_that_no_softmax_can_take(
    values: list[list[float]], dtype: torch.dtype
) -> None:
    logits = torch.tensor(values).to(dtype)
    expected = [
        row
        for row, line in enumerate(logits.double())
        if bool(line.isnan().any()) or math.isinf(float(line.max()))
    ]
    assert finite.rows_not_finite(logits) == expected


def test_tokens_that_a_model_forbids_are_no_fault() -> None:
    assert finite.rows_not_finite(torch.tensor([[-math.inf, 1.0], [2.0, -math.inf]])) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_rows_of_drafted_tokens_belong_to_their_request(
    drafts: list[int], data: st.DataObject
) -> None:
    names = [f"r{number}" for number in range(len(drafts))]
    owners = [name for name, count in zip(names, drafts, strict=True) for _ in range(count + 1)]
    rows = data.draw(st.lists(st.integers(0, len(owners) - 1), unique=True))
    assert finite.requests_of(rows, names, drafts) == list(
        dict.fromkeys(owners[row] for row in rows)
    )


class Runner:
    """What of vLLM's model runner is touched; samples the largest logit."""

    def __init__(self, logits: torch.Tensor | None) -> None:
        self.execute_model_state: Any = SimpleNamespace(logits=logits, spec_decode_metadata=None)
        self.input_batch = SimpleNamespace(req_ids=["a", "b", "c"])

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput:
        logits = self.execute_model_state.logits
        assert bool(torch.isfinite(logits).all()), "the sampler gets nothing that it cannot take"
        sampled = [[int(row.argmax())] for row in logits]
        return ModelRunnerOutput(["a", "b", "c"], {"a": 0, "b": 1, "c": 2}, sampled)


def test_what_is_sampled_for_the_others_is_what_it_was() -> None:
    logits = torch.eye(3)
    logits[1, 2] = math.nan
    output = finite.checked(Runner.sample_tokens)(Runner(logits), None)
    assert output.num_nans_in_logits == {"b": 1}
    assert (output.sampled_token_ids[0], output.sampled_token_ids[2]) == ([0], [2])
    output = finite.checked(Runner.sample_tokens)(Runner(torch.eye(3)), None)
    assert not output.num_nans_in_logits


@pytest.mark.parametrize("state", [None, SimpleNamespace(logits=None)])
def test_a_step_without_logits_is_vllms_own(state: Any) -> None:
    runner = SimpleNamespace(execute_model_state=state)
    assert finite.checked(lambda runner, grammar: "output")(runner, None) == "output"


class Cache:
    """The prefix cache: which blocks it has forgotten."""

    def __init__(self) -> None:
        self.forgotten: set[int] = set()

    def get_block_ids(self, name: str) -> tuple[list[int], ...]:
        return ([ord(name), 7], [8])

    def evict_blocks(self, blocks: set[int]) -> None:
        self.forgotten |= blocks


class Plain:
    """vLLM's scheduler as far as it ends requests with an error."""

    def __init__(self) -> None:
        self.requests = {
            name: SimpleNamespace(is_finished=lambda ended=name == "c": ended) for name in "abc"
        }
        self.encoder_cache_mismatch_reqs: set[str] = set()
        self.kv_cache_manager = Cache()

    def update_from_output(self, scheduler_output: Any, output: ModelRunnerOutput) -> Any:
        failed = self.encoder_cache_mismatch_reqs
        for name in failed:
            assert output.sampled_token_ids[output.req_id_to_index[name]] == []
            # vLLM asserts that a request without an output has none of these.
            assert name not in output.prompt_logprobs_dict
        outputs = [
            SimpleNamespace(request_id=name, failed=name in failed, stop_reason=None)
            for name in "ab"
        ]
        return {0: SimpleNamespace(outputs=outputs)}


def step(bad: dict[str, int] | None) -> tuple[Any, dict[str, tuple[bool, str | None]]]:
    scheduler = finite.guarding(Plain)()
    output = ModelRunnerOutput(["a", "b", "c"], {"a": 0, "b": 1, "c": 2}, [[1], [2], [3]])
    output.prompt_logprobs_dict = {"a": None, "b": None}
    output.num_nans_in_logits = bad
    found = scheduler.update_from_output(None, output)[0].outputs
    return scheduler, {one.request_id: (one.failed, one.stop_reason) for one in found}


def test_the_scheduler_ends_whose_logits_are_bad_and_nobody_else() -> None:
    # "c" was aborted while the step ran, and "d" is not known any more.
    scheduler, outputs = step({"a": 0, "b": 1, "c": 1, "d": 1})
    assert outputs == {"a": (False, None), "b": (True, finite.STOPPED)}
    assert scheduler.kv_cache_manager.forgotten == {ord("b"), 7, 8}


@pytest.mark.parametrize("bad", [None, {}, {"a": 0}])
def test_without_any_it_is_vllms_own_step(bad: dict[str, int] | None) -> None:
    scheduler, outputs = step(bad)
    assert outputs == {"a": (False, None), "b": (False, None)}
    assert scheduler.kv_cache_manager.forgotten == set()


def test_a_scheduler_of_another_kind_is_left_alone() -> None:
    class Other:
        pass

    assert finite.guarding(Other) is Other
