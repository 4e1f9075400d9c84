"""The life of rows in virtual time, against a scripted endpoint: where each one ends, and what ends a run."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import scripted, virtual
from kit.scripted import Books, Script, Stage, Steady, chat, fault, limited, refused, reply, request, used

from batchrouter.errors import UsageError
from batchrouter.pace import Pace
from batchrouter.records import Fault, Halt, Reply, Request, Usage

GOOD = reply()
BAD = refused(400, "bad_request")
STOPPED = Halt(130, "stopped by Ctrl-C")


def played(rows: int, script: Script, during: Callable[[Stage], Any] | None = None, **fields: Any) -> Stage:
    """The stage after its run; `during` is a coroutine function that goes on beside it."""

    async def play() -> Stage:
        if "concurrency" in fields:
            fields["pace"] = Steady(concurrency=fields.pop("concurrency"))
        stage = Stage(rows, script, **fields)
        if during is None:
            return await stage.run()
        aside = asyncio.create_task(during(stage))
        try:
            return await stage.run()
        finally:
            aside.cancel()

    return virtual.run(play())


def always(answer: Reply | Fault) -> Script:
    return lambda _row, _nth, _now: answer


def first_then(*answers: Reply | Fault) -> Script:
    """For each row: these answers in order, the last one for ever."""
    return lambda _row, nth, _now: answers[min(nth, len(answers)) - 1]


def until(moment_s: float, before: Reply | Fault, after: Reply | Fault = GOOD) -> Script:
    return lambda _row, _nth, now: before if now < moment_s else after


# --- where rows end ----------------------------------------------------------------------------------------------


def test_every_row_is_answered_once_in_one_attempt() -> None:
    """2,500 rows at 64 at once, 100 ms each: one attempt a row, never more than 64 in flight, no time lost."""
    began = time.perf_counter()
    stage = played(2500, always(GOOD), concurrency=64)
    assert stage.halt is None
    assert sorted(stage.books.answered) == list(range(2500))
    assert len(stage.endpoint.calls) == 2500
    assert stage.endpoint.most_in_flight == 64
    assert stage.endpoint.calls[-1].at_s < 2500 / 64 * 0.1 + 0.2
    assert time.perf_counter() - began < 5, "virtual time has become real"


def test_no_rows_are_an_end() -> None:
    """An empty input ends at once, without a request."""
    stage = played(0, always(GOOD))
    assert stage.halt is None
    assert stage.endpoint.calls == []


def test_fresh_rows_are_asked_in_input_order() -> None:
    """With one at a time the endpoint sees the rows in the order of the input."""
    stage = played(20, always(GOOD), concurrency=1)
    assert [call.n for call in stage.endpoint.calls] == list(range(20))


KINDS: list[Reply | Fault] = [
    GOOD,
    reply(body=chat("", "length")),
    reply(body={"choices": []}),
    reply(body={"error": {"code": 503, "message": "inner"}}),
    reply(body={"error": {"code": 429}}),
    BAD,
    refused(404),
    refused(422, "odd"),
    refused(500),
    refused(503, None, {"retry-after": "2"}),
    refused(500, None, {"x-should-retry": "false"}),
    refused(400, None, {"x-should-retry": "true"}),
    refused(204),
    limited(),
    limited(3),
    fault("connection"),
    fault("connection", reached=False),
    fault("timeout", latency_s=5),
    fault("bad_response"),
    fault("redirect"),
]


@settings(max_examples=120)
@given(
    st.lists(st.lists(st.sampled_from(KINDS), max_size=12), min_size=1, max_size=40),
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_whatever_the_endpoint_does_every_row_ends_in_one_place(
    plays: list[list[Reply | Fault]], concurrency: int, max_attempts: int, seed: int
) -> None:
    """Random answers for each row, good ones after them: the run ends by itself, no row twice, none lost (the stage
    checks that), and rows are pending only where the run says why it stopped.
    """

    def script(row: Request, nth: int, _now: float) -> Reply | Fault:
        answers = plays[row.n]
        return answers[nth - 1] if nth <= len(answers) else GOOD

    stage = played(len(plays), script, concurrency=concurrency, max_attempts=max_attempts, seed=seed)
    if stage.halt is None:
        assert sorted(stage.books.answered + stage.books.failed) == list(range(len(plays)))
    else:
        assert stage.halt.exit_code == 5
        assert len(plays) >= 20  # the canary: nothing else here can stop a run
    for ended in stage.books.outcomes:
        assert ended.attempts == Counter(call.n for call in stage.endpoint.calls)[ended.request.n]


def test_an_outcome_says_how_its_row_ended() -> None:
    """Answers, failures by the row's own error, and what ran out of attempts, each in the shape CONTRACT 4 gives."""
    script: dict[int, list[Reply | Fault]] = {
        0: [refused(503), GOOD],
        1: [BAD],
        2: [refused(503)],
        3: [fault("timeout")],
        4: [fault("redirect")],
        5: [reply(body={"choices": []})],
        6: [reply(body=chat("", "length"))],
        7: [reply(body={"error": {"code": 400, "message": "inside"}})],
        8: [GOOD],
        9: [GOOD],
    }
    stage = played(
        10, lambda row, nth, _now: script[row.n][min(nth, len(script[row.n])) - 1], max_attempts=2, concurrency=1
    )
    ends = {ended.request.n: ended for ended in stage.books.outcomes}
    assert [ends[n].attempts for n in range(10)] == [2, 1, 2, 2, 1, 2, 1, 1, 1, 1]
    assert [ends[n].answered for n in range(10)] == [n in {0, 6, 8, 9} for n in range(10)]
    assert [ends[n].truncated for n in range(10)] == [n == 6 for n in range(10)]
    codes = [None if ends[n].error is None else ends[n].error[0] for n in range(10)]  # type: ignore[index]
    assert codes == [None, None, "attempts_exhausted", "timeout", "redirect", "bad_response", None, None, None, None]
    statuses = [None if (kept := ends[n].reply) is None else kept.status for n in range(10)]
    assert statuses == [200, 400, 503, None, None, None, 200, 400, 200, 200]
    assert stage.tally.truncated == 1
    assert {ended.model for ended in stage.books.outcomes} == {"m"}


