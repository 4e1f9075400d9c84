"""Tables in: every cell comes out as it went in, and what cannot be read without guessing is refused with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from batchrouter.dataset.frames import Mappings
from batchrouter.dataset.tables import Table, open_table
from batchrouter.errors import UsageError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NASTY = [
    "",
    " ",
    '"',
    '""',
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "a\nb",
    "\0",
    "'",
    "=1+1",
    "{{ x }}",
    "😀",
    "\ufeff",
    "null",
]


def written(folder: Path, name: str, content: str | bytes) -> Table:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path)


def values_of(table: Table) -> list[dict[str, Any]]:
    return [dict(row.values) for row in table.rows()]


@given(
    names=st.lists(TEXT, min_size=1, max_size=4, unique=True),
    rows=st.lists(st.lists(TEXT | st.sampled_from(NASTY), min_size=4, max_size=4), max_size=6),
    delimiter=st.sampled_from(",\t"),
)
def test_any_csv_reads_back(names: list[str], rows: list[list[str]], delimiter: str) -> None:
    """Whatever texts another program writes as cells and column names are what is read."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *(row[: len(names)] for row in rows)])
    with tempfile.TemporaryDirectory() as folder:
        table = written(Path(folder), "t.csv" if delimiter == "," else "t.tsv", text.getvalue())
        assert values_of(table) == [dict(zip(names, row, strict=False)) for row in rows]
        assert [column.name for column in table.columns()] == names


def test_a_place_is_the_line_where_the_row_begins(tmp_path: Path) -> None:
    """Line breaks inside cells count, blank lines are passed over, and the header is line 1."""
    table = written(tmp_path, "t.csv", 'a,b\r\n1,"x\ny\nz"\r\n\r\n2,\n3,"last"')
    assert [(row.number, table.place(row)) for row in table.rows()] == [(1, "t.csv:2"), (2, "t.csv:6"), (3, "t.csv:7")]


def test_a_cell_of_a_megabyte_is_a_cell(tmp_path: Path) -> None:
    """Python's own limit of 128 KiB a cell is not ours."""
    large = "é\n" * 500_000
    assert values_of(written(tmp_path, "t.csv", f'a,b\n"{large}",1\n')) == [{"a": large, "b": "1"}]


COMPRESSED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("t.csv", lambda content: content),
    ("t.csv.gz", gzip.compress),
    ("t.csv", gzip.compress),  # by content, whatever the name says
    ("t.csv.zst", zstd.compress),
    ("t.csv", lambda content: b"\xef\xbb\xbf" + content),
]


@pytest.mark.parametrize(("name", "pack"), COMPRESSED)
def test_compression_is_told_by_content(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    """gzip, zstd, plain, with a byte order mark: the same table."""
    assert values_of(written(tmp_path, name, pack("a,b\n1,ü\n".encode()))) == [{"a": "1", "b": "ü"}]


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    """Nothing becomes a text on the way in, and rows may differ in their columns."""
    rows = [{"a": 1, "b": "x"}, {"a": 2**70, "c": [1.5, None, {"d": True}]}, {}]
    table = written(tmp_path, "t.jsonl", "\n\n".join(map(json.dumps, rows)))
    assert values_of(table) == rows
    assert [row.line for row in table.rows()] == [1, 3, 5]


KINDS: list[tuple[list[Any], str]] = [
    ([1, None, 2**62], "integer"),
    ([1, 2.5], "number"),
    ([True, None], "boolean"),
    ([True, 1], "text"),
    ([2**60, 0.5], "text"),  # a float would change the integer
    ([2**64, 1], "text"),
    (["a", 1], "text"),
    ([[1], None], "text"),
    ([None], "text"),
]


@pytest.mark.parametrize(("values", "kind"), KINDS)
def test_a_json_column_has_the_narrowest_kind_that_changes_no_value(
    tmp_path: Path, values: list[Any], kind: str
) -> None:
    """A typed format gets numbers only where all values survive as numbers."""
    table = written(tmp_path, "t.jsonl", "".join(json.dumps({"a": value}) + "\n" for value in values))
    assert [column.kind for column in table.columns()] == [kind]


def test_parquet_values_keep_their_types(tmp_path: Path) -> None:
    """Times, decimals, bytes and nested values are what they were."""
    rows = [
        {"t": datetime(2026, 1, 2, tzinfo=UTC), "d": Decimal("1.50"), "b": b"\0\xff", "n": [{"x": 1}]},
        {"t": None, "d": None, "b": None, "n": None},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert values_of(table) == rows
    assert [(row.number, table.place(row)) for row in table.rows()] == [(1, "t.parquet:1"), (2, "t.parquet:2")]


REFUSED: list[tuple[str, bytes, str]] = [
    ("t.csv", b"", "is empty"),
    ("t.csv", b"a,b,a\n", "twice: 'a'; rename one"),
    ("t.csv", b"a,b\n1,2\n3\n", "t.csv:3 has 1 cells and the header 2"),
    ("t.csv", b"a,b\n1,2,3\n", "t.csv:2 has 3 cells"),
    ("t.csv", b'a\n"never closed\nmore\n', "t.csv:2: unexpected end of data"),
    ("t.csv", b'a\n"x" y\n', "a quote in it doubled"),
    ("t.csv", b"a\nx\n\xfcber\n", "t.csv:3 is not UTF-8 (byte 0xfc): convert it first"),
    (
        "t.csv",
        "a\nx\n".encode("utf-16"),
        "t.csv:1 is not UTF-8 (byte 0xff): convert it first, as in: iconv -f UTF-16 -t",
    ),
    ("t.csv", gzip.compress(b"a\n" + b"x\n" * 9, mtime=0)[:-9], "is damaged"),
    ("t.csv", zstd.compress(b"a\n" * 99)[:9] + b"garbage" * 9, "is damaged"),
    ("t.jsonl", b'{"a":1}\n[1]\n', "t.jsonl:2: not a JSON object; a table in JSON has one object a line"),
    ("t.json", b'[{"a":1}]', "jq -c"),
    ("t.jsonl", b"{}\n{", "t.jsonl:2: not JSON"),
    ("t.parquet", b"PAR1 no", "no readable Parquet"),
    ("t.xlsx", b"PK", "the name must tell the format"),
    ("t.parquet.gz", b"", "the name must tell the format"),
]


@pytest.mark.parametrize(("name", "content", "told"), REFUSED)
def test_what_needs_guessing_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    """The message says what is wrong, in which line, and what to do."""
    with pytest.raises(UsageError) as caught:
        values_of(written(tmp_path, name, content))
    assert told in str(caught.value)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(UsageError, match="there is no such file"):
        open_table(tmp_path / "t.csv")
    with pytest.raises(UsageError, match="is a folder"):
        open_table(tmp_path)


def test_rows_from_memory_must_be_mappings() -> None:
    """Who passes something else is told what to pass instead."""
    assert [row.values for row in Mappings([{"a": 1}]).rows()] == [{"a": 1}]
    with pytest.raises(UsageError, match="row 1 is a str, not a mapping of columns to values; give dicts"):
        list(Mappings(["a", "b"]).rows())  # type: ignore[list-item]
