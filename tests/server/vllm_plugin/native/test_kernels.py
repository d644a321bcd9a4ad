"""lora.c against float64: every shape, rank, dtype and mixture; and what must not change a byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.vllm_plugin.native.library import Library, load
from server.vllm_plugin.native.steps import NativeCaller, NativeStep
from server.vllm_plugin.native.weights import NativeWeights
from server.vllm_plugin.spans import plan_rows

SLOTS = 3
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Unit roundoffs: half a unit in the last place of 1.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
Stacks = tuple[torch.Tensor, ...]


@pytest.fixture(scope="module")
def library() -> Library:
    found = load()
    if found is None:
        pytest.skip("no C compiler here")
    return found


def _stacks(
    inputs: int, outputs: list[int], ranks: list[list[int]], dtype: torch.dtype
) -> tuple[Stacks, Stacks]:
    """ranks[slice][slot]; the slot's rank is the largest, and 2 more."""
    most = max(max(slot_ranks) for slot_ranks in ranks) + 2
    a_stacks, b_stacks = [], []
    for output, slot_ranks in zip(outputs, ranks, strict=True):
        a = torch.zeros(SLOTS, 1, most, inputs, dtype=dtype)
        b = torch.zeros(SLOTS, 1, output, most, dtype=dtype)
        for slot, rank in enumerate(slot_ranks):
            a[slot, 0, :rank] = torch.randn(rank, inputs) / inputs**0.5
            b[slot, 0, :, :rank] = torch.randn(output, rank) / max(rank, 1) ** 0.5
        a_stacks.append(a)
        b_stacks.append(b)
    return tuple(a_stacks), tuple(b_stacks)


def _apply(
    library: Library, indices: list[int], x: torch.Tensor, y: torch.Tensor, weights: NativeWeights
) -> None:
    caller = NativeCaller(library)
    caller.room_for(weights)
    assert caller.apply(NativeStep(plan_rows(indices)), weights, x, y, 1.0)


def _weights(library: Library, a: Stacks, b: Stacks) -> NativeWeights:
    widths = [stack.shape[-2] for stack in b]
    return NativeWeights(library, a, b, [sum(widths[:i]) for i in range(len(widths))])


@st.composite
def _mixture(draw: st.DrawFn) -> list[int]:
    runs = draw(
        st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 36)), min_size=1, max_size=6)
    )
    return [slot for slot, length in runs for _ in range(length)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    indices=_mixture(),
    inputs=st.sampled_from([1, 7, 32, 64, 100, 160]),
    outputs=st.lists(st.sampled_from([1, 15, 16, 48, 64, 130]), min_size=1, max_size=3),
    dtypes=st.sampled_from([(d, d) for d in DTYPES] + [(torch.bfloat16, torch.float32)]),
    data=st.data(),
)
def test_every_shape_rank_dtype_and_mixture_matches_float64(
    library: Library,
    indices: list[int],
    inputs: int,
    outputs: list[int],
    dtypes: tuple[torch.dtype, torch.dtype],
    data: st.DataObject,
) -> None:
    rank = st.sampled_from([0, 1, 2, 3, 8, 15, 16, 17, 37, 64])
    ranks = [[data.draw(rank) for _ in range(SLOTS)] for _ in outputs]
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    x_type, y_type = dtypes
    a, b = _stacks(inputs, outputs, ranks, x_type)
    # As wide as vLLM's padded logits at most, and a part of something larger.
    missing = data.draw(st.integers(-3, 3))
    width = max(1, sum(outputs) + missing)
    x = torch.randn(len(indices), inputs + 5).to(x_type)[:, :inputs]
    y = torch.randn(len(indices), width + 9).to(y_type)[:, 2 : width + 2]
    before = y.clone()
    _apply(library, indices, x, y, _weights(library, a, b))
    _check(y, before, x, a, b, indices)


@pytest.mark.parametrize("rank", [1, 16, 128, 512])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_ranks_up_to_the_largest(library: Library, rank: int, rows: int) -> None:
    torch.manual_seed(rank)
    a, b = _stacks(576, [576], [[rank, 0, rank]], torch.bfloat16)
    indices = [0] * rows + [-1] + [2] * rows
    x, y = torch.randn(len(indices), 576).bfloat16(), torch.randn(len(indices), 576).bfloat16()
    before = y.clone()
    weights = _weights(library, a, b)
    _apply(library, indices, x, y, weights)
    _check(y, before, x, a, b, indices)
    assert weights.ranks(0) == (rank,)
    assert weights.ranks(2) == (rank,)


