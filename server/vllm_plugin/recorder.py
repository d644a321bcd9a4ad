"""A worker extension that sees every next-token distribution of a prompt as vLLM computes it.

vLLM mixes this class into its worker (`worker_extension_cls`) and calls it by `collective_rpc`;
there is one worker (no tensor parallelism).
Asking for `prompt_logprobs=-1` instead would make a Python object for every token of the
vocabulary at every position: some hundred million for a few thousand tokens.

The seam is the runner's `_get_prompt_logprobs_dict(hidden_states, num_scheduled_tokens)` (V1 model
runner): called once a step with the final hidden states of all tokens of the step, in whatever
batches and chunks the scheduler made of the prompts. Which text a request is says its sampling
parameter `extra_args`. Logits come from the model's own `compute_logits`: its head, scaling and
soft cap, in the dtype it is served in. A prompt whose computation is repeated (after a
preemption) writes the same rows again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from server.vllm_plugin.distributions import (
    DistributionFile,
    kl_divergence,
    log_probabilities,
)

EXTENSION = "server.vllm_plugin.recorder.Recorder"
# The sampling parameter that names a text by its place in the set.
TEXT = "adapterctl_text"
_SEAM = "_get_prompt_logprobs_dict"
# fp64 values of one block; a few blocks are alive at a time.
_BLOCK_VALUES = 4 << 20


@dataclass
class _Recording:
    """One set of texts under way. Row `first[i] + j` is text i's prediction of its token j + 1."""

    texts: Sequence[Sequence[int]]
    first: Sequence[int]
    writes: bool
    file: Path
    logprobs: np.ndarray[Any, np.dtype[np.float64]]
    top: np.ndarray[Any, np.dtype[np.int64]]
    kl: np.ndarray[Any, np.dtype[np.float64]]
    reference_top: np.ndarray[Any, np.dtype[np.int64]] | None
    seen: np.ndarray[Any, np.dtype[np.bool_]]
    distributions: DistributionFile | None = None


class Recorder:
    """Methods that vLLM's worker gets; `self` is the worker. One recording at a time."""

    def adapterctl_begin(
        self, texts: Sequence[Sequence[int]], file: str, reference: str | None
    ) -> None:
        """Record `texts`, which are to be sent without their last token, from now on.

        With `reference` None the distributions are written to `file`.probabilities; else they are
        compared with those that an earlier recording of the same texts wrote at `reference`.
        """
        worker: Any = self
        rows = [len(text) - 1 for text in texts]
        total = sum(rows)
        known = None if reference is None else np.load(f"{reference}.npz")
        recording = _Recording(
            texts=texts,
            first=[0, *accumulate(rows)][:-1],
            writes=reference is None,
            file=Path(file),
            logprobs=np.full(total, np.nan),
            top=np.full(total, -1),
            kl=np.full(total, np.nan),
            reference_top=None if known is None else known["top"],
            seen=np.zeros(total, dtype=np.bool_),
        )
        if known is not None:
            recording.distributions = DistributionFile(
                Path(f"{reference}.probabilities"), int(known["vocabulary"])
            )
        worker.adapterctl_recording = recording
        runner = worker.model_runner
        if _SEAM not in vars(runner):
            setattr(runner, _SEAM, _watching(worker, runner, getattr(runner, _SEAM)))

    def adapterctl_end(self) -> int:
        """Write the figures to the file's .npz; how many rows never came (0 if all is well)."""
        worker: Any = self
        recording: _Recording = worker.adapterctl_recording
        worker.adapterctl_recording = None
        kept = recording.distributions
        if kept is None:
            return int(recording.seen.size)
        agrees = (
            np.zeros(0, dtype=np.bool_)
            if recording.reference_top is None
            else recording.top == recording.reference_top
        )
        np.savez(
            f"{recording.file}.npz",
            logprobs=recording.logprobs,
            top=recording.top,
            kl=recording.kl,
            agrees=agrees,
            vocabulary=kept.vocabulary,
        )
        kept.close()
        return int(np.count_nonzero(~recording.seen))

    def adapterctl_sizes(self) -> tuple[int, int]:
        """Bytes of the KV cache, and of the loaded model."""
        runner = cast(Any, self).model_runner
        return _storage_bytes(_tensors(runner.kv_caches)), int(runner.model_memory_usage)


def count_model_memory(runner: Any) -> None:
    """Have vLLM's CPU runner (its class) note what its GPU one does: how much the model takes.

    Counted is what the C library has handed out and not got back: on CPU weights are packed for
    the kernels and belong to no tensor then. Other C libraries than glibc: 0.
    """
    original = runner.load_model

    def load_model(self: Any, *arguments: Any, **options: Any) -> None:
        before = _allocated()
        original(self, *arguments, **options)
        self.model_memory_usage = _allocated() - before

    runner.load_model = load_model


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`, mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def _allocated() -> int:
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def _watching(worker: Any, runner: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def get_prompt_logprobs_dict(hidden_states: torch.Tensor, scheduled: dict[str, int]) -> Any:
        recording: _Recording | None = worker.adapterctl_recording
        if recording is not None:
            for request_id, count in scheduled.items():
                _record(recording, runner, hidden_states, request_id, count)
        return original(hidden_states, scheduled)

    return get_prompt_logprobs_dict


def _record(
    recording: _Recording, runner: Any, hidden_states: torch.Tensor, request_id: str, count: int
) -> None:
    request = runner.requests[request_id]
    index = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(TEXT)
    if index is None:
        return
    start = request.num_computed_tokens
    text = recording.texts[index]
    # After the prompt come generated tokens, which nobody asked for.
    count = min(count, len(text) - 1 - start)
    offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]])
    step = max(1, _BLOCK_VALUES // runner.model_config.get_vocab_size())
    for begin in range(0, count, step):
        end = min(begin + step, count)
        logits = runner.model.compute_logits(hidden_states[offset + begin : offset + end])
        targets = text[start + begin + 1 : start + end + 1]
        _keep(recording, recording.first[index] + start + begin, logits, targets)


def _keep(recording: _Recording, first: int, logits: torch.Tensor, targets: Sequence[int]) -> None:
    """Note what is asked of one block of rows, `logits` [rows, vocabulary]."""
    if recording.distributions is None:
        recording.distributions = DistributionFile(
            Path(f"{recording.file}.probabilities"),
            logits.shape[-1],
            rows=recording.logprobs.size,
        )
    kept = recording.distributions
    rows = slice(first, first + len(targets))
    found = log_probabilities(logits)
    wanted = torch.tensor(targets, device=found.device).unsqueeze(-1)
    recording.logprobs[rows] = found.gather(-1, wanted).squeeze(-1).cpu().numpy()
    # Of the logits as they are: what a greedy sampler takes.
    recording.top[rows] = logits.argmax(-1).cpu().numpy()
    recording.seen[rows] = True
    if recording.writes:
        kept.write(first, found)
        return
    shared = min(kept.vocabulary, found.shape[-1])
    reference = kept.read(first, len(targets)).to(found.device)[:, :shared]
    candidate = found if shared == found.shape[-1] else log_probabilities(found[:, :shared])
    divergences = kl_divergence(log_probabilities(reference), candidate)
    recording.kl[rows] = divergences.cpu().numpy()


def _tensors(caches: Any) -> list[torch.Tensor]:
    if isinstance(caches, torch.Tensor):
        return [caches]
    return [tensor for part in caches for tensor in _tensors(part)]


def _storage_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes in memory; what shares its storage counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
