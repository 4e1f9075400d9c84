"""Faults of a stream of server-sent events. A request that did not ask for a stream gets its answer."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from batchrouter.emulator.chunks import DONE, chunks, event, framed
from batchrouter.emulator.delivery import CHUNKED, LAST_CHUNK, events, streamed, wants_usage
from batchrouter.emulator.faults.fault import Fault, Scene
from batchrouter.emulator.plays import EVENTS, JSON, NO_HTTP, OK, Ending, Play, Script, Whole, head

type_of_events = Callable[[list[bytes], Scene], list[bytes]]
type_of_chunks = Callable[[list[dict[str, Any]], Scene], list[dict[str, Any]]]
type_of_play = Callable[[Scene], Play]

_FLUSH_S: Final = 0.02
_PING: Final = b": ping\n\n"


def streams() -> Iterator[Fault]:
    """Every fault of this file."""
    for name, about, play, usable in (*_spellings(), *_shapes(), *_endings(), *_breaks(), *_no_streams()):
        yield Fault(f"sse_{name}", about, play, usable=usable, streams_only=True)


def _with_events(change: type_of_events) -> type_of_play:
    return lambda scene: streamed(change(events(scene.body, scene.completion), scene), scene.headers)


def _with_chunks(change: type_of_chunks) -> type_of_play:
    def play(scene: Scene) -> Play:
        parts = list(chunks(scene.completion, usage=wants_usage(scene.body)))
        return streamed([*map(event, change(parts, scene)), DONE], scene.headers)

    return play


def _joined(change: Callable[[bytes], bytes]) -> type_of_play:
    """A change of the stream's text as a whole, sent as one HTTP chunk."""
    return _with_events(lambda parts, _: [change(b"".join(parts))])


def _spellings() -> Iterator[tuple[str, str, type_of_play, bool]]:
    yield "comments", "comments and pings between the events", _with_events(_commented), True
    yield "cr", "lines end in CR", _joined(lambda text: text.replace(b"\n", b"\r")), True
    yield "crlf", "lines end in CRLF", _joined(lambda text: text.replace(b"\n", b"\r\n")), True
    yield "cr_split", "CRLF lines, cut between CR and LF", _with_events(_cut_crlf), True
    yield "multi_line", "an event's JSON over many data lines", _with_chunks_text(_multi_line), True
    yield (
        "no_space",
        "no space after the colon",
        _joined(lambda text: text.replace(b"data: ", b"data:")),
        True,
    )
    yield "fields", "id, retry, event and unknown fields", _with_events(_fielded), True
    yield (
        "bom",
        "a byte order mark before the first event",
        _joined(lambda text: b"\xef\xbb\xbf" + text),
        True,
    )
    yield "split", "cut every so many bytes (3), inside lines and UTF-8", _split, True
    yield "one_write", "the whole stream in one HTTP chunk", _joined(lambda text: text), True
    yield "gzip", "the stream is gzipped", _zipped, True
    yield "wrong_type", "the stream is labelled as JSON", _labelled, True


def _commented(parts: list[bytes], _: Scene) -> list[bytes]:
    return [b": connected\n\n", *(b":\n" + _PING + part for part in parts)]


def _cut_crlf(parts: list[bytes], _: Scene) -> list[bytes]:
    text = b"".join(parts).replace(b"\n", b"\r\n")
    halves = text.split(b"\r\n")
    return [halves[0] + b"\r", *(b"\n" + half + b"\r" for half in halves[1:-1]), b"\n" + halves[-1]]


def _with_chunks_text(write: Callable[[dict[str, Any]], bytes]) -> type_of_play:
    def play(scene: Scene) -> Play:
        parts = chunks(scene.completion, usage=wants_usage(scene.body))
        return streamed([*map(write, parts), DONE], scene.headers)

    return play


def _multi_line(chunk: dict[str, Any]) -> bytes:
    lines = orjson.dumps(chunk, option=orjson.OPT_INDENT_2).split(b"\n")
    return b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def _fielded(parts: list[bytes], _: Scene) -> list[bytes]:
    return [b"id: %d\nevent: message\nretry: 3000\nx-field\n%b" % (at, part) for at, part in enumerate(parts)]


