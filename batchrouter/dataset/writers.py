"""Tables out: CSV, TSV, JSONL and Parquet, written a few rows at a time into a file that appears when it is whole.

Rules of this file: source cells leave as they came; what a format cannot hold is written as text: nested values as
JSON, lone surrogates (no UTF-8 can hold them) as U+FFFD. Numbers, true and false look alike in all formats.
"""

from __future__ import annotations

import base64
import csv
import fcntl
import glob
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from batchrouter import jsontext
from batchrouter.dataset.tables import NEEDS_PYARROW, Column, Format, format_of
from batchrouter.errors import DiskError, UsageError

STDOUT: Final = "-"

_CSV_CHARACTERS: Final = 64 * 2**10  # that are gathered before they are written
_GROUP_ROWS: Final = 8192  # of a Parquet row group; fewer when the texts in them are long
_GROUP_CHARACTERS: Final = 4 * 2**20
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_FORMULA: Final = re.compile(  # what is not seen may stand before it; the last four are full-width = + - @
    "[\t\r\n]|[\\s\\x00-\\x1f\u200b-\u200f\u2060\ufeff]*[=+\\-@\uff1d\uff0b\uff0d\uff20]"
)
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class Writer(Protocol):
    """Who writes rows of one format."""

    def write(self, source: Mapping[str, Any], filled: Sequence[Any]) -> None:
        """One row: what the source has, by name, and the values of the filled columns, in order."""

    def finish(self) -> None:
        """All rows were written."""

    def abandon(self) -> None:
        """No more rows will be written: let go of what is held, whatever is in the file."""


def output_format(path: str, *, spreadsheet_safe: bool = False) -> Format:
    """The format that a table is written in by its name (JSONL to standard output); raises UsageError for what cannot
    be written, before there is anything to write.
    """
    if Path(path).suffix.lower() in {".gz", ".zst"}:
        raise UsageError(f"{path}: tables are written uncompressed: name it .csv, .tsv, .jsonl or .parquet")
    kind = "jsonl" if path == STDOUT else format_of(Path(path))
    if spreadsheet_safe and kind not in {"csv", "tsv"}:
        raise UsageError("--spreadsheet-safe is for .csv and .tsv: in other formats a text is never a formula")
    if kind == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(f"{path}: {NEEDS_PYARROW}")
    _check_place(path)
    return kind


def _check_place(path: str) -> None:
    """Raises UsageError where no file can take that name."""
    final = Path(path)
    if path == STDOUT:
        return
    if final.exists() and not final.is_file():
        raise UsageError(f"{path} is no file that could be replaced; - writes to standard output")
    if not final.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {final.parent}")
    if not os.access(final.parent, os.W_OK):
        raise UsageError(f"{path}: nothing can be written in {final.parent}")


