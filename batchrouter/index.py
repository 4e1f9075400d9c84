"""checkpoint.sqlite: the index over plan and log, so that a run resumes without reading either again.

Rules of this file: it holds nothing that the input and the log do not; whatever is wrong with it (`Unusable`) is mended
by building it anew. A commit never names log bytes that were not synced before it. Rows are numbered from 0 in input
order; `key` and `digest` are those of `records.Identity`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from batchrouter.database import Database, Unusable, connect, disk_faults, remove
from batchrouter.insertion import insertions, summed
from batchrouter.jsonl import sync_file

VERSION: Final = 4
PENDING, ANSWERED, FAILED = 0, 1, 2  # row.state
LOG_OF: Final = {ANSWERED: "results.jsonl", FAILED: "errors.jsonl"}
REQUEST, INVALID, DUPLICATE = 0, 1, 2  # row.kind

_WHICH: Final = {
    "request": "kind = 0",
    "refused": "kind <> 0",
    "leader": "kind = 0 AND NOT EXISTS (SELECT 1 FROM row earlier WHERE earlier.digest = row.digest"
    " AND earlier.n < row.n AND earlier.state = 0 AND earlier.kind = 0)",
}
# Damage that SQLite itself does not notice shows in these: over what never changes, and over what `commit` adds to.
# (`insertion.summed` knows the first ones, too.)
_PLAN_SUMS: Final = ("n + file * 7 + line * 5 + start % 1000003 + length * 3 + kind * 11 + model * 13", "kind <> 0")
_STATE_SUMS: Final = ("(state * 1000003 + at % 1000003) * (n % 1009 + 1)",)
_SCHEMA: Final = """
CREATE TABLE row(
  n INTEGER PRIMARY KEY, key BLOB NOT NULL, digest BLOB NOT NULL,
  file INTEGER NOT NULL, line INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
  kind INTEGER NOT NULL, model INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL DEFAULT 0);
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_HAS_LINE: Final = "state = ? AND at IN (SELECT value FROM json_each(?))"
_UNIQUE_PENDING: Final = (
    "SELECT digest FROM row WHERE n < ?1 AND state = 0 AND kind = 0"
    " EXCEPT SELECT digest FROM row WHERE state = 1 AND kind = 0"
)
_WAL: Final = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"


class Planned(NamedTuple):
    """A row as the plan knows it: where its line is, and who it is."""

    n: int
    key: bytes
    digest: bytes
    file: int
    line: int
    start: int
    length: int
    kind: int
    model: int


_PLANNED: Final = ", ".join(Planned._fields)
_PLANNED_OF_R: Final = ", ".join(f"r.{name}" for name in Planned._fields)


class Logged(NamedTuple):
    """A line of a log as the index needs it: whose answer (or failure) it is, and where it stands."""

    key: bytes
    digest: bytes
    state: int
    at: int
    refused: bool
    place: str