def _split(scene: Scene) -> Play:
    text, size = b"".join(events(scene.body, scene.completion)), max(1, int(scene.number(3)))

    def steps() -> Iterator[bytes | float]:
        yield head(OK, (*EVENTS, *scene.headers, *CHUNKED))
        for at in range(0, len(text), size):
            yield framed([text[at : at + size]])
            yield 0.0  # lets the loop write each piece by itself
        yield LAST_CHUNK

    return Script(OK, steps())


def _zipped(scene: Scene) -> Play:
    body = gzip.compress(b"".join(events(scene.body, scene.completion)))
    return Whole(OK, (*EVENTS, ("content-encoding", "gzip"), *scene.headers), body)


def _labelled(scene: Scene) -> Play:
    return Whole(OK, (*JSON, *scene.headers), b"".join(events(scene.body, scene.completion)))


def _shapes() -> Iterator[tuple[str, str, type_of_play, bool]]:
    yield "big_event", "an event of so many bytes (1000000)", _with_chunks(_big), True
    yield "usage_each", "usage in each chunk, growing", _with_chunks(_usage_each), True
    yield "usage_none", "no usage, though it was asked for", _with_chunks(_usage_none), True
    yield "usage_null_choices", "the usage chunk's choices are null", _with_chunks(_null_choices), True
    yield "null_deltas", "deltas of nulls, and a delta that is null", _with_chunks(_null_deltas), True
    yield "role_each", "the role in each delta", _with_chunks(_role_each), True
    yield "empty_choices", "chunks without choices between the others", _with_chunks(_empty_choices), True
    yield "turned", "the chunks of several choices in another order", _with_chunks(_turned), True


def _big(parts: list[dict[str, Any]], scene: Scene) -> list[dict[str, Any]]:
    padding = {**parts[0], "choices": [], "padding": "p" * int(scene.number(1_000_000))}
    return [parts[0], padding, *parts[1:]]


def _usage_each(parts: list[dict[str, Any]], scene: Scene) -> list[dict[str, Any]]:
    final = scene.completion["usage"]
    prompt = final["prompt_tokens"]
    growing = [
        {**part, "usage": {"prompt_tokens": prompt, "completion_tokens": at, "total_tokens": prompt + at}}
        for at, part in enumerate(parts[:-1])
    ]
    return [*growing, {**parts[-1], "usage": final}]


