"""A log laid over the plan: which line speaks of which row, and what does not fit, before anything is booked.

Rules of this file: a line belongs to the row with its key; one whose row has another body, or is gone, is shown to
whoever decides about it. What is laid stands in a temporary table of the index's connection until it is settled, or
until the next log is laid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from batchrouter.index import LOG_OF, Index, Logged, Planned

_DROP_CHANGED: Final = (
    "DELETE FROM logged WHERE EXISTS (SELECT 1 FROM row r WHERE r.n = logged.n AND r.digest <> logged.digest)"
)
_OF_LOGGED: Final = "WHERE n IN (SELECT n FROM logged)"
_DIGITS: Final = 16  # a line's number has fewer


class Overlay:
    """Lines of the log over the rows of `index`, to be judged and then `settle`d. Raises what `Index` does."""

    def __init__(self, index: Index, logged: Iterable[Logged]) -> None:
        self.index = index
        self._connection = index.connection
        execute = self._connection.execute
        self._connection.executescript(
            "PRAGMA temp_store=FILE; CREATE TEMP TABLE IF NOT EXISTS logged("
            "key BLOB, digest BLOB, state INTEGER, at INTEGER, refused INTEGER, place TEXT, n INTEGER);"
            "DELETE FROM logged;"
        )
        firsts = index.meta().get("firsts", {})
        execute("BEGIN")
        self._connection.executemany(
            "INSERT INTO logged VALUES(?,?,?,?,?,?,?)", ((*line, _row_at(line.place, firsts)) for line in logged)
        )
        # Nearly every row still is where its line says; for the others every key is looked up.
        execute(
            "UPDATE logged SET n = NULL"
            " WHERE NOT EXISTS (SELECT 1 FROM row r WHERE r.n = logged.n AND r.key = logged.key)"
        )
        if index.one("SELECT EXISTS (SELECT 1 FROM logged WHERE n IS NULL)"):
            index.index_keys()
            execute("UPDATE logged SET n = (SELECT r.n FROM row r WHERE r.key = logged.key) WHERE n IS NULL")
        execute("COMMIT")

    def changed(self) -> Iterator[tuple[Planned, Logged]]:
        """Rows asked before with another body, each with the log line of that."""
        query = (
            f"SELECT {_named('r', Planned._fields)}, {_named('l', Logged._fields)} FROM logged l"  # noqa: S608  (names of the program's own)
            " JOIN row r ON r.n = l.n WHERE r.digest <> l.digest ORDER BY r.n"
        )
        width = len(Planned._fields)
        for found in self._connection.execute(query):
            yield Planned(*found[:width]), Logged(*found[width:])

    def strangers(self) -> Iterator[Logged]:
        """Log lines of rows that the input no longer has."""
        query = f"SELECT {', '.join(Logged._fields)} FROM logged WHERE n IS NULL"  # noqa: S608  (as above)
        return map(Logged._make, self._connection.execute(query))

    def drop_changed(self) -> None:
        """Leave out the lines of rows asked before with another body: they are pending."""
        self._connection.execute(_DROP_CHANGED)

    def drop_mended(self) -> None:
        """Leave out the lines of rows that could not be asked, and are other ones by now: they are pending."""
        self._connection.execute(f"{_DROP_CHANGED} AND refused")

    def twice(self) -> list[str]:
        """Places of rows that stand in the log more than once."""
        query = "SELECT min(place) FROM logged GROUP BY key HAVING count(*) > 1 LIMIT 20"
        return [place for (place,) in self._connection.execute(query)]

    def repeats(self) -> dict[str, list[int]]:
        """Log name -> starts (ascending) of lines whose row has an earlier one; an answer counts as earlier."""
        query = (
            "SELECT l.state, l.at FROM logged l WHERE EXISTS (SELECT 1 FROM logged first WHERE first.key = l.key"
            " AND (first.state, first.at) < (l.state, l.at)) ORDER BY l.state, l.at"
        )
        self._connection.execute("CREATE INDEX IF NOT EXISTS temp.logged_key ON logged(key)")
        found: dict[str, list[int]] = {}
        for state, at in self._connection.execute(query):
            found.setdefault(LOG_OF[state], []).append(at)
        return found

    def settle(self, meta: dict[str, Any]) -> None:
        """Book the lines on their rows, together with the marks and totals that account for them."""
        index = self.index
        with index.transaction():
            before = index.state_sums(_OF_LOGGED)
            self._connection.execute("UPDATE row SET state = l.state, at = l.at FROM logged l WHERE row.n = l.n")
            after = index.state_sums(_OF_LOGGED)
            whole = index.meta()["sums"]
            index.add_meta({**meta, "sums": [a - b + c for a, b, c in zip(whole, before, after, strict=True)]})
        self._connection.execute("DROP TABLE logged")


def _named(table: str, columns: Iterable[str]) -> str:
    return ", ".join(f"{table}.{column}" for column in columns)


def _row_at(place: str, firsts: Mapping[str, int]) -> int | None:
    """The row that stands at a place (`<file>:<line>`) if no line before it is blank; None for another file's."""
    label, _, line = place.rpartition(":")
    first = firsts.get(label)
    return first + int(line) - 1 if first is not None and line.isdecimal() and len(line) < _DIGITS else None
