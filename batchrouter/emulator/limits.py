"""The limits an endpoint can put on a key: how many requests and tokens a minute, and how it tells.

Pure: the time is passed in, in seconds of any clock that does not run backwards.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final, Literal, NamedTuple, Protocol

type_of_headers = tuple[tuple[str, str], ...]
Kind = Literal["token-bucket", "sliding", "fixed"]
RetryAfter = Literal["seconds", "ms", "date", "none"]

KINDS: Final[tuple[Kind, ...]] = ("token-bucket", "sliding", "fixed")


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed. A null limit is no limit.

    `window_s` scales the per-minute figures down to what one window holds: 600 a minute with a window of 1 s
    are 10 in each second. `burst` is the depth of the bucket of requests (of tokens: the same share of a
    window); without it a bucket is one window deep. `scope`: all models share one limit, or each has its own.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    kind: Kind = "token-bucket"
    window_s: float = 60.0
    burst: float | None = None
    max_concurrency: int | None = None
    queue: bool = False
    headers: bool = True
    retry_after: RetryAfter = "seconds"
    rejected_count: bool = False
    scope: Literal["key", "model"] = "key"


_ROUNDING: Final = 1e-6  # of floats: a millionth is nobody's token


class Meter(Protocol):
    """One limit's memory: what was used, and when there is room again."""

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` fits (0: now). More than the whole limit fits when nothing else is used."""

    def take(self, amount: float, now: float) -> None:
        """Uses that much."""

    def remaining(self, now: float) -> float:
        """What is left at this moment."""

    def reset_s(self, now: float) -> float:
        """Seconds until all of it is there again, if nothing more is used."""


class TokenBucket:
    """Refills evenly; holds at most its depth."""

    def __init__(self, rate_per_s: float, depth: float) -> None:
        self._rate = rate_per_s
        self._depth = depth
        self._level = depth
        self._at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the bucket holds the amount."""
        missing = min(amount, self._depth) - self._filled(now)
        return missing / self._rate if missing > _ROUNDING else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes the amount out; one larger than the bucket leaves a debt."""
        self._level = self._filled(now) - amount

    def remaining(self, now: float) -> float:
        """What the bucket holds."""
        return max(0.0, self._filled(now) + _ROUNDING)

    def reset_s(self, now: float) -> float:
        """Seconds until it is full."""
        return (self._depth - self._filled(now)) / self._rate

    def _filled(self, now: float) -> float:
        self._level = min(self._depth, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        return self._level


class SlidingWindow:
    """No stretch of `window_s` ever holds more than the limit."""

    def __init__(self, limit: float, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._used = 0.0
        self._log: deque[tuple[float, float]] = deque()

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until enough of the past has left the window."""
        self._forget(now)
        excess = self._used + min(amount, self._limit) - self._limit
        for at, used in self._log:
            if excess <= 0:
                break
            excess -= used
            if excess <= 0:
                return max(1e-3, at + self._window_s - now)
        return 0.0

    def take(self, amount: float, now: float) -> None:
        """Notes the use."""
        self._forget(now)
        self._log.append((now, amount))
        self._used += amount

    def remaining(self, now: float) -> float:
        """What the window still takes."""
        self._forget(now)
        return max(0.0, self._limit - self._used)

    def reset_s(self, now: float) -> float:
        """Seconds until the last use has left the window."""
        self._forget(now)
        return self._log[-1][0] + self._window_s - now if self._log else 0.0

    def _forget(self, now: float) -> None:
        while self._log and self._log[0][0] + self._window_s <= now:
            self._used -= self._log.popleft()[1]


class FixedWindow:
    """Counts from zero at every window's start; the first window starts with the first use."""

    def __init__(self, limit: float, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._start = -math.inf
        self._used = 0.0

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the next window, when this one is used up."""
        self._turn(now)
        fits = self._used + min(amount, self._limit) <= self._limit
        return 0.0 if fits else self._start + self._window_s - now

    def take(self, amount: float, now: float) -> None:
        """Counts the use in this window."""
        self._turn(now)
        self._used += amount

    def remaining(self, now: float) -> float:
        """What this window still takes."""
        self._turn(now)
        return max(0.0, self._limit - self._used)

    def reset_s(self, now: float) -> float:
        """Seconds until the next window."""
        self._turn(now)
        return self._start + self._window_s - now

    def _turn(self, now: float) -> None:
        if self._start == -math.inf:
            self._start = now
        elif now >= self._start + self._window_s:
            self._start += (now - self._start) // self._window_s * self._window_s
            self._used = 0.0


class Refused(NamedTuple):
    """A limit is reached: which one, and after how many seconds there is room."""

    what: Literal["requests", "tokens"]
    wait_s: float


class Gate:
    """The requests and tokens of one key or model: both limits admit a request, or neither is used."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = _meter(limits, limits.requests_per_minute, limits.burst)
        tokens, share = limits.tokens_per_minute, None
        if tokens and limits.burst and limits.requests_per_minute:
            share = tokens * limits.burst / limits.requests_per_minute
        self._tokens = _meter(limits, tokens, share)

    def admit(self, tokens: int, now: float) -> Refused | None:
        """Takes one request and its tokens, or says what is in the way."""
        if self._requests is None and self._tokens is None:
            return None
        waits: dict[Literal["requests", "tokens"], float] = {
            "requests": self._requests.wait_s(1, now) if self._requests else 0.0,
            "tokens": self._tokens.wait_s(tokens, now) if self._tokens else 0.0,
        }
        what = max(waits, key=waits.__getitem__)
        refused = Refused(what, waits[what]) if waits[what] > 0 else None
        if self._requests and (refused is None or self._limits.rejected_count):
            self._requests.take(1, now)
        if self._tokens and refused is None:
            self._tokens.take(tokens, now)
        return refused

    def headers(self, now: float) -> type_of_headers:
        """The `x-ratelimit-*` headers at this moment; none when they are switched off."""
        if not self._limits.headers:
            return ()
        listed: list[tuple[str, str]] = []
        figures: tuple[tuple[str, Meter | None, float | None], ...] = (
            ("requests", self._requests, self._limits.requests_per_minute),
            ("tokens", self._tokens, self._limits.tokens_per_minute),
        )
        for name, meter, limit in figures:
            if meter is not None and limit is not None:
                listed += (
                    (f"x-ratelimit-limit-{name}", f"{limit:.0f}"),
                    (f"x-ratelimit-remaining-{name}", str(int(meter.remaining(now)))),
                    (f"x-ratelimit-reset-{name}", go_duration(meter.reset_s(now))),
                )
        return tuple(listed)


def retry_headers(limits: Limits, wait_s: float, wall: float) -> type_of_headers:
    """How the wait is told: seconds, milliseconds beside them, an HTTP date (all rounded up), not at all."""
    if not limits.headers or limits.retry_after == "none":
        return ()
    whole = max(1, math.ceil(wait_s))
    if limits.retry_after == "date":
        return (("retry-after", formatdate(math.ceil(wall + wait_s), usegmt=True)),)
    exact = (("retry-after-ms", str(math.ceil(wait_s * 1000))),) if limits.retry_after == "ms" else ()
    return (("retry-after", str(whole)), *exact)


def go_duration(seconds: float) -> str:
    """Seconds as Go prints them: `20ms`, `1s`, `8.64s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds == 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown


def changed(limits: Limits, fields: dict[str, Any]) -> Limits:
    """The limits with some fields replaced. Raises ValueError for an unknown field or an unfit value."""
    known = {name: getattr(limits, name) for name in Limits.__slots__}
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"unknown limit {name!r}; there are {', '.join(known)}")
        fits = isinstance(value, bool if name in _FLAGS else str if name in _WORDS else int | float | None)
        if not fits or (name in _WORDS and value not in _WORDS[name]):
            raise ValueError(f"{name} cannot be {value!r}")
    return Limits(**(known | fields))


_FLAGS: Final = frozenset({"queue", "headers", "rejected_count"})
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "kind": KINDS,
    "retry_after": ("seconds", "ms", "date", "none"),
    "scope": ("key", "model"),
}


def _meter(limits: Limits, per_minute: float | None, depth: float | None) -> Meter | None:
    if per_minute is None:
        return None
    a_window = max(1.0, per_minute * limits.window_s / 60)
    match limits.kind:
        case "token-bucket":
            return TokenBucket(per_minute / 60, max(1.0, depth or a_window))
        case "sliding":
            return SlidingWindow(a_window, limits.window_s)
        case "fixed":
            return FixedWindow(a_window, limits.window_s)
