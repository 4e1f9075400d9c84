"""Which source row an answer belongs to: row ids, their uniqueness, and the join that puts both side by side.

Rules of this file: rows are matched by id alone, never by position. The source is read once, forward; rows that are
passed over on the way (the run sampled them out, or the table was sorted since) are parked on the disk, so that any
order is right and the usual one, which is the same, costs nothing. What is unpickled here was pickled by this very
process, into a file that nobody else can open.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from batchrouter.dataset.tables import Row, Rows, listed
from batchrouter.errors import UsageError

Item = TypeVar("Item")

_BATCH: Final = 4096
_CACHE_KIB: Final = 8192


def row_id(row: Row, column: str | None) -> str | None:
    """How a row's request is known: the text of its cell in `column` (null: it has none), or else `row-17`."""
    if column is None:
        return f"row-{row.number}"
    value = row.values.get(column)
    return None if value is None or value == "" else str(value)


class UniqueIds:
    """Checks that no id comes twice, in bounded memory: digests on the disk, compared when all are there."""

    def __init__(self, rows: Rows, column: str) -> None:
        self._rows = rows
        self._column = column
        self._database = _temporary("CREATE TABLE seen(key BLOB, number INTEGER, line INTEGER)")
        self._batch: list[tuple[bytes, int, int]] = []

    def add(self, row: Row) -> str:
        """The row's id; raises UsageError where it has none."""
        found = row_id(row, self._column)
        if found is None:
            if self._column not in row.values:
                there = listed(row.values)
                raise UsageError(f"{self._rows.place(row)} has no column {self._column!r}; there are: {there}")
            raise UsageError(
                f"{self._rows.place(row)}: its {self._column!r} is empty; fill it, or leave --id out to number the rows"
            )
        digest = hashlib.blake2b(found.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        self._batch.append((digest, row.number, row.line))
        if len(self._batch) >= _BATCH:
            self._flush()
        return found

    def _flush(self) -> None:
        self._database.executemany("INSERT INTO seen VALUES(?,?,?)", self._batch)
        self._batch.clear()

    def finish(self) -> None:
        """All rows were added; raises UsageError naming the first two rows that share an id."""
        self._flush()
        twins = self._database.execute(
            "SELECT count(*) - 1 AS extra, min(number), min(line), key FROM seen GROUP BY key HAVING extra > 0"
            " ORDER BY 2 LIMIT 1"
        ).fetchone()
        if twins is None:
            return
        _, number, line, key = twins
        second = self._database.execute(
            "SELECT min(number), min(line) FROM seen WHERE key = ? AND number > ?", (key, number)
        ).fetchone()
        places = [self._rows.place(Row(place[0], place[1], {})) for place in ((number, line), second)]
        raise UsageError(
            f"{places[1]}: its {self._column!r} is that of {places[0]}; ids must be unique: choose another column,"
            " or leave --id out to number the rows"
        )

    def close(self) -> None:
        """Let go of the disk."""
        self._database.close()


@dataclass(slots=True)
class Join(Generic[Item]):
    """Items that know their row's id, each with that row of `source`; null where the source has no such row.

    `matched` and `unmatched` count items, once they were given.
    """

    source: Rows
    id_column: str | None
    matched: int = 0
    unmatched: int = 0

    def pairs(self, items: Iterable[tuple[str, Item]]) -> Iterator[tuple[Mapping[str, Any] | None, Item]]:
        """The pairs, in the order of the items."""
        with closing(_Parking()) as parked:
            rows = self.source.rows()
            for wanted, item in items:
                values = parked.take(wanted) if parked.count else None
                if values is None:
                    values = self._advance(rows, wanted, parked)
                if values is None:
                    self.unmatched += 1
                else:
                    self.matched += 1
                yield values, item

    def _advance(self, rows: Iterator[Row], wanted: str, parked: _Parking) -> Mapping[str, Any] | None:
        """The row with the id, reading on from where the last one was; those on the way are parked."""
        for row in rows:
            found = row_id(row, self.id_column)
            if found == wanted:
                return row.values
            if found is not None:
                parked.put(found, row.values)
        return None


class _Parking:
    """Rows that were passed over, on the disk, by id; of several with one id the first is given first."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None
        self.count = 0

    def put(self, row: str, values: Mapping[str, Any]) -> None:
        if self._database is None:
            self._database = _temporary("CREATE TABLE parked(id BLOB, content BLOB); CREATE INDEX ids ON parked(id)")
        content = pickle.dumps(dict(values), protocol=pickle.HIGHEST_PROTOCOL)
        self._database.execute("INSERT INTO parked VALUES(?,?)", (_key(row), content))
        self.count += 1

    def take(self, row: str) -> Mapping[str, Any] | None:
        if self._database is None:
            return None
        query = "SELECT rowid, content FROM parked WHERE id = ? ORDER BY rowid LIMIT 1"
        found = self._database.execute(query, (_key(row),)).fetchone()
        if found is None:
            return None
        self._database.execute("DELETE FROM parked WHERE rowid = ?", (found[0],))
        self.count -= 1
        values: Mapping[str, Any] = pickle.loads(found[1])  # noqa: S301  (our own, see above)
        return values

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


def _key(row: str) -> bytes:
    return row.encode("utf-8", "surrogatepass")


def _temporary(schema: str) -> sqlite3.Connection:
    """A database of this process alone, on the disk, gone when it is closed."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.executescript(f"PRAGMA cache_size=-{_CACHE_KIB}; {schema}; BEGIN;")
    return database
