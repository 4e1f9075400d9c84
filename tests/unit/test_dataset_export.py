"""Answers back to tables: each beside the row that asked, all rows there, source cells as they were."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from bench.dataset import outcome, play
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from batchrouter.dataset.answers import Answer, open_answers
from batchrouter.dataset.columns import facts_of
from batchrouter.dataset.export import export
from batchrouter.dataset.labels import shape_of_schema
from batchrouter.dataset.prepare import Question, prepare, write_requests
from batchrouter.dataset.tables import open_table
from batchrouter.errors import DiskError, UsageError
from batchrouter.index import _STATE_SUMS, ANSWERED, FAILED, Index

CELLS = [
    "",
    " ",
    '"',
    ",",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\0",
    "=cmd()|' /C calc'!A0",
    "@x",
    "-1",
    "+1",
    "{{ 7*7 }}",
    "{% x %}",
    "😀",
    "\ufeff",
    "\x1b[31m",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(CELLS)
FORMATS = ["csv", "tsv", "jsonl", "parquet"]
DEFAULTS = ["id", "content", "finish_reason", "model", "error", "tokens", "cost"]


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    path.write_bytes(text.getvalue().encode())
    return path


def echo(request: Any) -> Any:
    """The answer that says what was asked."""
    return outcome(request, content=json.loads(request.body)["messages"][-1]["content"] or " ")


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_table(path).rows()]


def prepared(folder: Path, table: Path, prompt: str, **options: Any) -> Path:
    requests = folder / "requests.jsonl"
    write_requests(prepare(table, Question(prompt=prompt), **options), str(requests))
    return requests


@settings(max_examples=60)
@given(
    names=st.lists(TEXT, min_size=1, max_size=3, unique=True).filter(lambda names: names != [""]),
    rows=st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=5),
    kind=st.sampled_from(FORMATS),
)
@example(names=["a"], rows=[["x" * 1_000_000, "", ""], ["", "", ""], ["é\n" * 500_000, "", ""]], kind="csv")
@example(names=["id", "content"], rows=[["7", "a", ""], ["7", "b", ""], ["", "c", ""]], kind="parquet")
@example(names=["\ufeffa", "b"], rows=[["\ufeff", "", ""]], kind="csv")
@example(names=["answer", "error"], rows=[["\r", "\0", ""]], kind="tsv")
def test_any_table_comes_back_row_for_row(names: list[str], rows: list[list[str]], kind: str) -> None:
    """Quotes, line breaks, NUL, emoji, formulas, templates, empty and huge cells, doubled and missing ids: source
    cells equal what went in, and the answer in each row is the one that was given to that row's own prompt.
    """
    rows = [row[: len(names)] for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_csv(folder / "t.csv", names, rows)
        requests = prepared(folder, table, "<{{ row.values() | join('|') }}>")
        play(folder / "t.run", requests, echo, at_once=3)
        exported = export(folder / "t.run", folder / f"out.{kind}", join=table)
        found = read(folder / f"out.{kind}")
        content = exported.renamed.get("content", "content")
        assert [[row[name] for name in names] for row in found] == rows
        assert [row[content] for row in found] == [f"<{'|'.join(row)}>" for row in rows]
        assert (exported.rows, exported.answered, exported.marked) == (len(rows), len(rows), 0)


IDS = st.lists(
    st.text(max_size=4) | st.sampled_from([*CELLS, "\ud800", "row-1", "a/b", "007", "7"]) | st.integers(-5, 2**70),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(ids=IDS, shift=st.integers(0, 5), kind=st.sampled_from(["jsonl", "parquet"]))
@example(ids=["1", 1], shift=0, kind="jsonl")
@example(ids=["\ud800", "\udfff", "\ufffd"], shift=1, kind="jsonl")
def test_rows_are_known_by_any_id_that_is_unique(ids: list[str | int], shift: int, kind: str) -> None:
    """Texts of any kind, and numbers: each answer stands beside the row with the id that asked, though the table was
    turned since; doubled and missing ids are refused, and nothing is made of them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, requests = folder / "t.jsonl", folder / "requests.jsonl"
        rows = [{"id": known, "text": f"text {n}"} for n, known in enumerate(ids)]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if "" in ids or len({str(known) for known in ids}) < len(ids):
            with pytest.raises(UsageError, match=r"t\.jsonl:\d+: its 'id' is (empty|that of t\.jsonl:\d+)"):
                prepared(folder, table, "{{ text }}", id_column="id")
            assert not requests.exists()
            return
        play(folder / "t.run", prepared(folder, table, "{{ text }}", id_column="id"), echo)
        table.write_text("".join(json.dumps(row) + "\n" for row in rows[shift:] + rows[:shift]))
        exported = export(folder / "t.run", folder / f"out.{kind}", join=table, id_column="id")
        assert (exported.rows, exported.unmatched) == (len(rows), 0)
        found = read(folder / f"out.{kind}")
        assert [(row["text"], row["content"]) for row in found] == [(row["text"], row["text"]) for row in rows]
        if kind == "jsonl":
            assert [row["id"] for row in found] == ids


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), min_size=1, max_size=4))
def test_any_json_rows_come_back_with_their_types(rows: list[dict[str, Any]]) -> None:
    """Integers of any size, floats, nested values, lone surrogates, absent members: as they were."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = folder / "t.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        play(folder / "t.run", prepared(folder, table, "x"), echo)
        exported = export(folder / "t.run", folder / "out.jsonl", join=table)
        ours = [exported.renamed.get(name, name) for name in DEFAULTS]
        found = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
        assert [{key: value for key, value in row.items() if key not in ours} for row in found] == rows
        export(folder / "t.run", folder / "out.parquet", join=table)
        assert parquet.read_metadata(folder / "out.parquet").num_rows == len(rows)


def test_parquet_columns_keep_their_types(tmp_path: Path) -> None:
    """Times, decimals, bytes, nested values and categories: type and value."""
    source = pa.table(
        {
            "t": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "d": pa.array([Decimal("1.50"), None], pa.decimal128(6, 2)),
            "b": pa.array([b"\0\xff", None]),
            "n": pa.array([[{"x": 1}], None]),
            "c": pa.array(["a", "b"]).dictionary_encode(),
            "f": pa.array([1, 2], pa.int8()),
        }
    )
    parquet.write_table(source, tmp_path / "t.parquet")
    play(tmp_path / "t.run", prepared(tmp_path, tmp_path / "t.parquet", "{{ f }}"), echo)
    export(tmp_path / "t.run", tmp_path / "out.parquet", join=tmp_path / "t.parquet")
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.select(source.column_names).equals(source)
    assert found.column("content").to_pylist() == ["1", "2"]
    export(tmp_path / "t.run", tmp_path / "out.jsonl", join=tmp_path / "t.parquet")
    assert read(tmp_path / "out.jsonl")[0] | {} == {
        "t": "2026-01-02T00:00:00+00:00", "d": "1.50", "b": "AP8=", "n": [{"x": 1}], "c": "a", "f": 1, "id": "row-1",
        "content": "1", "finish_reason": "stop", "model": "gpt-5.4", "error": "", "tokens": 110, "cost": None,
    }  # fmt: skip


def sample_table(folder: Path, rows: int = 40) -> Path:
    return write_csv(folder / "t.csv", ["id", "text"], [[f"R{n}", f"text {n}"] for n in range(rows)])


def mixed(request: Any) -> Any:
    """Every kind of end: answered, truncated, failed with and without an HTTP answer, pending."""
    match request.n % 5:
        case 0:
            return outcome(request, content=f'{{"label": "L{request.n % 2}"}}')
        case 1:
            return outcome(request, content=None)
        case 2:
            return outcome(request, reply=None, error=("timeout", "nothing came"), usage=None)
        case 3:
            made = outcome(request, content="x")
            body = {"error": {"message": "no such model", "type": "x"}}
            return made._replace(reply=made.reply._replace(status=404, body=body))
        case _:
            return None


MARKS = [None, "truncated: ", "timeout: nothing came", "404: no such model", "pending"]


def check_mixed(found: Sequence[Mapping[str, Any]], rows: int = 40) -> None:
    assert [row["text"] for row in found] == [f"text {n}" for n in range(rows)]
    for n, row in enumerate(found):
        mark = MARKS[n % 5]
        assert (row["error"] or None) == mark or (mark is not None and row["error"].startswith(mark))
        assert (row["content"] or None) == (f'{{"label": "L{n % 2}"}}' if n % 5 == 0 else None)


@pytest.mark.parametrize("kind", FORMATS)
def test_failed_truncated_and_pending_rows_are_there_and_marked(tmp_path: Path, kind: str) -> None:
    """Whatever happened to a row, it is in its place, with the reason."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", id_column="id"), mixed)
    exported = export(tmp_path / "t.run", tmp_path / f"out.{kind}", join=table, id_column="id")
    check_mixed(read(tmp_path / f"out.{kind}"))
    assert (exported.rows, exported.answered, exported.failed, exported.pending) == (40, 16, 16, 8)
    assert exported.marked == 32


