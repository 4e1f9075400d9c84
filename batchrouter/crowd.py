"""How many requests to have in flight: up while more of them bring more answers, back when they only queue.

Rules of this file: pure; time is passed in. What is compared is throughput, not latency: latencies of language models
differ tenfold from row to row, answers a second at twice the number in flight do not. A number is raised by one for
each answer (TCP's slow start, RFC 5681, 3.1: doubling a round trip), and at each doubling it must earn its keep.
"""

from __future__ import annotations

import math
from typing import Final

_START: Final = 12
_UNJUDGED: Final = 64  # up to here a queue is too short to matter, and too few answers come to judge by
_GAIN: Final = 0.3  # of the growth in flight, the share that must show as growth in answers
_HOLD_S: Final = (5.0, 60.0)  # between two tries to go higher, when the last has brought nothing
_TRY: Final = 1.5
_SILENCE_S: Final = 1.0  # refusals come quickly: what is unanswered for so long has been let in
_SILENT_MOST: Final = 128
_REFUSED_HOLD_S: Final = (2.0, 60.0)


class Crowd:
    """`limit` requests may be in flight. `top` is the number that the server has refused to exceed, if it has."""

    __slots__ = (
        "_answers",
        "_base_s",
        "_before",
        "_hold_s",
        "_judged_at",
        "_latency_s",
        "_most",
        "_most_accepted",
        "_needed",
        "_rate_before",
        "_settling",
        "_since",
        "_stage_at",
        "_target",
        "_touched_at",
        "_votes",
        "is_bound",
        "limit",
        "top",
    )

    def __init__(self, fixed: int | None, most: int, learned: int | None, now: float) -> None:
        self._most = fixed or most
        self.limit = fixed or min(learned or _START, most)
        self.top: int | None = None
        self.is_bound = False
        self._before = self.limit
        self._rate_before = 0.0
        self._base_s = math.inf
        self._hold_s = _HOLD_S[0]
        self._votes = 0
        self._most_accepted = 0
        self._touched_at = now
        self._since = now
        self._stage(self.limit, now)

    def _stage(self, target: int, now: float) -> None:
        self._target = min(target, self._most)
        self._stage_at = now
        self._settling = True
        self._answers = 0
        self._latency_s = 0.0
        self._judged_at = now
        self._needed = self._target // 2

    def answered(self, at: float, in_flight: int, now: float) -> None:
        """An answer to a request sent at `at` as the `in_flight`th."""
        self._most_accepted = max(self._most_accepted, in_flight)
        limit = self.limit
        self.is_bound = in_flight * 10 >= limit * 9
        if not self.is_bound:
            return
        if self.top is not None:
            self._probe(now)
        elif limit < self._target:
            self.limit = limit + 1
            self._touched_at = now
            if limit + 1 == self._target:
                self._stage(self._target, now)
        elif at >= self._stage_at and limit < self._most:
            self._answers += 1
            self._latency_s += now - at
            if self._answers >= self._needed:
                self._judge(now)

    def _judge(self, now: float) -> None:
        """The present number has been tried for long enough: settle, measure, decide."""
        growth = self.limit / self._before
        latency_s = self._latency_s / self._answers
        if self._settling:
            self._base_s = min(self._base_s, latency_s)
        if self.limit < _UNJUDGED:
            self._raise_to(2 * self.limit, now)
            return
        if self._settling:
            self._settling = False
            if growth > 1 and latency_s < 1.25 * self._base_s:
                self._rate_before = 0.0
                self._raise_to(2 * self.limit, now)
                return
            self._judged_at, self._answers = now, 0
            self._needed = max(_UNJUDGED, self.limit)
            return
        rate = self._answers / max(now - self._judged_at, 1e-6)
        if growth <= 1:  # a measure taken to compare the next one with
            if now - self._since < self._hold_s:
                self._stage(self.limit, now)
                return
            self._rate_before = rate
            self._raise_to(int(_TRY * self.limit), now)
        elif rate >= self._rate_before * (1 + _GAIN * (growth - 1)):
            self._rate_before = rate
            self._hold_s = _HOLD_S[0]
            self._raise_to(2 * self.limit, now)
        else:
            self.limit = self._before
            self._since = now
            self._hold_s = min(2 * self._hold_s, _HOLD_S[1])
            self._stage(self.limit, now)

    def _raise_to(self, target: int, now: float) -> None:
        self._before = self.limit
        self._stage(target, now)

    def _probe(self, now: float) -> None:
        assert self.top is not None  # noqa: S101
        x = (now - self._since) / self._hold_s - 1
        if x > 0:
            self.limit = min(int(self.top + 1 + 0.03 * self.top * x * x * x), self._most)

    def silent(self, in_flight: int, now: float) -> None:
        """Nothing has been answered for a while, and nothing refused: go on doubling, slowly."""
        if self.top is None and in_flight >= self.limit and self.limit < min(_SILENT_MOST, self._most):
            if now - self._touched_at >= _SILENCE_S:
                self._touched_at = now
                self.limit = min(2 * self.limit, _SILENT_MOST, self._most)
                self._raise_to(self.limit, now)

    def is_to_blame(self, in_flight: int) -> bool | None:
        """Whether a refusal of the `in_flight`th is this limit's doing; None: it may be."""
        apart = in_flight > self._most_accepted
        self._votes = self._votes + 1 if apart else 0
        if self._votes > 2:
            return True
        if in_flight < self.limit - 1:
            return False
        return None if self.top is None else apart

    def cut(self, in_flight: int, cost_s: float, now: float) -> None:
        """The `in_flight`th was refused."""
        self.top = max(1, min(in_flight - 1, self._most))
        self.limit = self.top
        self._since = now
        self._hold_s = min(max(_REFUSED_HOLD_S[0], 100 * cost_s), _REFUSED_HOLD_S[1])

    def recovered(self) -> None:
        self._most_accepted = 0
