"""What a start may spend and how long it may take: counted before a request leaves, at its worst.

Rules of this file: pure; `now` is the loop's clock, `wall` the time of day in seconds since 1970. A budget is hard:
what is in flight is reserved at the most it may use, and the reservation is exchanged for what was used when the
answer comes. Where a row names no budget for its answer, twice the longest answer of this start is reserved; until a
few have told, 4,096 tokens, or all that is left where that is less: then it goes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from batchrouter.estimate import UNBOUNDED_ANSWER_TOKENS, size_of
from batchrouter.records import Halt, Request, Usage
from batchrouter.settings import Price

BOUND_REACHED: Final = 6
_FEW_ANSWERS: Final = 8  # say nothing of how long the others may be
_LEAST_ANSWER_TOKENS: Final = 64
_SPREAD: Final = 1.25  # above a prompt that took more than it should ever take
_SLOWER: Final = 1.1  # than the slowest of late the next answer may be
_UNSEEN_S: Final = 0.2  # may pass until the end of admission is seen
_FREE: Final = Price(prompt=0.0, completion=0.0)

Lacking = Literal["--max-tokens", "--max-cost"]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a request in flight to `model` may use at most."""

    tokens: int
    cost: float
    model: str


class Budget:
    """Tokens and money of one start (None: no bound). `reserve` before sending, `settle` after each attempt, where it
    `is_bounded` at all.
    """

    def __init__(self, max_tokens: int | None, max_cost: float | None, prices: Mapping[str, Price]) -> None:
        self._max_tokens = math.inf if max_tokens is None else max_tokens
        self._max_cost = math.inf if max_cost is None else max_cost
        self.is_bounded = max_tokens is not None or max_cost is not None
        self._prices = prices
        self._tokens = 0
        self._cost = 0.0
        self._unknown = 0  # requests that are counted at their worst, as they told no usage
        self._reserved = 0
        self._answers = 0
        self._longest_answer = 0
        self._factor = 1.0

    @property
    def has_reservations(self) -> bool:
        """Whether something is in flight: its end may make room."""
        return self._reserved > 0

    def reserve(self, request: Request, model: str) -> Reservation | None:
        """Set aside what a request of `model` may use at most; None where the bounds have no room for it."""
        prompt, answer = self._worst(request, model)
        cost = self._prices.get(model, _FREE).cost(prompt, 0, answer)
        if self._lacking(prompt + answer, cost) is not None:
            return None
        self._tokens += prompt + answer
        self._cost += cost
        self._reserved += 1
        return Reservation(prompt + answer, cost, model)

    def _lacking(self, tokens: int, cost: float) -> Lacking | None:
        if self._tokens + tokens > self._max_tokens:
            return "--max-tokens"
        return "--max-cost" if self._cost + cost > self._max_cost else None

    def _worst(self, request: Request, model: str) -> tuple[int, int]:
        """Tokens of the prompt and of the answer, at most."""
        prompt = math.ceil(size_of(request.body).most_tokens * self._factor)
        if request.path == "/embeddings":
            return prompt, 0
        if request.answer_tokens:
            return prompt, request.answer_tokens
        seen = max(_LEAST_ANSWER_TOKENS, 2 * self._longest_answer)
        if self._answers >= _FEW_ANSWERS:
            return prompt, seen
        return prompt, max(seen, min(UNBOUNDED_ANSWER_TOKENS, self._left_for_answer(prompt, model)))

    def _left_for_answer(self, prompt: int, model: str) -> int:
        """Tokens of an answer that would still be within the bounds."""
        price = self._prices.get(model, _FREE)
        left: float = self._max_tokens - self._tokens - prompt
        if price.completion > 0:
            left = min(left, (self._max_cost - self._cost - price.cost(prompt, 0, 0)) / price.completion * 1e6 - 1)
        return max(0, int(min(left, UNBOUNDED_ANSWER_TOKENS)))

    def release(self, reservation: Reservation | None) -> None:
        """Give a reservation back: its request did not leave."""
        if reservation is not None:
            self._reserved -= 1
            self._tokens -= reservation.tokens
            self._cost -= reservation.cost

    def settle(self, reservation: Reservation, request: Request, used: Usage | None, *, may_have_cost: bool) -> None:
        """Exchange a reservation for what was used. An attempt that told no usage is taken at its worst if it
        `may_have_cost` anything, else at nothing.
        """
        if used is None and may_have_cost:
            self._reserved -= 1
            self._unknown += 1
            return
        self.release(reservation)
        if used is None:
            return
        self._tokens += max(used.total_tokens, used.prompt_tokens + used.completion_tokens)
        self._answers += 1
        self._longest_answer = max(self._longest_answer, used.completion_tokens)
        factor = used.prompt_tokens / max(1, size_of(request.body).most_tokens)
        if factor > 1:
            self._factor = max(self._factor, factor * _SPREAD)
        price = self._prices.get(reservation.model, _FREE)
        self._cost += price.cost(used.prompt_tokens, used.cached_tokens, used.completion_tokens)

    def halt(self, request: Request, model: str) -> Halt:
        """The stop that no room for a request means."""
        prompt, answer = self._worst(request, model)
        cost = self._prices.get(model, _FREE).cost(prompt, 0, answer)
        row = f"{request.file}:{request.line}"
        if self._lacking(prompt + answer, cost) == "--max-tokens":
            reached, next_one = (
                f"--max-tokens {self._max_tokens} reached: {self._tokens:,} used",
                f"{prompt + answer:,}",
            )
        else:
            reached, next_one = f"--max-cost {self._max_cost:g} reached: {self._cost:.4f} USD spent", f"{cost:.4f} USD"
        unknown = f" ({self._unknown:,} requests that told no usage, at their worst)" if self._unknown else ""
        remedy = "" if self._tokens else "with a higher bound, or a smaller max_tokens in that row"
        return Halt(BOUND_REACHED, f"{reached}{unknown}, and {row} may take {next_one}", remedy)


