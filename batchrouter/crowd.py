"""How many requests to have in flight: up while more of them bring more answers, back when they only queue.

Rules of this file: pure; time is passed in, in monotonic seconds. What counts is throughput: latencies of language
models differ tenfold from row to row, while twice the number in flight brings either twice the answers or a queue. The
number rises by one for each answer (TCP's slow start, RFC 5681, 3.1: doubling each round trip); from 64 on each
doubling has to show that latency stayed, or that throughput grew. That a server refuses above a number shows in when
it refuses: at the far end of what is otherwise in flight.
"""

from __future__ import annotations

import math
from typing import Final, Literal

_START: Final = 12
_UNJUDGED: Final = 64  # up to here a queue is too short to matter, and too few answers come to judge by
_GAIN: Final = 0.3  # of the growth in flight, the share that must show as growth in answers a second
_SAME_LATENCY: Final = 1.25
_HOLD_S: Final = (5.0, 60.0)  # between two tries to go higher, when the last has brought nothing
_TRY: Final = 1.5
_SILENCE_S: Final = 1.0  # refusals come quickly: what is unanswered for so long has been let in
_SILENT_MOST: Final = 128

_REFUSED_HOLD_S: Final = (2.0, 60.0)
_REFUSALS_EVERY: Final = 100
_PAUSE_SHARE: Final = 20
_CLIMB: Final = 0.03
_BOUND_FOR_S: Final = 0.1
_REFUTED: Final = 10  # answers to requests well above the supposed limit refute it
_NEARLY: Final = 0.8
_FEW: Final = 8
_UNSURE: Final = 0.1  # of the expected number, as latencies scatter
_NOTHING_TELLING: Final = 1.3
_MOST_TELLING: Final = 3.5
_SURE: Final = 6.0
_SMOOTH: Final = 1 / 128

Blame = Literal["no", "perhaps", "yes"]


