"""What the worker keeps of a block of logits. (The seam itself: tests/quantize/quality.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from server.vllm_plugin.recorder import Recorder, _allocated, _keep

TEXTS = [[1, 2, 3], [4, 5]]


def recorded(logits: torch.Tensor, file: Path, reference: Path | None = None) -> Recorder:
    """A worker that saw `logits` [3, vocabulary] for TEXTS, whose rows came in another order."""

    class Runner:
        def _get_prompt_logprobs_dict(self) -> None:
            """Where vLLM's has it."""

    class Worker(Recorder):
        model_runner = Runner()

    worker = Worker()
    worker.adapterctl_begin(TEXTS, str(file), None if reference is None else str(reference))
    recording = worker.adapterctl_recording  # type: ignore[attr-defined]
    _keep(recording, 2, logits[2:], [5])
    _keep(recording, 0, logits[:2], [2, 3])
    return worker


def test_vocabularies_of_two_lengths_are_compared_on_what_both_have(tmp_path: Path) -> None:
    drawn = torch.Generator().manual_seed(1)
    shared = torch.randn(3, 10, generator=drawn)
    added = torch.full((3, 2), 9.0)
    assert recorded(shared, tmp_path / "first").adapterctl_end() == 0
    recorded(
        torch.cat([shared, added], -1), tmp_path / "longer", tmp_path / "first"
    ).adapterctl_end()
    recorded(shared, tmp_path / "again", tmp_path / "first").adapterctl_end()
    with np.load(tmp_path / "longer.npz") as longer, np.load(tmp_path / "again.npz") as again:
        np.testing.assert_allclose(longer["kl"], 0, atol=1e-6)
        np.testing.assert_allclose(again["kl"], 0, atol=1e-6)
        assert again["agrees"].all()
        # What it finds most probable, the other does not have.
        assert not longer["agrees"].any()
        assert (longer["logprobs"] < again["logprobs"] - 3).all()


def test_positions_that_never_came_are_counted(tmp_path: Path) -> None:
    worker = recorded(torch.zeros(3, 10), tmp_path / "first")
    worker.adapterctl_recording.seen[1] = False  # type: ignore[attr-defined]
    assert worker.adapterctl_end() == 1
    worker.adapterctl_begin(TEXTS, str(tmp_path / "none"), None)
    assert worker.adapterctl_end() == 3


def test_what_the_c_library_handed_out_is_counted() -> None:
    before = _allocated()
    held = torch.ones(8 << 20)
    assert 30e6 < _allocated() - before < 60e6
    del held
    assert _allocated() - before < 10e6
