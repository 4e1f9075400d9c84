"""What headers say about limits: read where it can be, absent where not."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from batchrouter.hints import Hints, Meter, read_hints

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
YEAR_S = 31_536_000.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"llm_provider-retry-after": "4"}, 4.0),
        ({"retry-after": "9", "llm_provider-retry-after": "4"}, 9.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True), "date": formatdate(NOW + 60, usegmt=True)}, 30.0),
        ({"retry-after": str(31 * YEAR_S)}, 31 * YEAR_S),
    ],
)
def test_a_wait_that_is_asked_for(headers: dict[str, str], wait_s: float) -> None:
    """Seconds, milliseconds (they win), or a date: by the server's own clock where it tells it."""
    assert read_hints(headers, NOW) == Hints(retry_after_s=wait_s)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "soon", "nan", "inf", "1e400", "1_000", "٣", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 400, "1;2"],
)
def test_a_wait_that_says_nothing_is_absent(text: str) -> None:
    """Never an error, and never 0: who calls has a backoff of its own."""
    assert read_hints({"retry-after": text}, NOW) is None


@pytest.mark.parametrize(
    ("text", "reset_s"),
    [
        ("1", 1.0),
        ("0.02", 0.02),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("8.64s", 8.64),
        ("1h2m3s", 3723.0),
        ("2026-11-22", None),  # past
        ("2027-01-15T08:00:10Z", 10.0),
        (str(int(NOW) + 5), 5.0),
        (str((int(NOW) + 5) * 1000), 5.0),
        ("", None),
        ("-3", None),
        ("6m garbage", None),
    ],
)
def test_when_all_is_there_again(text: str, reset_s: float | None) -> None:
    """Numbers, Go durations, ISO times, seconds and milliseconds since 1970."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": text,
    }
    assert read_hints(headers, NOW) == Hints(requests=Meter(60.0, 59.0, reset_s))


@pytest.mark.parametrize(
    ("headers", "hints"),
    [
        (
            {"x-ratelimit-limit-tokens": "30000", "x-ratelimit-remaining-tokens": "0"},
            Hints(tokens=Meter(30000.0, 0.0)),
        ),
        ({"x-ratelimit-limit": "20", "x-ratelimit-remaining": "3"}, Hints(requests=Meter(20.0, 3.0))),
        (
            {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "1"},
            Hints(requests=Meter(100.0, 1.0, None, 60.0)),
        ),
        (
            {"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"default";q=100;w=60'},
            Hints(requests=Meter(100.0, 50.0, 30.0, 60.0)),
        ),
        ({"ratelimit": '"default";r=0;t=1'}, Hints(requests=Meter(None, 0.0, 1.0))),
        ({"x-ratelimit-limit-requests": "many"}, None),
        ({"x-ratelimit-limit-requests": "-5", "x-ratelimit-remaining-requests": "x"}, None),
        ({"content-type": "application/json"}, None),
    ],
)
def test_meters_in_all_their_spellings(headers: dict[str, str], hints: Hints | None) -> None:
    """OpenAI's, those without a kind, the IETF's older three and its newer structured pair; what is garbage is absent."""
    assert read_hints(headers, NOW) == hints
