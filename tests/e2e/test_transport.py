"""The network at its worst: what a request ends in, how long that takes, and what it may cost."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from kit.hostile import KEY, Heard, Hostile, Step, hostile, http, opened, piece, right
from kit.scripted import request
from kit.world import PATIENCE_S, command, environment, read_jsonl, request_row, run, running, serving, write_jsonl

from batchrouter.emulator import Behaviour, Latency
from batchrouter.keys import Secret
from batchrouter.records import Fault, Reply, Request
from batchrouter.transport import Transport

MIB = 2**20
BOMB = gzip.compress(b" " * 16 * MIB) * 64  # a GiB, in a MiB of gzip members


def transport(base_url: str, **options: Any) -> Transport:
    defaults = {"concurrency": 32, "timeout_s": 30.0, "idle_timeout_s": 20.0, "max_response_bytes": 3 * MIB}
    return Transport(base_url, Secret(KEY), **(defaults | options))


def sent(base_url: str, *requests: Request, at_once: bool = False, **options: Any) -> list[Reply | Fault]:
    """What comes of requests, one after the other or all at once."""

    async def scene() -> list[Reply | Fault]:
        async with transport(base_url, **options) as door:
            if at_once:
                return await asyncio.gather(*map(door.send, requests))
            return [await door.send(one) for one in requests]

    return asyncio.run(scene())


def asking(*names: str, **fields: Any) -> list[Request]:
    """A row for each name, which it says."""
    made = []
    for n, name in enumerate(names):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": name}], **fields}).encode()
        made.append(request(n, body=body, streamed=bool(fields.get("stream"))))
    return made


def by_name(table: dict[str, Callable[[Heard], Iterable[Step]]]) -> Callable[[Heard], Iterable[Step]]:
    return lambda heard: table[heard.said](heard)


def event(**choice: Any) -> bytes:
    return piece(
        b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, **choice}]}).encode() + b"\n\n"
    )


def told(answer: Reply | Fault) -> str:
    return f"{answer.status}" if isinstance(answer, Reply) else f"{answer.code}: {answer.message}"


# --- kept connections ------------------------------------------------------------------------------------------------


def test_a_stale_connection_is_replaced_at_once(tmp_path: Path) -> None:
    """The server leaves whenever a kept connection is used again: a single attempt a row is enough all the same."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(12)])
    ends = ["close", "reset"]
    with hostile(lambda heard: [ends[heard.connection % 2]] if heard.nth else [http(200, right(heard))]) as server:
        options = ("--max-attempts", "1", "--concurrency", "2")
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment, dev_mode=True)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "in.run/results.jsonl")
    assert [row["batchrouter"]["attempts"] for row in rows] == [1] * 12
    assert len(server.heard) > 12


def test_a_fresh_connection_that_breaks_is_an_attempt() -> None:
    """It was no stale one: the request may have been read, and is not sent again behind the back of the count."""
    with hostile(lambda _: ["close"]) as server:
        [answer] = sent(server.base_url, *asking("x"))
        assert told(answer) == "connection: the endpoint closed the connection without an answer"
        assert len(server.heard) == 1


@pytest.mark.parametrize("size", [0, 2 * MIB], ids=["by the wire", "by the session"])
@pytest.mark.parametrize("is_read", [True, False], ids=["read", "still at the socket"])
def test_an_answer_that_nobody_asked_for_is_nobodys(*, is_read: bool, size: int) -> None:
    """One too many comes while its connection is kept: the next row is asked on another, and gets its own answer. Who
    does that once may do it at any time, also when the next request has left: connections are used once from then on.
    """
    first, spoken = threading.Event(), threading.Event()

    def script(heard: Heard) -> Iterator[Step]:
        yield http(200, right(heard, f"to {heard.said[0]}"))
        if heard.said[0] == "a":
            assert first.wait(PATIENCE_S)
            yield http(200, right(heard, "unasked"))
            spoken.set()

    async def scene(base_url: str) -> list[str]:
        async with transport(base_url) as door:
            answers = []
            for one in asking("a", "b" * (size + 1), "c"):
                answers.append(await door.send(one))
                if not first.is_set():
                    first.set()
                    assert spoken.wait(PATIENCE_S)  # the loop stands still: what comes is not read
                    for _ in range(10 * is_read):
                        await asyncio.sleep(0)
            return [
                str(answer.body["choices"][0]["message"]["content"]) for answer in answers if isinstance(answer, Reply)
            ]

    with hostile(script) as server:
        assert asyncio.run(scene(server.base_url)) == ["to a", "to b", "to c"]
    last = (1, 1) if size and is_read else (2, 0)  # one closed to make room for the session's is not looked at
    assert [(heard.connection, heard.nth) for heard in server.heard] == [(0, 0), (1, 0), last]


