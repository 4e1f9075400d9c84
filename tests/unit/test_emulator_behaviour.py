"""What the emulator decides about a request, on a clock of the test's own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import orjson
import pytest

from batchrouter.emulator import FAULTS, Behaviour, Latency, Limits, answer
from batchrouter.emulator.behaviour import Outage, Turn
from batchrouter.emulator.faults import call, chosen
from batchrouter.emulator.plays import Asked, Script, Whole

CHAT = "/v1/chat/completions"


def question(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4", "messages": [{"role": "user", "content": text}], **more}


def ask(
    behaviour: Behaviour, body: Any, *, now: float = 0.0, path: str = CHAT, method: str = "POST", key: str | None = None
) -> Turn:
    """One request, decided and not yet over."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    headers = {"authorization": f"Bearer {behaviour.account.key if key is None else key}", "host": "emulator.test"}
    return behaviour.receive(Asked(method, path, headers, raw), now, 1e9 + now)


def asked(behaviour: Behaviour, body: Any, **more: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a request that is over at once."""
    turn = ask(behaviour, body, **more)
    behaviour.finish(turn, delivered_whole=True)
    assert isinstance(turn.play, Whole)
    return turn.play.status, dict(turn.play.headers), json.loads(turn.play.body)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", None, None),
        (b"[]", None, None),
        ({"messages": [{"role": "user", "content": "x"}]}, None, "model"),
        ({"model": 5, "messages": []}, None, "model"),
        (question() | {"model": "GPT-5.4"}, "model_not_found", "model"),
        ({"model": "gpt-5.4"}, None, "messages"),
        ({"model": "gpt-5.4", "messages": []}, "empty_array", "messages"),
        ({"model": "gpt-5.4", "messages": ["x"]}, None, "messages[0]"),
        ({"model": "gpt-5.4", "messages": [{"role": "user"}]}, None, "messages[0]"),
        ({"model": "gpt-5.4", "messages": [{"role": "robot", "content": "x"}]}, None, "messages[0]"),
        ({"model": "gpt-5.4", "messages": [{"role": "user", "content": 5}]}, None, "messages[0]"),
        (question(temperature="hot"), "invalid_value", "temperature"),
        (question(max_tokens=0), "invalid_value", "max_tokens"),
        (question(n=True), "invalid_value", "n"),
        (question(stream="yes"), "invalid_value", "stream"),
        (question(stop=[1]), "invalid_value", "stop"),
        (question(tools=[{"type": "function"}]), "invalid_value", "tools"),
        (question(response_format={"type": "xml"}), "invalid_value", "response_format"),
        (
            question(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}}),
            "invalid_json_schema",
            None,
        ),
        (question("[[fault:no_such]]"), "unknown_fault", None),
    ],
)
def test_a_wrong_request_gets_400_that_says_what_is_wrong(body: Any, code: str | None, param: str | None) -> None:
    """In OpenAI's error shape; nothing is let in or charged."""
    behaviour = Behaviour(balance=5.0)
    status, _, told = asked(behaviour, body)
    assert status == 400
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert (told["error"]["code"], told["error"]["param"]) == (code, param)
    assert behaviour.account.balance == 5.0
    assert behaviour.stats.accepted == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/gpt-5.4", 200),
        ("GET", "/v1/models/none", 404),
        ("POST", "/v1/models", 405),
        ("GET", CHAT, 405),
        ("POST", "/v1/v1/chat/completions", 404),
        ("POST", "/chat/completions", 404),
        ("POST", CHAT + "?api-version=1", 200),
        ("POST", "/v1/embeddings", 400),
    ],
)
def test_routes(method: str, path: str, status: int) -> None:
    """Those there are answer; others are 404, other methods 405."""
    assert asked(Behaviour(), question(), path=path, method=method)[0] == status


def test_a_bad_key_gets_401_that_does_not_tell_it() -> None:
    """A wrong, missing or revoked key; only its ends are shown; a new key is good at once."""
    behaviour = Behaviour()
    status, _, told = asked(behaviour, question(), key="sk-wrong-key-0123456789")
    assert status == 401
    assert told["error"]["code"] == "invalid_api_key"
    assert "wrong-key" not in told["error"]["message"]
    assert asked(behaviour, question(), key="")[0] == 401
    behaviour.account.revoked = True
    assert asked(behaviour, question())[0] == 401
    behaviour.account.key, behaviour.account.revoked = "another", False
    assert asked(behaviour, question())[0] == 200


