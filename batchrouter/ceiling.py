"""One limit a second (of requests or of tokens): where its ceiling is, and how to stay just under it.

Rules of this file: pure; a rate is units a second; time is passed in. The curve between two cuts is CUBIC's
(RFC 9438, 4.2: concave up to the last known ceiling, flat there, convex beyond), made free of scale: its height is
a share of the ceiling and its length is what a cut costs, so that it serves 1 request a second as well as 2,000.
"""

from __future__ import annotations

import math
from typing import Final

_MARGIN: Final = 0.02  # how far under its ceiling the rate stays
_TOLD_MARGINS: Final = (0.01, 0.03, 0.06)  # the same, when the server has told where its ceiling is
_DROPS: Final = (0.03, 0.2)  # how far under the ceiling a cut goes: as a rule, and when one follows the other
_FIRST_DROP: Final = 0.1
_RECOVERY_S: Final = 1.0  # from a cut back to the margin
_HOLDS_S: Final = (2.0, 60.0)
_ROUGH_HOLD_S: Final = 4.0
_CLIMB: Final = 0.03
_CLIMBS_S: Final = (1.5, 4.0)
_FASTEST: Final = 2.0  # growth a second, far above the last known ceiling
_NEAR: Final = 0.35  # how far a told limit may be from what is seen, to be believed
_TICK_UNITS: Final = 8
_HOPE_S: Final = 60.0
_HOPE_HOLD_S: Final = 3.0


class Ceiling:
    """The rate allowed now (`rate`), under the ceiling that refusals have shown (`top`, None before the first)."""

    __slots__ = (
        "_best",
        "_best_at",
        "_cap",
        "_checked_at",
        "_climb_s",
        "_dear",
        "_doubts",
        "_drop",
        "_hold_s",
        "_is_rough",
        "_is_told",
        "_last",
        "_lean",
        "_margin",
        "_since",
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
        self._is_told = self._is_rough = False
        self._dear = False
        self._doubts = 0
        self._drop = _DROPS[0]
        self._margin = _MARGIN
        self._hold_s, self._climb_s = _HOLDS_S[0], _CLIMBS_S[0]
        self._since = self._checked_at = self._best_at = now
        self._last = self._best = 0.0
        self._lean = 0.3
        if learned is not None:
            self._place(min(learned, self._cap), now)

    def free(self) -> None:
        """Forget: this was not the limit that refused."""
        self.top = None
        self.rate = self._cap
        self.is_bound = False

    def cut(self, seen: float, lately: float, now: float) -> None:
        """A new episode of refusals: come down to just under what was accepted: `seen` a second since the episode
        before, `lately` in the last second or two.
        """
        before = min(self.rate, 2 * max(seen, lately))
        self._is_rough = True
        if self.top is None:
            self._drop = _FIRST_DROP
            top = max(seen, lately)
        elif now - self._since < 0.6 * self._hold_s:
            self._doubts += 1
            self._drop = min(1.5 * self._drop, _DROPS[1])
            self._lean *= 0.5
            top = seen
        else:
            self._is_rough = False
            self._doubts = max(0, self._doubts - 1)
            self._drop = max(0.7 * self._drop, _DROPS[0])
            self._lean = 0.3 if self._dear else min(self._lean + 0.15, 0.6)
            seen = max(seen, lately)
            top = seen + self._lean * (before - seen)
        self._remember(now)
        self._place(min(top, self._cap), now)

    def lower(self, seen: float, now: float, long: bool) -> None:
        """The same episode goes on, and shows that even less is accepted than it seemed."""
        if (self._is_rough or long) and self.top is not None and seen < 0.9 * self.top:
            self._is_rough = self._is_rough and not long
            self._place(seen, now)

    def cost(self, refusals: int, unit_s: float, asked_s: float) -> None:
        """What the episode has cost so far: refusals, at `unit_s` each, and the pause asked for. The dearer, the
        longer until the next.
        """
        refused_s = 100 * refusals * unit_s
        pause_s = min(20 * asked_s, max(30.0, asked_s))
        climb_s = max(refused_s / 2, min(pause_s / 2, _CLIMBS_S[1]))
        if self._is_rough:
            refused_s = min(refused_s, max(2.0, 40 * unit_s))
            pause_s = min(pause_s, _ROUGH_HOLD_S)
            climb_s = min(climb_s, max(2.0, 20 * unit_s))
        if self.top is not None and self._best > 1.25 * self.top:
            pause_s = min(pause_s, _HOPE_HOLD_S)
        hold_s = _HOLDS_S[1] if self._is_told else max(refused_s, pause_s)
        self._hold_s = min(max(_HOLDS_S[0], hold_s), _HOLDS_S[1])
        self._climb_s = min(max(_CLIMBS_S[0], climb_s), _HOLDS_S[1])
        self._dear = asked_s > 0.5

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
        since_s = now - self._since
        wanted = 1 - self._margin - (self._drop - self._margin) * math.exp(-since_s / _RECOVERY_S)
        if since_s > self._hold_s:
            wanted += _CLIMB * ((since_s - self._hold_s) / self._climb_s) ** 3
        self.rate = min(self.top * wanted, self._cap, self.rate * _FASTEST**elapsed_s)

    def _remember(self, now: float) -> None:
        """The best ceiling of late: one that fell may come back."""
        self._best *= 0.5 ** ((now - self._best_at) / _HOPE_S)
        self._best_at = now
        if self.top is not None and not self._is_rough:
            self._best = max(self._best, self.top)

    def _place(self, top: float, now: float) -> None:
        near = [told for told in self.told if abs(told / top - 1) < _NEAR]
        self._is_told = bool(near) and self._doubts < len(_TOLD_MARGINS)
        if self._is_told:
            top = min(near, key=lambda told: abs(told / top - 1))
            self._margin = self._drop = _TOLD_MARGINS[self._doubts]
        else:
            self._margin = _MARGIN
        self.top = top
        self.rate = top * (1 - max(self._drop, self._margin))
        self._since = self._checked_at = now
