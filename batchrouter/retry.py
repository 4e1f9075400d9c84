"""What an answer means for its row and for the run: one table, and the wait before the next attempt.

Rules of this file: pure; the statuses' classes are data, read top down; nothing here knows how a row is sent or kept.
Formulas: full-jitter exponential backoff, after M. Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from batchrouter.records import CREDITS_SPENT, ENDPOINT_DOWN, KEY_REFUSED, OK, ErrorCode, Fault, Halt, Reply
from batchrouter.remedies import remedy_for

# Statuses that say nothing against the row: try again. So do every 5xx and every 2xx but 200.
_TRANSIENT: Final = frozenset({408, 409, 421, 423, 425})
_CREDIT_CODES: Final = frozenset({"insufficient_quota", "insufficient_credits", "billing_hard_limit_reached"})
_SHORT_CREDIT_WAIT_S: Final = 60.0
_CREDIT_WAITS: Final = 3
_BACKOFF_BASE_S: Final = 0.5
_BACKOFF_CAP_S: Final = 60.0
_LEAST_WAIT_S: Final = 0.05
_MESSAGE_CHARACTERS: Final = 300

# What the `status` of a response says where it is no answer: it ended without one, or nobody waits for it.
_BROKEN_OFF: Final = ("failed", "cancelled")
_UNFINISHED: Final = ("queued", "in_progress")

# What the `code` or `type` of an error object says where it is no number.
_NAMED_CODES: Final = {
    "insufficient_quota": 402,
    "insufficient_credits": 402,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "overloaded_error": 529,
    "server_error": 500,
    "api_error": 500,
}


class Accept(NamedTuple):
    """The row is answered."""

    truncated: bool


class Again(NamedTuple):
    """The row is asked again, not before `wait_s` seconds. `blame` says whose doing it was: `limit` and `credits` pause
    everybody on that limit and use up no attempt; what is the endpoint's is evidence for the circuit.
    """

    wait_s: float
    blame: Literal["limit", "credits", "endpoint", "row"]


class GiveUp(NamedTuple):
    """The row has failed for good; `error` is null when its HTTP answer says it all. `blame` as for Again."""

    error: tuple[ErrorCode, str] | None
    blame: Literal["endpoint", "row"]


class Stop(NamedTuple):
    """The run cannot go on; the row is not to blame and stays pending."""

    halt: Halt


Verdict = Accept | Again | GiveUp | Stop

_ACCEPTED: Final = Accept(truncated=False)
_TRUNCATED: Final = Accept(truncated=True)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long and how often: `max_attempts` a row, `max_wait_s` for one Retry-After."""

    max_attempts: int
    max_wait_s: float


class History(NamedTuple):
    """What came before this answer: attempts of this row that count (this one included), and how often it was put off
    by a 402 with a short Retry-After.
    """

    attempts: int
    credit_waits: int = 0


def judge(
    answer: Reply | Fault,
    path: str,
    history: History,
    policy: Policy,
    *,
    retry_after_s: float | None,
    rng: random.Random,
) -> Verdict:
    """What follows from an answer to a request for `path` (its reply already `unwrapped`)."""
    if isinstance(answer, Fault):
        return _judge_fault(answer, history, policy, rng)
    if answer.status == OK:
        if path == "/responses" and answer.body.get("status") in _UNFINISHED:
            message = f"the response is {answer.body['status']}: a batch cannot wait for one in the background"
            return GiveUp(("bad_response", message), "row")
        problem = problem_of(answer.body, path)
        if problem is None:
            return _TRUNCATED if is_truncated(answer.body, path) else _ACCEPTED
        return _try_again(("bad_response", problem), "endpoint", history, policy, retry_after_s, rng)
    status = answer.status
    if status == 402 or is_about_credits(answer.body):
        return _judge_credits(answer, history, retry_after_s, rng)
    if status == 429:
        return Again(retry_after_s or 0.0, "limit")
    if status == 401:
        return Stop(Halt(KEY_REFUSED, f"the key is refused (401): {message_of(answer.body)}", remedy_for("401")))
    transient = status in _TRANSIENT or status >= 500 or status < 300
    said = answer.headers.get("x-should-retry")
    if said == "false" or (not transient and said != "true"):
        return GiveUp(None, "row")
    message = f"still {status} after {history.attempts} attempts: {message_of(answer.body)}"
    blame: Literal["endpoint", "row"] = "endpoint" if transient else "row"
    return _try_again(("attempts_exhausted", message), blame, history, policy, retry_after_s, rng)