def test_an_answer_is_the_pure_one() -> None:
    """What the endpoint says is what `answer` computes; each answer has its own x-request-id."""
    behaviour = Behaviour(seed=3)
    status, headers, told = asked(behaviour, question())
    assert (status, told) == (200, answer(question(), 3))
    assert asked(behaviour, question())[1]["x-request-id"] != headers["x-request-id"]


def test_credits_run_out_and_are_topped_up() -> None:
    """Each answer takes its price; then 402 until there is enough; an error costs nothing."""
    behaviour = Behaviour(balance=1.0, price=0.5)
    assert asked(behaviour, question("[[fault:status_500]]"))[0] == 500
    assert [asked(behaviour, question())[0] for _ in range(3)] == [200, 200, 402]
    assert asked(behaviour, question())[2]["error"]["code"] == "insufficient_credits"
    behaviour.account.balance = 0.5
    assert [asked(behaviour, question())[0] for _ in range(2)] == [200, 402]


def test_the_limit_of_requests_is_kept_and_told() -> None:
    """The third of two a window is 429 with Retry-After; after that time it is let in."""
    behaviour = Behaviour(limits=Limits(requests_per_minute=2, kind="fixed"))
    assert [asked(behaviour, question(), now=t)[0] for t in (0.0, 1.0)] == [200, 200]
    status, headers, told = asked(behaviour, question(), now=15.0)
    assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
    assert headers["retry-after"] == "45"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "45s"
    assert asked(behaviour, question(), now=60.0)[0] == 200


def test_tokens_are_charged_as_used() -> None:
    """The limit counts what the answer reports in usage."""
    total = answer(question())["usage"]["total_tokens"]
    behaviour = Behaviour(limits=Limits(tokens_per_minute=total * 2, kind="sliding"))
    assert [asked(behaviour, question())[0] for _ in range(3)] == [200, 200, 429]


def test_models_may_have_limits_of_their_own() -> None:
    """With scope model, one model's 429 leaves the others alone; with scope key it does not."""
    for scope, status in (("model", 200), ("key", 429)):
        behaviour = Behaviour(
            limits=Limits(requests_per_minute=1, kind="fixed", scope="model" if scope == "model" else "key")
        )
        assert asked(behaviour, question())[0] == 200
        assert asked(behaviour, question())[0] == 429
        assert asked(behaviour, question() | {"model": "gpt-5.4-mini"})[0] == status


def test_concurrency_is_bounded() -> None:
    """While as many are being answered as are allowed, the next is 429; a place that is free is given again."""
    behaviour = Behaviour(limits=Limits(max_concurrency=2))
    first, second, third = (ask(behaviour, question()) for _ in range(3))
    assert [turn.play.status for turn in (first, second, third)] == [200, 200, 429]
    behaviour.finish(third, delivered_whole=True)
    behaviour.finish(first, delivered_whole=True)
    assert ask(behaviour, question()).play.status == 200
    assert behaviour.stats.peak_in_flight == 3


def test_a_marker_plays_its_fault_so_often() -> None:
    """`*2` is the first two attempts of that row; several markers follow one another; other rows are left alone."""
    behaviour = Behaviour()
    row = question("Label this [[fault:status_503*2]] and [[fault:status_429=slow*1]]")
    assert [asked(behaviour, row)[0] for _ in range(5)] == [503, 503, 429, 200, 200]
    assert asked(behaviour, question("another [[fault:status_503*1]]"))[0] == 503
    assert asked(behaviour, question("plain"))[0] == 200
    assert behaviour.stats.by_fault == {"status_503": 3, "status_429": 1}
    assert "[[fault" not in answer(row)["choices"][0]["message"]["content"]


def test_a_larger_budget_is_another_attempt_of_the_same_row() -> None:
    """A client that grows `max_tokens` has not asked a new question."""
    behaviour = Behaviour()
    row = question("[[fault:status_500*1]]", max_tokens=5)
    assert [asked(behaviour, row)[0], asked(behaviour, row | {"max_tokens": 10})[0]] == [500, 200]


