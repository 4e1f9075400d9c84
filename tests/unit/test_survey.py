"""The rows of an input: the same, whoever reads them."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from batchrouter.distinct import sorted_run
from batchrouter.errors import UsageError
from batchrouter.estimate import Weight, Weights
from batchrouter.intake import Shaping
from batchrouter.sources import Source
from batchrouter.survey import Found, survey

Row = tuple[object, ...]


def write(path: Path, rows: int) -> Source:
    """Rows of every kind: with ids and without, refused ones, blank lines, CRLF, a mark, no last newline."""
    lines = [b"\xef\xbb\xbf"]
    for n in range(rows):
        body = {"model": f"m{n % 3}", "messages": [{"role": "user", "content": f"question {n} " + "x" * (n % 50)}]}
        row = (
            body
            if n % 5 == 0
            else {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        )
        lines.append(b"not json" if n % 97 == 5 else json.dumps(row).encode())
        lines.append(b"\r\n" if n % 7 == 0 else b"\n\n" if n % 11 == 0 else b"\n")
    path.write_bytes(b"".join(lines)[:-1])
    return Source(path.name, path)


def children() -> set[int]:
    """The processes that this one has started."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def rows_of(parts: Iterable[Found]) -> list[Row]:
    """Every row with all that is said of it, its model by name; each part's keys are checked on the way."""
    rows = []
    for values, models, keys, _ in parts:
        found = [tuple(values[at : at + 8]) for at in range(0, len(values), 8)]
        assert keys == sorted_run(row[1] for row in found)
        rows += [(*row[:-1], models[row[-1]]) for row in found]
    return rows


def alone(source: Source, shaping: Shaping) -> list[Row]:
    return rows_of(survey(source, shaping, lambda: None))


@pytest.mark.parametrize("part_bytes", [1, 1000, 60_000])
def test_several_processes_find_what_one_does(tmp_path: Path, part_bytes: int) -> None:
    """Every field of every row, in order, wherever the file is cut."""
    source = write(tmp_path / "in.jsonl", 300 if part_bytes == 1 else 3000)
    shaping = Shaping(model="m", defaults=(("seed", "1"),), stream=True)
    found = rows_of(survey(source, shaping, lambda: None, large_bytes=1, part_bytes=part_bytes))
    assert found == alone(source, shaping)
    assert len(found) > 250


def test_what_a_killed_process_does_not_give_back_is_read_here(tmp_path: Path) -> None:
    """One that dies in the middle changes nothing."""
    source = write(tmp_path / "in.jsonl", 3000)
    before, found = children(), []
    for number, part in enumerate(survey(source, Shaping(), lambda: None, large_bytes=1, part_bytes=5000)):
        found.append(part)
        if number == 3:
            helpers = children() - before
            assert helpers
            for pid in helpers:
                os.kill(pid, signal.SIGKILL)
    assert rows_of(found) == alone(source, Shaping())


def test_a_survey_can_be_ended(tmp_path: Path) -> None:
    """What `check` raises ends it, and no process is left."""
    source = write(tmp_path / "in.jsonl", 3000)
    before = children()

    def check() -> None:
        raise UsageError("enough")

    with pytest.raises(UsageError, match="enough"):
        list(survey(source, Shaping(), check, large_bytes=1, part_bytes=5000))
    assert children() == before


def test_a_compressed_file_is_read_by_one(tmp_path: Path) -> None:
    """It cannot be begun in the middle, however large it is."""
    source = write(tmp_path / "in.jsonl", 500)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(source.path.read_bytes()))
    again = rows_of(survey(Source("in.jsonl", packed), Shaping(), lambda: None, large_bytes=1, part_bytes=100))
    assert again == alone(source, Shaping())


def test_requests_are_weighed_where_that_is_wanted(tmp_path: Path) -> None:
    """Each once, by model and budget, whoever reads it and however it is written: as many bytes as are sent."""
    bodies = [
        f'{{"model": "m{n % 2}", "messages": [{{"role": "user", "content": "{"x" * n}"}}], "max_tokens": {n % 3}}}'
        for n in range(40)
    ]
    usual = '{"custom_id": "r%d", "method": "POST", "url": "/v1/chat/completions", "body": %s}'
    rows = [usual % (n, body) if n % 4 else body for n, body in enumerate(bodies)]
    (tmp_path / "in.jsonl").write_text("\n".join([*rows[:20], "{}", "", *rows[20:]]))
    expected = Weights()
    for n, body in enumerate(bodies):
        expected.add(Weight(f"m{n % 2}", n % 3, 1, len(body) // 4, len(body)))
    for size in ({}, {"large_bytes": 1, "part_bytes": 700}):
        found = Weights()
        for part in survey(Source("in.jsonl", tmp_path / "in.jsonl"), Shaping(), lambda: None, weighs=True, **size):
            for weight in part.weights:
                found.add(Weight._make(weight))
        assert sorted(found) == sorted(expected)
    assert not any(part.weights for part in survey(write(tmp_path / "other.jsonl", 9), Shaping(), lambda: None))