@pytest.mark.parametrize("size", [0, 2 * MIB], ids=["by the wire", "by the session"])
@pytest.mark.parametrize("is_read", [True, False], ids=["read", "still at the socket"])
def test_a_server_that_says_it_is_tired_of_waiting_is_trusted(*, is_read: bool, size: int) -> None:
    """A 408 while a connection is kept is no answer to anything."""
    first, tired = threading.Event(), threading.Event()

    def script(heard: Heard) -> Iterator[Step]:
        yield http(200, right(heard))
        if heard.said == "a":
            assert first.wait(PATIENCE_S)
            yield http(408, b"{}", "connection: close")
            tired.set()
            yield "close"

    async def scene(base_url: str) -> None:
        async with transport(base_url) as door:
            for one in asking("a", "b" * (size + 1), "c"):
                answer = await door.send(one)
                assert isinstance(answer, Reply)
                first.set()
                assert tired.wait(PATIENCE_S)  # the loop stands still: what comes is not read
                for _ in range(10 * is_read):
                    await asyncio.sleep(0)

    with hostile(script) as server:
        asyncio.run(scene(server.base_url))
    assert [(heard.connection, heard.nth) for heard in server.heard] == [(0, 0), (1, 0), (1, 1)]


def test_a_server_that_answers_twice_is_found_out() -> None:
    """Both answers in one piece, to the first request: whatever comes after that is another connection's."""

    def script(heard: Heard) -> list[Step]:
        return [http(200, right(heard, f"to {heard.said}")) * (1 + (heard.said == "a"))]

    async def scene(base_url: str) -> list[str]:
        async with transport(base_url) as door:
            answers = [await door.send(one) for one in asking("a", "b", "c")]
            return [
                str(answer.body["choices"][0]["message"]["content"]) for answer in answers if isinstance(answer, Reply)
            ]

    with hostile(script) as server:
        assert asyncio.run(scene(server.base_url)) == ["to a", "to b", "to c"]
    assert [(heard.connection, heard.nth) for heard in server.heard] == [(0, 0), (1, 0), (2, 0)]


# --- time ------------------------------------------------------------------------------------------------------------

STOP = event(finish_reason="stop")
HELLO = event(delta={"content": "hello"})
PING = piece(b": ping\n\n")
DRIP: list[Step] = [piece(b"d"), 0.1]
PINGS: list[Step] = [PING, 0.1]
INTERIM: list[Step] = [b"HTTP/1.1 102 Processing\r\n\r\n", 0.1]
PAUSED_HELLO: list[Step] = [HELLO, 0.25]
PAUSED_PING: list[Step] = [PING, 0.25]
SLOW: dict[str, tuple[Callable[[Heard], Iterable[Step]], str]] = {
    "nothing": (lambda _: ["stall"], "timeout: not a byte for 1.2 s"),
    "headers for ever": (lambda _: [b"HTTP/1.1 200 OK\r\n", "stall"], "timeout: not a byte for 1.2 s"),
    "half a body": (lambda h: [http(200, right(h))[:-9], "stall"], "timeout: not a byte for 1.2 s"),
    "interim answers": (lambda _: INTERIM * 60, "timeout: not a byte for 1.2 s"),
    "a drip": (lambda _: [opened(), *DRIP * 80], "timeout: not finished after 3 s"),
    "words, then pings": (lambda _: [opened(), HELLO, *PINGS * 80], "timeout: not a byte for 1.2 s"),
    "slow and honest": (lambda _: [opened(), *PAUSED_HELLO * 6, STOP, piece(b"")], "200"),
    "thinking aloud": (lambda _: [opened(), *PAUSED_PING * 6, HELLO, STOP, piece(b"")], "200"),
    "whole, then silence": (lambda _: [opened(), HELLO, STOP, "stall"], "200"),
    "whole, then a reset": (lambda _: [opened(), HELLO, STOP, 0.2, "reset"], "200"),
    "whole, then a close": (lambda _: [opened(), HELLO, STOP, 0.2, "close"], "200"),
    "not whole, then a close": (lambda _: [opened(), HELLO, 0.2, "close"], "bad_response: the answer was cut short or broken"),
}  # fmt: skip


