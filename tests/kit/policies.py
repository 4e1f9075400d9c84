"""Three ways to find a pace that others use, to compare `batchrouter.pace` with in the simulator.

Each is written from its published description, and gets what the simulator's mechanism gives to all: one shared pause
after a 429, as long as was asked for, else exponential backoff with full jitter.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from typing import Final

from batchrouter.hints import Hints
from batchrouter.pace import Sent

_MOST: Final = 512
_BACKOFF_S: Final = (0.05, 20.0)


class _Policy(ABC):
    """Counts what is in flight, and backs off."""

    requests_per_s = math.inf
    tokens_per_s = math.inf

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sent = self._flying = self._in_a_row = 0
        self._limit = float(_MOST)

    @property
    def concurrency(self) -> int:
        return int(self._limit)

    def sent(self, now: float, tokens: int) -> Sent:
        self._sent += 1
        self._flying += 1
        return Sent(now, self._sent, self._flying, tokens)

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None:
        del tokens, hints
        self._flying -= 1
        self._in_a_row = 0
        self.learn(now, sent, was_refused=False)

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float:
        self._flying -= 1
        self._in_a_row += 1
        self.learn(now, sent, was_refused=True)
        if hints is not None and hints.retry_after_s:
            return hints.retry_after_s
        return self._rng.uniform(0, min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** min(self._in_a_row, 20)))

    def tick(self, now: float) -> None:
        """Time alone teaches these nothing."""
        del now

    @abstractmethod
    def learn(self, now: float, sent: Sent, *, was_refused: bool) -> None:
        """What the policy makes of an answer or a refusal."""


class Aimd(_Policy):
    """Additive increase, multiplicative decrease of the number in flight (D.-M. Chiu and R. Jain, 1989), with the
    constants of Netflix's concurrency-limits: from 20, one more for each answer while half of it is used, times 0.9.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._limit = 20.0

    def learn(self, now: float, sent: Sent, *, was_refused: bool) -> None:
        del now, sent
        if was_refused:
            self._limit = max(1.0, 0.9 * self._limit)
        elif 2 * self._flying >= self._limit:
            self._limit = min(_MOST, self._limit + 1 / self._limit)


class Cubic(_Policy):
    """The rate of the AWS SDKs' adaptive retry mode: free until the first refusal, then CUBIC (beta 0.7, C 0.4) from
    the rate measured, at most twice what is measured.
    """

    _BETA: Final = 0.7
    _SCALE: Final = 0.4
    _SMOOTH: Final = 0.8

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._measured = 0.0
        self._bucket = -1.0
        self._in_bucket = 0
        self._most = self._window_s = self._refused_at = 0.0
        self._is_on = False

    def sent(self, now: float, tokens: int) -> Sent:
        bucket = math.floor(2 * now) / 2
        self._in_bucket += 1
        if bucket > self._bucket:
            rate = self._in_bucket / max(bucket - self._bucket, 0.5)
            self._measured += self._SMOOTH * (rate - self._measured)
            self._in_bucket, self._bucket = 0, bucket
        return super().sent(now, tokens)

    def learn(self, now: float, sent: Sent, *, was_refused: bool) -> None:
        del sent
        if was_refused:
            rate = min(self._measured, self.requests_per_s) if self._is_on else self._measured
            self._most, self._refused_at, self._is_on = rate, now, True
            self._window_s = (rate * (1 - self._BETA) / self._SCALE) ** (1 / 3)
            wanted = rate * self._BETA
        elif self._is_on:
            wanted = self._SCALE * (now - self._refused_at - self._window_s) ** 3 + self._most
        else:
            return
        self.requests_per_s = max(0.5, min(wanted, 2 * self._measured))


class Gradient(_Policy):
    """The gradient of latency (Netflix's Gradient2): fewer in flight as answers get slower than they were for long.
    Refusals say nothing to it.
    """

    _QUEUE: Final = 4
    _TOLERANCE: Final = 1.5
    _SMOOTH: Final = 0.2
    _LONG: Final = 600

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._limit = 20.0
        self._long_s = 0.0
        self._answers = 0

    def learn(self, now: float, sent: Sent, *, was_refused: bool) -> None:
        if was_refused:
            return
        latency_s = now - sent.at
        self._answers += 1
        self._long_s += (latency_s - self._long_s) / min(self._answers, self._LONG)
        if self._long_s > 2 * latency_s:
            self._long_s *= 0.95
        if 2 * self._flying < self._limit:
            return
        gradient = max(0.5, min(1.0, self._TOLERANCE * self._long_s / latency_s))
        wanted = self._limit * gradient + self._QUEUE
        self._limit = max(1.0, min(_MOST, self._limit + self._SMOOTH * (wanted - self._limit)))