def test_chance_is_seeded() -> None:
    """The share of faults is about what was asked for, and the same for the same seed."""
    runs = []
    for seed in (1, 1, 2):
        behaviour = Behaviour(seed=seed, faults={"status_500": 0.1, "retry_after=7": 0.05})
        runs.append([asked(behaviour, question(str(n)))[0] for n in range(2000)])
    assert runs[0] == runs[1] != runs[2]
    counted = Counter(runs[0])
    assert 150 < counted[500] < 250
    assert 60 < counted[429] < 140
    for wrong in ({"status_500": 1.5}, {"status_500": 0.6, "status_503": 0.6}, {"nonsense": 0.1}):
        with pytest.raises(ValueError, match=r"share|no fault"):
            Behaviour(faults=wrong)


def test_an_outage_has_a_beginning_and_an_end() -> None:
    """In between, chat completions meet its fault, and nothing is let in."""
    behaviour = Behaviour()
    behaviour.outages.append(Outage(10.0, 20.0, call("status_502")))
    assert [asked(behaviour, question(), now=t)[0] for t in (9.9, 10.0, 19.9, 20.0)] == [200, 502, 502, 200]
    assert behaviour.stats.accepted == 2


def test_latency_is_about_its_median() -> None:
    """Half of the lognormal latencies lie below the median; without sigma all are equal."""
    behaviour = Behaviour(latency=Latency(0.1, 0.5))
    drawn = sorted(ask(behaviour, question(str(n))).delay_s for n in range(1001))
    assert 0.09 < drawn[500] < 0.11
    assert drawn[50] < 0.06
    assert drawn[950] > 0.18
    behaviour.latency = Latency(0.2)
    assert {ask(behaviour, question(str(n))).delay_s for n in range(5)} == {0.2}


def test_a_slow_stream_comes_in_pieces() -> None:
    """Its latency is spread: some before the first byte, the rest between the chunks."""
    turn = ask(Behaviour(latency=Latency(1.0)), question(stream=True))
    assert isinstance(turn.play, Script)
    pauses = [step for step in turn.play.steps if isinstance(step, float)]
    assert 5 <= len(pauses) <= 11
    assert 0.8 < turn.delay_s + sum(pauses) < 1.2


def test_the_journal_counts_what_was_asked_let_in_and_answered() -> None:
    """By question: a 429 is asked only, a fault let in only, a lost client is not answered."""
    behaviour = Behaviour(journal=True, limits=Limits(requests_per_minute=3, kind="fixed"))
    row = question("[[fault:status_500*1]]")
    behaviour.finish(ask(behaviour, row), delivered_whole=True)
    behaviour.finish(ask(behaviour, row), delivered_whole=False)
    behaviour.finish(ask(behaviour, row), delivered_whole=True)
    behaviour.finish(ask(behaviour, row), delivered_whole=True)
    assert behaviour.stats.journal is not None
    counts = behaviour.stats.journal[answer(row)["id"]]
    assert (counts.asked, counts.accepted, counts.answered) == (4, 3, 1)
    assert behaviour.stats.by_status == {500: 1, 0: 1, 200: 1, 429: 1}
    assert behaviour.stats.in_flight == 0


def test_calls_are_read() -> None:
    """Name, parameter and count; any status is a fault; a name there is not is refused."""
    assert call("retry_after=Wed, 21 Oct 2015 07:28:00 GMT*2")[1:] == ("Wed, 21 Oct 2015 07:28:00 GMT", 2)
    assert call("status_477").fault.name == "status_477"
    assert call("status_500=oops").argument == "oops"
    with pytest.raises(ValueError, match="list-faults"):
        call("status_999")
    calls = [call("reset_mid_body*1"), call("empty_500*2")]
    played = [one.fault.name if (one := chosen(calls, n)) else None for n in range(4)]
    assert played == ["reset_mid_body", "empty_500", "empty_500", None]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.streams_only])
def test_a_stream_s_fault_leaves_plain_requests_alone(name: str) -> None:
    """Named in a plain request, it is not played."""
    row = question(f"[[fault:{name}]]")
    assert asked(Behaviour(), row)[2] == answer(row)


def test_every_fault_is_described() -> None:
    """One line each, and names that a shell and a marker can carry."""
    assert len(FAULTS) > 180
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert name.replace("_", "").isalnum()
        assert fault.description
        assert "\n" not in fault.description
