"""Rows x ledger -> what is to be done, found before the first paid request.

Rules of this file: the index is used as it is when inputs, shaping and log are what it was made from; else it is built
anew from the input and the whole log is laid over it, so that there is one way to be right. An answer belongs to a row
when both id and body are those that were asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from batchrouter.database import Unusable, remove
from batchrouter.distinct import Distinct
from batchrouter.errors import UsageError
from batchrouter.estimate import Weight, Weights
from batchrouter.index import DUPLICATE, INVALID, LOG_OF, Index, Logged
from batchrouter.insertion import SURVEYED
from batchrouter.intake import Shaping, key_of_duplicate
from batchrouter.overlay import Overlay
from batchrouter.records import Outcome, Refusal, Usage
from batchrouter.rows import Rows
from batchrouter.settings import Changed
from batchrouter.sources import Source
from batchrouter.survey import survey
from batchrouter.usage import Totals

_SHOWN: Final = 20
_CHECK_EVERY: Final = 4096
_MOST_MODELS: Final = 10_000

Item = TypeVar("Item")


class Log(Protocol):
    """What the plan needs of the ledger."""

    directory: Path
    totals: Totals

    def marks(self) -> dict[str, Any]:
        """Where the logs end."""
        ...

    def fits(self, marks: Mapping[str, Any] | None) -> bool:
        """Whether `marks` account for a beginning of the logs."""
        ...

    def replay(self, marks: Mapping[str, Any] | None) -> Iterator[Logged]:
        """The log past the marks."""
        ...

    def set_damage_aside(self) -> bool:
        """Move damaged lines away that `replay` met; true if there were any."""
        ...

    def take_out(self, name: str, starts: Iterable[int]) -> int:
        """Move lines of a log to superseded.jsonl."""
        ...

    def starts_of(self, classes: Collection[str]) -> Iterator[tuple[str, list[int]]]:
        """Lines of each log that are of a class which --retry names."""
        ...

    def follow_with(self, index: Index) -> None:
        """Book what is recorded from now on in `index`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. All figures are rows of this start (`--limit` bounds them), but `removed`."""

    index: Index
    rows: Rows
    total: int
    pending: int
    answered: int
    failed: int
    invalid: int
    duplicates: int
    removed: int
    models: dict[str, int]  # of the pending requests, the most frequent first


def _nothing() -> None:
    """A check that lets everything pass."""


def _anything(_plan: Plan, _models: Collection[str]) -> None:
    """Approve of any plan."""


def make(
    sources: Sequence[Source],
    shaping: Shaping,
    ledger: Log,
    *,
    limit: int | None = None,
    changed: Changed = "refuse",
    retry: Collection[str] = (),
    dedupe: bool = False,
    check: Callable[[], None] = _nothing,
    approve: Callable[[Plan, Collection[str]], None] = _anything,
) -> Plan:
    """Read or reuse the index, lay the log over it, take out what is to be asked again, and count.

    `check` is called now and then; what it raises ends the planning. `approve` is given the plan before anything is
    taken out, and the models that are to be asked afterwards: where it raises, the log is as it was. Raises UsageError
    where rows were asked before with another body (and `changed` is `refuse`), and DiskError.
    """
    overlay, known = _laid(sources, shaping, ledger, check)
    index = overlay.index
    total = index.meta()["rows"]
    below = total if limit is None else min(limit, total)
    again = {name: set(starts) for name, starts in ledger.starts_of(retry)} if retry else {}
    outdated = _outdated(again, overlay, sources, changed, below)
    removed = _settle(overlay, ledger, known)
    ledger.follow_with(index)
    if dedupe:
        index.index_bodies()
    rows = Rows(index, sources, shaping, below=below, dedupe=dedupe)
    plan = _counted(index, rows, removed)
    if limit is not None:
        again = {name: index.lines_below(below, name, starts) for name, starts in again.items()}
    leaving = {name: again.get(name, set()) | outdated.get(name, set()) for name in LOG_OF.values()}
    approve(plan, set(plan.models).union(*(index.models_at(name, starts) for name, starts in leaving.items())))
    if sum(ledger.take_out(name, sorted(starts)) for name, starts in leaving.items() if starts):
        plan = _counted(index, rows, _settle(_laid_anew(index, ledger), ledger, 0))
    return plan


def _settle(overlay: Overlay, ledger: Log, known: int) -> int:
    """Book what was laid; gives how many rows are removed, `known` of them before."""
    removed = known + sum(1 for _ in overlay.strangers())
    kept = any(True for _ in overlay.changed())  # their rows are to be looked at again at every start
    overlay.settle({"marks": ledger.marks(), "totals": ledger.totals.dump(), "removed": removed, "kept": kept})
    return removed


def _laid(sources: Sequence[Source], shaping: Shaping, ledger: Log, check: Callable[[], None]) -> tuple[Overlay, int]:
    """The log over the index of these inputs, not settled, and how many removed rows that knows already."""
    index, marks, meta = _index_for(sources, shaping, ledger, check)
    overlay = Overlay(index, _checked(ledger.replay(marks), check))
    if ledger.set_damage_aside():
        return _laid_anew(index, ledger), 0
    return overlay, meta.get("removed", 0)


def _laid_anew(index: Index, ledger: Log) -> Overlay:
    """The log was rewritten: all of it over the index again, which then knows nothing of before."""
    index.forget()
    return Overlay(index, ledger.replay(None))


def _outdated(
    again: Mapping[str, Collection[int]], overlay: Overlay, sources: Sequence[Source], changed: Changed, below: int
) -> dict[str, set[int]]:
    """Log name -> starts of lines that speak of rows as they no longer are, to be taken out beside those in `again`.

    A row that was refused and has been mended since cost nothing: it is simply asked. One that was asked with another
    body, and is not to be asked again anyway, is the user's to decide; raises UsageError for `refuse`.
    """
    outdated: dict[str, set[int]] = {}
    places: list[str] = []
    count = 0
    for row, logged in overlay.changed():
        name = LOG_OF[logged.state]
        if logged.refused or (changed == "rerun" and row.n < below):
            outdated.setdefault(name, set()).add(logged.at)
        elif row.n >= below or logged.at in again.get(name, ()):
            continue
        elif changed == "refuse":
            count += 1
            if len(places) < _SHOWN:
                places.append(f"{sources[row.file].label}:{row.line}")
    for logged in overlay.strangers():
        if logged.refused:
            outdated.setdefault(LOG_OF[logged.state], set()).add(logged.at)
    if places:
        shown = ", ".join(places) + (" …" if count > len(places) else "")
        raise UsageError(
            f"{count} rows were asked before with another body: {shown}\n"
            "ask them again with --changed rerun, keep the old answers with --changed keep, or use another run"
            " directory"
        )
    return outdated


def _counted(index: Index, rows: Rows, removed: int) -> Plan:
    counts = index.counts(rows.below)
    by_state = [sum(count for (_, state), count in counts.items() if state == wanted) for wanted in (0, 1, 2)]
    by_kind = [sum(count for (kind, _), count in counts.items() if kind == wanted) for wanted in (0, 1, 2)]
    return Plan(
        index,
        rows,
        rows.below,
        by_state[0],
        by_state[1],
        by_state[2],
        by_kind[INVALID],
        by_kind[DUPLICATE],
        removed,
        index.models(rows.below, counts),
    )


def _checked(items: Iterator[Item], check: Callable[[], None]) -> Iterator[Item]:
    """The items, with a check every few thousand."""
    for number, item in enumerate(items):
        if not number % _CHECK_EVERY:
            check()
        yield item


def _index_for(
    sources: Sequence[Source], shaping: Shaping, ledger: Log, check: Callable[[], None]
) -> tuple[Index, Mapping[str, Any] | None, Mapping[str, Any]]:
    """The index of these inputs, the marks up to which it accounts for the log, and what else it knows."""
    path = ledger.directory / "checkpoint.sqlite"
    fingerprints = [[source.label, *source.fingerprint().values()] for source in sources]
    try:
        index = Index.open(path)
        meta = index.meta()
        if meta.get("inputs") == fingerprints and meta.get("shaping") == shaping.fingerprint():
            if ledger.fits(meta["marks"]) and not meta.get("kept"):
                ledger.totals = Totals.load(meta["totals"])
                return index, meta["marks"], meta
            index.forget()
            return index, None, {}
        index.close()
    except (Unusable, KeyError, TypeError, ValueError):
        pass
    index = build_index(path, sources, shaping, check)
    index.finish_build({"inputs": fingerprints, "shaping": shaping.fingerprint(), "marks": None})
    return index, None, {}


def build_index(
    path: Path,
    sources: Sequence[Source],
    shaping: Shaping,
    check: Callable[[], None] = _nothing,
    *,
    weights: Weights | None = None,
) -> Index:
    """A new index at `path` of all rows of `sources`, none of them answered; the requests are weighed where there are
    `weights` to put them on. Raises UsageError, DiskError.
    """
    try:
        with closing(Distinct(path.parent)) as keys:
            found = _Survey(sources, keys, weights)
            index = Index.build(path, found.rows(shaping, check))
            may_repeat = keys.may_repeat()
    except BaseException:
        remove(path)
        raise
    if may_repeat:
        index.mark_duplicates(lambda key, file, line: key_of_duplicate(key, sources[file].label, line))
    index.put_meta({"models": list(found.models), "firsts": found.firsts})
    return index


class _Models(dict[str, int]):
    """Model -> its number in the index; those beyond a bound that no real input meets share the last one."""

    def __missing__(self, model: str) -> int:
        name = model if len(self) < _MOST_MODELS else "others"
        number = self[name] if name in self else len(self)
        self[name] = number
        return number


class _Survey:
    """The rows of all sources. On the way the models are numbered, the first row of each source is noted, the keys are
    kept and the requests weighed.
    """

    def __init__(self, sources: Sequence[Source], keys: Distinct, weights: Weights | None) -> None:
        self.models = _Models()
        self.firsts: dict[str, int] = {}
        self._sources = sources
        self._keys = keys
        self._weights = weights

    def rows(self, shaping: Shaping, check: Callable[[], None]) -> Iterator[list[Any]]:
        """The rows as `Index.build` takes them; raises UsageError where a source cannot be read on."""
        width, model_at = len(SURVEYED), SURVEYED.index("model")
        count = 0
        for number, source in enumerate(self._sources):
            self.firsts[source.label] = count
            weighs = self._weights is not None
            for values, names, run, weights in survey(source, shaping, check, number=number, weighs=weighs):
                numbers = [self.models[name] for name in names]
                if numbers != list(range(len(numbers))):
                    values[model_at::width] = [numbers[place] for place in values[model_at::width]]
                self._keys.add(run)
                if self._weights is not None:
                    for weight in weights:
                        self._weights.add(Weight._make(weight))
                count += len(values) // width
                yield values


def refused_outcome(refusal: Refusal) -> Outcome:
    """How a refused row is booked: failed, with nothing spent."""
    return Outcome(refusal, None, (refusal.code, refusal.message), 0, Usage(), truncated=False, model="", endpoint="")