class End(NamedTuple):
    """A moment at which a start is to be over, on the loop's clock (or, if `is_wall`, by the time of day)."""

    at_s: float
    reason: str
    is_wall: bool = False


class Deadline:
    """When admission ends so that what is in flight is done by the first of `ends`: as early as the slowest of late
    answers took, and a little more, as nobody looks at the clock all the time.
    """

    def __init__(self, *ends: End) -> None:
        self._ends = ends
        self._slowest_s = 0.0

    def answered(self, latency_s: float) -> None:
        """An attempt took so long; the memory of slow ones fades."""
        self._slowest_s = max(latency_s, self._slowest_s * 0.999)

    def left_s(self, now: float, wall: float) -> float:
        """Seconds until the first of the ends; negative once it has passed."""
        return min(end.at_s - (wall if end.is_wall else now) for end in self._ends)

    def passed(self, now: float, wall: float) -> Halt | None:
        """The stop, once it is time."""
        needed_s = _SLOWER * self._slowest_s + _UNSEEN_S if self._slowest_s else 0.0
        for end in self._ends:
            if (wall if end.is_wall else now) + needed_s >= end.at_s:
                return Halt(BOUND_REACHED, end.reason)
        return None


def next_time_of_day(clock: str, wall: float) -> float:
    """When it is `HH:MM` next, local time, after `wall`: both are seconds since 1970. An hour that summer time leaves
    out comes an hour later, one that comes twice is taken the first time that is still to come.
    """
    hour, minute = map(int, clock.split(":"))
    day = datetime.fromtimestamp(wall).replace(hour=hour, minute=minute, second=0, microsecond=0)  # noqa: DTZ006  (local)
    moments = []
    for days in (0, 1):
        moment = day + timedelta(days=days)
        first, second = moment.replace(fold=0).timestamp(), moment.replace(fold=1).timestamp()
        moments += [first, max(first, second)]
    return min(moment for moment in moments if moment > wall)