class Crowd:
    """`limit` requests may be in flight. `top` is the number that the server has refused to exceed, if it has."""

    __slots__ = (
        "_above",
        "_answers",
        "_base_s",
        "_before",
        "_bound_s",
        "_evidence",
        "_hold_s",
        "_judged_at",
        "_latency_s",
        "_most",
        "_needed",
        "_rate_before",
        "_since",
        "_stage",
        "_stage_at",
        "_target",
        "_touched_at",
        "is_bound",
        "latency_s",
        "limit",
        "top",
    )

    def __init__(self, fixed: int | None, most: int, start: int | None, now: float) -> None:
        self._most = fixed or most
        self.limit = fixed or min(start or _START, most)
        self.top: int | None = None
        self.is_bound = False
        self._before = self.limit
        self._rate_before = 0.0
        self._base_s = math.inf
        self._hold_s = _HOLD_S[0]
        self.latency_s = 0.0
        self._evidence = self._bound_s = 0.0
        self._above = 0
        self._touched_at = self._since = now
        self._raise_to(max(_UNJUDGED, self.limit), now)

    # --- rising -------------------------------------------------------------------------------------------------------

    def answered(self, at: float, in_flight: int, flying: int, now: float) -> None:
        """An answer to a request sent at `at` as the `in_flight`th, with `flying` on their way until now."""
        self.latency_s += (now - at - self.latency_s) * (_SMOOTH if self.latency_s else 1.0)
        limit = self.limit
        self.is_bound = flying >= limit
        if not self.is_bound:
            return
        if self.top is not None:
            self._probe(in_flight, now)
        elif limit < self._target:
            self.limit = limit + 1
            self._touched_at = now
            if limit + 1 == self._target:
                self._settle(now)
        elif at >= self._stage_at and self._target < self._most:
            self._answers += 1
            self._latency_s += now - at
            if self._answers >= self._needed:
                self._judge(now)

    def silent(self, in_flight: int, now: float) -> None:
        """Time passes, and answers are slow to come: what is not refused by now has been let in, so go on doubling."""
        most = min(_SILENT_MOST, self._most)
        if self.top is None and self.limit <= in_flight < most and now - self._touched_at >= _SILENCE_S:
            self._touched_at = now
            before, self.limit = self.limit, min(2 * self.limit, most)
            self._raise_to(self.limit, now)
            self._before = before

    def _raise_to(self, target: int, now: float) -> None:
        self._before = self.limit
        self._target = min(target, self._most)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Wait for answers to requests that left with this many in flight."""
        self._stage = "settling"
        self._stage_at = now
        self._needed = max(self._target // 2, 1)
        self._answers, self._latency_s = 0, 0.0

    def _judge(self, now: float) -> None:
        """Enough answers came to end this stage."""
        if self._stage == "settling":
            latency_s = self._latency_s / self._answers
            if self._before < self.limit and latency_s < _SAME_LATENCY * self._base_s:
                self._base_s = min(self._base_s, latency_s)
                self._rate_before = self.limit / latency_s  # Little's law: nobody waits yet
                self._raise_to(2 * self.limit, now)
            else:
                self._stage, self._judged_at = "measuring", now
                self._needed, self._answers = max(4 * _UNJUDGED, self.limit), 0
            return
        rate = self._answers / max(now - self._judged_at, 1e-6)
        growth = self.limit / self._before
        if growth <= 1:  # measured to compare with
            self._rate_before = rate
            if now - self._since < self._hold_s:
                self._settle(now)
            else:
                self._raise_to(int(_TRY * self.limit), now)
        elif rate >= self._rate_before * (1 + _GAIN * (growth - 1)):
            self._hold_s = _HOLD_S[0]
            self._rate_before = rate
            self._raise_to(2 * self.limit, now)
        else:
            self.limit = self._before
            self._since = now
            self._hold_s = min(2 * self._hold_s, _HOLD_S[1])
            self._raise_to(self.limit, now)

    # --- refused ------------------------------------------------------------------------------------------------------

    def blame(self, in_flight: int, rate: float) -> Blame:
        """Whether the refusal of the `in_flight`th begins an episode of this limit's making, at `rate` answers a
        second.

        A limit on the rate refuses at any number in flight; about rate x latency (Little's law) are expected. One on
        the number refuses at the far end. The evidence is the sum of -log(tail) above its mean, as in a sequential
        test (A. Wald, 1945).
        """
        expected = rate * self.latency_s
        if in_flight >= _FEW and expected > 0:
            deviation = math.sqrt(expected + (_UNSURE * expected) ** 2)
            tail = 0.5 * math.erfc((in_flight - expected) / deviation / math.sqrt(2))
            self._evidence += min(-math.log(max(tail, 1e-3)), _MOST_TELLING) - _NOTHING_TELLING
            self._evidence = max(0.0, self._evidence)
        if self.top is not None:
            is_mine = in_flight > self.top or self._evidence > _SURE
            return "yes" if is_mine else "no"
        if in_flight >= _NEARLY * self.limit:
            return "perhaps"
        return "yes" if self._evidence > _SURE else "no"

    def cut(self, in_flight: int, now: float) -> None:
        """The `in_flight`th was refused."""
        self.limit = self.top = max(1, min(in_flight - 1, self._most))
        self._above = 0
        self._evidence = self._bound_s = 0.0
        self._since = now
        self._hold_s = _REFUSED_HOLD_S[0]

    def cost(self, refusals: int, unit_s: float, asked_s: float) -> None:
        """What the episode has cost so far: refusals, of `unit_s` each, and the pause asked for."""
        hold_s = max(_REFUSALS_EVERY * refusals * unit_s, _PAUSE_SHARE * asked_s)
        self._hold_s = min(max(_REFUSED_HOLD_S[0], hold_s), _REFUSED_HOLD_S[1])

    def _probe(self, in_flight: int, now: float) -> None:
        """Under a supposed limit: stay, then try a little more, then ever more."""
        assert self.top is not None  # noqa: S101  (the caller has looked)
        if in_flight > 1.1 * self.top + 2:
            self._above += 1
            if self._above >= _REFUTED:
                self.top = None
                self._raise_to(self.limit, now)
                return
        self._bound_s += min(now - self._since, _BOUND_FOR_S)  # a number that nobody reached was not tried
        self._since = now
        climbs = 2 * self._bound_s / self._hold_s - 2
        if climbs > 0:
            self.limit = min(int(self.top + 1 + _CLIMB * self.top * climbs**3), self._most)
