"""What `run` would do, and what it would take: the plan alone, nothing sent, nothing in the log touched.

Rules of this file: what a row costs is known from the rows of its model that were answered already; before the first
one it is estimated. The worst is reckoned as `--max-cost` reserves it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter.history import Damaged, is_of_class, read_entry
from batchrouter.index import ANSWERED, LOG_OF, Index, Logged, Unusable
from batchrouter.intake import Shaping, Source, find_sources
from batchrouter.jsonl import read_lines
from batchrouter.ledger import Ledger
from batchrouter.plan import build_index, lay
from batchrouter.records import Request
from batchrouter.rows import Rows
from batchrouter.settings import Model, Settings
from batchrouter.usage import Total, Totals

_ALL: Final = 2**62
_INDEX: Final = "checkpoint.sqlite"
_UNBOUNDED_ANSWER_TOKENS: Final = 4096  # what an answer is reckoned at, at worst, where the row sets no bound
_LIKELY_ANSWER_TOKENS: Final = 256  # before any answer was seen; less where the row allows less
_LIKELY_BYTES_A_TOKEN: Final = 4
_LEAST_BYTES_A_TOKEN: Final = 2
_FREE: Final = Model(prompt=0.0, completion=0.0)


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
    """What the rows of one model are expected to come to."""

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
    """Plan a run of `inputs` into `directory` (which need not exist); raises UsageError, BusyError, DiskError."""
    sources = find_sources(tuple(inputs), directory / "stdin.jsonl")
    if settings.retry or settings.changed == "rerun":
        return preview_apart(sources, directory, settings)
    with _ledger(directory) as ledger:
        index, known = lay(sources, _shaping(settings), ledger)
        with closing(index):
            changed, removed, is_open = _judged(index)
            removed += known
            meta = {"marks": ledger.marks(), "totals": ledger.totals.dump(), "removed": removed, "kept": is_open}
            index.settle(meta)
            laid = _Laid(index, ledger.totals, _learned(index), changed, changed.total(), removed)
            return _counted(laid, sources, settings, _LIKELY_ANSWER_TOKENS)


def preview_apart(
    sources: Sequence[Source],
    directory: Path,
    settings: Settings,
    *,
    likely_answer_tokens: int = _LIKELY_ANSWER_TOKENS,
) -> Preview:
    """Plan a run of `sources` into `directory` by reading alone: nothing in it is written, a run may be at work in it,
    and rows that `--retry` or `--changed rerun` takes up count among those to be asked. Raises UsageError, DiskError.
    """
    totals = Totals()
    with (
        tempfile.TemporaryDirectory(prefix="batchrouter-") as folder,
        closing(build_index(Path(folder) / "rows.sqlite", sources, _shaping(settings))) as index,
    ):
        index.load(_logged(directory, totals, settings.retry))
        changed, removed, _ = _judged(index)
        count = changed.total()
        if settings.changed == "rerun":
            index.drop_changed()
            changed.clear()
        index.settle({})
        laid = _Laid(index, totals, _learned_in(directory), changed, count, removed)
        return _counted(laid, sources, settings, likely_answer_tokens)


def _judged(index: Index) -> tuple[Counter[int], int, bool]:
    """Changed rows by the state of their old answers, removed rows, and whether the next start has lines to take out or
    to refuse: then it must look at all of them again.
    """
    changed = Counter[int]()
    removed, is_open = 0, False
    for _, logged in index.changed():
        changed[logged.state] += not logged.refused
        is_open = True
    for logged in index.strangers():
        removed += not logged.refused
        is_open |= logged.refused
    return changed, removed, is_open


def _shaping(settings: Settings) -> Shaping:
    return Shaping(settings.model, settings.override_model, settings.set, settings.stream)


def _logged(directory: Path, totals: Totals, retry: Sequence[str]) -> Iterator[Logged]:
    """The lines of the log that stand: neither torn nor damaged, nor of a class that is to be asked again."""
    for state, name in LOG_OF.items():
        path = directory / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in read_lines(file):
                if line.raw is None or line.length == len(line.raw):
                    continue
                try:
                    entry = read_entry(line.raw, line.start, state)
                except Damaged:
                    continue
                totals.count(entry.model, entry.usage, entry.attempts, answered=state == ANSWERED)
                if not any(is_of_class(entry.row, wanted) for wanted in retry):
                    yield entry.logged


def _counted(laid: _Laid, sources: Sequence[Source], settings: Settings, likely_answer_tokens: int) -> Preview:
    index = laid.rows
    total = sum(index.counts(_ALL).values())
    below = total if settings.limit is None else min(settings.limit, total)
    counts = index.counts(below)
    models = index.models(below)
    equal = index.bodies_twice(below)
    requests = Rows(index, sources, _shaping(settings), below=below).requests()
    shares = _expected(requests, settings, likely_answer_tokens)
    for model, share in shares.items():
        _learn_from(laid.totals.by_model.get(model), share, settings.models.get(model, _FREE))
    has_prices = bool(settings.models) and shares.keys() <= settings.models.keys()
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
        duration_s=_duration_s(shares, settings, laid.learned, equal if settings.dedupe else 0),
    )


@contextmanager
def _ledger(directory: Path) -> Iterator[Ledger]:
    """The directory's ledger, or one in a temporary folder where there is no directory yet."""
    if directory.exists():
        with Ledger.open(directory, redact=bytes) as ledger:
            yield ledger
        return
    with (
        tempfile.TemporaryDirectory(prefix="batchrouter-") as folder,
        Ledger.open(Path(folder), redact=bytes) as ledger,
    ):
        yield ledger


