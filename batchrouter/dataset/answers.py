"""A run directory read from outside: every row of the run in input order, with its answer, its failure, or neither.

Rules of this file: nothing in the directory is changed, and it may be written to meanwhile by a run; the index is read
as one snapshot, and the log past its marks is laid over it (all of the log, where the index is missing or does not
fit). An answer is given for the row whose id its own line has, or not at all. Few rows are held at once.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import orjson

from batchrouter import jsontext
from batchrouter.audit import prices_of, read_about, shaping_of, sources_of
from batchrouter.database import Unusable
from batchrouter.errors import UsageError
from batchrouter.history import Damaged, read_entry, tail_digest
from batchrouter.index import LOG_OF, PENDING, Index, Planned
from batchrouter.intake import Shaping
from batchrouter.jsonl import LONGEST_LINE_BYTES, read_lines
from batchrouter.plan import build_index
from batchrouter.rows import Reader
from batchrouter.settings import Price
from batchrouter.sources import Source

_BLOCK_BYTES: Final = 64 * 2**10
_MOST_BLOCKS: Final = 64
_ID: Final = slice(10, 34)  # where a log line's `id` has the key of its row
_LATE: Final = "CREATE TEMP TABLE late(key BLOB PRIMARY KEY, digest BLOB, state INTEGER, at INTEGER) WITHOUT ROWID"
_SNAPSHOT: Final = "PRAGMA cache_size=-8192; PRAGMA temp_store=FILE; BEGIN;"
_KEY: Final = Planned._fields.index("key")
_PLANNED: Final = ", ".join(f"r.{name}" for name in Planned._fields)
_ROWS: Final = (
    f"SELECT {_PLANNED},"  # noqa: S608  (names of the program's own)
    " CASE WHEN l.key IS NOT NULL THEN l.state WHEN ?1 THEN r.state ELSE 0 END,"
    " CASE WHEN l.key IS NOT NULL THEN l.at ELSE r.at END"
    " FROM row r LEFT JOIN late l ON l.key = r.key AND (?2 OR l.digest = r.digest) ORDER BY r.n"
)


class Answer(NamedTuple):
    """One row of the run: `line` is what the log says of it; null while it is pending."""

    custom_id: str
    state: int
    line: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Answers:
    """The rows of a run as they stood when it was opened.

    `prices` are those the run knew, by model; `notes` are findings to tell the user, complete from the start.
    """

    directory: Path
    inputs: Sequence[Source]
    prices: Mapping[str, Price] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _shaping: Shaping = field(default_factory=Shaping)
    _logs: Mapping[int, _Log] = field(default_factory=dict)
    _rows: sqlite3.Cursor | None = None

    def __iter__(self) -> Iterator[Answer]:
        """The rows, once, in input order; raises UsageError where files changed under the reader."""
        with closing(Reader(self.inputs, self._shaping)) as reader:
            for found in self._rows or ():
                state, at = found[-2:]
                if state == PENDING:
                    yield Answer(reader.read(Planned(*found[:-2])).custom_id, PENDING, None)
                    continue
                line = self._line(state, at, found[_KEY].hex())
                yield Answer(line["custom_id"], state, line)

    def _line(self, state: int, at: int, key: str) -> dict[str, Any]:
        raw = self._logs[state].line(at)
        try:
            line: dict[str, Any] = _loads(raw)
            if line["id"][_ID] == key:
                return line
        except (jsontext.NotJson, KeyError, TypeError):
            pass
        raise UsageError(
            f"{self.directory / LOG_OF[state]}: byte {at} is not where the index has it: the log was rewritten"
            f" meanwhile, or is damaged; try again, then: batchrouter verify {self.directory}"
        )


def _loads(raw: bytes) -> Any:
    """A log line. No integer is taken from it that orjson could change: without that check it is a third quicker."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return jsontext.loads(raw)


