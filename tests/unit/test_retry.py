"""What each answer means for its row and for the run: CONTRACT 5, a row a case."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit.scripted import chat, fault, refused, reply

from batchrouter.records import Fault, Reply
from batchrouter.retry import (
    Accept,
    Again,
    GiveUp,
    History,
    Policy,
    Stop,
    Verdict,
    backoff_s,
    clean,
    error_code_of,
    is_truncated,
    judge,
    message_of,
    unwrapped,
)

CHAT = "/chat/completions"
POLICY = Policy(max_attempts=5, max_wait_s=3600)


def verdict(
    answer: Reply | Fault,
    *,
    attempts: int = 1,
    credit_waits: int = 0,
    retry_after_s: float | None = None,
    path: str = CHAT,
    policy: Policy = POLICY,
) -> Verdict:
    if isinstance(answer, Reply):
        answer = unwrapped(answer)
    history = History(attempts, credit_waits)
    return judge(answer, path, history, policy, retry_after_s=retry_after_s, rng=random.Random(7))


def told(found: Verdict) -> str:
    """A verdict in one word or two."""
    match found:
        case Accept(truncated):
            return "truncated" if truncated else "accepted"
        case Again(_, blame):
            return f"again, {blame}"
        case GiveUp(error, blame):
            return f"failed {'with its answer' if error is None else error[0]}, {blame}"
        case Stop(halt):
            return f"stop {halt.exit_code}"


def inner(**error: Any) -> Reply:
    """A 200 that holds an error."""
    return reply(body={"error": error})


NO, YES = {"x-should-retry": "false"}, {"x-should-retry": "true"}
ROW, TRY, LIMIT, KEY, CREDITS, DOWN = (
    "failed with its answer, row", "again, endpoint", "again, limit", "stop 3", "stop 4", "stop 5",
)  # fmt: skip

FIRST: dict[str, tuple[Reply | Fault, str]] = {
    # 200
    "200": (reply(), "accepted"),
    "200, null content": (reply(body=chat(None)), "accepted"),
    "200, a refusal": (reply(body=chat(None, choices=[{"message": {"refusal": "no"}}])), "accepted"),
    "200, parts": (reply(body=chat([{"type": "text", "text": "x"}])), "accepted"),
    "200, without usage": (reply(body=chat()), "accepted"),
    "200, without a finish reason": (reply(body={"choices": [{"message": {"content": "x"}}]}), "accepted"),
    "200, error null": (reply(body=chat(error=None)), "accepted"),
    "200, an error beside choices": (reply(body=chat(error={"code": 500})), "accepted"),
    "200, cut by length": (reply(body=chat("some text", "length")), "accepted"),
    "200, empty by length": (reply(body=chat("", "length")), "truncated"),
    "200, null by length": (reply(body=chat(None, "length")), "truncated"),
    "200, one of two empty by length": (
        reply(body={"choices": [*chat()["choices"], *chat("", "length")["choices"]]}), "truncated",
    ),
    "200, tool call by length": (
        reply(body={"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "length"}]}),
        "accepted",
    ),
    "200, no choices": (reply(body={"id": "x"}), TRY),
    "200, empty choices": (reply(body={"choices": []}), TRY),
    "200, choices null": (reply(body={"choices": None}), TRY),
    "200, choices no list": (reply(body={"choices": {"0": 1}}), TRY),
    "200, a choice no object": (reply(body={"choices": ["x"]}), TRY),
    "200, no message": (reply(body={"choices": [{"finish_reason": "stop"}]}), TRY),
    "200, message null": (reply(body={"choices": [{"message": None}]}), TRY),
    "200, finish reason error": (reply(body=chat("par", "error")), TRY),
    "200, error in a choice": (reply(body={"choices": [{"message": {}, "error": {"code": 502}}]}), TRY),
    "200, nothing": (reply(body={}), TRY),
    # an error inside a 200
    "200 with 400": (inner(code=400), ROW),
    "200 with '400'": (inner(code="400"), ROW),
    "200 with 401": (inner(code=401), KEY),
    "200 with 402": (inner(code=402), CREDITS),
    "200 with 403": (inner(code=403), ROW),
    "200 with 404": (inner(code="model_not_found"), ROW),
    "200 with 408": (inner(code=408), TRY),
    "200 with 429": (inner(code=429), LIMIT),
    "200 with '429'": (inner(code="429"), LIMIT),
    "200 with rate_limit_exceeded": (inner(code="rate_limit_exceeded"), LIMIT),
    "200 with insufficient_quota": (inner(code="insufficient_quota"), CREDITS),
    "200 with insufficient_quota as type": (inner(code=429, type="insufficient_quota"), CREDITS),
    "200 with 502": (inner(code=502), TRY),
    "200 with invalid_request_error": (inner(type="invalid_request_error"), ROW),
    "200 with an unknown code": (inner(code="weird"), TRY),
    "200 with a code out of range": (inner(code=200), TRY),
    "200 with an error of any shape": (reply(body={"error": "overloaded"}), TRY),
    "200 with an error and empty choices": (reply(body={"error": {"code": 400}, "choices": []}), ROW),
    # the row's own
    **{
        f"{status}": (refused(status), ROW)
        for status in (400, 403, 404, 405, 406, 410, 411, 413, 414, 415, 416, 418, 422, 424, 426, 428, 431, 451, 499)
    },
    "400, context length": (refused(400, "context_length_exceeded"), ROW),
    "400, content policy": (refused(400, "content_policy_violation"), ROW),
    # transient
    **{f"{status}": (refused(status), TRY) for status in (408, 409, 421, 423, 425)},
    **{f"{status}": (refused(status), TRY) for status in (*range(500, 512), *range(520, 531), 598, 599)},
    **{f"{status}": (reply(status, {}), TRY) for status in (201, 202, 203, 204, 205, 206, 207, 226)},
    "502, a page": (reply(502, {"error": {"message": "<html>", "type": "non_json_body"}}), TRY),
    "500, an empty body": (reply(500, {}), TRY),
    # the key
    "401": (refused(401, "invalid_api_key"), KEY),
    "401, empty": (reply(401, {}), KEY),
    # credits
    "402": (refused(402), CREDITS),
    **{
        f"{status} insufficient_quota": (refused(status, "insufficient_quota"), CREDITS)
        for status in (400, 402, 403, 429, 500, 503)
    },
    "429, insufficient_quota as type": (refused(429, None, type="insufficient_quota"), CREDITS),
    # limits
    "429": (refused(429), LIMIT),
    "429, empty": (reply(429, {}), LIMIT),
    "429, tokens": (refused(429, "rate_limit_exceeded", type="tokens"), LIMIT),
    # x-should-retry
    "500, not to be retried": (refused(500, None, NO), ROW),
    "503, not to be retried": (refused(503, None, NO), ROW),
    "408, not to be retried": (refused(408, None, NO), ROW),
    "204, not to be retried": (reply(204, {}, NO), ROW),
    "400, to be retried": (refused(400, None, YES), "again, row"),
    "404, to be retried": (refused(404, None, YES), "again, row"),
    "403, to be retried": (refused(403, None, YES), "again, row"),
    "429, not to be retried": (refused(429, None, NO), LIMIT),
    "429, to be retried": (refused(429, None, YES), LIMIT),
    "401, to be retried": (refused(401, None, YES), KEY),
    "402, to be retried": (refused(402, None, YES), CREDITS),
    "insufficient_quota, to be retried": (refused(429, "insufficient_quota", YES), CREDITS),
    "500, some other word": (refused(500, None, {"x-should-retry": "maybe"}), TRY),
    # faults
    "refused": (fault("connection", reached=False), TRY),
    "reset": (fault("connection"), TRY),
    "timeout": (fault("timeout"), TRY),
    "cut short": (fault("bad_response"), TRY),
    "redirect": (fault("redirect"), "failed redirect, row"),
    "certificate": (fault("tls"), DOWN),
    "certificate, no connection": (fault("tls", reached=False), DOWN),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), FIRST.values(), ids=FIRST.keys())
def test_what_a_first_answer_means(answer: Reply | Fault, expected: str) -> None:
    """The table of CONTRACT 5, for a row's first attempt."""
    assert told(verdict(answer)) == expected


