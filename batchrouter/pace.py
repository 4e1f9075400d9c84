"""How fast one limit may be used: a policy that learns from what comes back. The mechanism (throttle) enforces it.

Rules of this file: pure; no clock, `now` is passed in, in monotonic seconds; every request that is `sent` ends in
exactly one of `answered`, `limited`, `failed`, with the `Sent` it left with.

A 429 begins an *episode*: all admission pauses, and what was sent before the pause belongs to the same episode,
however late its own 429 comes. The episode ends with the first answer to a request sent after the pause. Only then is
the rate set, once, from what was accepted. How long a server asks to wait has no part in when an episode may begin or
end, or an advancing Retry-After would keep the pace from ever being learned.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from batchrouter.ceiling import Ceiling
from batchrouter.crowd import Crowd
from batchrouter.hints import Hints

Bound = Literal["nothing", "requests", "tokens", "concurrency"]

KNOWN_MARGIN: Final = 0.99  # of a known limit: what a request's way to the server may shift across a window's edge
_TICK_S: Final = 0.02
_BURST_S: Final = 0.1
_ENOUGH: Final = 20
_LATELY_S: Final = 2.0
_TRICKLE: Final = 0.25
_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_SIZE_DECIDES: Final = 2.0


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


class _End(NamedTuple):
    """A moment when the quota was used up: `requests` and `tokens` had been accepted until then. `slack_s`: how
    many seconds' worth may have been there all the same, as nobody looked.
    """

    at: float
    requests: float
    tokens: float
    slack_s: float


class Pace:
    """The pace of one limit. A number given is trusted: the pace starts there and never exceeds it (it goes under it
    only while refusals show that it is too high); None is found out.
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
        self._requests = Ceiling(_with_margin(requests_per_s), known.requests_per_s, now)
        self._tokens = Ceiling(_with_margin(tokens_per_s), known.tokens_per_s, now)
        self._crowd = Crowd(concurrency, max_concurrency, known.concurrency, now)
        self._rng = rng
        self._flying = 0
        self._nth = 0
        self._tokens_sent = 0.0
        self._tick_at = now + _TICK_S
        self._size_score = 0.0
        self._refused = 0
        self._refused_tokens = 0.0
        self._refused_before = (0, 0.0)
        self._refusal_s = 0.0
        self._cut_at = -math.inf
        self._cut_nth = 0
        self._trickles = False
        self._trickle = 1.0
        self._trickle_from = 0.0
        self._row = 0
        self._end = _End(now, 0, 0, _BURST_S)
        self._ends: deque[_End] = deque(maxlen=8)
        self._marks: deque[_End] = deque(maxlen=16)
        self._mark_at = now
        self._began_at = 0.0
        self._rejects = 0
        self._chosen: Ceiling | None = None
        self._first: Sent | None = None

    # --- what the mechanism enforces ---

    @property
    def requests_per_s(self) -> float:
        """Requests a second; `math.inf` when nothing bounds them."""
        rate = self._requests.rate
        return rate if not self._trickles else min(rate, max(rate * self._trickle, 0.5 / self._refusal_s))

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second; `math.inf` when nothing bounds them."""
        return self._tokens.rate * (self._trickle if self._trickles else 1.0)

    @property
    def concurrency(self) -> int:
        """Requests in flight at once."""
        return self._crowd.limit

    @property
    def bound_by(self) -> Bound:
        if self._tokens.is_bound:
            return "tokens"
        if self._requests.is_bound:
            return "requests"
        return "concurrency" if self._crowd.is_bound else "nothing"

    @property
    def learned(self) -> Learned:
        return Learned(self._requests.top, self._tokens.top, self._crowd.limit)

    # --- what happens ---

    def sent(self, now: float, tokens: int) -> Sent:
        """A request leaves, with about `tokens` tokens."""
        self._nth = nth = self._nth + 1
        self._flying = flying = self._flying + 1
        before = self._tokens_sent
        self._tokens_sent = before + tokens
        if now >= self._tick_at:
            self.tick(now)
        return Sent(now, nth, flying, tokens, before)

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None:
        """It was accepted, and took `tokens` tokens in all."""
        self._flying -= 1
        self._tokens_sent += tokens - sent.tokens
        if self._trickles and sent.at >= self._cut_at:
            self._flow(now, sent.at)
        self._crowd.answered(sent.at, sent.in_flight, now)

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float:
        """It was refused with a 429; the pause in seconds that all admission owes from now on. Uncapped."""
        self._flying -= 1
        self._note_size(sent)
        self._refusal_s = max(now - sent.at, 0.9 * self._refusal_s)
        asked_s = hints.retry_after_s if hints is not None and hints.retry_after_s is not None else 0.0
        if hints is not None:
            self._read(hints)
        if sent.at < self._cut_at:
            self._late(now, sent)
            pause_s = asked_s
        else:
            if self._trickles:
                self._row += 1
            else:
                self._begin(now, sent, hints)
            self._cut_at, self._cut_nth = now, self._nth
            self._trickles = True
            self._trickle = _TRICKLE * 0.5**self._row
            self._trickle_from = math.inf
            pause_s = asked_s or self._own_pause_s()
            self._stretch(now, sent, asked_s)
        self._refused += 1
        self._refused_tokens += sent.tokens
        self._rejects += 1
        if self._chosen is not None:
            self._chosen.cost(self._rejects, self._unit_s(), asked_s)
        return self._with_jitter(pause_s) if asked_s else pause_s

    def failed(self, now: float, sent: Sent) -> None:
        """It ended in any other way."""
        self._flying -= 1

    def tick(self, now: float) -> None:
        """Time passes. Called by `sent`; the mechanism calls it about once a second while rows wait."""
        self._tick_at = now + _TICK_S
        if self._trickles:
            if self._nth > self._cut_nth:
                if self._trickle_from == math.inf:
                    self._trickle_from = now
                elif now - self._trickle_from > 1.5 * self._refusal_s:
                    self._flow(now, self._trickle_from)
            return
        if now >= self._mark_at:
            self._mark_at = now + 0.25
            self._marks.append(_End(now, self._nth - self._refused, self._tokens_sent - self._refused_tokens, 0.0))
        self._requests.grow(now, self._nth, 1.0)
        if self._tokens.rate != math.inf:
            self._tokens.grow(now, self._tokens_sent, self._tokens_sent / self._nth)
        self._crowd.silent(self._flying, now)

    # --- episodes ---

    def _flow(self, now: float, accepted_at: float) -> None:
        """What was sent after the pause, at `accepted_at`, is not refused: on with it."""
        self._trickles = False
        self._row = 0
        gap_s = accepted_at - self._end.at
        if gap_s > 0.2 and self._end.slack_s == 0.0:  # somewhere in between there was quota again
            until = self._end.at + gap_s / 2
            self._end = self._end._replace(at=until)
            if self._chosen is not None and self._first is not None:
                self._lower(self._first, until, now)
        self._requests.resume(now)
        self._tokens.resume(now)
        self._crowd.recovered()

    def _unit_s(self) -> float:
        """Seconds a request, at the present rate."""
        units = self._tokens_sent / self._nth if self._chosen is self._tokens else 1.0
        return units / self._chosen.rate if self._chosen is not None else 0.0

    def _own_pause_s(self) -> float:
        most = min(max(_PAUSE_S, self._unit_s()) * 2**self._row, _LONGEST_PAUSE_S)
        return self._rng.uniform(0.2, 1) * most

    def _with_jitter(self, asked_s: float) -> float:
        return asked_s + self._rng.uniform(0, min(0.1 * asked_s, _PAUSE_S))

    def _read(self, hints: Hints) -> None:
        for meter, ceiling in ((hints.requests, self._requests), (hints.tokens, self._tokens)):
            if meter is not None and meter.limit:
                ceiling.told = (meter.limit / (meter.window_s or 60.0), meter.limit)

    def _note_size(self, sent: Sent) -> None:
        mean = self._tokens_sent / self._nth
        if sent.tokens > 0 and mean > 0:
            weight = max(-1.0, min(1.0, math.log(sent.tokens / mean)))
            self._size_score = max(-4.0, min(4.0, self._size_score + weight))

    def _begin(self, now: float, sent: Sent, hints: Hints | None) -> None:
        """A new episode."""
        self._ends.append(self._end)
        self._first = sent
        self._refused_before = (self._refused, self._refused_tokens)
        self._row = 0
        self._rejects = 0
        self._began_at = now
        blame = self._crowd.is_to_blame(sent.in_flight)
        if blame is not False:
            self._crowd.cut(sent.in_flight, 0.0, now)
        by_tokens = self._size_score > _SIZE_DECIDES
        if hints is not None and hints.tokens is not None and hints.tokens.remaining is not None:
            plenty = hints.tokens.remaining > 2 * sent.tokens
            few = hints.requests is not None and (hints.requests.remaining or 0) < 2
            by_tokens = not plenty and not few
        chosen, other = (self._tokens, self._requests) if by_tokens else (self._requests, self._tokens)
        if blame is True:
            self._chosen = None
            return
        other.free()
        self._chosen = chosen
        chosen.cut(self._seen(sent, sent.at), self._lately(sent, sent.at), now)

    def _late(self, now: float, sent: Sent) -> None:
        first = self._first
        if first is not None and sent.nth < first.nth:
            self._first = sent

    def _seen(self, sent: Sent, until: float) -> float:
        """Units a second accepted from the latest end that is far enough back to count from, to before `sent`."""
        seen = 0.0
        refused, refused_tokens = self._refused_before
        for end in reversed(self._ends):
            if self._chosen is self._tokens:
                units = sent.tokens_before - refused_tokens - end.tokens
                enough = units >= _ENOUGH * self._tokens_sent / self._nth
            else:
                units = sent.nth - 1 - refused - end.requests
                enough = units >= _ENOUGH
            slack_s = 0.0 if until > sent.at + 0.1 else end.slack_s  # refused for so long: no bucket
            seen = max(units, 1.0) / max(until - end.at + slack_s, 1e-3)
            if enough:
                break
        return seen

    def _lately(self, sent: Sent, until: float) -> float:
        """Units a second accepted in the last second or two before `sent`; in less after a start."""
        seen = 0.0
        refused, refused_tokens = self._refused_before
        for mark in reversed(self._marks):
            if mark.at < self._ends[-1].at:
                break
            if self._chosen is self._tokens:
                units = sent.tokens_before - refused_tokens - mark.tokens
            else:
                units = sent.nth - 1 - refused - mark.requests
            seconds = until - mark.at
            slack_s = 0.0 if until > sent.at + 0.1 else _BURST_S
            seen = units / max(seconds + slack_s, 1e-3)
            if sent.at - mark.at > (_LATELY_S / 4 if len(self._ends) == 1 else _LATELY_S):
                return seen
        return 0.0

    def _lower(self, first: Sent, until: float, now: float) -> None:
        assert self._chosen is not None
        seen = self._seen(first, until)
        if len(self._ends) == 1:
            seen = max(seen, self._lately(first, until))
        self._chosen.lower(seen, now, until - first.at > 1.0)

    def _stretch(self, now: float, sent: Sent, asked_s: float) -> None:
        exact = asked_s >= 2 or asked_s != int(asked_s)
        at = sent.at + (asked_s if exact else 0.0)
        first = self._first
        assert first is not None
        if self._chosen is not None and at > first.at + 0.05:
            self._lower(first, at, now)
        slack_s = 0.0 if exact or not asked_s else min(_BURST_S, asked_s)
        self._end = _End(
            at if exact or not asked_s else now + asked_s,
            sent.nth - 1 - self._refused,
            sent.tokens_before - self._refused_tokens,
            slack_s,
        )


def _with_margin(rate: float | None) -> float | None:
    return None if rate is None else rate * KNOWN_MARGIN