def test_usage_is_that_of_all_attempts() -> None:
    """A failed attempt that reported tokens was paid for: the row's usage is the sum, and the tally's is the rows'."""
    paid = reply(body={"choices": [], "usage": used(3, 0)})
    stage = played(2, first_then(paid, reply(body=chat(usage=used(4, 6)))))
    assert [ended.usage for ended in stage.books.outcomes] == [Usage(7, 6, 13)] * 2
    assert stage.tally.usage == Usage(14, 12, 26)
    assert stage.tally.unknown_usage == 0
    assert played(2, always(GOOD)).tally.unknown_usage == 2


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": []}},
        {"error": {"type": {}}},
        {"error": {"code": {"a": 1}}},
        {"error": [1]},
        {"error": "text"},
        {"error": {"message": ["x"]}},
        {"error": {"message": 7, "code": 1e300}},
        {"detail": [{"msg": None}]},
        {"detail": {}},
        {"message": "\ud83d\x1b[31m\x00"},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", [200, 400, 402, 429, 500])
def test_no_error_body_can_break_the_run(status: int, body: dict[str, Any]) -> None:
    """Whatever stands where an error's fields should be: the row ends, the run goes on, the other rows are answered."""

    def script(row: Request, nth: int, _now: float) -> Reply:
        return reply(status, body) if row.n == 1 and nth <= 3 else GOOD

    stage = played(3, script, max_attempts=2)
    assert {0, 2} <= set(stage.books.answered) or stage.halt is not None
    assert stage.halt is None or status == 402


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"data": [], "choices": None}),
        ("/embeddings", {"data": [], "choices": [7]}),
        ("/responses", {"output": [], "choices": 7}),
        ("/completions", {"choices": [{"text": "", "finish_reason": "length", "message": None}]}),
        ("/completions", {"choices": [{"text": "", "finish_reason": "length", "message": "x"}]}),
        ("/chat/completions", {"choices": [{"message": {"content": 7}, "finish_reason": []}]}),
    ],
)
def test_no_answer_body_can_break_the_run(path: str, body: dict[str, Any]) -> None:
    """A 200 with fields of an odd shape beside what is needed is an answer like any other."""
    stage = played(1, always(reply(body=body)), requests=[request(path=path)])
    assert stage.books.answered == [0]


def test_an_error_that_is_nested_very_deeply_is_an_error() -> None:
    """As deep as a body can be read, no message made of it breaks the run."""
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    stage = played(1, always(reply(400, {"message": deep})))
    assert stage.books.failed == [0]


# --- retries -----------------------------------------------------------------------------------------------------


def test_a_row_that_waits_for_its_retry_holds_no_worker() -> None:
    """One worker, one row told to come back in 60 s: the 100 others are answered meanwhile, and it comes in time."""
    slow = refused(503, None, {"retry-after": "60"})
    stage = played(101, lambda row, nth, _now: slow if row.n == 0 and nth == 1 else GOOD, concurrency=1)
    again = next(call for call in stage.endpoint.calls if call.n == 0 and call.nth == 2)
    assert 60.1 <= again.at_s <= 67
    assert stage.books.answered[-1] == 0
    assert len(stage.calls_between(0, 11)) == 101


def test_a_retry_never_comes_before_it_was_asked_for() -> None:
    """For 200 rows with a Retry-After of 5 s each on a 503: every second attempt is 5 s or more after the first's end,
    and they do not all come in the same moment.
    """
    stage = played(
        200,
        lambda row, nth, _now: refused(503, None, {"retry-after": "5"}) if nth == 1 and row.n % 10 == 3 else GOOD,
        concurrency=8,
    )
    starts = {(call.n, call.nth): call.at_s for call in stage.endpoint.calls}
    gaps = [starts[n, 2] - starts[n, 1] - scripted.LATENCY_S for n in range(200) if (n, 2) in starts]
    assert len(gaps) == 20
    assert min(gaps) >= 5
    assert len({round(gap, 3) for gap in gaps}) > 10


@pytest.mark.parametrize("at_once", [1, 16, 128])
def test_retries_stay_below_a_tenth_while_fresh_rows_are_left(at_once: int) -> None:
    """Three of ten requests fail: of what is sent up to the last fresh row, retries are a tenth, and ten more at most;
    the others come after it, and every row is answered.
    """
    rng = random.Random(5)

    def script(_row: Request, nth: int, _now: float) -> Reply:
        return refused(500) if nth < 5 and rng.random() < 0.3 else GOOD

    stage = played(2000, script, concurrency=at_once)
    assert stage.halt is None
    assert len(stage.books.answered) == 2000
    calls = stage.endpoint.calls
    last_fresh = max(place for place, call in enumerate(calls) if call.nth == 1)
    retries = sum(call.nth > 1 for call in calls[:last_fresh])
    assert 150 < retries <= 0.1 * 2000 + 10
    assert len(calls) - 2000 > 700
    assert [event for event, _ in stage.notes if event == "circuit_open"] == []