class Index(Database):
    """One open checkpoint.sqlite. Every method raises `Unusable` for damage, OSError-like faults as sqlite3.Error."""

    @classmethod
    def open(cls, path: Path) -> Index:
        """The index at `path`, checked; raises Unusable."""
        if not path.is_file() or path.is_symlink():
            raise Unusable("there is none")
        try:
            connection = connect(path)
        except sqlite3.Error as error:
            raise Unusable(str(error)) from None
        index = cls(connection, path)
        try:
            connection.executescript(_WAL)
            index.check()
        except (sqlite3.Error, Unusable) as error:
            index.close()
            raise Unusable(str(error)) from None
        return index

    @classmethod
    def view(cls, path: Path) -> Index:
        """The index at `path` to read a few figures from, unchecked, beside whoever writes it; raises Unusable.

        Where it may, it is opened as a writer would: only so are the files beside it, which any reader of a database in
        WAL mode needs, taken away again at the end.
        """
        mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
        try:
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            return cls(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5), path)
        except sqlite3.Error as error:
            raise Unusable(str(error)) from None

    @classmethod
    def build(cls, path: Path, rows: Iterable[list[Any]]) -> Index:
        """A new index of `rows` (the SURVEYED fields of one row after another, in lists of any length) in place of
        whatever is at `path`; nothing is answered yet.
        """
        remove(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = connect(path)
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        connection.execute("BEGIN")
        most_values = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        written: Future[Any] | None = None
        sums = [0, 0]
        with ThreadPoolExecutor(1) as writer:  # SQLite works beside the interpreter
            for statement, values in insertions(summed(rows, sums), most_values):
                if written is not None:
                    written.result()
                written = writer.submit(connection.execute, statement, values)
            if written is not None:
                written.result()
        connection.execute("COMMIT")
        index = cls(connection, path)
        index.put_meta({"plan_sums": sums, "sums": [0]})
        return index

    def finish_build(self, meta: dict[str, Any]) -> None:
        """Declare a built index valid: only now would `open` take it."""
        sync_file(self.path)
        self.connection.executescript(_WAL)
        self.put_meta(
            {
                "version": VERSION,
                "rows": self.one("SELECT count(*) FROM row"),
                **meta,
            }
        )

    def check(self) -> None:
        """Read every row once; raises Unusable where that shows any damage."""
        meta = self.meta()
        if meta.get("version") != VERSION:
            raise Unusable("another version wrote it")
        count, highest = self.connection.execute(
            "SELECT (SELECT count(*) FROM row), (SELECT max(n) FROM row)"
        ).fetchone()
        if count != meta.get("rows") or (count and highest != count - 1):
            raise Unusable("rows are missing")
        if self._sums(_PLAN_SUMS + _STATE_SUMS) != [*meta.get("plan_sums", []), *meta.get("sums", [])]:
            raise Unusable("its contents do not add up")

    def state_sums(self, where: str) -> list[int]:
        """What `commit` and whoever else books on rows must keep up, of the rows `where` something changes."""
        return self._sums(_STATE_SUMS, where)

    def index_keys(self) -> None:
        """Make rows quick to find by their keys: dear, and only needed where those are doubtful."""
        self.connection.execute("CREATE INDEX IF NOT EXISTS row_key ON row(key)")

    def _sums(self, terms: tuple[str, ...], where: str = "") -> list[int]:
        """What columns of rows add up to: of all rows it is kept beside them, so that damage shows."""
        columns = ", ".join(f"coalesce(sum({term}), 0)" for term in terms)
        return list(self.connection.execute(f"SELECT {columns} FROM row {where}").fetchone())  # noqa: S608  (as above)

    def mark_duplicates(self, rekey: Callable[[bytes, int, int], bytes]) -> None:
        """Count every row whose key an earlier row has as a duplicate, known from now on by rekey(key, file, line)."""
        self.index_keys()
        self.connection.create_function("rekey", 3, rekey, deterministic=True)
        self.connection.execute(
            "UPDATE row SET kind = ?, key = rekey(row.key, row.file, row.line) FROM"
            " (SELECT key, min(n) AS n FROM row INDEXED BY row_key GROUP BY key HAVING count(*) > 1) first"
            " WHERE row.key = first.key AND row.n <> first.n",
            (DUPLICATE,),
        )
        self.put_meta({"plan_sums": self._sums(_PLAN_SUMS)})

    def first_of(self, key: bytes) -> Planned | None:
        """The row known by `key`."""
        found = self._planned("key = ?", key)
        return found[0] if found else None

    def _planned(self, where: str, *values: object) -> list[Planned]:
        query = f"SELECT {_PLANNED} FROM row WHERE {where}"  # noqa: S608  (constants of this file)
        return [Planned(*found) for found in self.connection.execute(query, values)]

    def pending(self, after: int, below: int, most: int, *, which: str = "request") -> list[Planned]:
        """At most `most` pending rows with after < n < below, in input order: every `request`, or of requests with
        equal bodies the `leader`, or the rows that were `refused`.
        """
        where = f"n > ? AND n < ? AND state = 0 AND {_WHICH[which]} ORDER BY n LIMIT ?"
        with disk_faults(self.path):
            if which == "refused" and not self.meta()["plan_sums"][1]:
                return []
            return self._planned(where, after, below, most)

    def index_bodies(self) -> None:
        """Make `leader`, `twins`, `answered_twins` and `answers_to` quick."""
        self.connection.execute("CREATE INDEX IF NOT EXISTS row_digest ON row(digest)")

    def twins(self, digest: bytes, n: int, below: int) -> list[Planned]:
        """The pending requests with a body like that of row `n`, other than it."""
        return self._planned("digest = ? AND n <> ? AND n < ? AND state = 0 AND kind = 0 ORDER BY n", digest, n, below)

    def answered_twins(self, below: int) -> Iterator[Planned]:
        """Pending requests with the body of an answered row."""
        query = (
            f"SELECT {_PLANNED_OF_R} FROM row r WHERE r.state = 0 AND r.kind = 0 AND r.n < ? AND EXISTS"  # noqa: S608  (as above)
            " (SELECT 1 FROM row t WHERE t.digest = r.digest AND t.state = 1 AND t.kind = 0) ORDER BY r.n"
        )
        return map(Planned._make, self.connection.execute(query, (below,)))

    def answers_to(self, digest: bytes) -> Iterator[int]:
        """Where answered rows with this body have their answers (those of kept rows are answers to another body)."""
        query = "SELECT at FROM row WHERE digest = ? AND state = 1 AND kind = 0 ORDER BY at"
        return (at for (at,) in self.connection.execute(query, (digest,)))

    def models(self, below: int, counts: Mapping[tuple[int, int], int] | None = None) -> dict[str, int]:
        """Model -> pending requests, among the first `below` rows, the most frequent first; `counts` are of them, too,
        where they are known.
        """
        names = self.meta()["models"]
        if len(names) == 1:  # the common case, in no time
            found = [(0, (counts or self.counts(below)).get((REQUEST, PENDING), 0))]
        else:
            query = (
                "SELECT model, count(*) FROM row WHERE n < ? AND state = 0 AND kind = 0 GROUP BY model ORDER BY 2 DESC"
            )
            found = self.connection.execute(query, (below,)).fetchall()
        return {names[number]: count for number, count in found if count}

    def models_at(self, log: str, starts: Collection[int]) -> set[str]:
        """The models of the rows whose lines in a log start there."""
        names = self.meta()["models"]
        query = f"SELECT DISTINCT model FROM row WHERE {_HAS_LINE} AND kind = 0"  # noqa: S608  (as above)
        return {names[number] for (number,) in self.connection.execute(query, _lines(log, starts))} if starts else set()

    def lines_below(self, below: int, log: str, starts: Collection[int]) -> set[int]:
        """Those of the starts of lines in a log that are of the first `below` rows."""
        query = f"SELECT at FROM row WHERE {_HAS_LINE} AND n < ?"  # noqa: S608  (as above)
        return {at for (at,) in self.connection.execute(query, (*_lines(log, starts), below))} if starts else set()

    def bodies_twice(self, below: int) -> int:
        """How many pending requests have the body of an answered row, or of an earlier pending one."""
        pending = self.one("SELECT count(*) FROM row WHERE n < ? AND state = 0 AND kind = 0", below)
        return int(pending - self.one(f"SELECT count(*) FROM ({_UNIQUE_PENDING})", below))  # noqa: S608  (as above)

    def counts(self, below: int) -> dict[tuple[int, int], int]:
        """(kind, state) -> rows, among the first `below`."""
        meta = self.meta()
        found: dict[tuple[int, int], int] = {}
        if meta["plan_sums"][1]:
            query = "SELECT kind, state, count(*) FROM row WHERE n < ? AND kind <> 0 GROUP BY kind, state"
            found = {(kind, state): count for kind, state, count in self.connection.execute(query, (below,))}
        answered = failed = 0
        if meta["sums"] != [0]:  # else every row is pending
            # What is grouped is sorted, too: for the many this is quicker.
            query = "SELECT total(state = 1), total(state = 2) FROM row WHERE n < ? AND kind = 0"
            answered, failed = map(int, self.connection.execute(query, (below,)).fetchone())
        rows = min(below, self.one("SELECT coalesce(max(n) + 1, 0) FROM row"))
        pending = rows - sum(found.values()) - answered - failed
        of_requests = {(REQUEST, PENDING): pending, (REQUEST, ANSWERED): answered, (REQUEST, FAILED): failed}
        return found | {which: count for which, count in of_requests.items() if count}

    def forget(self) -> None:
        """Take all rows for pending again: the log was rewritten and is to be loaded from its start."""
        with self.transaction():
            self.connection.execute("UPDATE row SET state = 0, at = 0 WHERE state <> 0 OR at <> 0")
            self.add_meta({"sums": [0], "marks": None})

    def commit(self, done: list[tuple[int, int, int]], meta: dict[str, Any]) -> None:
        """Book (n, state, at) of rows that the synced log holds, together with the marks that account for them.

        One statement for all of them: SQLite works it off without the interpreter lock, beside the event loop.
        """
        with self.transaction():
            before = self.meta()["sums"]
            self.connection.execute(
                "UPDATE row SET state = json_extract(j.value, '$[1]'), at = json_extract(j.value, '$[2]')"
                " FROM json_each(?) j WHERE row.n = json_extract(j.value, '$[0]')",
                (orjson.dumps(done).decode(),),
            )
            sums = [before[0] + sum((state * 1000003 + at % 1000003) * (n % 1009 + 1) for n, state, at in done)]
            self.add_meta({**meta, "sums": sums})

    def rows_in_order(self) -> Iterator[tuple[Planned, int, int]]:
        """All rows with (state, at), in input order."""
        query = f"SELECT {_PLANNED}, state, at FROM row ORDER BY n"  # noqa: S608  (as above)
        for found in self.connection.execute(query):
            yield Planned(*found[:9]), found[9], found[10]

    def distrust(self) -> None:
        """See to it that nobody opens this index again."""
        self.put_meta({"version": 0})

    def reader(self) -> Index:
        """A second door to the same file, for another thread; raises DiskError."""
        with disk_faults(self.path):
            return Index(connect(self.path), self.path)


def _lines(log: str, starts: Collection[int]) -> tuple[int, str]:
    """The values that _HAS_LINE wants."""
    [state] = [state for state, name in LOG_OF.items() if name == log]
    return state, orjson.dumps(list(starts)).decode()
