"""Tasks of lm-evaluation-harness 0.4.13, asked of a server; run by quantizers/drivers/child.py.

Of the order: `tasks` ([{"file", "kind": "chat" | "completions"}]), `url` (of the server, without
/v1), `model`, `key`, `tokenizer` (directory), `max_length` (tokens), `limit`, `seed`, `cache`
(directory). The result is {"scores": [{"task", "metric", "value", "stderr", "samples"}]}, or
{"refused": {"message", "status"}} where the server or a task file is at fault.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
from typing import Any

# Requests at once: the server batches them.
_AT_ONCE = 8
# How often a request is sent that the server was too busy for, and how long it waits at most.
_TRIES, _WAIT_S = 6, 30.0
_BUSY = (429, 503)
# One answer on a slow machine.
_TIMEOUT_S = 1800
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Refused(Exception):
    """What the user is told in one line; `status` as the server answered."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


def quantize(order: dict[str, Any], tell: Any) -> dict[str, Any]:
    """The scores (child.py calls a driver's work so, whatever it is)."""
    # Task files name local data only; nothing of an earlier run's is taken for it.
    os.environ.update(
        HF_DATASETS_OFFLINE="1", HF_HOME=order["cache"], HF_DATASETS_CACHE=order["cache"]
    )
    tell({"step": "loading lm-evaluation-harness"})
    try:
        return {"scores": _scores(order, tell)}
    except Refused as refusal:
        return {"refused": {"message": str(refusal), "status": refusal.status}}


def _scores(order: dict[str, Any], tell: Any) -> list[dict[str, Any]]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    found: list[dict[str, Any]] = []
    # All are loaded before the first question is asked.
    loaded = [(entry, _loaded(manager, entry["file"])) for entry in order["tasks"]]
    for entry, task in loaded:
        tell({"step": f"asking {order['model']} the task {task.task_name}"})
        found += _asked(order, tell, manager, task, chat=entry["kind"] == "chat")
    return found


def _loaded(manager: Any, file: str) -> Any:
    # Data files are named as they lie from the task file.
    os.chdir(os.path.dirname(file))  # noqa: PTH120
    try:
        (task,) = manager.load([file])["tasks"].values()
        # Loading is lazy: a mistake in a template shows with the first item.
        first = next(iter(task.eval_docs), None)
        if first is None:
            raise ValueError("it has no items")
        task.doc_to_text(first)
        if task.OUTPUT_TYPE == "multiple_choice":
            task.doc_to_choice(first)
        task.doc_to_target(first)
    except Exception as fault:
        said = (str(fault).strip() or type(fault).__name__).splitlines()
        raise Refused(f"the task file {file} cannot be used: {said[0]}") from fault
    return task


def _asked(
    order: dict[str, Any], tell: Any, manager: Any, task: Any, *, chat: bool
) -> list[dict[str, Any]]:
    from lm_eval.evaluator import simple_evaluate

    seed = order["seed"]
    results = simple_evaluate(
        model=_model(order, tell, chat=chat),
        tasks=[task],
        task_manager=manager,
        limit=order["limit"],
        apply_chat_template=chat,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    name = task.task_name
    samples = results["n-samples"][name]["effective"]
    return [
        {**score, "task": name, "samples": samples} for score in _metrics(results["results"][name])
    ]


def _metrics(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """`acc,none` and `acc_stderr,none`: the second part is a filter of the answers."""
    found = []
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr"):
            continue
        name = metric if kept == "none" else f"{metric},{kept}"
        stderr = figures.get(f"{metric}_stderr,{kept}")
        found.append({"metric": name, "value": _number(value), "stderr": _number(stderr)})
    return found


def _number(value: Any) -> float | None:
    """The harness writes N/A where there is none."""
    numeric = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if numeric else None


def _model(order: dict[str, Any], tell: Any, *, chat: bool) -> Any:
    """The server as the harness's model, with errors that say what the server said."""
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    kind: Any = LocalChatCompletion if chat else LocalCompletionsAPI

    class Server(kind):  # type: ignore[misc]
        """Hides the harness's retries: it says the reason in its log only, and repeats anything."""

        asked = total = 0

        async def get_batched_requests(self, requests: list[Any], *args: Any, **named: Any) -> Any:
            self.total += len(requests)
            return await super().get_batched_requests(requests, *args, **named)

        async def amodel_call(
            self,
            session: Any,
            sem: Any,
            messages: Any,
            *,
            generate: bool = True,
            ctxlens: list[int] | None = None,
            gen_kwargs: dict[str, Any] | None = None,
            **_: Any,
        ) -> Any:
            body = self._create_payload(
                self.create_message(messages),
                generate=generate,
                gen_kwargs=copy.deepcopy(gen_kwargs),
                seed=self._seed,
                eos=self.eos_string,
            )
            async with sem:
                answer = await _post(session, self.base_url, body, self.header)
            self.asked += 1
            tell({"progress": [self.asked, self.total]})
            if generate:
                return [text or "" for text in self.parse_generations(outputs=answer)]
            return self.parse_logprobs(outputs=answer, tokens=messages, ctxlens=ctxlens)

    given = {} if chat else {"tokenizer": order["tokenizer"], "tokenizer_backend": "huggingface"}
    key = order["key"]
    return Server(
        model=order["model"],
        base_url=order["url"] + (_CHAT if chat else _COMPLETIONS),
        header={"Authorization": f"Bearer {key}"} if key else {"Accept": "application/json"},
        num_concurrent=_AT_ONCE,
        max_retries=1,
        max_length=order["max_length"],
        timeout=_TIMEOUT_S,
        seed=order["seed"],
        **given,
    )


async def _post(session: Any, url: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
    import aiohttp

    try:
        for attempt in range(_TRIES):
            async with session.post(url, json=body, headers=headers) as response:
                if response.ok:
                    return await response.json()
                said = await response.text()
            if response.status not in _BUSY or attempt == _TRIES - 1:
                break
            await asyncio.sleep(_pause(response.headers.get("retry-after"), attempt))
    except (aiohttp.ClientError, TimeoutError, OSError) as fault:
        raise Refused(f"the server at {url} does not answer: {fault or 'timeout'}") from fault
    raise Refused(_complaint(said, response.status), response.status)


def _pause(asked: str | None, attempt: int) -> float:
    """Seconds: as the server asks, else twice as long each time."""
    wanted = float(asked) if asked and asked.isdigit() else 2.0**attempt
    return min(wanted, _WAIT_S)


def _complaint(said: str, status: int) -> str:
    import json

    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}: {said.strip()[:300]}"