def test_attempts_are_bounded() -> None:
    """A row that the endpoint always fails among good ones is given up after exactly --max-attempts."""
    for most in (1, 2, 5):
        stage = played(60, lambda row, _nth, _now: refused(500) if row.n == 30 else GOOD, max_attempts=most)
        assert stage.books.failed == [30]
        assert stage.halt is None
        assert Counter(call.n for call in stage.endpoint.calls)[30] == most


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_storm_of_429_uses_up_no_attempts_and_pauses_everybody_once() -> None:
    """32 at once all refused with a Retry-After of 7 s: nobody is sent for 7 s, then all are answered, at one
    attempt allowed.
    """
    stage = played(100, until(0.5, limited(7), GOOD), concurrency=32, max_attempts=1)
    assert stage.halt is None
    assert len(stage.books.answered) == 100
    assert stage.tally.limited == 32
    assert stage.calls_between(0.05, 7.1) == []
    assert len(stage.calls_between(7.1, 7.3)) >= 32


def test_429s_before_and_between_failures_count_for_nothing() -> None:
    """With two attempts allowed a row may meet any number of 429s and still fail once."""
    stage = played(5, first_then(limited(), limited(1), refused(503), limited(), GOOD), max_attempts=2)
    assert stage.books.failed == []
    assert stage.tally.limited == 15


def test_a_429_pauses_those_who_were_about_to_leave() -> None:
    """Rows queue at 100 a second; after a 429 comes in with 3 s to wait, not one leaves before the 3 s are over."""

    async def play() -> Stage:
        stage = Stage(
            500,
            lambda _row, _nth, now: limited(3) if 1 <= now < 1.005 else GOOD,
            pace=Steady(concurrency=64, requests_per_s=100),
        )
        return await stage.run()

    stage = virtual.run(play())
    hit = min(call.at_s for call in stage.endpoint.calls if call.at_s >= 1) + scripted.LATENCY_S
    assert stage.calls_between(hit + 0.0001, hit + 3) == []
    assert stage.tally.limited >= 1
    assert len(stage.books.answered) == 500


def test_cooldowns_are_told_once() -> None:
    """64 rows refused within a tenth of a second by one limit are one cooldown in the events, not 64."""

    def script(row: Request, nth: int, _now: float) -> Reply:
        return limited(7, latency_s=0.1 + row.n / 1000) if nth == 1 else GOOD

    stage = played(64, script, concurrency=64)
    assert [event for event, _ in stage.notes].count("cooldown") == 1


def test_nothing_but_429_for_max_wait_stops_with_5() -> None:
    """An endpoint that refuses all with 429 is left after --max-wait, every row pending, none blamed."""
    stage = played(50, always(limited(20)), max_wait_s=100)
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert stage.books.outcomes == []
    assert 100 <= stage.endpoint.calls[-1].at_s <= 130


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_retry_after_of_years_is_waited_only_so_long_then_one_probe_goes(at_once: int) -> None:
    """A Retry-After of 31 years: --max-wait is waited out once, then one request alone is sent; its answer lets all
    others go.
    """
    stage = played(
        40, lambda _row, _nth, now: limited(1e9) if now < 1 else reply(latency_s=2), concurrency=at_once, max_wait_s=60
    )
    assert stage.halt is None
    assert len(stage.books.answered) == 40
    assert len(stage.calls_between(0, 60)) == at_once
    assert len(stage.calls_between(60, 62)) == 1
    assert len(stage.calls_between(62, 63)) == at_once


def test_no_pace_is_learned_from_a_retry_after_of_years() -> None:
    """Half a second of them, 0.8 s waited at most: the pace that is learned is one of seconds, and few are refused."""
    learning = Pace(
        requests_per_s=None, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=None,
        now=virtual.STARTED_AT_S, rng=random.Random(1),
    )  # fmt: skip
    stage = played(60, until(0.5, limited(1e11, latency_s=0.01)), pace_of=lambda _: learning, max_wait_s=0.8)
    assert stage.halt is None
    assert len(stage.books.answered) == 60
    assert stage.endpoint.calls[-1].at_s < 60
    assert len(stage.endpoint.calls) <= 100


@pytest.mark.parametrize("at_once", [1, 8])
def test_another_429_after_that_probe_stops_with_5(at_once: int) -> None:
    """When the probe after --max-wait gets a 429 as well, the run stops with 5, and every row is pending."""
    stage = played(40, always(limited(1e9)), concurrency=at_once, max_wait_s=60)
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert len(stage.endpoint.calls) == at_once + 1
    assert stage.books.outcomes == []


# --- key and credits ---------------------------------------------------------------------------------------------


def test_a_refused_key_stops_on_the_first_with_3() -> None:
    """401: no more than what was in flight is sent, nothing is recorded, exit 3."""
    stage = played(500, always(refused(401, "invalid_api_key")), concurrency=16)
    assert stage.halt is not None
    assert stage.halt.exit_code == 3
    assert len(stage.endpoint.calls) == 16
    assert stage.tally.pending == 500


