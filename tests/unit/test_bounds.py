"""What a start may spend, and when it is to be over: no bound is ever passed, whatever rows and answers say."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.scripted import request

from batchrouter.bounds import Budget, Deadline, End, Reservation, next_time_of_day
from batchrouter.estimate import answer_budget, estimate_tokens, size_of
from batchrouter.records import Request, Usage
from batchrouter.settings import Price

PRICES = {"m": Price(prompt=2.0, completion=8.0)}
BODY = b'{"model":"m","messages":[{"role":"user","content":"question 0"}]}'


def row(**fields: Any) -> Request:
    return request(0, body=BODY, **fields)


def usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt, completion, prompt + completion)


def taken(budget: Budget, asked: Request) -> Reservation:
    reservation = budget.reserve(asked, "m")
    assert reservation is not None
    return reservation


# --- what may be spent -------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32),
    st.integers(1, 16),
    st.one_of(st.integers(1, 40_000), st.none()),
    st.one_of(st.floats(1e-4, 0.2), st.none()),
)
def test_no_bound_is_passed_with_many_in_flight(
    seed: int, at_once: int, max_tokens: int | None, max_cost: float | None
) -> None:
    """Rows that say how much they allow, each using anything up to that, at once, some failing and some telling no
    usage: neither tokens nor money go over, also when all that told nothing was paid for at its worst.
    """
    rng = random.Random(seed)
    budget = Budget(max_tokens, max_cost, PRICES)
    flying: list[tuple[Reservation, Request, int]] = []
    spent_tokens, spent_cost = 0, 0.0
    for _ in range(200):
        allowed = rng.choice([1, 50, 3000])
        asked = row(answer_tokens=allowed)
        if len(flying) < at_once and (reservation := budget.reserve(asked, "m")) is not None:
            flying.append((reservation, asked, allowed))
            continue
        if not flying:
            break
        reservation, asked, allowed = flying.pop(rng.randrange(len(flying)))
        used = usage(rng.randint(1, len(BODY)), rng.randint(0, allowed))
        how = rng.random()
        if how < 0.7:
            budget.settle(reservation, asked, used, may_have_cost=True)
        else:
            budget.settle(reservation, asked, None, may_have_cost=how < 0.85)
        if how < 0.85:
            spent_tokens += used.total_tokens
            spent_cost += PRICES["m"].cost(used.prompt_tokens, 0, used.completion_tokens)
    assert max_tokens is None or spent_tokens <= max_tokens
    assert max_cost is None or spent_cost <= max_cost + 1e-9


def test_a_row_without_a_budget_goes_alone_until_some_have_told() -> None:
    """Before the first answers all that is left may be theirs, up to 4,096 tokens; then twice the longest one is."""
    budget = Budget(1000, None, {})
    first = taken(budget, row())
    assert first.tokens == 1000
    assert budget.reserve(row(), "m") is None
    budget.settle(first, row(), usage(10, 30), may_have_cost=True)
    for _ in range(7):
        reservation = taken(budget, row())
        assert budget.reserve(row(), "m") is None
        budget.settle(reservation, row(), usage(10, 40), may_have_cost=True)
    assert taken(budget, row()).tokens == len(BODY) + 80
    assert taken(budget, row()).tokens == len(BODY) + 80
    assert taken(Budget(10**6, None, {}), row()).tokens == len(BODY) + 4096
    assert taken(Budget(None, 0.01, PRICES), row()).cost <= 0.01


def test_an_embedding_has_no_answer() -> None:
    """Only its input is reserved."""
    assert taken(Budget(10_000, None, {}), row(path="/embeddings")).tokens == len(BODY)


def test_a_prompt_that_took_more_than_it_should_is_learned_from() -> None:
    """Tokens beyond a token a byte (a picture told by its address, say): the next such row is reserved for more."""
    budget = Budget(10**6, None, {})
    first = taken(budget, row(answer_tokens=10))
    budget.settle(first, row(), usage(5 * len(BODY), 10), may_have_cost=True)
    assert taken(budget, row(answer_tokens=10)).tokens > 6 * len(BODY)


def test_usage_that_contradicts_itself_is_taken_at_its_worst() -> None:
    """A total below its parts is no reason to spend more."""
    budget = Budget(10**6, None, {})
    budget.settle(taken(budget, row(answer_tokens=10)), row(), Usage(40, 10, 1), may_have_cost=True)
    assert "reached: 50 used" in budget.halt(row(answer_tokens=10**6), "m").reason


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((100, None), ("--max-tokens 100 reached: 0 used", "in.jsonl:1 may take 565")),
        ((None, 0.001), ("--max-cost 0.001 reached: 0.0000 USD spent", "in.jsonl:1 may take 0.0041 USD")),
        ((100, 9.0), ("--max-tokens 100 reached",)),
        ((10**9, 0.001), ("--max-cost 0.001 reached",)),
    ],
)
def test_the_stop_names_the_bound_and_the_row(bounds: tuple[int | None, float | None], words: tuple[str, ...]) -> None:
    """The bound that has no room, what was spent, and what the next row may take; 6, and what to do where the same
    command would do no better.
    """
    budget = Budget(*bounds, PRICES)
    asked = row(answer_tokens=500)
    assert budget.reserve(asked, "m") is None
    halt = budget.halt(asked, "m")
    assert halt.exit_code == 6
    assert halt.remedy
    for text in words:
        assert text in halt.reason


# --- what a body may take ----------------------------------------------------------------------------------------------

PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 9000


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, 0),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 900, "max_completion_tokens": 7}, 900),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ({"max_tokens": 7, "prompt": ["a", "b"], "n": 2}, 28),
        ({"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
        ({"max_tokens": 7, "prompt": "abc"}, 7),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": -5, "n": 3}, 0),
        ({"max_tokens": "7", "n": "3", "best_of": None}, 0),
        ({"max_tokens": True}, 0),
        ({"max_tokens": 7, "n": -2}, 7),
    ],
)
def test_the_most_that_an_answer_may_be(fields: dict[str, Any], allowed: int) -> None:
    """The largest of the budgets that a body names, for each of its answers."""
    assert answer_budget(fields) == allowed


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "input_image", "image_url": PICTURE},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_picture_is_a_fixed_number_of_tokens(part: dict[str, Any], indent: int | None) -> None:
    """1,000 tokens each, at most 2,000, however large its data, or where it is told by its address."""
    for count in (1, 3):
        body = json.dumps({"messages": [{"content": [part] * count}]}, indent=indent).encode()
        assert size_of(body).pictures == count
        assert 1000 * count <= estimate_tokens(body, 0) - 256 < 1000 * count + 200
        assert 2000 * count <= size_of(body).most_tokens < 2000 * count + 600


@pytest.mark.parametrize("text", [PICTURE, '"image_url": "' + PICTURE, '{"url":"' + PICTURE])
def test_text_that_looks_like_a_picture_is_text(text: str) -> None:
    """What a message says is counted as what it is."""
    body = json.dumps({"messages": [{"content": text}], "image_url": 1}).encode()
    assert size_of(body).text_bytes == len(body)


# --- when it is to be over ---------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is that of Berlin: summer time begins on 2027-03-28 at 02:00 and ends on 2027-10-31 at 03:00."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("now", "clock", "hours"),
    [
        ("2027-01-15T05:00:00+01:00", "06:00", 1.0),
        ("2027-01-15T06:00:00+01:00", "06:00", 24.0),
        ("2027-01-15T22:00:00+01:00", "06:00", 8.0),
        ("2027-12-31T23:59:00+01:00", "00:00", 1 / 60),
        ("2027-01-15T23:30:00+01:00", "7:00", 7.5),
        ("2027-03-27T22:00:00+01:00", "06:00", 7.0),
        ("2027-03-28T01:30:00+01:00", "06:00", 3.5),
        ("2027-03-28T01:30:00+01:00", "02:30", 1.0),
        ("2027-03-28T03:15:00+02:00", "02:30", 0.25),
        ("2027-10-30T22:00:00+02:00", "06:00", 9.0),
        ("2027-10-31T01:30:00+02:00", "02:30", 1.0),
        ("2027-10-31T02:45:00+02:00", "02:30", 0.75),
        ("2027-10-31T02:45:00+01:00", "02:30", 23.75),
    ],
)
def test_a_time_of_day_is_the_next_one_on_the_clock_of_the_wall(now: str, clock: str, hours: float) -> None:
    """Past midnight, past the year's end, and over the nights that have 23 or 25 hours."""
    wall = datetime.fromisoformat(now).timestamp()
    assert next_time_of_day(clock, wall) - wall == pytest.approx(3600 * hours)


def test_admission_ends_as_early_as_answers_take() -> None:
    """With answers of 20 s, 22 s and a moment before it is to be over; the first end counts, on its own clock."""
    deadline = Deadline(End(1000.0, "time"), End(5000.0, "until", is_wall=True))
    deadline.answered(20.0)
    deadline.answered(1.0)
    assert deadline.passed(977.0, 0.0) is None
    for now, wall, reason in ((978.0, 0.0, "time"), (0.0, 4978.0, "until")):
        halt = deadline.passed(now, wall)
        assert halt is not None
        assert (halt.exit_code, halt.reason) == (6, reason)
    assert deadline.left_s(980.0, 0.0) == 20.0
    assert deadline.left_s(0.0, 4990.0) == 10.0


def test_slow_answers_of_long_ago_are_forgotten() -> None:
    """One answer of 100 s, thousands of 1 s after it: the last minutes are not given away."""
    deadline = Deadline(End(1000.0, "time"))
    deadline.answered(100.0)
    for _ in range(5000):
        deadline.answered(1.0)
    assert deadline.passed(998.0, 0.0) is None
