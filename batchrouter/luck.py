"""Is there a limit at all, or are requests refused at random: by a server that sheds load, or for the load of others?

Rules of this file: pure. A limit keeps peace under it: after a refusal the pace goes just below, and the next one comes
late. Where refusals go on coming early however far the pace goes down, it is not the pace. Then it is given free, as
going slower would buy nothing; where a greater share is refused for it, it was a limit after all.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_EARLY, _LATE = 1.0, -0.5  # the score of an episode that came early, and of one that came when it was time
_EARLY_TILL: Final = 0.5  # … and early, but with word of when it ends: who says that keeps count of something
_LEAST: Final = -1.0
_REFUTED: Final = -3.0
_LUCK: Final = 3.0  # from this score on it is luck …
_MOST_SHARE: Final = 0.1  # … where no larger share of requests is refused
_EPISODES: Final = 6  # to tell that share from
_DENSER: Final = 2.5  # times as much of it at full speed, and it was not luck


class Luck:
    """`is_bad`: refusals have nothing to do with the pace."""

    __slots__ = ("_counts", "_score", "_share", "is_bad")

    def __init__(self) -> None:
        self.is_bad = False
        self._score = self._share = 0.0
        self._counts: deque[tuple[int, int]] = deque([(0, 0)], maxlen=_EPISODES + 1)

    def judge(self, accepted: int, refused: int, *, is_isolated: bool, is_early: bool, says_when: bool) -> None:
        """An episode has ended; so many requests were accepted and refused until now, all in all. It `is_isolated`
        where the next request was accepted again, and the server named no limit; it `says_when` where the server asked
        for a pause of some length.
        """
        self._counts.append((accepted, refused))
        first_accepted, first_refused = self._counts[0]
        share = (refused - first_refused) / max(accepted - first_accepted, 1)
        if self.is_bad:
            if not is_isolated or (len(self._counts) > _EPISODES and share > _DENSER * self._share):
                self.is_bad, self._score = False, _REFUTED
        elif not is_isolated:
            self._score = min(self._score, _LEAST)
        else:
            early = _EARLY_TILL if says_when else _EARLY
            self._score = self._score + early if is_early else max(min(self._score, _LEAST), self._score + _LATE)
            if self._score >= _LUCK and share < _MOST_SHARE:
                self.is_bad, self._share = True, share
                self._counts = deque([self._counts[-1]], maxlen=_EPISODES + 1)
