"""Tasks of lm-evaluation-harness, from local files, asked of a server's OpenAI endpoints.

What a model writes is asked for as a chat, which the server renders with the adapter's own
template; what only is to be scored (multiple choice, log-likelihoods) by `echo` and `logprobs` of
/v1/completions, with the tokens of a local tokenizer. The harness runs in its own environment
(quantize/environments), and never uses a network besides that server.
"""

from __future__ import annotations

import json
import math
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    EngineUnavailable,
    Forbidden,
    ServerUnreachable,
    ToolFailed,
    Unauthorized,
    UsageError,
)
from quantize.driving import Tool, drive
from quantize.environments import ensure
from quantize.merging.merge import Watcher
from quantize.quality import drivers
from quantize.quality.report import TaskScore
from quantize.quality.task_files import TaskFile, read_task

_SEED = 1234
_TOOL = Tool("evaluating tasks", "lm-eval", Path(drivers.__file__).parent / "lm_eval_driver.py")
# Loading an adapter may wait for others.
_FIRST_ANSWER_S = 600.0
# Where neither the model nor its tokenizer says more.
_MAX_LENGTH = 2048
_ERRORS: Mapping[int, type[AdapterctlError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: AdapterNotFound,
    429: EngineUnavailable,
    503: EngineUnavailable,
}


def run_tasks(
    url: str,
    model_reference: str,
    tasks: Sequence[Path],
    tokenizer: Path,
    key: str | None,
    limit: int | None,
    watch: Watcher,
    log: Path,
) -> tuple[TaskScore, ...]:
    """What `model_reference`, served at `url`, scores in the task files: a score for each metric.

    `tokenizer` is a Hugging Face directory with the served model's tokenizer (its config.json says
    how long a prompt may be). `limit`: only so many items of each task, the first ones. The same
    answers of the server give the same scores. Raises UsageError for a task file,
    ServerUnreachable, AdapterNotFound and others of what the server says, and ToolFailed.
    """
    files = [read_task(path) for path in tasks]
    if len({file.name for file in files}) < len(files):
        raise UsageError("two of the task files have the same name in `task`")
    server = url.rstrip("/").removesuffix("/v1")
    _try(server, model_reference, key)
    python = ensure(_TOOL.name, watch)
    with tempfile.TemporaryDirectory(prefix="adapterctl-tasks-") as cache:
        order = {
            "tasks": [_entry(file) for file in files],
            "url": server,
            "model": model_reference,
            "key": key,
            "tokenizer": str(tokenizer.absolute()),
            "max_length": _max_length(tokenizer),
            "limit": limit,
            "seed": _SEED,
            "cache": cache,
        }
        result = drive(_TOOL, python, order, watch, log)
    if "refused" in result:
        raise _refusal(**result["refused"])
    return tuple(TaskScore.model_validate(score) for score in result["scores"])


def _entry(file: TaskFile) -> dict[str, str]:
    return {"file": str(file.path), "kind": "chat" if file.generates else "completions"}


def _try(server: str, model: str, key: str | None) -> None:
    """One token, before the harness is loaded: is the server there, and the model known?"""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    try:
        request = urllib.request.Request(
            f"{server}/v1/completions",
            data=json.dumps(body).encode(),
            headers={
                "content-type": "application/json",
                **({"authorization": f"Bearer {key}"} if key else {}),
            },
        )
        if request.type not in ("http", "https"):
            raise ValueError(request.type)
        with urllib.request.urlopen(request, timeout=_FIRST_ANSWER_S) as answer:
            answer.read()
    except urllib.error.HTTPError as refused:
        raise _refusal(_message(refused), refused.code) from None
    except ValueError:
        raise UsageError(f"'{server}' is no URL of a server: it begins with http://") from None
    except (OSError, HTTPException) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise ServerUnreachable(
            f"no server answers at {server} ({reason}): tasks need a running `adapterctl serve`"
        ) from None


def _message(refused: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(refused.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"the server answered with status {refused.code}"


def _refusal(message: str, status: int | None) -> AdapterctlError:
    """The error for what the server said, or (no status) for a file or a lost connection."""
    if status is None:
        unreachable = message.startswith("the server")
        return ServerUnreachable(message) if unreachable else UsageError(message)
    return _ERRORS.get(status, ToolFailed)(message)


def _max_length(tokenizer: Path) -> int:
    """How many tokens the model takes, as its config.json says, else its tokenizer's."""
    for name, field in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        try:
            document = json.loads((tokenizer / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found: Any = document.get("text_config", document).get(field) or document.get(field)
        # Some tokenizers name 10^30.
        if isinstance(found, int | float) and math.isfinite(found) and 1 < found < 1e8:
            return int(found)
    return _MAX_LENGTH
