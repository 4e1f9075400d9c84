"""What a start may spend and how long it may take: counted before a request leaves, at its worst.

Rules of this file: pure; `now` is the loop's clock. A budget is hard: what is in flight is reserved at the most it may
use, and the reservation is exchanged for what was used when the answer comes. Where a row names no budget for its
answer, twice the longest answer seen so far is reserved, and before the first answer 512 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchrouter.records import Halt, Request, Usage
from batchrouter.settings import Price

BOUND_REACHED: Final = 6
_UNSEEN_ANSWER_TOKENS: Final = 512
_LEAST_ANSWER_TOKENS: Final = 64
_BYTES_A_TOKEN: Final = 2.0  # before any answer has told; a token is hardly ever shorter
_SPREAD: Final = 1.25  # above the densest prompt seen so far


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a request in flight to `model` may use at most."""

    tokens: int
    cost: float
    model: str


class Budget:
    """Tokens and money of one start (None: no bound). `reserve` before sending, `settle` after each attempt."""

    def __init__(self, max_tokens: int | None, max_cost: float | None, prices: Mapping[str, Price]) -> None:
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._prices = prices
        self._tokens = 0
        self._cost = 0.0
        self._reserved = 0
        self._longest_answer = 0
        self._density = 0.0

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to keep."""
        return self._max_tokens is not None or self._max_cost is not None

    @property
    def has_reservations(self) -> bool:
        """Whether something is in flight: its end may make room."""
        return self._reserved > 0

    def reserve(self, request: Request, model: str) -> Reservation | None:
        """Set aside what a request of `model` may use at most; None where the bounds have no room for it."""
        prompt = int(len(request.body) * (self._density * _SPREAD or 1 / _BYTES_A_TOKEN)) + 1
        answer = request.answer_tokens or self._likely_answer()
        price = self._prices.get(model)
        cost = price.cost(prompt, 0, answer) if price is not None else 0.0
        if self._max_tokens is not None and self._tokens + prompt + answer > self._max_tokens:
            return None
        if self._max_cost is not None and self._cost + cost > self._max_cost:
            return None
        self._tokens += prompt + answer
        self._cost += cost
        self._reserved += 1
        return Reservation(prompt + answer, cost, model)

    def _likely_answer(self) -> int:
        if not self._longest_answer:
            return _UNSEEN_ANSWER_TOKENS
        return max(_LEAST_ANSWER_TOKENS, 2 * self._longest_answer)

    def release(self, reservation: Reservation | None) -> None:
        """Give a reservation back: its request did not leave."""
        if reservation is not None:
            self._reserved -= 1
            self._tokens -= reservation.tokens
            self._cost -= reservation.cost

    def settle(self, reservation: Reservation, request: Request, used: Usage | None, *, answered: bool) -> None:
        """Exchange a reservation for what was used. An answer that told no usage is taken at its worst, a failure that
        told none at nothing.
        """
        if used is None and answered:
            self._reserved -= 1
            return
        self.release(reservation)
        if used is None:
            return
        self._tokens += used.total_tokens
        self._longest_answer = max(self._longest_answer, used.completion_tokens)
        self._density = max(self._density, used.prompt_tokens / len(request.body))
        price = self._prices.get(reservation.model)
        if price is not None:
            self._cost += price.cost(used.prompt_tokens, used.cached_tokens, used.completion_tokens)

    def halt(self) -> Halt:
        """The stop that no room left means."""
        if self._max_cost is not None:
            return Halt(BOUND_REACHED, f"--max-cost {self._max_cost:g} reached ({self._cost:.4f} USD spent)")
        return Halt(BOUND_REACHED, f"--max-tokens {self._max_tokens} reached ({self._tokens:,} used)")


class Deadline:
    """When admission ends so that what is in flight is done by `at_s`: as early as the slowest of late answers took."""

    def __init__(self, at_s: float, reason: str) -> None:
        self._at_s = at_s
        self._reason = reason
        self._slowest_s = 0.0

    def answered(self, latency_s: float) -> None:
        """An attempt took so long; the memory of slow ones fades."""
        self._slowest_s = max(latency_s, self._slowest_s * 0.999)

    def passed(self, now: float) -> Halt | None:
        """The stop, once it is time."""
        return Halt(BOUND_REACHED, self._reason) if now + self._slowest_s >= self._at_s else None