def _judge_fault(fault: Fault, history: History, policy: Policy, rng: random.Random) -> Verdict:
    if fault.code == "tls":
        return Stop(Halt(ENDPOINT_DOWN, fault.message, "trust its certificate with --ca-file, or mend --base-url"))
    if fault.code == "redirect":
        return GiveUp(("redirect", fault.message), "row")
    if not fault.reached:  # the row cannot be to blame, however often this happens; the circuit ends it
        return Again(backoff_s(history.attempts, None, policy.max_wait_s, rng), "endpoint")
    return _try_again((fault.code, fault.message), "endpoint", history, policy, None, rng)


def _judge_credits(reply: Reply, history: History, retry_after_s: float | None, rng: random.Random) -> Verdict:
    waits = reply.status == 402 and retry_after_s is not None and retry_after_s <= _SHORT_CREDIT_WAIT_S
    if waits and retry_after_s is not None and history.credit_waits < _CREDIT_WAITS:
        return Again(retry_after_s + rng.uniform(0, 0.1 * retry_after_s), "credits")
    reason = f"credits are spent ({reply.status}): {message_of(reply.body)}"
    return Stop(Halt(CREDITS_SPENT, reason, remedy_for("402")))


def _try_again(
    error: tuple[ErrorCode, str],
    blame: Literal["endpoint", "row"],
    history: History,
    policy: Policy,
    retry_after_s: float | None,
    rng: random.Random,
) -> Again | GiveUp:
    if history.attempts >= policy.max_attempts:
        return GiveUp(error, blame)
    return Again(backoff_s(history.attempts, retry_after_s, policy.max_wait_s, rng), blame)


def backoff_s(failures: int, retry_after_s: float | None, max_wait_s: float, rng: random.Random) -> float:
    """Seconds before the attempt that follows `failures` failed ones: uniform in [0, base * 2**(failures-1)], capped;
    what the server asks for is the least, with the jitter added, but never more than `max_wait_s`.
    """
    window = min(_BACKOFF_CAP_S, _BACKOFF_BASE_S * 2.0 ** min(failures - 1, 16))
    jitter = max(_LEAST_WAIT_S, rng.uniform(0, window))
    if retry_after_s is None:
        return min(jitter, max_wait_s)
    return min(retry_after_s, max_wait_s) + min(jitter, 0.1 * retry_after_s + _LEAST_WAIT_S)


def unwrapped(reply: Reply) -> Reply:
    """A 200 that holds an error in place of an answer, as the answer that its own code says; any other as it is."""
    if reply.status != OK or not reply.body.get("error") or reply.body.get("choices"):
        return reply
    error = reply.body["error"]
    return reply._replace(status=_inner_status(error if type(error) is dict else {}))


def _inner_status(error: Mapping[str, Any]) -> int:
    for name in ("code", "status", "status_code", "type"):
        value = error.get(name)
        if type(value) is str:
            if value in _NAMED_CODES:
                return _NAMED_CODES[value]
            value = int(value) if value.isascii() and value.isdigit() and len(value) == 3 else None
        if type(value) is int and 400 <= value < 600:
            return value
    return 502


def problem_of(body: Mapping[str, Any], path: str) -> str | None:
    """Why the body of a 200 is no answer to a request for `path`; None when it is one."""
    if path == "/embeddings":
        return None if type(body.get("data")) is list else "the answer has no data"
    if path == "/responses":
        if type(body.get("output")) is not list:
            return "the answer has no output"
        return f"the response is {body['status']}" if body.get("status") in _BROKEN_OFF else None
    choices = body.get("choices")
    if type(choices) is not list or not choices:
        return "the answer has no choices"
    for choice in choices:
        if type(choice) is not dict:
            return "a choice of the answer is no object"
        if path == "/chat/completions" and type(choice.get("message")) is not dict:
            return "a choice of the answer has no message"
        if choice.get("finish_reason") == "error" or choice.get("error"):
            return f"the answer broke off: {message_of(choice)}"
    return None


