"""Schemathesis: every operation of the OpenAPI document, asked with what it allows and with what it
does not; a real server answers, and keeps its own word."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
)

from tests.faults.served import served
from tests.server.gateway.scripted import ScriptedEngine, answer

# Of each operation, and of those that begin a process for a request.
EXAMPLES, COSTLY_EXAMPLES = 10, 2
COSTLY = {
    "POST /admin/v1/adapters",
    "POST /admin/v1/bases",
    "POST /admin/v1/compositions",
    "POST /admin/v1/inspect",
    "POST /admin/v1/verify",
    "GET /admin/v1/doctor",
}
# What there is: names that are drawn mean nothing.
THERE = {"name": "bot", "reference": "bot:v2", "tag": "prod"}
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance)


def ask_everything(url: str) -> dict[str, set[int]]:
    """Statuses by operation; raises what Schemathesis finds, with the request that shows it."""
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    schema = schemathesis.openapi.from_dict(document)
    seen: dict[str, set[int]] = {}
    found = list(schema.get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found), "the document itself is not valid"
    # First what leaves everything where it is.
    for operation in sorted(operations, key=lambda one: one.method.upper() == "DELETE"):
        label = f"{operation.method.upper()} {operation.path}"
        statuses = seen.setdefault(label, set())
        _ask(operation, url, statuses, COSTLY_EXAMPLES if label in COSTLY else EXAMPLES)
    return seen


def _ask(operation: Any, url: str, statuses: set[int], examples: int) -> None:
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    strategy = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=strategy, there=st.booleans())
    def one(case: Any, there: bool) -> None:
        if there:
            _means_something(case)
        response = case.call(base_url=url, timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            error = json.loads(response.content)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert "Traceback" not in error["message"]

    one()


def _means_something(case: Any) -> None:
    for name in case.path_parameters or {}:
        if name in THERE:
            case.path_parameters[name] = THERE[name]
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "bot:prod"


async def test_every_operation_keeps_its_word(
    own_store: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.handler = answer
    log = tmp_path / "serve.log"
    async with served(own_store, engine, log=log) as server:
        seen = await asyncio.to_thread(ask_everything, server.live.url)
    assert len(seen) > 50, sorted(seen)
    good = {label for label, statuses in seen.items() if any(s < 300 for s in statuses)}
    assert {"POST /v1/chat/completions", "DELETE /admin/v1/references/{reference}"} <= good, seen
    assert "Traceback" not in await asyncio.to_thread(log.read_text)