def test_slowness_is_no_fault_and_silence_is() -> None:
    """Each at once over real sockets: what the deadline ends, what silence ends, and what is waited for."""
    with hostile(by_name({name: script for name, (script, _) in SLOW.items()})) as server:
        answers = sent(server.base_url, *asking(*SLOW, stream=True), at_once=True, timeout_s=3.0, idle_timeout_s=1.2)
    assert dict(zip(SLOW, map(told, answers), strict=True)) == {name: end for name, (_, end) in SLOW.items()}
    for name, answer in zip(SLOW, answers, strict=True):
        if isinstance(answer, Reply):
            assert answer.body["choices"][0]["message"]["content"].startswith("hello"), name
            assert answer.ttft_s is not None


def test_waiting_for_a_connection_is_not_on_the_clock() -> None:
    """Four of 0.5 s through one connection, each allowed 1.2 s: the last one has waited longer than that."""
    with hostile(lambda heard: [0.5, http(200, right(heard))]) as server:
        answers = sent(server.base_url, *asking(*"abcd"), at_once=True, concurrency=1, timeout_s=1.2)
    assert list(map(told, answers)) == ["200"] * 4


@pytest.mark.parametrize("at_once", [False, True])
def test_large_and_small_bodies_share_their_connections(*, at_once: bool) -> None:
    """They go by different ways, over one connection here: neither waits for ever for what the other has kept."""
    names = ["small", "large" * MIB, "tiny", "huge" * MIB, "little"]
    with hostile(lambda heard: [http(200, right(heard))]) as server:
        answers = sent(server.base_url, *asking(*names), at_once=at_once, concurrency=1, max_response_bytes=30 * MIB)
    assert list(map(told, answers)) == ["200"] * 5
    assert server.connections == 1


def test_as_many_connections_as_requests_at_once() -> None:
    """Not a hundred, as the HTTP library would have it."""
    with serving(Behaviour(latency=Latency(0.5))) as served:
        requests = [request(n, body=json.dumps({**request_row(n)["body"]}).encode()) for n in range(150)]

        async def scene() -> list[Reply | Fault]:
            emulator = served.emulator
            options: Any = {"timeout_s": 30.0, "idle_timeout_s": 20.0, "max_response_bytes": MIB}
            async with Transport(emulator.base_url, Secret(emulator.key), concurrency=150, **options) as door:
                return await asyncio.gather(*map(door.send, requests))

        assert {told(answer) for answer in asyncio.run(scene())} == {"200"}
        assert served.emulator.stats.peak_in_flight == 150


# --- bodies ----------------------------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def packed(coding: str, pack: Callable[[bytes], bytes] = bytes) -> Callable[[Heard], Iterable[Step]]:
    return lambda h: [http(200, pack(json.dumps(right(h)).encode()), f"content-encoding: {coding}")]


