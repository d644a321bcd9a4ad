"""Every operation of the CPU LoRA wrapper against float64, over mixtures with and without -1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.torch_ops import bgmv_expand_slice, bgmv_shrink
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from server.vllm_plugin.native import library as native
from server.vllm_plugin.punica import AdapterPunicaWrapper, slots_to_pack

SLOTS = 4
MAX_RANK = 16
MAX_TOKENS = 512
# Half a unit in the last place, relative.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}

Stacks = tuple[torch.Tensor, ...]


class _ByTorch(AdapterPunicaWrapper):
    def __init__(self, *arguments: Any):
        super().__init__(*arguments, library=None)


@pytest.fixture(params=["native", "torch"], scope="module", autouse=True)
def ours(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test with the compiled kernels, and with torch's."""
    global _ours  # noqa: PLW0603
    if request.param == "native" and native.load() is None:
        pytest.skip("no C compiler here")
    _ours = AdapterPunicaWrapper if request.param == "native" else _ByTorch
    yield
    _ours = AdapterPunicaWrapper


_ours: type[AdapterPunicaWrapper] = AdapterPunicaWrapper


def _wrapper(
    indices: list[int], sampler: list[int] | None = None, kind: type | None = None
) -> PunicaWrapperCPU:
    """A wrapper in the state that vLLM gives it for a batch; slot i holds adapter id i + 1."""
    wrapper = (kind or _ours)(MAX_TOKENS, 256, torch.device("cpu"))
    _update(wrapper, indices, sampler)
    return wrapper


def _update(wrapper: PunicaWrapperCPU, indices: list[int], sampler: list[int] | None) -> None:
    mapping = LoRAMapping(
        tuple(i + 1 for i in indices),
        tuple(i + 1 for i in (indices if sampler is None else sampler)),
        is_prefill=True,
    )
    wrapper.update_metadata(mapping, [1, 2, 3, 4], SLOTS + 1, 1000)


def _stacks(
    inputs: int, outputs: tuple[int, ...], ranks: list[list[int]], dtype: torch.dtype
) -> tuple[Stacks, Stacks]:
    """Random weights as vLLM stacks them; ranks[slice][slot], the rest zero."""
    a_stacks, b_stacks = [], []
    for output, slot_ranks in zip(outputs, ranks, strict=True):
        a = torch.zeros(SLOTS, 1, MAX_RANK, inputs, dtype=dtype)
        b = torch.zeros(SLOTS, 1, output, MAX_RANK, dtype=dtype)
        for slot, rank in enumerate(slot_ranks):
            a[slot, 0, :rank] = torch.randn(rank, inputs) / inputs**0.5
            b[slot, 0, :, :rank] = torch.randn(output, rank)
        a_stacks.append(a)
        b_stacks.append(b)
    return tuple(a_stacks), tuple(b_stacks)


