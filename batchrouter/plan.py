"""Rows x ledger -> what is to be done, found before the first paid request.

Rules of this file: the index is used as it is when inputs, shaping and log are what it was made from; else it is built
anew from the input and the whole log is laid over it, so that there is one way to be right. An answer belongs to a row
when both id and body are those that were asked.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from batchrouter.errors import DiskError, UsageError
from batchrouter.index import DUPLICATE, INVALID, LOG_OF, REQUEST, Index, Logged, Planned, Unusable, remove
from batchrouter.intake import Shaping, Source, key_of_duplicate, read_row
from batchrouter.jsonl import LONGEST_LINE_BYTES, Line, read_lines
from batchrouter.records import Identity, Outcome, Refusal, Request, Usage
from batchrouter.settings import Changed
from batchrouter.usage import Totals

_SHOWN: Final = 20
_BATCH: Final = 512


class Log(Protocol):
    """What the plan needs of the ledger."""

    directory: Path
    totals: Totals

    def marks(self) -> dict[str, Any]:
        """Where the logs end."""
        ...

    def fits(self, marks: Mapping[str, Any] | None) -> bool:
        """Whether `marks` account for a beginning of the logs."""
        ...

    def replay(self, marks: Mapping[str, Any] | None) -> Iterator[Logged]:
        """The log past the marks."""
        ...

    def set_damage_aside(self) -> bool:
        """Move damaged lines away that `replay` met; true if there were any."""
        ...

    def take_out(self, name: str, starts: Iterable[int]) -> int:
        """Move lines of a log to superseded.jsonl."""
        ...

    def starts_of(self, classes: Collection[str]) -> Iterator[tuple[str, list[int]]]:
        """Lines of each log that are of a class which --retry names."""
        ...

    def follow_with(self, index: Index) -> None:
        """Book what is recorded from now on in `index`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. All figures are rows of this start (`--limit` bounds them), but `removed`."""

    index: Index
    sources: Sequence[Source]
    shaping: Shaping
    below: int
    rows: int
    pending: int
    answered: int
    failed: int
    invalid: int
    duplicates: int
    removed: int


def make(
    sources: Sequence[Source],
    shaping: Shaping,
    ledger: Log,
    *,
    limit: int | None = None,
    changed: Changed = "refuse",
    retry: Collection[str] = (),
) -> Plan:
    """Read or reuse the index, lay the log over it, take out what is to be asked again, and count.

    Raises UsageError where rows were asked before with another body (and `changed` is `refuse`), and DiskError.
    """
    index, marks, meta = _index_for(sources, shaping, ledger)
    index.load(ledger.replay(marks))
    known = meta.get("removed", 0)
    if ledger.set_damage_aside():
        known = _load_anew(index, ledger)
    outdated = _outdated(index, sources, changed)
    if outdated:
        for name in outdated:
            ledger.take_out(name, sorted(outdated[name]))
        known = _load_anew(index, ledger)
    if retry:
        taken = sum(ledger.take_out(name, starts) for name, starts in list(ledger.starts_of(retry)) if starts)
        if taken:
            known = _load_anew(index, ledger)
    removed = known + sum(1 for _ in index.strangers())
    index.settle({"marks": ledger.marks(), "totals": ledger.totals.dump(), "removed": removed})
    ledger.follow_with(index)
    return _counted(index, sources, shaping, limit, removed)


def _load_anew(index: Index, ledger: Log) -> int:
    """The log was rewritten: all of it is laid over the index again, of which nothing (0) was known before."""
    index.forget()
    index.load(ledger.replay(None))
    return 0


def _outdated(index: Index, sources: Sequence[Source], changed: Changed) -> dict[str, list[int]]:
    """Log name -> starts of lines that speak of rows as they no longer are, and are to be taken out.

    A row that was refused and has been mended since cost nothing: it is simply asked. One that was asked with another
    body is the user's to decide; raises UsageError for `refuse`.
    """
    outdated: dict[str, list[int]] = {}
    places: list[str] = []
    count = 0
    for row, logged in index.changed():
        if logged.refused or changed == "rerun":
            outdated.setdefault(LOG_OF[logged.state], []).append(logged.at)
        elif changed == "refuse":
            count += 1
            if len(places) < _SHOWN:
                places.append(f"{sources[row.file].label}:{row.line}")
    for logged in index.strangers():
        if logged.refused:
            outdated.setdefault(LOG_OF[logged.state], []).append(logged.at)
    if places:
        shown = ", ".join(places) + (" …" if count > len(places) else "")
        raise UsageError(
            f"{count} rows were asked before with another body: {shown}\n"
            "ask them again with --changed rerun, keep the old answers with --changed keep, or use another -o DIR"
        )
    return outdated


def _counted(index: Index, sources: Sequence[Source], shaping: Shaping, limit: int | None, removed: int) -> Plan:
    total = index.meta()["rows"]
    below = total if limit is None else min(limit, total)
    counts = index.counts(below)
    by_state = [sum(count for (_, state), count in counts.items() if state == wanted) for wanted in (0, 1, 2)]
    by_kind = [sum(count for (kind, _), count in counts.items() if kind == wanted) for wanted in (0, 1, 2)]
    return Plan(
        index, sources, shaping, below, below, by_state[0], by_state[1], by_state[2],
        by_kind[INVALID], by_kind[DUPLICATE], removed,
    )  # fmt: skip


def _index_for(
    sources: Sequence[Source], shaping: Shaping, ledger: Log
) -> tuple[Index, Mapping[str, Any] | None, Mapping[str, Any]]:
    """The index of these inputs, the marks up to which it accounts for the log, and what else it knows."""
    path = ledger.directory / "checkpoint.sqlite"
    fingerprints = [[source.label, *source.fingerprint().values()] for source in sources]
    try:
        index = Index.open(path)
        meta = index.meta()
        if meta.get("inputs") == fingerprints and meta.get("shaping") == shaping.fingerprint():
            if ledger.fits(meta["marks"]):
                ledger.totals = Totals.load(meta["totals"])
                return index, meta["marks"], meta
            index.forget()
            return index, None, {}
        index.close()
    except (Unusable, KeyError, TypeError):
        pass
    index = _build(path, sources, shaping)
    index.finish_build({"inputs": fingerprints, "shaping": shaping.fingerprint(), "marks": None, "sums": [0, 0, 0]})
    return index, None, {}


def _build(path: Path, sources: Sequence[Source], shaping: Shaping) -> Index:
    try:
        index = Index.build(path, _planned_rows(sources, shaping))
    except BaseException:
        remove(path)
        raise
    index.mark_duplicates(lambda key, file, line: key_of_duplicate(key, sources[file].label, line))
    return index


def _planned_rows(sources: Sequence[Source], shaping: Shaping) -> Iterator[Planned]:
    n = 0
    for number, source in enumerate(sources):
        with source.open() as file:
            for line in _lines(source, file):
                row = read_row(line, n, source.label, shaping)
                if row is None:
                    continue
                kind = REQUEST if isinstance(row, Request) else INVALID
                key, digest = row.identity
                yield Planned(n, key, digest, number, line.number, line.start, line.length, kind)
                n += 1


def _lines(source: Source, file: BinaryIO) -> Iterator[Line]:
    """The lines of a source; raises UsageError where it cannot be read on."""
    try:
        yield from read_lines(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{source.path} is damaged: {error}") from None
    except OSError as error:
        raise DiskError(f"{source.path}: {error.strerror or error}") from None


class _Reader:
    """Planned rows' lines, read again from their files; quick when asked for in input order."""

    def __init__(self, sources: Sequence[Source], shaping: Shaping) -> None:
        self._sources = sources
        self._shaping = shaping
        self._file: BinaryIO | None = None
        self._number = -1

    def read(self, row: Planned) -> Request | Refusal:
        """The row itself; raises UsageError when its line is no longer the one that was planned."""
        source = self._sources[row.file]
        if self._file is None or row.file != self._number:
            self.close()
            self._file, self._number = source.open(), row.file
        self._file.seek(row.start)
        raw = self._file.read(row.length) if row.length <= LONGEST_LINE_BYTES else None
        line = Line(row.line, row.start, raw.removesuffix(b"\n") if raw is not None else None, row.length)
        read = read_row(line, row.n, source.label, self._shaping)
        if read is None or read.identity.digest != row.digest:
            raise UsageError(
                f"{source.label}:{row.line} changed while the run was under way; start it again to plan anew"
            )
        return read

    def close(self) -> None:
        """Let go of the file that is being read."""
        if self._file is not None:
            self._file.close()
            self._file = None


