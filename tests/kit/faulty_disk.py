"""A run whose Nth step on the disk fails or stops dead, for every N; then recovery, which may be cut short as well.

Run as a program: `python -m kit.faulty_disk INPUT FOLDER KEY BASE_URL MODE FIRST EVERY [ENDED]`: steps FIRST, FIRST +
EVERY and so on are struck. It prints a JSON line a case. Each case is a forked child, so that nothing is imported twice and a child may die as if by SIGKILL. With ENDED, a
run directory whose rows have ended, each case is a start on a copy of it that asks failed and changed rows again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import batchrouter.endpoints  # noqa: F401  (a run loads it late: each child would, for itself)
from batchrouter.audit import audit
from batchrouter.batch import run_batch
from batchrouter.errors import BatchrouterError
from batchrouter.keys import Secret
from batchrouter.settings import Settings

DEAD = 9


class Steps:
    """Counts what a process does to a disk, and strikes at the Nth step (0: never)."""

    def __init__(self, strike_at: int, mode: str) -> None:
        self.count = 0
        self._strike_at = strike_at
        self._mode = mode
        self._writes = os.write

    def install(self) -> None:
        """Put the counter before the functions of `os` and `sqlite3` that change a disk."""
        os.write = self._write  # type: ignore[assignment]
        for name in ("fsync", "ftruncate", "replace", "rename", "unlink", "truncate"):
            setattr(os, name, self._counted(name, getattr(os, name), self._os_error))
        connect = sqlite3.connect

        class Counted(sqlite3.Connection):
            def __init__(inner, *args: Any, **kwargs: Any) -> None:  # noqa: N805  (`self` is the counter)
                super().__init__(*args, **kwargs)

        for name in ("execute", "executemany", "executescript"):
            setattr(Counted, name, self._counted(name, getattr(sqlite3.Connection, name), self._sqlite_error))
        sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Counted, **kwargs)  # type: ignore[assignment]

    def _is_struck(self) -> bool:
        self.count += 1
        return self.count == self._strike_at

    def _counted(self, name: str, real: Callable[..., Any], error: Callable[[], Exception]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if self._is_struck():
                if self._mode == "die":
                    os._exit(DEAD)
                if self._mode == "die-after":
                    real(*args, **kwargs)
                    os._exit(DEAD)
                raise error()
            return real(*args, **kwargs)

        step.__name__ = name
        return step

    def _write(self, fd: int, data: bytes) -> int:
        if self._is_struck():
            self._writes(fd, bytes(data)[: len(data) // 2])
            if self._mode == "die-after":
                self._writes(fd, bytes(data)[len(data) // 2 :])
            if self._mode != "fail":
                os._exit(DEAD)
            raise self._os_error()
        return self._writes(fd, data)

    @staticmethod
    def _os_error() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def _sqlite_error() -> sqlite3.Error:
        return sqlite3.OperationalError("database or disk is full")


def one_run(inputs: Path, directory: Path, settings: Settings, key: str, strike_at: int, mode: str) -> tuple[int, int]:
    """Run the batch in a child whose step `strike_at` is struck: its exit code (9: it died), and its steps."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        steps = Steps(strike_at, mode)
        steps.install()
        code = 99
        try:
            summary = asyncio.run(run_batch([str(inputs)], directory, settings, Secret(key)))
            code = summary.halt.exit_code if summary.halt else 1 if summary.tally.failed else 0
        except BatchrouterError as error:
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            steps._writes(writer, str(steps.count).encode())
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    counted = os.read(reader, 20)
    os.close(reader)
    return os.waitstatus_to_exitcode(status), int(counted or 0)


def lines_of(directory: Path, *names: str) -> list[bytes]:
    """The lines of some of its logs, together."""
    paths = [directory / f"{name}.jsonl" for name in names]
    return [line for path in paths if path.exists() for line in path.read_bytes().split(b"\n")[:-1]]


def main() -> None:
    inputs, folder, key, base_url, mode, start, every, *ended = sys.argv[1:]
    settings = Settings(base_url=base_url, concurrency=3, checkpoint_every=0.01, changed="rerun")
    struck_settings = replace(settings, retry=("all",)) if ended else settings
    source, scratch = Path(inputs), Path(folder)
    wanted = {json.loads(line)["custom_id"] for line in source.read_text("utf-8").splitlines()}
    paid = set(lines_of(Path(ended[0]), "results", "errors")) if ended else set()
    strike_at = int(start)
    while True:
        directory = scratch / f"{mode}-{strike_at}"
        if ended:
            shutil.copytree(ended[0], directory)
        first, steps = one_run(source, directory, struck_settings, key, strike_at, mode)
        struck = first == DEAD or mode == "fail"
        reached = not steps or strike_at <= steps
        second, _ = one_run(source, directory, settings, key, 1 + strike_at * 7 % 40, "die")
        last, _ = one_run(source, directory, settings, key, 0, mode)
        ids = [json.loads(line)["custom_id"] for line in lines_of(directory, "results", "errors")]
        kept = Counter(lines_of(directory, "results", "errors", "superseded"))
        found = audit(directory)
        case = {
            "step": strike_at, "exits": [first, second, last], "problems": found.problems,
            "lost": sorted(wanted - set(ids)), "doubled": len(ids) - len(set(ids)), "struck": struck and reached,
            "thrown_away": sum(kept[line] != 1 for line in paid),
        }  # fmt: skip
        print(json.dumps(case), flush=True)
        shutil.rmtree(directory)
        if not reached:
            return
        strike_at += int(every)


if __name__ == "__main__":
    main()
