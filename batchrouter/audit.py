"""`verify`: are the first two promises kept in this directory? Read from its files alone, beside a running process too.

Rules of this file: nothing in the checkpoint is believed: the plan is made anew from the input into a temporary index,
and the log is laid over it; every finding names its file and what to do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from batchrouter.database import disk_faults, remove
from batchrouter.errors import UsageError
from batchrouter.history import Damaged, Entry, read_entry
from batchrouter.index import ANSWERED, LOG_OF, PENDING, Logged
from batchrouter.intake import Shaping
from batchrouter.jsonl import Line, read_lines
from batchrouter.ledger import Ledger
from batchrouter.overlay import Overlay
from batchrouter.plan import build_index, make
from batchrouter.removal import take_out
from batchrouter.settings import Price
from batchrouter.sources import Source
from batchrouter.usage import Totals

SUPERSEDED: Final = "superseded.jsonl"
_SHOWN: Final = 20


@dataclass(slots=True)
class Audit:
    """What was found. `problems` is empty when every input row is in exactly one of answered, failed and pending."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    pending: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unshown: int = 0

    def add(self, problem: str) -> None:
        """Note a problem; beyond the first few they are only counted."""
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)
        else:
            self.unshown += 1


def read_about(directory: Path) -> dict[str, Any]:
    """run.json; raises UsageError where there is none."""
    try:
        about = json.loads((directory / "run.json").read_bytes())
    except OSError:
        raise UsageError(f"{directory} is no run directory: it has no run.json") from None
    except ValueError:
        raise UsageError(f"{directory / 'run.json'} is damaged; start the run again to write it anew") from None
    return dict(about)


def sources_of(about: Mapping[str, Any], directory: Path) -> list[Source]:
    """The inputs that run.json names, where they are now: at that place, or beside the run directory, or in it."""
    sources = []
    for item in about["inputs"]:
        path = Path(item["path"])
        places = (path, directory.parent / path, directory.parent / path.name, directory / path.name)
        sources.append(Source(item["label"], next((place for place in places if place.exists()), path)))
    return sources


def shaping_of(about: Mapping[str, Any]) -> Shaping:
    """What the run's settings do to bodies."""
    settings = about["settings"]
    defaults = tuple((str(key), str(text)) for key, text in settings["set"])
    return Shaping(settings["model"], settings["override_model"], defaults, settings["stream"])


def prices_of(about: Mapping[str, Any]) -> dict[str, Price]:
    """The prices that the run knew."""
    return {name: Price(**prices) for name, prices in about["models"].items()}


def endpoints_of(about: Mapping[str, Any]) -> list[str]:
    """The endpoints that its config file named."""
    return [endpoint["name"] for endpoint in about.get("endpoints", ())]


def audit(directory: Path) -> Audit:
    """Check the files of a run directory against its inputs and each other; raises UsageError."""
    about = read_about(directory)
    sources = sources_of(about, directory)
    found = Audit()
    _check_inputs(about, sources, found)
    totals = Totals()
    with tempfile.TemporaryDirectory(prefix="batchrouter-") as folder:
        index = build_index(Path(folder) / "audit.sqlite", sources, shaping_of(about))
        try:
            overlay = Overlay(index, _entries(directory, totals, found))
            _judge(overlay, sources, found, keeps=about["settings"].get("changed") == "keep")
        finally:
            index.close()
    _check_usage(directory, totals.lines(prices_of(about), endpoints_of(about)), found)
    return found


def _check_inputs(about: Mapping[str, Any], sources: Sequence[Source], found: Audit) -> None:
    for item, source in zip(about["inputs"], sources, strict=True):
        now = source.fingerprint()
        if now["size"] != item["size"]:
            found.add(f"{source.path} had {item['size']} bytes when it was run and has {now['size']}; run it again")


