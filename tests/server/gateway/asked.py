"""Requests for a routed reference, as observers get them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from adapters.lanes.models import Limits, Route, Shadow, Split
from server.gateway.observing import Answered, Observation, Role
from server.gateway.routes import ENGINE_ROUTES
from tests.server.gateway.scripted import CHAT, NOW, example_snapshot

PATHS = {route.path: route for route in ENGINE_ROUTES}
SAID = b'{"choices": [{"index": 0, "message": {"content": "arr"}, "finish_reason": "stop"}]}'

# `prod` means v1 in the example's registry, `latest` v2.
ROUTE = Route(
    id=3,
    adapter="pirate",
    tag="prod",
    splits=(Split(number=2, share=0.5),),
    shadows=(Shadow(number=2, share=1),),
    limits=Limits(),
    at=NOW,
    actor="test",
)


def asked(
    body: dict[str, Any] | None = None, *, path: str = "/v1/chat/completions", route: Route = ROUTE
) -> Answered:
    adapter = example_snapshot().adapters["pirate"]
    adapter = adapter.model_copy(update={"routes": {route.tag: route}})
    return Answered(
        request_id="r1",
        reference="pirate:prod",
        adapter=adapter,
        stable=adapter.versions[1],
        route=route,
        role=Role.STABLE,
        path=PATHS[path],
        body=json.dumps(CHAT if body is None else body).encode(),
        headers={},
    )


def ended(answered: Answered, **changes: Any) -> Observation:
    observation = Observation(
        adapter="pirate",
        number=1,
        lane="hot",
        role=Role.STABLE,
        route=answered.route.id,
        path=answered.path.path,
        outcome="ok",
        ended=0.0,
        waited=0.0,
        first_token=None,
        seconds=0.5,
        prompt_tokens=3,
        completion_tokens=4,
        answer=SAID,
        asked=answered,
    )
    return replace(observation, **changes)
