"""Failures that are held back until it is known whose they are: the canary, and an endpoint that answers nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from kit.scripted import outcome, refused, request

from batchrouter.frontier import Job
from batchrouter.jury import Failure, Jury


@dataclass
class Lane:
    """Where a row failed."""

    failed: int = 0


HERE, THERE = Lane(), Lane()


def failure(
    n: int,
    kind: str = "400 bad",
    blame: Literal["endpoint", "row"] = "row",
    status: int = 400,
    *,
    lane: Lane = HERE,
    at_s: float = 0.0,
) -> Failure:
    row = request(n)
    return Failure(Job(row), outcome(row, refused(status), usage=None), kind, f"text {n}", blame, lane, at_s)


def numbers(failures: list[Failure]) -> list[int]:
    return [found.outcome.request.n for found in failures]


def heard(jury: Jury, failures: list[Failure]) -> list[int]:
    """The rows that may be booked after each of the failures, all together."""
    return [n for one in failures for n in numbers(jury.failed(one))]


def test_twenty_alike_stop_the_run_and_none_is_booked() -> None:
    """The 20th of one kind, with nothing else before it, is the run's failure; 19 are not."""
    jury = Jury(rows=100)
    assert heard(jury, [failure(n) for n in range(19)]) == []
    assert jury.halt is None
    assert heard(jury, [failure(19)]) == []
    assert jury.halt is not None
    assert jury.halt.exit_code == 5
    assert "400 bad" in jury.halt.reason
    assert "text 19" in jury.halt.reason


def test_an_answer_while_the_run_stops_comes_too_late() -> None:
    """What was in flight when the canary spoke may still be answered: the twenty stay unbooked, to be asked again."""
    jury = Jury(rows=100)
    heard(jury, [failure(n) for n in range(20)])
    assert jury.answered() == []
    assert jury.heard(HERE, 1e9) == []
    assert heard(jury, [failure(20)]) == []


def test_twenty_times_403_are_the_keys_fault() -> None:
    """A status of 403 on every row: exit 3."""
    jury = Jury(rows=100)
    heard(jury, [failure(n, "403 model_not_allowed", status=403) for n in range(20)])
    assert jury.halt is not None
    assert jury.halt.exit_code == 3


@pytest.mark.parametrize("rows", [0, 1, 19])
def test_small_runs_have_no_canary(rows: int) -> None:
    """Below 20 rows each failure is booked as it comes."""
    jury = Jury(rows=rows)
    assert heard(jury, [failure(n) for n in range(19)]) == list(range(19))
    assert jury.halt is None
    assert not jury.is_watching


@pytest.mark.parametrize("held", [0, 1, 19])
def test_an_answer_frees_what_is_held(held: int) -> None:
    """One answer: all that was held is booked, in order, and nothing is held any more."""
    jury = Jury(rows=100)
    heard(jury, [failure(n) for n in range(held)])
    assert numbers(jury.answered()) == list(range(held))
    assert heard(jury, [failure(n) for n in range(50, 90)]) == list(range(50, 90))
    assert jury.halt is None
    assert not jury.is_watching


def test_another_kind_frees_what_is_held() -> None:
    """The failure that differs is booked together with those before it, and the canary is over."""
    jury = Jury(rows=100)
    heard(jury, [failure(n) for n in range(5)])
    assert heard(jury, [failure(5, "404 gone")]) == [0, 1, 2, 3, 4, 5]
    assert heard(jury, [failure(n) for n in range(6, 60)]) == list(range(6, 60))
    assert jury.halt is None


def test_what_is_held_at_the_end_is_booked() -> None:
    """The input ended before the canary could speak: the failures are the rows'."""
    jury = Jury(rows=20)
    heard(jury, [failure(n) for n in range(7)])
    assert numbers(jury.closing()) == list(range(7))
    assert jury.closing() == []


def test_the_endpoints_failures_wait_for_a_sign_of_life() -> None:
    """Out of attempts by the endpoint: held until it answers what was sent after that; what was sent before may be the
    last answers before an outage. A row's own failure waits for nothing.
    """
    jury = Jury(rows=5)
    assert heard(jury, [failure(n, "500", "endpoint", at_s=float(n)) for n in range(4)]) == []
    assert jury.is_watching
    assert heard(jury, [failure(4)]) == [4]
    assert jury.answered() == []
    assert numbers(jury.heard(HERE, 1.5)) == [0, 1]
    assert numbers(jury.heard(HERE, 1.9)) == []
    assert numbers(jury.heard(HERE, 3.0)) == [2, 3]
    assert not jury.is_watching


def test_one_lane_says_nothing_of_another() -> None:
    """An answer, or an outage, is that of its own lane."""
    jury = Jury(rows=5)
    heard(jury, [failure(0, "500", "endpoint", lane=HERE), failure(1, "500", "endpoint", lane=THERE)])
    assert jury.heard(Lane(), 9.0) == []
    assert numbers(jury.heard(THERE, 9.0)) == [1]
    assert numbers(jury.excused([THERE])) == []
    assert numbers(jury.excused([THERE, HERE])) == [0]


def test_the_canary_counts_failures_of_the_endpoint_as_well() -> None:
    """A 500 among the first, and 400s after it: not all alike, whenever the endpoint was heard."""
    jury = Jury(rows=100)
    heard(jury, [failure(0, "500", "endpoint")])
    assert jury.heard(HERE, 9.0) == []
    assert heard(jury, [failure(n) for n in range(1, 40)]) == list(range(1, 40))
    assert jury.halt is None
    assert numbers(jury.heard(HERE, 9.0)) == [0]


def test_an_outage_excuses_what_it_caused() -> None:
    """The endpoint's failures come back to be asked again; the rows' own stay held for the canary."""
    jury = Jury(rows=100)
    heard(jury, [failure(0), failure(1)])
    assert numbers(jury.excused([HERE])) == []
    down = Jury(rows=100)
    heard(down, [failure(n, "500", "endpoint") for n in range(4)])
    assert numbers(down.excused([HERE])) == [0, 1, 2, 3]
    assert down.closing() == []