def _check(
    y: torch.Tensor,
    before: torch.Tensor,
    x: torch.Tensor,
    a_stacks: Stacks,
    b_stacks: Stacks,
    indices: list[int],
) -> None:
    """Within one rounding of y, one of the inner product, and float32 sums; -1 rows untouched."""
    wanted, size = before.double(), before.double().abs()
    inner_size = torch.zeros_like(size)
    slots = torch.tensor(indices)
    for slot in set(indices) - {-1}:
        rows, first = slots == slot, 0
        x64 = x[rows].double()
        for a, b in zip(a_stacks, b_stacks, strict=True):
            count = max(0, min(b.shape[-2], wanted.shape[1] - first))
            a64, b64 = a[slot, 0].double().t(), b[slot, 0, :count].double().t()
            part = slice(first, first + count)
            inner = x64 @ a64
            wanted[rows, part] += inner @ b64
            inner_size[rows, part] += inner.abs() @ b64.abs()
            size[rows, part] += x64.abs() @ a64.abs() @ b64.abs()
            first += count
    tiny = {torch.float16: 2.0**-24}.get(y.dtype, 1e-30)
    bound = ROUNDING[y.dtype] * wanted.abs() + 64 * ROUNDING[torch.float32] * size + tiny
    if x.dtype is torch.bfloat16:
        bound += ROUNDING[torch.bfloat16] * inner_size
    assert bool(((y.double() - wanted).abs() <= 1.01 * bound).all())
    assert torch.equal(y[slots < 0], before[slots < 0])


@pytest.mark.parametrize("rows", [1, 8, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_and_two_give_the_same_bytes(
    library: Library, rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    a, b = _stacks(320, [200, 64], [[16, 40, 5]] * 2, dtype)
    indices = [(i // 23) % (SLOTS + 1) - 1 if rows > 8 else i % SLOTS for i in range(rows)]
    x, y = torch.randn(rows, 320).to(dtype), torch.randn(rows, 264).to(dtype)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(y.clone())
            _apply(library, indices, x, results[-1], _weights(library, a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], y)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["a", "b", "x"])
@pytest.mark.parametrize("length", [1, 20])
def test_nan_and_inf_stay_in_their_rows(
    library: Library, value: float, side: str, length: int
) -> None:
    torch.manual_seed(0)
    a, b = _stacks(64, [48, 16], [[8, 8, 8]] * 2, torch.bfloat16)
    indices = [slot for slot in (0, 1, -1, 2, 1) for _ in range(length)]
    x = torch.randn(len(indices), 64).bfloat16()
    y = torch.randn(len(indices), 64).bfloat16()
    clean = y.clone()
    _apply(library, indices, x, clean, _weights(library, a, b))
    bad = torch.tensor([slot == 1 for slot in indices])
    if side == "x":
        x[bad] = value
    else:
        (a if side == "a" else b)[0][1, 0, 3, 3] = value
    _apply(library, indices, x, y, _weights(library, a, b))
    assert torch.equal(y[~bad], clean[~bad])
    assert not torch.isfinite(y[bad]).all()


def test_only_the_slot_that_was_written_to_is_laid_out_again(library: Library) -> None:
    torch.manual_seed(1)
    a, b = _stacks(64, [32], [[8, 8, 4]], torch.bfloat16)
    weights = _weights(library, a, b)
    weights.refresh(range(SLOTS))
    assert not weights.written.stale
    with weights.written.writing(1, 3):
        a[0][1].zero_()
        b[0][1].zero_()
        a[0][1, 0, :3] = torch.randn(3, 64)
        b[0][1, 0, :, :3] = torch.randn(32, 3)
    assert weights.written.refresh()
    assert weights.written.stale == {1}
    # Not needed in a step: it stays to be done.
    weights.refresh([0, 2])
    assert weights.written.stale == {1}
    weights.refresh([1])
    assert weights.ranks(1) == (3,)
    # Nobody told of this one.
    a[0][2, 0, 5, 0] = 1
    assert weights.written.refresh()
    assert weights.written.stale == set(range(SLOTS))
    weights.refresh(range(SLOTS))
    assert weights.ranks(2) == (6,)


def test_a_write_that_fails_leaves_all_slots_to_be_laid_out(library: Library) -> None:
    a, b = _stacks(64, [32], [[8, 8, 4]], torch.bfloat16)
    weights = _weights(library, a, b)
    weights.refresh(range(SLOTS))
    with pytest.raises(ValueError, match="half"), weights.written.writing(0, 8):
        a[0][0].zero_()
        raise ValueError("half written")
    assert weights.written.refresh()
    assert weights.written.stale == set(range(SLOTS))


def test_a_step_that_comes_again_has_the_memory_that_another_one_enlarged(library: Library) -> None:
    a, b = _stacks(64, [24], [[4, 4, 4]], torch.float32)
    weights, caller = _weights(library, a, b), NativeCaller(library)
    caller.room_for(weights)
    small, large = NativeStep(plan_rows([0])), NativeStep(plan_rows([0, 1] * 400))
    for step in (small, large, small):
        rows = step.plan.rows
        assert caller.apply(step, weights, torch.randn(rows, 64), torch.zeros(rows, 24), 1.0)
    used = {part.work.scratch for step in (small, large) for part in step._parts if part}
    assert used == {caller._scratch.data_ptr()}


def test_strides_that_c_does_not_take_are_left_to_torch(library: Library) -> None:
    a, b = _stacks(64, [32], [[8, 8, 4]], torch.bfloat16)
    weights, caller = _weights(library, a, b), NativeCaller(library)
    caller.room_for(weights)
    step = NativeStep(plan_rows([0, 1]))
    x, y = torch.randn(2, 64).bfloat16(), torch.zeros(2, 32).bfloat16()
    columns = torch.randn(64, 2).bfloat16().t()
    assert not caller.apply(step, weights, columns, y, 1.0)
    assert not caller.apply(step, weights, x.double(), y, 1.0)
    assert not y.any()
