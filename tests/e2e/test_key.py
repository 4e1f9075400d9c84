"""A server that repeats the key, in every place and spelling it can find: the key is in no file and no output."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from kit.hostile import Heard, Step, hostile, http, opened, piece, right
from kit.world import read_jsonl, request_row, run, running, wait_until, write_jsonl

from batchrouter.cli.models import command

KEY = "sk-hostile/0123+4567=89abcdef"
HALF = KEY[:14]  # half a key is a leak too
ESCAPED = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
SLASHED = KEY.replace("/", "\\/")
FAR = "x" * 280  # so far that a message is cut within what follows
STREAM = {"stream": True}


def refused(message: str, status: int = 400, **error: Any) -> bytes:
    return http(status, {"error": {"message": message, "type": "t", **error}})


def events(*deltas: str) -> list[Step]:
    """A stream with a delta for each, in an HTTP chunk each."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": delta}}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [opened(), *(piece(b"data: " + json.dumps(chunk).encode() + b"\n\n") for chunk in chunks), piece(b"")]


def spelt(heard: Heard, text: str) -> bytes:
    """A right answer whose content is that JSON text, as it stands."""
    return http(200, json.dumps(right(heard, "<<here>>")).encode().replace(b"<<here>>", text.encode()))


PAGE = f"<html><body><h1>502</h1>{'.' * 30}Authorization: Bearer {KEY}</body></html>".encode()
ANSWERED: dict[str, Callable[[Heard], Iterable[Step]]] = {
    "content": lambda h: [http(200, right(h, f"you are {KEY}"))],
    "escaped": lambda h: [spelt(h, ESCAPED)],
    "slashed": lambda h: [spelt(h, SLASHED)],
    "arguments": lambda h: [http(200, right(h, json.dumps({"key": json.dumps(KEY)})))],
    "a name": lambda h: [http(200, right(h, **{KEY: KEY}))],
    "headers": lambda h: [http(200, right(h), f"x-request-id: {KEY}", f"x-{'y' * 9}: Bearer {KEY}")],
    "the id": lambda h: [http(200, right(h, id=KEY))],
    "a stream, sign by sign": lambda _: events(*KEY),
    "a stream, in two": lambda _: events("you are " + KEY[:9], KEY[9:]),
}
FAILED: dict[str, Callable[[Heard], Iterable[Step]]] = {
    "message": lambda _: [refused(f"bad key {KEY}")],
    "message, escaped": lambda _: [http(400, b'{"error": {"message": "' + ESCAPED.encode() + b'"}}')],
    "message, cut": lambda _: [refused(FAR + KEY)],
    "message, cut and escaped": lambda _: [http(422, f'{{"error": {{"message": "{FAR}{ESCAPED}"}}}}'.encode())],
    "code": lambda _: [refused("no", code=KEY)],
    "detail": lambda _: [http(422, {"detail": [{"loc": [KEY], "msg": f"{KEY} is wrong"}]})],
    "text": lambda _: [http(404, KEY.encode() * 100, "content-type: text/plain")],
    "page": lambda _: [http(403, PAGE, "content-type: text/html")],
    "page in a stream": lambda _: [http(200, PAGE, "content-type: text/html")],
    "page in an answer": lambda _: [http(200, PAGE)],
    "error in a stream": lambda _: [opened(), piece(b'data: {"error": {"code": 400, "message": "%b"}}\n\n' % KEY.encode()), "close"],
    "location": lambda _: [http(307, b"", f"location: https://127.0.0.1/?key={KEY}")],
    "location, quoted": lambda _: [http(302, b"", f"location: /?key={quote(KEY, safe='')}")],
    "location, cut": lambda _: [http(301, b"", f"location: /{'x' * 185}{KEY}")],
    "status line": lambda _: [f"HTTP/1.1 {KEY}\r\n\r\n".encode(), "close"],
    "header line": lambda _: [f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(), "close"],
    "chunk size": lambda _: [opened(kind="application/json"), f"{KEY}\r\n".encode(), "close"],
}  # fmt: skip
SCRIPTS = ANSWERED | FAILED


def script(heard: Heard) -> Iterable[Step]:
    return SCRIPTS[heard.said](heard)


def check_nothing_shows(folder: Path, *outputs: str) -> None:
    for output in outputs:
        assert HALF not in output
        assert quote(HALF, safe="") not in output
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        assert HALF.encode() not in content, path
        assert ESCAPED[:60].encode() not in content, path


