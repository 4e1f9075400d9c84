"""Faults that are an HTTP status, told properly or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import orjson

from batchrouter.emulator.delivery import CHUNKED, LAST_CHUNK
from batchrouter.emulator.faults.fault import Fault, Scene
from batchrouter.emulator.plays import (
    JSON,
    OK,
    Play,
    Script,
    Whole,
    head,
    problem,
    problem_fields,
    type_of_headers,
)

type_of_play = Callable[[Scene], Play]

LISTED: Final = (
    *(201, 202, 204, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 418),
    *(421, 422, 423, 424, 425, 426, 428, 429, 431, 451, 500, 501, 502, 503, 504, 505, 507, 508, 509, 511),
    *(520, 521, 522, 523, 524, 525, 526, 527, 529, 530, 598, 599),
)
_KINDS: Final = {
    401: ("authentication_error", "invalid_api_key"),
    402: ("insufficient_credits", "insufficient_credits"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
_HTML: Final[type_of_headers] = (("content-type", "text/html; charset=utf-8"),)
_PIECE: Final = b"x" * 65_536


def status_fault(status: int) -> Fault:
    """The fault that answers with a status; its parameter is the error's code."""
    phrase = HTTPStatus(status).phrase if status in {s.value for s in HTTPStatus} else "no phrase of its own"
    return Fault(f"status_{status}", f"HTTP {status}, {phrase}; the parameter is the error's code", _status(status))


def statuses() -> Iterator[Fault]:
    """Every fault of this file."""
    yield from map(status_fault, LISTED)
    yield from _told_waits()
    yield from _accounts()
    yield from _bad_bodies()
    yield from _redirects()


def _status(status: int) -> type_of_play:
    def play(scene: Scene) -> Play:
        if status == HTTPStatus.NO_CONTENT or 300 <= status < 400:
            return Whole(status, scene.headers, b"")
        if status < 300:
            return Whole(status, (*JSON, *scene.headers), orjson.dumps(scene.completion))
        return _error(scene, status, code=scene.argument)

    return play


def _error(scene: Scene, status: int, *, code: str = "", more: type_of_headers = (), message: str = "") -> Whole:
    family = "server_error" if status >= 500 else "invalid_request_error"
    kind, usual = _KINDS.get(status, (family, ""))
    body = problem(message or f"The emulator plays HTTP {status}.", kind=kind, code=code or usual or None)
    return Whole(status, (*JSON, *scene.headers, *more), body)


def _told_waits() -> Iterator[Fault]:
    """429 with its wait told in one way or another."""
    for name, header, default in (
        ("retry_after", "retry-after", "1"),
        ("retry_after_ms", "retry-after-ms", "200"),
        ("retry_after_provider", "llm_provider-retry-after", "1"),
        ("reset_requests", "x-ratelimit-reset-requests", "1s"),
        ("reset_tokens", "x-ratelimit-reset-tokens", "6m0s"),
    ):
        yield Fault(name, f"429 with {header}; the parameter is its text ({default})", _waiting(header, default))
    yield Fault("retry_after_date", "429 with Retry-After as a date, that many seconds from now (2)", _dated)
    yield Fault("rate_limit_bare", "429 that tells no wait at all", lambda scene: _error(scene, 429))
    yield Fault("rate_limit_garbage", "429 whose x-ratelimit headers are nonsense", _garbled)
    yield Fault("unavailable_retry_after", "503 with Retry-After; the parameter is its text (1)", _unavailable)


def _waiting(header: str, default: str) -> type_of_play:
    def play(scene: Scene) -> Play:
        # An empty parameter is the default: an empty header is asked for with a space.
        return _error(scene, 429, more=((header, scene.text(default).strip()),))

    return play


def _dated(scene: Scene) -> Play:
    moment = min(max(0.0, scene.wall + scene.number(2)), 253_402_300_799)  # the calendar ends with the year 9999
    return _error(scene, 429, more=(("retry-after", formatdate(moment, usegmt=True)),))


def _garbled(scene: Scene) -> Play:
    nonsense = {
        "limit-requests": "many",
        "remaining-requests": "-5",
        "reset-requests": "1y2z",
        "reset-tokens": "",
    }
    return _error(scene, 429, more=tuple((f"x-ratelimit-{name}", text) for name, text in nonsense.items()))


def _unavailable(scene: Scene) -> Play:
    return _error(scene, 503, more=(("retry-after", scene.text("1").strip()),))


