"""Several endpoints and models, in virtual time: used at the sum of their speeds, and gone on without one that fails."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from kit import virtual
from kit.scripted import Script, Stage, Steady, fault, limited, refused, reply, request
from kit.simulator import Schedule, TokenBucket

from batchrouter.pace import Pace
from batchrouter.records import Fault, Reply, Request
from batchrouter.routing import Route
from batchrouter.settings import Model

GOOD = reply()


def played(rows: int, script: Script, **fields: Any) -> Stage:
    async def play() -> Stage:
        return await Stage(rows, script, **fields).run()

    return virtual.run(play())


def learning(seed: int = 1) -> Callable[[Route], Pace]:
    """The real pace on every lane, told nothing."""

    def make(_: Route) -> Pace:
        return Pace(
            requests_per_s=None, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=None,
            now=asyncio.get_running_loop().time(), rng=random.Random(seed),
        )  # fmt: skip

    return make


def metered(rate: float, seed: int = 1, *, by_model: bool = False) -> Script:
    """Answers so many a second (of each model, if asked for), with a median latency of 80 ms, and refuses the rest."""
    rng = random.Random(seed)
    buckets: dict[str, TokenBucket] = {}

    def answer(row: Request, _nth: int, now: float) -> Reply:
        name = row.model if by_model else ""
        bucket = buckets.setdefault(name, TokenBucket(Schedule(((0.0, rate),)), 20))
        if bucket.take(now, 1) is not None:
            return limited(latency_s=0.02)
        return reply(latency_s=min(2.0, 0.08 * rng.lognormvariate(0.0, 0.4)))

    return answer


def asked_of(*models: str, rows: int) -> list[Request]:
    """Rows that name these models in turn."""
    return [request(n, model=models[n % len(models)]) for n in range(rows)]


def until(moment_s: float, before: Reply | Fault, after: Reply | Fault = GOOD) -> Script:
    return lambda _row, _nth, now: before if now < moment_s else after


def during(start_s: float, end_s: float, meanwhile: Reply | Fault, otherwise: Reply | Fault = GOOD) -> Script:
    return lambda _row, _nth, now: meanwhile if start_s <= now < end_s else otherwise


def always(answer: Reply | Fault) -> Script:
    return lambda _row, _nth, _now: answer


def steady(concurrency: int = 8) -> Callable[[Route], Steady]:
    return lambda _: Steady(concurrency=concurrency)


def accepted_per_s(stage: Stage, start_s: float, end_s: float) -> float:
    """Requests that left in the time and were answered, per second."""
    sent = sum(start_s <= call.at_s < end_s for each in stage.endpoints.values() for call in each.calls)
    return (sent - refusals(stage, start_s, end_s)) / (end_s - start_s)


def refusals(stage: Stage, start_s: float, end_s: float) -> int:
    """Attempts in the time that another attempt of the same row followed, here or elsewhere."""
    calls = sorted((call for each in stage.endpoints.values() for call in each.calls), key=lambda call: call.at_s)
    last = {call.n: call.at_s for call in calls}
    return sum(start_s <= call.at_s < end_s and last[call.n] != call.at_s for call in calls)


# --- at the sum of their speeds ----------------------------------------------------------------------------------------


def test_two_endpoints_are_used_at_the_sum_of_what_they_allow() -> None:
    """100 and 300 a second, told to nobody: at least 95 % of 400 once both are known."""
    stage = played(9000, metered(100, 1), elsewhere={"f": metered(300, 2)}, pace_of=learning())
    assert len(stage.books.answered) == 9000
    assert accepted_per_s(stage, 10, 20) >= 0.95 * 400


def test_models_with_limits_of_their_own_are_used_at_the_sum_of_them() -> None:
    """A pool of three models behind one endpoint, each allowed 80 a second."""
    stage = played(
        5000, metered(80, by_model=True), requests=asked_of("any", rows=5000), pools={"any": ("a", "b", "c")},
        pace_of=learning(),
    )  # fmt: skip
    assert len(stage.books.answered) == 5000
    assert accepted_per_s(stage, 8, 18) >= 0.95 * 240
    assert {outcome.model for outcome in stage.books.outcomes} == {"a", "b", "c"}


def test_weights_break_ties() -> None:
    """Two endpoints that are equally quick: three rows go to the one for each that goes to the other."""
    stage = played(2000, always(GOOD), elsewhere={"f": always(GOOD)}, weights={"e": 3.0}, pace_of=steady(1000))
    share = Counter(outcome.endpoint for outcome in stage.books.outcomes)
    assert 2.5 < share["e"] / share["f"] < 3.5


# --- when one fails --------------------------------------------------------------------------------------------------

FAILURES: Mapping[str, Reply | Fault] = {
    "refused connections": fault(reached=False, latency_s=0.001),
    "503": refused(503, latency_s=0.01),
    "stalls": fault("timeout", latency_s=5.0),
    "401": refused(401, latency_s=0.01),
    "402": refused(402, latency_s=0.01),
    "an untrusted certificate": fault("tls", latency_s=0.01),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_the_other_endpoint_carries_on_and_the_first_is_used_again(failure: Reply | Fault) -> None:
    """Down for 30 s of a run of 90: no row is burned, the other goes on at its own full speed, and both at the end."""
    stage = played(
        12_000, during(20, 50, failure), elsewhere={"f": always(GOOD)}, pace_of=steady(8), max_attempts=2,
    )  # fmt: skip
    assert stage.halt is None
    assert len(stage.books.answered) == 12_000
    alone, together = (
        [sum(start <= call.at_s < start + 20 for call in stage.endpoints[name].calls) for name in "ef"]
        for start in (28, 60)
    )
    assert alone[0] <= 30
    assert alone[1] >= 0.97 * 8 / 0.1 * 20
    assert together[0] >= 0.9 * 8 / 0.1 * 20 * min(1.0, together[1] / (8 / 0.1 * 20))


def test_rows_of_the_failing_endpoint_alone_stay_pending_and_the_run_says_why() -> None:
    """One model is served by nobody else: the rest is answered, then the run stops with the key's code."""
    stage = played(
        400, always(refused(401)), elsewhere={"f": always(GOOD)}, requests=asked_of("a", "b", rows=400),
        served={"e": {"a": "a"}, "f": {"b": "b"}}, pace_of=steady(4),
    )  # fmt: skip
    assert stage.halt is not None
    assert stage.halt.exit_code == 3
    assert len(stage.books.answered) == 200
    assert stage.tally.pending == 200


