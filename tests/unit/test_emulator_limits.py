"""The emulator's limits: never more than allowed, and the wait it tells is the wait there is."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.emulator import Limits
from batchrouter.emulator.limits import (
    KINDS,
    FixedWindow,
    Gate,
    Kind,
    SlidingWindow,
    TokenBucket,
    changed,
    go_duration,
    retry_headers,
)

ARRIVALS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=60)


def admitted(limits: Limits, arrivals: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Which of the requests (pause before it, tokens) a gate lets in, at what time."""
    gate, now, let_in = Gate(limits), 100.0, []
    for pause, tokens in arrivals:
        now += pause
        if gate.admit(tokens, now) is None:
            let_in.append((now, tokens))
    return let_in


@given(arrivals=ARRIVALS)
def test_no_window_slides_over_too_much(arrivals: list[tuple[float, int]]) -> None:
    """Sliding: whatever 10 s one looks at, at most 20 requests are in them."""
    let_in = admitted(Limits(requests_per_minute=120, kind="sliding", window_s=10), arrivals * 3)
    for start, _ in let_in:
        assert sum(1 for at, _ in let_in if start <= at < start + 10) <= 20


@given(arrivals=ARRIVALS)
def test_a_bucket_holds_its_depth_and_refills_evenly(arrivals: list[tuple[float, int]]) -> None:
    """Token bucket: over any stretch at most its depth and what has flowed in."""
    let_in = admitted(Limits(requests_per_minute=60, burst=5), arrivals * 3)
    for start, _ in let_in:
        for end in (at for at, _ in let_in if at >= start):
            inside = sum(1 for at, _ in let_in if start <= at <= end)
            assert inside <= 5 + (end - start) + 1e-3


@given(arrivals=ARRIVALS)
def test_a_fixed_window_counts_from_zero(arrivals: list[tuple[float, int]]) -> None:
    """Fixed: at most 20 in each 10 s from the first request on; twice that around an edge is possible."""
    let_in = admitted(Limits(requests_per_minute=120, kind="fixed", window_s=10), arrivals * 3)
    windows = [int((at - let_in[0][0]) // 10) for at, _ in let_in]
    assert all(windows.count(one) <= 20 for one in windows)


@pytest.mark.parametrize("kind", KINDS)
@given(arrivals=ARRIVALS)
def test_the_wait_it_tells_is_enough(kind: Kind, arrivals: list[tuple[float, int]]) -> None:
    """A refused request is let in after just the wait it was told, and more tokens than the limit pass alone."""
    gate = Gate(Limits(requests_per_minute=60, tokens_per_minute=100, kind=kind, window_s=6))
    now = 0.0
    for pause, tokens in arrivals:
        now += pause
        refused = gate.admit(tokens, now)
        if refused is not None:
            assert refused.wait_s > 0
            now += refused.wait_s + 1e-3
            assert gate.admit(tokens, now) is None


def test_a_refusal_takes_nothing() -> None:
    """What the token limit refuses does not use up a request, unless refusals count."""
    for counts, left in ((False, "8"), (True, "7")):
        limits = Limits(requests_per_minute=10, tokens_per_minute=100, kind="fixed", rejected_count=counts)
        gate = Gate(limits)
        assert gate.admit(60, 0.0) is None
        refused = gate.admit(60, 1.0)
        assert refused is not None
        assert refused.what == "tokens"
        assert refused.wait_s == 59.0
        gate.admit(10, 2.0)
        assert dict(gate.headers(2.0))["x-ratelimit-remaining-requests"] == left


def test_headers_tell_where_a_key_stands() -> None:
    """Limits, what remains and when all is back, in Go's durations; none when they are off."""
    limits = Limits(requests_per_minute=60, tokens_per_minute=600, kind="token-bucket")
    gate = Gate(limits)
    gate.admit(60, 0.0)
    assert dict(gate.headers(0.0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "540",
        "x-ratelimit-reset-tokens": "6s",
    }
    assert Gate(changed(limits, {"headers": False})).headers(0.0) == ()


def test_the_wait_is_told_in_the_style_asked_for() -> None:
    """Whole seconds rounded up, milliseconds beside them, a date, or nothing."""
    told = {
        style: dict(retry_headers(changed(Limits(), {"retry_after": style}), 0.25, 1e9))
        for style in ("seconds", "ms", "date", "none")
    }
    assert told["seconds"] == {"retry-after": "1"}
    assert told["ms"] == {"retry-after": "1", "retry-after-ms": "250"}
    assert parsedate_to_datetime(told["date"]["retry-after"]).timestamp() == 1e9 + 1
    assert told["none"] == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.02, "20ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600.5, "1h0m0.5s"),
        (-1, "0s"),
    ],
)
def test_durations_are_spelt_as_go_does(seconds: float, text: str) -> None:
    """The spellings that the endpoint's kin send."""
    assert go_duration(seconds) == text


def test_limits_change_by_name() -> None:
    """A field that fits replaces the old one; another name or type is refused in words."""
    assert changed(Limits(), {"requests_per_minute": 5, "kind": "fixed"}) == Limits(requests_per_minute=5, kind="fixed")
    for fields in ({"rpm": 5}, {"kind": "leaky"}, {"queue": "yes"}, {"requests_per_minute": "many"}):
        with pytest.raises(ValueError, match=r"limit|cannot"):
            changed(Limits(), fields)


def test_meters_say_what_is_left() -> None:
    """Remaining and reset agree with what was taken, and nothing goes below zero."""
    for meter in (TokenBucket(1.0, 10.0), SlidingWindow(10.0, 10.0), FixedWindow(10.0, 10.0)):
        meter.wait_s(1, 0.0)
        meter.take(4, 0.0)
        assert round(meter.remaining(0.0)) == 6
        meter.take(20, 0.0)
        assert meter.remaining(0.0) == 0
        assert meter.reset_s(0.0) > 0
        assert round(meter.remaining(30.0)) == 10
