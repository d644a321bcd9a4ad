"""Clients of a soak: most are ordinary, some are slow, rude or wrong. Each notes what it got."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from demo.expectations import EXPECTATIONS, MAX_TOKENS, PROMPTS
from demo.prepare import BASE_NAME
from loadtests.soaking.ledger import CUT, LATE, OK, REFUSED, WRONG, Ledger

CHAT = "/v1/chat/completions"
# Seconds in which every request must have some end.
PATIENCE = 170.0
# The tag that is moved between two versions while it is asked for, and what each of them is.
MOVER = "mover"
MOVER_TAG = f"{MOVER}:prod"
MOVER_VERSIONS: Final = {"v1": "pirate", "v2": "json"}


class Failed(Exception):
    """A request that got no answer: `result` says which way."""

    def __init__(self, result: str, detail: str = ""):
        super().__init__(result)
        self.result = result
        self.detail = detail


class Clients:
    """Asks one server; its URL may change nothing but what is behind it."""

    def __init__(self, url: str, ledger: Ledger, rng: random.Random, key: str | None = None):
        self._url = url
        self._ledger = ledger
        self._rng = rng
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._kinds: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "stream": (30, self._stream),
            "whole": (25, self._whole),
            "moved tag": (15, self._moved),
            "base": (8, self._base),
            "hang up": (6, self._hang_up),
            "slow reader": (4, self._slow_reader),
            "never reads": (2, self._never_reads),
            "slow sender": (2, self._slow_sender),
            "wrong request": (6, self._wrong_request),
            "list": (4, self._list),
        }

    async def run(self, until: Callable[[], bool]) -> None:
        """One client after the other, with a little rest, until it is time."""
        kinds = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        while not until():
            result = await self.one(self._rng.choices(kinds, weights)[0])
            # Who was refused comes back as a program would, not at once.
            await asyncio.sleep(self._rng.uniform(0.0, 0.6) if result == OK else 1.0)

    async def one(self, kind: str) -> str:
        """One client of a kind; what its request became is noted."""
        began = self._ledger.now()
        result, detail = OK, ""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._kinds[kind][1]()
        except Failed as failed:
            result, detail = failed.result, failed.detail
        except TimeoutError:
            result = LATE
        except (aiohttp.ClientConnectorError, ConnectionRefusedError) as error:
            result, detail = REFUSED, str(error)
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            result, detail = CUT, repr(error)[:200]
        self._ledger.note(kind, result, began, detail)
        return result

    async def burst(self, count: int) -> None:
        """So many short requests at the same moment."""

        async def ask() -> None:
            began = self._ledger.now()
            result, detail = OK, ""
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._answer(self._document("json", "Hi", tokens=1))
            except Failed as failed:
                result, detail = failed.result, failed.detail
            except TimeoutError:
                result = LATE
            except (aiohttp.ClientConnectorError, ConnectionRefusedError):
                result = REFUSED
            except (aiohttp.ClientError, OSError) as error:
                result, detail = CUT, repr(error)[:200]
            self._ledger.note("burst", result, began, detail)

        await asyncio.gather(*(ask() for _ in range(count)))

    async def answer_of(self, model: str) -> tuple[int, str]:
        """Status and, where there is one, the error's code of a short answer; raises OSError."""
        async with self._session() as session, self._post(session, model) as response:
            return response.status, _code(await response.json())

    def _session(self) -> aiohttp.ClientSession:
        # A connection each: what is kept alive would hide a server that went away.
        return aiohttp.ClientSession(
            headers=self._headers, connector=aiohttp.TCPConnector(force_close=True, limit=0)
        )

    def _post(self, session: aiohttp.ClientSession, model: str) -> Any:
        return session.post(self._url + CHAT, json=self._document(model, "Hi", tokens=2))

    def _document(
        self, model: str, prompt: str, *, tokens: int = MAX_TOKENS, stream: bool = False
    ) -> dict[str, Any]:
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": stream,
        }

    def _some(self) -> tuple[str, str]:
        return self._rng.choice(list(EXPECTATIONS)), self._rng.choice(PROMPTS)

    async def _answer(self, document: Mapping[str, Any]) -> tuple[str, str]:
        """The text of a whole answer and the version that gave it; raises Failed."""
        async with (
            self._session() as session,
            session.post(self._url + CHAT, json=document) as response,
        ):
            answer = await response.json()
            if response.status != 200:
                raise Failed(_code(answer), json.dumps(answer)[:200])
            text = answer["choices"][0]["message"]["content"] or ""
            return text, response.headers.get("x-adapterctl-version", "")

    async def _whole(self) -> None:
        adapter, prompt = self._some()
        text, _ = await self._answer(self._document(adapter, prompt))
        _expect(adapter, text)

    async def _moved(self) -> None:
        text, version = await self._answer(self._document(MOVER_TAG, self._some()[1]))
        which = MOVER_VERSIONS.get(version.rpartition(":")[2])
        if which is None:
            raise Failed(WRONG, f"answered by {version!r}")
        _expect(which, text)

    async def _base(self) -> None:
        text, _ = await self._answer(self._document(BASE_NAME, self._some()[1], tokens=16))
        if not text.strip():
            raise Failed(WRONG, "the base said nothing")

    async def _stream(self) -> None:
        adapter, prompt = self._some()
        _expect(adapter, await self._read(self._document(adapter, prompt, stream=True)))

    async def _slow_reader(self) -> None:
        adapter, prompt = self._some()
        document = self._document(adapter, prompt, stream=True)
        _expect(adapter, await self._read(document, rest=0.3))

    async def _hang_up(self) -> None:
        document = self._document(*self._some(), tokens=400, stream=True)
        await self._read(document, leave_after=self._rng.randint(1, 5))

    async def _read(
        self, document: Mapping[str, Any], *, rest: float = 0.0, leave_after: int | None = None
    ) -> str:
        """The text of a stream; raises Failed for one that ends with an error, or not in order."""
        parts: list[str] = []
        done = False
        async with (
            self._session() as session,
            session.post(self._url + CHAT, json=document) as response,
        ):
            if response.status != 200:
                answer = await response.json()
                raise Failed(_code(answer), json.dumps(answer)[:200])
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise Failed(_code(event), line.decode()[:200])
                parts.extend(choice["delta"].get("content") or "" for choice in event["choices"])
                if leave_after is not None and len(parts) >= leave_after:
                    return ""
                await asyncio.sleep(rest)
        if not done:
            raise Failed(CUT, "the stream ended without [DONE]")
        return "".join(parts)

    async def _never_reads(self) -> None:
        """Asks for a long stream, and looks at nothing of it."""
        document = self._document(*self._some(), tokens=150, stream=True)
        async with self._raw() as writer:
            writer.write(self._request(json.dumps(document).encode()))
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(5, 20))

    async def _slow_sender(self) -> None:
        """A body that comes in pieces, or not to its end."""
        body = json.dumps(self._document(*self._some(), tokens=4)).encode()
        async with self._raw() as writer:
            writer.write(self._request(body)[: -len(body) // 2])
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(3, 15))

    async def _wrong_request(self) -> None:
        """What must be refused: with 4xx and OpenAI's shape, whatever else goes on."""
        case = self._rng.choice(["model", "json", "route", "field"])
        path, data = CHAT, json.dumps(self._document("nobody-has-this", "Hi")).encode()
        if case == "json":
            data = b'{"model": "pirate", "messages": ['
        elif case == "route":
            path = "/v1/nothing-here"
        elif case == "field":
            data = json.dumps({**self._document("pirate", "Hi"), "messages": 7}).encode()
        async with (
            self._session() as session,
            session.post(self._url + path, data=data) as response,
        ):
            answer = await response.json()
            if response.status >= 500:
                raise Failed(_code(answer), f"{case}: {json.dumps(answer)[:200]}")
            if response.status < 400 or not isinstance(answer["error"]["message"], str):
                raise Failed(WRONG, f"{case}: {response.status} {json.dumps(answer)[:200]}")

    async def _list(self) -> None:
        async with (
            self._session() as session,
            session.get(self._url + "/v1/models") as response,
        ):
            answer = await response.json()
            listed = {entry["id"] for entry in answer["data"]}
            if not {BASE_NAME, *EXPECTATIONS} <= listed:
                raise Failed(WRONG, f"only {sorted(listed)} are listed")

    @contextlib.asynccontextmanager
    async def _raw(self) -> Any:
        """A connection with a small buffer of its own, closed without a word."""
        address = urlsplit(self._url)
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(plain, (address.hostname, address.port))
        except BaseException:
            plain.close()
            raise
        # A limit of one byte: what comes is left in the kernel's buffer.
        _, writer = await asyncio.open_connection(sock=plain, limit=1)
        try:
            yield writer
        finally:
            writer.transport.abort()

    def _request(self, body: bytes) -> bytes:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
        for name, value in self._headers.items():
            head += f"{name}: {value}\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _expect(adapter: str, text: str) -> None:
    if not EXPECTATIONS[adapter](text):
        raise Failed(WRONG, f"{adapter} answered {text[:120]!r}")


def _code(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return str(code or "no code")
