"""Is the endpoint itself down? Told from the attempts that ended last, over all rows.

Rules of this file: pure; `now` is the loop's clock in seconds; a request left at `sent_s` by it, as the `nth` of its
limit (0: that is not counted). While open, nobody is admitted but one probe at a time, at growing intervals; the first
answer closes it, but for one to a request that had left before those that failed: answers take their time, and
failures need not. For the same reason an answer to an older request says nothing against ten that left after it and
failed, if hardly any other has left since. One bad row among good ones never opens it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_ALL_OF: Final = 10  # this many attempts in a row, all failed …
_ROWS: Final = 3  # … of at least so many rows
_MOST_OF: Final = 50  # or of so many attempts …
_MOST: Final = 40  # … so many failed
_NEARLY_ALL: Final = 0.8  # or ten, and so many of all that left since the first of them
_LEAST_SILENCE_S: Final = 5.0
_SILENT_FOR: Final = 4.0  # times the slowest of late answers
_FADING: Final = 0.98  # of what the slowest counts for, with each answer
_FIRST_PROBE_S: Final = 0.5
_PROBE_GROWTH: Final = 1.6
_LONGEST_PROBE_GAP_S: Final = 4.5  # an outage's end is noticed within 5 s
_FIRST_REFUSED_PROBE_S: Final = 1.0  # who refuses us is asked less often
_LONGEST_REFUSED_GAP_S: Final = 10.0


class Circuit:
    """One endpoint's state of health. `answered` and `failed` take in attempts, `open_since` is null while well."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int | None, bool, float]] = deque(maxlen=_MOST_OF)
        self._since: set[int | None] = set()  # rows that failed, and how often, of those that left from the nth on
        self._since_count = 0
        self._since_nth = 0
        self._gap_s = 0.0
        self._longest_gap_s = _LONGEST_PROBE_GAP_S
        self._next_probe_s = 0.0
        self._failing_from_s = -math.inf
        self._well_from_s = -math.inf
        self.open_since: float | None = None
        self.is_silent = False  # open for nothing comes back, not for what has failed
        self.answered_to_s = -math.inf  # when the latest request left that was answered

    @property
    def is_open(self) -> bool:
        """Whether admission is closed but for probes."""
        return self.open_since is not None

    def excuses(self, sent_s: float) -> bool:
        """Whether a request that left then, and failed, did so in an outage: it says nothing of its row, nor of now."""
        return self.open_since is not None or sent_s < self._well_from_s

    def answered(self, sent_s: float, nth: int = 0) -> bool:
        """Take in an attempt that brought an answer; true when the circuit closed by it."""
        self.answered_to_s = max(self.answered_to_s, sent_s)
        closes = self.open_since is not None
        if closes:
            if sent_s < self._failing_from_s:
                return False
            self.open_since = None
            self.is_silent = False
            self._well_from_s = sent_s
            self._recent.clear()
        if self._since_count and (closes or nth > self._since_nth):
            self._since.clear()
            self._since_count = 0
        self._recent.append((0, False, sent_s))
        return closes

    def failed(self, row: int | None, sent_s: float, now: float, *, nth: int = 0, latest: int = 0) -> bool:
        """Take in an attempt of `row` that failed by the endpoint (None: of no row in particular, as when there was no
        connection), when the `latest` to leave was the nth; true when the circuit opened by it.
        """
        if self.excuses(sent_s):
            self.is_silent = False
            return False
        self._recent.append((row, True, sent_s))
        self._since_nth = min(self._since_nth, nth) if self._since_count else nth
        self._since_count += 1
        self._since.add(row)
        if not self._has_cause() and not self._is_nearly_all(latest):
            return False
        self._failing_from_s = min(sent_s for _, failed, sent_s in list(self._recent)[-_ALL_OF:] if failed)
        self._open(now, _FIRST_PROBE_S, _LONGEST_PROBE_GAP_S)
        return True

    def _is_nearly_all(self, latest: int) -> bool:
        """Whether enough have failed, and nearly all that left since the first of them, whatever older ones do."""
        if latest <= 0 or self._since_count < _ALL_OF or not _are_many(list(self._since)):
            return False
        return self._since_count >= _NEARLY_ALL * (latest - self._since_nth + 1)

    def shut(self, now: float) -> None:
        """Open it whatever was counted, as the endpoint refuses us; one that is open stays so."""
        if self.open_since is None:
            self._failing_from_s = now
            self._open(now, _FIRST_REFUSED_PROBE_S, _LONGEST_REFUSED_GAP_S)

    def fall_silent(self, now: float) -> None:
        """Open it, as nothing comes back any more; whatever is answered after that closes it."""
        if self.open_since is None:
            self.is_silent = True
            self._failing_from_s = -math.inf
            self._open(now, _FIRST_PROBE_S, _LONGEST_PROBE_GAP_S)

    def _open(self, now: float, gap_s: float, longest_gap_s: float) -> None:
        self.open_since = now
        self._gap_s, self._longest_gap_s = gap_s, longest_gap_s
        self._next_probe_s = now + gap_s

    def _has_cause(self) -> bool:
        recent = self._recent
        failed = [row for row, failed, _ in recent if failed]
        if len(recent) == _MOST_OF and len(failed) >= _MOST:
            return _are_many(failed)
        last = [recent[-1 - i] for i in range(min(_ALL_OF, len(recent)))]
        return len(last) == _ALL_OF and all(failed for _, failed, _ in last) and _are_many([row for row, _, _ in last])

    def probe_in_s(self, now: float) -> float:
        """Seconds until the next probe may leave (0: now, or none is needed)."""
        return 0.0 if self.open_since is None else max(0.0, self._next_probe_s - now)

    def probed(self, now: float) -> None:
        """A probe leaves; the next one waits longer."""
        self._gap_s = min(self._longest_gap_s, self._gap_s * _PROBE_GROWTH)
        self._next_probe_s = now + self._gap_s


class Silence:
    """Whether requests are taken and nothing comes back: for several times as long as the slowest of late answers took.

    Time is counted as it is looked at, so that a process that was suspended takes its own silence for nobody's.
    """

    def __init__(self) -> None:
        self._slowest_s = 0.0
        self._quiet_s = 0.0
        self._looked_s = -math.inf

    def heard(self, latency_s: float) -> None:
        """An attempt ended by an answer, be it a refusal, after so long."""
        self._slowest_s = max(latency_s, _FADING * self._slowest_s)
        self._quiet_s = 0.0

    def look(self, now: float, for_s: float, *, in_flight: int, heard_s: float) -> bool:
        """Called every `for_s`, with when a byte last came in; whether it is silent. Never before the first answer."""
        if not in_flight or heard_s > self._looked_s:
            self._quiet_s = 0.0
        self._quiet_s += for_s
        self._looked_s = now
        enough_s = max(_LEAST_SILENCE_S, _SILENT_FOR * self._slowest_s)
        return in_flight >= _ROWS and self._slowest_s > 0 and self._quiet_s >= enough_s


def _are_many(rows: list[int | None]) -> bool:
    """Whether these are enough rows to say that it is not theirs (without a connection it is nobody's)."""
    return len(set(rows)) >= _ROWS or None in rows