def test_alone_the_columns_are_the_facts(tmp_path: Path) -> None:
    """Without a table to join: id, content, finish_reason, model, error, tokens, cost, in input order."""
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path), "{{ text }}", id_column="id"), mixed)
    export(tmp_path / "t.run", tmp_path / "out.csv")
    found = read(tmp_path / "out.csv")
    assert list(found[0]) == DEFAULTS
    assert [row["id"] for row in found] == [f"R{n}" for n in range(40)]
    assert found[0] == {
        "id": "R0", "content": '{"label": "L0"}', "finish_reason": "stop", "model": "gpt-5.4", "error": "",
        "tokens": "110", "cost": "",
    }  # fmt: skip


# --- while the run goes on, and after accidents -----------------------------------------------------------------------


def swap_answers(database: sqlite3.Connection, one: int, other: int) -> None:
    """Let an index say of two rows that each has the other's line."""
    found = dict(database.execute("SELECT n, at FROM row WHERE n IN (?, ?)", (one, other)))
    database.execute("UPDATE row SET at = ? WHERE n = ?", (found[other], one))
    database.execute("UPDATE row SET at = ? WHERE n = ?", (found[one], other))
    add_up(database)


def add_up(database: sqlite3.Connection, **meta: Any) -> None:
    """Let an index that was changed look sound, and say `meta` of itself."""
    database.commit()
    database.isolation_level = None
    index = Index(database, Path())
    index.put_meta({"sums": index._sums(_STATE_SUMS), **meta})


