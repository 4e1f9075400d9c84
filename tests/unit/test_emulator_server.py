"""The emulator over loopback: every fault on the wire, places and queues, and an address that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from batchrouter.emulator import FAULTS, Behaviour, Emulator, Latency, Limits

# Parameters that keep the large small, and the slow quick.
SMALL = {
    "huge_500": "300000",
    "huge_body": "3000000",
    "gzip_bomb": "3000000",
    "slow_drip": "0",
    "sse_big_event": "200000",
    "deep_nesting": "5000",
}
SILENT = {name for name in FAULTS if "stall" in name or name in {"sse_pings_for_ever", "endless_body"}}


def question(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4", "messages": [{"role": "user", "content": text}], **more}


@asynccontextmanager
async def client(emulator: Emulator) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[tuple[int, bytes]]]]:
    """A function that asks and gives status and body; it follows nothing and keeps connections."""
    headers = {"Authorization": f"Bearer {emulator.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def ask(body: dict[str, Any]) -> tuple[int, bytes]:
            url = f"{emulator.base_url}/chat/completions"
            async with session.post(url, data=orjson.dumps(body), allow_redirects=False) as reply:
                return reply.status, await reply.read()

        yield ask


async def raw_answer(emulator: Emulator, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which one request has been sent."""
    host, port = emulator.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    send(writer, emulator, body)
    return reader, writer


def send(writer: asyncio.StreamWriter, emulator: Emulator, body: dict[str, Any]) -> None:
    data = orjson.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.key}\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))


async def in_flight(emulator: Emulator, count: int) -> None:
    """Waits until so many requests are being answered."""
    for _ in range(2000):
        if emulator.stats.in_flight == count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{emulator.stats.in_flight} in flight, not {count}")


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head + await reader.readexactly(int(length.split(b":")[1]))


PLAYED = [
    pytest.param(name, streamed, id=f"{name}-{'streamed' if streamed else 'plain'}")
    for name, fault in FAULTS.items()
    for streamed in (False, True)
    if not name.startswith("status_") and (streamed or not fault.streams_only)
]


@pytest.mark.parametrize(("name", "streamed"), PLAYED)
def test_the_emulator_survives_each_of_its_faults(name: str, *, streamed: bool) -> None:
    """Whatever the client makes of it, the next request is answered rightly and nothing is left in flight."""
    parameter = f"={SMALL[name]}" if name in SMALL else ""
    row = question(f"Héllo 日本 [[fault:{name}{parameter}]]", stream=streamed, n=2)

    async def scene() -> None:
        async with Emulator() as emulator:
            async with client(emulator) as ask:
                try:
                    async with asyncio.timeout(0.6 if name in SILENT else 20):
                        status, _ = await ask(row)
                    assert name not in SILENT
                    assert status == 200 or not FAULTS[name].usable
                except TimeoutError:
                    assert name in SILENT
                except aiohttp.ClientError:
                    assert not FAULTS[name].usable
            async with client(emulator) as ask:
                assert await ask(question()) == (200, orjson.dumps(emulator.answer(question())))
            assert emulator.stats.by_fault == {name: 1}
            await in_flight(emulator, 0)

    asyncio.run(asyncio.wait_for(scene(), 30))


LOOPS: list[Any] = [asyncio.new_event_loop]
try:
    import uvloop
except ImportError:  # the extra is not installed
    pass
else:
    LOOPS.append(uvloop.new_event_loop)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_reset_is_a_reset(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """RST reaches the client as ECONNRESET, before any byte and after some, on either event loop."""

    async def scene() -> None:
        async with Emulator() as emulator:
            for name in ("reset_before_headers", "reset_mid_headers", "reset_mid_body"):
                reader, writer = await raw_answer(emulator, question(f"[[fault:{name}]]"))
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
            async with client(emulator) as ask:
                assert await ask(question()) == (200, orjson.dumps(emulator.answer(question())))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scene())