LAST: dict[str, tuple[Reply | Fault, str]] = {
    **{
        f"{status}": (refused(status), "failed attempts_exhausted, endpoint")
        for status in (408, 409, 425, 500, 501, 503, 529)
    },
    "204": (reply(204, {}), "failed attempts_exhausted, endpoint"),
    "400, to be retried": (refused(400, None, YES), "failed attempts_exhausted, row"),
    "200, no choices": (reply(body={}), "failed bad_response, endpoint"),
    "200, broken off": (reply(body=chat("x", "error")), "failed bad_response, endpoint"),
    "200 with 502": (inner(code=502), "failed attempts_exhausted, endpoint"),
    "timeout": (fault("timeout"), "failed timeout, endpoint"),
    "reset": (fault("connection"), "failed connection, endpoint"),
    "cut short": (fault("bad_response"), "failed bad_response, endpoint"),
    "no connection": (fault("connection", reached=False), TRY),
    "429": (refused(429), LIMIT),
    "200": (reply(), "accepted"),
    "400": (refused(400), ROW),
    "401": (refused(401), KEY),
    "402": (refused(402), CREDITS),
}


@pytest.mark.parametrize("attempts", [5, 6, 1000])
@pytest.mark.parametrize(("answer", "expected"), LAST.values(), ids=LAST.keys())
def test_what_the_last_answer_means(answer: Reply | Fault, expected: str, attempts: int) -> None:
    """The same when --max-attempts is used up: transient failures end, limits and lost connections never do."""
    assert told(verdict(answer, attempts=attempts)) == expected