@contextmanager
def open_output(path: str, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that takes its name when all went well, in place of the one before; `-` is standard output.

    Raises UsageError where it cannot be made, DiskError where it cannot be written to its end.
    """
    if path == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    final = Path(path)
    _check_place(path)
    fresh = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        _forget_killed(final)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb", buffering=2**20) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(final)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror or error}; what was there before is untouched") from None
    finally:
        fresh.unlink(missing_ok=True)


def _forget_killed(final: Path) -> None:
    """Remove what processes that were killed have left of this file: those that are alive hold theirs."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        with path.open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


@contextmanager
def open_writer(
    file: BinaryIO, kind: Format, source: Sequence[Column], filled: Sequence[Column], *, spreadsheet_safe: bool = False
) -> Iterator[Writer]:
    """The writer of a format; `spreadsheet_safe` puts an apostrophe before CSV cells that look like formulas."""
    writer = _writer(file, kind, source, filled, spreadsheet_safe=spreadsheet_safe)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _writer(
    file: BinaryIO, kind: Format, source: Sequence[Column], filled: Sequence[Column], *, spreadsheet_safe: bool
) -> Writer:
    match kind:
        case "csv" | "tsv":
            return _CsvWriter(file, "\t" if kind == "tsv" else ",", source, filled, _safe if spreadsheet_safe else None)
        case "jsonl":
            return _JsonWriter(file, filled)
        case "parquet":
            return _ParquetWriter(file, source, filled)


class _CsvWriter:
    """RFC 4180, but that a record ends in a line feed alone; null is an empty cell."""

    def __init__(
        self,
        file: BinaryIO,
        delimiter: str,
        source: Sequence[Column],
        filled: Sequence[Column],
        escape: Callable[[str], str] | None,
    ) -> None:
        self._file = file
        self._text = io.StringIO()
        self._usual = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._careful = csv.writer(self._text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._escape = escape
        self._names = [column.name for column in source]
        self._put([*self._names, *(column.name for column in filled)])

    def write(self, source: Mapping[str, Any], filled: Sequence[Any]) -> None:
        """See Writer."""
        cells = [source.get(name) for name in self._names]
        cells += filled
        self._put(["" if cell is None else cell if type(cell) is str else text_of(cell) for cell in cells])

    def _put(self, cells: list[str]) -> None:
        if self._escape is not None:
            cells = [self._escape(cell) for cell in cells]
        # Left to itself, the module quotes no lone carriage return; and a mark at a file's start would be dropped.
        is_usual = "\r" not in "".join(cells) and not cells[0].startswith("\ufeff")
        (self._usual if is_usual else self._careful).writerow(cells)
        if self._text.tell() > _CSV_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        self._file.write(_utf8(self._text.getvalue()))
        self._text.seek(0)
        self._text.truncate()

    def finish(self) -> None:
        """See Writer."""
        self._flush()

    def abandon(self) -> None:
        """See Writer."""


def _safe(cell: str) -> str:
    """The cell, with an apostrophe where a spreadsheet would take it for a formula (a number is none)."""
    return "'" + cell if cell and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell.strip()) else cell


class _JsonWriter:
    """One object a line, the source's own members first, just as they were."""

    def __init__(self, file: BinaryIO, filled: Sequence[Column]) -> None:
        self._file = file
        self._names = [column.name for column in filled]
        self._blanks = {column.name: column.blank for column in filled if column.blank is not None}

    def write(self, source: Mapping[str, Any], filled: Sequence[Any]) -> None:
        """See Writer."""
        row = dict(source)
        row.update(zip(self._names, filled, strict=True))
        for name, blank in self._blanks.items():
            if row[name] is None:
                row[name] = blank
        self._file.write(_json(row) + b"\n")

    def finish(self) -> None:
        """See Writer."""

    def abandon(self) -> None:
        """See Writer."""


class _ParquetWriter:
    """Columns of the types the source had, or of the kind that fits all of their values; row groups of bounded size."""

    def __init__(self, file: BinaryIO, source: Sequence[Column], filled: Sequence[Column]) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415  (an extra)
        from pyarrow import parquet  # noqa: PLC0415

        self._pa = pa
        self._names = [column.name for column in source]
        types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
        columns = [*source, *filled]
        self._is_text = [column.arrow is None and column.kind == "text" for column in columns]
        self._schema = pa.schema(
            [(_SURROGATE.sub("\ufffd", column.name), column.arrow or types[column.kind]) for column in columns]
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._rows: list[list[Any]] = []
        self._characters = 0

    def write(self, source: Mapping[str, Any], filled: Sequence[Any]) -> None:
        """See Writer."""
        cells = [source.get(name) for name in self._names]
        cells += filled
        self._characters += sum([len(cell) for cell in cells if type(cell) is str])
        self._rows.append(cells)
        if len(self._rows) >= _GROUP_ROWS or self._characters >= _GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in self._schema)
        arrays = [
            self._array(cells, field.type, is_text=is_text)
            for cells, field, is_text in zip(columns, self._schema, self._is_text, strict=True)
        ]
        self._writer.write_batch(self._pa.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._characters = 0

    def _array(self, cells: Sequence[Any], kind: Any, *, is_text: bool) -> Any:
        if is_text:
            cells = [cell if type(cell) is str or cell is None else text_of(cell) for cell in cells]
            try:
                return self._pa.array(cells, type=kind)
            except UnicodeEncodeError:
                cells = [cell if cell is None else _SURROGATE.sub("\ufffd", cell) for cell in cells]
        return self._pa.array(cells, type=kind)

    def finish(self) -> None:
        """See Writer."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """See Writer."""
        with suppress(OSError, ValueError, self._pa.ArrowException):
            self._writer.close()
        self._writer.is_open = False  # else it would be closed again when it is collected


def text_of(value: Any) -> str:
    """A value as a cell's text: what it is as a text, else its JSON."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if isinstance(value, (dict, list, tuple, bool)) or value is None:
        return _json(value).decode()
    if isinstance(value, float):
        return repr(float(value))
    return str(_plain(value))


def _json(value: Any) -> bytes:
    """JSON of any value; what it has no form for (dates, decimals, bytes of a Parquet file) is a text."""
    try:
        return jsontext.dumps(value)
    except TypeError:
        return jsontext.dumps(_plain(value))


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()
