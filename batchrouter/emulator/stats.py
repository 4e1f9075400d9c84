"""What an emulator has seen, counted: for tests and for `GET /_emulator/stats`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

_MOST_ROWS: Final = 2_000_000  # about 300 bytes each
_MOST_SECONDS: Final = 86_400


@dataclass(slots=True)
class Row:
    """How often one question came: asked at all, let in by the limits, answered to the last byte."""

    asked: int = 0
    accepted: int = 0
    answered: int = 0


@dataclass(slots=True)
class Stats:
    """Counters since the start. `by_status` has 0 for what never became an HTTP answer.

    `accepted_per_second` counts from the first request. `journal` is null, or rows by their completion's id
    (`answer(body, seed)["id"]`); the oldest go when it is full.
    """

    requests: int = 0
    accepted: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    dropped: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_path: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    accepted_per_second: dict[int, int] = field(default_factory=dict)
    journal: dict[str, Row] | None = None
    _began: float | None = None

    def came(self, path: str, now: float) -> None:
        """A request has arrived."""
        if self._began is None:
            self._began = now
        self.requests += 1
        self.by_path[path] += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def let_in(self, row: Row | None, now: float) -> None:
        """The limits have let a request in."""
        self.accepted += 1
        second = 0 if self._began is None else int(now - self._began)
        self.accepted_per_second[second] = self.accepted_per_second.get(second, 0) + 1
        if len(self.accepted_per_second) > _MOST_SECONDS:
            del self.accepted_per_second[next(iter(self.accepted_per_second))]
        if row is not None:
            row.accepted += 1

    def row(self, name: str) -> Row | None:
        """The journal's entry, made when it is missing; null without a journal."""
        if self.journal is None:
            return None
        if name not in self.journal:
            if len(self.journal) >= _MOST_ROWS:
                del self.journal[next(iter(self.journal))]
            self.journal[name] = Row()
        return self.journal[name]

    def left(self, status: int) -> None:
        """A request has got all it gets."""
        self.in_flight -= 1
        self.by_status[status] += 1

    def as_json(self) -> dict[str, Any]:
        """The counters as a JSON object."""
        return {
            "requests": self.requests,
            "accepted": self.accepted,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "dropped": self.dropped,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "by_path": dict(self.by_path),
            "by_fault": dict(self.by_fault),
            "rows": None if self.journal is None else len(self.journal),
        }
