"""The server's own HTTP server in front of the scripted engine, with an end of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter

from server.gateway.app import create_app
from server.gateway.client_connection import ClientLimits, ConnectionRules
from server.gateway.http_server import HttpServer, http_config
from server.gateway.runtime import listen
from server.gateway.state import GatewayState
from server.gateway.stopping import Stopping
from tests.server.gateway.scripted import Gateway, no_lifespan


class Server:
    """An HttpServer of its own in front of the scripted engine."""

    def __init__(self, state: GatewayState, listener: socket.socket, **options: Any):
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = state
        rules = ConnectionRules(options.pop("limits", ClientLimits()), state.stopping)
        delay, timeout = options.pop("delay", 0.0), options.pop("timeout", 5.0)
        self.http = HttpServer(
            http_config(
                create_app(state, APIRouter(), no_lifespan), rules, options.pop("tls", None)
            ),
            state.stopping,
            delay=lambda: delay,
            timeout=lambda: timeout,
            **options,
        )
        self.http.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
        self.ended = asyncio.ensure_future(self.http.serve(sockets=[listener]))

    async def up(self) -> Server:
        async with asyncio.timeout(5):
            while not self.http.started:
                await asyncio.sleep(0.005)
        return self


def own(state: GatewayState) -> GatewayState:
    """The same gateway, but with an end of its own."""
    return replace(state, stopping=Stopping())


@contextlib.asynccontextmanager
async def running(gateway: Gateway, **options: Any) -> AsyncIterator[Server]:
    server = await Server(own(gateway.state), listen("127.0.0.1", 0), **options).up()
    try:
        yield server
    finally:
        server.http.stop()
        await server.ended
