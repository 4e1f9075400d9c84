"""Faults in how a 200's body is written, coded or labelled; it is plain, also for a streamed request."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

import orjson

from batchrouter.emulator.delivery import CHUNKED, LAST_CHUNK
from batchrouter.emulator.faults.fault import Fault, Scene
from batchrouter.emulator.plays import JSON, OK, Play, Script, Whole, head, type_of_headers

type_of_play = Callable[[Scene], Play]

_PAGE: Final = b"<!doctype html><html><body><h1>Sign in to the network</h1></body></html>"
_BLOCK_BYTES: Final = 2**20


def bodies() -> Iterator[Fault]:
    """Every fault of this file."""
    yield from _no_answers()
    yield from _spellings()
    yield from _codings()
    yield from _labels()
    yield from _sizes()


def _no_answers() -> Iterator[Fault]:
    for name, about, body in (
        ("invalid_json", "200 whose body is no JSON", b'{"id": "chatcmpl-1", "choices": [{"index": 0, '),
        ("empty_200", "200 with an empty body", b""),
        ("array_200", "200 whose body is a list", b"[]"),
        ("string_200", "200 whose body is a string", b'"ok"'),
        ("number_200", "200 whose body is a number", b"200"),
        ("null_200", "200 whose body is null", b"null"),
        ("object_200", "200 whose body is an empty object", b"{}"),
    ):
        yield Fault(name, about, _fixed(body, JSON))
    yield Fault("html_200", "200 with a login page", _fixed(_PAGE, (("content-type", "text/html"),)))


def _fixed(body: bytes, headers: type_of_headers) -> type_of_play:
    return lambda scene: Whole(OK, (*headers, *scene.headers), body)


def _spellings() -> Iterator[Fault]:
    def spelt(change: Callable[[bytes], bytes]) -> type_of_play:
        return lambda scene: Whole(OK, (*JSON, *scene.headers), change(_pretty(scene.completion)))

    crlf = spelt(lambda text: b"\r\n \r\n" + text.replace(b"\n", b"\r\n") + b"\r\n")
    yield Fault("pretty", "JSON over many lines", spelt(lambda text: text), usable=True)
    yield Fault("crlf", "JSON over many CRLF lines, with blank ones around it", crlf, usable=True)
    yield Fault("bom", "a byte order mark before the JSON", spelt(lambda text: b"\xef\xbb\xbf" + text), usable=True)
    yield Fault("trailing_garbage", "a second JSON value after the first", spelt(lambda text: text + b"{}"))
    yield Fault("deep_nesting", "JSON nested so many levels deep (200000)", _deep)


def _pretty(completion: dict[str, Any]) -> bytes:
    return orjson.dumps(completion, option=orjson.OPT_INDENT_2)


def _deep(scene: Scene) -> Play:
    levels = int(scene.number(200_000))
    body = orjson.dumps(scene.completion)[:-1] + b',"nested":' + b"[" * levels + b"]" * levels + b"}"
    return Whole(OK, (*JSON, *scene.headers), body)


def _codings() -> Iterator[Fault]:
    yield Fault("gzip", "gzip, as it should be", _coded("gzip", gzip.compress), usable=True)
    yield Fault("deflate", "deflate with its zlib header", _coded("deflate", zlib.compress), usable=True)
    yield Fault("deflate_raw", "deflate without the zlib header", _coded("deflate", _raw_deflate), usable=True)
    yield Fault("gzip_members", "gzip of many members", _coded("gzip", _members), usable=True)
    yield Fault("gzip_corrupt", "gzip with bytes changed in the middle", _coded("gzip", _corrupt))
    yield Fault("gzip_cut", "gzip that ends too early", _coded("gzip", lambda raw: gzip.compress(raw)[:-20]))
    yield Fault("gzip_mislabelled", "plain JSON that claims to be gzip", _coded("gzip", lambda raw: raw))
    yield Fault("gzip_bomb", "a few kB of gzip that unpack to so many bytes (268435456)", _bomb)


def _coded(coding: str, pack: Callable[[bytes], bytes]) -> type_of_play:
    def play(scene: Scene) -> Play:
        headers = (*JSON, ("content-encoding", coding), *scene.headers)
        return Whole(OK, headers, pack(orjson.dumps(scene.completion)))

    return play


def _raw_deflate(raw: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(raw) + packer.flush()


def _members(raw: bytes) -> bytes:
    return b"".join(gzip.compress(raw[start : start + 100]) for start in range(0, len(raw), 100))


def _corrupt(raw: bytes) -> bytes:
    packed = bytearray(gzip.compress(raw))
    middle = len(packed) // 2
    packed[middle : middle + 8] = bytes(byte ^ 0xFF for byte in packed[middle : middle + 8])
    return bytes(packed)


def _bomb(scene: Scene) -> Play:
    opening, closing = _around(scene)
    packed = _packed_spaces(opening, int(scene.number(2**28)) // _BLOCK_BYTES + 1, closing)
    return Whole(OK, (*JSON, ("content-encoding", "gzip"), *scene.headers), packed)


def _packed_spaces(opening: bytes, blocks: int, closing: bytes) -> bytes:
    """A member of gzip for each block: packed once, however many there are."""
    return gzip.compress(opening) + _packed_block() * blocks + gzip.compress(closing)


@lru_cache(maxsize=1)
def _packed_block() -> bytes:
    return gzip.compress(b" " * _BLOCK_BYTES)


def _labels() -> Iterator[Fault]:
    yield Fault("text_plain", "the content type is text/plain", _labelled("text/plain"), usable=True)
    yield Fault("no_content_type", "there is no content type", _labelled(None), usable=True)
    yield Fault(
        "latin1_label",
        "UTF-8 labelled as latin-1",
        _labelled("application/json; charset=latin-1"),
        usable=True,
    )
    yield Fault(
        "odd_charset",
        "UTF-8 labelled as nothing known",
        _labelled("application/json; charset=x-y"),
        usable=True,
    )


def _labelled(label: str | None) -> type_of_play:
    def play(scene: Scene) -> Play:
        headers = scene.headers if label is None else (("content-type", label), *scene.headers)
        return Whole(OK, headers, orjson.dumps(scene.completion))

    return play


def _sizes() -> Iterator[Fault]:
    yield Fault("huge_body", "a right answer with a content of so many bytes (50000000)", _huge, usable=True)
    yield Fault("endless_body", "a content that never ends", _endless)


def _around(scene: Scene) -> tuple[bytes, bytes]:
    """The JSON of the completion before and behind its first content."""
    mark = "<<here>>"
    first = scene.completion["choices"][0]
    altered = {**first, "message": {**first["message"], "content": mark}}
    body = orjson.dumps({**scene.completion, "choices": [altered, *scene.completion["choices"][1:]]})
    opening, _, closing = body.partition(mark.encode())
    return opening, closing


def _huge(scene: Scene) -> Play:
    opening, closing = _around(scene)
    size = int(scene.number(50_000_000))
    length = ("content-length", str(len(opening) + size + len(closing)))

    def steps() -> Iterator[bytes | float]:
        yield head(OK, (*JSON, *scene.headers, length)) + opening
        for start in range(0, size, _BLOCK_BYTES):
            yield b"x" * min(_BLOCK_BYTES, size - start)
        yield closing

    return Script(OK, steps())


def _endless(scene: Scene) -> Play:
    opening, _ = _around(scene)

    def steps() -> Iterator[bytes | float]:
        yield head(OK, (*JSON, *scene.headers, *CHUNKED)) + b"%x\r\n%b\r\n" % (len(opening), opening)
        while True:
            yield b"%x\r\n%b\r\n" % (_BLOCK_BYTES, b"x" * _BLOCK_BYTES)
        yield LAST_CHUNK

    return Script(OK, steps())