def test_a_key_that_is_revoked_in_the_middle_keeps_what_was_answered() -> None:
    """A 401 after 1 s: answers that were in flight are recorded, everything else is pending, exit 3."""

    def script(row: Request, _nth: int, now: float) -> Reply:
        return refused(401) if now >= 1 and row.n % 2 else reply(latency_s=0.3)

    stage = played(500, script, concurrency=16)
    assert stage.halt is not None
    assert stage.halt.exit_code == 3
    assert stage.books.failed == []
    good = [call for call in stage.endpoint.calls if call.at_s < 1 or not call.n % 2]
    assert len(stage.books.answered) == len(good)


CREDITS = {
    "402": refused(402),
    "402, come back in a day": refused(402, None, {"retry-after": "86400"}),
    "402, come back in 61 s": refused(402, None, {"retry-after": "61"}),
    "429 insufficient_quota": refused(429, "insufficient_quota", {"retry-after": "1"}),
    "429, by type": refused(429, None, type="insufficient_quota"),
    "400 insufficient_quota": refused(400, "insufficient_quota"),
    "403 insufficient_quota": refused(403, "insufficient_quota"),
    "503 insufficient_quota": refused(503, "insufficient_quota", {"retry-after": "1"}),
    "402 inside a 200": reply(body={"error": {"code": 402, "message": "no credits"}}),
    "insufficient_quota inside a 200": reply(body={"error": {"code": "insufficient_quota"}}),
}


@pytest.mark.parametrize("answer", CREDITS.values(), ids=CREDITS.keys())
def test_spent_credits_stop_with_4_and_blame_no_row(answer: Reply) -> None:
    """However it is told, at the first of it admission ends; the rows are pending."""
    stage = played(100, lambda row, _nth, _now: answer if row.n >= 30 else GOOD, concurrency=4)
    assert stage.halt is not None
    assert stage.halt.exit_code == 4
    assert stage.books.failed == []
    assert len(stage.endpoint.calls) <= 30 + 4 + 3
    assert stage.tally.pending == 100 - len(stage.books.answered)


def test_a_402_with_a_short_retry_after_is_waited_out_by_all() -> None:
    """402 with 30 s to wait: nobody is sent for 30 s, then the run goes on; no attempt is used up."""
    stage = played(60, until(0.5, refused(402, None, {"retry-after": "30"})), concurrency=4, max_attempts=1)
    assert stage.halt is None
    assert len(stage.books.answered) == 60
    assert stage.calls_between(0.05, 30.1) == []