def _learned(index: Index) -> dict[str, Any]:
    found = index.meta().get("learned", {})
    return found if type(found) is dict else {}


def _learned_in(directory: Path) -> dict[str, Any]:
    """What earlier starts have learned of limits, by model; nothing where there is no index to tell."""
    path = directory / _INDEX
    try:
        with closing(Index.view(path)) as index:
            return _learned(index)
    except Unusable:
        return {}


def _expected(requests: Iterator[Request], settings: Settings, likely_answer_tokens: int) -> dict[str, _Share]:
    """By model, what its requests are expected to come to."""
    shares: dict[str, _Share] = {}
    answers = settings.json_attempts if settings.check_json else 1
    for request in requests:
        share = shares.get(request.model)
        if share is None:
            share = shares[request.model] = _Share()
        price = settings.models.get(request.model, _FREE)
        size = len(request.body)
        prompt = size // _LIKELY_BYTES_A_TOKEN
        answer = min(request.answer_tokens or likely_answer_tokens, likely_answer_tokens)
        most = request.answer_tokens or _UNBOUNDED_ANSWER_TOKENS
        share.requests += 1
        share.tokens += prompt + answer
        share.likely_cost += price.cost(prompt, 0, answer)
        share.worst_cost += answers * price.cost(size // _LEAST_BYTES_A_TOKEN, 0, most)
    return shares


def _learn_from(before: Total | None, share: _Share, price: Model) -> None:
    """Let the rows answered before say what a row takes, where there are any."""
    if before is None or not before.succeeded or not before.total_tokens:
        return
    a_row = share.requests / before.succeeded
    share.tokens = before.total_tokens * a_row
    share.likely_cost = price.cost(before.prompt_tokens, before.cached_tokens, before.completion_tokens) * a_row


def _duration_s(
    shares: Mapping[str, _Share], settings: Settings, learned: Mapping[str, Any], twins: int
) -> float | None:
    """How long it takes at least: limits that are given hold for all rows together, those learned for a model's."""
    if settings.rpm is not None or settings.tpm is not None:
        requests = sum(share.requests for share in shares.values()) - twins
        tokens = sum(share.tokens for share in shares.values())
        return max(60 * amount / limit for amount, limit in ((requests, settings.rpm), (tokens, settings.tpm)) if limit)
    bounds = [
        amount / limit
        for model, share in shares.items()
        for amount, limit in (
            (share.requests, learned.get(model, {}).get("requests_per_s")),
            (share.tokens, learned.get(model, {}).get("tokens_per_s")),
        )
        if limit
    ]
    return max(bounds) if bounds else None
