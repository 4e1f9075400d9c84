"""The plan's rows, read again from their files as they are wanted: few are held at once, however many there are.

Rules of this file: a line is asked only if it is still the line that was planned; rows are given in input order, so
that compressed files are read once, forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from batchrouter.compressed import damage_told
from batchrouter.errors import UsageError
from batchrouter.index import DUPLICATE, INVALID, REQUEST, Index, Planned
from batchrouter.intake import Shaping, read_planned, read_row
from batchrouter.jsonl import LONGEST_LINE_BYTES, Line
from batchrouter.records import Identity, Refusal, Request
from batchrouter.sources import Source

_BATCH: Final = 128


class Rows:
    """The first `below` rows of an index over `sources`. With `dedupe`, of rows with equal bodies one is asked."""

    def __init__(
        self, index: Index, sources: Sequence[Source], shaping: Shaping, *, below: int, dedupe: bool = False
    ) -> None:
        self.below = below
        self._index = index
        self._sources = sources
        self._shaping = shaping
        self._dedupe = dedupe

    def requests(self) -> Iterator[Request]:
        """The pending requests, in input order; raises UsageError where a line has changed since it was planned."""
        for _, read in self._pending("leader" if self._dedupe else "request"):
            if isinstance(read, Request):
                yield read

    def refusals(self) -> Iterator[Refusal]:
        """The rows that cannot be asked and are not recorded yet, in input order."""
        for row, read in self._pending("refused"):
            if row.kind != DUPLICATE and isinstance(read, Refusal):
                yield read
                continue
            first = self._index.first_of(read.identity.key)
            place = f"{self._sources[first.file].label}:{first.line}" if first else "an earlier row"
            message = f"{read.file}:{read.line}: custom_id {read.custom_id!r} is that of {place}"
            identity = Identity(row.key, row.digest)
            yield Refusal(row.n, read.custom_id, read.file, read.line, identity, "duplicate_custom_id", message)

    def twins(self) -> Twins | None:
        """The other rows with a row's body, when equal bodies are sent once."""
        return Twins(self._index.reader(), self._reader(), self.below) if self._dedupe else None

    def _reader(self) -> Reader:
        return Reader(self._sources, self._shaping)

    def _pending(self, which: str) -> Iterator[tuple[Planned, Request | Refusal]]:
        reader = self._reader()
        index = self._index.reader()  # a door of its own: the other is in use by checkpoints, in another thread
        after = -1
        try:
            while batch := index.pending(after, self.below, _BATCH, which=which):
                after = batch[-1].n
                for row in batch:
                    try:
                        read = reader.read(row)
                    except UsageError:
                        index.distrust()  # the next start is to plan anew, whoever is wrong: the file or the index
                        raise
                    yield row, read
        finally:
            reader.close()
            index.close()


class Twins:
    """Rows that ask the very same as another row, and get its answer under their own ids."""

    def __init__(self, index: Index, reader: Reader, below: int) -> None:
        self._index = index
        self._reader = reader
        self._below = below

    def of(self, request: Request) -> Iterator[Request]:
        """The pending rows, other than `request`, with its body."""
        for row in self._index.twins(request.identity.digest, request.n, self._below):
            read = self._reader.read(row)
            if isinstance(read, Request) and read.path == request.path:
                yield read

    def unserved(self) -> Iterator[tuple[Request, Iterator[int]]]:
        """Pending rows whose body other rows have answers to, with where those stand in results.jsonl."""
        for row in self._index.answered_twins(self._below):
            read = self._reader.read(row)
            if isinstance(read, Request):
                yield read, self._index.answers_to(row.digest)

    def close(self) -> None:
        """Let go of the files."""
        self._index.close()
        self._reader.close()


class Reader:
    """Planned rows' lines, read again from their files; quick when asked for in input order."""

    def __init__(self, sources: Sequence[Source], shaping: Shaping) -> None:
        self._sources = sources
        self._shaping = shaping
        self._spares_usual_rows = shaping.spares_usual_rows
        self._file: BinaryIO | None = None
        self._number = -1

    def read(self, row: Planned) -> Request | Refusal:
        """The row itself; raises UsageError when its line is no longer the one that was planned."""
        source = self._sources[row.file]
        try:
            if self._file is None or row.file != self._number:
                self.close()
                self._file, self._number = source.open(), row.file
            self._file.seek(row.start)
            raw = self._file.read(row.length) if row.length <= LONGEST_LINE_BYTES else None
        except Exception:
            with damage_told(source.path):  # entered only now: it is not for nothing, row by row
                raise
        if raw is not None:
            raw = raw.removesuffix(b"\n")
            if self._spares_usual_rows and row.kind == REQUEST:
                request = read_planned(raw, row.n, source.label, row.line, Identity(row.key, row.digest))
                if request is not None:
                    return request
        line = Line(row.line, row.start, raw, row.length)
        read = read_row(line, row.n, source.label, self._shaping)
        if read is None or not _is_planned(read, row):
            raise UsageError(
                f"{source.label}:{row.line} changed while the run was under way; start it again to plan anew"
            )
        return read

    def close(self) -> None:
        """Let go of the file that is being read."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_planned(read: Request | Refusal, row: Planned) -> bool:
    """Whether what was read is what was planned. A duplicate has a key of its own, not its id's, and may be invalid."""
    if read.identity.digest != row.digest:
        return False
    if row.kind == DUPLICATE:
        return True
    return read.identity.key == row.key and isinstance(read, Refusal) == (row.kind == INVALID)
