"""The LoRA arithmetic of vLLM's CPU engine: right for rows without an adapter, and faster.

vLLM 0.32's own CPU path gives rows without an adapter (index -1) the weights of the last slot:
`weights[-1]`. Here such rows are never part of any product. `patches.py` puts this class in the
place of vLLM's; every operation that the CPU engine's layers call is defined here.

Where lora.c could be compiled it does the work, else torch (packs.py): docs/kernels.md.

Shapes: x [rows, in], y [rows, out] (changed in place), A stacks [slots, 1, max rank, in],
B stacks [slots, 1, out, max rank]. For a row with slot s: y += scale * x @ A[s].T @ B[s].T
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any, Literal

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from server.vllm_plugin import patches
from server.vllm_plugin.native import library as native
from server.vllm_plugin.native.steps import NativeCaller, NativeStep
from server.vllm_plugin.native.weights import NativeWeights
from server.vllm_plugin.packs import ModulePacks, Work
from server.vllm_plugin.spans import Plan, plan_rows
from server.vllm_plugin.written import Stacks


class _Layer:
    """One layer's weights, laid out for C and for torch when either first needs them."""

    def __init__(self, a_stacks: Stacks, b_stacks: Stacks, offsets: Sequence[int]):
        self._stacks = (tuple(a_stacks), tuple(b_stacks))
        self._offsets = tuple(offsets)
        self._packs: ModulePacks | None = None
        self._native: NativeWeights | None = None

    def packs(self) -> ModulePacks:
        if self._packs is None:
            self._packs = ModulePacks(*self._stacks, self._offsets)
        return self._packs

    def native(self, caller: NativeCaller) -> NativeWeights:
        if self._native is None:
            self._native = NativeWeights(caller.library, *self._stacks, self._offsets)
            caller.room_for(self._native)
        return self._native

    @contextmanager
    def writing(self, slot: int, at_most: int | None) -> Iterator[None]:
        """Within it, vLLM writes to `slot` of the stacks, and to no other."""
        with ExitStack() as stack:
            for laid_out in (self._packs, self._native):
                if laid_out is not None:
                    stack.enter_context(laid_out.written.writing(slot, at_most))
            yield


class AdapterPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is untyped here
    """Applies each row's own adapter; holds the plan of the current step and all weights."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        *,
        library: native.Library | Literal["default"] | None = "default",
        **kwargs: Any,
    ):
        """`library`: the compiled kernels; None for torch's; by default those that there are."""
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        # vLLM leaves these uninitialised; the embedding layer reads as many as it has rows.
        for buffer in (self._token_lora_indices, self._sampler_indices, self._embeddings_indices):
            buffer.zero_()
        found = native.load() if library == "default" else library
        self._caller = None if found is None else NativeCaller(found)
        self._tokens = NativeStep(Plan())
        self._sampled = NativeStep(Plan())
        # Read by the layers themselves (layers.py): nothing is called where no row has an adapter.
        self.idle = True
        self._logits_slot: int | None = None
        self._slots: frozenset[int] = frozenset()
        self._layers: dict[int, _Layer] = {}
        patches.install_in_worker()

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Take over a step's mapping of rows to adapters. Called when it changes, not per layer."""
        # What vLLM works out for prefill besides, its own kernels alone read.
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        tokens = plan_rows(self.token_lora_indices.tolist())
        sampled = plan_rows(self.sampler_indices.tolist())
        self._tokens, self._sampled = NativeStep(tokens), NativeStep(sampled)
        self.idle = not tokens.spans
        self._slots = slots_to_pack(self._slots, tokens.slots | sampled.slots)

    @contextmanager
    def logits_of_slot(self, slot: int) -> Iterator[None]:
        """Within it, every row of `add_lora_logits` belongs to `slot` (-1: to no adapter).

        For prompt log-probabilities: their rows are one request's prompt tokens, while vLLM's
        sampler indices have one row per request.
        """
        self._logits_slot = slot
        try:
            yield
        finally:
            self._logits_slot = None

    def slot_of_row(self, row: int) -> int:
        """The slot of one row of the current step, -1 without adapter."""
        # A step without adapters may not have been told of (patches.py).
        return -1 if self.idle else self._tokens.plan.indices[row]

    @contextmanager
    def writing(self, slot: int, at_most: int | None = None) -> Iterator[None]:
        """Within it, an adapter whose ranks are `at_most` is written to `slot`, and to no other.

        So one slot's change costs one slot's layout, not all slots'.
        """
        with ExitStack() as stack:
            for layer in self._layers.values():
                stack.enter_context(layer.writing(slot, at_most))
            yield

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part to a linear layer; slice i fills `output_slices`[i] columns."""
        if not self.idle:
            layer = self._layers.get(id(lora_b_stacked[0]))
            if layer is None:
                layer = self._new_layer(lora_a_stacked, lora_b_stacked, output_slices)
            self._apply(self._tokens, y, x, layer, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part to logits; y may have more columns than B has rows (padding)."""
        step = self._sampled
        if self._logits_slot is not None:
            step = NativeStep(plan_rows([self._logits_slot] * (x.numel() // x.shape[-1])))
        if step.plan.spans:
            layer = self._layers.get(id(lora_b_stacked))
            if layer is None:
                layer = self._new_layer((lora_a_stacked,), (lora_b_stacked,), (y.shape[-1],))
            self._apply(step, y, x, layer, scale, exact_rows=True)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y += x @ B.T, where x [rows, max rank] are the rows of A that the layer looked up.

        The layer looks rows without adapter up in slot 0; their x is not used here.
        """
        if self._caller is None or not add_inputs:
            self.add_expand(y, (x,), (lora_b_stacked,), (y.shape[-1],), add_inputs=add_inputs)
            return
        if self.idle:
            return
        layer = self._layers.get(id(lora_b_stacked))
        if layer is None:
            layer = self._new_layer((), (lora_b_stacked,), (y.shape[-1],))
        self._check_rows(self._tokens.plan, x)
        weights = layer.native(self._caller)
        if not self._caller.apply(self._tokens, weights, x, y, 1.0, inner_given=True):
            self.add_expand(y, (x,), (lora_b_stacked,), (y.shape[-1],))

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """y[i] = scale * x @ A[i].T per slice; rows without adapter become 0.

        Only the fully sharded layers of tensor parallelism call this and `add_expand`.
        """
        x = x.view(-1, x.shape[-1])
        self._check_rows(self._tokens.plan, x)
        for out, stack in zip(y, lora_a_stacked, strict=True):
            out.zero_()
            for run in self._tokens.plan.runs():
                a = stack[run.slot].flatten(0, -2)
                rows = x[run.start : run.end].to(torch.promote_types(x.dtype, out.dtype))
                part = torch.mm(rows, a.t().to(rows.dtype))
                out.view(-1, out.shape[-1])[run.start : run.end, : a.shape[0]] = part * scale

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y[:, slice i] += x[i] @ B[i].T; with add_inputs False, = (0 in rows without adapter)."""
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for rows, stack, size in zip(x, lora_b_stacked, output_slices, strict=True):
            self._check_rows(self._tokens.plan, rows)
            width = min(size, stack.shape[-2])
            out = y[:, start : start + width]
            start += size
            if not add_inputs:
                out.zero_()
            for run in self._tokens.plan.runs():
                b = stack[run.slot].flatten(0, -2)[:width]
                exact = torch.promote_types(rows.dtype, b.dtype)
                part = torch.mm(rows[run.start : run.end].to(exact), b.t().to(exact))
                out[run.start : run.end] += part

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """Replace y by x @ weight.T + bias in rows whose adapter brings a whole layer.

        weight_stacked [slots, 1, out, in], bias_stacked [slots, out], module_enabled [slots] bool.
        """
        self._check_rows(self._sampled.plan, x, exact=True)
        for run in self._sampled.plan.runs():
            if bool(module_enabled[run.slot]):
                weight = weight_stacked[run.slot, 0].float()
                rows = torch.mm(x[run.start : run.end].float(), weight.t())
                y[run.start : run.end] = rows + bias_stacked[run.slot].float()

    def _new_layer(self, a_stacks: Stacks, b_stacks: Stacks, sizes: Sequence[int]) -> _Layer:
        """The layer that owns these stacks, from now on found by its first B's id.

        It keeps the stacks alive, so the id cannot be given away.
        """
        offsets = (0, *accumulate(sizes))[: len(sizes)]
        layer = self._layers[id(b_stacks[0])] = _Layer(a_stacks, b_stacks, offsets)
        return layer

    def _apply(
        self,
        step: NativeStep,
        y: torch.Tensor,
        x: torch.Tensor,
        layer: _Layer,
        scale: float,
        *,
        exact_rows: bool = False,
    ) -> None:
        plan = step.plan
        if x.dim() != 2 or y.dim() != 2:
            x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if x.shape[0] != plan.rows or y.shape[0] < plan.rows:
            self._check_rows(plan, x, exact=exact_rows)
            self._check_rows(plan, y)
        if self._caller is not None:
            weights = layer.native(self._caller)
            if self._caller.apply(step, weights, x, y, scale):
                return
        slots = self._slots if plan.slots <= self._slots else plan.slots
        for work in layer.packs().work(plan, slots, x.dtype, y.dtype):
            _add(y, x, work, scale)

    def _check_rows(self, plan: Plan, x: torch.Tensor, *, exact: bool = False) -> None:
        """Wrong rows would get wrong adapters without anybody noticing: better to fail."""
        if x.shape[0] < plan.rows or (exact and x.shape[0] != plan.rows):
            raise RuntimeError(
                f"LoRA rows do not match the batch: {x.shape[0]} rows, mapping for {plan.rows}"
            )


def _add(y: torch.Tensor, x: torch.Tensor, work: Work, scale: float) -> None:
    """y[rows] += scale * (x[rows] @ down, without foreign columns) @ up."""
    inner = work.down(x[work.start : work.end].to(work.dtype))
    if work.foreign is not None:
        # Not a product with 0: that would keep a NaN or Inf of another row's adapter.
        inner.masked_fill_(work.foreign, 0)
    target = y[work.start : work.end]
    if work.fused is not None and work.fused.shape[1] == y.shape[1] and y.dtype is work.dtype:
        target.addmm_(inner, work.fused, alpha=scale)
        return
    part = work.up(inner)
    if part.shape[1] != y.shape[1]:
        # vLLM pads logits, or the layer's output, beyond what adapters know.
        width = min(part.shape[1], y.shape[1])
        part, target = part[:, :width], target[:, :width]
    target.add_(part, alpha=scale)


def slots_to_pack(packed: frozenset[int], used: frozenset[int]) -> frozenset[int]:
    """Which slots the packs should hold when a step uses `used` and they hold `packed`.

    Packing again costs milliseconds, and masked columns that nobody uses cost a little in every
    step: slots stay packed while they are few or at most as many as the used ones.
    """
    union = packed | used
    return union if len(union) <= max(4, 2 * len(used)) else used