@pytest.mark.parametrize(
    ("status", "retry_after_s", "credit_waits", "expected"),
    [
        (402, None, 0, CREDITS),
        (402, 0.5, 0, "again, credits"),
        (402, 60.0, 0, "again, credits"),
        (402, 60.0, 2, "again, credits"),
        (402, 60.0, 3, CREDITS),
        (402, 60.5, 0, CREDITS),
        (402, 1e9, 0, CREDITS),
    ],
)
def test_a_402_is_waited_out_only_when_short_and_three_times(
    status: int, retry_after_s: float | None, credit_waits: int, expected: str
) -> None:
    """At most 60 s, at most three times in a row; else the run stops with 4, whatever it says."""
    found = verdict(refused(status), retry_after_s=retry_after_s, credit_waits=credit_waits, attempts=9)
    assert told(found) == expected
    if isinstance(found, Again):
        assert retry_after_s is not None
        assert found.wait_s >= retry_after_s


@pytest.mark.parametrize("status", [400, 403, 429, 503])
def test_insufficient_quota_is_never_waited_out(status: int) -> None:
    """Only a 402 is; under another status the code stops the run whatever its Retry-After says."""
    assert told(verdict(refused(status, "insufficient_quota"), retry_after_s=1.0)) == CREDITS


def incomplete(*output: dict[str, Any], reason: str = "max_output_tokens") -> dict[str, Any]:
    """A response that broke off."""
    return {"status": "incomplete", "incomplete_details": {"reason": reason}, "output": list(output)}


