"""When an endpoint counts as down, and how it is probed until it answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.circuit import Circuit, Silence


def end(circuit: Circuit, row: int | None, now: float, *, failed: bool) -> bool:
    """An attempt comes to its end; whether the circuit opened or closed by it."""
    return circuit.failed(row, now, now) if failed else circuit.answered(now)


Ends = list[tuple[int | None, bool]]


def after(ends: Ends) -> Circuit:
    """A circuit that took these attempts in, one a second: (row, whether it failed)."""
    circuit = Circuit()
    for second, (row, failed) in enumerate(ends):
        end(circuit, row, float(second), failed=failed)
    return circuit


def good(rows: int) -> Ends:
    return [(1000 + row, False) for row in range(rows)]


def bad(attempts: int, rows: int) -> Ends:
    return [(attempt % rows, True) for attempt in range(attempts)]


CASES: dict[str, tuple[Ends, bool]] = {
    "nothing": ([], False),
    "nine of nine rows": (bad(9, 9), False),
    "ten of ten rows": (bad(10, 10), True),
    "ten of three rows": (bad(10, 3), True),
    "ten of two rows": (bad(10, 2), False),
    "thirty of one row": (bad(30, 1), False),
    "ten after a long good time": (good(500) + bad(10, 10), True),
    "ten with an answer among them": (bad(5, 5) + good(1) + bad(9, 9), False),
    "ten without a connection": ([(None, True)] * 10, True),
    "nine without a connection": ([(None, True)] * 9, False),
    "one without a connection, nine of one row": ([(None, True), *bad(9, 1)], True),
    "forty of the last fifty": ([(n, n % 5 != 0) for n in range(50)], True),
    "half of the last fifty": ([(n, n % 2 != 0) for n in range(50)], False),
    "fifty of one row": (bad(50, 1), False),
    "half of the last thousand": ([(n, bool(n % 2)) for n in range(1000)], False),
}


@pytest.mark.parametrize(("ends", "opens"), CASES.values(), ids=CASES.keys())
def test_it_opens_when_it_strikes_across_rows(ends: Ends, opens: bool) -> None:  # noqa: FBT001  (a case's column)
    """The last 10 attempts of 3 rows or more, or most of the last 50, all for reasons that are not the rows' own."""
    assert after(ends).is_open is opens


@given(st.lists(st.booleans(), max_size=120))
def test_one_bad_row_among_good_ones_never_opens_it(turns: list[bool]) -> None:
    """Whenever at least every other attempt is another row's answer, a row may fail as often as it likes."""
    circuit = Circuit()
    for n, twice in enumerate(turns):
        end(circuit, 7, float(n), failed=True)
        for extra in range(2 if twice else 1):
            end(circuit, 100 + n + extra, float(n), failed=False)
        assert not circuit.is_open


def test_it_says_when_it_changes() -> None:
    """`failed` and `answered` are true exactly when the circuit opened or closed by it."""
    circuit = Circuit()
    assert [end(circuit, n, float(n), failed=True) for n in range(12)] == [*[False] * 9, True, False, False]
    assert circuit.open_since == 9.0
    assert end(circuit, 3, 20.0, failed=False)
    assert circuit.open_since is None
    assert not end(circuit, 4, 21.0, failed=False)


def test_after_it_closed_it_takes_ten_again() -> None:
    """What failed before an answer is no evidence after it."""
    circuit = after(bad(30, 10))
    end(circuit, 5, 40.0, failed=False)
    opened = [end(circuit, n, 41.0 + n, failed=True) for n in range(11)]
    assert opened.index(True) == 9


def test_the_first_moment_of_an_outage_stands() -> None:
    """Failures while it is open do not move `open_since`: --max-outage counts from there."""
    circuit = after(bad(10, 10))
    since = circuit.open_since
    for n in range(100):
        end(circuit, n, 100.0 + n, failed=True)
    assert circuit.open_since == since


def test_probes_come_at_growing_intervals_of_at_most_five_seconds() -> None:
    """The first within a second, each later one after no shorter a gap, and none so late that an end goes unseen."""
    circuit = after(bad(10, 10))
    now = 9.0
    gaps: list[float] = []
    for _ in range(20):
        gap = circuit.probe_in_s(now)
        gaps.append(round(gap, 6))
        now += gap
        assert circuit.probe_in_s(now) == 0
        circuit.probed(now)
    assert 0 < gaps[0] <= 1
    assert gaps == sorted(gaps)
    assert gaps[-1] <= 5
    assert gaps[-1] > 4 * gaps[0]