TOO_LARGE = "bad_response: the answer is larger than 3145728 bytes (--max-response)"
NO_HTTP = "bad_response: the answer is no proper HTTP, or packed as nobody asked for (ClientResponseError)"
BODIES: dict[str, tuple[Callable[[Heard], Iterable[Step]], str]] = {
    "gzip": (packed("gzip", gzip.compress), "200"),
    "GZIP": (packed("GZIP", gzip.compress), "200"),
    "deflate": (packed("deflate", zlib.compress), "200"),
    "raw deflate": (packed("deflate", raw_deflate), "200"),
    "identity": (packed("identity"), "200"),
    "in name only": (packed("rot13"), "200"),
    "zstd": (packed("zstd", lambda _: b"\x28\xb5\x2f\xfd\x20\x02"), "bad_response: the answer is packed as zstd, which was not asked for"),
    "brotli": (packed("br", lambda _: b"\x0b\x02\x80abc\x03"), NO_HTTP),
    "bomb": (lambda _: [http(200, BOMB, "content-encoding: gzip")], TOO_LARGE),
    "bomb in a stream": (lambda _: [http(200, BOMB, "content-encoding: gzip", "content-type: text/event-stream")], TOO_LARGE),
    "bomb of a 500": (lambda _: [http(500, BOMB, "content-encoding: gzip")], "500"),
    "endless": (lambda _: [opened(kind="application/json"), *[piece(b" " * MIB)] * 64], TOO_LARGE),
    "interim": (lambda h: [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", http(200, right(h))], "200"),
    "switched": (lambda _: [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "close"], "101"),
    "two lengths": (lambda _: [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", "close"], NO_HTTP),
    "HTTP 0.9": (lambda _: [b'{"choices": []}', "close"], NO_HTTP),
    "zeroes": (lambda _: [b"\0" * 99, "close"], NO_HTTP),
    "odd bytes in headers": (lambda h: [http(200, right(h), "x-request-id: \xff\xfe", "retry-after: \xff")], "200"),
    "odd types": (lambda h: [http(200, right(h), "content-type: ;;;/")], "200"),
    "another charset": (lambda h: [http(200, right(h), "content-type: application/json; charset=utf-16")], "200"),
}  # fmt: skip


def test_bodies_and_their_packings() -> None:
    """Read right, refused in one line, or given up at the bound, whatever the label says."""
    with hostile(by_name({name: script for name, (script, _) in BODIES.items()})) as server:
        answers = sent(server.base_url, *asking(*BODIES))
    assert dict(zip(BODIES, map(told, answers), strict=True)) == {name: end for name, (_, end) in BODIES.items()}


def peak_kb(process: subprocess.Popen[str]) -> int:
    """The most memory that a process has had, as told until it ended."""
    most = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with suppress(OSError, IndexError):  # it has just ended
            most = max(most, int(status.read_text("utf-8").split("VmHWM:")[1].split()[0]))
        time.sleep(0.01)
    return most


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    """Forty of a GiB each, in answers, streams and errors: the process stays small."""
    kinds = ("bomb", "bomb in a stream", "bomb of a 500", "endless")
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, kinds[n % 4]) for n in range(40)])
    options = ("--max-response", "3MB", "--max-attempts", "1", "--max-outage", "1", "-q")
    with (
        hostile(by_name({name: script for name, (script, _) in BODIES.items()})) as server,
        running("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment) as process,
    ):
        most = peak_kb(process)
    assert process.returncode in {1, 5}
    assert 20_000 < most < 200_000


def test_an_answer_that_does_not_wait_for_the_body() -> None:
    """413 after the head alone, with 8 MB still to send: read as what it is."""
    with hostile(lambda _: [http(413, {"error": {"message": "too large"}}), "stall"], early=True) as server:
        [answer] = sent(server.base_url, *asking("x" * 8 * MIB))
    assert told(answer) == "413"


def test_a_stream_that_just_ends_needs_all_its_choices() -> None:
    """Of two that were asked for one came, and no [DONE]: no answer; with [DONE] it is what the endpoint has to say."""
    table: dict[str, Callable[[Heard], Iterable[Step]]] = {
        "ends": lambda _: [opened(), HELLO, STOP, piece(b"")],
        "says so": lambda _: [opened(), HELLO, STOP, piece(b"data: [DONE]\n\n"), piece(b"")],
    }
    with hostile(by_name(table)) as server:
        answers = sent(server.base_url, *asking(*table, stream=True, n=2))
    assert list(map(told, answers)) == ["bad_response: the stream ended with 1 of 2 choices", "200"]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """One request, and the place that it was sent to is told; not even to the same server."""
    with hostile(lambda _: [http(status, b"", "location: /v1/elsewhere")]) as server:
        [answer] = sent(server.base_url, *asking("x"))
        assert told(answer) == f"redirect: the endpoint redirects ({status}) to /v1/elsewhere"
        assert len(server.heard) == 1


# --- connections that cannot be had ----------------------------------------------------------------------------------


def test_what_cannot_be_reached_is_not_the_rows_doing() -> None:
    """Nobody listens, the name is unknown, the proxy is not there: told, and held against no row."""
    with hostile(lambda _: []) as server:
        port = server.port
    [refused] = sent(f"http://127.0.0.1:{port}/v1", *asking("x"))
    assert told(refused).startswith(f"connection: cannot connect to 127.0.0.1:{port}: ")
    [unknown] = sent("https://nowhere.invalid/v1", *asking("x"))
    assert told(unknown) == "connection: the name nowhere.invalid cannot be resolved"
    [proxy] = sent("https://127.0.0.1/v1", *asking("x"), proxy=f"http://127.0.0.1:{port}")
    assert told(proxy).startswith(f"connection: cannot connect to the proxy 127.0.0.1:{port}: ")
    for answer in (refused, unknown, proxy):
        assert isinstance(answer, Fault)
        assert not answer.reached


def test_an_endpoint_that_speaks_no_tls() -> None:
    """A web server without TLS under an https:// address will have none the next time: the run is to stop."""

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400))
        writer.close()

    async def scene() -> tuple[int, Reply | Fault]:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            async with transport(f"https://127.0.0.1:{port}/v1") as door:
                return port, await door.send(asking("x")[0])

    port, answer = asyncio.run(scene())
    assert told(answer) == f"tls: no TLS connection with 127.0.0.1:{port}: wrong version number"