def damage(directory: Path, how: str) -> None:
    """Bring the index into a state that a reader may find it in."""
    index = directory / "checkpoint.sqlite"
    match how:
        case "missing":
            index.unlink()
        case "garbage":
            index.write_bytes(b"not a database" * 999)
        case "truncated":
            index.write_bytes(index.read_bytes()[:5000])
        case "behind":  # as if the last checkpoint had been made after a few rows only
            first = (directory / "results.jsonl").read_bytes().index(b"\n") + 1
            from batchrouter.history import tail_digest  # noqa: PLC0415  (its one use)

            marks = {
                "results": [first, tail_digest(directory / "results.jsonl", first)],
                "errors": [0, tail_digest(directory / "errors.jsonl", 0)],
            }
            with sqlite3.connect(index) as database:
                database.execute("UPDATE row SET state = 0, at = 0 WHERE NOT (state = 1 AND at = 0)")
                add_up(database, marks=marks)
            database.close()
        case "of another log":
            marks = {"results": [9, "00"], "errors": [9, "00"]}
            with sqlite3.connect(index) as database:
                swap_answers(database, 0, 5)
                add_up(database, marks=marks)
            database.close()
        case "torn log":
            with (directory / "results.jsonl").open("ab") as log:
                log.write(b'{"id":"batch_req_0123')


