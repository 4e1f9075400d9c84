"""What ends an attempt, and what does not, in virtual time."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from kit.streams import chunk, said, sse
from kit.virtual import elapsed_s, run

from batchrouter.sse import Assembly
from batchrouter.watch import Attempt, How, Watch

TIMEOUT_S, IDLE_S = 60.0, 10.0

Peer = Callable[[Watch, Attempt], Coroutine[Any, Any, None]]


def answering(attempt: Attempt) -> SimpleNamespace:
    """The headers have come: what follows is counted here."""
    content = SimpleNamespace(total_bytes=0)
    attempt.response = cast("aiohttp.ClientResponse", SimpleNamespace(content=content))
    return content


def ended_after(peer: Peer) -> tuple[float, str]:
    """When an attempt ended, by itself ("") or by the sweep."""

    async def scene() -> tuple[float, str]:
        watch = Watch(TIMEOUT_S, IDLE_S)
        watch.start()

        async def attempt() -> str:
            made = watch.begin()
            watch.connected("kept")
            try:
                await peer(watch, made)
            except asyncio.CancelledError:
                assert made.outlived()
                return made.expired
            finally:
                watch.end(made)
            return ""

        told = await asyncio.create_task(attempt())
        watch.stop()
        return elapsed_s(), told

    return run(scene())


async def silent(watch: Watch, attempt: Attempt) -> None:
    del watch, attempt
    await asyncio.Event().wait()


async def dripping(watch: Watch, attempt: Attempt) -> None:
    content = answering(attempt)
    while watch:
        await asyncio.sleep(1)
        content.total_bytes += 1


async def stalling(watch: Watch, attempt: Attempt) -> None:
    content = answering(attempt)
    for _ in range(3):
        await asyncio.sleep(9)
        content.total_bytes += 100
    await silent(watch, attempt)


async def slow_but_honest(watch: Watch, attempt: Attempt) -> None:
    content = answering(attempt)
    for _ in range(6):
        await asyncio.sleep(9)
        content.total_bytes += 100
    del watch


async def late_to_connect(watch: Watch, attempt: Attempt) -> None:
    attempt.connection = "none"
    await asyncio.sleep(99)  # in the queue for a connection
    watch.connected("opening")
    await asyncio.sleep(9)
    watch.connected("fresh")
    watch.connected("kept")
    await slow_but_honest(watch, attempt)


async def never_to_connect(watch: Watch, attempt: Attempt) -> None:
    watch.connected("opening")
    await silent(watch, attempt)


async def thinking_aloud(watch: Watch, attempt: Attempt) -> None:
    content, attempt.assembly = answering(attempt), Assembly()
    for _ in range(20):
        await asyncio.sleep(2.5)
        attempt.assembly.feed(b": processing\n\n")
        content.total_bytes += 14
    del watch


async def speaking_then_pinging(watch: Watch, attempt: Attempt) -> None:
    attempt.assembly = Assembly()
    content = answering(attempt)
    attempt.assembly.feed(sse(chunk(said({"content": "x"}))))
    while watch:
        await asyncio.sleep(1)
        attempt.assembly.feed(b": ping\n\n")
        content.total_bytes += 8


async def uploading(watch: Watch, attempt: Attempt) -> None:
    attempt.upload = io.BytesIO(b"x" * 50)
    for _ in range(50):
        await asyncio.sleep(1)
        attempt.upload.read(1)
    attempt.upload.close()
    await asyncio.sleep(9)
    del watch


async def taking_what_was_written(watch: Watch, attempt: Attempt) -> None:
    """Of a body that was written in one piece, half waits in the transport and half in the system."""
    here, there = socket.socketpair()
    with here, there:
        for _ in range(25):
            here.send(bytes(1000))
        transport = Written(here, 25_000)
        watch.connected("kept", cast("asyncio.Transport", transport))
        for _ in range(25):
            await asyncio.sleep(1)
            there.recv(1000)
        for _ in range(25):
            await asyncio.sleep(1)
            transport.left_bytes -= 1000
    await asyncio.sleep(9)
    del attempt


@dataclass
class Written:
    """What a transport tells of a body on its way out."""

    socket: socket.socket
    left_bytes: int

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.left_bytes

    def get_extra_info(self, name: str) -> object:
        return getattr(self, name)


@pytest.mark.parametrize(
    ("peer", "seconds", "told"),
    [
        (silent, IDLE_S, "not a byte for 10 s"),
        (stalling, 27 + IDLE_S, "not a byte for 10 s"),
        (dripping, TIMEOUT_S, "not finished after 60 s"),
        (slow_but_honest, 54, ""),
        (late_to_connect, 99 + 63, ""),
        (never_to_connect, IDLE_S, "not a byte for 10 s"),
        (thinking_aloud, 50, ""),
        (speaking_then_pinging, IDLE_S, "not a byte for 10 s"),
        (uploading, 59, ""),
        (taking_what_was_written, 59, ""),
    ],
)
def test_what_ends_an_attempt(peer: Peer, seconds: float, told: str) -> None:
    """Silence and the deadline, counted from the connection; not slowness, thinking, or a body on its way out."""
    ended_s, reason = ended_after(peer)
    assert reason == told
    assert seconds <= ended_s <= seconds + 1.1


def test_a_loop_that_is_held_up_is_not_the_peers_silence() -> None:
    """Whoever blocked the loop for a minute, or sent the machine to sleep, ends no attempt by it."""

    async def peer(watch: Watch, attempt: Attempt) -> None:
        content = answering(attempt)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await asyncio.sleep(5)
            loop._virtual.now_s += TIMEOUT_S  # type: ignore[attr-defined]  # kit.virtual's clock
            await asyncio.sleep(2)
            content.total_bytes += 1
        del watch

    _, told = ended_after(peer)
    assert told == ""


@pytest.mark.parametrize(
    ("hows", "after_s", "answered", "stale"),
    [
        (["kept"], 0.1, False, True),
        (["kept"], 6.0, False, False),
        (["kept"], 0.1, True, False),
        (["fresh"], 0.1, False, False),
        (["opening", "fresh", "kept"], 0.1, False, False),  # as a connector tells it: made, then had
        ([], 0.1, False, False),
    ],
)
def test_which_connections_were_stale(hows: list[How], after_s: float, answered: bool, stale: bool) -> None:  # noqa: FBT001  (columns of the table)
    """One that was kept, and broke soon, before a byte of the answer: nobody has read the request."""

    async def scene() -> bool:
        watch = Watch(TIMEOUT_S, IDLE_S)
        watch.start()
        attempt = watch.begin()
        for how in hows:
            watch.connected(how)
        if answered:
            answering(attempt)
        await asyncio.sleep(after_s)
        watch.end(attempt)
        watch.stop()
        return attempt.was_stale(asyncio.get_running_loop().time())

    assert run(scene()) is stale


def test_a_stop_is_not_taken_for_a_timeout() -> None:
    """An attempt that expires while its run is stopped belongs to the stop."""

    async def scene() -> bool:
        watch = Watch(TIMEOUT_S, IDLE_S)
        watch.start()
        outlived = True

        async def attempt() -> None:
            nonlocal outlived
            made = watch.begin()
            watch.connected("kept")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                outlived = made.outlived()
                raise
            finally:
                watch.end(made)

        task = asyncio.create_task(attempt())
        await asyncio.sleep(0)
        [made] = watch._attempts
        made.look(asyncio.get_running_loop().time() + 99, TIMEOUT_S, IDLE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        watch.stop()
        return outlived or not task.cancelled()

    assert run(scene()) is False