def test_plain_http_to_another_machine_is_refused(tmp_path: Path) -> None:
    """Exit 2 before anything is sent, naming the host and the way out."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(0)])
    away = {"WORLDROUTER_BASE_URL": "http://192.0.2.1/v1", "WORLDROUTER_API_KEY": KEY}
    done = run("run", "in.jsonl", cwd=tmp_path, env=away)
    assert done.returncode == 2
    assert "192.0.2.1" in done.stderr
    assert "--allow-insecure" in done.stderr
    assert not (tmp_path / "in.run").exists()


@pytest.mark.parametrize(("limit", "options", "code"), [(64, ("--concurrency", "64"), 2), (100, (), 0)])
def test_few_open_files(tmp_path: Path, limit: int, options: tuple[str, ...], code: int) -> None:
    """Too few for what was asked: exit 2 with the figures and the way out. Without a wish, as many as there is room for."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(100)])
    with serving() as served:
        done = subprocess.run(
            ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command("run", "in.jsonl", *options)],
            cwd=tmp_path, env=environment(served.environment), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        told = "64 requests at once need 128 open files, and this process may have 64: raise the limit (ulimit -n 128)"
        assert f"{told}, or lower --concurrency" in done.stderr
        assert served.asked == 0


# --- TLS and proxies -------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of our own, trusted by nobody but who is given its file."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def server(self, name: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(name, **options).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def test_a_certificate_that_nobody_trusts_stops_the_run_at_once(tmp_path: Path, authority: Authority) -> None:
    """Exit 5 with the reason and the way out, all rows pending, and no key sent; with --ca-file all are answered."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(30)])
    with hostile(lambda heard: [http(200, right(heard))], tls=authority.server()) as server:
        done = run("run", "in.jsonl", cwd=tmp_path, env=server.environment, dev_mode=True)
        assert done.returncode == 5
        assert "TLS certificate is not trusted: unable to get local issuer certificate" in done.stderr
        assert "--ca-file" in done.stderr
        assert "30 pending" in done.stderr
        assert server.heard == []
        trusting = ("--ca-file", str(authority.file))
        done = run("run", "in.jsonl", *trusting, cwd=tmp_path, env=server.environment, dev_mode=True)
        assert done.returncode == 0, done.stderr
        assert len(server.heard) == 30


def test_certificates_of_others_and_of_the_past(authority: Authority) -> None:
    """Signed by whom we trust, and yet not for this host, or not any more."""
    past = datetime.now(UTC) - timedelta(days=1)
    found = []
    for context in (authority.server("other.invalid"), authority.server(not_after=past)):
        with hostile(lambda _: [], tls=context) as server:
            [answer] = sent(server.base_url, *asking("x"), ca_file=str(authority.file))
            found.append(told(answer))
            assert server.heard == []
    reason = "tls: the endpoint's TLS certificate is not trusted: "
    assert found == [
        f"{reason}IP address mismatch, certificate is not valid for '127.0.0.1'.",
        f"{reason}certificate has expired",
    ]


def test_a_proxy_is_used_where_it_is_named_and_nowhere_else(tmp_path: Path) -> None:
    """With --proxy every request goes there; what the environment and ~/.netrc say of proxies and logins is nothing."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(3)])
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n", "utf-8")
    with hostile(lambda heard: [http(200, right(heard))]) as server:
        dead = "http://127.0.0.1:1"
        around = {"HOME": str(tmp_path), "http_proxy": dead, "https_proxy": dead, "HTTP_PROXY": dead, "ALL_PROXY": dead}
        done = run("run", "in.jsonl", "-o", "direct", cwd=tmp_path, env={**server.environment, **around})
        assert done.returncode == 0, done.stderr
        away = {**server.environment, "WORLDROUTER_BASE_URL": f"{dead}/v1"}
        done = run("run", "in.jsonl", "--proxy", f"http://me:secret@127.0.0.1:{server.port}", cwd=tmp_path, env=away)
        assert done.returncode == 0, done.stderr
        assert [heard.path for heard in server.heard[3:]] == [f"{dead}/v1/chat/completions"] * 3
        assert all(heard.headers["authorization"] == f"Bearer {KEY}" for heard in server.heard)
        assert "proxy-authorization" not in server.heard[0].headers
        login = b64encode(b"me:secret").decode()
        assert {heard.headers["proxy-authorization"] for heard in server.heard[3:]} == {f"Basic {login}"}
    for path in (tmp_path / "in.run").iterdir():
        assert b"secret" not in path.read_bytes()