OTHER_PATHS: list[tuple[str, dict[str, Any], str]] = [
    ("/completions", {"choices": [{"text": "x", "finish_reason": "stop"}]}, "accepted"),
    ("/completions", {"choices": [{"text": "", "finish_reason": "length"}]}, "truncated"),
    ("/completions", {"choices": [{"text": "", "finish_reason": "length", "message": None}]}, "truncated"),
    ("/completions", {"choices": []}, TRY),
    ("/completions", {"choices": [{"text": "x", "finish_reason": "error"}]}, TRY),
    ("/embeddings", {"data": [{"embedding": [0.5]}]}, "accepted"),
    ("/embeddings", {"data": [], "choices": None}, "accepted"),
    ("/embeddings", {"data": [], "choices": [1]}, "accepted"),
    ("/embeddings", {"data": None}, TRY),
    ("/embeddings", {"choices": [{"message": {}}]}, TRY),
    ("/responses", {"output": [], "error": None}, "accepted"),
    ("/responses", {"output": [], "choices": 3}, "accepted"),
    ("/responses", {}, TRY),
    ("/responses", {"error": {"code": "server_error"}, "output": []}, TRY),
    ("/responses", {"status": "completed", "output": []}, "accepted"),
    ("/responses", {"status": "failed", "output": []}, TRY),
    ("/responses", {"status": "cancelled", "output": []}, TRY),
    ("/responses", {"status": "queued", "output": []}, "failed bad_response, row"),
    ("/responses", {"status": "in_progress", "output": []}, "failed bad_response, row"),
    ("/responses", {"status": ["completed"], "output": []}, "accepted"),
    ("/responses", incomplete(), "truncated"),
    ("/responses", incomplete({"type": "reasoning", "content": [{"text": "x"}]}), "truncated"),
    ("/responses", incomplete({"type": "message", "content": [{"type": "output_text", "text": ""}]}), "truncated"),
    ("/responses", incomplete({"type": "message", "content": [{"type": "output_text", "text": "x"}]}), "accepted"),
    ("/responses", incomplete({"type": "message", "content": [{"type": "refusal", "refusal": "x"}]}), "accepted"),
    ("/responses", incomplete({"type": "function_call", "name": "f"}), "accepted"),
    ("/responses", incomplete(reason="content_filter"), "accepted"),
    ("/responses", {"status": "incomplete", "incomplete_details": None, "output": [None, 1]}, "accepted"),
]


@pytest.mark.parametrize(("path", "body", "expected"), OTHER_PATHS)
def test_an_answer_is_what_its_path_promises(path: str, body: dict[str, Any], expected: str) -> None:
    """What makes a 200 an answer depends on what was asked; fields that do not belong there break nothing."""
    assert told(verdict(reply(body=body), path=path)) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 600) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["insufficient_quota", "error", "length", "stop", "429"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from(["error", "code", "type", "message", "choices", "finish_reason", "content", "detail", "text",
                         "data", "output", "msg", "status", "tool_calls"]), inside, max_size=4),
    max_leaves=12,
)  # fmt: skip
BODIES = st.dictionaries(
    st.sampled_from(["error", "choices", "message", "detail", "data", "output", "usage", "id"]), JSON, max_size=4
)


@example({"error": {"code": []}}, 400, CHAT, 1)
@example({"error": {"code": None, "type": {}}}, 500, CHAT, 1)
@example({"data": [], "choices": None}, 200, "/embeddings", 1)
@given(
    BODIES,
    st.sampled_from([200, 201, 400, 402, 403, 429, 500]),
    st.sampled_from([CHAT, "/completions", "/embeddings", "/responses"]),
    st.integers(1, 6),
)
def test_no_body_is_too_odd_to_be_judged(body: dict[str, Any], status: int, path: str, attempts: int) -> None:
    """Whatever JSON object a peer sends, with our own words in the wrong places: a verdict, never an exception."""
    answer = reply(status, body)
    found = verdict(answer, attempts=attempts, path=path)
    assert told(found)
    assert isinstance(error_code_of(unwrapped(answer)), str)
    message = message_of(body)
    assert message
    assert len(message) <= 300
    assert message.isprintable()


@given(st.integers(1, 60), st.floats(1, 1e5), st.integers(0, 1000))
def test_backoff_is_full_jitter_within_its_window(failures: int, max_wait_s: float, seed: int) -> None:
    """Between 0.05 s and 0.5 s * 2**(failures - 1), never more than a minute nor --max-wait."""
    wait_s = backoff_s(failures, None, max_wait_s, random.Random(seed))
    assert 0.05 <= wait_s <= min(60.0, 0.5 * 2.0 ** min(failures - 1, 50), max_wait_s)


def test_backoff_fills_its_window() -> None:
    """Full jitter: over many rows the waits are spread over the whole window, so that nobody comes back in step."""
    rng = random.Random(3)
    waits = [backoff_s(6, None, 3600, rng) for _ in range(2000)]
    assert min(waits) < 0.5
    assert max(waits) > 15.5
    assert 7.5 < sum(waits) / len(waits) < 8.5


