"""Faults of the connection and of HTTP itself, as bytes and pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import orjson

from batchrouter.emulator.faults.fault import Fault, Scene, honest
from batchrouter.emulator.plays import (
    JSON,
    NO_HTTP,
    OK,
    Ending,
    Play,
    Script,
    Whole,
    head,
    rendered,
    type_of_headers,
    type_of_step,
)

type_of_play = Callable[[Scene], Play]

_FLUSH_S: Final = 0.02  # so that what was written is read before the connection goes


def connections() -> Iterator[Fault]:
    """Every fault of this file."""
    yield from _breaks()
    yield from _delays()
    yield from _malformed()
    yield from _reuse()
    yield from _unusual()


def _breaks() -> Iterator[Fault]:
    reset, close = Ending.RESET, Ending.CLOSE
    yield Fault("reset_before_headers", "RST before a byte of the answer", _broken(lambda _: b"", reset))
    yield Fault("reset_mid_headers", "RST in the headers", _broken(_mid_headers, reset))
    yield Fault("reset_mid_body", "RST in the body", _broken(_mid_body, reset))
    yield Fault("close_before_headers", "FIN before a byte of the answer", _broken(lambda _: b"", close))
    yield Fault("close_mid_headers", "FIN in the headers", _broken(_mid_headers, close))
    yield Fault("short_body", "FIN in the body: shorter than its Content-Length", _broken(_mid_body, close))
    yield Fault("chunked_without_end", "FIN in a chunked body, between chunks", _broken(_open_chunks, close))
    yield Fault("chunk_cut", "FIN inside a chunk", _broken(lambda scene: _open_chunks(scene)[:-9], close))


def _broken(written: Callable[[Scene], bytes], ending: Ending) -> type_of_play:
    def play(scene: Scene) -> Play:
        first = written(scene)
        return Script(NO_HTTP, (first, _FLUSH_S) if first else (), ending)

    return play


def _answer(scene: Scene, more: type_of_headers = ()) -> bytes:
    return rendered(Whole(OK, (*JSON, *scene.headers, *more), orjson.dumps(scene.completion)))


def _mid_headers(scene: Scene) -> bytes:
    return _answer(scene)[:40]


def _mid_body(scene: Scene) -> bytes:
    whole = _answer(scene)
    return whole[: (whole.index(b"\r\n\r\n") + len(whole)) // 2]


def _open_chunks(scene: Scene) -> bytes:
    body = orjson.dumps(scene.completion)
    opening = head(OK, (*JSON, *scene.headers, ("transfer-encoding", "chunked")))
    return opening + b"%x\r\n%b\r\n" % (len(body) - 30, body[:-30])


def _delays() -> Iterator[Fault]:
    yield Fault("stall_before_headers", "no byte for so many seconds, then the answer (for ever)", _stall_first)
    yield Fault("stall_mid_headers", "silence in the headers, for ever", _stalled(_mid_headers))
    yield Fault("stall_mid_body", "silence in the body, for ever", _stalled(_mid_body))
    yield Fault("slow_drip", "one byte every so many seconds (1)", _drip, usable=True)


def _stall_first(scene: Scene) -> Play:
    if scene.argument:
        return Script(OK, (scene.number(1), _plain_or_streamed(scene)))
    return Script(NO_HTTP, (), Ending.STALL)


def _plain_or_streamed(scene: Scene) -> bytes:
    play = honest(scene)
    return rendered(play) if isinstance(play, Whole) else b"".join(s for s in play.steps if isinstance(s, bytes))


def _stalled(written: Callable[[Scene], bytes]) -> type_of_play:
    return lambda scene: Script(NO_HTTP, (written(scene),), Ending.STALL)


def _drip(scene: Scene) -> Play:
    pause_s, text = scene.number(1), _plain_or_streamed(scene)

    def steps() -> Iterator[type_of_step]:
        body = text.index(b"\r\n\r\n") + 4
        yield text[:body]
        for at in range(body, len(text)):
            yield text[at : at + 1]
            yield pause_s

    return Script(OK, steps())


def _malformed() -> Iterator[Fault]:
    yield Fault("malformed_status_line", "a status line that is none", _mangled(b"HTTP/1.1 200", b"HTPP/one OK"))
    yield Fault("malformed_header", "a header line without a colon", _mangled(b"\r\n", b"\r\nno colon here\r\n"))
    yield Fault("negative_length", "Content-Length: -5", _mangled(b"content-length: ", b"content-length: -"))
    yield Fault("two_lengths", "two Content-Lengths that differ", _mangled(b"\r\n", b"\r\ncontent-length: 7\r\n"))
    yield Fault("malformed_chunk_size", "a chunk size that is no number", _bad_chunk)
    yield Fault("huge_header", "a header of so many bytes (300000)", _huge_header)
    yield Fault("many_headers", "so many headers (1000)", _many_headers)


def _mangled(old: bytes, new: bytes) -> type_of_play:
    def play(scene: Scene) -> Play:
        return Script(NO_HTTP, (_answer(scene).replace(old, new, 1), _FLUSH_S), Ending.CLOSE)

    return play


def _bad_chunk(scene: Scene) -> Play:
    opening = head(OK, (*JSON, *scene.headers, ("transfer-encoding", "chunked")))
    return Script(NO_HTTP, (opening + b"zz\r\n" + orjson.dumps(scene.completion) + b"\r\n", _FLUSH_S), Ending.CLOSE)


def _huge_header(scene: Scene) -> Play:
    long = ("x-padding", "p" * int(scene.number(300_000)))
    return Script(NO_HTTP, (_answer(scene, (long,)), _FLUSH_S), Ending.CLOSE)


def _many_headers(scene: Scene) -> Play:
    many = tuple((f"x-padding-{n}", "p") for n in range(int(scene.number(1000))))
    return Script(NO_HTTP, (_answer(scene, many), _FLUSH_S), Ending.CLOSE)


def _reuse() -> Iterator[Fault]:
    """The victim is the next request on the connection, not the one that names the fault."""
    for name, about, ending in (
        (
            "stale_keepalive",
            "right; the connection is closed when the next request comes",
            Ending.CLOSE_ON_REUSE,
        ),
        (
            "stale_keepalive_reset",
            "right; the connection is reset when the next request comes",
            Ending.RESET_ON_REUSE,
        ),
        (
            "half_open_keepalive",
            "right; the next request on the connection is swallowed",
            Ending.SWALLOW_REUSE,
        ),
    ):
        yield Fault(name, about, _kept(ending), usable=True)
    yield Fault("idle_close", "right; the connection is closed after so many idle seconds (0.05)", _idle, usable=True)
    yield Fault(
        "garbage_after_body",
        "right; so many seconds later (0.02) follow bytes that nobody asked for",
        _garbage,
        usable=True,
    )
    yield Fault("second_answer", "right; another whole answer follows unasked", _second, usable=True)


def _kept(ending: Ending) -> type_of_play:
    return lambda scene: Script(OK, (_plain_or_streamed(scene),), ending)


def _idle(scene: Scene) -> Play:
    return Script(OK, (_plain_or_streamed(scene), scene.number(0.05)), Ending.CLOSE)


def _garbage(scene: Scene) -> Play:
    return Script(OK, (_plain_or_streamed(scene), scene.number(0.02), b"\x00\x01garbage that is no HTTP\r\n\r\n"))


def _second(scene: Scene) -> Play:
    other = orjson.dumps({**scene.completion, "id": "chatcmpl-of-nobody"})
    return Script(OK, (_plain_or_streamed(scene) + rendered(Whole(OK, JSON, other)),))


def _unusual() -> Iterator[Fault]:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"
    yield Fault("continue_100", "100 Continue before the 200", _after(b"HTTP/1.1 100 Continue\r\n\r\n"), usable=True)
    yield Fault("early_hints_103", "103 Early Hints before the 200", _after(early), usable=True)
    yield Fault(
        "processing_102",
        "102 twice before the 200",
        _after(b"HTTP/1.1 102 Processing\r\n\r\n" * 2),
        usable=True,
    )
    yield Fault("connection_close", "right; the connection is closed and says so", _closing, usable=True)
    yield Fault("http_10", "right, as HTTP/1.0: its end is the connection's", _http_10, usable=True)
    yield Fault("split_headers", "right; head and body arrive in small pieces", _pieces, usable=True)


def _after(interim: bytes) -> type_of_play:
    return lambda scene: Script(OK, (interim + _plain_or_streamed(scene),))


def _closing(scene: Scene) -> Play:
    whole = _plain_or_streamed(scene).replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    return Script(OK, (whole,), Ending.CLOSE)


def _http_10(scene: Scene) -> Play:
    opening = head(OK, (*JSON, *scene.headers)).replace(b"HTTP/1.1", b"HTTP/1.0")
    return Script(OK, (opening + orjson.dumps(scene.completion),), Ending.CLOSE)


def _pieces(scene: Scene) -> Play:
    text = _plain_or_streamed(scene)
    size = max(7, len(text) // 60)
    return Script(OK, (step for at in range(0, len(text), size) for step in (text[at : at + size], 0.001)))
