"""What may happen to the files of a run directory between two starts."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


def lines_of(directory: Path, name: str = "results.jsonl") -> list[bytes]:
    return (directory / name).read_bytes().splitlines(keepends=True)


def put(directory: Path, lines: list[bytes], name: str = "results.jsonl") -> None:
    (directory / name).write_bytes(b"".join(lines))


def tear(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines[:-1], lines[-1][:-20]])


def tear_errors(directory: Path) -> None:
    put(directory, [lines_of(directory, "errors.jsonl")[0][:30]], "errors.jsonl")


def fill_with_nul(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines[:-2], b"\0" * 3000])


def garbage_inside(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines[:3], b"\xff\xfe garbage \x00\n", *lines[4:]])


def json_of_nobodys_inside(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines[:3], b'{"id": 5, "custom_id": "row-3"}\n', b"[]\n", b"7\n", *lines[4:]])


def half_a_line_inside(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines[:2], lines[2][:50] + b"\n", *lines[3:]])


def a_line_without_its_parts(directory: Path) -> None:
    """One of ours by its id, but nobody wrote it so."""
    lines = lines_of(directory)
    row = json.loads(lines[4])
    put(directory, [*lines[:4], json.dumps({**row, "response": None}).encode() + b"\n", *lines[5:]])


def another_rows_answer_inside(directory: Path) -> None:
    """An answer that was moved under another id."""
    lines = lines_of(directory)
    row = json.loads(lines[4])
    put(directory, [*lines[:4], json.dumps({**row, "custom_id": "row-0"}).encode() + b"\n", *lines[5:]])


def no_json_word_inside(directory: Path) -> None:
    """NaN is no JSON."""
    lines = lines_of(directory)
    put(directory, [*lines[:4], lines[4].replace(b'"attempts":1', b'"attempts":NaN'), *lines[5:]])


def a_row_twice(directory: Path) -> None:
    lines = lines_of(directory)
    put(directory, [*lines, lines[2]])


def answered_and_failed(directory: Path) -> None:
    bad = json.loads(lines_of(directory, "errors.jsonl")[0])
    row = json.loads(lines_of(directory)[1])
    row |= {"response": bad["response"]}
    put(directory, [*lines_of(directory, "errors.jsonl"), json.dumps(row).encode() + b"\n"], "errors.jsonl")


def wrong_totals(directory: Path) -> None:
    path = directory / "usage.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"attempts":9', b'"attempts":8'))


def no_totals(directory: Path) -> None:
    (directory / "usage.jsonl").unlink()


def spoil_superseded(directory: Path) -> None:
    row = json.loads(lines_of(directory, "errors.jsonl")[0])
    put(directory, [b"garbage\n", json.dumps(row).encode()[:40]], "superseded.jsonl")


def no_index(directory: Path) -> None:
    (directory / "checkpoint.sqlite").unlink()


def garbage_index(directory: Path) -> None:
    (directory / "checkpoint.sqlite").write_bytes(b"SQLite format 3\0" + b"garbage" * 900)


def older_index(directory: Path) -> None:
    shutil.copy(directory.parent / "older.sqlite", directory / "checkpoint.sqlite")


def lying_index(directory: Path) -> None:
    """It adds up, and is wrong: other totals, and a row that was never answered."""
    with sqlite3.connect(directory / "checkpoint.sqlite") as connection:
        connection.execute(
            "UPDATE meta SET value = replace(value, '\"attempts\":9', '\"attempts\":7') WHERE name = 'totals'"
        )
    connection.close()


def cut_off(directory: Path) -> None:
    """What a power cut leaves: the index speaks of lines that are not there."""
    put(directory, lines_of(directory)[:5])


class Damage(NamedTuple):
    """One of them: how many rows it costs, and whether `verify` calls it wrong."""

    do: Callable[[Path], None]
    cost: int
    is_wrong: bool


UNASKED = [
    fill_with_nul,
    garbage_inside,
    no_index,
    garbage_index,
    older_index,
    lying_index,
    cut_off,
]  # a start mends them


DAMAGES = [
    Damage(tear, 1, is_wrong=True), Damage(tear_errors, 1, is_wrong=True), Damage(fill_with_nul, 2, is_wrong=True),
    Damage(garbage_inside, 1, is_wrong=True), Damage(json_of_nobodys_inside, 1, is_wrong=True),
    Damage(half_a_line_inside, 1, is_wrong=True), Damage(a_line_without_its_parts, 1, is_wrong=True),
    Damage(another_rows_answer_inside, 1, is_wrong=True), Damage(no_json_word_inside, 1, is_wrong=True),
    Damage(a_row_twice, 0, is_wrong=True), Damage(answered_and_failed, 0, is_wrong=True),
    Damage(wrong_totals, 0, is_wrong=True), Damage(no_totals, 0, is_wrong=True),
    Damage(spoil_superseded, 0, is_wrong=True), Damage(no_index, 0, is_wrong=False),
    Damage(garbage_index, 0, is_wrong=False), Damage(older_index, 0, is_wrong=False),
    Damage(lying_index, 0, is_wrong=False), Damage(cut_off, 3, is_wrong=True),
]  # fmt: skip