@pytest.mark.parametrize("how", ["missing", "garbage", "truncated", "behind", "of another log", "torn log"])
def test_the_index_is_a_help_and_no_need(tmp_path: Path, how: str) -> None:
    """Missing, damaged or lagging behind the log: the table is the same, and the run directory is left as it was."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", id_column="id"), mixed)
    damage(tmp_path / "t.run", how)
    before = {path.name: path.read_bytes() for path in (tmp_path / "t.run").iterdir()}
    exported = export(tmp_path / "t.run", tmp_path / "out.csv", join=table, id_column="id")
    check_mixed(read(tmp_path / "out.csv"))
    assert exported.notes == []
    after = {path.name: path.read_bytes() for path in (tmp_path / "t.run").iterdir()}
    # SQLite's own two files beside a database that it could not read to its end are left.
    assert {name: content for name, content in after.items() if not name.endswith(("-shm", "-wal"))} == before
    assert len(after) == len(before) or how == "truncated"


def test_a_row_taken_out_of_the_log_is_pending(tmp_path: Path) -> None:
    """An index of before `--retry` took a row out, as a backup may have it, answers for no row that the log lacks."""
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path), "{{ text }}", id_column="id"), echo)
    lines = (tmp_path / "t.run/results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "t.run/results.jsonl").write_bytes(b"".join(lines[:3] + lines[4:]))
    export(tmp_path / "t.run", tmp_path / "out.csv")
    pending = [row["id"] for row in read(tmp_path / "out.csv") if row["error"] == "pending"]
    assert pending == [json.loads(lines[3])["custom_id"]]


def test_a_damaged_line_is_told_and_its_row_pending(tmp_path: Path) -> None:
    """What cannot be read is nobody's answer; the rest of the table is whole."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", id_column="id"), echo)
    (tmp_path / "t.run/checkpoint.sqlite").unlink()
    lines = (tmp_path / "t.run/results.jsonl").read_bytes().splitlines(keepends=True)
    hit = json.loads(lines[3])["custom_id"]
    lines[3] = b"\0" * (len(lines[3]) - 1) + b"\n"
    (tmp_path / "t.run/results.jsonl").write_bytes(b"".join(lines))
    exported = export(tmp_path / "t.run", tmp_path / "out.csv")
    assert [row["id"] for row in read(tmp_path / "out.csv") if row["error"] == "pending"] == [hit]
    assert (exported.answered, exported.pending) == (39, 1)
    assert "is damaged" in exported.notes[0]


def test_a_log_rewritten_under_the_reader_is_noticed(tmp_path: Path) -> None:
    """Where another row's line has come to stand since the reader began, no answer is given: it is an error that says
    what to do.
    """
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path, 10), "{{ text }}", id_column="id"), echo)
    log = tmp_path / "t.run/results.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines[5]) == len(lines[6])
    with open_answers(tmp_path / "t.run") as answers:
        with log.open("r+b") as file:
            file.write(b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]))
        with pytest.raises(UsageError, match=r"the log was rewritten.*batchrouter verify"):
            list(answers)


def test_the_inputs_are_found_where_the_run_directory_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths of a run are looked for beside its directory, whatever folder export is typed in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepared(Path(), sample_table(Path()), "{{ text }}", id_column="id")
    play(Path("t.run"), Path("requests.jsonl"), mixed)
    monkeypatch.chdir(tmp_path)
    export("here/t.run", "out.csv", join="here/t.csv", id_column="id")
    check_mixed(read(Path("out.csv")))


# --- the join ---------------------------------------------------------------------------------------------------------


@given(order=st.permutations(range(12)), dropped=st.sets(st.integers(0, 11), max_size=6))
@settings(max_examples=25)
def test_the_join_is_by_id_whatever_the_order(order: list[int], dropped: set[int]) -> None:
    """A table that was sorted, or lost rows, since it was prepared: no answer moves to another row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = sample_table(folder, 12)
        play(folder / "t.run", prepared(folder, table, "{{ text }}", id_column="id"), echo)
        left = [n for n in order if n not in dropped]
        now = write_csv(folder / "now.csv", ["id", "text"], [[f"R{n}", f"text {n}"] for n in left])
        exported = export(folder / "t.run", folder / "out.csv", join=now, id_column="id")
        found = read(folder / "out.csv")
        assert [row["content"] for row in found] == [f"text {n}" for n in range(12)]
        assert [row["text"] for row in found] == ["" if n in dropped else f"text {n}" for n in range(12)]
        assert exported.unmatched == len(dropped)
        assert bool(exported.notes) == bool(dropped)


def test_a_sample_joins_the_whole_table(tmp_path: Path) -> None:
    """Rows that were not drawn are no rows of the run; those drawn find their own source."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", sample=7, seed=3), echo)
    export(tmp_path / "t.run", tmp_path / "out.csv", join=table)
    found = read(tmp_path / "out.csv")
    assert len(found) == 7
    assert all(row["text"] == row["content"] for row in found)