class _Log:
    """Lines of a log by where they start. Answers that were in flight together stand in no order, but close together:
    the blocks read last are kept.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._blocks: dict[int, bytes] = {}

    def line(self, start: int) -> bytes:
        """The line that starts there, without its end."""
        number, offset = divmod(start, _BLOCK_BYTES)
        block = self._block(number)
        end = block.find(b"\n", offset)
        if end >= 0:
            return block[offset:end]
        self.file.seek(start)
        return self.file.readline(LONGEST_LINE_BYTES)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) >= _MOST_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = os.pread(self.file.fileno(), _BLOCK_BYTES, number * _BLOCK_BYTES)
        return block


@contextmanager
def open_answers(directory: str | Path) -> Iterator[Answers]:
    """The rows of a run directory, also while its run goes on; raises UsageError where there is none."""
    directory = Path(directory)
    about = read_about(directory)
    inputs = sources_of(about, directory)
    shaping = shaping_of(about)
    notes: list[str] = []
    with ExitStack() as held:
        # The logs are opened before the index: what the index speaks of is in them.
        logs = {
            state: held.enter_context((directory / name).open("rb"))
            for state, name in LOG_OF.items()
            if (directory / name).exists()
        }
        index = _live_index(directory / "checkpoint.sqlite", inputs, shaping)
        if index is None:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="batchrouter-"))
            index = build_index(Path(folder) / "rows.sqlite", inputs, shaping)
            index.connection.executescript(_SNAPSHOT)
        held.enter_context(closing(index))
        marks = _fitting_marks(index, directory)
        _lay_log(index, logs, marks, directory, notes)
        keeps = about["settings"].get("changed") == "keep"
        rows = index.connection.execute(_ROWS, (marks is not None, keeps))
        by_start = {state: _Log(file) for state, file in logs.items()}
        yield Answers(directory, inputs, prices_of(about), notes, shaping, by_start, rows)


def _live_index(path: Path, inputs: Sequence[Source], shaping: Shaping) -> Index | None:
    """The run's index as one snapshot, if it is one of these inputs; None where it is not to be used."""
    if not path.is_file() or path.is_symlink():
        return None
    index = None
    try:
        index = Index.view(path)
        index.connection.executescript(_SNAPSHOT)
        index.check()
        meta = index.meta()
        labels = [item[0] for item in meta["inputs"]]
        if meta["shaping"] == shaping.fingerprint() and labels == [source.label for source in inputs]:
            return index
    except (sqlite3.Error, Unusable, KeyError, TypeError):
        pass
    if index is not None:
        index.close()
    return None


def _fitting_marks(index: Index, directory: Path) -> Mapping[str, Any] | None:
    """How far into the logs the index accounts for them; None when it does not fit them."""
    marks = index.meta().get("marks")
    if marks is None:
        return None
    for name in LOG_OF.values():
        path = directory / name
        size, tail = marks[path.stem]
        there = path.stat().st_size if path.exists() else 0
        if size > there or (there and tail_digest(path, size) != tail):
            return None
    return dict(marks)


def _lay_log(
    index: Index,
    logs: Mapping[int, BinaryIO],
    marks: Mapping[str, Any] | None,
    directory: Path,
    notes: list[str],
) -> None:
    """Put the log past the marks (None: all of it) beside the index, as the table `late`."""
    index.connection.execute(_LATE)
    for state, file in logs.items():
        path = directory / LOG_OF[state]
        start = marks[path.stem][0] if marks else 0
        index.connection.executemany(
            "INSERT OR REPLACE INTO late VALUES(?,?,?,?)", _late(file, start, state, path, notes)
        )


def _late(
    file: BinaryIO, start: int, state: int, path: Path, notes: list[str]
) -> Iterator[tuple[bytes, bytes, int, int]]:
    for line in read_lines(file, start=start):
        if line.raw is None or line.length == len(line.raw):
            return  # the last line, being written or torn
        try:
            logged = read_entry(line.raw, line.start, state).logged
        except Damaged as error:
            notes.append(f"{path}: the line at byte {line.start} is damaged ({error}); its row shows as pending")
            continue
        yield logged.key, logged.digest, state, logged.at
