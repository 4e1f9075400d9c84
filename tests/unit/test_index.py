"""checkpoint.sqlite: what it keeps, what it notices, and that no damage gets past it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.database import Unusable, remove
from batchrouter.index import (
    ANSWERED,
    DUPLICATE,
    FAILED,
    INVALID,
    PENDING,
    REQUEST,
    Index,
    Logged,
    Planned,
)
from batchrouter.insertion import SURVEYED
from batchrouter.overlay import Overlay

META: dict[str, Any] = {"inputs": [["a"]], "shaping": "s", "marks": None, "models": ["m"]}


def planned(n: int, *, key: str | None = None, digest: str = "d", kind: int = REQUEST) -> Planned:
    return Planned(n, name(key or f"k{n}"), name(digest), 0, n + 1, n * 10, 10, kind, 0)


def name(text: str) -> bytes:
    return text.encode().ljust(12, b"\0")


def logged(key: str, state: int = ANSWERED, at: int = 0, digest: str = "d", **fields: Any) -> Logged:
    return Logged(name(key), name(digest), state, at, fields.get("refused", False), f"in.jsonl:{key}")


def surveyed(row: Planned) -> list[Any]:
    return [getattr(row, field) for field in SURVEYED]


def built(path: Path, rows: list[Planned]) -> Index:
    index = Index.build(path, map(surveyed, rows))
    index.finish_build(META)
    return index


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    """Ten rows, all pending."""
    made = built(path, [planned(n) for n in range(10)])
    yield made
    made.close()


def numbers(rows: list[Planned]) -> list[int]:
    return [row.n for row in rows]


def states(index: Index) -> list[int]:
    return [state for _, state, _ in index.rows_in_order()]


def usable(path: Path) -> bool:
    """Whether `open` takes it."""
    try:
        Index.open(path).close()
    except Unusable:
        return False
    return True


# --- what it keeps -----------------------------------------------------------------------------------------------


def test_a_built_index_is_opened_as_it_was(index: Index, path: Path) -> None:
    """Rows, in order, and everything that was put beside them."""
    index.close()
    again = Index.open(path)
    assert [row for row, *_ in again.rows_in_order()] == [planned(n) for n in range(10)]
    assert again.meta()["inputs"] == [["a"]]
    assert again.meta()["rows"] == 10
    again.close()


def test_pending_rows_come_page_by_page(index: Index) -> None:
    """In order, each once, below the limit, without those that have ended."""
    index.commit([(3, ANSWERED, 0), (4, FAILED, 0)], {})
    assert numbers(index.pending(-1, 10, 4)) == [0, 1, 2, 5]
    assert numbers(index.pending(5, 10, 4)) == [6, 7, 8, 9]
    assert numbers(index.pending(5, 8, 4)) == [6, 7]
    assert numbers(index.pending(9, 10, 4)) == []


def test_requests_and_refused_rows_are_told_apart(path: Path) -> None:
    """What can be asked, and what can only be recorded."""
    index = built(path, [planned(0), planned(1, kind=INVALID), planned(2, key="k0"), planned(3)])
    index.mark_duplicates(lambda key, file, line: key + b"%d:%d" % (file, line))
    assert numbers(index.pending(-1, 10, 10)) == [0, 3]
    assert numbers(index.pending(-1, 10, 10, which="refused")) == [1, 2]
    assert index.counts(10) == {(REQUEST, PENDING): 2, (INVALID, PENDING): 1, (DUPLICATE, PENDING): 1}
    assert index.counts(2) == {(REQUEST, PENDING): 1, (INVALID, PENDING): 1}
    index.close()


def test_of_rows_with_one_key_the_first_stands(path: Path) -> None:
    """The later ones are duplicates, each under a key of its own, and the first is found by the old one."""
    index = built(path, [planned(n, key="same" if n in {2, 5, 7} else None) for n in range(9)])
    index.mark_duplicates(lambda key, file, line: key + b"%d:%d" % (file, line))
    kinds = [row.kind for row, *_ in index.rows_in_order()]
    assert kinds == [DUPLICATE if n in {5, 7} else REQUEST for n in range(9)]
    assert len({row.key for row, *_ in index.rows_in_order()}) == 9
    first = index.first_of(name("same"))
    assert first is not None
    assert first.n == 2
    assert index.first_of(name("nobody")) is None
    index.close()


def test_a_commit_is_there_after_opening_anew(index: Index, path: Path) -> None:
    """States, marks and totals of all commits, together."""
    index.commit([(0, ANSWERED, 0), (7, ANSWERED, 500)], {"marks": {"results": [900, "x"]}})
    index.commit([(2, FAILED, 30)], {"marks": {"results": [900, "x"], "errors": [60, "y"]}})
    index.close()
    again = Index.open(path)
    expected = {0: ANSWERED, 7: ANSWERED, 2: FAILED}
    assert states(again) == [expected.get(n, PENDING) for n in range(10)]
    assert again.meta()["marks"]["errors"] == [60, "y"]
    assert [at for *_, at in again.rows_in_order()][7] == 500
    again.close()


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from([ANSWERED, FAILED]), st.integers(0, 2**40)), max_size=6),
        max_size=6,
    )
)
def test_any_commits_add_up(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[tuple[int, int, int]]]
) -> None:
    """Rows that end once each, in any batches: `open` finds the sums to be right, and the states as committed."""
    path = tmp_path_factory.mktemp("index") / "checkpoint.sqlite"
    index = built(path, [planned(n) for n in range(10)])
    ended: dict[int, int] = {}
    for batch in commits:
        fresh = {n: (n, state, at) for n, state, at in batch if n not in ended}
        index.commit(list(fresh.values()), {})
        ended |= {n: state for n, (_, state, _) in fresh.items()}
    index.close()
    again = Index.open(path)
    assert states(again) == [ended.get(n, PENDING) for n in range(10)]
    again.close()


def test_a_commit_that_fails_changes_nothing(index: Index, path: Path) -> None:
    """Something that JSON cannot hold, after the rows were booked: neither rows nor marks are kept."""
    index.commit([(1, ANSWERED, 5)], {"marks": 1})
    with pytest.raises(TypeError):
        index.commit([(2, ANSWERED, 6)], {"marks": {1, 2}})
    assert states(index)[:3] == [PENDING, ANSWERED, PENDING]
    assert index.meta()["marks"] == 1
    index.commit([(2, ANSWERED, 6)], {"marks": 2})
    index.close()
    assert usable(path)


# --- the log laid over it ----------------------------------------------------------------------------------------


def test_the_log_is_laid_over_the_rows(index: Index, path: Path) -> None:
    """Answered and failed rows are booked with their places; those of no row of this input are strangers."""
    overlay = Overlay(index, [logged("k3", at=7), logged("k4", FAILED, 9), logged("gone", at=20)])
    assert [line.place for line in overlay.strangers()] == ["in.jsonl:gone"]
    assert list(overlay.changed()) == []
    overlay.settle({"marks": {}})
    assert states(index) == [{3: ANSWERED, 4: FAILED}.get(n, PENDING) for n in range(10)]
    index.close()
    assert usable(path)


@pytest.mark.parametrize("line", ["4", "5", "1", "0", "99", "-1", "x", "", "9" * 30])
def test_a_line_of_the_log_finds_its_row_wherever_it_says_it_stood(path: Path, line: str) -> None:
    """Its place is a guess, and its key what counts: no line is booked on another row."""
    index = built(path, [planned(n) for n in range(10)])
    index.put_meta({"firsts": {"in.jsonl": 0}})
    overlay = Overlay(
        index,
        [logged("k3", at=7)._replace(place=f"in.jsonl:{line}"), logged("gone")._replace(place=f"in.jsonl:{line}")],
    )
    assert [entry.key for entry in overlay.strangers()] == [name("gone")]
    overlay.settle({"marks": {}})
    assert [n for n, state in enumerate(states(index)) if state] == [3]
    index.close()
    assert usable(path)


def test_rows_where_their_lines_say_need_no_look_at_every_key(path: Path) -> None:
    """The index of keys, which takes long to make, is left for the day when it is needed."""

    def has_keys() -> bool:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'row_key'").fetchone()[0])

    index = built(path, [planned(n) for n in range(10)])
    index.put_meta({"firsts": {"in.jsonl": 0}})
    overlay = Overlay(index, [logged(f"k{n}", at=n)._replace(place=f"in.jsonl:{n + 1}") for n in range(9)])
    overlay.settle({"marks": {}})
    assert not has_keys()
    overlay = Overlay(index, [logged("k9", at=9)._replace(place="in.jsonl:20")])
    overlay.settle({"marks": {}})
    assert has_keys()
    assert states(index) == [ANSWERED] * 10
    index.close()
    assert usable(path)


def test_another_body_under_an_id_is_a_change(index: Index) -> None:
    """The row and the line of the log that speaks of its old body."""
    overlay = Overlay(index, [logged("k3", digest="other"), logged("k4")])
    found = [(row.n, line.place) for row, line in overlay.changed()]
    assert found == [(3, "in.jsonl:k3")]


def test_rows_that_stand_in_the_log_twice_are_named(index: Index) -> None:
    """Whether answered twice, or answered and failed."""
    overlay = Overlay(
        index, [logged("k1"), logged("k2", at=1), logged("k2", at=2), logged("k3", at=3), logged("k3", FAILED)]
    )
    assert sorted(overlay.twice()) == ["in.jsonl:k2", "in.jsonl:k3"]


def test_forget_takes_all_rows_for_pending(index: Index, path: Path) -> None:
    """And what it kept of the log with it."""
    index.commit([(n, ANSWERED, n) for n in range(10)], {"marks": {"results": [1, "x"]}})
    index.forget()
    assert states(index) == [PENDING] * 10
    assert index.meta()["marks"] is None
    index.close()
    assert usable(path)


def test_a_second_door_reads_while_the_first_writes(index: Index) -> None:
    """What was committed is seen through both."""
    other = index.reader()
    index.commit([(0, ANSWERED, 0)], {})
    assert numbers(other.pending(-1, 10, 3)) == [1, 2, 3]
    other.close()


# --- what it notices ---------------------------------------------------------------------------------------------


def test_there_is_none(path: Path, tmp_path: Path) -> None:
    """Missing, a folder, a link: not opened, and a link's target is left alone by building anew."""
    assert not usable(path)
    path.mkdir()
    assert not usable(path)
    path.rmdir()
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    assert not usable(path)
    built(path, [planned(0)]).close()
    assert target.read_bytes() == b"precious"
    assert not path.is_symlink()


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 1000, b"SQLite format 3\0" + b"\0" * 4080])
def test_something_else_is_not_opened(path: Path, content: bytes) -> None:
    """Empty, short, garbage, or a database of nothing."""
    path.write_bytes(content)
    assert not usable(path)


