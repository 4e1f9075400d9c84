"""What an answer's headers say about limits: when to come back, and how much is left.

Rules of this file: pure; what cannot be read is absent, never an error and never 0; nothing is capped here (a wait
of 31 years stays one: how long to believe it is the caller's to decide). Read: `Retry-After` (RFC 9110, 10.2.3),
its relatives `retry-after-ms` and `llm_provider-retry-after`, `x-ratelimit-*` as OpenAI and its kin write them (with
and without `-requests`), and the IETF's `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers, the
newer structured form and the older three headers).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final, NamedTuple


class Meter(NamedTuple):
    """One limit as a server tells it: `limit` a window, `remaining` now, all there again after `reset_s`."""

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float | None = None


class Hints(NamedTuple):
    """What one answer's headers say. None: not said."""

    retry_after_s: float | None = None
    requests: Meter | None = None
    tokens: Meter | None = None


_REQUESTS: Final = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
_TOKENS: Final = ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")
_OLDER: Final = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
_PLAIN: Final = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")

_GO_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)
_GO_UNITS_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_PARAMETER: Final = re.compile(r";\s*([a-z]+)\s*=\s*(\d+(?:\.\d+)?)", re.ASCII)
_EPOCH_FROM: Final = 1e9  # a reset of more seconds than this (31 years) is a date, counted from 1970
_LONGEST_CHARACTERS: Final = 200  # a longer value is no duration, and is not given to the patterns


def read_hints(headers: Mapping[str, str], now_wall: float) -> Hints | None:
    """What the headers (names in any case, if the mapping says so) tell at `now_wall`, in seconds since 1970.
    None when they tell nothing.
    """
    retry_after_s = requests = tokens = None
    if "retry-after" in headers or "retry-after-ms" in headers or "llm_provider-retry-after" in headers:
        retry_after_s = _read_retry_after(headers, now_wall)
    if (
        "x-ratelimit-limit-requests" in headers
        or "x-ratelimit-limit-tokens" in headers
        or "x-ratelimit-remaining-requests" in headers
        or "x-ratelimit-remaining-tokens" in headers
        or "ratelimit" in headers
        or "ratelimit-limit" in headers
        or "x-ratelimit-limit" in headers
    ):
        requests, tokens = _read_meters(headers, now_wall)
    if retry_after_s is None and requests is None and tokens is None:
        return None
    return Hints(retry_after_s, requests, tokens)


def _until(moment: float, headers: Mapping[str, str], now_wall: float) -> float:
    """Seconds until a moment that the server named: by its own clock where it tells it, as ours may be wrong."""
    said = _date(headers.get("date", ""))
    return moment - (now_wall if said is None else said)


def _read_retry_after(headers: Mapping[str, str], now_wall: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None and milliseconds > 0:
        return milliseconds / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        text = headers.get(name, "").strip()
        seconds = _number(text)
        if seconds is None:
            date = _date(text)
            seconds = None if date is None else _until(date, headers, now_wall)
        if seconds is not None and seconds > 0:
            return seconds
    return None


def _read_meters(headers: Mapping[str, str], now_wall: float) -> tuple[Meter | None, Meter | None]:
    requests = _meter_of(headers, *_REQUESTS, now_wall) or _structured(headers)
    requests = requests or _meter_of(headers, *_OLDER, now_wall) or _meter_of(headers, *_PLAIN, now_wall)
    return requests, _meter_of(headers, *_TOKENS, now_wall)


def _meter_of(
    headers: Mapping[str, str], limit_name: str, remaining_name: str, reset_name: str, now_wall: float
) -> Meter | None:
    """One limit of those written as three headers."""
    limit_text, remaining_text = headers.get(limit_name), headers.get(remaining_name)
    if limit_text is None and remaining_text is None:
        return None
    limit, window_s = _limit(limit_text or "")
    remaining = _amount(remaining_text or "")
    if limit is None and remaining is None:
        return None
    return Meter(limit, remaining, _reset_s(headers.get(reset_name, ""), headers, now_wall), window_s)


@lru_cache(maxsize=64)
def _limit(text: str) -> tuple[float | None, float | None]:
    """`100`, or `100, 100;w=60`: the limit and, where told, its window. The same text comes with every answer."""
    window_s = _parameters(text.partition(",")[2] or text).get("w")
    return _amount(text.partition(",")[0].partition(";")[0]), window_s or None


def _structured(headers: Mapping[str, str]) -> Meter | None:
    """`RateLimit: "default";r=50;t=30` and `RateLimit-Policy: "default";q=100;w=60`; of several the first."""
    now_left = _parameters(headers.get("ratelimit", "").partition(",")[0])
    policy = _parameters(headers.get("ratelimit-policy", "").partition(",")[0])
    if "r" not in now_left and "q" not in policy:
        return None
    return Meter(policy.get("q"), now_left.get("r"), now_left.get("t"), policy.get("w") or None)


def _parameters(text: str) -> dict[str, float]:
    return {key: float(value) for key, value in _PARAMETER.findall(text[:_LONGEST_CHARACTERS])}


def _number(text: str) -> float | None:
    """A finite number, written plainly: not `1_000`, not `nan`."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text and text.isascii() else None


def _amount(text: str) -> float | None:
    number = _number(text)
    return number if number is not None and number >= 0 else None


def _reset_s(text: str, headers: Mapping[str, str], now_wall: float) -> float | None:
    """Seconds until a reset, told as a number, a Go duration (`6m0s`), a date or seconds since 1970."""
    text = text.strip()
    seconds = _number(text)
    if seconds is None:
        seconds = _duration_s(text)
    elif seconds > _EPOCH_FROM:
        seconds = (seconds / 1000 if seconds > 1000 * _EPOCH_FROM else seconds) - now_wall
    if seconds is None:
        date = _date(text)
        seconds = None if date is None else _until(date, headers, now_wall)
    return seconds if seconds is not None and seconds >= 0 else None


def _duration_s(text: str) -> float | None:
    if not text or len(text) > _LONGEST_CHARACTERS:
        return None
    total_s, end = 0.0, 0
    for part in _GO_DURATION.finditer(text):
        if part.start() != end:
            return None
        amount, unit = part.groups()
        total_s += float(amount) * _GO_UNITS_S[unit]
        end = part.end()
    return total_s if end == len(text) else None


def _date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date or an ISO time."""
    if not text or len(text) > _LONGEST_CHARACTERS:
        return None
    try:
        moment = datetime.fromisoformat(text) if text[0].isdigit() else parsedate_to_datetime(text)
        if moment.tzinfo is None:  # HTTP dates are in GMT whatever they say, and so is a server's ISO time
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
