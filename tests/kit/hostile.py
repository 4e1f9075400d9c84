"""A server that writes what it is told, byte by byte: for what the emulator has no fault for.

A script is a function of what was heard that gives steps: bytes are written, a number is slept for (seconds), a word is
done to the connection (`close`, `reset`, or `stall` until the client leaves). Without such a word it is kept.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from kit.world import PATIENCE_S

KEY = "sk-hostile-0123456789abcdef"

Step = bytes | float | str


class Heard(NamedTuple):
    """One request: the `nth` (from 0) of its connection, which is the server's `connection`th."""

    connection: int
    nth: int
    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def said(self) -> str:
        """The last message's text."""
        return str(self.body["messages"][-1]["content"])


Script = Callable[[Heard], Iterable[Step]]


@dataclass
class Hostile:
    """A running server. `heard` are the POST requests so far; what else is asked for gets the `catalogue`."""

    script: Script
    catalogue: bytes = b""
    on_get: Callable[[str], object] = str  # is told the path of what else is asked for
    early: bool = False  # the answer is sent before the body is read
    port: int = 0
    scheme: str = "http"
    connections: int = 0
    heard: list[Heard] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    @property
    def environment(self) -> dict[str, str]:
        return {"WORLDROUTER_BASE_URL": self.base_url, "WORLDROUTER_API_KEY": KEY}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        nth = 0
        with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ssl.SSLError):
            while True:
                heard = await self._hear(reader, number, nth)
                if heard.method == "POST":
                    self.heard.append(heard)
                    nth += 1
                    steps = self.script(heard)
                else:
                    self.on_get(heard.path)
                    steps = [self.catalogue or http(404, b"{}")]
                if not await _play(steps, reader, writer):
                    break
        with suppress(ConnectionError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    async def _hear(self, reader: asyncio.StreamReader, connection: int, nth: int) -> Heard:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        fields = (line.partition(":") for line in head[1:-2])
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        raw = b"" if self.early else await reader.readexactly(int(headers.get("content-length", "0")))
        return Heard(connection, nth, method, path, headers, raw)


async def _play(steps: Iterable[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection is kept."""
    for step in steps:
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
            case "stall":
                await reader.read()
                return False
            case "close":
                return False
            case "reset":
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return False
            case float() | int():
                await asyncio.sleep(step)
            case _:
                raise ValueError(step)
    return True


@contextmanager
def hostile(
    script: Script,
    *,
    catalogue: bytes = b"",
    on_get: Callable[[str], object] = str,
    tls: ssl.SSLContext | None = None,
    early: bool = False,
) -> Iterator[Hostile]:
    """A server in a thread of its own, until the block ends."""
    server = Hostile(script, catalogue, on_get, early, scheme="http" if tls is None else "https")
    ready, finish = threading.Event(), []

    async def serve() -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with suppress(asyncio.CancelledError):
                await server._serve(reader, writer)
            tasks.discard(task)
            writer.transport.abort()

        listener = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls, limit=2**17, backlog=1000)
        server.port = listener.sockets[0].getsockname()[1]
        over = asyncio.Event()
        finish.append((asyncio.get_running_loop(), over))
        ready.set()
        await over.wait()
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # so that what was aborted says so

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield server
    finally:
        loop, over = finish[0]
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)


def http(status: int, body: bytes | Mapping[str, Any] = b"", *headers: str, length: int | None = None) -> bytes:
    """A whole answer; `length` is the Content-Length it claims."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Odd"
    lines = [f"HTTP/1.1 {status} {phrase}", *headers]
    if not any(line.lower().startswith("content-type:") for line in headers):
        lines.append("content-type: application/json")
    lines.append(f"content-length: {len(raw) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + raw


def opened(*headers: str, kind: str = "text/event-stream") -> bytes:
    """The head of a 200 whose body is chunked."""
    lines = ["HTTP/1.1 200 OK", f"content-type: {kind}", "transfer-encoding: chunked", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def piece(data: bytes) -> bytes:
    """One HTTP chunk; an empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def right(heard: Heard, content: str | None = None, **fields: Any) -> dict[str, Any]:
    """A good answer: it repeats the question unless told otherwise."""
    message = {"role": "assistant", "content": heard.said if content is None else content}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "model": "m",
        "choices": [choice],
        "usage": usage,
        **fields,
    }