def _accounts() -> Iterator[Fault]:
    """Faults of the key, the account and the request."""
    yield Fault("key_in_401", "401 whose message and headers repeat the key", _key_in_401)
    yield Fault("payment_retry_after", "402 with Retry-After; the parameter is its text (1)", _payment_wait)
    yield Fault("insufficient_quota", "429 with code insufficient_quota: credits, not pace", _quota)
    yield Fault("context_length", "400 with code context_length_exceeded", _coded(400, "context_length_exceeded"))
    yield Fault("content_policy", "400 with code content_policy_violation", _coded(400, "content_policy_violation"))
    yield Fault("moderation", "403 with code moderation_blocked", _coded(403, "moderation_blocked"))
    yield Fault("should_retry_false", "a status (500) with x-should-retry: false", _should_retry("false", 500))
    yield Fault("should_retry_true", "a status (400) with x-should-retry: true", _should_retry("true", 400))


def _key_in_401(scene: Scene) -> Play:
    message = f"Incorrect API key provided: {scene.key}. Authorization was 'Bearer {scene.key}'."
    return _error(scene, 401, message=message, more=(("x-echo", scene.key),))


def _payment_wait(scene: Scene) -> Play:
    return _error(scene, 402, more=(("retry-after", scene.text("1").strip()),))


def _quota(scene: Scene) -> Play:
    message = "You exceeded your current quota, please check your plan and billing details."
    body = problem(message, kind="insufficient_quota", code="insufficient_quota")
    return Whole(429, (*JSON, *scene.headers), body)


def _coded(status: int, code: str) -> type_of_play:
    return lambda scene: _error(scene, status, code=code)


def _should_retry(word: str, status: int) -> type_of_play:
    return lambda scene: _error(scene, int(scene.number(status)), more=(("x-should-retry", word),))


def _bad_bodies() -> Iterator[Fault]:
    """Errors whose body is no help, and errors that hide in a 200."""
    yield Fault("html_502", "502 with a proxy's HTML page", _html_502)
    yield Fault("empty_500", "500 without a body", lambda scene: Whole(500, scene.headers, b""))
    yield Fault("huge_500", "500 with a body of that many bytes (20000000)", _huge_500)
    yield Fault("broken_json_500", "500 whose JSON ends in the middle", _broken_500)
    yield Fault("error_in_200", "200 with an error object; the parameter is its code (502)", _error_in_200)
    yield Fault("error_string_in_200", "200 whose error is a bare string", _error_string)


def _html_502(scene: Scene) -> Play:
    page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
    return Whole(502, (*_HTML, *scene.headers), page)


def _huge_500(scene: Scene) -> Play:
    pieces = int(scene.number(20_000_000)) // len(_PIECE) + 1
    opening = head(500, (*JSON, *scene.headers, *CHUNKED))
    chunk = b"%x\r\n%b\r\n" % (len(_PIECE), _PIECE)
    return Script(500, (step for part in ([opening], [chunk] * pieces, [LAST_CHUNK]) for step in part))


def _broken_500(scene: Scene) -> Play:
    return Whole(500, (*JSON, *scene.headers), problem("The server had an error", kind="server_error")[:-9])


def _error_in_200(scene: Scene) -> Play:
    text = scene.text("502")
    error = problem_fields("Provider returned error", kind="provider_error", code=int(text) if text.isdigit() else text)
    return Whole(OK, (*JSON, *scene.headers), orjson.dumps({"error": error}))


def _error_string(scene: Scene) -> Play:
    return Whole(OK, (*JSON, *scene.headers), b'{"error": "upstream connect error"}')


def _redirects() -> Iterator[Fault]:
    """3xx with a Location."""
    for status in (301, 302, 303, 307, 308):
        about = f"{status} to another path of this server, which answers; the parameter is another Location"
        yield Fault(f"redirect_{status}", about, _redirect(status))
    yield Fault("redirect_other_host", "307 to another name of this host; the parameter is another origin", _elsewhere)
    yield Fault("redirect_loop", "307 to itself", _loop)


def _redirect(status: int) -> type_of_play:
    def play(scene: Scene) -> Play:
        return Whole(status, (*scene.headers, ("location", scene.text("/v1/moved/chat/completions"))), b"")

    return play


def _elsewhere(scene: Scene) -> Play:
    other = scene.origin.replace("127.0.0.1", "localhost")
    return Whole(307, (*scene.headers, ("location", f"{scene.text(other)}/v1/moved/chat/completions")), b"")


def _loop(scene: Scene) -> Play:
    return Whole(307, (*scene.headers, ("location", "/v1/chat/completions")), b"")
