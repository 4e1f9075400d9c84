"""What `run` would do, and what it would take: the plan alone, nothing sent, nothing written.

Rules of this file: the run directory is read and no more, so that a run may be at work in it; its index is used as a
copy, and only where it is that of these inputs and this log. What a row costs is known from the rows of its model that
were answered already; before the first one it is estimated. The worst is reckoned as `--max-cost` reserves it.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter.database import Unusable, disk_faults
from batchrouter.estimate import LIKELY_ANSWER_TOKENS, UNBOUNDED_ANSWER_TOKENS, Weight, Weights, size_of
from batchrouter.history import Damaged, is_of_class, read_entry, tail_digest
from batchrouter.index import ANSWERED, LOG_OF, Index, Logged
from batchrouter.intake import Shaping
from batchrouter.jsonl import read_lines
from batchrouter.overlay import Overlay
from batchrouter.plan import build_index
from batchrouter.rows import Rows
from batchrouter.settings import Price, Settings
from batchrouter.sources import Source, find_sources
from batchrouter.standard_input import StandardInput
from batchrouter.usage import Total, Totals

_ALL: Final = 2**62
_INDEX: Final = "checkpoint.sqlite"
_FREE: Final = Price(prompt=0.0, completion=0.0)


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows by what would become of them. Of those to be asked: `tokens` to expect (prompt and answer together), `cost`
    at worst and `likely_cost` in USD (None: not every model has a price), `duration_s` at least, by the limits that are
    given or were learned (None: there are none).
    """

    rows: int
    new: int
    answered: int
    failed: int
    changed: int
    removed: int
    duplicates: int
    invalid: int
    equal_bodies: int
    tokens: int
    cost: float | None
    likely_cost: float | None
    requests_by_model: dict[str, int]
    duration_s: float | None


@dataclass(slots=True)
class _Share:
    """What the rows of one name are expected to come to, at the prices of its models."""

    prices: list[Price]
    requests: int = 0
    tokens: float = 0.0
    worst_cost: float = 0.0
    likely_cost: float = 0.0


class _Laid(NamedTuple):
    """A settled index and what was found on the way; `stale` are changed rows that stand in it with their old answers,
    by state.
    """

    rows: Index
    totals: Totals
    learned: Mapping[str, Any]
    stale: Mapping[int, int]
    changed: int
    removed: int


def preview(inputs: Sequence[str], directory: Path, settings: Settings) -> Preview:
    """Plan a run of `inputs` into `directory` (which need not exist); raises UsageError, DiskError."""
    kept = StandardInput(directory).copy
    with tempfile.TemporaryDirectory(prefix="batchrouter-") as folder:
        if "-" in inputs:
            stdin = StandardInput(Path(folder))
            stdin.keep(sys.stdin.buffer)
            given = stdin.copy
            if not kept.exists() or (given.stat().st_size and not filecmp.cmp(given, kept, shallow=False)):
                kept = given
        return preview_apart(find_sources(tuple(inputs), kept), directory, settings)


