"""One limit a second (of requests or of tokens): where its ceiling is, and how to stay just under it.

Rules of this file: pure; a rate is units a second; time is passed in. The curve between two cuts is CUBIC's
(RFC 9438, 4.2: concave up to the last known ceiling, flat there, convex beyond), made free of scale: its height is
a share of the ceiling and its length is what a cut costs, so that it serves 1 request a second as well as 2,000.
"""

from __future__ import annotations

import math
from typing import Final

_DROP: Final = 0.03  # how far under the ceiling a cut goes, when the ceiling was where it was thought to be
_FIRST_DROP: Final = 0.1
_DEEPEST_DROP: Final = 0.2
_SHORTEST_HOLD_S: Final = 2.0
_ROUGH_HOLD_S: Final = 4.0
_LONGEST_HOLD_S: Final = 60.0
_FASTEST: Final = 2.0  # growth a second, far above the last known ceiling
_SNAP: Final = 0.35  # how far a told limit may be from what is seen, to be believed
_TICK_UNITS: Final = 8


class Ceiling:
    """The rate allowed now (`rate`), under the ceiling that refusals have shown (`top`, None before the first)."""

    __slots__ = (
        "_cap",
        "_checked_at",
        "_drop",
        "_hold_s",
        "_is_first",
        "_is_rough",
        "_last",
        "_lean",
        "_rate_before",
        "_since",
        "_snapped",
        "_doubt",
        "is_bound",
        "rate",
        "told",
        "top",
    )

    def __init__(self, cap: float | None, learned: float | None, now: float) -> None:
        self._cap = math.inf if cap is None else cap
        self.top: float | None = None
        self.rate = self._cap
        self.is_bound = False
        self.told: tuple[float, ...] = ()
        self._snapped = self._doubt = False
        self._is_first = self._is_rough = False
        self._drop = _DROP
        self._hold_s = _SHORTEST_HOLD_S
        self._rate_before = self.rate
        self._since = self._checked_at = now
        self._last = 0.0
        self._lean = 0.3
        if learned is not None:
            self._place(min(learned, self._cap), now)

    def free(self) -> None:
        """Forget: this was not the limit that refused."""
        self.top = None
        self.rate = self._cap
        self.is_bound = False

    def cut(self, seen: float, lately: float, now: float) -> None:
        """A new episode of refusals: come down to just under what was accepted lately, `seen` a second."""
        early = now - self._since < 0.6 * self._hold_s
        self._rate_before = min(self.rate, 2 * seen)
        self._is_first = self.top is None
        if self._is_first:
            self._drop = _FIRST_DROP
        elif early:
            self._drop = min(1.5 * self._drop, _DEEPEST_DROP)
            self._lean *= 0.5
        else:
            self._lean = min(1.3 * self._lean, 0.6)
            self._drop = max(0.7 * self._drop, _DROP)
        if not early:
            seen = max(seen, 0.98 * lately)
        self._is_rough = self._is_first or early
        top = seen if self._is_rough else seen + self._lean * (self._rate_before - seen)
        self._hold_s = _SHORTEST_HOLD_S
        self._doubt = early and self._snapped
        self._place(min(top, self._cap), now)
        self._snap(now)

    def lower(self, seen: float, now: float) -> None:
        """The same episode goes on, and shows that even less is accepted than it seemed."""
        if self._is_rough and self.top is not None and seen < 0.9 * self.top:
            self._place(seen, now)
            self._snap(now)

    def _snap(self, now: float) -> None:
        assert self.top is not None
        near = [told for told in self.told if abs(told / self.top - 1) < _SNAP]
        self._snapped = bool(near) and not self._doubt
        if self._snapped:
            self._drop = 0.015
            self._place(min(near, key=lambda told: abs(told / self.top - 1)), now)

    def cost(self, refusals_s: float, lost_s: float) -> None:
        """What the episode has cost so far, in seconds of the limit: the dearer, the longer until the next."""
        pause_s = 20 * lost_s if not self._is_rough else min(20 * lost_s, _ROUGH_HOLD_S)
        self._hold_s = min(max(_SHORTEST_HOLD_S, 120 * refusals_s, pause_s), _LONGEST_HOLD_S)

    def resume(self, now: float) -> None:
        """The pause is over: the curve begins."""
        self._since = self._checked_at = now

    def grow(self, now: float, units: float, unit: float) -> None:
        """Follow the curve; `units` have left so far, of about `unit` a request."""
        elapsed_s = now - self._checked_at
        if self.rate == math.inf or elapsed_s * self.rate < _TICK_UNITS * unit:
            return
        self.is_bound = units - self._last >= 0.7 * elapsed_s * self.rate
        self._checked_at, self._last = now, units
        if self.top is None:
            return
        if not self.is_bound:
            self._since += elapsed_s  # a rate that nobody used was not tried
            return
        x = (now - self._since) / (60.0 if self._snapped else self._hold_s) - 1
        if self._snapped and x < 0:
            x = -1
        wanted = self.top * (1 + self._drop * x * x * x)
        self.rate = min(wanted, self._cap, self.rate * _FASTEST**elapsed_s)

    def _place(self, top: float, now: float) -> None:
        self.top = top
        self.rate = top * (1 - self._drop)
        self._since = self._checked_at = now