def test_a_build_that_was_cut_short_is_not_opened(path: Path) -> None:
    """Only `finish_build` makes it one."""
    Index.build(path, [surveyed(planned(0))]).close()
    assert not usable(path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM row WHERE n = 4",
        "DELETE FROM row WHERE n = 9",
        "DELETE FROM row",
        "INSERT INTO row VALUES(10, x'00', x'00', 0, 11, 100, 10, 0, 0, 0, 0)",
        "UPDATE row SET state = 1 WHERE n = 5",
        "UPDATE row SET state = 0 WHERE n = 0",
        "UPDATE row SET at = 77 WHERE n = 0",
        "DELETE FROM meta",
        "DELETE FROM meta WHERE name = 'version'",
        "UPDATE meta SET value = '999' WHERE name = 'version'",
        "UPDATE meta SET value = '{' WHERE name = 'rows'",
        "DROP TABLE meta",
        "DROP TABLE row",
    ],
)
def test_contents_that_do_not_add_up_are_noticed(index: Index, path: Path, damage: str) -> None:
    """Rows missing, too many, in another state, or no figures at all."""
    index.commit([(0, ANSWERED, 5)], {})
    index.close()
    assert usable(path)
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()
    assert not usable(path)


def test_a_file_cut_anywhere_is_noticed(path: Path, tmp_path: Path) -> None:
    """After each page but the last, and in the middle of each."""
    built(path, [planned(n) for n in range(500)]).close()
    whole = path.read_bytes()
    for size in range(0, len(whole), 2048):
        cut = tmp_path / "cut.sqlite"
        cut.write_bytes(whole[:size])
        assert not usable(cut), size
        remove(cut)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x5a"])
