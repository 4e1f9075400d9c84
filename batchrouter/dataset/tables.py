r"""Tables in: CSV, TSV, JSONL and Parquet files; rows as they stand, few held at once.

Rules of this file: a cell is data and comes out as it went in: CSV cells are texts (empty ones too), JSON and Parquet
values keep their types. A table that cannot be read without guessing is refused with the place and the next move.
Compression is told by content. CSV is read strictly (RFC 4180, UTF-8): a stray quote that would swallow the rest of
the file is an error. A CSV record ends at `\\n` or `\\r\\n`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Protocol

from batchrouter import jsontext
from batchrouter.errors import UsageError
from batchrouter.jsonl import LONGEST_LINE_BYTES, read_lines
from batchrouter.retry import clean
from batchrouter.sources import Source

Kind = Literal["text", "integer", "number", "boolean"]
Format = Literal["csv", "tsv", "jsonl", "parquet"]

FORMATS: Final[Mapping[str, Format]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
NEEDS_PYARROW: Final = "Parquet needs an extra: pip install 'batchrouter[parquet]'"

_BOM: Final = b"\xef\xbb\xbf"
_LONGEST_CELL: Final = LONGEST_LINE_BYTES
_BATCH_ROWS: Final = 512
_SHOWN_COLUMNS: Final = 40
_EXACT_IN_FLOAT: Final = 2**53
_INT64: Final = 2**63


class Row(NamedTuple):
    """One row: `number` counts rows from 1; `line` is where it begins in a text file, else its number."""

    number: int
    line: int
    values: Mapping[str, Any]


class Column(NamedTuple):
    """One column of a table: its name, the kind of its values, the Arrow type it came with, if any, and what stands for
    null in JSON (null itself, or a value of the kind: readers take a column's type from the first rows).
    """

    name: str
    kind: Kind = "text"
    arrow: Any = None
    blank: Any = None


class Rows(Protocol):
    """Where rows come from: a file or memory."""

    def rows(self) -> Iterator[Row]:
        """The rows, from the first on; raises UsageError with the place."""

    def place(self, row: Row) -> str:
        """How a message names a row, as in `reviews.csv:17`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One file of rows. It may be read again and again; every reading opens it anew."""

    path: Path
    format: Format

    @property
    def label(self) -> str:
        """How messages call it: the file's name."""
        return self.path.name

    def place(self, row: Row) -> str:
        """`reviews.csv:17`: the line where the row begins (of Parquet: the row's number)."""
        return f"{self.label}:{row.line}"

    def rows(self) -> Iterator[Row]:
        """The rows in the file's order; raises UsageError with the place, DiskError."""
        match self.format:
            case "parquet":
                return self._parquet_rows()
            case "jsonl":
                return self._json_rows()
            case "csv" | "tsv":
                return self._csv_rows()

    def columns(self) -> tuple[Column, ...]:
        """The columns in order. A JSONL file is read through for it, as any row may bring a new one."""
        match self.format:
            case "parquet":
                with self._parquet() as file:
                    return tuple(Column(field.name, "text", field.type) for field in file.schema_arrow)
            case "jsonl":
                return _survey(row.values for row in self._json_rows())
            case "csv" | "tsv":
                with Source(self.label, self.path).reading() as file:
                    return tuple(Column(name) for name in self._header(self._records(file)))

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        """The file's lines as texts, their ends kept; raises UsageError for what is not UTF-8."""
        lines = iter(partial(file.readline, LONGEST_LINE_BYTES + 1), b"")
        for number, raw in enumerate(lines, 1):
            if len(raw) > LONGEST_LINE_BYTES:
                raise UsageError(f"{self.label}:{number}: the line is longer than {LONGEST_LINE_BYTES >> 20} MiB")
            try:
                yield (raw.removeprefix(_BOM) if number == 1 else raw).decode()
            except UnicodeDecodeError as error:
                likely = "UTF-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "WINDOWS-1252"
                raise UsageError(
                    f"{self.label}:{number} is not UTF-8 (byte {raw[error.start]:#x}): convert it first,"
                    f" as in: iconv -f {likely} -t UTF-8 {self.label}"
                ) from None

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        """(line where it begins, cells) of every CSV record, the header too, blank lines not."""
        csv.field_size_limit(_LONGEST_CELL)  # the module has one limit for all; its own is 128 KiB
        reader = csv.reader(self._texts(file), delimiter="\t" if self.format == "tsv" else ",", strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise UsageError(
                f"{self.label}:{line}: {error}; a cell that holds a quote, a comma or a line break must be quoted,"
                ' and a quote in it doubled: "5"" disk"'
            ) from None

    def _header(self, records: Iterator[tuple[int, list[str]]]) -> list[str]:
        _, names = next(records, (0, []))
        if not names:
            raise UsageError(f"{self.path} is empty: its first line must name the columns")
        self._refuse_twins(names)
        return names

    def _refuse_twins(self, names: Sequence[str]) -> None:
        twins = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twins:
            raise UsageError(f"{self.label}: {len(twins)} column names stand there twice: {twins[0]!r}; rename one")

    def _csv_rows(self) -> Iterator[Row]:
        with Source(self.label, self.path).reading() as file:
            records = self._records(file)
            names = self._header(records)
            width = len(names)
            for number, (line, cells) in enumerate(records, 1):
                if len(cells) != width:
                    raise UsageError(
                        f"{self.label}:{line} has {len(cells)} cells and the header {width}: quote the cells that"
                        f" hold a {'tab' if self.format == 'tsv' else 'comma'}, and write empty ones for those missing"
                    )
                yield Row(number, line, dict(zip(names, cells, strict=True)))

    def _json_rows(self) -> Iterator[Row]:
        number = 0
        with Source(self.label, self.path).reading() as file:
            for line in read_lines(file):
                if line.raw is None:
                    limit = f"{LONGEST_LINE_BYTES >> 20} MiB"
                    raise UsageError(f"{self.label}:{line.number}: the line is longer than {limit}")
                if not line.raw.strip():
                    continue
                number += 1
                try:
                    values = jsontext.loads(line.raw)
                except jsontext.NotJson as error:
                    raise UsageError(f"{self.label}:{line.number}: {error}; {_ONE_A_LINE}") from None
                if type(values) is not dict:
                    raise UsageError(f"{self.label}:{line.number}: not a JSON object; {_ONE_A_LINE}")
                yield Row(number, line.number, values)

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        """The file's reader; what is wrong with the file is raised as UsageError."""
        try:
            import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415  (an extra)
            from pyarrow import parquet  # noqa: PLC0415
        except ImportError:
            raise UsageError(f"{self.path}: {NEEDS_PYARROW}") from None
        try:
            # Streamed page by page: neither a row group nor its columns are read ahead as a whole.
            with parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20) as file:
                self._refuse_twins(file.schema_arrow.names)
                yield file
        except pa.ArrowException as error:
            raise UsageError(f"{self.path} is no readable Parquet: {error}") from None
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from None

    def _parquet_rows(self) -> Iterator[Row]:
        number = 0
        with self._parquet() as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                try:
                    rows = batch.to_pylist()
                except ValueError as error:  # a timestamp finer than Python's, which pandas could hold
                    raise UsageError(f"{self.label}:{number + 1} and the rows after it: {error}") from None
                for values in rows:
                    number += 1
                    yield Row(number, number, values)


_ONE_A_LINE: Final = "a table in JSON has one object a line (jq -c '.[]' makes that of an array)"


def open_table(path: str | Path) -> Table:
    """The table at `path`, its format told by the name (`.csv`, `.csv.gz`, …); raises UsageError."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    return Table(path, format_of(path))


def format_of(path: Path) -> Format:
    """The format that a file's name tells, compression aside; raises UsageError."""
    plain = path.with_suffix("") if path.suffix.lower() in {".gz", ".zst"} else path
    found = FORMATS.get(plain.suffix.lower())
    if found is None or (found == "parquet" and plain != path):
        raise UsageError(f"{path}: the name must tell the format: .csv, .tsv or .jsonl (also with .gz, .zst), .parquet")
    return found


def listed(names: Iterable[object]) -> str:
    """The columns there are, as a message names them: not all of very many, and nothing that a terminal would obey."""
    found = [clean(str(name)) for name in names]
    return ", ".join(found[:_SHOWN_COLUMNS]) + (" …" if len(found) > _SHOWN_COLUMNS else "")


def _survey(rows: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns of JSON rows in order of appearance, each of the narrowest kind that holds all of its values."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds = found.get(name)
            if kinds is None:
                kinds = found[name] = set()
            if value is not None:
                kinds.add(_kind_of(value))
    return tuple(Column(name, _joined(kinds)) for name, kinds in found.items())


def _kind_of(value: Any) -> str:
    """The kind of one JSON value; `large` for integers that a float changes, `text` also for what is nested."""
    if type(value) is bool:
        return "boolean"
    if type(value) is int:
        if -_EXACT_IN_FLOAT <= value <= _EXACT_IN_FLOAT:
            return "integer"
        return "large" if -_INT64 <= value < _INT64 else "text"
    return "number" if type(value) is float else "text"


def _joined(kinds: set[str]) -> Kind:
    if kinds == {"boolean"}:
        return "boolean"
    if kinds and kinds <= {"integer", "large"}:
        return "integer"
    if kinds and kinds <= {"integer", "number"}:
        return "number"
    return "text"
