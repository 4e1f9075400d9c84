"""How fast one limit may be used: a policy that learns from what comes back. The mechanism (throttle) enforces it.

Rules of this file: pure; no clock, `now` is passed in, in monotonic seconds; every request that is `sent` ends in
exactly one of `answered`, `limited`, `failed`, with the `Sent` it left with.

A 429 begins an *episode*: all admission pauses, and what was sent before the pause belongs to the same episode, however
late its own 429 comes. After the pause requests trickle; when the first of them is answered, or not refused for longer
than refusals take, the episode is over. How long a server asks to wait has no part in when an episode may begin or end:
a Retry-After that moves on with each 429 would otherwise keep the pace from ever being learned.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from batchrouter.ceiling import Ceiling
from batchrouter.crowd import Crowd
from batchrouter.hints import Hints

Bound = Literal["nothing", "requests", "tokens", "concurrency"]

_TICK_S: Final = 0.02
_PAUSE_S: Final = 0.05  # the shortest pause after a 429 that asks for none
_LONGEST_PAUSE_S: Final = 5.0
_PAUSE_GROWTH: Final = 0.5
_JITTER: Final = 0.1  # added to a pause that was asked for, of its length
_TRICKLE: Final = 0.25  # of the pace, while it is open whether requests are accepted again
_UNREFUSED: Final = 1.5  # times the time a refusal takes, and a request may be taken for accepted
_RATE_SCATTER: Final = 0.04  # of the rates at which one and the same limit refuses
_SCORE_TELLS: Final = 1.0
_SCORE_MOST: Final = 4.0
_ROUNDED_MOST_S: Final = 2.0  # whole seconds below this are rounded up from almost nothing


class Sent(NamedTuple):
    """A request as it left: the `nth`, with `in_flight` on their way (itself included), after `tokens_before`."""

    at: float
    nth: int
    in_flight: int
    tokens: int
    tokens_before: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run has learned of its limits, for the next start. None: nothing that bounds."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    concurrency: int | None = None


class Pace:
    """The pace of one limit. A number given is trusted: the pace starts there and never exceeds it (it goes under it
    only while refusals show that it is too high); None is found out, starting from what was learned before, if anything
    was.
    """

    def __init__(
        self,
        *,
        requests_per_s: float | None,
        tokens_per_s: float | None,
        concurrency: int | None,
        max_concurrency: int,
        learned: Learned | None,
        now: float,
        rng: random.Random,
    ) -> None:
        known = learned or Learned()
        is_bounded = requests_per_s is not None or tokens_per_s is not None
        start = max_concurrency if is_bounded else known.concurrency
        self._requests = Ceiling(requests_per_s, known.requests_per_s, now)
        self._tokens = Ceiling(tokens_per_s, known.tokens_per_s, now)
        self._crowd = Crowd(concurrency, max_concurrency, start, now)
        self._rng = rng
        self._sent = self._refused = self._flying = 0
        self._tokens_sent = self._tokens_refused = 0.0
        self._tick_at = now
        self._tokens_score = 0.0
        self._refused_at = (0.0, 0.0)
        self._refusal_s = 0.0  # how long a refusal takes to come
        # The episode: its first refusal, and what it is blamed on.
        self._first: Sent | None = None
        self._blamed: Ceiling | None = None
        self._is_crowd_blamed = False
        self._before = (0, 0.0)
        self._refusals = self._in_a_row = 0
        self._asked_s = 0.0
        self._began_at = self._end_at = now
        # The last pause: when it began, after how many requests, and what is let through since.
        self._paused_at = -math.inf
        self._paused_after = 0
        self._trickle = 1.0
        self._trickles_since = math.inf
        self._most_per_s = math.inf  # no herd after a pause, where only the number in flight is bounded

    # --- what the mechanism enforces ----------------------------------------------------------------------------------

    @property
    def requests_per_s(self) -> float:
        """Requests a second; `math.inf` when nothing bounds them."""
        rate = min(self._requests.rate, self._most_per_s)
        return rate if self._trickle == 1.0 else min(rate, max(rate * self._trickle, 0.5 / self._refusal_s))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second; `math.inf` when nothing bounds them."""
        return self._tokens.rate

    @property
    def concurrency(self) -> int:
        """Requests in flight at once."""
        return self._crowd.limit

    @property
    def bound_by(self) -> Bound:
        """What holds the run up at this moment, pauses apart."""
        if self._tokens.is_bound:
            return "tokens"
        if self._requests.is_bound:
            return "requests"
        return "concurrency" if self._crowd.is_bound else "nothing"

    @property
    def learned(self) -> Learned:
        """What the next start may begin with."""
        return Learned(self._requests.top, self._tokens.top, self._crowd.limit)

    # --- what happens -------------------------------------------------------------------------------------------------

    def sent(self, now: float, tokens: int) -> Sent:
        """A request leaves, with about `tokens` tokens."""
        self._sent = nth = self._sent + 1
        self._flying = flying = self._flying + 1
        before = self._tokens_sent
        self._tokens_sent = before + tokens
        if now >= self._tick_at:
            self.tick(now)
        return Sent(now, nth, flying, tokens, before)

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None:
        """It was accepted, and took `tokens` tokens in all."""
        flying = self._flying
        self._flying = flying - 1
        self._tokens_sent += tokens - sent.tokens
        if hints is not None:
            self._read(hints, now)
        if self._trickle < 1.0 and sent.at >= self._paused_at:
            self._resume(now, sent.at)
        self._crowd.answered(sent.at, sent.in_flight, flying, now)

    def failed(self, now: float, sent: Sent) -> None:
        """It ended in any other way."""
        del now, sent
        self._flying -= 1

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float:
        """It was refused with a 429. The seconds from now for which all admission owes a pause: never less than was
        asked for, and jitter on top; not capped, as only the caller knows how long it may wait.
        """
        self._flying -= 1
        self._refusal_s = max(now - sent.at, 0.9 * self._refusal_s, 1e-3)
        asked_s = 0.0
        if hints is not None:
            self._read(hints, now)
            asked_s = hints.retry_after_s or 0.0
        pause_s = asked_s + self._rng.uniform(0, min(_JITTER * asked_s, _PAUSE_S))
        if sent.at < self._paused_at:
            self._correct(sent)
        else:
            if self._trickle < 1.0:
                self._in_a_row += 1
            else:
                self._begin(now, sent, hints)
            self._paused_at, self._paused_after = now, self._sent
            self._trickle = _TRICKLE * 0.5 ** min(self._in_a_row, 10)
            self._trickles_since = math.inf
            self._stretch(now, sent, asked_s)
            pause_s = pause_s or self._own_pause_s(now)
        self._refused += 1
        self._tokens_refused += sent.tokens
        self._refusals += 1
        self._asked_s = max(self._asked_s, asked_s)
        self._count_cost()
        return pause_s

    def tick(self, now: float) -> None:
        """Time passes. `sent` calls it; the mechanism does, too, about once a second, while requests wait."""
        self._tick_at = now + _TICK_S
        if self._trickle < 1.0:
            if self._sent > self._paused_after:
                self._trickles_since = min(self._trickles_since, now)
            if now - self._trickles_since > _UNREFUSED * self._refusal_s:
                self._resume(now, self._trickles_since)
            return
        if self._sent <= 1:
            self._requests.start(now)
            self._tokens.start(now)
        if now - self._end_at > 1.0:
            self._most_per_s = math.inf
        self._requests.tick(now, self._sent, self._sent - self._refused, 1.0)
        mean = self._tokens_sent / max(self._sent, 1)
        self._tokens.tick(now, self._tokens_sent, self._tokens_sent - self._tokens_refused, mean)
        self._crowd.silent(self._flying, now)

    # --- an episode of refusals ---------------------------------------------------------------------------------------

    def _begin(self, now: float, sent: Sent, hints: Hints | None) -> None:
        self._first = sent
        self._began_at = now
        self._before = (self._refused, self._tokens_refused)
        self._refusals = self._in_a_row = 0
        self._asked_s = 0.0
        self._requests.begin(sent.at, sent.nth - 1 - self._refused)
        self._tokens.begin(sent.at, sent.tokens_before - self._tokens_refused)
        blame = self._crowd.blame(sent.in_flight, self._requests.lately())
        self._is_crowd_blamed = blame != "no"
        if blame != "no":
            self._crowd.cut(sent.in_flight, now)
        if blame == "yes":
            self._blamed = None
            self._requests.hurry()
            self._tokens.hurry()
            self._most_per_s = 2 * max(self._requests.lately(), 1.0)
            return
        self._weigh(sent)
        is_tokens = self._is_about_tokens(sent, hints)
        self._blamed, other = (self._tokens, self._requests) if is_tokens else (self._requests, self._tokens)
        other.free()
        self._blamed.cut(now, is_shared=blame == "perhaps")

    def _correct(self, sent: Sent) -> None:
        """A late refusal, of the same episode; perhaps it left before the one that was taken for the first."""
        first = self._first
        if first is None or sent.nth > first.nth:
            return
        self._first = sent
        self._requests.correct(sent.at, sent.nth - 1 - self._before[0])
        self._tokens.correct(sent.at, sent.tokens_before - self._before[1])

    def _stretch(self, now: float, sent: Sent, asked_s: float) -> None:
        """Up to here nothing is accepted: to when this request left, or to when the server says, if it is exact."""
        is_rounded = asked_s < _ROUNDED_MOST_S and asked_s.is_integer()
        until = sent.at if is_rounded else sent.at + asked_s
        rested_s = asked_s if is_rounded else 0.0
        for ceiling in (self._requests, self._tokens):
            ceiling.stretch(until, now, is_blamed=ceiling is self._blamed)
        self._end_at = now + asked_s if rested_s else until
        self._mark_end(sent.nth - 1 - self._refused, sent.tokens_before - self._tokens_refused, rested_s)

    def _mark_end(self, requests: float, tokens: float, rested_s: float) -> None:
        self._ended = (requests, tokens, rested_s)
        self._requests.ended(self._end_at, requests, rested_s=rested_s)
        self._tokens.ended(self._end_at, tokens, rested_s=rested_s)

    def _resume(self, now: float, accepted_at: float) -> None:
        """What was sent after the pause, at `accepted_at`, is accepted: the episode is over."""
        self._trickle = 1.0
        gap_s = accepted_at - self._end_at
        requests, tokens, rested_s = self._ended
        if gap_s > 0.2 and not rested_s:  # somewhere in between there was quota again
            self._end_at += gap_s / 2
            for ceiling in (self._requests, self._tokens):
                ceiling.stretch(self._end_at, now, is_blamed=ceiling is self._blamed)
            self._mark_end(requests, tokens, rested_s)
            self._count_cost()
        if self._blamed is not None:
            self._blamed.resume(now)

    def _count_cost(self) -> None:
        if self._blamed is not None:
            self._blamed.cost(self._refusals, self._request_s(), self._asked_s)
        if self._is_crowd_blamed:
            self._crowd.cost(self._refusals, 1 / max(self._requests.lately(), 1.0), self._asked_s)

    def _request_s(self) -> float:
        """Seconds a request, at the pace of what is blamed."""
        if self._blamed is None:
            return 0.0
        return (self._tokens_sent / self._sent if self._blamed is self._tokens else 1.0) / self._blamed.rate

    def _own_pause_s(self, now: float) -> float:
        """A pause that nobody asked for: it grows with the time that nothing is accepted, so that no more than half of
        that is missed of a window's end. Equal jitter (M. Brooker, "Exponential Backoff And Jitter", AWS 2015).
        """
        most_s = max(_PAUSE_S, self._request_s(), _PAUSE_GROWTH * (now - self._began_at))
        return self._rng.uniform(0.5, 1) * min(most_s, _LONGEST_PAUSE_S)

    # --- which limit --------------------------------------------------------------------------------------------------

    def _weigh(self, sent: Sent) -> None:
        """Whether requests or tokens are bounded: the log of how much likelier this refusal is by a limit of tokens.
        That refuses a large request rather than a small one, and always at about the same rate of tokens, whatever that
        of requests is; a limit of requests the reverse.
        """
        weight = 0.0
        mean = self._tokens_sent / self._sent
        if sent.tokens > 0 and mean > 0:
            weight += max(-1.0, min(1.0, math.log(sent.tokens / mean)))
        rates = (self._requests.lately(), self._tokens.lately())
        if min(rates) > 0:
            if min(self._refused_at) > 0:
                requests, tokens = (math.log(new / old) for new, old in zip(rates, self._refused_at, strict=True))
                weight += max(-1.5, min(1.5, (requests**2 - tokens**2) / _RATE_SCATTER**2))
            self._refused_at = rates
        self._tokens_score = max(-_SCORE_MOST, min(_SCORE_MOST, self._tokens_score + weight))

    def _is_about_tokens(self, sent: Sent, hints: Hints | None) -> bool:
        if hints is not None and hints.tokens is not None and hints.tokens.remaining is not None:
            is_spent = hints.requests is not None and hints.requests.remaining == 0
            return hints.tokens.remaining <= 2 * sent.tokens and not is_spent
        return self._tokens_score > (_SCORE_TELLS if self._blamed is not self._tokens else -_SCORE_TELLS)

    def _read(self, hints: Hints, now: float) -> None:
        for meter, ceiling in ((hints.requests, self._requests), (hints.tokens, self._tokens)):
            if meter is not None and meter.limit:
                ceiling.tell(meter.limit, meter.window_s, now)
