"""The rows of an input, each by what the index keeps of it: who it is, where it stands, what it asks.

A large plain file is cut at line ends into parts, which as many processes read as there are cores; what a process does
not give back (it was killed, or cannot be started) is read here, so that the outcome never depends on them.
"""

from __future__ import annotations

import contextlib
import gc
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

from batchrouter.distinct import sorted_run
from batchrouter.estimate import answer_budget, size_of
from batchrouter.insertion import SURVEYED
from batchrouter.intake import Shaping, read_identity, read_row, read_usual
from batchrouter.jsonl import Line, Stretch, read_stretches
from batchrouter.records import Identity, Request
from batchrouter.sources import Source

_LARGE_BYTES: Final = 64 * 2**20
_PART_BYTES: Final = 4 * 2**20
_BLOCK_BYTES: Final = 2**20
_MOST_PROCESSES: Final = 8
_AHEAD: Final = 2  # parts that a process is given before its first is taken
_SIZE_BYTES: Final = 8  # before each of a process's answers: how long it is

_WIDTH: Final = len(SURVEYED)
_ROWS_AT_ONCE: Final = 2**12


class Found(NamedTuple):
    """Rows in order. `values` are the `insertion.SURVEYED` fields of each: its kind is 1 where it is refused, else 0,
    its model the place in `models` (of "" where it is refused). `keys` is what `sorted_run` keeps of their keys.
    """

    values: list[Any]
    models: list[str]
    keys: bytes
    weights: list[tuple[Any, ...]]  # `estimate.Weight`s of the requests, where that was asked for


class _Way(NamedTuple):
    """How the lines of a file are read: its number and label, whether requests are weighed, and what settings do to
    bodies.
    """

    number: int
    label: str
    weighs: bool
    shaping: Shaping


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
    number: int = 0,
    weighs: bool = False,
    large_bytes: int = _LARGE_BYTES,
    part_bytes: int = _PART_BYTES,
) -> Iterator[Found]:
    """Every row of a source, file `number` of the run, in order, many at a time; raises UsageError or DiskError where
    it cannot be read on.

    `check` is called now and then; what it raises ends the survey. Where it `weighs`, it takes half as long again. A
    plain file of `large_bytes` or more is read by several processes, in parts of about `part_bytes`.
    """
    way = _Way(number, source.label, weighs, shaping)
    with source.reading() as file:
        is_plain = isinstance(cast("io.BufferedReader", file).raw, io.FileIO)
        size = os.fstat(file.fileno()).st_size if is_plain else 0
        if size >= large_bytes and _cores() > 1:
            yield from _together(file, source.path, way, check, _parts(file, size, part_bytes))
        else:
            for found in _read(file, _Part(0, sys.maxsize, 1), way):
                check()
                yield found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: BinaryIO, part: _Part, way: _Way) -> Iterator[Found]:
    rows = _Rows(way)
    for stretch in read_stretches(file, start=part.start, first=part.first):
        if stretch.start >= part.end:
            break
        if isinstance(stretch, Line):
            rows.add_line(stretch)
        else:
            rows.add(stretch, part.end)
        if rows.count >= _ROWS_AT_ONCE:
            yield rows.taken()
    if rows.count:
        yield rows.taken()


