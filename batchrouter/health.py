"""What bounds a run, by name and in words: which limits were told or learned, and when that is worth an event.

Rules of this file: pure; `now` is the loop's clock. A limit is told once it is known, and again when it has moved by a
fifth, but not more often than every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Bound = Literal["", "outage", "cooldown", "credits", "requests", "tokens", "concurrency", "workers"]

_WORDS: Final = {"requests_per_min": "requests/min", "tokens_per_min": "tokens/min", "at_once": "at once"}
_MOVED: Final = 0.2
_TOLD_EVERY_S: Final = 5.0
_BINDS_FOR_S: Final = 2.0  # it is only rising, else


def limits_in_words(limits: Mapping[str, float]) -> str:
    """Limits as people read them; empty where there is none."""
    parts = [f"{limit:,.0f} {_WORDS[name]}" for name, limit in limits.items()]
    return f"at most {', '.join(parts)}" if parts else ""


def short_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def lost_in_words(lost_s: Mapping[str, float]) -> str:
    """The time lost to each reason, the most first; what is less than a second is left out."""
    told = sorted(((seconds, reason) for reason, seconds in lost_s.items() if seconds >= 1), reverse=True)
    return ", ".join(f"{reason} {short_time(seconds)}" for seconds, reason in told)


class LimitLog:
    """What was told of one lane's limits, and when."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._told_s: float | None = None
        self._crowded_s: float | None = None

    def news(self, limits: Mapping[str, float], bound: Bound, now: float) -> dict[str, float]:
        """The limits to tell of now; empty when nothing is new. How many may be at once is one only where that has
        held the run up for a while.
        """
        if bound != "concurrency":
            self._crowded_s = None
        elif self._crowded_s is None:
            self._crowded_s = now
        is_crowded = self._crowded_s is not None and now - self._crowded_s >= _BINDS_FOR_S
        found = {name: limit for name, limit in limits.items() if name != "at_once" or is_crowded}
        if self._told_s is not None and now - self._told_s < _TOLD_EVERY_S:
            return {}
        if not any(self._is_new(name, limit) for name, limit in found.items()):
            return {}
        self._told_s = now
        self._told |= found
        return found

    def _is_new(self, name: str, limit: float) -> bool:
        told = self._told.get(name)
        return told is None or abs(limit - told) > _MOVED * told
