"""The rows of an input, each by what the index keeps of it: who it is, where it stands, what it asks.

A large plain file is cut at line ends into parts, which as many processes read as there are cores; what a process does
not give back (it was killed, or cannot be started) is read here, so that the outcome never depends on them.
"""

from __future__ import annotations

import contextlib
import io
import marshal
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Self, cast

from batchrouter.intake import Shaping, Source, read_identity
from batchrouter.jsonl import read_lines

_LARGE_BYTES: Final = 64 * 2**20
_PART_BYTES: Final = 8 * 2**20
_BLOCK_BYTES: Final = 2**20
_MOST_PROCESSES: Final = 8
_AHEAD: Final = 2  # parts that a process is given before its first is taken
_CHECK_EVERY: Final = 4096
_SIZE_BYTES: Final = 8  # before each of a process's answers: how long it is

Found = tuple[bytes, bytes, int, int, int, str]  # key, digest, line, start, length, model ("": it is refused)


class _Part(NamedTuple):
    """Lines that begin in [start, end), the first of them line `first`."""

    start: int
    end: int
    first: int


def survey(
    source: Source,
    shaping: Shaping,
    check: Callable[[], None],
    *,
    large_bytes: int = _LARGE_BYTES,
    part_bytes: int = _PART_BYTES,
) -> Iterator[Found]:
    """Every row of a source, in order; raises UsageError or DiskError where it cannot be read on.

    `check` is called now and then; what it raises ends the survey. A plain file of `large_bytes` or more is read by
    several processes, in parts of about `part_bytes`.
    """
    with source.reading() as file:
        is_plain = isinstance(cast("io.BufferedReader", file).raw, io.FileIO)
        size = os.fstat(file.fileno()).st_size if is_plain else 0
        if size >= large_bytes and _cores() > 1:
            yield from _together(file, source, shaping, check, _parts(file, size, part_bytes))
        else:
            whole = _Part(0, sys.maxsize, 1)
            for number, found in enumerate(_read(file, whole, source.label, shaping)):
                if not number % _CHECK_EVERY:
                    check()
                yield found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: BinaryIO, part: _Part, label: str, shaping: Shaping) -> Iterator[Found]:
    for line in read_lines(file, start=part.start, first=part.first):
        if line.start >= part.end:
            return
        found = read_identity(line, label, shaping)
        if found is not None:
            (key, digest), model = found
            yield key, digest, line.number, line.start, line.length, model


# --- several processes -----------------------------------------------------------------------------------------------


def _together(
    file: BinaryIO, source: Source, shaping: Shaping, check: Callable[[], None], parts: Iterator[_Part]
) -> Iterator[Found]:
    """The rows in order, from processes that take turns with the parts."""
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(_Helper(source, shaping)) for _ in range(min(_cores(), _MOST_PROCESSES))]
        given: deque[tuple[_Helper, _Part]] = deque()
        turns = (helper for _ in iter(int, 1) for helper in helpers)
        for helper, part in zip(turns, parts, strict=False):
            helper.give(part)
            given.append((helper, part))
            if len(given) >= _AHEAD * len(helpers):
                check()
                yield from _taken(*given.popleft(), file, source.label, shaping)
        while given:
            check()
            yield from _taken(*given.popleft(), file, source.label, shaping)


def _taken(helper: _Helper, part: _Part, file: BinaryIO, label: str, shaping: Shaping) -> Iterator[Found]:
    found = helper.take()
    return iter(found) if found is not None else _read(file, part, label, shaping)


def _parts(file: BinaryIO, size: int, part_bytes: int) -> Iterator[_Part]:
    """A file's parts, each from the start of a line to the end of one."""
    start, first = 0, 1
    while start < size:
        end, lines = start, 0
        file.seek(start)
        while end - start < part_bytes and (block := file.read(min(part_bytes, _BLOCK_BYTES))):
            end += len(block)
            lines += block.count(b"\n")
        while not block.endswith(b"\n") and (block := file.readline(_BLOCK_BYTES)):
            end += len(block)
            lines += block.endswith(b"\n")
        if end == start:
            return
        yield _Part(start, end, first)
        start, first = end, first + lines


class _Helper:
    """A process that reads parts: `give` it some, `take` what it found, in the same order."""

    def __init__(self, source: Source, shaping: Shaping) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from batchrouter.survey import serve; serve()"
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(  # noqa: S603  (this very program)
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the run to hear
            )
        self._send((str(source.path.absolute()), source.label, *astuple(shaping)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.communicate()
            self._process = None

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(marshal.dumps(message))
            self._process.stdin.flush()
        except (OSError, ValueError):
            self.__exit__()

    def give(self, part: _Part) -> None:
        """Have it read a part."""
        self._send(tuple(part))

    def take(self) -> list[Found] | None:
        """What it found in the first part not taken yet; None where it is not to be had."""
        if self._process is None or self._process.stdout is None:
            return None
        try:
            size = int.from_bytes(self._process.stdout.read(_SIZE_BYTES), "little")
            # Whole, as `marshal.load` asks a pipe for each value by itself.
            found: list[Found] = marshal.loads(self._process.stdout.read(size))  # noqa: S302  (from a process of ours)
        except (EOFError, ValueError, TypeError, OSError):
            self.__exit__()
            return None
        return found


def serve() -> None:
    """The other side of a `_Helper`: reads what it is told to, until nobody tells any more."""
    told, answers = sys.stdin.buffer, sys.stdout.buffer
    path, label, *fields = marshal.load(told)  # noqa: S302  (as above)
    shaping = Shaping(*fields)
    with contextlib.suppress(EOFError, BrokenPipeError), Path(path).open("rb", buffering=_BLOCK_BYTES) as file:
        while True:
            part = _Part(*marshal.load(told))  # noqa: S302
            found = marshal.dumps(list(_read(file, part, label, shaping)))
            answers.write(len(found).to_bytes(_SIZE_BYTES, "little") + found)
            answers.flush()
