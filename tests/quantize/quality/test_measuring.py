"""The probe on the real vLLM, against transformers' logits."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import PreTrainedModel

from adapters.errors import DiskFull, EngineDied, EngineStartFailed, UsageError
from quantize.merging.merge import Watcher
from quantize.quality import measuring
from quantize.quality.measuring import measure
from server.vllm_plugin.distributions import DistributionFile
from tests.quantize.quality.conftest import ANSWER_TOKENS, DAMAGED, Pair

NAMES = ("mixed", "long", "damaged")


def expected(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """ln p [positions, vocabulary] of all texts one after the other, by transformers in fp32."""
    with torch.no_grad():
        rows = [model(torch.tensor([text])).logits[0, :-1] for text in texts]
    return torch.cat(rows).double().log_softmax(-1)


def following(texts: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([token for text in texts for token in text[1:]])


@pytest.mark.parametrize("name", ["mixed", "long"])
def test_distributions_are_those_of_transformers(pair: Pair, name: str) -> None:
    index = NAMES.index(name)
    wanted = expected(pair.models[0], pair.sets[name])
    with np.load(pair.work[0] / f"set-{index}.npz") as found:
        assert int(found["vocabulary"]) == wanted.shape[1]
        kept = DistributionFile(pair.work[0] / f"set-{index}.probabilities", wanted.shape[1])
        rows = kept.read(0, len(wanted)).double()
        kept.close()
        targets = wanted.gather(-1, following(pair.sets[name])[:, None])[:, 0]
        np.testing.assert_allclose(found["logprobs"], targets, atol=1e-4)
    # float16 keeps 11 bits of up to 16 nats.
    torch.testing.assert_close(rows, wanted, rtol=2**-11, atol=1e-4)
    assert float(wanted.exp().max(-1).values.mean()) > 0.2, "the model predicts something"


@pytest.mark.parametrize("name", ["mixed", "long"])
def test_the_divergence_of_a_small_change_is_right(pair: Pair, name: str) -> None:
    index = NAMES.index(name)
    p, q = (expected(model, pair.sets[name]) for model in pair.models)
    wanted = (p.exp() * (p - q)).sum(-1)
    with np.load(pair.work[1] / f"set-{index}.npz") as found:
        np.testing.assert_allclose(found["kl"], wanted, rtol=0.2, atol=2e-6)
    against = pair.measured[1].sets[name].against
    assert against is not None and against.kl_mean is not None and against.kl_p99 is not None
    mean = float(wanted.mean())
    assert 1e-5 < mean < 1e-3, "so small is what a nearly lossless candidate loses"
    assert against.kl_mean == pytest.approx(mean, rel=0.01)
    assert against.kl_p99 == pytest.approx(float(np.quantile(wanted.numpy(), 0.99)), rel=0.02)
    assert sum(against.kl_histogram) == len(wanted)
    agreement = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert against.top1_agreement == pytest.approx(agreement, abs=1.5 / len(wanted))


@pytest.mark.parametrize("name", ["mixed", "long"])
def test_perplexities_are_those_of_transformers(pair: Pair, name: str) -> None:
    first, second = (measured.sets[name] for measured in pair.measured)
    wanted = [
        math.exp(-expected(model, pair.sets[name]).gather(-1, targets).mean())
        for model, targets in ((m, following(pair.sets[name])[:, None]) for m in pair.models)
    ]
    assert first.perplexity == pytest.approx(wanted[0], rel=1e-4)
    assert second.perplexity == pytest.approx(wanted[1], rel=1e-4)
    assert first.against is None and second.against is not None
    assert second.against.reference_perplexity == first.perplexity
    assert first.texts == len(pair.sets[name]) and first.tokens == len(following(pair.sets[name]))
    assert first.non_finite == second.non_finite == 0


def test_answers_are_the_greedy_ones_in_the_prompts_order(pair: Pair) -> None:
    for model, measured in zip(pair.models, pair.measured, strict=True):
        assert len(measured.answers) == len(pair.prompts)
        for prompt, answer in zip(pair.prompts, measured.answers, strict=True):
            told = model.generate(
                torch.tensor([prompt]), max_new_tokens=ANSWER_TOKENS, do_sample=False
            )[0, len(prompt) :].tolist()
            assert answer.text.split() == [f"w{token}" for token in told if token > 1]
            assert answer.tokens == len(told)
            assert answer.finished == (told[-1] == 1)


def test_a_damaged_weight_is_told(pair: Pair) -> None:
    sound, damaged = (measured.sets["damaged"] for measured in pair.measured)
    assert sound.non_finite == 0 and sound.perplexity is not None
    # At least from the damaged token on (a CPU's attention multiplies what it masks by zero, and
    # 0 · NaN is NaN), and in no other text.
    text = pair.sets["damaged"][1]
    after = damaged.non_finite
    assert len(text) - 1 - text.index(DAMAGED) <= after <= len(text) - 1
    assert damaged.perplexity is None
    assert damaged.against is not None and damaged.against.kl_mean is None
    assert pair.measured[0].faults == ()
    (fault,) = pair.measured[1].faults
    assert f"{after} of {damaged.tokens} positions of the set 'damaged'" in fault


def test_costs_are_measured(pair: Pair) -> None:
    for measured in pair.measured:
        assert [speed.batch for speed in measured.speeds] == [1, 8]
        assert all(speed.tokens_per_second > 0 for speed in measured.speeds)
        assert 0 < measured.load_seconds < measured.startup_seconds < measured.seconds
        assert 1e8 < measured.peak_rss < 4e9
        assert measured.kv_cache_bytes > 0 and measured.model_bytes > 0
        assert measured.dtype == "float32" and measured.quantization is None
        assert measured.tools["vllm"]
    texts = sum(len(texts) for texts in pair.sets.values()) + len(pair.prompts)
    assert pair.heard.progress[-1] == (texts, texts)
    assert pair.heard.steps.count("starting vLLM") == 2


def test_a_candidate_keeps_no_distributions(pair: Pair) -> None:
    assert not list(pair.work[1].glob("*.probabilities"))
    assert len(list(pair.work[0].glob("*.probabilities"))) == len(pair.sets)


def run(pair: Pair, tmp_path: Path, model: Path, watch: Watcher | None = None) -> object:
    return measure(
        model,
        dtype="float32",
        sets={"mixed": pair.sets["mixed"]},
        prompts=[],
        work=tmp_path / "work",
        reference=None,
        watch=watch or Watcher(),
        log=tmp_path / "probe.log",
    )


def test_a_model_that_vllm_refuses_is_one_sentence(pair: Pair, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(pair.directories[0], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(EngineStartFailed) as caught:
        run(pair, tmp_path, model)
    assert f"vLLM does not load {model}: " in caught.value.message
    assert "layers.2" in caught.value.message and "\n" not in caught.value.message
    assert "Traceback" in (tmp_path / "probe.log").read_text()


def probes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.is_running()]


def test_a_killed_process_says_memory(pair: Pair, tmp_path: Path) -> None:
    # Other tests of this session may have processes that live on.
    others = probes()

    def kill(step: str) -> None:
        [probe] = [child for child in probes() if child not in others]
        probe.kill()

    with pytest.raises(EngineDied, match="was killed: most likely this machine has too little"):
        run(pair, tmp_path, pair.directories[0], Watcher(step=kill))


def test_an_interrupted_measurement_leaves_no_process(pair: Pair, tmp_path: Path) -> None:
    before = probes()

    def interrupt(step: str) -> None:
        assert len(probes()) == len(before) + 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pair, tmp_path, pair.directories[0], Watcher(step=interrupt))
    assert probes() == before
    with pytest.raises(UsageError, match="holds no finished measurement"):
        measuring._check(
            pair.directories[0], {"mixed": pair.sets["mixed"]}, [], tmp_path / "work", "any"
        )


CHILD = """
import sys
from pathlib import Path
import psutil
from quantize.merging.merge import Watcher
from quantize.quality.measuring import measure