def test_a_page_of_garbage_gets_nothing_past_it(path: Path, tmp_path: Path, filling: bytes) -> None:
    """Any page overwritten: either that is noticed, or every row is still the row that it was."""
    rows = [planned(n) for n in range(500)]
    made = built(path, rows)
    made.commit([(n, ANSWERED, n) for n in range(0, 500, 3)], {})
    made.close()
    whole = path.read_bytes()
    for start in range(0, len(whole), 4096):
        damaged = tmp_path / "damaged.sqlite"
        damaged.write_bytes(whole[:start] + filling * 4096 + whole[start + 4096 :])
        if usable(damaged):
            again = Index.open(damaged)
            assert [row for row, *_ in again.rows_in_order()] == rows, start
            assert all(again.first_of(row.key) == row for row in rows[::50]), start
            again.close()
        remove(damaged)


def test_flipped_bits_get_nothing_past_it(path: Path, tmp_path: Path) -> None:
    """A bit here or there: noticed, or without effect on which rows there are and how each of them ended."""
    rows = [planned(n, digest=f"d{n}") for n in range(60)]
    made = built(path, rows)
    made.commit([(n, ANSWERED, n) for n in range(0, 60, 3)], {})
    expected = [(row.n, state, at) for row, state, at in made.rows_in_order()]
    made.close()
    whole = path.read_bytes()
    wrong = []
    for at in range(100, len(whole), 37):
        damaged = tmp_path / "damaged.sqlite"
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            again = Index.open(damaged)
            if [(row.n, state, at) for row, state, at in again.rows_in_order()] != expected:
                wrong.append(at)
            again.close()
        except Unusable:
            pass
        remove(damaged)
    assert wrong == []


def test_remove_leaves_nothing_of_it(index: Index, path: Path) -> None:
    """The file and what SQLite keeps beside it; removing nothing is no error."""
    index.commit([(0, ANSWERED, 0)], {})
    shutil.copy(path, path.with_name("checkpoint.sqlite-journal"))
    remove(path)
    remove(path)
    assert list(path.parent.iterdir()) == []
