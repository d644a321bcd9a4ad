"""The end of a server: nobody who was let in is turned away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from server.gateway.handover import offered, take
from server.gateway.runtime import listen
from tests.server.gateway.scripted import (
    CHAT,
    DONE,
    Gateway,
    ScriptedEngine,
    answer,
    chunk,
)
from tests.server.gateway.served import Server, own, running

PATH = "/v1/chat/completions"


def slow_stream(go_on: asyncio.Event) -> Any:
    async def stream(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("a"))
        await go_on.wait()
        await response.write(chunk("b") + DONE)
        return response

    return stream


async def test_a_stream_ends_in_peace_while_new_connections_are_refused(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    go_on = asyncio.Event()
    engine.handler = slow_stream(go_on)
    async with running(gateway) as server, aiohttp.ClientSession() as client:
        body = {**CHAT, "stream": True}
        async with client.post(server.url + PATH, json=body) as response:
            assert (await response.content.readline()).startswith(b"data:")
            server.http.stop()
            while True:  # Until the port is let go.
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                except ConnectionRefusedError:
                    break
                writer.close()
                await asyncio.sleep(0.01)
            assert not server.ended.done()
            go_on.set()
            rest = await response.read()
        assert rest.endswith(DONE)
        await asyncio.wait_for(server.ended, 5)


async def test_what_is_not_finished_in_time_is_told_so(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    streaming = slow_stream(asyncio.Event())

    async def stuck(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if not document.get("stream"):
            await asyncio.Event().wait()
        found: web.StreamResponse = await streaming(request, document)
        return found

    engine.handler = stuck
    async with running(gateway, timeout=0.3) as server, aiohttp.ClientSession() as client:
        streamed = {**CHAT, "stream": True}
        async with client.post(server.url + PATH, json=streamed) as response:
            await response.content.readline()
            whole = asyncio.ensure_future(asked(client, server, "never"))
            await until_received(engine, 2)
            server.http.stop()
            rest = await response.read()
        events = [line for line in rest.splitlines() if line.startswith(b"data:")]
        assert json.loads(events[-1][5:])["error"]["code"] == "server_stopping"
        status, document, headers = await whole
        assert (status, document["error"]["code"]) == (503, "server_stopping")
        assert headers["retry-after"] == "1"
        await asyncio.wait_for(server.ended, 5)
    labels = {"adapter": "pirate", "lane": "hot", "route": PATH, "outcome": "server_stopping"}
    await gateway.settled("adapterctl_requests_total", 2, **labels)


async def test_readyz_says_so_while_connections_are_still_taken(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    async with running(gateway) as server, aiohttp.ClientSession() as client:
        async with client.get(server.url + "/readyz") as response:
            assert response.status == 200
            assert "connection" not in response.headers
        server.http.stop(delay=30)
        async with aiohttp.ClientSession() as another:
            async with another.get(server.url + "/readyz") as response:
                assert response.status == 503
                document = await response.json()
                assert document["error"]["code"] == "server_stopping"
                # Its balancer's next connection goes elsewhere.
                assert response.headers["connection"] == "close"
            async with another.get(server.url + "/healthz") as response:
                assert response.status == 200
            assert (await asked(another, server))[0] == 200
        server.http.should_exit = True
        await asyncio.wait_for(server.ended, 5)


async def test_a_request_that_is_just_being_sent_is_answered(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    async with running(gateway) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps(CHAT).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode())
        await writer.drain()
        await asyncio.sleep(0.05)
        server.http.should_exit = True
        async with asyncio.timeout(5):
            while not server.state.stopping.begun:
                await asyncio.sleep(0.005)
        # Longer than idle connections are kept: it is not one of them.
        await asyncio.sleep(0.4)
        writer.write(b"\r\n" + body)
        found = await reader.read()
        assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in found
        writer.close()


async def test_a_port_goes_from_server_to_server_and_no_request_is_lost(
    gateway: Gateway, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """Three servers after each other under load; each counts what it answered."""
    engine.handler = answer
    engine.received.clear()
    first = await Server(own(gateway.state), listen("127.0.0.1", 0)).up()
    store = tmp_path / "handed"
    stop, outcomes = asyncio.Event(), []

    async def client(keeps: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keeps)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not stop.is_set():
                outcomes.append((await asked(session, first))[0])

    clients = [asyncio.ensure_future(client(index % 2 == 0)) for index in range(8)]
    now = first
    served = [first]
    for number in range(2):
        await _some_more(outcomes)
        now = await _handed_over(now, gateway, store, tmp_path / f"door-{number}")
        served.append(now)
    await _some_more(outcomes)
    stop.set()
    await asyncio.gather(*clients)
    now.http.stop()
    await asyncio.gather(*(one.ended for one in served))
    assert set(outcomes) == {200}
    assert len(outcomes) == len(engine.received)
    totals = [one.http.server_state.total_requests for one in served]
    assert all(total > 20 for total in totals)
    assert sum(totals) == len(outcomes)


async def _handed_over(old: Server, gateway: Gateway, store: Path, door: Path) -> Server:
    """The next server, once the last one has let go."""
    loop = asyncio.get_running_loop()

    def taken() -> None:
        loop.call_soon_threadsafe(old.http.handed_over)

    listener = old.http.servers[0].sockets[0]
    (store / "run").mkdir(parents=True, exist_ok=True)
    # Of another process: a server takes nothing from itself.
    said = {"pid": os.getppid(), "url": old.url, "handover": str(door)}
    (store / "run" / f"server-{os.getppid()}.json").write_text(json.dumps(said))
    with offered(_raw(listener), door, taken):
        handed = await asyncio.to_thread(take, store, old.port)
        assert handed is not None
        new = await Server(own(gateway.state), handed.listener, started=handed.done).up()
        await asyncio.wait_for(old.ended, 10)
    return new


def _raw(listener: Any) -> socket.socket:
    return socket.socket(fileno=os.dup(listener.fileno()))


async def _some_more(outcomes: list[int]) -> None:
    goal = len(outcomes) + 60
    async with asyncio.timeout(20):
        while len(outcomes) < goal:
            await asyncio.sleep(0.005)


async def asked(
    client: aiohttp.ClientSession, server: Server, text: str = "hi"
) -> tuple[int, Any, Any]:
    body = {"model": "pirate:prod", "messages": [{"role": "user", "content": text}]}
    async with client.post(server.url + PATH, json=body) as response:
        return response.status, await response.json(), response.headers


async def until_received(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(5):
        while len(engine.received) < count:
            await asyncio.sleep(0.005)


PROGRAM = """
import asyncio, sys
from server.gateway.http_server import HttpServer, http_config
from server.gateway.client_connection import ConnectionRules
from server.gateway.runtime import listen
from server.gateway.stopping import Stopping

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    print("asked", flush=True)
    await asyncio.sleep(600)

listener, stopping = listen("127.0.0.1", 0), Stopping()
server = HttpServer(
    http_config(application, ConnectionRules(stopping=stopping)), stopping,
    delay=lambda: 0.0, timeout=lambda: 600.0,
    started=lambda: print(listener.getsockname()[1], flush=True),
)
asyncio.run(server.serve(sockets=[listener]))
"""


def test_a_second_signal_ends_it_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with socket.create_connection(("127.0.0.1", int(child.stdout.readline()))) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert child.stdout.readline() == "asked\n"
        child.send_signal(signal.SIGTERM)
        # It has let go of the port, and still waits for the request.
        address = client.getpeername()
        while True:
            try:
                socket.create_connection(address).close()
            except ConnectionRefusedError:
                break
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=10) == -signal.SIGTERM
    child.stdout.close()