def requests(plan: Plan) -> Iterator[Request]:
    """The pending requests in input order, read from their files as they are asked for; few are held at once."""
    for row, read in _pending(plan, refused=False):
        if not isinstance(read, Request) or read.identity.key != row.key:
            raise UsageError(
                f"{read.file}:{read.line} changed while the run was under way; start it again to plan anew"
            )
        yield read


def refusals(plan: Plan) -> Iterator[Refusal]:
    """The rows that cannot be asked and are not recorded yet, in input order."""
    for row, read in _pending(plan, refused=True):
        if row.kind != DUPLICATE and isinstance(read, Refusal):
            yield read
            continue
        first = plan.index.first_of(read.identity.key)
        place = f"{plan.sources[first.file].label}:{first.line}" if first else "an earlier row"
        message = f"{read.file}:{read.line}: custom_id {read.custom_id!r} is that of {place}"
        identity = Identity(row.key, row.digest)
        yield Refusal(row.n, read.custom_id, read.file, read.line, identity, "duplicate_custom_id", message)


def _pending(plan: Plan, *, refused: bool) -> Iterator[tuple[Planned, Request | Refusal]]:
    reader = _Reader(plan.sources, plan.shaping)
    index = plan.index.reader()  # a door of its own: the other one is in use by checkpoints, in another thread
    after = -1
    try:
        while batch := index.pending(after, plan.below, _BATCH, refused=refused):
            after = batch[-1].n
            for row in batch:
                yield row, reader.read(row)
    finally:
        reader.close()
        index.close()


def refused_outcome(refusal: Refusal) -> Outcome:
    """How a refused row is booked: failed, with nothing spent."""
    return Outcome(refusal, None, (refusal.code, refusal.message), 0, Usage(), truncated=False, model="", endpoint="")