def test_with_no_endpoint_left_the_run_stops_with_its_code() -> None:
    """One key refused, then the other's credits spent: rows pending, code 4."""
    stage = played(
        400, until(1, GOOD, refused(401)), elsewhere={"f": until(2, GOOD, refused(402))}, pace_of=steady(4),
    )  # fmt: skip
    assert stage.halt is not None
    assert stage.halt.exit_code == 4
    assert not stage.books.failed


def test_both_endpoints_down_end_the_run_in_time() -> None:
    """However many rows are left: after --max-outage, with 5, and none is burned."""
    stage = played(
        5000, until(5, GOOD, refused(503)), elsewhere={"f": until(5, GOOD, fault(reached=False))}, pace_of=steady(8),
        max_outage_s=60.0,
    )  # fmt: skip
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert not stage.books.failed
    assert max(call.at_s for each in stage.endpoints.values() for call in each.calls) < 70


def test_a_row_that_was_to_probe_does_not_hold_up_the_end() -> None:
    """The one endpoint stays down: the last rows are all answered by the other, and the run ends well."""
    stage = played(2000, until(5, GOOD, refused(503)), elsewhere={"f": always(GOOD)}, pace_of=steady(4))
    assert stage.halt is None
    assert len(stage.books.answered) == 2000


