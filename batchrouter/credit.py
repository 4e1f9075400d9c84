"""Credits that are spent: how long to wait for a top-up, and when to look for one.

Rules of this file: pure; time is passed in, in monotonic seconds. What was under way together counts once.
"""

from __future__ import annotations

from typing import Final

_FIRST_PROBE_S: Final = 5.0
_LONGEST_PROBE_S: Final = 600.0


class Credits:
    """What 402s of one limit have said since the last answer. `is_over`: the last probe has found none."""

    __slots__ = ("_gap_s", "_paused_at", "_seen_at", "_spent_since", "_waits", "is_over")

    def __init__(self) -> None:
        self._waits = 0
        self._paused_at = self._seen_at = self._gap_s = 0.0
        self._spent_since: float | None = None
        self.is_over = False

    def answered(self) -> None:
        """There are some."""
        self._waits, self.is_over = 0, False
        self._spent_since = None

    def waits_before(self, sent_at: float) -> int:
        """How many short waits were asked for in a row before the answer to what was sent then."""
        return self._waits - (sent_at <= self._paused_at and self._waits > 0)

    def asked_to_wait(self, sent_at: float, now: float) -> None:
        """A 402 that says when to come back, soon."""
        if sent_at > self._paused_at:
            self._waits += 1
            self._paused_at = now

    def spent(self, sent_at: float, now: float, most_s: float) -> float | None:
        """A 402 that does not. Seconds until the next probe, ever more, the last one after `most_s` in all; None where
        one is under way, or it `is_over`.
        """
        if self._spent_since is None:
            self._spent_since, self._gap_s = now, _FIRST_PROBE_S
        elif sent_at < self._seen_at:
            return None  # it had left before the first of them came back
        else:
            self._gap_s = min(2 * self._gap_s, _LONGEST_PROBE_S)
        left_s = self._spent_since + most_s - now
        self.is_over = left_s <= 0
        if self.is_over:
            return None
        self._seen_at = now
        return min(self._gap_s, left_s)