def is_truncated(body: Mapping[str, Any], path: str) -> bool:
    """Whether a choice ran out of budget before it said anything (reasoning models with a small `max_tokens`)."""
    if path == "/chat/completions":
        for choice in body["choices"]:
            if choice.get("finish_reason") == "length" and _is_empty(choice["message"], "content"):
                return True
        return False
    if path == "/responses":
        return _why_incomplete(body) == "max_output_tokens" and not any(map(_says, body["output"]))
    if path != "/completions":
        return False
    return any(choice.get("finish_reason") == "length" and _is_empty(choice, "text") for choice in body["choices"])


def _why_incomplete(response: Mapping[str, Any]) -> Any:
    details = response.get("incomplete_details")
    return details.get("reason") if type(details) is dict else None


def _says(item: Any) -> bool:
    """Whether an item of a response's output is more than reasoning or an empty message."""
    if type(item) is not dict or item.get("type") == "reasoning":
        return False
    parts = item.get("content")
    if item.get("type") != "message" or type(parts) is not list:
        return True
    return any(type(part) is dict and bool(part.get("text") or part.get("refusal")) for part in parts)


def _is_empty(said: Mapping[str, Any], name: str) -> bool:
    return not said.get(name) and not said.get("tool_calls")


def is_about_credits(body: Mapping[str, Any]) -> bool:
    """Whether an error body says that the account's credits are spent, whatever the status."""
    error = body.get("error")
    if type(error) is not dict:
        return False
    return any(type(error.get(name)) is str and error[name] in _CREDIT_CODES for name in ("code", "type"))


def error_code_of(answer: Reply | Fault) -> str:
    """Status and code of a failure, as failures are grouped: `404 model_not_found`, `timeout`."""
    if isinstance(answer, Fault):
        return answer.code
    error = answer.body.get("error")
    code = _first_text(error, "code", "type") if type(error) is dict else ""
    return f"{answer.status} {clean(code)[:60]}" if code else str(answer.status)


def message_of(body: Mapping[str, Any]) -> str:
    """One human line out of an error body: OpenAI's shape, an error that is a text, FastAPI's `detail`, or less."""
    error = body.get("error")
    found = _first_text(error, "message", "code", "type") if type(error) is dict else ""
    found = found or _first_text(body, "error", "detail", "message")
    details = body.get("detail")
    if not found and type(details) is list and details:  # FastAPI: [{"loc": …, "msg": …}]
        found = _first_text(details[0], "msg") if type(details[0]) is dict else _first_text({"": details[0]}, "")
    return clean(found[: 4 * _MESSAGE_CHARACTERS])[:_MESSAGE_CHARACTERS] or "no reason given"


def _first_text(holder: Mapping[str, Any], *names: str) -> str:
    """The first of these members that is a text with something in it, or a number."""
    for name in names:
        value = holder.get(name)
        if (type(value) is str and value.strip()) or type(value) is int:
            return str(value)
    return ""


def clean(text: str) -> str:
    """Text of a peer's, safe for a terminal: one line, without control characters or lone surrogates."""
    spaced = "".join(sign if sign.isprintable() else " " for sign in text)
    return " ".join(spaced.split())


def is_model_gone(reply: Reply) -> bool:
    """Whether an answer says that there is no such model (any more): no fault of the row, if another may stand in."""
    if reply.status not in {400, 404}:
        return False
    is_named = error_code_of(reply).endswith("model_not_found")
    return is_named or (reply.status == 404 and "model" in message_of(reply.body).lower())


def is_too_long(reply: Reply) -> bool:
    """Whether an answer says that the row is longer than its model's context."""
    if reply.status not in {400, 413}:
        return False
    text = message_of(reply.body).lower()
    return error_code_of(reply).endswith("context_length_exceeded") or "context length" in text or "too long" in text