def test_a_kept_connection_dies_at_the_moment_of_its_reuse() -> None:
    """Closed, reset or swallowed: the victim is the next request, which is counted as dropped and not let in."""

    async def scene() -> None:
        async with Emulator() as emulator:
            names = ["stale_keepalive", "stale_keepalive_reset", "half_open_keepalive"]
            for count, name in enumerate(names, 1):
                reader, writer = await raw_answer(emulator, question(f"[[fault:{name}]]"))
                assert (await read_answer(reader)).startswith(b"HTTP/1.1 200")
                send(writer, emulator, question())
                try:
                    async with asyncio.timeout(0.1):
                        assert await reader.read() == b""
                    assert name == "stale_keepalive"
                except ConnectionResetError:
                    assert name != "half_open_keepalive"  # FIN and unread bytes may show as a reset as well
                except TimeoutError:
                    assert name == "half_open_keepalive"
                assert emulator.stats.dropped == count
                writer.close()
            assert emulator.stats.accepted == 3

    asyncio.run(scene())


def test_the_bytes_of_malformed_answers() -> None:
    """What goes onto the wire is as wrong as its name says."""

    async def first(emulator: Emulator, name: str) -> bytes:
        reader, writer = await raw_answer(emulator, question(f"[[fault:{name}]]"))
        data = await reader.read()
        writer.close()
        return data

    async def scene() -> None:
        async with Emulator() as emulator:
            assert (await first(emulator, "malformed_status_line")).startswith(b"HTPP/one OK")
            assert b"\r\ncontent-length: -" in await first(emulator, "negative_length")
            assert b"\r\n\r\nzz\r\n" in await first(emulator, "malformed_chunk_size")
            assert len(await first(emulator, "huge_header")) > 300_000
            assert (await first(emulator, "many_headers")).count(b"\r\n") > 1000
            short = await first(emulator, "short_body")
            head, body = short.split(b"\r\n\r\n")
            assert int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) > len(body) > 0

    asyncio.run(scene())


def test_requests_queue_for_places_in_order() -> None:
    """Two places and a queue: eight requests of 50 ms are all answered, two at a time, none refused."""

    async def scene() -> None:
        limits = Limits(max_concurrency=2, queue=True)
        async with Emulator(Behaviour(limits=limits, latency=Latency(0.05))) as emulator, client(emulator) as ask:
            loop = asyncio.get_running_loop()
            began = loop.time()
            replies = await asyncio.gather(*(ask(question(str(n))) for n in range(8)))
            assert [status for status, _ in replies] == [200] * 8
            assert loop.time() - began >= 0.2
            assert emulator.stats.peak_in_flight == 8

    asyncio.run(scene())


def test_a_client_that_leaves_gives_its_place_back() -> None:
    """Requests that are cancelled while served or queued hold no place afterwards."""

    async def scene() -> None:
        limits = Limits(max_concurrency=1, queue=True)
        async with Emulator(Behaviour(limits=limits, latency=Latency(30.0))) as emulator:
            async with client(emulator) as ask:
                left = [asyncio.ensure_future(ask(question(str(n)))) for n in range(4)]
                await in_flight(emulator, 4)
                for one in left:
                    one.cancel()
                await asyncio.gather(*left, return_exceptions=True)
            await in_flight(emulator, 0)
            emulator.latency = Latency()
            async with client(emulator) as ask:
                assert (await ask(question()))[0] == 200
            assert emulator.stats.by_status == {0: 4, 200: 1}

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_nobody_listens_during_a_refusing_outage() -> None:
    """Connections are refused, those there are end; afterwards the same address answers again."""

    async def scene() -> None:
        async with Emulator() as emulator, client(emulator) as ask:
            address = emulator.base_url
            assert (await ask(question()))[0] == 200
            emulator.outage(0.0, 0.2, "refused")
            await asyncio.sleep(0.05)
            with pytest.raises(aiohttp.ClientConnectionError):
                await ask(question())
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert (await ask(question()))[0] == 200
                        break
                    except aiohttp.ClientConnectionError:
                        await asyncio.sleep(0.02)
            assert emulator.base_url == address

    asyncio.run(scene())


