"""Are any two of many keys equal: no is certain, and no repeat is missed, wherever it is."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.distinct import Distinct, sorted_run


def may_repeat(folder: Path, runs: list[list[bytes]]) -> bool:
    with closing(Distinct(folder)) as keys:
        for run in runs:
            keys.add(sorted_run(run))
        return keys.may_repeat()


@given(st.lists(st.lists(st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "big") + b"rest"))))
def test_a_repeat_is_found_in_any_runs(tmp_path_factory: pytest.TempPathFactory, runs: list[list[bytes]]) -> None:
    """In one run or over several, empty ones too."""
    keys = [key for run in runs for key in run]
    assert may_repeat(tmp_path_factory.getbasetemp(), runs) == (len(set(keys)) != len(keys))


@pytest.fixture(scope="module")
def many() -> list[list[bytes]]:
    """So many runs that they wait in a file and are looked at in several ranges; the edges of all values among them."""
    rng = random.Random(1)
    keys = [bytes(8), b"\xff" * 8, *(rng.randbytes(8) for _ in range(200_000))]
    return [keys[at : at + 9_000] for at in range(0, len(keys), 9_000)]


@pytest.mark.parametrize("place", [None, 0, 1, 77_777, 200_001])
def test_a_repeat_is_found_among_very_many(tmp_path: Path, many: list[list[bytes]], place: int | None) -> None:
    """The lowest and the highest value too; the file that they waited in is gone."""
    again = [] if place is None else [[many[place // 9_000][place % 9_000]]]
    assert may_repeat(tmp_path, many + again) == bool(again)
    assert list(tmp_path.iterdir()) == []


def test_keys_alike_in_what_is_kept_are_doubtful(tmp_path: Path) -> None:
    """It is for the caller to look closer."""
    assert may_repeat(tmp_path, [[b"12345678aaaa", b"12345678bbbb"]])