def _reference(
    y: torch.Tensor, x: torch.Tensor, a_stacks: Stacks, b_stacks: Stacks, indices: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y + x A^T B^T in float64, the same with absolute values: what errors are relative to)."""
    result, size = y.double(), y.double().abs()
    for row, slot in enumerate(indices):
        if slot < 0:
            continue
        first = 0
        for a, b in zip(a_stacks, b_stacks, strict=True):
            a64, b64, x64 = a[slot, 0].double(), b[slot, 0].double(), x[row].double()
            columns = slice(first, first + b64.shape[0])
            result[row, columns] += b64 @ (a64 @ x64)
            size[row, columns] += b64.abs() @ (a64.abs() @ x64.abs())
            first += b64.shape[0]
    return result, size


def _close(found: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor) -> bool:
    """Within a few roundings: of x @ A, of the sum, and float32 accumulation over the inputs."""
    bound = (4 * ROUNDING[found.dtype] + 64 * ROUNDING[torch.float32]) * size + 1e-30
    return bool(((found.double() - wanted).abs() <= bound).all())


@st.composite
def _batch(draw: st.DrawFn) -> list[int]:
    runs = draw(
        st.lists(st.tuples(st.integers(-1, SLOTS - 1), st.integers(1, 40)), min_size=1, max_size=8)
    )
    return [slot for slot, length in runs for _ in range(length)]


def test_stock_vllm_gives_base_rows_the_last_slots_adapter() -> None:
    """The defect this package exists for. If this fails, vLLM has fixed it: drop the patch."""
    torch.manual_seed(0)
    (a,), (b,) = _stacks(32, (24,), [[8] * SLOTS], torch.float32)
    x, y = torch.randn(1, 32), torch.zeros(1, 24)
    buffer = torch.zeros(1, MAX_RANK)
    nobody = torch.tensor([-1])
    bgmv_shrink(x, a, buffer, nobody, 1.0)
    bgmv_expand_slice(buffer, b, y, nobody, 0, 24, add_inputs=True)
    last, _ = _reference(torch.zeros(1, 24), x, (a,), (b,), [SLOTS - 1])
    assert torch.allclose(y.double(), last, atol=1e-5)
    assert y.abs().max() > 0.1


def test_stock_wrapper_mixes_adapters_into_base_rows_and_ours_does_not() -> None:
    torch.manual_seed(0)
    a, b = _stacks(32, (24,), [[8] * SLOTS], torch.float32)
    x, indices = torch.randn(3, 32), [0, -1, 1]
    stock, ours = torch.zeros(3, 24), torch.zeros(3, 24)
    _wrapper(indices, kind=PunicaWrapperCPU).add_lora_linear(stock, x, a, b, 1.0, (24,))
    _wrapper(indices).add_lora_linear(ours, x, a, b, 1.0, (24,))
    assert stock[1].abs().max() > 0.1
    assert ours[1].abs().max() == 0
    assert torch.allclose(stock[0], ours[0], atol=1e-5)
    assert torch.allclose(stock[2], ours[2], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    indices=_batch(),
    outputs=st.sampled_from([(24,), (48, 16, 16), (40, 40)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    data=st.data(),
)
def test_linear_matches_float64(
    indices: list[int], outputs: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    ranks = [
        data.draw(st.lists(st.sampled_from([0, 1, 5, 8, MAX_RANK]), min_size=SLOTS, max_size=SLOTS))
        for _ in outputs
    ]
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    a, b = _stacks(64, outputs, ranks, dtype)
    x, y = (
        torch.randn(len(indices), 64).to(dtype),
        torch.randn(len(indices), sum(outputs)).to(dtype),
    )
    before = y.clone()
    _wrapper(indices).add_lora_linear(y, x, a, b, 1.0, outputs)
    wanted, size = _reference(before, x, a, b, indices)
    assert _close(y, wanted, size)
    base = torch.tensor([i < 0 for i in indices])
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 8, 24, 40, 200])
def test_linear_is_at_least_as_exact_as_stock(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    indices = sorted(i % SLOTS for i in range(rows))
    a, b = _stacks(256, (96, 32, 32), [[16, 8, 4, 16]] * 3, dtype)
    x, y = torch.randn(rows, 256).to(dtype), torch.randn(rows, 160).to(dtype)
    wanted, _ = _reference(y, x, a, b, indices)
    stock, ours = y.clone(), y.clone()
    _wrapper(indices, kind=PunicaWrapperCPU).add_lora_linear(stock, x, a, b, 1.0, (96, 32, 32))
    _wrapper(indices).add_lora_linear(ours, x, a, b, 1.0, (96, 32, 32))
    stock_error = (stock.double() - wanted).pow(2).mean().sqrt()
    our_error = (ours.double() - wanted).pow(2).mean().sqrt()
    # In float32 only the order of summation differs, which may favour either.
    assert our_error <= (1.05 if dtype is torch.bfloat16 else 4) * stock_error


@settings(max_examples=40, deadline=None)
@given(sampler=_batch(), padding=st.integers(0, 16), seed=st.integers(0, 2**31))
def test_logits_use_the_sampled_rows_mapping(sampler: list[int], padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    (a,), (b,) = _stacks(48, (100,), [[8, 0, 16, 4]], torch.bfloat16)
    x = torch.randn(len(sampler), 48).to(torch.bfloat16)
    y = torch.randn(len(sampler), 100 + padding).to(torch.bfloat16)
    before = y.clone()
    # The token mapping says something else on purpose: logits have rows of their own.
    _wrapper([3] * 7, sampler).add_lora_logits(y, x, a, b, 1.0)
    wanted, size = _reference(before, x, (a,), (b,), sampler)
    assert _close(y, wanted, size)
    assert torch.equal(y[:, 100:], before[:, 100:])
    base = torch.tensor([i < 0 for i in sampler])
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_prompt_logits_use_one_slot_for_all_rows(slot: int) -> None:
    torch.manual_seed(1)
    (a,), (b,) = _stacks(48, (100,), [[8, 4, 16, 4]], torch.float32)
    wrapper = _wrapper([0] * 9 + [-1] * 3, [0, -1])
    assert isinstance(wrapper, AdapterPunicaWrapper)
    x, y = torch.randn(9, 48), torch.randn(9, 100)
    before = y.clone()
    with wrapper.logits_of_slot(slot):
        wrapper.add_lora_logits(y, x, a, b, 1.0)
    wanted, size = _reference(before, x, (a,), (b,), [slot] * 9)
    assert _close(y, wanted, size)
    with pytest.raises(RuntimeError, match="9 rows, mapping for 2"):
        wrapper.add_lora_logits(y, x, a, b, 1.0)


@settings(max_examples=40, deadline=None)
@given(indices=_batch(), seed=st.integers(0, 2**31))
def test_embedding_leaves_base_rows_alone(indices: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    _, (b,) = _stacks(8, (32,), [[16] * SLOTS], torch.bfloat16)
    looked_up = torch.randn(len(indices), MAX_RANK).to(torch.bfloat16)
    y = torch.randn(len(indices), 32).to(torch.bfloat16)
    before = y.clone()
    _wrapper(indices).add_lora_embedding(y, looked_up, b, add_input=True)
    for row, slot in enumerate(indices):
        if slot < 0:
            assert torch.equal(y[row], before[row])
            continue
        b64, x64 = b[slot, 0].double(), looked_up[row].double()
        size = before[row].double().abs() + b64.abs() @ x64.abs()
        assert _close(y[row], before[row].double() + b64 @ x64, size)


@settings(max_examples=40, deadline=None)
@given(indices=_batch(), add=st.booleans(), seed=st.integers(0, 2**31))
def test_shrink_and_expand_for_sharded_layers(indices: list[int], add: bool, seed: int) -> None:
    torch.manual_seed(seed)
    outputs = (24, 8)
    a, b = _stacks(64, outputs, [[8, 16, 3, 1]] * 2, torch.bfloat16)
    x = torch.randn(len(indices), 64).to(torch.bfloat16)
    y = torch.randn(len(indices), 40).to(torch.bfloat16)
    before = y.clone()
    wrapper = _wrapper(indices)
    # Left over from another layer: it must not survive in rows without adapter.
    buffer = torch.full((2, len(indices), MAX_RANK), 7.0)
    wrapper.add_shrink(buffer, x, a, 1.0)
    wrapper.add_expand(y, buffer, b, outputs, offset_start=4, add_inputs=add)
    start = before[:, 4:36] if add else torch.zeros(len(indices), 32)
    wanted, size = _reference(start, x, a, b, indices)
    assert _close(y[:, 4:36], wanted, size)
    assert torch.equal(y[:, :4], before[:, :4])
    assert torch.equal(y[:, 36:], before[:, 36:])


def test_full_linear_replaces_only_rows_whose_adapter_brings_a_layer() -> None:
    torch.manual_seed(2)
    weight, bias = torch.randn(SLOTS, 1, 5, 32), torch.randn(SLOTS, 5)
    enabled = torch.tensor([True, False, True, True])
    sampler = [2, -1, 1, 0, 2]
    x, y = torch.randn(5, 32), torch.randn(5, 5)
    before = y.clone()
    _wrapper([0], sampler).apply_lora_full_linear(y, x, weight, bias, enabled)
    for row, slot in enumerate(sampler):
        replaced = slot >= 0 and bool(enabled[slot])
        wanted = weight[slot, 0] @ x[row] + bias[slot] if replaced else before[row]
        assert torch.allclose(y[row], wanted, atol=1e-5)


@pytest.mark.parametrize("poisoned", ["a", "b"])
def test_nan_in_one_slot_stays_in_its_rows(poisoned: str) -> None:
    torch.manual_seed(3)
    a, b = _stacks(32, (24,), [[8] * SLOTS], torch.bfloat16)
    (a if poisoned == "a" else b)[0][3, 0, 0, 0] = float("nan")
    indices = [0, 3, -1, 1, 3, 2]
    x, y = torch.randn(6, 32).to(torch.bfloat16), torch.zeros(6, 24, dtype=torch.bfloat16)
    _wrapper(indices).add_lora_linear(y, x, a, b, 1.0, (24,))
    clean = torch.tensor([slot != 3 for slot in indices])
    assert torch.isfinite(y[clean]).all()
    assert not torch.isfinite(y[~clean]).all()
    wanted, size = _reference(torch.zeros(6, 24), x, a, b, [0, -1, -1, 1, -1, 2])
    assert _close(y[clean], wanted[clean], size[clean])


@pytest.mark.parametrize("rows", [2, 64])
def test_weights_changed_in_place_are_seen(rows: int) -> None:
    """Another adapter loaded into a used slot: the packs of the old one must not answer."""
    torch.manual_seed(4)
    a, b = _stacks(32, (24,), [[8] * SLOTS], torch.float32)
    indices = [0] * (rows // 2) + [1] * (rows // 2)
    wrapper = _wrapper(indices)
    x = torch.randn(rows, 32)
    wrapper.add_lora_linear(torch.zeros(rows, 24), x, a, b, 1.0, (24,))
    fresh_a, fresh_b = _stacks(32, (24,), [[16] * SLOTS], torch.float32)
    for stack, fresh in ((a[0], fresh_a[0]), (b[0], fresh_b[0])):
        stack[1] = 0
        stack[1, 0].copy_(fresh[1, 0])
    y = torch.zeros(rows, 24)
    wrapper.add_lora_linear(y, x, a, b, 1.0, (24,))
    wanted, size = _reference(torch.zeros(rows, 24), x, a, b, indices)
    assert _close(y, wanted, size)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_slot_that_was_announced_is_seen_and_the_others_are_kept(rows: int) -> None:
    torch.manual_seed(6)
    a, b = _stacks(32, (24, 8), [[8] * SLOTS] * 2, torch.float32)
    indices = [slot for slot in (0, 1, 3) for _ in range(rows)]
    wrapper = _wrapper(indices)
    assert isinstance(wrapper, AdapterPunicaWrapper)
    x = torch.randn(len(indices), 32)
    for rank in (16, 3, 0):
        wrapper.add_lora_linear(torch.zeros(len(indices), 32), x, a, b, 1.0, (24, 8))
        with wrapper.writing(1, rank):
            fresh_a, fresh_b = _stacks(32, (24, 8), [[rank] * SLOTS] * 2, torch.float32)
            for stack, fresh in zip((*a, *b), (*fresh_a, *fresh_b), strict=True):
                stack[1] = fresh[1]
        y = torch.zeros(len(indices), 32)
        wrapper.add_lora_linear(y, x, a, b, 1.0, (24, 8))
        wanted, size = _reference(torch.zeros(len(indices), 32), x, a, b, indices)
        assert _close(y, wanted, size)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=6), max_size=8))
def test_a_sequence_of_steps_never_answers_with_a_stale_plan(steps: list[list[int]]) -> None:
    torch.manual_seed(5)
    a, b = _stacks(16, (12,), [[4, 8, 0, 16]], torch.float32)
    wrapper = _wrapper([0])
    for indices in steps:
        _update(wrapper, indices, None)
        x, y = torch.randn(len(indices), 16), torch.randn(len(indices), 12)
        wanted, size = _reference(y, x, a, b, indices)
        wrapper.add_lora_linear(y, x, a, b, 1.0, (12,))
        assert _close(y, wanted, size)


def test_too_few_rows_fail_instead_of_getting_other_rows_adapters() -> None:
    a, b = _stacks(32, (24,), [[8] * SLOTS], torch.float32)
    with pytest.raises(RuntimeError, match="2 rows, mapping for 3"):
        _wrapper([0, 1, 2]).add_lora_linear(torch.zeros(2, 24), torch.ones(2, 32), a, b, 1.0, (24,))


def test_slots_stay_packed_while_they_are_few() -> None:
    assert slots_to_pack(frozenset(), frozenset({1})) == {1}
    assert slots_to_pack(frozenset({1, 2, 3}), frozenset({5})) == {1, 2, 3, 5}
    assert slots_to_pack(frozenset({1, 2, 3, 4}), frozenset({5})) == {5}
    assert slots_to_pack(frozenset(range(6)), frozenset({5, 6, 7, 8})) == {5, 6, 7, 8}
    assert slots_to_pack(frozenset(range(8)), frozenset({0, 1, 2, 3})) == set(range(8))
