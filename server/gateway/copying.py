"""What the gateway asks of engines on its own account: copies of requests, scores of answers.

None of it may cost a client anything: it never waits for an engine, never starts one, goes last in
the engine's own queue, and there is at most one of it at a time at any engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from adapters.errors import AdapterctlError
from adapters.frozen import Lane
from adapters.models import VersionRecord
from adapters.serving.stored import ServingDocuments
from server.engine.http_connection import Answer
from server.gateway.admission.tickets import Cost, Ticket
from server.gateway.body import encode, parse_object
from server.gateway.lanes import Hold, Lanes
from server.gateway.observing import Answered
from server.gateway.placing import Placing
from server.gateway.serving import apply_serving

# vLLM's own header, stronger than the body's field; higher is later, everybody else has 0.
PRIORITY_HEADER = "x-vllm-priority"
LAST = "1000"
# No tenant's name: these are charged to nobody.
_GATEWAY = ""


class Copying:
    """Holds engines for what the gateway asks itself, and makes the documents for it."""

    def __init__(self, placing: Placing, lanes: Lanes, documents: ServingDocuments):
        self._placing = placing
        self._lanes = lanes
        self._documents = documents
        self._own: set[str] = set()

    @contextlib.contextmanager
    def held(
        self, asked: Answered, version: VersionRecord, lane: Lane | None, *, busiest: int
    ) -> Iterator[Hold | None]:
        """The engine of a version, while it has at most `busiest` requests of clients.

        None where it is not ready, has more, has something of the gateway's already, or where
        somebody waits for it.
        """
        hold = self._free(asked, version, lane, busiest)
        if hold is None:
            yield None
            return
        adapter = version.digest if hold.lane == Lane.HOT else None
        place = self._lanes.door(hold).enter_background(Ticket(_GATEWAY, adapter, Cost()))
        if place is None:
            hold.release()
            yield None
            return
        self._own.add(hold.engine)
        try:
            yield hold
        finally:
            self._own.discard(hold.engine)
            place.release()
            hold.release()

    def _free(
        self, asked: Answered, version: VersionRecord, lane: Lane | None, busiest: int
    ) -> Hold | None:
        try:
            ways = self._placing.of_version(asked.reference, asked.adapter, version, lane)
        except AdapterctlError:
            return None
        hold = self._lanes.hold_now(ways)
        if hold is None:
            return None
        # This hold is counted, too.
        if hold.engine in self._own or self._lanes.in_flight()[hold.engine] - 1 > busiest:
            hold.release()
            return None
        return hold

    async def document(self, asked: Answered, version: VersionRecord) -> dict[str, Any]:
        """The client's request as it would go to `version`, but for the model's name."""
        document = parse_object(asked.body)
        apply_serving(document, asked.path.dialect, await self._documents.of(version.digest))
        # Kept nowhere, whoever asked for that.
        document.pop("store", None)
        document.pop("priority", None)
        return document


async def send_last(
    hold: Hold, path: str, document: dict[str, Any], headers: dict[str, str]
) -> Answer:
    """Send `document` so that the engine does everything else first.

    An engine of somebody else's, started without `--scheduling-policy priority`, refuses that: it
    gets the request as any other. Raises as EngineTransport.send does.
    """
    payload = encode({**document, "model": hold.engine_model})
    headers = {**headers, "content-type": "application/json"}
    last = {**headers, PRIORITY_HEADER: LAST}
    response = await hold.transport.send("POST", path, body=payload, headers=last)
    if response.status == 400 and b"priority" in await response.read():
        response.release()
        response = await hold.transport.send("POST", path, body=payload, headers=headers)
    return response