def test_through_a_proxy_the_key_travels_inside_the_tunnel(authority: Authority) -> None:
    """CONNECT tells the proxy the place and nothing else; a proxy that refuses is nobody's row's fault."""
    heads: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if len(heads) > 1:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            writer.close()
            return
        host, port = heads[0].split(b" ")[1].decode().split(":")
        inward, outward = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, outward), copy(inward, writer))

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()

    async def scene(server: Hostile) -> list[Reply | Fault]:
        listener = await asyncio.start_server(relay, "127.0.0.1", 0)
        proxy = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        answers = []
        for one in asking("first", "second"):
            own = {"proxy": proxy, "ca_file": str(authority.file), "headers": {"X-Own": "of-ours-alone"}}
            async with transport(server.base_url, **own) as door:
                answers.append(await door.send(one))
        listener.close()
        return answers

    with hostile(lambda heard: [http(200, right(heard))], tls=authority.server()) as server:
        first, second = asyncio.run(scene(server))
        assert server.heard[0].headers["authorization"] == f"Bearer {KEY}"
        assert server.heard[0].headers["x-own"] == "of-ours-alone"
    assert told(first) == "200"
    assert told(second) == "connection: the proxy refused: 407"
    assert isinstance(second, Fault)
    assert not second.reached
    assert all(head.startswith(b"CONNECT ") for head in heads)
    assert not any(secret in head for head in heads for secret in (KEY.encode(), b"of-ours-alone"))