def _usage_none(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    return [{k: v for k, v in part.items() if k != "usage"} for part in parts if part["choices"]]


def _null_choices(parts: list[dict[str, Any]], scene: Scene) -> list[dict[str, Any]]:
    spoken = [part for part in parts if part["choices"]]
    return [*spoken, {**parts[-1], "choices": None, "usage": scene.completion["usage"]}]


def _null_deltas(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    nulls = {"role": None, "content": None, "tool_calls": None, "function_call": None, "refusal": None}
    altered = []
    for part in parts:
        altered.append({**part, "choices": [{**c, "delta": {**nulls, **c["delta"]}} for c in part["choices"]]})
        if part["choices"] and part["choices"][0]["finish_reason"] is None:
            altered.append({**part, "choices": [{**part["choices"][0], "delta": None}]})
    return altered


def _role_each(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    return [
        {**p, "choices": [{**c, "delta": {"role": "assistant", **c["delta"]}} for c in p["choices"]]} for p in parts
    ]


def _empty_choices(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    return [one for part in parts for one in ({**part, "choices": []}, part)]


def _turned(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    """The last choice speaks first and to its end, then the one before it; within a choice nothing moves."""
    return sorted(parts, key=lambda part: -part["choices"][0]["index"] if part["choices"] else 1)


def _endings() -> Iterator[tuple[str, str, type_of_play, bool]]:
    yield "no_done", "a finish_reason, and no [DONE]", _with_events(lambda parts, _: parts[:-1]), True
    yield "done_no_newline", "[DONE] without a newline", _joined(lambda text: text.rstrip(b"\n")), True
    yield (
        "done_no_space",
        "data:[DONE]",
        _joined(lambda text: text.replace(b"data: [DONE]", b"data:[DONE]")),
        True,
    )
    yield "after_done", "an event after [DONE]", _with_events(lambda parts, _: [*parts, parts[0]]), True
    yield "cut", "a clean end before finish_reason, without [DONE]", _with_events(_half), False
    yield "cut_done", "cut before finish_reason, and [DONE] all the same", _with_events(_half_done), False
    yield "one_choice_cut", "one of the choices never gets a finish_reason", _with_chunks(_one_cut), False
    yield "only_done", "nothing but [DONE]", _with_events(lambda *_: [DONE]), False
    yield "empty", "an empty stream", _with_events(lambda *_: []), False


def _half(parts: list[bytes], _: Scene) -> list[bytes]:
    return parts[: max(1, len(parts) // 2 - 1)]


def _half_done(parts: list[bytes], scene: Scene) -> list[bytes]:
    return [*_half(parts, scene), DONE]


def _one_cut(parts: list[dict[str, Any]], scene: Scene) -> list[dict[str, Any]]:
    last = len(scene.completion["choices"]) - 1
    return [p for p in parts if not any(c["index"] == last and c["finish_reason"] for c in p["choices"])]


def _breaks() -> Iterator[tuple[str, str, type_of_play, bool]]:
    error = b'data: {"error":{"message":"Provider disconnected","type":"provider_error","code":502}}\n\n'
    named = b'event: error\ndata: {"message":"Overloaded","type":"overloaded_error"}\n\n'
    broken = b'data: {"id":"chatcmpl-1","choices":[{"index":0,\n\n'
    latin = b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n'
    yield "error_event", "an error object mid-stream; then the stream ends", _then(error), False
    yield "error_named", "an `event: error` mid-stream; then the stream ends", _then(named), False
    yield "finish_error", 'finish_reason "error" with an error object', _with_chunks(_finish_error), False
    yield "bad_json", "an event mid-stream whose data is no JSON", _within(broken), False
    yield "bad_utf8", "an event mid-stream that is no UTF-8", _within(latin), False
    yield "reset", "RST mid-stream", _left(Ending.RESET), False
    yield "abort", "FIN mid-stream, in a chunked body without its end", _left(Ending.CLOSE), False
    yield "stall", "silence mid-stream, for ever", _left(Ending.STALL), False
    yield "pings_for_ever", "mid-stream nothing but comments, one every so many seconds (0.05)", _pings, False


def _then(last: bytes) -> type_of_play:
    return _with_events(lambda parts, scene: [*_half(parts, scene), last, DONE])


def _within(odd: bytes) -> type_of_play:
    return _with_events(lambda parts, scene: [*_half(parts, scene), odd, *parts[len(_half(parts, scene)) :]])


def _finish_error(parts: list[dict[str, Any]], _: Scene) -> list[dict[str, Any]]:
    failed = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
    error = {"code": "server_error", "message": "Provider disconnected unexpectedly"}
    return [*parts[: max(1, len(parts) // 2)], {**parts[0], "choices": [failed], "error": error}]


def _opened(scene: Scene) -> bytes:
    """The head and half of the stream, without the end of the body."""
    half = streamed(_half(events(scene.body, scene.completion), scene), scene.headers)
    return b"".join(step for step in half.steps if isinstance(step, bytes)).removesuffix(LAST_CHUNK)


def _left(ending: Ending) -> type_of_play:
    return lambda scene: Script(NO_HTTP, (_opened(scene), _FLUSH_S), ending)


def _pings(scene: Scene) -> Play:
    def steps() -> Iterator[bytes | float]:
        yield _opened(scene)
        while True:
            yield b"%x\r\n%b\r\n" % (len(_PING), _PING)
            yield scene.number(0.05)

    return Script(NO_HTTP, steps())


def _no_streams() -> Iterator[tuple[str, str, type_of_play, bool]]:
    page = b"<html><body>502 Bad Gateway</body></html>"
    yield (
        "html",
        "an HTML page in place of the stream",
        lambda s: Whole(OK, (*EVENTS, *s.headers), page),
        False,
    )
    yield "json", "the plain answer in place of the stream", _plain, True
    yield "json_as_stream", "the plain answer, labelled as a stream", _plain_labelled, True


def _plain(scene: Scene) -> Play:
    return Whole(OK, (*JSON, *scene.headers), orjson.dumps(scene.completion))


def _plain_labelled(scene: Scene) -> Play:
    return Whole(OK, (*EVENTS, *scene.headers), orjson.dumps(scene.completion))