# --- answers to what left before ----------------------------------------------------------------------------------------


def test_an_answer_to_an_older_request_does_not_close_it() -> None:
    """Slow answers come in while it is open: what left before those that failed says nothing of now."""
    circuit = after(bad(10, 10))
    assert not circuit.answered(-5.0)
    assert circuit.is_open
    assert circuit.answered(0.0)
    assert not circuit.is_open


def test_one_that_was_shut_is_not_reopened_by_what_had_left() -> None:
    """A refused key at 5 s: an answer to a request of 4 s changes nothing, one of 6 s does."""
    circuit = Circuit()
    circuit.shut(5.0)
    assert not circuit.answered(4.0)
    assert circuit.answered(6.0)


@pytest.mark.parametrize(("unanswered", "opens"), [(0, True), (2, True), (3, False), (40, False)])
def test_ten_that_failed_at_once_open_it_among_slow_answers(unanswered: int, opens: bool) -> None:  # noqa: FBT001
    """Requests 101 to 110 fail while those up to 100 are still being answered: unless more than a few that left since
    then may yet be answered.
    """
    circuit = Circuit()
    opened = False
    for n in range(10):
        opened = circuit.failed(n, 50.0, 51.0, nth=101 + n, latest=110 + unanswered)
        circuit.answered(10.0, 50 + n)
    assert opened is opens


def test_an_answer_to_a_newer_request_ends_the_count() -> None:
    """Nine failures, an answer to one that left after them, and one more failure: no cause."""
    circuit = Circuit()
    for n in range(9):
        assert not circuit.failed(n, 50.0, 51.0, nth=101 + n, latest=110)
    circuit.answered(50.0, 110)
    assert not circuit.failed(10, 51.0, 52.0, nth=111, latest=111)


def test_what_left_in_an_outage_is_excused_after_it() -> None:
    """A request of the outage that fails long after its end is no evidence, and not held against its row."""
    circuit = after(bad(10, 10))
    circuit.answered(100.0)
    assert circuit.excuses(99.0)
    assert not circuit.excuses(100.0)
    assert not any(circuit.failed(n, 99.0, 200.0) for n in range(20))


# --- silence ------------------------------------------------------------------------------------------------------------


def looked(silence: Silence, seconds: float, *, in_flight: int = 3, heard_s: float = -1.0) -> list[bool]:
    return [silence.look(n / 10, 0.1, in_flight=in_flight, heard_s=heard_s) for n in range(round(10 * seconds))]


@pytest.mark.parametrize(("slowest_s", "enough_s"), [(0.1, 5.0), (1.0, 5.0), (3.0, 12.0)])
def test_silence_is_several_times_as_long_as_answers_take(slowest_s: float, enough_s: float) -> None:
    """Four times the slowest of late answers, at least 5 s, in which nothing comes; an answer begins it anew."""
    silence = Silence()
    assert not any(looked(silence, 500))
    silence.heard(slowest_s)
    assert looked(silence, enough_s + 1).index(True) in {round(10 * enough_s) - 1, round(10 * enough_s)}
    silence.heard(0.1)
    assert not any(looked(silence, 4))


def test_what_is_on_its_way_is_no_silence() -> None:
    """Bytes of an answer that come in, nothing in flight, or one or two rows that may just be long."""
    for how in ({"in_flight": 0}, {"in_flight": 2}, {"heard_s": 1e9}):
        silence = Silence()
        silence.heard(0.1)
        assert not any(looked(silence, 60, **how))


def test_who_fell_silent_is_reopened_by_any_answer() -> None:
    """Also by one to a request that had left long before; a failure in it makes it an outage like any other."""
    circuit = Circuit()
    circuit.fall_silent(100.0)
    assert (circuit.is_open, circuit.is_silent) == (True, True)
    assert circuit.answered(1.0)
    assert (circuit.is_open, circuit.is_silent) == (False, False)
    circuit.fall_silent(200.0)
    circuit.failed(1, 150.0, 210.0)
    assert (circuit.is_open, circuit.is_silent) == (True, False)
