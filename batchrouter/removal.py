"""Lines out of one log into another file, all or none, whatever kills the process meanwhile.

Rules of this file: the log is never without its lines until they stand in the other file, synced; the rename of the
rewritten log is the commit. A journal beside the logs says what was under way: without a commit it is undone, with one
it is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import orjson

from batchrouter.jsonl import Appender, end_of_last_line, read_lines, replace_file, sync_directory

_JOURNAL: Final = "moving.json"
_FRESH: Final = ".kept"


def take_out(log: Path, starts: Iterable[int], into: Path) -> int:
    """Move the lines of `log` that start at `starts` (ascending) to the end of `into`; how many. Raises OSError."""
    fresh = log.with_name(log.name + _FRESH)  # from here on, a journal without this file means: committed
    fresh.unlink(missing_ok=True)
    kept, taken = Appender(fresh), Appender(into)
    try:
        taken.cut(end_of_last_line(into, taken.size))
        about = {"log": log.name, "into": into.name, "into_size": taken.size}
        replace_file(log.with_name(_JOURNAL), orjson.dumps(about))
        count = _divide(log, iter(starts), kept, taken)
        kept.sync()
        taken.sync()
    finally:
        kept.close()
        taken.close()
    fresh.replace(log)
    sync_directory(log.parent)
    _forget_journal(log.parent)
    return count


def _divide(log: Path, starts: Iterable[int], kept: Appender, taken: Appender) -> int:
    wanted = iter(starts)
    next_start = next(wanted, -1)
    count = 0
    with log.open("rb") as file:
        for line in read_lines(file):
            file_of_line = kept
            if line.start == next_start:
                file_of_line = taken
                count += 1
                next_start = next(wanted, -1)
            if line.raw is not None:
                file_of_line.append(line.raw + b"\n")
    return count


def finish_interrupted(directory: Path) -> bool:
    """Undo a `take_out` that was cut short before its commit, or tidy up after one that was not; true if there was
    one. Raises OSError.
    """
    journal = directory / _JOURNAL
    try:
        about = orjson.loads(journal.read_bytes())
    except FileNotFoundError:
        return False
    fresh = directory / (about["log"] + _FRESH)
    if fresh.exists():
        into = directory / about["into"]
        if into.exists():
            os.truncate(into, about["into_size"])
        fresh.unlink()
    _forget_journal(directory)
    return True


def _forget_journal(directory: Path) -> None:
    (directory / _JOURNAL).unlink()
    sync_directory(directory)
