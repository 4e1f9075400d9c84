"""`status`: where a run stands, told from its files alone, without disturbing the process that may be running it."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from batchrouter.audit import read_about
from batchrouter.database import Unusable
from batchrouter.index import Index

_RECENT_LINES: Final = 200
_RECENT_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. `running` is the process that holds the directory (None: nobody does); `rows` is None until
    the plan has been made; `rows_per_s` is over the last answers, `shares` by which model and endpoint those came;
    `last_event` is the last line of events.jsonl.
    """

    directory: str
    running: int | None
    rows: int | None
    answered: int
    failed: int
    pending: int | None
    rows_per_s: float | None
    shares: dict[str, int]
    last_event: dict[str, Any] | None


def look(directory: Path) -> Standing:
    """Read how a run stands, or a first start whose plan is being made; raises UsageError where there is neither."""
    if not (directory / "lock").exists():
        read_about(directory)  # which says that there is none
    answered, failed = (_lines_in(directory / name) for name in ("results.jsonl", "errors.jsonl"))
    rows = removed = None
    try:
        index = Index.view(directory / "checkpoint.sqlite")
        meta = index.meta()
        rows, removed = meta.get("rows"), meta.get("removed", 0)
        index.close()
    except Unusable:
        pass
    events = _last_objects(directory / "events.jsonl", 1)
    last = _last_objects(directory / "results.jsonl", _RECENT_LINES)
    recent = [row["batchrouter"] for row in last if type(row.get("batchrouter")) is dict]
    return Standing(
        str(directory),
        _holder(directory / "lock"),
        rows,
        answered,
        failed,
        None if rows is None else max(0, rows - answered - failed + (removed or 0)),
        _speed(recent),
        dict(Counter(f"{row['model']} at {row['endpoint']}" for row in recent if {"model", "endpoint"} <= row.keys())),
        events[-1] if events else None,
    )


def _lines_in(path: Path) -> int:
    count = 0
    if path.exists():
        with path.open("rb") as file:
            while block := file.read(2**20):
                count += block.count(b"\n")
    return count


def _last_objects(path: Path, most: int) -> list[dict[str, Any]]:
    """The last whole lines of a JSONL file that can be read."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _RECENT_BYTES))
        lines = file.read(_RECENT_BYTES).split(b"\n")[:-1]
    found = []
    for line in lines[-most:]:
        try:
            read = orjson.loads(line)
        except orjson.JSONDecodeError:  # the window began in the middle of it, or it is damaged
            continue
        if type(read) is dict:
            found.append(read)
    return found


def _speed(rows: list[dict[str, Any]]) -> float | None:
    times = []
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):  # a damaged line
            times.append(datetime.fromisoformat(row["finished_at"]).timestamp())
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return round((len(times) - 1) / (times[-1] - times[0]), 2)


def _holder(lock: Path) -> int | None:
    """The process that holds the lock, as far as can be told without touching it: a try to take it, however short,
    could turn away a run that starts at that moment.
    """
    try:
        pid = int(lock.read_text("utf-8", errors="replace").split()[1])
        inode = lock.stat().st_ino
    except (OSError, ValueError, IndexError):
        return None
    try:
        held = any(
            line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text("utf-8").splitlines()
        )
    except (OSError, IndexError):  # not Linux: whether the process lives is the best guess
        held = _is_alive(pid)
    return pid if held else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
