"""The run directory: the log of what was answered and what failed, its totals, its lock, and its recovery.

Rules of this file: results.jsonl and errors.jsonl are the truth; a row is in the kernel's hands the moment `record`
returns, so that no kill takes it back; it is on the disk and in the index after the next checkpoint, in that order.
What is found wrong at the start is cut (a torn tail) or set aside (a damaged line) before anything is appended.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import orjson

from batchrouter import jsontext
from batchrouter.database import Unusable
from batchrouter.errors import BusyError, DiskError
from batchrouter.history import Damaged, Entry, is_of_class, read_entry, tail_digest
from batchrouter.index import ANSWERED, FAILED, LOG_OF, PENDING, Index, Logged
from batchrouter.jsonl import (
    Appender,
    end_of_last_line,
    line_number_at,
    read_lines,
    replace_file,
    sync_directory,
)
from batchrouter.records import Outcome, Refusal, Reply, Request, Usage
from batchrouter.removal import finish_interrupted, take_out
from batchrouter.settings import Price
from batchrouter.usage import Totals

_SHOWN: Final = 20


class Ledger:
    """One run directory, held by this process alone from `open` to `close`.

    `now` gives the wall time in seconds; `redact` is applied to every line before it is written.
    """

    def __init__(
        self, directory: Path, lock_fd: int, redact: Callable[[bytes], bytes], now: Callable[[], float]
    ) -> None:
        self.directory = directory
        self.totals = Totals()
        self._lock_fd = lock_fd
        self._redact = redact
        self._now = now
        self._index: Index | None = None
        self._failure: DiskError | None = None
        self._done: list[tuple[int, int, int]] = []
        self._second = (-1, "")
        self.notes: list[str] = []
        self._damaged: list[tuple[Path, int]] = []
        if finish_interrupted(directory):
            self.notes.append(f"{directory}: taking rows out of the log had been interrupted; it is as it was")
        self.results = self._open_log("results.jsonl")
        self.errors = self._open_log("errors.jsonl")
        self._events: Appender | None = self._open_log("events.jsonl")

    @classmethod
    def open(cls, directory: Path, *, redact: Callable[[bytes], bytes], now: Callable[[], float] = time.time) -> Self:
        """Take the directory (made if need be) and cut torn tails; raises BusyError or DiskError."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(directory / "lock")
            try:
                return cls(directory, lock_fd, redact, now)
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise DiskError(f"{directory}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_log(self, name: str) -> Appender:
        log = Appender(self.directory / name)
        whole = end_of_last_line(log.path, log.size)
        if whole != log.size:
            self.notes.append(f"{log.path}: cut a torn last line of {log.size - whole} bytes; its row is pending again")
            log.cut(whole)
        return log

    # --- what the log says -----------------------------------------------------------------------------------------

    def marks(self) -> dict[str, Any]:
        """Where the logs end now, and what stands there: an index with other marks does not fit them."""
        return {log.path.stem: [log.size, tail_digest(log.path, log.size)] for log in (self.results, self.errors)}

    def fits(self, marks: Mapping[str, Any] | None) -> bool:
        """Whether an index with `marks` accounts for a beginning of these logs."""
        if marks is None:
            return False
        for log in (self.results, self.errors):
            size, tail = marks[log.path.stem]
            if size > log.size or tail_digest(log.path, size) != tail:
                return False
        return True

    def replay(self, marks: Mapping[str, Any] | None) -> Iterator[Logged]:
        """The log's lines past the marks (None: all), each also added to `totals`. A bad tail is cut on the way; of
        damaged lines elsewhere note is taken, for `set_damage_aside`.
        """
        if marks is None:
            self.totals = Totals()
            self._add_superseded()
        for log, state in ((self.results, ANSWERED), (self.errors, FAILED)):
            bad: list[int] = []
            last_good = -1
            for entry in self._entries(log.path, state, marks[log.path.stem][0] if marks else 0, bad):
                last_good = entry.logged.at
                self.totals.count(entry.where, entry.usage, entry.attempts, answered=state == ANSWERED)
                yield entry.logged
            tail = [start for start in bad if start > last_good]
            if tail:
                lost = log.size - tail[0]
                self.notes.append(f"{log.path}: cut a damaged tail of {lost} bytes; its rows are pending again")
                log.cut(tail[0])
            self._damaged += [(log.path, start) for start in bad if start < last_good]

    def _entries(self, path: Path, state: int, start: int, bad: list[int]) -> Iterator[Entry]:
        """The lines of a log from byte `start` on; where one is damaged, its start is added to `bad`."""
        with path.open("rb") as file:
            for line in read_lines(file, start=start):
                try:
                    yield read_entry(line.raw, line.start, state)
                except Damaged:
                    bad.append(line.start)

    def _add_superseded(self) -> None:
        path = self.directory / "superseded.jsonl"
        if path.exists():
            for entry in self._entries(path, PENDING, 0, []):
                self.totals.of(entry.where).add(entry.usage, entry.attempts)

    def set_damage_aside(self) -> bool:
        """Move damaged lines that `replay` met to damaged.jsonl; true if there were any, and all is to be replayed."""
        for path in (self.results.path, self.errors.path):
            starts = [start for log, start in self._damaged if log == path]
            if starts:
                places = ", ".join(f"{path}:{line_number_at(path, start)}" for start in starts[:_SHOWN])
                self.take_out(path.name, starts, "damaged.jsonl")
                self.notes.append(
                    f"{len(starts)} damaged lines set aside in damaged.jsonl, their rows pending: {places}"
                )
        found, self._damaged = bool(self._damaged), []
        return found

    def take_out(self, name: str, starts: Iterable[int], into: str = "superseded.jsonl") -> int:
        """Move the lines of log `name` that start at `starts` (ascending) to another file; gives how many.

        Afterwards the index knows nothing of the log any more, and all of it is to be replayed. Raises DiskError.
        """
        log = self.results if name == self.results.path.name else self.errors
        try:
            log.close()
            count = take_out(log.path, starts, self.directory / into)
            reopened = self._open_log(name)
        except OSError as error:
            raise DiskError(f"{log.path}: {error.strerror}") from None
        if log is self.results:
            self.results = reopened
        else:
            self.errors = reopened
        return count

    def starts_of(self, classes: Collection[str]) -> Iterator[tuple[str, list[int]]]:
        """Log name and line starts of the rows that are of one of the classes which `--retry` names."""
        for state, name in LOG_OF.items():
            if state == ANSWERED and "truncated" not in classes:
                continue
            entries = self._entries(self.directory / name, state, 0, [])
            yield name, [entry.logged.at for entry in entries if any(is_of_class(entry.row, one) for one in classes)]

    def follow_with(self, index: Index) -> None:
        """From now on, checkpoints are booked in `index`, which accounts for the whole log."""
        self._index = index

    # --- what is written -------------------------------------------------------------------------------------------

    def record(self, outcome: Outcome) -> int:
        """Append the end of a row's life to its log; gives how many rows that were (1). Raises DiskError."""
        state = ANSWERED if outcome.answered else FAILED
        log = self.results if state == ANSWERED else self.errors
        try:
            line = orjson.dumps(self._row(outcome), option=orjson.OPT_APPEND_NEWLINE)
        except (TypeError, orjson.JSONEncodeError):  # lone surrogates, integers of any size
            line = jsontext.dumps(self._row(outcome)) + b"\n"
        try:
            at = log.append(self._redact(line))
        except OSError as error:
            raise DiskError(f"{log.path}: {error.strerror}; what was recorded is whole") from None
        self._done.append((outcome.request.n, state, at))
        where = (outcome.model, outcome.endpoint)
        self.totals.count(where, outcome.usage, outcome.attempts, answered=state == ANSWERED)
        return 1

    def answer_for(self, twin: Request, at: int) -> Outcome | None:
        """The answer at byte `at` of results.jsonl as that of `twin`, at no cost; None if it is one to another body."""
        with self.results.path.open("rb") as file:
            file.seek(at)
            row = jsontext.loads(file.readline())
        if not row["id"].endswith(twin.identity.digest.hex()):
            return None
        about, response = row["batchrouter"], row["response"]
        reply = Reply(response["status_code"], {"x-request-id": response["request_id"]}, response["body"], 0.0)
        return Outcome(twin, reply, None, 0, Usage(), about["truncated"], twin.model, about["endpoint"])

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        request, reply = outcome.request, outcome.reply
        about: dict[str, Any] = {"file": request.file, "line": request.line}
        extra = None
        if not isinstance(request, Refusal):
            extra = request.extra
            about["model"] = outcome.model
            about["endpoint"] = outcome.endpoint
        about["attempts"] = outcome.attempts
        if reply is not None:
            about["latency_s"] = round(reply.latency_s, 6)
            if reply.ttft_s is not None:
                about["ttft_s"] = round(reply.ttft_s, 6)
        about["finished_at"] = self._timestamp()
        about["truncated"] = outcome.truncated
        if outcome.usage is not None:
            about["usage"] = outcome.usage._asdict()
        if extra is not None:
            about["extra"] = extra
        return {
            "id": str(request.identity),
            "custom_id": request.custom_id,
            "response": None if reply is None else _response(reply, request.identity.key),
            "error": None if outcome.error is None else {"code": outcome.error[0], "message": outcome.error[1]},
            "batchrouter": about,
        }

    def _timestamp(self) -> str:
        """The wall time as `2026-11-22T20:43:00.123Z`."""
        seconds, milliseconds = divmod(int(self._now() * 1000), 1000)
        if seconds != self._second[0]:  # at full speed, thousands of rows end within one
            self._second = (seconds, f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}")
        return f"{self._second[1]}.{milliseconds:03d}Z"

    def checkpoint(self) -> Callable[[], None]:
        """Take what was recorded so far; the call returned makes it durable, and may run in another thread.

        That call syncs the logs, then books the rows in the index; it raises DiskError. After one that failed no other
        is made: what fsync could not write is not asked for twice, and the index never skips what it has missed.
        """
        done, self._done = self._done, []
        sizes = (self.results.size, self.errors.size)
        totals = self.totals.dump() if done else []

        def make_durable() -> None:
            if self._failure is not None:
                raise self._failure
            try:
                self._sync()
                if done and self._index is not None:
                    self._book(self._index, done, sizes, totals)
            except DiskError as error:
                self._failure = error
                raise

        return make_durable

    def _sync(self) -> None:
        for log in (self.results, self.errors):
            if not log.is_in_place():
                raise DiskError(f"{log.path}: the file is gone from its place; nothing more is sent")
            try:
                log.sync()
            except OSError as error:
                raise DiskError(f"{log.path}: syncing to the disk failed: {error.strerror}") from None

    def _book(self, index: Index, done: list[tuple[int, int, int]], sizes: tuple[int, int], totals: list[Any]) -> None:
        marks = {
            log.path.stem: [size, tail_digest(log.path, size)]
            for log, size in zip((self.results, self.errors), sizes, strict=True)
        }
        try:
            index.commit(done, {"marks": marks, "totals": totals})
        except (sqlite3.Error, Unusable, OSError) as error:
            raise DiskError(
                f"{index.path}: {error}; what was recorded is whole, and the index will be rebuilt"
            ) from None

    def write_usage(self, prices: Mapping[str, Price], endpoints: Collection[str] = ()) -> None:
        """Replace usage.jsonl by the totals as they stand; raises DiskError."""
        self._replace("usage.jsonl", self.totals.lines(prices, endpoints))

    def write_run(self, about: Mapping[str, Any]) -> None:
        """Replace run.json; raises DiskError."""
        self._replace("run.json", json.dumps(about, indent=2).encode() + b"\n")  # ASCII: a path may be no UTF-8

    def _replace(self, name: str, content: bytes) -> None:
        try:
            replace_file(self.directory / name, self._redact(content))
        except OSError as error:
            raise DiskError(f"{self.directory / name}: {error.strerror}") from None

    def note(self, event: str, **about: Any) -> None:
        """Append to events.jsonl. Where that fails it is told once, and the run goes on."""
        if self._events is None:
            return
        line = jsontext.dumps({"at": self._timestamp(), "event": event, **about}) + b"\n"
        try:
            self._events.append(self._redact(line))
        except OSError as error:
            self.notes.append(f"{self._events.path}: {error.strerror}; events are no longer kept")
            self._events = None

    def sync_names(self) -> None:
        """Make the files' names survive a power cut, once they exist."""
        try:
            sync_directory(self.directory)
            sync_directory(self.directory.parent)
        except OSError as error:
            raise DiskError(f"{self.directory}: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the files and of the lock; the last checkpoint is the caller's to make."""
        for log in (self.results, self.errors, self._events):
            if log is not None:
                log.close()
        if self._index is not None:
            self._index.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _lock(path: Path) -> int:
    """Hold `path` until the process ends, however it ends; raises BusyError naming the holder."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 200).decode("utf-8", "replace").strip()
        os.close(fd)
        raise BusyError(f"{path.parent} is held by another batchrouter ({holder or 'just starting'})") from None
    with suppress(OSError):  # who holds it is told for convenience: the lock itself is what counts
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0)
    return fd


def _response(reply: Reply, key: bytes) -> dict[str, Any]:
    request_id = reply.headers.get("x-request-id") or reply.body.get("id")
    if type(request_id) is not str or not request_id:
        request_id = f"req_{key.hex()}"
    return {"status_code": reply.status, "request_id": request_id, "body": reply.body}