def test_a_join_by_number_tells_when_rows_may_have_moved(tmp_path: Path) -> None:
    """A table that was saved after its requests were made is joined, with a word of warning; by id there is no need."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}"), echo)
    assert export(tmp_path / "t.run", tmp_path / "out.csv", join=table).notes == []
    later = (tmp_path / "requests.jsonl").stat().st_mtime_ns + 10**9
    os.utime(table, ns=(later, later))
    [note] = export(tmp_path / "t.run", tmp_path / "out.csv", join=table).notes
    assert "t.csv was changed after its requests were prepared" in note


def test_a_join_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    """Ids taken for row numbers, another column, a column that is not there: nothing is written."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", id_column="id"), echo)
    for column, told in [
        (None, "name the column"),
        ("text", "join the table that was prepared"),
        ("ID", "no column 'ID'"),
    ]:
        with pytest.raises(UsageError, match=told):
            export(tmp_path / "t.run", tmp_path / "out.csv", join=table, id_column=column)
    with pytest.raises(UsageError, match="is the source itself"):
        export(tmp_path / "t.run", table, join=table, id_column="id")
    assert not (tmp_path / "out.csv").exists()


def test_a_column_of_ours_never_hides_a_source_column(tmp_path: Path) -> None:
    """Source columns keep their names; ours get a number, and that is told."""
    table = write_csv(tmp_path / "t.csv", ["content", "error", "error_2"], [["a", "b", "c"]])
    play(tmp_path / "t.run", prepared(tmp_path, table, "hi"), echo)
    exported = export(tmp_path / "t.run", tmp_path / "out.csv", join=table)
    assert exported.renamed == {"content": "content_2", "error": "error_3"}
    [row] = read(tmp_path / "out.csv")
    assert (row["content"], row["content_2"], row["error"], row["error_2"], row["error_3"]) == ("a", "hi", "b", "c", "")


# --- content spread into columns --------------------------------------------------------------------------------------


def said(texts: Sequence[str]) -> Any:
    return lambda request: outcome(request, content=texts[request.n])


def test_json_content_is_spread_by_schema_and_by_expressions(tmp_path: Path) -> None:
    """A property, and what an expression finds, is a column; what does not fit is marked, and its content is kept."""
    texts = [
        '{"score": 1, "tags": ["a"], "who": {"name": "=x"}}',
        '{"score": "high", "tags": []}',
        "no JSON",
        '{"tags": 1}',
    ]
    schema = {"type": "object", "properties": {"score": {"type": "number"}, "tags": {}}, "required": ["score"]}
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path, 4), "x"), said(texts))
    shape = shape_of_schema(schema, "s", source="s.json")
    columns = {"first": "tags[0]", "who": "who.name"}
    for kind in FORMATS:
        export(tmp_path / "t.run", tmp_path / f"out.{kind}", schema=shape, columns=columns)
    found = read(tmp_path / "out.parquet")
    assert [row["score"] for row in found] == [1.0, None, None, None]
    assert [row["tags"] for row in found] == ['["a"]', None, None, None]
    assert [row["who"] for row in found] == ["=x", None, None, None]
    assert [row["content"] for row in found] == texts
    assert [row["error"] for row in found] == [
        None,
        'schema_mismatch: score is "high", not of type number',
        "schema_mismatch: the content is not JSON: unexpected character: line 1 column 1 (char 0)",
        "schema_mismatch: the content has no score",
    ] or found[2]["error"].startswith("schema_mismatch: the content is not JSON")
    assert read(tmp_path / "out.jsonl")[0]["tags"] == ["a"]
    assert read(tmp_path / "out.csv")[0]["tags"] == '["a"]'
    with pytest.raises(UsageError, match=r"--column x=a\[: "):
        export(tmp_path / "t.run", tmp_path / "out.csv", columns={"x": "a["})


def test_an_expression_that_cannot_be_applied_marks_the_row(tmp_path: Path) -> None:
    """A function of JMESPath on the wrong type is that row's trouble, not the export's."""
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path, 2), "x"), said(['{"a": [1]}', '{"a": 1}']))
    export(tmp_path / "t.run", tmp_path / "out.csv", columns={"n": "length(a)"})
    found = read(tmp_path / "out.csv")
    assert [row["n"] for row in found] == ["1", ""]
    assert found[1]["error"].startswith("schema_mismatch: n: ")


