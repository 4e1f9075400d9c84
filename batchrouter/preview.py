"""What `run` would do, and what it would take: the plan alone, nothing sent, nothing in the log touched."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from batchrouter.index import ANSWERED
from batchrouter.intake import Shaping, estimate_tokens, find_sources
from batchrouter.ledger import Ledger
from batchrouter.plan import lay
from batchrouter.records import Request
from batchrouter.rows import Rows
from batchrouter.settings import Settings

_UNBOUNDED_ANSWER_TOKENS: Final = 4096  # what an answer is reckoned at, at worst, where the row sets no bound


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows by what would become of them; `tokens` is an estimate for those to be asked (prompt and answer together),
    `cost` what they cost at worst in USD (None: not every model has a price), `duration_s` what the limits given allow
    (None: no limit is known).
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
    requests_by_model: dict[str, int]
    duration_s: float | None


def preview(inputs: Sequence[str], directory: Path, settings: Settings) -> Preview:
    """Plan a run of `inputs` into `directory` (which need not exist); raises UsageError, BusyError, DiskError."""
    with _ledger(directory) as ledger:
        sources = find_sources(tuple(inputs), directory / "stdin.jsonl")
        shaping = Shaping(settings.model, settings.override_model, settings.set, settings.stream)
        index, known = lay(sources, shaping, ledger)
        changed = Counter(logged.state for _, logged in index.changed() if not logged.refused)
        removed = known + sum(1 for logged in index.strangers() if not logged.refused)
        index.settle({"marks": ledger.marks(), "totals": ledger.totals.dump(), "removed": removed})
        total = index.meta()["rows"]
        below = total if settings.limit is None else min(settings.limit, total)
        counts = index.counts(below)
        models = index.models(below)
        tokens, cost = _expected(Rows(index, sources, shaping, below=below).requests(), settings)
        equal = index.bodies_twice(below)
        index.close()
    new = sum(models.values())
    requests = new - (equal if settings.dedupe else 0)
    return Preview(
        rows=below,
        new=new,
        answered=counts.get((0, 1), 0) - changed[ANSWERED],
        failed=counts.get((0, 2), 0) - (changed.total() - changed[ANSWERED]),
        changed=changed.total(),
        removed=removed,
        duplicates=sum(count for (kind, _), count in counts.items() if kind == 2),
        invalid=sum(count for (kind, _), count in counts.items() if kind == 1),
        equal_bodies=equal,
        tokens=tokens,
        cost=cost,
        requests_by_model=models,
        duration_s=_duration_s(requests, tokens, settings),
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


def _expected(requests: Iterator[Request], settings: Settings) -> tuple[int, float | None]:
    """Tokens to expect, and what the requests cost at worst, in USD (None: not every model has a price)."""
    tokens, cost = 0, 0.0 if settings.models else None
    for request in requests:
        tokens += request.tokens
        model = settings.models.get(request.model)
        if model is None or cost is None:
            cost = None
            continue
        prompt = estimate_tokens(request.body, 0) - estimate_tokens(b"", 0)
        cost += model.cost(prompt, 0, request.answer_tokens or _UNBOUNDED_ANSWER_TOKENS)
    return tokens, cost


def _duration_s(requests: int, tokens: int, settings: Settings) -> float | None:
    limits = [60 * amount / limit for amount, limit in ((requests, settings.rpm), (tokens, settings.tpm)) if limit]
    return max(limits) if limits else None
