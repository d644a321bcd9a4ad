"""The compiled norms and activations against float64, and against what they stand in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm import ir
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from server.vllm_plugin import compiled_ops
from server.vllm_plugin.native.library import load

current_platform.import_kernels()

DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
EPSILON = 1e-5
NATIVE: Any = SimpleNamespace(forward_native=SiluAndMul.forward_native)


def norm(weight: torch.Tensor | None, calls: list[str]) -> Any:
    """What `rms_norm` reads of a layer; `calls` notes when it falls back."""

    def native(x: torch.Tensor, residual: torch.Tensor | None) -> Any:
        calls.append("native")
        if residual is None:
            return ir.ops.rms_norm.impls["native"].impl_fn(x, weight, EPSILON)
        return ir.ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, EPSILON)

    return SimpleNamespace(
        weight=weight,
        has_weight=weight is not None,
        variance_epsilon=EPSILON,
        variance_size_override=None,
        forward_native=native,
    )


def exact(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    wide = x.double()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return wide if weight is None else wide * weight.double()


@settings(max_examples=40, deadline=None)
@given(
    DTYPES,
    st.integers(1, 9),
    st.integers(1, 12).map(lambda blocks: 32 * blocks),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_norm_is_as_exact_as_the_one_it_replaces(
    dtype: torch.dtype, rows: int, width: int, weighted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(width, generator=generator).to(dtype) if weighted else None
    calls: list[str] = []
    layer = norm(weight, calls)
    alone = compiled_ops.rms_norm(layer, x.clone())
    together, kept = compiled_ops.rms_norm(layer, x.clone(), residual.clone())
    assert not calls
    reference, reference_kept = layer.forward_native(x.clone(), residual.clone())
    assert torch.equal(kept, reference_kept)
    for ours, theirs, true in (
        (alone, layer.forward_native(x, None), exact(x, weight)),
        (together, reference, exact(x.double() + residual.double(), weight)),
    ):
        assert ours.dtype == dtype
        allowed = (theirs.double() - true).abs().max() + torch.finfo(dtype).eps * true.abs().max()
        assert (ours.double() - true).abs().max() <= allowed


@pytest.fixture(params=["our library", "vLLM's operator"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = load()
    if request.param == "vLLM's operator":
        monkeypatch.setattr(compiled_ops, "load", lambda: None)
    elif found is None:
        pytest.skip("no C compiler here")
    return str(request.param)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(DTYPES, st.integers(1, 9), st.integers(1, 900), st.integers(0, 2**31))
def test_an_activation_is_as_exact_as_the_one_it_replaces(
    library: str, dtype: torch.dtype, rows: int, width: int, seed: int
) -> None:
    x = 4 * torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype)
    ours = compiled_ops.silu_and_mul(NATIVE, x)
    gate, up = x.double().chunk(2, -1)
    true = torch.nn.functional.silu(gate) * up
    theirs = SiluAndMul.forward_native(x)
    assert (ours.dtype, ours.shape) == (dtype, theirs.shape)
    allowed = (theirs.double() - true).abs().max() + torch.finfo(dtype).eps * true.abs().max()
    assert (ours.double() - true).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_activation_of_what_is_huge_or_no_number(library: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    gate = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), largest, -largest, -60.0, -90, -200, 200, -0.0]
    )
    x = torch.cat([gate, torch.ones_like(gate)]).repeat(40, 1).to(dtype)
    ours = compiled_ops.silu_and_mul(NATIVE, x)
    torch.testing.assert_close(ours, SiluAndMul.forward_native(x), equal_nan=True)


def test_how_many_threads_share_an_activation_changes_no_byte() -> None:
    library = load()
    if library is None:
        pytest.skip("no C compiler here")
    x = torch.randn(37, 2 * 300).bfloat16()
    found = [torch.empty(37, 300, dtype=torch.bfloat16) for _ in range(3)]
    for parts, out in enumerate(found, 1):
        library.silu_and_mul(out.data_ptr(), x.data_ptr(), 37, 300, 1, parts)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    one_row = torch.empty(1, 300, dtype=torch.bfloat16)
    library.silu_and_mul(one_row.data_ptr(), x[5:6].data_ptr(), 1, 300, 1, 1)
    assert torch.equal(found[0][5], one_row[0])


def test_what_they_cannot_do_is_done_as_before() -> None:
    calls: list[str] = []
    weight = torch.ones(40, dtype=torch.bfloat16)
    x = torch.randn(3, 40).bfloat16()
    compiled_ops.rms_norm(norm(weight, calls), x)  # no whole vectors
    compiled_ops.rms_norm(norm(torch.ones(64), calls), torch.randn(3, 64).bfloat16())
    rows = torch.randn(64, 64).bfloat16()
    layer = norm(weight.repeat(2)[:64].contiguous(), calls)
    compiled_ops.rms_norm(layer, rows.t(), rows.t().clone())  # cannot be written in place
    assert calls == ["native"] * 3
    layer.variance_size_override = 32
    compiled_ops.rms_norm(layer, rows)
    assert calls == ["native"] * 4
    for other in (torch.randn(2, 128).bfloat16()[:, :64], torch.randn(2, 64).double()):
        ours = compiled_ops.silu_and_mul(NATIVE, other)
        assert torch.equal(ours, SiluAndMul.forward_native(other))


def test_a_norm_of_a_view_leaves_the_view_alone() -> None:
    """Queries and keys are normed as parts of one tensor."""
    whole = torch.randn(4, 3 * 64).bfloat16()
    before = whole.clone()
    part = whole[:, 64:128]
    weight = torch.randn(64).bfloat16()
    ours = compiled_ops.rms_norm(norm(weight, []), part)
    assert torch.equal(ours, compiled_ops.rms_norm(norm(weight, []), part.contiguous()))
    assert torch.equal(whole, before)


def test_every_layer_made_after_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (RMSNorm, SiluAndMul):
        monkeypatch.setattr(layer, "forward_cpu", layer.forward_cpu)
    compiled_ops.install()
    assert RMSNorm.forward_cpu is compiled_ops.rms_norm
    x = torch.randn(2, 64).bfloat16()
    assert SiluAndMul.forward_cpu(SimpleNamespace(), x).shape == (2, 32)
    for name in ("rms_norm", "fused_add_rms_norm", "silu_and_mul"):
        assert compiled_ops._operator(name) is not None
    assert compiled_ops._operator("none_such") is None