BODIES: list[tuple[dict[str, Any], tuple[Any, Any, Any]]] = [
    ({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}, ("a", "stop", None)),
    ({"choices": [{"message": {"content": [{"text": "a"}, {"text": "b"}]}}]}, ("ab", None, None)),
    ({"choices": [{"message": {"tool_calls": [{}]}, "finish_reason": "tool_calls"}]}, (None, "tool_calls", None)),
    ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, (None, None, "refusal: no")),
    ({"choices": [{"text": "a", "finish_reason": "length"}]}, ("a", "length", None)),
    ({"output": [{"type": "x"}, {"content": [{"text": "a"}]}], "status": "completed"}, ("a", "completed", None)),
    ({"data": [{"embedding": [0.5, 1]}]}, ("[0.5,1]", None, None)),
    ({}, (None, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BODIES)
def test_answers_of_every_kind_have_their_facts(body: dict[str, Any], expected: tuple[Any, Any, Any]) -> None:
    """Chats, completions, responses and embeddings; refusals are marked."""
    line = {
        "response": {"status_code": 200, "body": body},
        "error": None,
        "batchrouter": {"model": "m", "truncated": False},
    }
    facts = facts_of(Answer("a", ANSWERED, line), {})
    assert (facts.content, facts.finish_reason, facts.error) == expected
    assert (facts.model, facts.tokens, facts.cost) == ("m", None, None)


def test_the_cost_is_by_the_prices_the_run_knew(tmp_path: Path) -> None:
    """All attempts of a row at the run's prices; without a price what the endpoint's usage says, else nothing."""
    requests = prepared(tmp_path, sample_table(tmp_path, 1), "x")
    play(tmp_path / "t.run", requests, echo, models={"gpt-5.4": {"prompt": 2.0, "completion": 10.0, "cached": None}})
    export(tmp_path / "t.run", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["cost"] == (90 * 2.0 + 20 * 10.0) / 1e6
    line: dict[str, Any] = {"response": {"status_code": 200, "body": {"usage": {"cost": 0.5}}}, "error": None}
    line["batchrouter"] = {"model": "m", "usage": {"total_tokens": 9}}
    assert facts_of(Answer("a", ANSWERED, line), {})[5:] == (9, 0.5)


def test_the_model_is_the_one_that_answered(tmp_path: Path) -> None:
    """As its answer says; of a failed row, the one that was asked."""
    play(
        tmp_path / "t.run",
        prepared(tmp_path, sample_table(tmp_path, 2), "x"),
        lambda request: outcome(request, content="x", **({"error": ("timeout", "")} if request.n else {}))._replace(
            model="asked"
        ),
    )
    export(tmp_path / "t.run", tmp_path / "out.jsonl")
    assert [row["model"] for row in read(tmp_path / "out.jsonl")] == ["gpt-5.4", "asked"]
    line: dict[str, Any] = {"response": {"status_code": 400, "body": {}}, "error": None, "batchrouter": {}}
    assert facts_of(Answer("a", FAILED, line), {}).error == "400"


# --- who reads the files ----------------------------------------------------------------------------------------------


def nasty_table(folder: Path) -> tuple[Path, list[str]]:
    cells = [
        "plain",
        "a,b",
        'say "x"',
        "two\nlines",
        "tab\there",
        "😀 ü",
        "=1+1",
        "{{ 7*7 }}",
        "'",
        " lead",
        "\r\nx",
        "{}",
    ]
    return write_csv(folder / "t.csv", ["id", "text"], [[f"R{n}", cell] for n, cell in enumerate(cells)]), cells


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_pandas_polars_and_duckdb_read_it_as_it_is(tmp_path: Path, kind: str) -> None:
    """With their default options: the same cells, the same answers."""
    table, cells = nasty_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "re: {{ text }}", id_column="id"), echo)
    path = tmp_path / f"out.{kind}"
    export(tmp_path / "t.run", path, join=table, id_column="id")
    pandas: dict[str, Any] = {
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    polars: dict[str, Any] = {"csv": pl.read_csv, "jsonl": pl.read_ndjson, "parquet": pl.read_parquet}
    with duckdb.connect() as database:
        rows = database.sql(f"SELECT text, content FROM '{path}'").fetchall()
    assert rows == [(cell, f"re: {cell}") for cell in cells]
    frame = polars[kind](path)
    assert frame["text"].to_list() == cells
    assert frame["tokens"].to_list() == [110] * len(cells)
    other = pandas[kind](path)
    assert other["text"].tolist() == cells
    assert other["content"].tolist() == [f"re: {cell}" for cell in cells]


def test_spreadsheet_safe_disarms_formulas_and_nothing_else(tmp_path: Path) -> None:
    """An apostrophe before what a spreadsheet would run, in names, cells and answers; numbers and other text stay."""
    table = write_csv(
        tmp_path / "t.csv",
        ["=id", "text"],
        [["1", cell] for cell in ("=cmd()", "-2.5", "-x", "a=b", "\uff1d1", "\tx", "")],
    )
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}"), echo)
    export(tmp_path / "t.run", tmp_path / "out.csv", join=table, spreadsheet_safe=True)
    found = read(tmp_path / "out.csv")
    assert [row["text"] for row in found] == ["'=cmd()", "-2.5", "'-x", "a=b", "'\uff1d1", "'\tx", ""]
    assert found[0]["'=id"] == "1"
    assert found[0]["content"] == "'=cmd()"
    export(tmp_path / "t.run", tmp_path / "out.csv", join=table)
    assert read(tmp_path / "out.csv")[0]["text"] == "=cmd()"
    with pytest.raises(UsageError, match="never a formula"):
        export(tmp_path / "t.run", tmp_path / "out.jsonl", spreadsheet_safe=True)


