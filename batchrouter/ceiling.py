"""One limit a second (of requests or of tokens): where its ceiling is, and how to stay just under it.

Rules of this file: pure; a rate is units a second; `accepted` counts the units let in since the start; time is passed
in, in monotonic seconds. Between two refusals the rate follows CUBIC's curve (RFC 9438, 4.2: quickly back to just under
the last known ceiling, flat there, convex beyond), made free of scale: it is a share of the ceiling, and it lasts as
long as the last refusal was dear, so that it serves 1 request a second as well as 2,000.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

_MARGIN: Final = 0.02  # how far under its ceiling the rate stays
_TOLD_MARGINS: Final = (0.01, 0.03, 0.06)  # the same where the server, or the user, has told it; more after each doubt
_FIRST_TOLD_NEAR: Final = 0.7
_TOLD_NEAR: Final = 0.35  # how far what is told may be from what is seen, to be believed

_FIRST_DROP: Final = 0.1  # how far a cut goes under the ceiling: the first,
_DROP: Final = 0.03  # one at about the known ceiling,
_DEEPEST_DROP: Final = 0.2  # and one after others that came early
_RECOVERY_S: Final = 1.0  # the time constant from a cut back to the margin

_REFUSALS_EVERY: Final = 100  # a refusal buys so many requests' time of peace: below 1 % of requests are refused
_PAUSE_SHARE: Final = 20  # a pause that was asked for buys so many times its length, as long as it is short
_HOLD_S: Final = (2.0, 60.0)  # the shortest and longest time at the margin
_ROUGH_HOLD_S: Final = 4.0  # the longest while the ceiling is but a guess
_SHARED_HOLD_S: Final = 0.5  # while it is open whether this is the limit at all
_SHARED_CLIMB_S: Final = 1.0
_HOPE_HOLD_S: Final = 3.0  # the longest (but for refusals) while it has lately been much higher
_HOPE_S: Final = 60.0  # in which the hope for that is halved
_CLIMB: Final = 0.03  # beyond, the rate rises by this share of the ceiling, times the cube of the time in climbs
_CLIMB_S: Final = (1.5, 4.0)
_FASTEST: Final = 2.0  # and never faster than by this factor a second

_BURST_S: Final = 0.1  # how many seconds' worth a server is taken to let through at once after a rest
_LATELY_S: Final = 2.0
_MARK_S: Final = 0.25
_ENOUGH: Final = 20  # accepted requests, to tell a rate from
_LEAST: Final = 8  # requests, to tell from whether the rate is used
_STEP: Final = 0.002  # smaller changes of the rate are not worth telling the mechanism


class _Mark(NamedTuple):
    """`accepted` units until `at`; `slack_s`: how many seconds' worth may have been left, unused, all the same."""

    at: float
    accepted: float
    slack_s: float

    def rate(self, until: float, accepted: float) -> float:
        """Units a second from here to there."""
        return max(accepted - self.accepted, 1.0) / max(until - self.at + self.slack_s, 1e-3)