def step(text):
    print(psutil.Process().children()[0].pid, flush=True)

root = Path(sys.argv[2])
measure(Path(sys.argv[1]), dtype="float32", sets={"a": [[3, 4]]}, prompts=[], work=root / "work",
        reference=None, watch=Watcher(step=step), log=root / "log")
"""


def test_a_killed_job_leaves_no_process(pair: Pair, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    job = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(pair.directories[0]), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert job.stdout is not None
    probe = psutil.Process(int(job.stdout.readline()))
    job.kill()
    job.wait()
    job.stdout.close()
    probe.wait(timeout=20)
    assert not probe.is_running()


def test_other_texts_than_the_references_are_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was measured on other texts"):
        measure(
            pair.directories[1],
            dtype="float32",
            sets={"mixed": [[3, 4, 5]]},
            prompts=[],
            work=tmp_path / "work",
            reference=pair.work[0],
            watch=Watcher(),
            log=tmp_path / "log",
        )


def test_space_for_the_distributions_is_checked_first(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(DiskFull, match=r"need 0\.0 GB in .*measure on fewer tokens"):
        run(pair, tmp_path, pair.directories[0])
    assert not (tmp_path / "probe.log").exists()


@pytest.mark.parametrize(
    ("sets", "prompts", "told"),
    [
        ({"a": []}, [], "two tokens or more"),
        ({"a": [[3, 4], [5]]}, [], "two tokens or more"),
        ({"a": [[3, 4]]}, [[]], "a prompt has no tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    pair: Pair,
    tmp_path: Path,
    sets: dict[str, list[list[int]]],
    prompts: list[list[int]],
    told: str,
) -> None:
    with pytest.raises(UsageError, match=told):
        measure(
            pair.directories[0],
            dtype="float32",
            sets=sets,
            prompts=prompts,
            work=tmp_path / "work",
            reference=None,
            watch=Watcher(),
            log=tmp_path / "log",
        )


def test_a_directory_without_a_config_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no config"):
        run(pair, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (
            "1 validation error for ModelConfig\n  Value error, No quantization of that name. "
            "[type=value_error, input_value=ArgsKwargs((), {...}), input_type=ArgsKwargs]\n"
            "    For further information visit https://errors.pydantic.dev/2.12/v/value_error",
            "No quantization of that name.",
        ),
        ("first\nthe last line\n", "the last line"),
        ("", "it does not say why"),
    ],
)
def test_the_sentence_in_what_vllm_raises(raised: str, sentence: str) -> None:
    assert measuring._last_line(raised) == sentence
