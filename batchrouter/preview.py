"""What `run` would do, and what it would take: the plan alone, nothing sent, nothing in the log touched."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchrouter.index import ANSWERED
from batchrouter.intake import Shaping, find_sources
from batchrouter.ledger import Ledger
from batchrouter.plan import lay
from batchrouter.rows import Rows
from batchrouter.settings import Settings


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows by what would become of them; `tokens` is an estimate for those to be asked (prompt and answer together),
    `duration_s` what the limits given allow (None: no limit is known).
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
        tokens = 0
        models: Counter[str] = Counter()
        for request in Rows(index, sources, shaping, below=below).requests():
            tokens += request.tokens
            models[request.model] += 1
        equal = index.bodies_twice(below)
        index.close()
    requests = models.total() - (equal if settings.dedupe else 0)
    return Preview(
        rows=below,
        new=models.total(),
        answered=counts.get((0, 1), 0) - changed[ANSWERED],
        failed=counts.get((0, 2), 0) - (changed.total() - changed[ANSWERED]),
        changed=changed.total(),
        removed=removed,
        duplicates=sum(count for (kind, _), count in counts.items() if kind == 2),
        invalid=sum(count for (kind, _), count in counts.items() if kind == 1),
        equal_bodies=equal,
        tokens=tokens,
        requests_by_model=dict(models.most_common()),
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


def _duration_s(requests: int, tokens: int, settings: Settings) -> float | None:
    limits = [60 * amount / limit for amount, limit in ((requests, settings.rpm), (tokens, settings.tpm)) if limit]
    return max(limits) if limits else None
