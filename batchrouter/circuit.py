"""Is the endpoint itself down? Told from the attempts that ended last, over all rows.

Rules of this file: pure; `now` is the loop's clock in seconds. While open, nobody is admitted but one probe at a time,
at growing intervals; the first answer closes it. One bad row among good ones never opens it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_ALL_OF: Final = 10  # this many attempts in a row, all failed …
_ROWS: Final = 3  # … of at least so many rows
_MOST_OF: Final = 50  # or of so many attempts …
_MOST: Final = 40  # … so many failed
_FIRST_PROBE_S: Final = 0.5
_PROBE_GROWTH: Final = 1.6
_LONGEST_PROBE_GAP_S: Final = 4.5  # an outage's end is noticed within 5 s
_FIRST_REFUSED_PROBE_S: Final = 1.0  # who refuses us is asked less often
_LONGEST_REFUSED_GAP_S: Final = 10.0


class Circuit:
    """One endpoint's state of health. `answered` and `failed` take in attempts, `open_since` is null while well."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int | None, bool]] = deque(maxlen=_MOST_OF)
        self._gap_s = 0.0
        self._longest_gap_s = _LONGEST_PROBE_GAP_S
        self._next_probe_s = 0.0
        self.open_since: float | None = None
        self.answers = 0

    @property
    def is_open(self) -> bool:
        """Whether admission is closed but for probes."""
        return self.open_since is not None

    def answered(self) -> bool:
        """Take in an attempt that brought an answer; true when the circuit closed by it."""
        self.answers += 1
        closes = self.open_since is not None
        if closes:
            self.open_since = None
            self._recent.clear()
        self._recent.append((0, False))
        return closes

    def failed(self, row: int | None, now: float) -> bool:
        """Take in an attempt of `row` that failed by the endpoint (None: of no row in particular, as when there was no
        connection); true when the circuit opened by it.
        """
        if self.open_since is not None:
            return False
        self._recent.append((row, True))
        if not self._has_cause():
            return False
        self._open(now, _FIRST_PROBE_S, _LONGEST_PROBE_GAP_S)
        return True

    def shut(self, now: float) -> None:
        """Open it whatever was counted, as the endpoint refuses us; one that is open stays so."""
        if self.open_since is None:
            self._open(now, _FIRST_REFUSED_PROBE_S, _LONGEST_REFUSED_GAP_S)

    def _open(self, now: float, gap_s: float, longest_gap_s: float) -> None:
        self.open_since = now
        self._gap_s, self._longest_gap_s = gap_s, longest_gap_s
        self._next_probe_s = now + gap_s

    def _has_cause(self) -> bool:
        recent = self._recent
        failed = [row for row, failed in recent if failed]
        if len(recent) == _MOST_OF and len(failed) >= _MOST:
            return _are_many(failed)
        last = [recent[-1 - i] for i in range(min(_ALL_OF, len(recent)))]
        return len(last) == _ALL_OF and all(failed for _, failed in last) and _are_many([row for row, _ in last])

    def probe_in_s(self, now: float) -> float:
        """Seconds until the next probe may leave (0: now, or none is needed)."""
        return 0.0 if self.open_since is None else max(0.0, self._next_probe_s - now)

    def probed(self, now: float) -> None:
        """A probe leaves; the next one waits longer."""
        self._gap_s = min(self._longest_gap_s, self._gap_s * _PROBE_GROWTH)
        self._next_probe_s = now + self._gap_s


def _are_many(rows: list[int | None]) -> bool:
    """Whether these are enough rows to say that it is not theirs (without a connection it is nobody's)."""
    return len(set(rows)) >= _ROWS or None in rows
