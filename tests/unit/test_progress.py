"""Who shows a run: in the right words, no oftener than asked, and never to a run's harm."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from batchrouter.health import Bound, LimitLog, limits_in_words, lost_in_words, short_time
from batchrouter.progress import (
    Bar,
    JsonLines,
    LogLines,
    Observer,
    Shown,
    Silence,
    choose,
    describe,
    figures,
    tell,
)
from batchrouter.records import Tally, Usage


@dataclass
class Door:
    """What is shown of a throttle."""

    text: str = ""
    word: Bound = ""
    lost_s: dict[str, float] = field(default_factory=dict)

    def state(self) -> str:
        return self.text

    def bound(self) -> Bound:
        return self.word

    def limits(self) -> dict[str, float]:
        return {"requests_per_min": 1200.0, "at_once": 40}


@dataclass
class Lane:
    """What is shown of a lane."""

    name: str = "m"
    throttle: Door = field(default_factory=Door)


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Broken(io.StringIO):
    """A terminal that is gone."""

    writes = 0

    def write(self, _: str) -> int:
        self.writes += 1
        raise BrokenPipeError(32, "Broken pipe")


ALL: Sequence[Shown] = [Lane()]


def tally() -> Tally:
    return Tally(
        rows=1000, answered=300, failed=2, answered_before=100, failed_before=1, attempts=320, retries=15, limited=4,
        in_flight=8, usage=Usage(10, 20, 12345),
    )  # fmt: skip


def test_figures_are_those_of_the_run() -> None:
    """By the names that programs read; rows add up."""
    assert figures(tally(), [Lane(throttle=Door("cooldown, 5 s to go"))]) == {
        "rows": 1000, "answered": 400, "failed": 3, "pending": 597, "in_flight": 8, "attempts": 320, "retries": 15,
        "limited": 4, "tokens": 12345, "state": "cooldown, 5 s to go",
        "health": {"m": {"bound": "", "requests_per_min": 1200.0, "at_once": 40, "lost_s": {}}},
    }  # fmt: skip


def test_a_line_tells_how_a_run_stands() -> None:
    """Rows, speed, time left, and what holds it up."""
    line = describe(tally(), [Lane(throttle=Door("cooldown, 5 s to go"))], 10.0)
    assert line.startswith("403 of 1,000 rows, 30.2 rows/s, about 20 s left; ")
    for part in ("8 in flight", "12,345 tokens", "3 failed", "15 retries", "cooldown, 5 s to go"):
        assert part in line


@pytest.mark.parametrize("elapsed_s", [0.0, 1e-9, 5.0])
def test_a_run_that_has_done_nothing_has_no_speed(elapsed_s: float) -> None:
    """No division by nothing, no time left out of thin air."""
    line = describe(Tally(rows=10), ALL, elapsed_s)
    assert line.startswith("0 of 10 rows, 0.0 rows/s; ")
    assert describe(Tally(), ALL, elapsed_s)


def test_of_several_lanes_each_says_its_own() -> None:
    """Those that are held up, by name; with none of them nothing is said."""
    lanes = [Lane("a", Door("cooldown, 5 s to go")), Lane("b"), Lane("c", Door("endpoint down for 9 s"))]
    assert figures(tally(), lanes)["state"] == "a: cooldown, 5 s to go; c: endpoint down for 9 s"
    assert figures(tally(), [Lane("a"), Lane("b")])["state"] == ""
    assert figures(tally(), [])["state"] == ""


def test_what_bounds_a_run_its_limits_and_the_time_lost_are_told() -> None:
    """For programs by lane, in figures; for people in a log line, the most first, and what is next to nothing not."""
    lanes = [
        Lane("a", Door("x", "requests", {"requests": 12.34, "cooldown": 300.0, "outage": 0.2})),
        Lane("b", Door("", "", {"requests": 2.0})),
    ]
    assert figures(tally(), lanes)["health"]["a"] == {
        "bound": "requests", "requests_per_min": 1200.0, "at_once": 40,
        "lost_s": {"requests": 12.3, "cooldown": 300.0, "outage": 0.2},
    }  # fmt: skip
    assert describe(tally(), lanes, 10.0).endswith("; held up so far by cooldown 5 min, requests 14 s")
    assert lost_in_words({}) == ""
    words = "at most 1,200 requests/min, 90,000 tokens/min, 40 at once"
    assert limits_in_words({"requests_per_min": 1200, "tokens_per_min": 9e4, "at_once": 40}) == words
    told = tell("limit", {"lane": "a", "requests_per_min": 1200.0})
    assert told == "batchrouter: limit of a: at most 1,200 requests/min"


def test_a_limit_is_told_when_it_is_known_and_when_it_has_moved() -> None:
    """By a fifth, and not more often than every 5 s; how many may be at once is one only where that binds for 2 s."""
    log = LimitLog()
    assert log.news({"at_once": 12}, "", 0.0) == {}
    assert log.news({"at_once": 12, "tokens_per_min": 600.0}, "", 1.0) == {"tokens_per_min": 600.0}
    assert log.news({"tokens_per_min": 60.0}, "", 5.0) == {}
    assert log.news({"tokens_per_min": 700.0}, "", 6.0) == {}
    assert log.news({"tokens_per_min": 800.0, "at_once": 9}, "concurrency", 7.0) == {"tokens_per_min": 800.0}
    assert log.news({"tokens_per_min": 800.0, "at_once": 9}, "concurrency", 12.1) == {
        "tokens_per_min": 800.0, "at_once": 9,
    }  # fmt: skip
    assert log.news({"tokens_per_min": 800.0, "at_once": 9}, "concurrency", 99.0) == {}
    assert log.news({"tokens_per_min": 800.0, "at_once": 2}, "", 199.0) == {}
    assert log.news({"tokens_per_min": 800.0, "at_once": 2}, "concurrency", 200.0) == {}


def test_log_lines_come_every_30_seconds() -> None:
    """However often the run ticks; and at once when something happens that people should know."""
    out, clock = io.StringIO(), Clock()
    shown = LogLines(out, clock)
    shown.planned(1000, 900)
    for second in range(200):
        clock.now_s = float(second)
        shown.tick(tally(), ALL)
    shown.told("start", {"pending": 900})
    shown.told("cooldown", {"seconds": 5.0})
    lines = out.getvalue().splitlines()
    assert len(lines) == 6 + 1
    assert "rate limited" in lines[-1]
    assert "5 s" in lines[-1]
    assert all("403 of 1,000 rows" in line for line in lines[:-1])


def test_json_lines_are_json() -> None:
    """One a second, and one for everything that happens."""
    out, clock = io.StringIO(), Clock()
    shown = JsonLines(out, clock)
    shown.told("start", {"pending": 900})
    for tenth in range(35):
        clock.now_s = tenth / 10
        shown.tick(tally(), ALL)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in found] == ["start", "progress", "progress", "progress"]
    assert found[1]["pending"] == 597


def test_a_bar_counts_from_where_the_run_stands() -> None:
    """Rows done before are done; events stand above it; it ends where the rows end."""
    out = io.StringIO()
    bar = Bar(out)
    bar.planned(1000, 900)
    bar.tick(tally(), ALL)
    bar.told("start", {})
    bar.told("circuit_open", {"reason": "503"})
    bar.close()
    text = out.getvalue()
    assert "403/1000" in text
    assert "12,345 tokens" in text
    assert "the endpoint seems to be down (503)" in text
    assert "start" not in text.replace("it/s", "")


def test_a_bar_without_a_plan_shows_nothing() -> None:
    """A run that ended before its plan stood."""
    out = io.StringIO()
    bar = Bar(out)
    bar.tick(tally(), ALL)
    bar.told("cooldown", {})
    bar.close()
    assert out.getvalue() == ""


@pytest.mark.parametrize("made", [LogLines, JsonLines, Bar])
@pytest.mark.parametrize("how", ["broken", "closed"])
def test_a_terminal_that_is_gone_ends_the_showing_not_the_run(made: Any, how: str) -> None:
    """EPIPE or a closed stream: nothing is raised, and it is not tried again and again."""
    out = Broken() if how == "broken" else io.StringIO()
    clock = Clock()
    shown = made(out, clock)
    if how == "closed":
        out.close()
    try:
        shown.planned(1000, 900)
    except BrokenPipeError:
        pytest.fail("the plan was not shown, and the run ended by it")
    for second in range(0, 400, 40):
        clock.now_s = float(second)
        shown.tick(tally(), ALL)
        shown.told("cooldown", {"seconds": 1.0})
    shown.close()
    if isinstance(out, Broken):
        assert out.writes <= 3


def test_silence_is_silent() -> None:
    """Every call, no word."""
    silent: Observer = Silence()
    silent.planned(1, 1)
    silent.tick(tally(), ALL)
    silent.told("cooldown", {})
    silent.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "stream", "kind"),
    [
        ("auto", Terminal(), Bar),
        ("auto", io.StringIO(), LogLines),
        ("bar", io.StringIO(), Bar),
        ("log", Terminal(), LogLines),
        ("json", Terminal(), JsonLines),
        ("none", Terminal(), Silence),
    ],
)
def test_the_observer_is_chosen_by_name(name: str, stream: io.StringIO, kind: type) -> None:
    """`auto`: a bar on a terminal, plain lines elsewhere."""
    assert type(choose(name, stream)) is kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (99, "99 s"),
        (120, "2 min"),
        (720, "12 min"),
        (5940, "99 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    """In the unit that a person would use."""
    assert short_time(seconds) == text


def test_an_event_is_told_in_words() -> None:
    """As a person would say it; what is new in the words it has, without the underscores of programs."""
    assert (
        tell("circuit_open", {"reason": "x"})
        == "batchrouter: the endpoint seems to be down (x); probing until it is back"
    )
    assert tell("circuit_closed", {}) == "batchrouter: the endpoint is back"
    assert tell("cooldown", {"seconds": 3.25}) == "batchrouter: rate limited: everybody pauses for 3.25 s"
    assert tell("notice", {"text": "look"}) == "batchrouter: look"
    assert tell("model_gone", {"in_flight": 3, "reason": "y"}) == "batchrouter: model gone (in flight 3, reason y)"
