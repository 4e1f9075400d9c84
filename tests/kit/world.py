"""The command as its users have it: a subprocess, a run directory, and an emulator on loopback beside it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchrouter.emulator import Behaviour, Emulator

PATIENCE_S = 60.0


class Served:
    """An emulator that runs in a thread of its own. Its attributes are read and set from the test's thread."""

    def __init__(self, emulator: Emulator, loop: asyncio.AbstractEventLoop) -> None:
        self.emulator = emulator
        self._loop = loop

    def call(self, action: Callable[[Emulator], Any]) -> Any:
        """Do something to the emulator on its own loop."""

        async def on_loop() -> Any:
            return action(self.emulator)

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(PATIENCE_S)

    @property
    def asked(self) -> int:
        """How many chat completions were asked for."""
        return self.emulator.stats.by_path["/v1/chat/completions"]

    @property
    def environment(self) -> dict[str, str]:
        return {"WORLDROUTER_BASE_URL": self.emulator.base_url, "WORLDROUTER_API_KEY": self.emulator.key}


@contextmanager
def serving(behaviour: Behaviour | None = None) -> Iterator[Served]:
    """An emulator in a thread, until the block ends."""
    started: list[Served] = []
    ready, finish = threading.Event(), []

    async def serve() -> None:
        async with Emulator(behaviour) as emulator:
            over = asyncio.Event()
            finish.append((asyncio.get_running_loop(), over))
            started.append(Served(emulator, asyncio.get_running_loop()))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield started[0]
    finally:
        loop, over = finish[0]
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)


def request_row(number: int, content: str | None = None, **body: Any) -> dict[str, Any]:
    """An OpenAI Batch row that asks something only this row asks."""
    messages = [{"role": "user", "content": content or f"question {number}"}]
    fields = {"model": "gpt-5.4", "messages": messages, **body}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": fields}


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each strict JSON and ended by a newline."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def command(*arguments: str | Path, dev_mode: bool = False) -> list[str]:
    mode = ["-X", "dev"] if dev_mode else []
    return [sys.executable, *mode, "-m", "batchrouter", *map(str, arguments)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that batchrouter reads, and `extra`."""
    names = ("BATCHROUTER_", "WORLDROUTER_", "OPENAI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(names)} | dict(extra or {})


def run(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: bytes = b"", dev_mode: bool = False,
    patience_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run the command to its end."""
    done = subprocess.run(
        command(*arguments, dev_mode=dev_mode), cwd=cwd, env=environment(env), input=stdin, capture_output=True,
        timeout=patience_s, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    )


@contextmanager
def running(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it is ended with the block if it has not ended by itself."""
    process = subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


def wait_until(condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Wait for something that another process does; fails when it does not."""
    limit = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def has_lines(path: Path, least: int) -> bool:
    return lines_in(path) >= least


def check_answers(directory: Path, rows: Iterable[Mapping[str, Any]], served: Served) -> None:
    """Every row is answered exactly once, and by the answer to its own question."""
    found = read_jsonl(directory / "results.jsonl")
    by_id = {result["custom_id"]: result for result in found}
    wanted = {row["custom_id"]: row["body"] for row in rows}
    assert len(found) == len(by_id)
    assert by_id.keys() == wanted.keys()
    for custom_id, body in wanted.items():
        expected = served.emulator.answer({**body, "stream": False})
        assert by_id[custom_id]["response"]["body"]["choices"] == expected["choices"]