@pytest.mark.parametrize("options", [("--progress", "json"), ("-v", "--stream", "--check-json")])
def test_the_key_shows_nowhere(tmp_path: Path, options: tuple[str, ...]) -> None:
    """In bodies, headers, errors, streams, pages, addresses and broken HTTP: it is neither kept nor told."""
    rows = [
        {**request_row(n, name, **(STREAM if "stream" in name else {})), "custom_id": name}
        for n, name in enumerate(SCRIPTS)
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    catalogue = http(200, {"data": [{"id": KEY, "owned_by": KEY}]})
    with hostile(script, catalogue=catalogue) as server:
        environment = {**server.environment, "WORLDROUTER_API_KEY": KEY}
        done = run("run", "in.jsonl", "--max-attempts", "1", *options, cwd=tmp_path, env=environment, dev_mode=True)
        assert done.returncode == 1, done.stderr
        assert all(heard.headers["authorization"] == f"Bearer {KEY}" for heard in server.heard)
    check_nothing_shows(tmp_path / "in.run", done.stdout, done.stderr)
    assert {row["custom_id"] for row in read_jsonl(tmp_path / "in.run/results.jsonl")} == set(ANSWERED)
    assert {row["custom_id"] for row in read_jsonl(tmp_path / "in.run/errors.jsonl")} == set(FAILED)
    assert "[the key]" in done.stdout + done.stderr


@pytest.mark.parametrize("status", [401, 503])
def test_nor_in_what_stops_a_run_or_holds_it_up(tmp_path: Path, status: int) -> None:
    """The reason of a stop, and of an outage, is told and kept without it."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(30)])
    body = f'{{"error": {{"message": "{KEY} and {ESCAPED} and {FAR}{ESCAPED}", "code": "{ESCAPED}"}}}}'.encode()
    with hostile(lambda _: [http(status, body, f"x-key: {KEY}")]) as server:
        environment = {**server.environment, "WORLDROUTER_API_KEY": KEY}
        limits = ("--max-wait", "0.2", "--max-outage", "0.2")
        done = run("run", "in.jsonl", "-v", *limits, cwd=tmp_path, env=environment, dev_mode=True)
    assert done.returncode in {3, 4, 5}, done.stderr
    check_nothing_shows(tmp_path / "in.run", done.stdout, done.stderr)


def test_nor_when_the_process_crashes(tmp_path: Path) -> None:
    """Aborted in the middle of its requests, with Python's own account of the crash on stderr."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(30)])
    with hostile(lambda _: ["stall"]) as server:
        environment = {**server.environment, "WORLDROUTER_API_KEY": KEY, "PYTHONFAULTHANDLER": "1"}
        with running("run", "in.jsonl", "-v", cwd=tmp_path, env=environment) as process:
            wait_until(lambda: len(server.heard) >= 8)
            process.send_signal(signal.SIGABRT)
            stdout, stderr = process.communicate(timeout=30)
    assert "most recent call first" in stderr
    check_nothing_shows(tmp_path / "in.run", stdout, stderr)


@pytest.mark.parametrize(
    ("catalogue", "option"),
    [
        (http(200, {"data": [{"id": f"model-{KEY}", "owned_by": KEY}]}), "--json"),
        (refused(f"no {KEY}", 401), "--no-stream"),
    ],
)
def test_nor_in_the_catalogue(catalogue: bytes, option: str) -> None:
    """`models` shows the endpoint's list, and its errors, without it."""
    with hostile(script, catalogue=catalogue) as server:
        environ = {"WORLDROUTER_BASE_URL": server.base_url, "WORLDROUTER_API_KEY": KEY}
        done = CliRunner().invoke(command, [option], env=environ)
    assert HALF not in done.output
    assert "[the key]" in done.output


def test_a_word_in_place_of_a_key_is_no_secret(tmp_path: Path) -> None:
    """What local endpoints are given is not taken out of the answers that hold it."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(0, "this is a test")])
    with hostile(lambda heard: [http(200, right(heard))]) as server:
        done = run("run", "in.jsonl", cwd=tmp_path, env={**server.environment, "WORLDROUTER_API_KEY": "test"})
    assert done.returncode == 0, done.stderr
    [row] = read_jsonl(tmp_path / "in.run/results.jsonl")
    assert row["response"]["body"]["choices"][0]["message"]["content"] == "this is a test"