def test_a_long_cooldown_of_one_sends_its_rows_to_the_other() -> None:
    """A 429 that asks for a minute: nobody waits it out who can go elsewhere."""
    stage = played(
        500, during(1, 61, limited(60)), elsewhere={"f": always(GOOD)}, pace_of=steady(4),
    )  # fmt: skip
    assert len(stage.books.answered) == 500
    assert max(call.at_s for each in stage.endpoints.values() for call in each.calls) < 12


# --- fallback ----------------------------------------------------------------------------------------------------------


def by_model(**scripts: Reply | Fault) -> Script:
    return lambda row, _nth, _now: scripts[row.body.split(b'"model":"')[1].split(b'"')[0].decode()]


def test_a_model_that_fails_for_good_is_stood_in_for() -> None:
    """500 from the one: every row is answered by its fallback, none is burned, and the tally tells where they went."""
    stage = played(
        300, by_model(m=refused(500), b=GOOD), models={"m": Model(fallback=("b",))}, pace_of=steady(8),
    )  # fmt: skip
    assert stage.halt is None
    assert len(stage.books.answered) == 300
    assert {outcome.model for outcome in stage.books.outcomes} == {"b"}
    assert len(stage.endpoint.calls) <= 300 * 1.2


def test_a_model_that_is_gone_costs_its_rows_no_attempt() -> None:
    """Of two attempts that a row has, the one that met a missing model of its pool does not count."""
    unlucky: list[int] = []
    failed: set[int] = set()

    def answer(row: Request, _nth: int, _now: float) -> Reply:
        if row.model == "gone":
            unlucky.append(row.n)
            return refused(404, "model_not_found")
        if row.n == unlucky[0] and not failed:
            failed.add(row.n)
            return refused(503)
        return GOOD

    stage = played(
        200, answer, requests=asked_of("any", rows=200), pools={"any": ("gone", "there")}, pace_of=steady(),
        max_attempts=2,
    )  # fmt: skip
    assert failed
    assert len(stage.books.answered) == 200


def test_a_model_that_is_gone_is_stood_in_for() -> None:
    """404 model_not_found is no fault of the row's, while another may answer it."""
    stage = played(
        50, by_model(m=refused(404, "model_not_found"), b=GOOD), models={"m": Model(fallback=("b",))}, pace_of=steady(),
    )  # fmt: skip
    assert len(stage.books.answered) == 50
    assert stage.tally.moved == {("m", "b"): 50}


def test_a_rows_own_error_does_not_travel() -> None:
    """A 400 is the row's, whoever else could be asked."""
    stage = played(
        5, by_model(m=refused(400, "bad_request"), b=GOOD), models={"m": Model(fallback=("b",))}, pace_of=steady(),
    )  # fmt: skip
    assert len(stage.books.failed) == 5
    assert len(stage.endpoint.calls) == 5


def test_a_row_too_long_for_its_model_goes_to_the_wider_one() -> None:
    """context_length_exceeded, with a `context_fallback`."""
    stage = played(
        5, by_model(m=refused(400, "context_length_exceeded"), w=GOOD),
        models={"m": Model(context_fallback="w", fallback=("b",))}, pace_of=steady(),
    )  # fmt: skip
    assert {outcome.model for outcome in stage.books.outcomes} == {"w"}
    assert len(stage.books.answered) == 5


def test_no_row_is_in_flight_twice_whatever_fails() -> None:
    """Three endpoints that fail at random in every way: each row ends once, and is never at two places at a time."""
    rng = random.Random(5)
    ways: list[Reply | Fault] = [
        GOOD,
        GOOD,
        GOOD,
        refused(500),
        refused(503),
        fault(),
        fault("timeout", latency_s=3.0),
        limited(0.5),
    ]
    flying: set[int] = set()

    def watched(row: Request, _nth: int, _now: float) -> Reply | Fault:
        assert row.n not in flying
        flying.add(row.n)
        answer = rng.choice(ways)
        asyncio.get_running_loop().call_later(answer.latency_s * 0.999, flying.discard, row.n)
        return answer

    stage = played(600, watched, elsewhere={"f": watched, "g": watched}, pace_of=steady(8), max_attempts=50)
    assert sorted(stage.books.answered) == list(range(600))
