"""Measure a model directory as vLLM serves it, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from adapters.errors import DiskFull, EngineDied, EngineStartFailed, UsageError
from adapters.frozen import Frozen
from quantize import children
from quantize.merging.merge import Watcher
from quantize.quality.comparing import SetMeasurement, set_measurement

# vLLM is imported there only, never here.
_PROBE = "server.vllm_plugin.probe"
# Which texts a directory's distributions are of; written last, so what has it is whole.
_TEXTS = "texts.json"
# What a position of a vocabulary takes in the files of a reference.
_BYTES_PER_PROBABILITY = 2
_SLACK = 16 << 20
_TAIL_BYTES = 20_000


class Answer(Frozen):
    """A greedy answer: its text, how many tokens, and whether it ended before the limit."""

    text: str
    tokens: int
    finished: bool


class Speed(Frozen):
    """Tokens generated a second, over all `batch` sequences together."""

    batch: int
    tokens_per_second: float


class Measurement(Frozen):
    """What one model is like in vLLM. Sizes in bytes, times in seconds.

    `peak_rss` is the process's largest resident size while it loaded, answered and was timed,
    without the KV cache, whose size anybody chooses; the several hundred MB of vLLM itself are in
    it. `model_bytes` is what the loaded model takes: weights, and what loading needed for good.
    `startup_seconds` is from the process's start until it could answer, `load_seconds` the part
    that is the model's. `faults` says in sentences what is not as it should be with any model.
    """

    model: str
    device: str
    dtype: str
    quantization: str | None
    startup_seconds: float
    load_seconds: float
    seconds: float
    model_bytes: int
    kv_cache_bytes: int
    peak_rss: int
    speeds: tuple[Speed, ...]
    answers: tuple[Answer, ...]
    sets: Mapping[str, SetMeasurement]
    faults: tuple[str, ...] = ()
    tools: Mapping[str, str] = Field(default_factory=dict)


def measure(
    model: Path,
    *,
    dtype: str,
    sets: Mapping[str, Sequence[Sequence[int]]],
    prompts: Sequence[Sequence[int]],
    work: Path,
    reference: Path | None,
    watch: Watcher,
    log: Path,
    answer_tokens: int | Sequence[int] = 64,
    speed_tokens: int = 64,
) -> Measurement:
    """Load `model` with vLLM in `dtype` ("auto": the checkpoint's own) and measure it.

    `sets` are texts as token ids, each at least two; `prompts` are answered greedily with at most
    `answer_tokens` (one figure, or one for each); `speed_tokens` 0 measures no speed. `reference`
    None makes this one a reference: its distributions stay in `work`, 2 bytes a token of the
    vocabulary and position; else it is the `work` of a reference measured on the same sets. The
    process never outlives this call, nor this process. Raises UsageError, DiskFull,
    EngineStartFailed (vLLM refuses the model, with its own last line) and EngineDied (killed, for
    memory most likely).
    """
    began = time.monotonic()
    digest = _digest(sets)
    _check(model, sets, prompts, reference, digest)
    work.mkdir(parents=True, exist_ok=True)
    (work / _TEXTS).unlink(missing_ok=True)
    if reference is None:
        _check_space(model, work, sets)
    order = {
        "model": str(model.resolve()),
        "dtype": dtype,
        "sets": [[list(text) for text in texts] for texts in sets.values()],
        "prompts": [list(prompt) for prompt in prompts],
        "answer_tokens": [answer_tokens] * len(prompts)
        if isinstance(answer_tokens, int)
        else list(answer_tokens),
        "speed_tokens": speed_tokens,
        "work": str(work.resolve()),
        "reference": None if reference is None else str(reference.resolve()),
    }
    result = _run(order, model, watch, log)
    found = {
        name: _set_of(work, reference, index, len(texts))
        for index, (name, texts) in enumerate(sets.items())
    }
    (work / _TEXTS).write_text(json.dumps({"digest": digest}))
    answers = tuple(Answer(**answer) for answer in result["answers"])
    return Measurement(
        model=str(model),
        device=result["device"],
        dtype=result["dtype"],
        quantization=result["quantization"],
        startup_seconds=result["import_seconds"] + result["load_seconds"],
        load_seconds=result["load_seconds"],
        seconds=time.monotonic() - began,
        model_bytes=result["model_bytes"],
        kv_cache_bytes=result["kv_cache_bytes"],
        peak_rss=result["peak_rss"] - result["kv_cache_bytes"],
        speeds=tuple(Speed(batch=b, tokens_per_second=t) for b, t in result["speeds"]),
        answers=answers,
        sets=found,
        faults=_faults(found, answers),
        tools={"vllm": result["vllm"], "torch": result["torch"]},
    )


def _check(
    model: Path,
    sets: Mapping[str, Sequence[Sequence[int]]],
    prompts: Sequence[Sequence[int]],
    reference: Path | None,
    digest: str,
) -> None:
    if not (model / "config.json").is_file():
        raise UsageError(f"{model} is not a model's directory: it has no config.json")
    for name, texts in sets.items():
        if not texts or any(len(text) < 2 for text in texts):
            raise UsageError(
                f"the texts of the set {name!r} must be there and have two tokens or more each: a "
                "model predicts from the second one on"
            )
    if any(not prompt for prompt in prompts):
        raise UsageError("a prompt has no tokens: leave it out")
    if reference is None:
        return
    try:
        known = json.loads((reference / _TEXTS).read_bytes())["digest"]
    except (OSError, ValueError, KeyError):
        raise UsageError(f"{reference} holds no finished measurement of a reference") from None
    if known != digest:
        raise UsageError(
            f"the reference in {reference} was measured on other texts: measure it again on these"
        )


def _check_space(model: Path, work: Path, sets: Mapping[str, Sequence[Sequence[int]]]) -> None:
    positions = sum(len(text) - 1 for texts in sets.values() for text in texts)
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads((model / "config.json").read_bytes())
        vocabulary = known.get("vocab_size") or known.get("text_config", {}).get("vocab_size")
        needed = positions * (vocabulary or 0) * _BYTES_PER_PROBABILITY + _SLACK
        free = shutil.disk_usage(work).free
        if needed > free:
            raise DiskFull(
                f"the reference's distributions of {positions} tokens need {needed / 1e9:.1f} GB "
                f"in {work}, {free / 1e9:.1f} GB are free: measure on fewer tokens or make room"
            )


def _run(order: dict[str, Any], model: Path, watch: Watcher, log: Path) -> dict[str, Any]:
    """Run the probe to its end; it is dead when this returns, however it returns."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as complaint:
        said_before = complaint.tell()
        child = subprocess.Popen(
            # Safe path: a directory called `server` in the working directory is not ours.
            [sys.executable, "-P", "-m", _PROBE, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            # Ctrl-C is for this process, which then ends its child.
            start_new_session=True,
        )
        try:
            result = _followed(child, order, model, watch)
        finally:
            # It has nothing to tidy up.
            child.kill()
            code = child.wait()
            for stream in (child.stdin, child.stdout):
                with suppress(OSError):
                    assert stream is not None, "both are pipes"
                    stream.close()
    if result is None:
        raise _death(code, model, log, said_before)
    return result


def _followed(
    child: subprocess.Popen[bytes], order: dict[str, Any], model: Path, watch: Watcher
) -> dict[str, Any] | None:
    """The result, or None for a process that died without a word."""
    event = children.follow(child, order, watch)
    if event is None:
        child.wait()
        return None
    if "error" in event:
        raise _refusal(event["error"], model)
    return dict(event["result"])


def _refusal(error: dict[str, str], model: Path) -> Exception:
    said = _last_line(error["message"])
    if error["stage"] == "loading":
        return EngineStartFailed(f"vLLM does not load {model}: {said}", log_tail=error["message"])
    return EngineDied(f"vLLM loaded {model} and failed while it was measured: {said}")


def _last_line(message: str) -> str:
    """The sentence in what vLLM raised; pydantic wraps it in lines of its own."""
    wrapped = re.search(r"Value error, (.*?)\s*\[type=", message, re.DOTALL)
    lines = (wrapped[1] if wrapped else message).strip().splitlines()
    return lines[-1].strip() if lines else "it does not say why"


def _death(code: int, model: Path, log: Path, since: int) -> Exception:
    if code == -9:
        return EngineDied(
            f"the process that measured {model} was killed: most likely this machine has too "
            "little free memory for it; vLLM needs about 1 GB besides the weights"
        )
    with log.open("rb") as complaint:
        complaint.seek(max(since, log.stat().st_size - _TAIL_BYTES))
        said = complaint.read().decode(errors="replace").strip()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return EngineDied(
        f"the process that measured {model} {how}: {_last_line(said)} (all of it is in {log})"
    )


def _set_of(work: Path, reference: Path | None, index: int, texts: int) -> SetMeasurement:
    with np.load(work / f"set-{index}.npz") as found:
        if reference is None:
            return set_measurement(texts, found["logprobs"])
        with np.load(reference / f"set-{index}.npz") as known:
            return set_measurement(
                texts, found["logprobs"], found["kl"], found["agrees"], known["logprobs"]
            )


def _faults(sets: Mapping[str, SetMeasurement], answers: Sequence[Answer]) -> tuple[str, ...]:
    found = [
        f"{measured.non_finite} of {measured.tokens} positions of the set {name!r} have no finite "
        "log-probability: its weights are damaged or overflow in this dtype"
        for name, measured in sets.items()
        if measured.non_finite
    ]
    empty = sum(not answer.text.strip() for answer in answers)
    if empty:
        found.append(f"{empty} of {len(answers)} answers are empty")
    return tuple(found)


def _digest(sets: Mapping[str, Sequence[Sequence[int]]]) -> str:
    texts = [[list(map(int, text)) for text in texts] for texts in sets.values()]
    return sha256(json.dumps([list(sets), texts]).encode()).hexdigest()
