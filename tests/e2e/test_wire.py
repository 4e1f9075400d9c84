"""Requests by the wire, held to those that aiohttp's own session makes."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp.connector import Connection
from kit.hostile import Heard, Hostile, hostile, http
from multidict import CIMultiDict

from batchrouter.wire import Answer, Wire, is_plain

HEADERS = CIMultiDict(
    {
        "Authorization": "Bearer sk-wire-0123456789",
        "Content-Type": "application/json",
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": "wire/1",
        "X-Title": "Größe, 100 %d",
    }
)
BODY = '{"messages": [{"role": "user", "content": "100 %d ü"}]}'.encode()


class _Protocol(SimpleNamespace):
    """One that has nothing more to read."""

    def __len__(self) -> int:
        return 0


def told(heard: Heard) -> dict[str, Any]:
    return heard._asdict() | {"connection": 0, "nth": 0, "headers": dict(heard.headers)}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/a b/ü", "/v1/a%20b/%2F"])
def test_a_request_is_that_of_a_session(path: str) -> None:
    """The same address, headers and body, over the same connection, which is kept."""

    async def scene(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            assert session.connector is not None
            async with session.post(url, data=BODY, headers=HEADERS) as response:
                assert (response.status, await response.read()) == (200, b"{}")
            wire = Wire(session.connector, {"here": url}, HEADERS)
            for _ in range(2):
                answer = await wire.post("here", BODY)
                assert (answer.status, await answer.content.read()) == (200, b"{}")
                answer.release()
            wire.close()

    with hostile(lambda _: [http(200, b"{}")]) as server:
        asyncio.run(scene(f"http://localhost:{server.port}{path}"))
    by_session, *by_wire = map(told, server.heard)
    assert by_wire == [by_session, by_session]
    assert server.connections == 1


def test_a_connection_is_closed_unless_its_answer_was_read() -> None:
    """What is left of an answer, or is still to come, would be taken for the next one's."""
    heard = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def scene(base_url: str) -> None:
        loops.append(asyncio.get_running_loop())
        async with aiohttp.ClientSession() as session:
            assert session.connector is not None
            wire = Wire(session.connector, {"here": base_url}, HEADERS)
            answer = await wire.post("here", BODY)
            assert await answer.content.readany() == b"{"
            answer.release()
            waiting = asyncio.create_task(wire.post("here", BODY))
            await heard.wait()
            waiting.cancel()
            await asyncio.wait([waiting])
            answer = await wire.post("here", BODY)
            assert await answer.content.read() == b"{}"
            answer.release()
            wire.close()

    def script(request: Heard) -> list[bytes | float | str]:
        if request.connection != 1:
            return [http(200, b"{}" if request.connection else b"{", length=2)]
        loops[0].call_soon_threadsafe(heard.set)
        return ["stall"]

    with hostile(script) as server:
        asyncio.run(scene(server.base_url))
    assert [request.nth for request in server.heard] == [0, 0, 0]


@pytest.mark.parametrize(("is_held_up", "end"), [(True, "close"), (False, "keep")])
def test_a_connection_that_does_not_take_the_request_is_not_kept(*, is_held_up: bool, end: str) -> None:
    """A server may answer before it has read a body; the rest of that would come before the next request."""
    ends: list[str] = []
    connection = cast(
        "Connection",
        SimpleNamespace(
            protocol=_Protocol(writing_paused=is_held_up, should_close=False),
            close=lambda: ends.append("close"),
        ),
    )
    wire = cast("Wire", SimpleNamespace(keep=lambda _: ends.append("keep")))
    Answer(413, {}, cast("aiohttp.StreamReader", None), connection, wire).release()
    assert ends == [end]


@pytest.mark.parametrize(("keep_s", "connections"), [(60.0, 2), (0.0, 3)])
def test_connections_that_nobody_needs_any_more_are_closed(keep_s: float, connections: int) -> None:
    """Two requests at once, and then two more: over the same connections, or one of them anew."""

    async def scene(base_url: str) -> None:
        async with aiohttp.ClientSession() as session:
            assert session.connector is not None
            wire = Wire(session.connector, {"here": base_url}, HEADERS, keep_s=keep_s)
            for _ in range(2):
                answers = await asyncio.gather(wire.post("here", BODY), wire.post("here", BODY))
                for answer in answers:
                    assert await answer.content.read() == b"{}"
                for answer in answers:
                    answer.release()
            wire.close()

    with hostile(lambda _: [http(200, b"{}")]) as server:
        asyncio.run(scene(server.base_url))
    assert server.connections == connections


def test_what_leaves_in_one_turn_of_the_loop_leaves_together() -> None:
    """The peer is woken once: nothing is heard of the first of two requests until the second one is there as well."""

    async def scene(server: Hostile) -> int:
        async with aiohttp.ClientSession() as session:
            assert session.connector is not None
            wire = Wire(session.connector, {"here": server.base_url}, HEADERS)

            async def ask() -> int:
                answer = await wire.post("here", BODY)
                assert await answer.content.read() == b"{}"
                answer.release()
                return answer.status

            await asyncio.gather(ask(), ask())
            first = asyncio.create_task(ask())
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)
            asyncio.get_running_loop().call_soon(lambda: heard.append(len(server.heard)))
            second = asyncio.create_task(ask())
            heard: list[int] = []
            assert list(await asyncio.gather(first, second)) == [200, 200]
            wire.close()
            return heard[0]

    with hostile(lambda _: [http(200, b"{}")]) as server:
        assert asyncio.run(scene(server)) == 2
    assert len(server.heard) == 4


@pytest.mark.parametrize(
    ("name", "value"), [("Expect", "100-continue"), ("transfer-encoding", "chunked"), ("a", "b\r\nc: d"), ("a\n", "b")]
)
def test_headers_that_change_how_a_body_travels_are_the_sessions(name: str, value: str) -> None:
    """It waits for the 100, writes chunks, and refuses what is no header."""
    assert is_plain(HEADERS)
    assert not is_plain({**HEADERS, name: value})