class Ceiling:
    """The rate allowed now (`rate`), under the ceiling that refusals have shown (`top`, None before the first)."""

    __slots__ = (
        "_best",
        "_best_at",
        "_cap",
        "_checked",
        "_checked_at",
        "_climb_s",
        "_doubts",
        "_drop",
        "_early",
        "_end",
        "_ends",
        "_first",
        "_hold_s",
        "_is_dear",
        "_is_rough",
        "_is_shared",
        "_is_told",
        "_lean",
        "_margin",
        "_marks",
        "_since",
        "_told",
        "_told_limit",
        "is_bound",
        "rate",
        "top",
    )

    def __init__(self, known: float | None, learned: float | None, now: float) -> None:
        self._cap = math.inf if known is None else known * (1 - _TOLD_MARGINS[0])
        self.rate = self._cap
        self.top: float | None = None
        self.is_bound = False
        self._told: tuple[float, ...] = () if known is None else (known,)
        self._told_limit = 0.0
        self._is_told = self._is_rough = self._is_dear = self._is_shared = False
        self._doubts = self._early = 0
        self._margin, self._drop, self._lean = _MARGIN, _DROP, 0.3
        self._hold_s, self._climb_s = _HOLD_S[0], _CLIMB_S[0]
        self._since = self._checked_at = self._best_at = now
        self._checked = self._best = 0.0
        self._end = self._first = _Mark(now, 0.0, _BURST_S)
        self._ends: deque[_Mark] = deque(maxlen=8)
        self._marks: deque[_Mark] = deque(maxlen=int(2 * _LATELY_S / _MARK_S))
        if learned is not None and 0 < learned < math.inf:
            self._place(learned, now)

    # --- an episode of refusals: begin, cut where this limit is to blame, stretch while it lasts, resume --------------

    def begin(self, at: float, accepted: float) -> None:
        """The first refused request left at `at`; so much had been accepted by then."""
        self._ends.append(self._end)
        self._first = _Mark(at, accepted, 0.0)

    def correct(self, at: float, accepted: float) -> None:
        """An earlier request turns out to be the first refused."""
        self._first = _Mark(at, accepted, 0.0)

    def cut(self, now: float, *, is_shared: bool) -> None:
        """Come down to just under what was accepted since the episode before, or lately, if that was more. The blame
        may be `is_shared` with the number in flight: if that was the limit, there is no need to stay down for long.
        """
        self._is_shared = is_shared
        seen, lately = self._seen(self._first.at), self._lately(self._first.at)
        before = min(self.rate, 2 * max(seen, lately))
        self._remember(now)
        if self.top is None:
            self._is_rough = True
            self._drop = _FIRST_DROP
            top = max(seen, lately)
        elif now - self._since < 0.6 * self._hold_s:
            self._is_rough = True
            self._doubts += self._is_told
            self._early = min(self._early + 1, 3)
            self._drop = min(1.5 * self._drop, _DEEPEST_DROP)
            self._lean *= 0.5
            top = seen
        else:
            self._is_rough = False
            self._doubts = max(0, self._doubts - 1)
            self._early = max(0, self._early - 1)
            self._drop = max(0.7 * self._drop, _DROP)
            self._lean = 0.3 if self._is_dear else min(self._lean + 0.05, 0.6)
            top = max(seen, lately)
            top += self._lean * (before - top)
        self._place(top, now)

    def stretch(self, until: float, now: float, *, is_blamed: bool) -> None:
        """Nothing was accepted until then. Nobody knows a window better than one who has waited for its end."""
        if not is_blamed or self.top is None or until < self._first.at + 0.05:
            return
        seen = self._seen(until)
        if len(self._ends) == 1:
            seen = max(seen, self._lately(until))
        is_long = until - self._first.at > 1.0
        if (self._is_rough or is_long) and seen < 0.9 * self.top:
            self._is_rough = not is_long
            self._is_shared = self._is_shared and not is_long
            self._place(seen, now)

    def ended(self, at: float, accepted: float, *, rested_s: float) -> None:
        """For all that is known the quota was used up until `at`, but for what `rested_s` of rest have brought."""
        self._end = _Mark(at, accepted, min(rested_s, _BURST_S))

    def cost(self, refusals: int, unit_s: float, asked_s: float) -> None:
        """What the episode has cost so far: refusals, of `unit_s` each, and the pause asked for."""
        refused_s = _REFUSALS_EVERY * refusals * unit_s
        pause_s = min(_PAUSE_SHARE * asked_s, max(30.0, asked_s))
        climb_s = max(refused_s / 2, min(pause_s / 2, _CLIMB_S[1]))
        if self._is_rough:
            refused_s = min(refused_s, max(_HOLD_S[0], 40 * unit_s))
            pause_s = min(pause_s, _ROUGH_HOLD_S)
            climb_s = min(climb_s, max(2.0, 20 * unit_s))
        if self._early >= 2:
            refused_s = min(refused_s, max(3.0, 40 * unit_s))
            climb_s = min(climb_s, 2.0)
        if self.top is not None and self._best > 1.25 * self.top:
            pause_s = min(pause_s, _HOPE_HOLD_S)
        hold_s = _HOLD_S[1] if self._is_told else max(refused_s, pause_s)
        self._hold_s = min(max(_HOLD_S[0], hold_s), _HOLD_S[1])
        self._climb_s = min(max(_CLIMB_S[0], climb_s), _HOLD_S[1])
        if self._is_shared and not self._is_told and asked_s <= 0.5:
            self._hold_s, self._climb_s = _SHARED_HOLD_S, _SHARED_CLIMB_S
        self._is_dear = asked_s > 0.5

    def resume(self, now: float) -> None:
        """The pause is over: the curve begins."""
        self._since = self._checked_at = now

    # --- the curve ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Nothing has left before this moment."""
        self._end = self._first = _Mark(now, 0.0, _BURST_S)
        self._checked_at = now

    def tick(self, now: float, sent: float, accepted: float, unit: float) -> None:
        """Follow the curve. So many units were sent and accepted so far, at about `unit` a request."""
        if now - self._marks[-1].at >= _MARK_S if self._marks else True:
            self._marks.append(_Mark(now, accepted, 0.0))
        elapsed_s = now - self._checked_at
        if self.rate == math.inf or elapsed_s * self.rate < _LEAST * unit:
            return
        self.is_bound = sent - self._checked >= 0.7 * elapsed_s * self.rate
        self._checked_at, self._checked = now, sent
        if self.top is None:
            return
        if not self.is_bound:
            self._since += elapsed_s  # a rate that nobody used was not tried
            return
        since_s = now - self._since
        share = 1 - self._margin - (self._drop - self._margin) * math.exp(-since_s / _RECOVERY_S)
        if since_s > self._hold_s:
            share += _CLIMB * ((since_s - self._hold_s) / self._climb_s) ** 3
        rate = min(self.top * share, self._cap, self.rate * _FASTEST**elapsed_s)
        if abs(rate - self.rate) > _STEP * self.rate:
            self.rate = rate

    def hurry(self) -> None:
        """Another limit has refused what this one let through: no need to stay at the margin."""
        self._since -= self._hold_s

    def free(self) -> None:
        """Forget: this was not the limit that refused."""
        self.top = None
        self.rate = self._cap
        self.is_bound = False

    def tell(self, limit: float, window_s: float | None, now: float) -> None:
        """The server tells a limit, and perhaps of how many seconds: a minute's as a rule, or one window's."""
        if limit == self._told_limit:
            return
        growth = limit / self._told_limit if self._told_limit else 1.0
        self._told_limit = limit
        self._told = (limit / (window_s or 60.0), limit)
        if self._is_told and self.top is not None:
            self._place(self.top * growth, now)

    def _place(self, top: float, now: float) -> None:
        low = _FIRST_TOLD_NEAR if len(self._ends) == 1 else _TOLD_NEAR
        near = [told for told in self._told if -low < told / top - 1 < _TOLD_NEAR]
        self._is_told = bool(near) and self._doubts < len(_TOLD_MARGINS)
        if self._is_told:
            top = min(near, key=lambda told: abs(told / top - 1))
            self._margin = self._drop = _TOLD_MARGINS[self._doubts]
        else:
            self._margin = _MARGIN
        self.top = top
        self.rate = min(top * (1 - max(self._drop, self._margin)), self._cap)
        self._since = self._checked_at = now

    # --- what was accepted --------------------------------------------------------------------------------------------

    def _seen(self, until: float) -> float:
        """Units a second accepted from the latest end that is far enough back to count from, to the first refusal."""
        rate = 0.0
        for end in reversed(self._ends):
            if until > self._first.at + _BURST_S:  # refused for so long: there was nothing left
                end = end._replace(slack_s=0.0)  # noqa: PLW2901
            rate = end.rate(until, self._first.accepted)
            if rate * (until - end.at) >= _ENOUGH:
                break
        return rate

    def lately(self) -> float:
        """Units a second accepted in the last two seconds before the first refusal, 0 if that cannot be told."""
        return self._lately(self._first.at)

    def _lately(self, until: float) -> float:
        """Units a second accepted in the last two seconds before the first refusal; in less after a start."""
        least_s = _LATELY_S / 4 if len(self._ends) == 1 else _LATELY_S
        slack_s = 0.0 if until > self._first.at + _BURST_S else _BURST_S
        for mark in reversed(self._marks):
            if mark.at < self._ends[-1].at:
                break
            if self._first.at - mark.at > least_s:
                return mark._replace(slack_s=slack_s).rate(until, self._first.accepted)
        return 0.0

    def _remember(self, now: float) -> None:
        """The best ceiling of late: one that fell may come back."""
        self._best *= 0.5 ** ((now - self._best_at) / _HOPE_S)
        self._best_at = now
        if self.top is not None and not self._is_rough:
            self._best = max(self._best, self.top)