def preview_apart(
    sources: Sequence[Source],
    directory: Path,
    settings: Settings,
    *,
    likely_answer_tokens: int = LIKELY_ANSWER_TOKENS,
) -> Preview:
    """Plan a run of `sources` into `directory`, which need not exist; rows that `--retry` or `--changed rerun` takes up
    count among those to be asked. Raises UsageError, DiskError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="batchrouter-") as folder,
        disk_faults(Path(folder)),
        closing(_index_of(Path(folder) / _INDEX, sources, directory, settings, weights := Weights())) as index,
    ):
        meta = index.meta()
        marks = meta["marks"]
        totals = Totals() if marks is None else Totals.load(meta["totals"])
        overlay = Overlay(index, _logged(directory, totals, settings.retry, marks))
        changed, removed = _judged(overlay, settings.limit)
        count = changed.total()
        if settings.changed == "rerun":
            overlay.drop_changed()
            changed.clear()
        overlay.settle({})
        if settings.dedupe:
            index.index_bodies()
        removed += 0 if marks is None else meta["removed"]
        laid = _Laid(index, totals, meta.get("learned", {}), changed, count, removed)
        return _counted(laid, sources, settings, likely_answer_tokens, weights)


def _index_of(path: Path, sources: Sequence[Source], directory: Path, settings: Settings, weights: Weights) -> Index:
    """An index of `sources` at `path`, as a copy of the one in `directory` if that will do; else all requests are put
    on `weights`. Its marks are null unless it knows the log up to them.
    """
    shaping = Shaping(settings.model, settings.override_model, settings.set, settings.stream)
    fingerprints = [[source.label, *source.fingerprint().values()] for source in sources]
    learned: Any = {}
    try:
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{directory / _INDEX}{suffix}", f"{path}{suffix}")
        index = Index.open(path)
        try:
            meta = index.meta()
            learned = meta.get("learned", learned)
            if meta["inputs"] == fingerprints and meta["shaping"] == shaping.fingerprint():
                takes_up = settings.retry or settings.changed == "rerun" or meta["kept"]
                if takes_up or not _fits(directory, meta["marks"]):
                    index.forget()
                return index
        except BaseException:
            index.close()
            raise
        index.close()
    except (Unusable, KeyError, TypeError, ValueError):
        pass
    index = build_index(path, sources, shaping, weights=weights)
    index.put_meta({"marks": None, "learned": learned})
    return index


def _fits(directory: Path, marks: Mapping[str, Any]) -> bool:
    """Whether `marks` account for a beginning of the logs in `directory`."""
    for name in LOG_OF.values():
        path = directory / name
        size, tail = marks[path.stem]
        if not path.exists() or path.stat().st_size < size or tail_digest(path, size) != tail:
            return False
    return True


def _judged(overlay: Overlay, limit: int | None) -> tuple[Counter[int], int]:
    """Changed rows by the state of their old answers, and removed rows. A line of a row that was refused and is another
    one by now says nothing: the row is asked, or refused anew.
    """
    below = _ALL if limit is None else limit
    changed = Counter(logged.state for row, logged in overlay.changed() if not logged.refused and row.n < below)
    removed = sum(1 for logged in overlay.strangers() if not logged.refused)
    overlay.drop_mended()
    return changed, removed


def _logged(directory: Path, totals: Totals, retry: Sequence[str], marks: Mapping[str, Any] | None) -> Iterator[Logged]:
    """The lines of the log past the marks that stand: neither torn nor damaged, nor of a class to be asked again."""
    for state, name in LOG_OF.items():
        path = directory / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in read_lines(file, start=marks[path.stem][0] if marks else 0):
                if line.raw is None or line.length == len(line.raw):
                    continue
                try:
                    entry = read_entry(line.raw, line.start, state)
                except Damaged:
                    continue
                totals.count(entry.where, entry.usage, entry.attempts, answered=state == ANSWERED)
                if not any(is_of_class(entry.row, wanted) for wanted in retry):
                    yield entry.logged


def _counted(
    laid: _Laid, sources: Sequence[Source], settings: Settings, likely_answer_tokens: int, weights: Iterable[Weight]
) -> Preview:
    index = laid.rows
    total = sum(index.counts(_ALL).values())
    below = total if settings.limit is None else min(settings.limit, total)
    counts = index.counts(below)
    models = index.models(below, counts)
    equal = index.bodies_twice(below)
    if settings.dedupe or settings.pools or sum(weight.requests for weight in weights) != counts.get((0, 0), 0):
        weights = _weighed(index, sources, settings, below)
    shares = _expected(weights, settings, likely_answer_tokens)
    for name, share in shares.items():
        for model in settings.pools.get(name, (name,)):
            _learn_from(laid.totals.of_model(model), share, settings.prices.get(model, _FREE))
    has_prices = bool(settings.prices) and all(_prices(settings, name) for name in shares)
    return Preview(
        rows=below,
        new=sum(models.values()),
        answered=counts.get((0, 1), 0) - laid.stale.get(1, 0),
        failed=counts.get((0, 2), 0) - laid.stale.get(2, 0),
        changed=laid.changed,
        removed=laid.removed,
        duplicates=sum(count for (kind, _), count in counts.items() if kind == 2),
        invalid=sum(count for (kind, _), count in counts.items() if kind == 1),
        equal_bodies=equal,
        tokens=round(sum(share.tokens for share in shares.values())),
        cost=sum(share.worst_cost for share in shares.values()) if has_prices else None,
        likely_cost=sum(share.likely_cost for share in shares.values()) if has_prices else None,
        requests_by_model=models,
        duration_s=_duration_s(shares, settings, laid.learned),
    )


def _weighed(index: Index, sources: Sequence[Source], settings: Settings, below: int) -> Iterator[Weight]:
    """Each request that is pending among the first `below` rows, read again."""
    shaping = Shaping(settings.model, settings.override_model, settings.set, settings.stream)
    for request in Rows(index, sources, shaping, below=below, dedupe=settings.dedupe).requests():
        if settings.dedupe and any(True for _ in index.answers_to(request.identity.digest)):
            continue
        size = size_of(request.body)
        yield Weight(request.model, request.answer_tokens, 1, size.likely_tokens, size.most_tokens)


def _expected(weights: Iterable[Weight], settings: Settings, likely_answer_tokens: int) -> dict[str, _Share]:
    """By model, what its requests are expected to come to."""
    shares: dict[str, _Share] = {}
    answers = settings.json_attempts if settings.check_json else 1
    for model, budget, requests, prompt, most in weights:
        share = shares.get(model)
        if share is None:
            share = shares[model] = _Share(_prices(settings, model) or [_FREE])
        prices = share.prices
        answer = requests * min(budget or likely_answer_tokens, likely_answer_tokens)
        most_answer = requests * (budget or UNBOUNDED_ANSWER_TOKENS)
        share.requests += requests
        share.tokens += prompt + answer
        share.likely_cost += sum(price.cost(prompt, 0, answer) for price in prices) / len(prices)
        share.worst_cost += answers * max(price.cost(most, 0, most_answer) for price in prices)
    return shares


def _prices(settings: Settings, name: str) -> list[Price]:
    """The prices of the models that a name means; none where one of them is not known."""
    prices = [settings.prices.get(model) for model in settings.pools.get(name, (name,))]
    return [price for price in prices if price is not None] if None not in prices else []


def _learn_from(before: Total, share: _Share, price: Price) -> None:
    """Let the rows answered before say what a row takes, where there are any."""
    if not before.succeeded or not before.total_tokens:
        return
    a_row = share.requests / before.succeeded
    share.tokens = before.total_tokens * a_row
    share.likely_cost = price.cost(before.prompt_tokens, before.cached_tokens, before.completion_tokens) * a_row


def _duration_s(shares: Mapping[str, _Share], settings: Settings, learned: Mapping[str, Any]) -> float | None:
    """How long it takes at least: limits that are given hold for all rows together, those learned for a model's; what
    several endpoints or models of a pool allow is added up.
    """
    endpoints = settings.all_endpoints()
    told = [endpoint for endpoint in endpoints if endpoint.rpm is not None or endpoint.tpm is not None]
    if len(told) == len(endpoints):
        requests = sum(share.requests for share in shares.values())
        tokens = sum(share.tokens for share in shares.values())
        per_minute = ((requests, [each.rpm for each in told]), (tokens, [each.tpm for each in told]))
        bounds = [60 * amount / sum(filter(None, limits)) for amount, limits in per_minute if None not in limits]
    else:
        bounds = [
            amount / limit
            for name, share in shares.items()
            for amount, limit in (
                (share.requests, _learned_limit(learned, settings, name, "requests_per_s")),
                (share.tokens, _learned_limit(learned, settings, name, "tokens_per_s")),
            )
            if limit
        ]
    return max(bounds) if bounds else None


def _learned_limit(learned: Mapping[str, Any], settings: Settings, name: str, what: str) -> float:
    """What was learned of all ways that rows of this name may go; 0 where of one of them nothing was."""
    limits = [
        learned.get(f"{endpoint.base_url} {model}", {}).get(what)
        for endpoint in settings.all_endpoints()
        for model in settings.pools.get(name, (name,))
        if endpoint.models is None or model in endpoint.models
    ]
    return 0.0 if None in limits else float(sum(limits))
