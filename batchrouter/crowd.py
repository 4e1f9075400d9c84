"""How many requests to have in flight: up while more of them bring more answers, back when they only queue.

Rules of this file: pure; time is passed in, in monotonic seconds. What counts is throughput: latencies of language
models differ tenfold from row to row, while twice the number in flight brings either twice the answers or a queue.

*Rising.* The number rises by one for each answer: it doubles in each round trip (TCP's slow start, RFC 5681, 3.1).
Each round has to show for it (as in HyStart++, RFC 9406, but by throughput: the mean number in flight over the mean
latency, Little's law). Where it does not, the number goes back to that before the round, and is tried again after a
time that doubles from try to try.

*Refused.* Where a server refuses above a number (`suspects` tell), the number stays just below it for as long as the
refusal was dear, then climbs on a cubic curve, as a ceiling does.
"""

from __future__ import annotations

import math
from typing import Final

from batchrouter.ceiling import Cost

_START: Final = 12
_GROWTH: Final = 2.0  # from round to round while it is starting …
_TRY: Final = 1.5  # … and of a try later
_ANSWERS: Final = (16, 64)  # at least so many of a round, at the start and later, to tell a throughput from
_GAIN: Final = 0.3  # of the growth in flight, the share that must show as growth in answers a second
_KNEE: Final = 2.0  # times as many as would do without a queue (Little's law): no more where more bring nothing
_SILENCE_S: Final = 1.0  # refusals come quickly: what is unanswered for so long has been let in …
_SILENT_MOST: Final = 128  # … and more may leave, up to this number
_TRY_AGAIN_S: Final = (5.0, 60.0)

_REFUSALS: Final = 100  # as for a ceiling
_LOST: Final = 20
_HOLD_S: Final = (2.0, 60.0)
_CLIMB: Final = 0.03
_BOUND_FOR_S: Final = 0.1  # an answer shows for so long back that the number was used up


class Crowd:
    """`limit` requests may be in flight. `top` is the number that the server has refused to exceed, if it has."""

    __slots__ = (
        "_answers",
        "_base_s",
        "_bound_s",
        "_good",
        "_hold_s",
        "_in_flight",
        "_is_starting",
        "_latency_s",
        "_least",
        "_most",
        "_needed",
        "_rate",
        "_risen_at",
        "_round_at",
        "_seen_at",
        "_target",
        "_try_at",
        "_wait_s",
        "limit",
        "top",
    )

    def __init__(self, fixed: int | None, most: int, start: int | None, now: float) -> None:
        self._most = fixed or most
        self.limit = fixed or min(start or _START, most)
        self.top: int | None = None
        self._is_starting = True
        self._base_s = math.inf
        self._good, self._rate = self.limit, 0.0
        self._wait_s = _TRY_AGAIN_S[0]
        self._try_at = now
        self._hold_s = self._bound_s = 0.0
        self._seen_at = self._risen_at = now
        self._begin_round(self._more_than(self.limit), now)

    def answered(self, at: float, in_flight: int, flying: int, now: float) -> None:
        """An answer to a request sent at `at` as the `in_flight`th, with `flying` on their way until now."""
        is_bound = flying >= self.limit
        if self.top is not None:
            if is_bound:
                self._climb(now)
            return
        if at >= self._round_at and self._least <= in_flight:
            self._answers += 1
            self._in_flight += in_flight
            self._latency_s += now - at
        if not is_bound:
            return
        if self.limit < self._target:
            self.limit += 1
            self._risen_at = now
        if self._answers >= self._needed:
            self._end_round(now)

    def silent(self, in_flight: int, now: float) -> None:
        """Time passes, and answers are slow to come."""
        most = min(_SILENT_MOST, self._most)
        is_waiting = self.top is None and self._is_starting and self.limit <= in_flight < most
        if is_waiting and now - self._risen_at >= _SILENCE_S:
            self.limit = min(int(_GROWTH * self.limit), most)
            self._risen_at = now
            self._begin_round(self.limit, now)

    # --- rising -------------------------------------------------------------------------------------------------------

    def _begin_round(self, target: int, now: float) -> None:
        self._target = min(target, self._most)
        self._least = 0.7 * self._target
        self._needed = max(_ANSWERS[not self._is_starting], self._target // 4)
        if not self._is_starting:
            self.limit = min(self.limit, self._target)
        self._round_at = now
        self._answers = self._in_flight = 0
        self._latency_s = 0.0

    def _end_round(self, now: float) -> None:
        latency_s = max(self._latency_s / self._answers, 1e-6)
        rate = self._in_flight / self._answers / latency_s
        self._base_s = min(self._base_s, latency_s)
        good, target = self._good, self._target
        if target > good:
            if rate >= self._rate * (1 + _GAIN * (target / good - 1)):
                self._good, self._wait_s = target, _TRY_AGAIN_S[0]
                self._begin_round(self._more_than(target), now)
            else:
                self._is_starting = False
                self._try_at = now + self._wait_s
                self._wait_s = min(2 * self._wait_s, _TRY_AGAIN_S[1])
                self._good = min(good, int(_KNEE * max(rate, self._rate) * self._base_s) + 1)
                self._begin_round(self._good, now)
        elif now < self._try_at:
            self._begin_round(good, now)
        else:
            self._begin_round(self._more_than(good), now)
        self._rate = rate

    def _more_than(self, number: int) -> int:
        return math.ceil(number * (_GROWTH if self._is_starting else _TRY))

    # --- refused ------------------------------------------------------------------------------------------------------

    def refused(self, in_flight: int) -> None:
        """The `in_flight`th was refused: where the number is known to be limited, do not wait for proof."""
        if self.top is not None and in_flight > self.top:
            self.limit = max(1, min(self.limit, in_flight - 1))

    def cut(self, in_flight: int, cost: Cost, rate: float, now: float) -> None:
        """The `in_flight`th was refused for being too many, at a `cost`, while `rate` were answered a second."""
        self.limit = self.top = max(1, min(in_flight - 1, self._most))
        hold_s = max(_REFUSALS * cost.refusals / max(rate, 1.0), _LOST * cost.lost_s)
        self._hold_s = min(max(_HOLD_S[0], hold_s), _HOLD_S[1])
        self._bound_s = 0.0
        self._seen_at = now

    def free(self, now: float) -> None:
        """It was not the number after all."""
        self.top = None
        self._good = self.limit
        self._begin_round(self.limit, now)

    def _climb(self, now: float) -> None:
        """Under a supposed limit: stay, then try a little more, then ever more."""
        assert self.top is not None  # noqa: S101  (the caller has looked)
        self._bound_s += min(now - self._seen_at, _BOUND_FOR_S)  # a number that nobody reached was not tried
        self._seen_at = now
        climbs = 2 * (self._bound_s / self._hold_s - 1)
        if climbs > 0:
            self.limit = min(int(self.top + 1 + _CLIMB * self.top * climbs**3), self._most)