def test_things_change_while_it_runs() -> None:
    """Key, credits, limits, faults and outages by method; an action after so many requests let in."""

    async def scene() -> None:
        async with Emulator(Behaviour(balance=0.0)) as emulator, client(emulator) as ask:
            assert (await ask(question()))[0] == 402
            emulator.top_up(100)
            assert (await ask(question()))[0] == 200
            emulator.when_accepted(3, emulator.revoke_key)
            assert [(await ask(question(str(n))))[0] for n in range(3)] == [200, 200, 401]
            emulator.key = emulator.key
            emulator.faults = {"status_503": 1.0}
            assert (await ask(question()))[0] == 503
            emulator.faults = {}
            emulator.limits = Limits(requests_per_minute=1)
            assert [(await ask(question()))[0] for _ in range(2)] == [200, 429]
            emulator.limits = Limits()
            emulator.outage(0.0, 60.0, "status_504")
            assert (await ask(question()))[0] == 504

    asyncio.run(scene())


def test_things_change_by_curl_too() -> None:
    """The control routes do what the methods do, and say what they do not know."""

    async def scene() -> None:
        async with Emulator() as emulator, client(emulator) as ask, aiohttp.ClientSession() as session:
            root = emulator.base_url.removesuffix("v1") + "_emulator/"

            async def change(name: str, **fields: Any) -> int:
                async with session.post(root + name, json=fields) as reply:
                    return reply.status

            assert await change("credits", set=1) == 200
            assert [(await ask(question()))[0] for _ in range(2)] == [200, 402]
            assert await change("credits", set=None) == 200
            assert await change("key", revoked=True) == 200
            assert (await ask(question()))[0] == 401
            assert await change("key", revoked=False) == 200
            assert await change("limits", requests_per_minute=1) == 200
            assert [(await ask(question()))[0] for _ in range(2)] == [200, 429]
            assert await change("limits", requests_per_minute=None) == 200
            assert await change("latency", median_s=0.01) == 200
            assert await change("faults", status_500=1.0) == 200
            assert (await ask(question()))[0] == 500
            assert await change("outage", duration_s=60) == 200
            assert (await ask(question()))[0] == 503
            for name, fields in (("limits", {"rpm": 5}), ("faults", {"none": 1}), ("outage", {})):
                assert await change(name, **fields) == 400
            assert await change("nothing") == 404
            async with session.get(root + "stats") as reply:
                counted = await reply.json()
            assert counted["by_status"] == {"200": 2, "401": 1, "402": 1, "429": 1, "500": 1, "503": 1}
            async with session.get(root + "faults") as reply:
                assert set(await reply.json()) == set(FAULTS)

    asyncio.run(scene())


def test_pipelined_and_closing_requests() -> None:
    """Two requests in one write are answered in order; `Connection: close` is heeded; a broken one gets 400."""

    async def scene() -> None:
        async with Emulator() as emulator:
            reader, writer = await raw_answer(emulator, question("one"))
            send(writer, emulator, question("two"))
            for text in ("one", "two"):
                assert (await read_answer(reader)).endswith(orjson.dumps(emulator.answer(question(text))))
            writer.write(b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 401")
            writer.close()
            reader, writer = await raw_answer(emulator, question())
            await read_answer(reader)
            writer.write(b"nonsense\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()

    asyncio.run(scene())


def test_the_journal_is_asked_by_body() -> None:
    """`row` finds a question again; without a journal it says how to have one."""

    async def scene() -> None:
        async with Emulator(Behaviour(journal=True)) as emulator, client(emulator) as ask:
            await ask(question())
            await ask(question(stream=True))
            row = emulator.row(question())
            assert (row.asked, row.accepted, row.answered) == (2, 2, 2)
            assert emulator.row(question("never")).asked == 0
        with pytest.raises(ValueError, match="journal"):
            Emulator().row(question())

    asyncio.run(scene())


def test_an_error_in_the_body_passes_through() -> None:
    """What fails inside `async with` arrives as it is, also while requests are being answered."""

    async def scene() -> None:
        async with Emulator(Behaviour(latency=Latency(30.0))) as emulator, client(emulator) as ask:
            asked = asyncio.ensure_future(ask(question()))
            await in_flight(emulator, 1)
            asked.cancel()
            raise LookupError("the test's own")

    with pytest.raises(LookupError):
        asyncio.run(scene())


def test_a_taken_port_is_an_os_error() -> None:
    """The second emulator on a port does not start."""

    async def scene() -> None:
        async with Emulator() as emulator:
            port = int(emulator.base_url.removesuffix("/v1").rpartition(":")[2])
            with pytest.raises(OSError, match="address"):
                await Emulator(port=port).__aenter__()

    asyncio.run(scene())