@given(st.integers(1, 60), st.floats(0.001, 1e10), st.floats(1, 1e5), st.integers(0, 1000))
def test_a_retry_after_is_the_least_and_jitter_is_added(
    failures: int, retry_after_s: float, max_wait_s: float, seed: int
) -> None:
    """Never less than asked, bounded by --max-wait; a little is added, at most the backoff's own window."""
    wait_s = backoff_s(failures, retry_after_s, max_wait_s, random.Random(seed))
    asked_s = min(retry_after_s, max_wait_s)
    assert asked_s <= wait_s <= asked_s + 60
    assert wait_s > 0


@given(st.sampled_from([408, 409, 425, 500, 502, 503, 529]), st.floats(0.001, 1e6), st.integers(1, 4))
def test_a_transient_answer_obeys_its_retry_after(status: int, retry_after_s: float, attempts: int) -> None:
    """A Retry-After on any retried status is kept, not only on a 429."""
    found = verdict(refused(status), retry_after_s=retry_after_s, attempts=attempts)
    assert isinstance(found, Again)
    assert found.wait_s >= min(retry_after_s, POLICY.max_wait_s)


def test_no_retry_is_a_hot_loop() -> None:
    """Without a Retry-After there is always some wait before the next attempt of the same row."""
    for attempts in range(1, 5):
        for answer in (refused(500), fault("connection"), fault("connection", reached=False), reply(body={})):
            found = verdict(answer, attempts=attempts)
            assert isinstance(found, Again)
            assert found.wait_s >= 0.05


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"error": {"message": "Too long"}}, "Too long"),
    ({"error": {"message": "", "code": "c"}}, "c"),
    ({"error": {"type": "t"}}, "t"),
    ({"error": "plain"}, "plain"),
    ({"detail": "fast"}, "fast"),
    ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
    ({"detail": ["a", "b"]}, "a"),
    ({"message": "bare"}, "bare"),
    ({}, "no reason given"),
    ({"error": {}}, "no reason given"),
    ({"error": {"message": "two\nlines\x1b[31m\x00 \ud83d end"}}, "two lines [31m end"),
    ({"error": {"message": "x" * 5000}}, "x" * 300),
]


@pytest.mark.parametrize(("body", "expected"), MESSAGES)
def test_a_message_is_one_safe_line(body: dict[str, Any], expected: str) -> None:
    """The known shapes of error bodies give one printable line of bounded length."""
    assert message_of(body) == expected


def test_an_error_as_deep_as_can_be_read_gives_a_message() -> None:
    """A body nested 1,000 levels, which the reader takes, is no reason to raise."""
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    assert message_of({"message": deep})
    assert message_of({"error": {"message": {"a": deep}}})


@given(st.text())
def test_clean_text_is_printable_and_one_line(text: str) -> None:
    """Nothing that moves a cursor, ends a line, or cannot be encoded is left."""
    cleaned = clean(text)
    assert cleaned.isprintable()
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned


KINDS: list[tuple[Reply | Fault, str]] = [
    (refused(404, "model_not_found"), "404 model_not_found"),
    (refused(400, None, type="invalid_request_error"), "400 invalid_request_error"),
    (reply(500, {}), "500"),
    (reply(400, {"error": "x"}), "400"),
    (fault("timeout"), "timeout"),
    (refused(400, "a\nb\x1b"), "400 a b"),
]


@pytest.mark.parametrize(("answer", "expected"), KINDS)
def test_failures_are_grouped_by_status_and_code(answer: Reply | Fault, expected: str) -> None:
    """Alike is the same status and the same code."""
    assert error_code_of(answer) == expected


def test_truncated_is_a_matter_of_the_budget_alone() -> None:
    """Empty content is truncated only when the reason is the length."""
    assert is_truncated(chat("", "length"), "/chat/completions")
    assert not is_truncated(chat("", "stop"), "/chat/completions")
    assert not is_truncated(chat("", "content_filter"), "/chat/completions")
    assert not is_truncated(chat("word", "length"), "/chat/completions")