def _entries(directory: Path, totals: Totals, found: Audit) -> Iterator[Logged]:
    """The lines of both logs, each checked by itself and counted."""
    for state, name in LOG_OF.items():
        path = directory / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in read_lines(file):
                if line.raw is not None and line.length == len(line.raw):
                    found.notes.append(f"{path}:{line.number}: the last line is torn, its row pending; a start cuts it")
                    continue
                try:
                    entry = read_entry(line.raw, line.start, state)
                except Damaged as error:
                    found.add(f"{path}:{line.number}: damaged ({error}); --repair sets it aside")
                    continue
                totals.count(entry.where, entry.usage, entry.attempts, answered=state == ANSWERED)
                yield entry.logged
    path = directory / SUPERSEDED
    for line, read in _superseded(path):
        if isinstance(read, Damaged):
            found.add(f"{path}:{line.number}: damaged ({read}); --repair sets it aside")
        else:
            totals.of(read.where).add(read.usage, read.attempts)


def _superseded(path: Path) -> Iterator[tuple[Line, Entry | Damaged]]:
    """The lines of superseded.jsonl, with what each says or what is wrong with it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in read_lines(file):
            try:
                yield line, read_entry(line.raw, line.start, PENDING)
            except Damaged as error:
                yield line, error


def _judge(overlay: Overlay, sources: Sequence[Source], found: Audit, *, keeps: bool) -> None:
    kept = 0
    for row, logged in overlay.changed():
        if keeps and not logged.refused:
            kept += 1
            continue
        found.add(f"{sources[row.file].label}:{row.line}: its answer is to another body; run again with --changed")
    if kept:
        found.notes.append(f"{kept:,} rows keep their answers to other bodies, by --changed keep")
    for place in overlay.twice():
        found.add(f"{place}: it stands in the log more than once; --repair keeps the first")
    found.removed = sum(1 for _ in overlay.strangers())
    overlay.settle({})
    counts = overlay.index.counts(2**62)
    by_state = [sum(count for (_, state), count in counts.items() if state == wanted) for wanted in (0, 1, 2)]
    found.pending, found.answered, found.failed = by_state
    found.rows = sum(by_state)


def _check_usage(directory: Path, expected: bytes, found: Audit) -> None:
    path = directory / "usage.jsonl"
    content = path.read_bytes() if path.exists() else b""
    if content == expected:
        return
    if _has_ended(directory):
        found.add(f"{path} is not the sum of the rows; --repair writes it anew")
    else:
        found.notes.append(f"{path} is written when a run ends, and this one has not")


def _has_ended(directory: Path) -> bool:
    """Whether the last start came to its end by itself: then its last event is `stop`."""
    path = directory / "events.jsonl"
    last = b""
    if path.exists():
        with path.open("rb") as file:
            for line in read_lines(file):
                last = line.raw or b""
    try:
        return bool(orjson.loads(last)["event"] == "stop")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def repair(directory: Path) -> list[str]:
    """Mend what can be mended: torn and damaged lines, lines that stand twice, the index, the totals; gives what was
    done. Raises UsageError, BusyError, DiskError.
    """
    about = read_about(directory)
    sources, shaping = sources_of(about, directory), shaping_of(about)
    with Ledger.open(directory, redact=lambda content: content) as ledger, disk_faults(directory):
        remove(directory / "checkpoint.sqlite")  # whatever it says, it will say what the log says
        _mend_superseded(directory / SUPERSEDED, ledger.notes)
        plan = make(sources, shaping, ledger, changed="keep")
        repeats = Overlay(plan.index, ledger.replay(None)).repeats()
        for name, starts in repeats.items():
            ledger.take_out(name, starts)
            ledger.notes.append(f"{directory / name}: {len(starts)} lines that stood twice moved to superseded.jsonl")
        if repeats:
            plan.index.close()
            plan = make(sources, shaping, ledger, changed="keep")
        plan.index.close()
        ledger.note("repair", done=len(ledger.notes))
        ledger.note("stop", reason="repaired")
        ledger.write_usage(prices_of(about), endpoints_of(about))
        return list(ledger.notes)


def _mend_superseded(path: Path, notes: list[str]) -> None:
    starts = [line.start for line, read in _superseded(path) if isinstance(read, Damaged)]
    if starts:
        take_out(path, starts, path.with_name("damaged.jsonl"))
        notes.append(f"{path}: {len(starts)} damaged lines set aside in damaged.jsonl")