# --- what stays behind ------------------------------------------------------------------------------------------------


def test_a_table_appears_when_it_is_whole(tmp_path: Path) -> None:
    """What fails half way leaves the table of before, and no other file."""
    table = sample_table(tmp_path)
    play(tmp_path / "t.run", prepared(tmp_path, table, "{{ text }}", id_column="id"), echo)
    (tmp_path / "out.csv").write_text("before")
    table.write_text("id,text\nR0,x\nbroken\n")
    with pytest.raises(UsageError, match=r"t\.csv:3"):
        export(tmp_path / "t.run", tmp_path / "out.csv", join=table, id_column="id")
    assert (tmp_path / "out.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "requests.jsonl", "t.csv", "t.run"]


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """Unknown formats, compressed ones, folders that are not there, what is no file, what is no run."""
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path), "x"), echo)
    for output, told in [
        ("out.xlsx", "must tell the format"),
        ("out.csv.gz", "uncompressed"),
        ("no/out.csv", "there is no folder .*no$"),
        ("t.run", "must tell the format"),
    ]:
        with pytest.raises(UsageError, match=told):
            export(tmp_path / "t.run", tmp_path / output)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="no file that could be replaced"):
        export(tmp_path / "t.run", tmp_path / "folder.csv")
    with pytest.raises(UsageError, match="no run directory"):
        export(tmp_path, tmp_path / "out.csv")


def test_a_full_disk_is_a_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space: exit 7's error, and what was there before is untouched."""
    play(tmp_path / "t.run", prepared(tmp_path, sample_table(tmp_path), "x"), echo)
    (tmp_path / "out.csv").write_text("before")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        export(tmp_path / "t.run", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "before"


def test_a_table_goes_through_in_less_memory_than_it_has(tmp_path: Path) -> None:
    """20 MB of cells, answered in no order: preparing and joining hold a part of them at a time."""
    numbers = list(range(2_500))
    random.Random(1).shuffle(numbers)
    table = write_csv(tmp_path / "t.csv", ["id", "text"], [[f"R{n}", "x" * 8000] for n in numbers])
    tracemalloc.start()
    try:
        requests = prepared(tmp_path, table, "{{ text }}", id_column="id")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    play(tmp_path / "t.run", requests, echo)
    tracemalloc.start()
    try:
        export(tmp_path / "t.run", tmp_path / "out.csv", join=table, id_column="id")
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out.csv").stat().st_size > 40_000_000