class _Rows:
    """The rows of the lines given to it, until they are taken."""

    def __init__(self, way: _Way) -> None:
        self._way = way
        self._values: list[Any] = []
        self._models: dict[str, int] = {}
        self._weights: dict[tuple[str, int], tuple[int, int, int]] = {}

    @property
    def count(self) -> int:
        return len(self._values) // _WIDTH

    def add(self, stretch: Stretch, end: int) -> None:
        """The rows of the lines that begin before `end`."""
        values, models, file = self._values, self._models, self._way.number
        may_be_usual, weighs = self._way.shaping.spares_usual_rows, self._way.weighs
        start = stretch.start
        for number, raw in enumerate(stretch.raws, stretch.first):
            if start >= end:
                return
            length = len(raw) + 1
            usual = read_usual(raw) if may_be_usual else None
            if usual is None:
                self.add_line(Line(number, start, raw, length))
            else:
                key, digest, model, body, fields = usual
                if weighs:
                    self._weigh(model, answer_budget(fields), body)
                place = models.get(model)
                if place is None:
                    place = models[model] = len(models)
                values += (file, key, digest, number, start, length, 0, place)
            start += length

    def add_line(self, line: Line) -> None:
        """The row of a line of any kind, if it has one."""
        found = self._weighed(line) if self._way.weighs else read_identity(line, self._way.label, self._way.shaping)
        if found is not None:
            (key, digest), model = found
            place = self._models.setdefault(model, len(self._models))
            fields = (self._way.number, key, digest, line.number, line.start, line.length, int(not model), place)
            self._values += fields

    def _weighed(self, line: Line) -> tuple[Identity, str] | None:
        """What `read_identity` gives; a request is weighed."""
        row = read_row(line, 0, self._way.label, self._way.shaping)
        if not isinstance(row, Request):
            return None if row is None else (row.identity, "")
        self._weigh(row.model, row.answer_tokens, row.body)
        return row.identity, row.model

    def _weigh(self, model: str, budget: int, body: bytes) -> None:
        size = size_of(body)
        requests, likely, most = self._weights.get((model, budget), (0, 0, 0))
        self._weights[model, budget] = (requests + 1, likely + size.likely_tokens, most + size.most_tokens)

    def taken(self) -> Found:
        """All of them; from now on there are none."""
        keys = sorted_run(self._values[SURVEYED.index("key") :: _WIDTH])
        weights = [(*which, *weight) for which, weight in self._weights.items()]
        found = Found(self._values, list(self._models), keys, weights)
        self._values, self._models, self._weights = [], {}, {}
        return found


# --- several processes -----------------------------------------------------------------------------------------------


def _together(
    file: BinaryIO, path: Path, way: _Way, check: Callable[[], None], parts: Iterator[_Part]
) -> Iterator[Found]:
    """The rows in order, from processes that take turns with the parts."""
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(_Helper(path, way)) for _ in range(min(_cores(), _MOST_PROCESSES))]
        given: deque[tuple[_Helper, _Part]] = deque()
        turns = (helper for _ in iter(int, 1) for helper in helpers)
        for helper, part in zip(turns, parts, strict=False):
            helper.give(part)
            given.append((helper, part))
            if len(given) >= _AHEAD * len(helpers):
                check()
                yield from _taken(*given.popleft(), file, way)
        while given:
            check()
            yield from _taken(*given.popleft(), file, way)


def _taken(helper: _Helper, part: _Part, file: BinaryIO, way: _Way) -> Iterator[Found]:
    found = helper.take()
    return map(Found._make, found) if found is not None else _read(file, part, way)


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

    def __init__(self, path: Path, way: _Way) -> None:
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
        self._send((str(path.absolute()), way.number, way.label, way.weighs, *astuple(way.shaping)))

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

    def take(self) -> list[tuple[Any, ...]] | None:
        """What it found in the first part not taken yet; None where it is not to be had."""
        if self._process is None or self._process.stdout is None:
            return None
        try:
            size = int.from_bytes(self._process.stdout.read(_SIZE_BYTES), "little")
            # Whole, as `marshal.load` asks a pipe for each value by itself.
            answer = self._process.stdout.read(size)
            found: list[tuple[Any, ...]] = marshal.loads(answer)  # noqa: S302  (from a process of ours)
        except (EOFError, ValueError, TypeError, OSError):
            self.__exit__()
            return None
        return found


def serve() -> None:
    """The other side of a `_Helper`: reads what it is told to, until nobody tells any more."""
    told, answers = sys.stdin.buffer, sys.stdout.buffer
    path, number, label, weighs, *fields = marshal.load(told)  # noqa: S302  (as above)
    way = _Way(number, label, weighs, Shaping(*fields))
    gc.disable()  # nothing here is part of a ring, and there is much of it
    with contextlib.suppress(EOFError, BrokenPipeError), Path(path).open("rb", buffering=_BLOCK_BYTES) as file:
        while True:
            part = _Part(*marshal.load(told))  # noqa: S302
            found = marshal.dumps([tuple(rows) for rows in _read(file, part, way)])
            answers.write(len(found).to_bytes(_SIZE_BYTES, "little") + found)
            answers.flush()
