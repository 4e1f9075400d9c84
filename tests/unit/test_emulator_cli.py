"""`batchrouter emulate` as a process: what it prints, how it serves, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batchrouter.cli import emulate
from batchrouter.emulator import FAULTS, MODELS
from batchrouter.emulator.limits import KINDS

COMMAND = [sys.executable, "-m", "batchrouter", "emulate"]


@contextmanager
def emulating(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The process, and the variables of the two lines it prints."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        told = [line.removeprefix("export ").strip().partition("=") for line in lines]
        assert all(line.startswith("export ") for line in lines), process.communicate()
        yield process, {name: value for name, _, value in told}
    finally:
        process.kill()
        process.communicate()


def posted(told: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    request = urllib.request.Request(
        f"{told['WORLDROUTER_BASE_URL']}/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {told['WORLDROUTER_API_KEY']}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, dict(reply.headers), json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.load(error)


QUESTION = {"model": "my-model", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_it_is_told_to_end(number: signal.Signals, code: int) -> None:
    """Two lines to paste, limits and models as given, a clean end without a word on stderr."""
    with emulating("--model", "my-model", "--rpm", "1", "--limit-kind", "fixed", "--window", "1m") as (process, told):
        assert posted(told, QUESTION)[0] == 200
        status, headers, _ = posted(told, QUESTION)
        assert status == 429
        assert 1 <= int(headers["retry-after"]) <= 60
        assert posted(told, {**QUESTION, "model": "gpt-5.4"})[0] == 400
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_options_reach_the_endpoint() -> None:
    """Credits, chance and headers."""
    options = ("--model", "my-model", "--fault", "retry_after=soon=1", "--no-headers", "--credits", "0", "--seed", "5")
    with emulating(*options) as (_, told):
        assert posted(told, QUESTION)[0] == 402
    with emulating(*options[:4], "--seed", "5") as (_, again):
        assert again["WORLDROUTER_API_KEY"] == told["WORLDROUTER_API_KEY"]
        status, headers, _ = posted(again, QUESTION)
        assert (status, headers["retry-after"]) == (429, "soon")


def test_a_busy_port_is_one_line_that_says_what_to_do() -> None:
    """Exit 2, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr
    assert "--port 0" in done.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--fault", "none=0.5"], "none"),
        (["--fault", "status_500"], "NAME=SHARE"),
        (["--fault", "status_500=2"], "between 0 and 1"),
        (["--latency", "soon"], "duration"),
        (["--limit-kind", "leaky"], "token-bucket"),
    ],
)
def test_a_wrong_option_is_told_and_nothing_starts(options: list[str], word: str) -> None:
    """Exit 2, with what was expected."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_are_listed_and_help_has_an_example() -> None:
    """Every fault on a line of its own; the help shows what to type."""
    listed = subprocess.run([*COMMAND, "--list-faults"], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(FAULTS)
    told = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "batchrouter emulate --latency 80ms --rpm 600" in told.stdout


def test_it_serves_on_when_nobody_reads_what_it_prints() -> None:
    """Standard output is a pipe without a reader: the endpoint is there all the same, and ends cleanly."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen([*COMMAND, "--port", str(port)], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    try:
        for _ in range(400):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_emulator/stats", timeout=5) as reply:
                    assert reply.status == 200
                break
            except urllib.error.URLError:
                assert process.poll() is None
                signal.sigtimedwait([], 0.05)
        process.terminate()
        assert process.wait(20) == 143
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_the_help_names_what_there_is() -> None:
    """The lists that the command repeats, so that help loads no emulator, are the emulator's own."""
    assert ", ".join(MODELS) == emulate._DEFAULT_MODELS
    assert emulate._KINDS == KINDS
