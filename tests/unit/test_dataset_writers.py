"""Tables out: what is written is what other programs read."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchrouter.dataset.columns import ERROR
from batchrouter.dataset.tables import Column
from batchrouter.dataset.writers import open_output, open_writer, output_format
from batchrouter.errors import UsageError

SEPARATORS = [
    "",
    " ",
    "\t",
    ",",
    '"',
    "\n",
    "\r",
    "\r\n",
    "'",
    "\ufeff",
    "\u2028",
    "\x85",
    "\x1c",
    "a",
    "é",
    "😀",
    "NA",
    "0",
]
CELL = st.lists(st.sampled_from(SEPARATORS), max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6
)
NAME = CELL.filter(bool)


def written(
    kind: Literal["csv", "tsv", "jsonl"],
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    filled: int = 1,
    safe: bool = False,
) -> str:
    """The file of a table whose last columns are the filled ones."""
    file = io.BytesIO()
    columns = [Column(name) for name in names]
    split = len(names) - filled
    with open_writer(file, kind, columns[:split], columns[split:], spreadsheet_safe=safe) as writer:
        for row in rows:
            writer.write(dict(zip(names[:split], row[:split], strict=True)), row[split:])
    return file.getvalue().decode()


TABLES = st.integers(2, 4).flatmap(
    lambda width: st.tuples(
        st.lists(NAME, min_size=width, max_size=width, unique=True),
        st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=5),
    )
)


@settings(max_examples=150)
@given(table=TABLES, kind=st.sampled_from(["csv", "tsv"]))
@example(table=(["\ufeffa", "b"], [["\r", ""], ["", ""]]), kind="csv")
@example(table=(["a", " "], [[" ", " "], ["", "\n"]]), kind="tsv")
def test_what_is_written_as_csv_is_what_others_read(
    table: tuple[list[str], list[list[str]]], kind: Literal["csv", "tsv"]
) -> None:
    """The csv module, pandas and polars, told that all is text: the same names, the same cells, the same rows."""
    names, rows = table
    text = written(kind, names, rows)
    separator = "\t" if kind == "tsv" else ","
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)) == [names, *rows]
    content = text.encode()
    frame = pd.read_csv(io.BytesIO(content), sep=separator, dtype=str, keep_default_na=False)
    assert [list(frame.columns), *frame.to_numpy().tolist()] == [names, *rows]
    other = pl.read_csv(content, separator=separator, infer_schema=False, has_header=False)  # it keeps names quoted
    assert [[cell or "" for cell in row] for row in other.rows()] == [names, *rows]


@settings(max_examples=50)
@given(rows=st.lists(st.lists(st.text(max_size=4) | st.none(), min_size=1, max_size=1), max_size=4))
def test_one_column_loses_no_row(rows: list[list[str | None]]) -> None:
    """A record that is nothing but an empty cell is no blank line; NUL and all else there is, but lone surrogates."""
    rows = [[None if cell is None else cell.encode("utf-8", "replace").decode() for cell in row] for row in rows]
    text = written("csv", ["a"], rows)
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert read == [["a"], *([row[0] or ""] for row in rows)]


FORMULAS: list[tuple[str, str]] = [
    ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
    ("@SUM(1)", "'@SUM(1)"),
    ("+1+1", "'+1+1"),
    ("-1+1", "'-1+1"),
    ("\t=1", "'\t=1"),
    ("\r=1", "'\r=1"),
    ("\n=1", "'\n=1"),
    (" =1", "' =1"),
    ("\ufeff=1", "'\ufeff=1"),
    ("\0=1", "'\0=1"),
    ("\uff1d1", "'\uff1d1"),
    ("-1", "-1"),
    ("+3.5e7", "+3.5e7"),
    (" -1 ", " -1 "),
    ("a=1", "a=1"),
    (" a", " a"),
    ("", ""),
    ("'=1", "'=1"),
]


@pytest.mark.parametrize(("cell", "expected"), FORMULAS)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_formulas_are_disarmed_wherever_they_stand(kind: Literal["csv", "tsv"], cell: str, expected: str) -> None:
    """In a source cell, a filled cell, and the names of both; a number is none, and other text stays as it is."""
    names = [cell, f"{cell} "]
    text = written(kind, names, [[cell, cell]], safe=True)
    read = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ",", strict=True))
    assert read[1] == [expected, expected]
    if expected != cell:
        assert read[0] == [expected, f"{expected} "]


def test_values_that_are_no_text_look_alike_everywhere() -> None:
    """Numbers, true and false, nothing, and what is nested: in CSV as JSON writes them."""
    values = [1, 2**70, 0.5, 1e22, True, None, [1, "a"], {"b": None}]
    text = written("csv", [str(n) for n in range(8)], [values], filled=4)
    read = list(csv.reader(io.StringIO(text, newline="")))[1]
    assert read == ["1", str(2**70), "0.5", "1e+22", "true", "", '[1,"a"]', '{"b":null}']
    [line] = written("jsonl", [str(n) for n in range(8)], [values], filled=4).splitlines()
    assert list(json.loads(line).values()) == values


def test_an_error_after_many_rows_without_one_is_read(tmp_path: Path) -> None:
    """Readers that take a column's type from its first rows (DuckDB from 20,480) find text there, and no null."""
    path = tmp_path / "o.jsonl"
    with path.open("wb") as file, open_writer(file, "jsonl", [Column("id")], [ERROR]) as writer:
        for n in range(25_000):
            writer.write({"id": n}, [None if n < 24_999 else "pending"])
    with duckdb.connect() as database:
        assert database.sql(f"SELECT id FROM '{path}' WHERE error <> ''").fetchall() == [(24_999,)]
    assert pl.read_ndjson(path)["error"].to_list()[-2:] == ["", "pending"]
    assert pd.read_json(path, lines=True)["error"].tolist()[-2:] == ["", "pending"]


# --- the file -----------------------------------------------------------------------------------------------------------


def test_what_needs_an_extra_says_so_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow no Parquet file is promised."""
    assert output_format("o.parquet") == "parquet"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"o\.parquet: Parquet needs an extra: pip install"):
        output_format("o.parquet")
    assert output_format("o.csv") == "csv"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """A half-written table that nobody holds goes when the table is written again; one under way stays, as do others."""
    (tmp_path / ".o[1].csv.123.tmp").write_text("left by a killed process")
    (tmp_path / ".o1.csv.123.tmp").write_text("of another table")
    with (tmp_path / ".o[1].csv.124.tmp").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with open_output(str(tmp_path / "o[1].csv")) as file:
            file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".o1.csv.123.tmp", ".o[1].csv.124.tmp", "o[1].csv"]
    assert (tmp_path / "o[1].csv").read_bytes() == b"whole"
