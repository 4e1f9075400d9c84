"""Very many rows into a new index, as quickly as SQLite takes them.

Rules of this file: pure. Rows come as the SURVEYED fields of one after another, in lists of any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

SURVEYED: Final = ("file", "key", "digest", "line", "start", "length", "kind", "model")  # what a survey says of a row
_AT_ONCE: Final = 1000  # rows a statement, where SQLite takes that many values
_PRIME: Final = 1_000_003


def summed(rows: Iterable[list[Any]], sums: list[int]) -> Iterator[list[Any]]:
    """The rows; what the index has of them under `plan_sums` is added up in `sums` on the way, which costs less than to
    have SQLite look at all of them again.
    """
    factors = {"file": 7, "line": 5, "length": 3, "kind": 11, "model": 13}
    width, count = len(SURVEYED), 0
    for values in rows:
        column = {name: values[place::width] for place, name in enumerate(SURVEYED)}
        sums[0] += sum(factor * sum(column[name]) for name, factor in factors.items())
        sums[0] += sum([start % _PRIME for start in column["start"]])
        sums[1] += sum(map(bool, column["kind"]))
        count += len(values) // width
        yield values
    sums[0] += count * (count - 1) // 2


def insertions(rows: Iterable[list[Any]], most_values: int) -> Iterator[tuple[str, list[Any]]]:
    """Statements that insert rows, in order, each with its values, which are `most_values` at most.

    One of many rows costs half of what one a row does. Those that SQLite numbers by itself, one above the highest,
    cost less than those whose number is told; but the first one it would number 1.
    """
    width = len(SURVEYED)
    most = min(_AT_ONCE, most_values // width)
    columns, places = ", ".join(SURVEYED), f"({','.join('?' * width)})"
    full = f"INSERT INTO row({columns}) VALUES" + ",".join([places] * most)
    rest: list[Any] = []
    has_first = False
    for values in rows:
        rest += values
        if rest and not has_first:
            yield f"INSERT INTO row(n, {columns}) VALUES(0, {places[1:]}", rest[:width]
            del rest[:width]
            has_first = True
        whole = len(rest) - len(rest) % (most * width)
        for begin in range(0, whole, most * width):
            yield full, rest[begin : begin + most * width]
        del rest[:whole]
    if rest:
        yield f"INSERT INTO row({columns}) VALUES" + ",".join([places] * (len(rest) // width)), rest