@pytest.mark.parametrize("at_once", [1, 4])
def test_such_a_402_is_waited_out_three_times_at_most(at_once: int) -> None:
    """Three waits of 10 s, and at the fourth 402 in a row the run stops with 4."""
    stage = played(60, always(refused(402, None, {"retry-after": "10"})), concurrency=at_once)
    assert stage.halt is not None
    assert stage.halt.exit_code == 4
    rounds = sorted({int(call.at_s // 10) for call in stage.endpoint.calls})
    assert rounds == [0, 1, 2, 3]
    assert stage.tally.pending == 60


def test_402_that_come_between_answers_are_not_in_a_row() -> None:
    """One row meets four short 402s, and other rows are answered between any two of them: the run goes on."""

    def script(row: Request, nth: int, _now: float) -> Reply:
        return refused(402, None, {"retry-after": "1"}) if row.n == 0 and nth <= 4 else GOOD

    stage = played(400, script, concurrency=4)
    assert stage.halt is None
    assert len(stage.books.answered) == 400


@pytest.mark.parametrize("answer", CREDITS.values(), ids=CREDITS.keys())
@pytest.mark.parametrize("at_once", [1, 16])
def test_who_waits_for_credits_probes_with_one_row_and_goes_on(answer: Reply, at_once: int) -> None:
    """Spent from 1 s to 300 s: at first what is in flight is sent in vain, then one row at a time, ever slower; after the
    top-up all go on, and no row has failed, with one attempt allowed.
    """
    stage = played(
        400,
        lambda _row, _nth, now: answer if 1 <= now < 300 else GOOD,
        concurrency=at_once,
        credit_patience_s=3600,
        max_attempts=1,
    )
    assert stage.halt is None
    assert sorted(stage.books.answered) == list(range(400))
    assert len(stage.calls_between(1, 1.2)) <= 2 * at_once
    probes = [call.at_s for call in stage.calls_between(1.2, 300)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(probes)]
    assert 5 <= len(probes) <= 8
    assert gaps == sorted(gaps)
    assert "credits" in [event for event, _ in stage.notes]


@pytest.mark.parametrize("patience_s", [0.5, 60.0, 900.0])
def test_who_waited_for_credits_long_enough_stops_with_4(patience_s: float) -> None:
    """A last probe at the end of the time allowed, then 4, with all rows pending."""
    ends = []

    async def play() -> Stage:
        stage = Stage(100, always(refused(402)), credit_patience_s=patience_s)
        await stage.run()
        ends.append(virtual.elapsed_s())
        return stage

    stage = virtual.run(play())
    assert stage.halt is not None
    assert stage.halt.exit_code == 4
    assert stage.books.outcomes == []
    assert patience_s <= ends[0] < patience_s + 1


# --- answers that come together ------------------------------------------------------------------------------------


def test_answers_that_come_together_do_not_hold_up_the_loop() -> None:
    """Sixty-four at the same moment: never more than eight are worked off before others have their turn."""

    async def play() -> list[int]:
        stage = Stage(64, always(reply(latency_s=0.1)), pace=Steady(concurrency=64))
        running = asyncio.create_task(stage.run())
        await asyncio.sleep(0.0999)
        booked = [0]
        while not running.done():
            await asyncio.sleep(0)
            booked.append(len(stage.books.outcomes))
        return booked

    booked = virtual.run(play())
    assert booked[-1] == 64
    assert max(later - sooner for sooner, later in itertools.pairwise(booked)) == 8


# --- an endpoint that is down ------------------------------------------------------------------------------------

OUTAGES: dict[str, Reply | Fault] = {
    "500": refused(500),
    "503 with a page": reply(503, {"error": {"message": "<html>", "type": "non_json_body"}}),
    "529": refused(529),
    "reset": fault("connection"),
    "refused connections": fault("connection", reached=False, latency_s=0.001),
    "timeouts": fault("timeout", latency_s=3),
    "200 without choices": reply(body={"choices": []}),
    "502 inside a 200": reply(body={"error": {"code": 502}}),
}


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
@pytest.mark.parametrize("answer", OUTAGES.values(), ids=OUTAGES.keys())
def test_an_outage_burns_no_row(answer: Reply | Fault, max_attempts: int, at_once: int) -> None:
    """Down from 2 s to 120 s in the middle of a run: in the end every row is answered, and during the outage only probes
    are sent, at growing intervals.
    """
    stage = played(
        300,
        lambda _row, _nth, now: answer if 2 <= now < 120 else GOOD,
        max_attempts=max_attempts,
        concurrency=at_once,
    )
    assert stage.halt is None
    assert sorted(stage.books.answered) == list(range(300))
    assert all(lane.failed == 0 for lane in stage.lanes_made.all)
    assert [event for event, _ in stage.notes].count("circuit_open") == 1
    assert [event for event, _ in stage.notes].count("circuit_closed") == 1
    probes = stage.calls_between(20, 120)
    assert 10 < len(probes) < 50
    assert len(stage.calls_between(120, 126)) >= 1


@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("max_attempts", [1, 5])
def test_refused_connections_never_burn_a_row(rows: int, max_attempts: int) -> None:
    """Without a connection no row can be to blame: not with one row, not with one attempt, not from the start."""
    refusing = fault("connection", reached=False, latency_s=0.001)
    stage = played(rows, until(60, refusing), max_attempts=max_attempts)
    assert stage.halt is None
    assert len(stage.books.answered) == rows


@pytest.mark.parametrize("latency_s", [0.01, 0.5])
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_the_last_answers_before_an_outage_burn_no_row(max_attempts: int, latency_s: float) -> None:
    """Slow answers, sent before the outage, come in while others fail at once in it: those are not to blame, nor is the
    input asked in vain meanwhile.
    """

    def script(row: Request, _nth: int, now: float) -> Reply:
        return refused(503, latency_s=latency_s) if 2 <= now < 62 else reply(latency_s=0.2 + row.n % 7)

    stage = played(300, script, max_attempts=max_attempts, concurrency=64)
    assert stage.halt is None
    assert sorted(stage.books.answered) == list(range(300))
    assert len(stage.calls_between(2, 62)) <= 64


LEARNING: dict[str, Reply | Fault] = {
    "refused": fault("connection", reached=False, latency_s=0.001),
    "503": refused(503, latency_s=0.001),
    "reset": fault("connection", latency_s=0.001),
}


@pytest.mark.parametrize("latency_s", [1.0, 3.0])
@pytest.mark.parametrize("answer", LEARNING.values(), ids=LEARNING)
def test_a_minute_of_outage_costs_few_requests_and_its_end_is_seen(answer: Reply | Fault, latency_s: float) -> None:
    """The pace is learned, so that many are in flight; at most 30 are sent during the minute, and within 5 s of its end
    the run goes on.
    """
    learning = Pace(
        requests_per_s=None, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=None,
        now=virtual.STARTED_AT_S, rng=random.Random(1),
    )  # fmt: skip
    stage = played(
        3000,
        lambda row, _nth, now: answer if 3 <= now < 63 else reply(latency_s=latency_s * (0.5 + row.n * 0.3719 % 1)),
        pace_of=lambda _: learning,
    )
    assert stage.halt is None
    assert len(stage.books.answered) == 3000
    assert len(stage.calls_between(3, 63)) <= 30
    assert len(stage.calls_between(63, 68)) >= 1
    assert len(stage.calls_between(63, 69 + 1.5 * latency_s)) >= 10


SILENCE: Fault = fault("timeout", latency_s=120.0)  # and nothing before that


@pytest.mark.parametrize("max_attempts", [1, 5])
@pytest.mark.parametrize("latency_s", [0.1, 1.0])
def test_requests_that_are_taken_and_never_answered_are_an_outage(max_attempts: int, latency_s: float) -> None:
    """For a minute nothing comes back, and what was sent in it never does: only what was under way and probes are sent,
    the run goes on within 5 s of its end, though all who were out still wait, and no row has failed by it.
    """
    stage = played(
        2000,
        lambda row, _nth, now: SILENCE if 3 <= now < 63 else reply(latency_s=latency_s * (0.5 + row.n * 0.3719 % 1)),
        concurrency=12,
        max_attempts=max_attempts,
    )
    assert stage.halt is None
    assert len(stage.books.answered) == 2000
    assert len(stage.calls_between(3, 63)) <= 30
    assert len(stage.calls_between(63, 70)) >= 2
    assert [event for event, _ in stage.notes].count("circuit_open") == 1


def test_rows_that_take_longer_than_all_before_are_no_outage() -> None:
    """Answers of a tenth of a second, then of a minute: for a while nothing but probes is sent, then all goes on, and
    none is asked twice.
    """
    stage = played(80, lambda row, _nth, _now: reply(latency_s=0.1 if row.n < 20 else 60.0), max_outage_s=30)
    assert stage.halt is None
    assert len(stage.books.answered) == len(stage.endpoint.calls) == 80


def test_a_silence_that_lasts_ends_the_run() -> None:
    """Nothing ever comes back again: 5, once --max-outage has passed and what was sent has timed out."""
    stage = played(100, lambda _row, _nth, now: SILENCE if now >= 1 else GOOD, max_outage_s=300)
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert stage.books.failed == []
    assert 280 <= stage.endpoint.calls[-1].at_s <= 310


def test_refused_connections_for_10_s_use_up_no_attempts() -> None:
    """Every other connection is refused for 10 s while others go through: the rows are answered all the same."""
    refusing = fault("connection", reached=False, latency_s=0.001)
    stage = played(
        400, lambda row, _nth, now: refusing if row.n % 2 and now < 10 else GOOD, max_attempts=1, concurrency=4
    )
    assert stage.halt is None
    assert len(stage.books.answered) == 400


@pytest.mark.parametrize("max_attempts", [1, 5])
@pytest.mark.parametrize("answer", OUTAGES.values(), ids=OUTAGES.keys())
def test_an_outage_longer_than_max_outage_stops_with_5(answer: Reply | Fault, max_attempts: int) -> None:
    """Down for good: the run stops --max-outage after the circuit opened, with every row pending."""
    stage = played(100, always(answer), max_attempts=max_attempts, max_outage_s=300)
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert stage.books.outcomes == []
    assert 295 <= stage.endpoint.calls[-1].at_s <= 325


def test_max_outage_counts_from_the_last_time_it_opened() -> None:
    """Two outages of 200 s with a good second between them are no outage of 300 s."""
    stage = played(
        400,
        lambda _row, _nth, now: refused(503) if 2 <= now < 202 or 207 <= now < 400 else GOOD,
        max_outage_s=300,
        concurrency=4,
    )
    assert stage.halt is None
    assert len(stage.books.answered) == 400


def test_one_bad_row_opens_nothing() -> None:
    """A row to which the server always answers 500 fails alone, with many attempts allowed, also when few others run
    beside it.
    """
    stage = played(40, lambda row, _nth, _now: refused(500) if row.n == 0 else GOOD, max_attempts=30, concurrency=2)
    assert stage.books.failed == [0]
    assert [event for event, _ in stage.notes if event.startswith("circuit")] == []


def test_attempts_from_before_the_circuit_opened_are_excused() -> None:
    """Rows with four of five attempts gone when the outage is recognised have five again after it."""

    def script(row: Request, nth: int, now: float) -> Reply:
        if row.n < 2 and nth <= 4:
            return refused(500, latency_s=0.01)
        return refused(503) if 4 <= now < 60 else GOOD

    stage = played(200, script, max_attempts=5, concurrency=2)
    assert stage.halt is None
    assert sorted(stage.books.answered) == list(range(200))


def test_rows_that_wait_when_it_opens_are_excused_as_well() -> None:
    """Two attempts allowed, the first gone in an outage: after it every second row fails once more, and none for
    good.
    """
    again: set[int] = set()

    def script(row: Request, _nth: int, now: float) -> Reply:
        if now < 20:
            return refused(503)
        if row.n % 2 and row.n not in again:
            again.add(row.n)
            return refused(503)
        return GOOD

    stage = played(12, script, max_attempts=2, concurrency=12)
    assert len(again) == 6
    assert stage.books.failed == []


def test_a_certificate_that_is_not_trusted_stops_at_once_with_5() -> None:
    """TLS: at the first of it, with the reason told, every row pending."""
    stage = played(50, always(fault("tls", reached=False)), concurrency=4)
    assert stage.halt is not None
    assert stage.halt.exit_code == 5
    assert "tls" in stage.halt.reason
    assert len(stage.endpoint.calls) == 4
    assert stage.books.outcomes == []


# --- the canary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        (refused(400, "model_not_found"), 5),
        (refused(404), 5),
        (refused(403, "model_not_allowed"), 3),
        (refused(422), 5),
        (reply(body={"error": {"code": 400}}), 5),
        (fault("redirect"), 5),
        (refused(500, None, {"x-should-retry": "false"}), 5),
    ],
)
@pytest.mark.parametrize("at_once", [1, 8, 64])
def test_the_same_error_on_the_first_20_rows_stops_the_run(answer: Reply | Fault, exit_code: int, at_once: int) -> None:
    """20 rows fail alike before any is answered: stop with 5 (403: 3), all of them pending again."""
    stage = played(200, always(answer), concurrency=at_once)
    assert stage.halt is not None
    assert stage.halt.exit_code == exit_code
    assert stage.books.outcomes == []
    assert stage.tally.pending == 200
    assert len(stage.endpoint.calls) < 20 + at_once + 1


def test_the_canary_judges_nothing_below_20_rows() -> None:
    """19 rows that all fail alike are 19 failed rows; with 20 it is the run's failure."""
    few = played(19, always(BAD))
    assert few.halt is None
    assert len(few.books.failed) == 19
    many = played(20, always(BAD))
    assert many.halt is not None
    assert many.books.outcomes == []


@pytest.mark.parametrize("turn", [0, 5, 18, 19])
def test_one_answer_disarms_the_canary(turn: int) -> None:
    """One answer among the first 20 ends: the failures are the rows' own, and all are recorded."""
    stage = played(100, lambda row, _nth, _now: GOOD if row.n == turn else BAD, concurrency=1)
    assert stage.halt is None
    assert len(stage.books.failed) == 99


@pytest.mark.parametrize("turn", [0, 5, 19])
@pytest.mark.parametrize("other", [refused(404, "bad_request"), refused(400, "another"), fault("redirect")])
def test_another_failure_disarms_the_canary(other: Reply | Fault, turn: int) -> None:
    """Alike is the same status and the same code; one that differs shows that the rows differ."""
    stage = played(100, lambda row, _nth, _now: other if row.n == turn else BAD, concurrency=1)
    assert stage.halt is None
    assert len(stage.books.failed) == 100


def test_nothing_is_recorded_while_the_canary_waits() -> None:
    """Held failures are in no file: a stop at 10 of them leaves all rows pending."""

    async def stop_soon(stage: Stage) -> None:
        await asyncio.sleep(1.05)
        assert stage.books.outcomes == []
        stage.runner.stop(STOPPED)

    stage = played(100, always(BAD), stop_soon, concurrency=1)
    assert stage.halt is STOPPED
    assert len(stage.endpoint.calls) == 11
    assert stage.books.outcomes == []
    assert stage.tally.pending == 100


# --- ends from outside -------------------------------------------------------------------------------------------


def test_stop_lets_what_is_in_flight_finish() -> None:
    """After `stop` nothing is sent; the answers in flight are recorded; the reason given is the run's end."""

    async def stop_soon(stage: Stage) -> None:
        await asyncio.sleep(1.05)
        stage.runner.stop(STOPPED)
        stage.runner.stop(Halt(143, "later"))

    stage = played(500, always(reply(latency_s=2)), stop_soon, concurrency=8)
    assert stage.halt is STOPPED
    assert len(stage.endpoint.calls) == len(stage.books.answered) == 8
    assert stage.tally.pending == 492


def test_stop_ends_those_who_wait() -> None:
    """Rows in a pause, waiting for a retry, or queued at the door keep no run alive: it ends at once."""

    async def stop_soon(stage: Stage) -> None:
        await asyncio.sleep(5)
        stage.runner.stop(STOPPED)
        at = virtual.elapsed_s()
        await asyncio.sleep(0.001)
        assert virtual.elapsed_s() - at < 1

    for answer in (limited(600), refused(503, None, {"retry-after": "600"})):
        stage = played(10, always(answer), stop_soon, grace_s=30)
        assert stage.halt is STOPPED
        assert stage.books.outcomes == []


def test_what_outlasts_the_grace_is_ended_and_pending() -> None:
    """Requests that take longer than --grace are cut off when it is over."""
    ends = []

    async def play() -> Stage:
        stage = Stage(50, always(reply(latency_s=500)), grace_s=10)
        asyncio.get_running_loop().call_later(1, stage.runner.stop, STOPPED)
        await stage.run()
        ends.append(virtual.elapsed_s())
        return stage

    stage = virtual.run(play())
    assert stage.halt is STOPPED
    assert stage.books.outcomes == []
    assert 10.9 < ends[0] < 11.1


def test_abort_ends_at_once() -> None:
    """`abort` after `stop`: nothing is waited for, what had arrived is recorded, the rest is pending."""
    ends = []

    async def play() -> Stage:
        stage = Stage(50, lambda row, _nth, _now: reply(latency_s=500 if row.n % 2 else 0.5))
        asyncio.get_running_loop().call_later(1.25, stage.runner.stop, STOPPED)
        asyncio.get_running_loop().call_later(1.3, stage.runner.abort)
        await stage.run()
        ends.append(virtual.elapsed_s())
        return stage

    stage = virtual.run(play())
    assert stage.halt is STOPPED
    assert stage.books.failed == []
    assert len(stage.books.answered) > 4
    assert ends[0] < 1.31


def test_abort_alone_is_not_taken_for_the_end_of_the_rows() -> None:
    """A run that was only aborted says so: null would mean that every row has come to its end (exit 0)."""

    async def play() -> Stage:
        stage = Stage(50, always(reply(latency_s=500)))
        asyncio.get_running_loop().call_later(1, stage.runner.abort)
        return await stage.run()

    assert virtual.run(play()).halt is not None


def test_what_has_arrived_when_all_is_ended_is_recorded() -> None:
    """Eight answers come at the very moment of a second Ctrl-C, and nobody has looked at them yet: they are paid for."""

    async def play() -> Stage:
        def script(row: Request, _nth: int, _now: float) -> Reply:
            if row.n == 0:
                asyncio.get_running_loop().call_later(scripted.LATENCY_S, stage.runner.abort)
            return reply()

        stage = Stage(50, script)
        return await stage.run()

    stage = virtual.run(play())
    assert len(stage.endpoint.calls) == len(stage.books.outcomes) == 8


def test_stop_before_the_start_sends_nothing() -> None:
    """A Ctrl-C that came during the plan: the run ends before its first request."""

    async def play() -> Stage:
        stage = Stage(50, always(GOOD))
        stage.runner.stop(STOPPED)
        return await stage.run()

    stage = virtual.run(play())
    assert stage.halt is STOPPED
    assert stage.endpoint.calls == []


@settings(max_examples=60)
@given(
    st.floats(0, 3, allow_nan=False),
    st.floats(0, 1, allow_nan=False),
    st.integers(1, 16),
    st.sampled_from([GOOD, BAD, refused(503), limited(2), fault("timeout")]),
)
def test_a_stop_at_any_moment_leaves_every_row_in_one_place(
    stop_s: float, abort_after_s: float, concurrency: int, answer: Reply | Fault
) -> None:
    """Stop at any moment, abort at any moment after it: no row twice, and those that are recorded were sent."""

    async def end_it(stage: Stage) -> None:
        await asyncio.sleep(stop_s)
        stage.runner.stop(STOPPED)
        await asyncio.sleep(abort_after_s)
        stage.runner.abort()

    stage = played(100, lambda row, nth, _now: answer if (row.n + nth) % 3 else GOOD, end_it, concurrency=concurrency)
    ended = {outcome.request.n for outcome in stage.books.outcomes}
    assert ended <= {call.n for call in stage.endpoint.calls}
    assert stage.halt is STOPPED or stage.tally.pending == 0


# --- faults of our own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [GOOD, BAD])
@pytest.mark.parametrize("room", [0, 1, 25])
def test_a_full_disk_stops_with_7(answer: Reply, room: int) -> None:
    """When a row cannot be recorded, the run stops with 7; what was recorded stands, the rest is pending."""
    stage = played(100, lambda row, _nth, _now: answer if row.n else GOOD, books=Books(room), concurrency=4)
    assert stage.halt is not None
    assert stage.halt.exit_code == 7
    assert len(stage.books.outcomes) == room
    assert len(stage.endpoint.calls) <= room + 8


def test_a_full_disk_at_the_very_end_stops_with_7() -> None:
    """The failures that were held until the input ended cannot be written: 7 all the same."""
    stage = played(19, always(BAD), books=Books(3))
    assert stage.halt is not None
    assert stage.halt.exit_code == 7
    assert len(stage.books.failed) == 3


def test_an_input_that_cannot_be_read_on_stops_the_run() -> None:
    """An input that changed: exit 7, as something was sent, with its words; answers in flight are recorded all the same,
    and no row is blamed.
    """

    def rows() -> Iterator[Request]:
        yield from map(request, range(10))
        raise UsageError("in.jsonl:11 changed while the run was under way")

    stage = played(20, always(GOOD), requests=rows(), concurrency=3)
    assert stage.halt is not None
    assert stage.halt.exit_code == 7
    assert "in.jsonl:11" in stage.halt.reason
    assert len(stage.books.answered) == 10
    assert stage.books.failed == []


# --- the pool ----------------------------------------------------------------------------------------------------


def test_the_pool_grows_with_the_pace() -> None:
    """When the pace allows more at once, more are at once."""

    async def grow(stage: Stage) -> None:
        await asyncio.sleep(1)
        stage.pace.concurrency = 20

    stage = played(300, always(GOOD), grow, concurrency=2)
    assert len(stage.books.answered) == 300
    assert stage.endpoint.most_in_flight == 20


@pytest.mark.parametrize("answer", [GOOD, limited(1), refused(503)], ids=["200", "429", "503"])
@pytest.mark.parametrize("fewer", [1, 3])
def test_the_pool_outlives_a_pace_that_shrinks(answer: Reply, fewer: int) -> None:
    """Ten answers in the same moment, after which the pace allows fewer at once: the run goes on to its end."""

    async def shrink(stage: Stage) -> None:
        await asyncio.sleep(0.55)
        stage.pace.concurrency = fewer

    stage = played(300, lambda _row, _nth, now: answer if 0.45 < now < 0.65 else GOOD, shrink, concurrency=10)
    assert stage.halt is None
    assert len(stage.books.answered) == 300
    after = [call.at_s for call in stage.endpoint.calls if call.at_s > 3]
    assert max(Counter(round(at, 2) for at in after).values()) <= fewer


def test_memory_does_not_grow_with_the_rows() -> None:
    """Rows are drawn as they are asked, not before: never more than the workers and those that wait for a retry."""
    most = 0

    def script(row: Request, _nth: int, _now: float) -> Reply:
        nonlocal most
        most = max(most, stages[0].drawn - len(stages[0].books.outcomes))
        return GOOD if row.n else refused(400)

    stages: list[Stage] = []

    async def play() -> Stage:
        stages.append(Stage(2000, script))
        return await stages[0].run()

    assert virtual.run(play()).halt is None
    assert most <= 16


# --- estimates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("takes", "seconds"), [(2, 8.0), (40, 160.0)])
def test_a_limit_of_tokens_is_kept_by_what_requests_take_not_by_their_estimate(takes: int, seconds: float) -> None:
    """1,000 tokens a second, rows estimated at 10 tokens: they take a fifth, or four times that, and so the run does."""
    answer = reply(body=chat(usage=used(takes - 1, 1)))
    stage = played(4000, always(answer), pace=Steady(concurrency=64, tokens_per_s=1000.0))
    assert 0.95 * seconds < stage.endpoint.calls[-1].at_s < 1.15 * seconds
