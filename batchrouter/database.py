"""A SQLite file of ours: how it is opened, its transactions, and the named values kept beside its rows.

Rules of this file: it knows nothing of what the rows mean. Whatever is wrong with such a file is `Unusable`: none holds
what cannot be found again elsewhere.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from batchrouter import jsontext
from batchrouter.errors import DiskError

_CACHE: Final = "PRAGMA cache_size=-2048"  # KiB; four times as much is hardly quicker


class Unusable(Exception):  # noqa: N818  (a finding, not a mishap)
    """The file is missing, damaged, of another version, or does not fit: make it anew."""


@contextlib.contextmanager
def disk_faults(where: Path) -> Iterator[None]:
    """While inside: what the disk or SQLite cannot do is a DiskError that names the place."""
    try:
        yield
    except (sqlite3.Error, Unusable) as error:
        raise DiskError(f"{where}: {error}") from None
    except OSError as error:
        raise DiskError(f"{error.filename or where}: {error.strerror}") from None


class Database:
    """One open file, with a table `meta` among its own. Every method raises sqlite3.Error for what SQLite cannot do."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path
        self._meta: dict[str, Any] | None = None  # as it was read last, until something is put

    def one(self, query: str, *values: object) -> Any:
        """The first column of the first row."""
        return self.connection.execute(query, values).fetchone()[0]

    def meta(self) -> dict[str, Any]:
        """What was put by `put_meta`; raises Unusable where it cannot be read."""
        if self._meta is not None:
            return self._meta
        try:
            found = self.connection.execute("SELECT * FROM meta")
            self._meta = {name: jsontext.loads(value.encode()) for name, value in found}
        except (sqlite3.Error, jsontext.NotJson, AttributeError, ValueError) as error:
            raise Unusable(str(error)) from None
        return self._meta

    def put_meta(self, values: dict[str, Any]) -> None:
        """Keep values that JSON can hold, in a transaction of their own."""
        with self.transaction():
            self.add_meta(values)

    def add_meta(self, values: dict[str, Any]) -> None:
        """The same in the transaction that the caller is in."""
        rows = [(name, jsontext.dumps(value).decode()) for name, value in values.items()]
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", rows)
        self._meta = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is kept as a whole, or not at all."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            self._meta = None
            raise
        self.connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any one thread at a time may use."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute(_CACHE)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def remove(path: Path) -> None:
    """Delete a file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
