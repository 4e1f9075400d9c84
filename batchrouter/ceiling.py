"""One limit a second, of requests or of tokens: where its ceiling is, and how to stay just under it.

Rules of this file: pure; a rate is units a second, a unit a request or a token; time is passed in, in monotonic
seconds. Refusals come in episodes (see pace).

*Measuring.* At the end of an episode all that is allowed has been used. So what was accepted from the end of one
episode to the end of the next, over the time between, is the limit, whatever the rate was meanwhile: of a token bucket,
of a sliding and of a fixed window alike. How long that time was is known only within bounds, and so is the limit: the
less exact it is known, the sooner it is tried again.

*Keeping.* After an episode the rate is the ceiling less a margin. It stays there for as long as the episode was dear,
then climbs on a cubic curve (as CUBIC does, RFC 9438, 4.2: slowly past the known ceiling, then ever faster, so that a
limit that was raised is found) until the next refusal. The margin is whatever makes peace last as long as that: a
refusal that comes early widens it, one that comes late narrows it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

_MARGIN: Final = 0.02  # to begin with, as a share of the ceiling; no narrower where refusals are dear
_MARGINS: Final = (-0.1, 0.15)  # narrowest and widest; below 0 where windows are measured a little too low
_WIDER: Final = 0.02  # after a refusal that came early
_NARROWER: Final = 0.01  # after one that came late
_DEAR_S: Final = 0.5  # an episode that cost more than this is dear
_TOLD_MARGIN: Final = 0.01  # the narrowest where the ceiling was told, by the user or by the server
_TOLD_NEAR: Final = 1.4  # what a server tells is believed where it is within this factor of what is measured …
_TOLD_MOST: Final = 0.1  # … and until so wide a margin does not keep peace

_REFUSALS: Final = 100  # a refusal buys peace for the time of so many requests: fewer than 1 % are refused
_LOST: Final = 20  # a second lost buys so many seconds
_HOLD_S: Final = (2.0, 60.0)  # the shortest and longest peace, …
_HOLD_REQUESTS: Final = (20, 100)  # … or the time of so many requests, if that is longer
_HOPE_HOLD_S: Final = 3.0  # the longest where the ceiling was much higher of late: what fell may come back
_HOPE_S: Final = 60.0  # in which that hope is halved
_FELL: Final = 1.25  # by this factor, and it was much higher
_EXACT_S: Final = 1.0  # a ceiling known to 10 % is held for 10 s of this, one known to 1 % for 100 s
_ROUGH: Final = 0.15  # of a ceiling less exact than this an early refusal says that it is wrong
_SURE: Final = 0.05  # one as exact as this is not given up for one refusal
_UNKNOWN: Final = 0.5  # of one less exact than this hardly anything is known:
_LEAST_GUESS: Final = 4.0  # requests a second, where hardly any has been accepted yet
_UNKNOWN_HOLD_S: Final = 0.25  # it is not held, but doubled every second
_GROWN: Final = 0.1  # the error of a ceiling that was found at such growth
_TRUE: Final = 0.9  # of the rate was measured, and it is not far wrong: nor is it where a part of a window was
_DOUBT_S: Final = 0.5  # how long a ceiling is held that may be another limit's

_CLIMB: Final = 0.03  # of the ceiling, or a third of its error: times the cube of the time in climbs
_CLIMB_S: Final = 1.5
_CLIMB_EPISODES: Final = 0.5  # a climb takes this share of the longest episode: a long window is slow to refuse
_FASTEST: Final = 2.0  # the rate rises by no more than this factor a second

_BURST_S: Final = 0.1  # a token bucket is taken to hold so many seconds' worth
_ENOUGH: Final = 20  # requests, to tell a rate from
_LATELY_S: Final = (0.5, 1.0, 2.0)  # how long "lately" is: before the first refusal, at growth, and else
_TRIED: Final = (8, 2)  # requests: so many of them at a rate, or fewer where nothing is known, …
_USED: Final = 0.9  # … and so much of it used, and it counts as tried
_STEP: Final = 0.002  # smaller changes are not worth telling the mechanism


class End(NamedTuple):
    """Where an episode ended: `accepted` units until then, all of the quota used up `at` this moment, known but for
    `blur_s`. Then it rested for `rest_s`, in which nobody knows how much of it came back: all of it, if it is counted
    in windows of at most `window_s`.
    """

    accepted: float
    at: float
    blur_s: float = 0.0
    rest_s: float = 0.0
    window_s: float = 0.0


class Cost(NamedTuple):
    """What an episode has cost: so many refusals, and the time in which nothing could be sent."""

    refusals: int
    lost_s: float


class _Mark(NamedTuple):
    accepted: float
    at: float


class Ceiling:
    """The `rate` allowed now, under the ceiling `top` that refusals have shown (None before the first)."""

    __slots__ = (
        "_best",
        "_best_at",
        "_cap",
        "_climb_s",
        "_ends",
        "_error",
        "_hold_s",
        "_is_told",
        "_lengths",
        "_margin",
        "_marks",
        "_since",
        "_told",
        "_told_limit",
        "_tried",
        "_tried_at",
        "_was_surprised",
        "rate",
        "top",
    )

    def __init__(self, known: float | None, learned: float | None, now: float) -> None:
        self._cap = math.inf if known is None else known * (1 - _TOLD_MARGIN)
        self._told: tuple[float, ...] = () if known is None else (known,)
        self._told_limit = 0.0
        self.rate = self._cap
        self.top: float | None = None
        self._margin = _MARGIN
        self._error = 0.0
        self._best, self._best_at = 0.0, now
        self._is_told = self._was_surprised = False
        self._hold_s, self._climb_s = _HOLD_S[0], _CLIMB_S
        self._since = self._tried_at = now
        self._tried = 0.0
        self._ends: deque[End] = deque(maxlen=8)
        self._lengths: deque[float] = deque(maxlen=8)
        self._marks: deque[_Mark] = deque(maxlen=48)
        self.start(now)
        if learned is not None and 0 < learned < math.inf:
            self._place(learned, 0.0, now)

    def start(self, now: float) -> None:
        """Nothing has left before this moment."""
        self._ends.clear()
        self._ends.append(End(0.0, now))
        self._tried_at = now

    @property
    def longest_s(self) -> float:
        """How long the longest episode of late was: of a fixed window it is about what was left of the window."""
        return max(self._lengths, default=0.0)

    # --- an episode has ended -----------------------------------------------------------------------------------------

    def is_early(self, now: float) -> bool:
        """Whether peace has not lasted as long as the last episode had bought."""
        return self.top is not None and now - self._since < self._hold_s

    def settle(self, first_at: float, end: End, unit: float, cost: Cost, now: float) -> None:
        """This was the limit that refused, for the first time a request that left at `first_at`. A request is about
        `unit` units.
        """
        is_dear = cost.lost_s > _DEAR_S
        is_surprise = False
        if self.top is None:
            top, error = self._guessed(first_at, end, unit)
        else:
            top, error, lasted_s = self._measured(end, unit)
            is_plausible = top >= _TRUE * self.rate or lasted_s < self.longest_s
            if not self.is_early(now):
                self._margin = max(_MARGIN if is_dear else _MARGINS[0], self._margin - _NARROWER)
                lately = self._lately(first_at, end, unit)
                if lately > top:
                    top, error = lately, _GROWN if self._error > _UNKNOWN else 0.0
            elif self._is_told or (is_plausible and self._error <= _ROUGH):
                is_surprise = True
                self._margin = min(_MARGINS[1], max(self._margin, 0.0) + _WIDER * (1 + self._is_told))
                if not self._was_surprised and (not is_dear or self._error < _SURE):
                    top, error = self.top, self._error
            if self._error <= _UNKNOWN:
                error = max(error, min(1.0, abs(top / self.top - 1)))
        self._was_surprised = is_surprise
        self._remember(now)
        self._place(top, error, now)
        self._hold(unit, cost)

    def ended(self, first_at: float, end: End) -> None:
        """An episode has ended, whichever limit it was."""
        self._lengths.append(end.at - first_at)
        self._ends.append(end)

    def _guessed(self, first_at: float, end: End, unit: float) -> tuple[float, float]:
        """The first refusal: a ceiling and its relative error. Nobody knows how much was in store."""
        start = self._start(end, unit)
        accepted = end.accepted - start.accepted
        lasted_s = max(end.at - start.at, 1e-3)
        low, high = _bounds(max(accepted, unit), lasted_s, _BURST_S, end.window_s)
        lately = self._lately(first_at, end, unit)
        if lately > high or not end.window_s:
            low = high = max(low, lately)
        near = [told for told in self._told if low / _TOLD_NEAR < told < high * _TOLD_NEAR]
        if near:
            return near[0], min(1.0, 1 / lasted_s)
        if accepted < _ENOUGH * unit:  # too few to tell anything from
            return max(math.sqrt(low * high), _LEAST_GUESS * unit), 1.0
        return math.sqrt(low * high), min(1.0, 1 / lasted_s)

    def _measured(self, end: End, unit: float) -> tuple[float, float, float]:
        """From an end before to this one: a ceiling, its relative error, and how long that was."""
        start = self._start(end, unit)
        accepted = max(end.accepted - start.accepted, unit)
        lasted_s = max(end.at - start.at - start.rest_s, 1e-3)
        low, high = _bounds(accepted, lasted_s, start.rest_s, start.window_s)
        error = (1 - low / high) / 2 + (start.blur_s + end.blur_s) / 2 / lasted_s
        if lasted_s < start.window_s:
            return low, min(1.0, max(error, 1 - lasted_s / start.window_s)), lasted_s
        return math.sqrt(low * high), min(1.0, error), lasted_s

    def _start(self, end: End, unit: float) -> End:
        """The latest end that is far enough back to tell a rate from; the oldest that is known, if none is."""
        for start in reversed(self._ends):
            if end.accepted - start.accepted >= _ENOUGH * unit:
                return start
        return self._ends[0]

    def _lately(self, first_at: float, end: End, unit: float) -> float:
        """The same over the last seconds; 0 where that cannot be told, or is but a part of a window."""
        lately_s = _LATELY_S[0 if self.top is None else 1 if self._error > _UNKNOWN else 2]
        least_s = max(lately_s, 0.9 * _ENOUGH * unit / self.rate, 2 * (end.at - first_at), 2 * self.longest_s)
        for mark in reversed(self._marks):
            if mark.at < self._ends[-1].at:
                break
            if first_at - mark.at >= least_s and end.accepted - mark.accepted >= _ENOUGH * unit:
                return (end.accepted - mark.accepted) / (end.at - mark.at)
        return 0.0

    def _remember(self, now: float) -> None:
        """The best ceiling of late."""
        self._best *= 0.5 ** ((now - self._best_at) / _HOPE_S)
        self._best_at = now
        if self.top is not None and self._error < _ROUGH:
            self._best = max(self._best, self.top)

    def _place(self, top: float, error: float, now: float) -> None:
        near = [told for told in self._told if abs(math.log(told / top)) < math.log(_TOLD_NEAR * (1 + error))]
        self._is_told = bool(near) and self._margin < _TOLD_MOST
        margin = self._margin
        if self._is_told:
            top, error = min(near, key=lambda told: abs(told / top - 1)), 0.0
            margin = max(_TOLD_MARGIN, margin - _MARGIN + _TOLD_MARGIN)
        self.top, self._error = top, error
        self.rate = min(top * (1 - margin), self._cap)
        self._since = self._tried_at = now

    def _hold(self, unit: float, cost: Cost) -> None:
        """How long peace should last, and how fast the climb is after it."""
        request_s = unit / self.rate
        longest_s = max(_HOLD_S[1], _HOLD_REQUESTS[1] * request_s)
        bought_s = max(_REFUSALS * cost.refusals * request_s, min(_LOST * cost.lost_s, max(30.0, cost.lost_s)))
        if self._is_told:
            bought_s = longest_s
        most_s = min(longest_s, _EXACT_S / max(self._error, 1e-3))
        if self._error > _UNKNOWN:
            most_s = _UNKNOWN_HOLD_S
        elif self.top is not None and self._best > _FELL * self.top:
            most_s = min(most_s, _HOPE_HOLD_S)
        self._hold_s = max(min(bought_s, most_s), min(_HOLD_S[0], most_s))
        if self._error <= _UNKNOWN:
            self._hold_s = max(self._hold_s, _HOLD_REQUESTS[0] * request_s)
        self._climb_s = max(_CLIMB_S, 10 * request_s, _CLIMB_EPISODES * self.longest_s)

    # --- the curve ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, sent: float, accepted: float, unit: float) -> None:
        """Follow the curve. So many units were sent and accepted so far, at about `unit` a request."""
        spacing_s = max(_LATELY_S[0], 0.0 if self.rate == math.inf else _ENOUGH * unit / self.rate) / 8
        if not self._marks or now - self._marks[-1].at >= spacing_s:
            self._marks.append(_Mark(accepted, now))
        elapsed_s = now - self._tried_at
        if self.rate == math.inf or elapsed_s * self.rate < _TRIED[self._error > _UNKNOWN] * unit:
            return
        is_used = sent - self._tried >= _USED * elapsed_s * self.rate
        self._tried_at, self._tried = now, sent
        if self.top is None:
            return
        if not is_used:
            self._since += elapsed_s  # a rate that nobody used was not tried
            return
        climbing_s = now - self._since - self._hold_s
        if climbing_s > 0:
            margin = max(_TOLD_MARGIN, self._margin) if self._is_told else self._margin
            share = 1 - margin + max(_CLIMB, self._error / 3) * (climbing_s / self._climb_s) ** 3
            if self._error > _UNKNOWN:
                share = max(share, _FASTEST**climbing_s)
            rate = min(self.top * share, self._cap, self.rate * _FASTEST**elapsed_s)
            if rate > self.rate * (1 + _STEP):
                self.rate = rate

    def free(self) -> None:
        """There is no such limit."""
        self.top = None
        self.rate = self._cap

    def hurry(self) -> None:
        """Another limit has refused what this one let through: climb at once."""
        self._since -= self._hold_s
        self._hold_s = 0.0

    def doubt(self) -> None:
        """It may have been another limit: climb soon, and fast."""
        self._hold_s = min(self._hold_s, _DOUBT_S)
        self._error = max(self._error, _UNKNOWN)

    def tell(self, limit: float, window_s: float | None, now: float) -> None:
        """The server tells a limit, and perhaps of how many seconds: a minute's as a rule, or one window's."""
        if limit == self._told_limit:
            return
        growth = limit / self._told_limit if self._told_limit else 1.0
        self._told_limit = limit
        self._told = (limit / (window_s or 60.0), limit)
        if self._is_told and self.top is not None:
            self._place(self.top * growth, 0.0, now)

    def lately(self, now: float, amount: float) -> float:
        """Units a second of late, up to `amount` now; 0 where that cannot be told."""
        if not self._marks:
            return 0.0
        mark = self._marks[max(0, len(self._marks) - 9)]
        return (amount - mark.accepted) / (now - mark.at) if now > mark.at else 0.0


def _bounds(accepted: float, lasted_s: float, rest_s: float, window_s: float) -> tuple[float, float]:
    """Units a second, at least and at most, where so many were accepted after a rest: a bucket was full by then, and a
    window empty.
    """
    burst_s = min(rest_s, _BURST_S)
    low = accepted / max(lasted_s + burst_s, window_s)
    return low, max(low, accepted / (lasted_s + burst_s / 2))
