"""Which limit was it that refused: of requests, of tokens, or of requests in flight?

Rules of this file: pure. A limit refuses at the far end of what it limits. So of every request is kept how much of each
had been used when it left, and when one is refused, the limit is suspected of which most was in use, compared with the
requests that were let through. That adds up over episodes, as in a sequential test (A. Wald, 1945): the score of a
suspect is the log of how much likelier all refusals so far are by that one.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

from batchrouter.hints import Hints

Rate = Literal["requests", "tokens"]
Verdict = Literal["no", "perhaps", "yes", "refuted"]

_MEMORY: Final = 256  # requests
_LEAK: Final = 1.02  # of the usual rate, a bucket's drain: what is left in it was above that rate
_MOST_TELLING: Final = 3.0  # one refusal's score
_MOST_SURE: Final = 4.0  # all of them together
_TELLS: Final = 1.0
_PERHAPS: Final = 1.5
_SURE: Final = 3.5
_SAME: Final = 0.3  # of the scatter of a number in flight: so near to the last one refused is the same number
_STRIKES: Final = 2  # refusals below a supposed number refute it


class Load(NamedTuple):
    """What was in use when a request left, itself included: requests and tokens beyond their usual rate, and requests
    in flight.
    """

    requests: float
    tokens: float
    in_flight: int


class Suspects:
    """The three limits, and what speaks for each."""

    __slots__ = (
        "_at",
        "_blamed",
        "_drains",
        "_in_flight",
        "_loads",
        "_number",
        "_requests",
        "_score",
        "_strikes",
        "_tokens",
    )

    def __init__(self) -> None:
        self._loads: deque[Load] = deque(maxlen=_MEMORY)
        self._at = self._requests = self._tokens = 0.0
        self._drains = (0.0, 0.0)
        self._score = 0.0  # of tokens, against requests
        self._blamed: Rate = "requests"
        self._number = 0.0  # the score of requests in flight …
        self._in_flight = 0  # … as so many of them were refused
        self._strikes = 0

    def drain(self, requests_per_s: float, tokens_per_s: float) -> None:
        """What is usual now."""
        self._drains = (_LEAK * requests_per_s, _LEAK * tokens_per_s)

    def sent(self, now: float, tokens: int, in_flight: int) -> Load:
        """A request leaves."""
        passed_s = now - self._at
        self._at = now
        self._requests = max(0.0, self._requests - passed_s * self._drains[0]) + 1
        self._tokens = max(0.0, self._tokens - passed_s * self._drains[1]) + tokens
        load = Load(self._requests, self._tokens, in_flight)
        self._loads.append(load)
        return load

    def judge(self, load: Load, tokens: int, hints: Hints | None) -> Rate:
        """Of the two rates the likelier, for an episode that began with a request of this load."""
        told = _told(tokens, hints)
        if told is None:
            others = len(self._loads) + 1
            requests = max(1, sum(one.requests >= load.requests for one in self._loads))
            by_tokens = max(1, sum(one.tokens >= load.tokens for one in self._loads))
            telling = math.log(min(1.0, requests / others) / min(1.0, by_tokens / others))
            telling = max(-_MOST_TELLING, min(_MOST_TELLING, telling))
            self._score = max(-_MOST_SURE, min(_MOST_SURE, self._score + telling))
        else:
            self._score = _MOST_SURE if told == "tokens" else -_MOST_SURE
        self._blamed = "tokens" if self._score > (-_TELLS if self._blamed == "tokens" else _TELLS) else "requests"
        return self._blamed

    def judge_number(self, in_flight: int, top: int | None) -> Verdict:
        """Whether it was the number in flight, which is known to be limited to `top` or not known to be limited. It was
        if the same number is refused again and again while hardly any request has got through with more.
        """
        if top is not None:
            if in_flight > top:
                self._strikes = 0
                return "yes"
            self._strikes += 1
            if self._strikes < _STRIKES:
                return "no"
            self._number = 0.0
            self._strikes = 0
            return "refuted"
        scatter = math.sqrt(in_flight)  # of the number in flight at one rate, as arrivals are independent
        above = sum(one.in_flight > in_flight for one in self._loads)
        if abs(in_flight - self._in_flight) > max(1.0, _SAME * scatter) or above > 0.02 * len(self._loads):
            self._number = 0.0
        else:
            self._number += math.log(max(1.0, scatter))
        self._in_flight = in_flight
        return "yes" if self._number > _SURE else "perhaps" if self._number > _PERHAPS else "no"

    def restart(self) -> None:
        """An episode is over: what comes now is compared among itself."""
        self._loads.clear()
        self._requests = self._tokens = 0.0


def _told(tokens: int, hints: Hints | None) -> Rate | None:
    """Which of the two the server says is spent."""
    if hints is None:
        return None
    if hints.requests is not None and hints.requests.remaining == 0:
        return "requests"
    if hints.tokens is not None and hints.tokens.remaining is not None and hints.tokens.remaining <= 2 * tokens:
        return "tokens"
    return None
