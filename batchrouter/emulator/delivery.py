"""An answer as it goes to the client that asked: one JSON body, or a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from batchrouter.emulator.chunks import framed, stream
from batchrouter.emulator.plays import EVENTS, JSON, OK, Play, Script, Whole, head, type_of_headers

CHUNKED: Final[type_of_headers] = (("transfer-encoding", "chunked"),)
LAST_CHUNK: Final = b"0\r\n\r\n"
_BURSTS: Final = 10  # a stream that takes its time arrives in about so many pieces


def delivered(
    body: Mapping[str, Any], completion: Mapping[str, Any], headers: type_of_headers, *, over_s: float = 0.0
) -> Play:
    """The answer in the form that `body` asked for; a stream is spread over that many seconds."""
    if not body.get("stream"):
        return Whole(OK, (*JSON, *headers), orjson.dumps(completion))
    return streamed(events(body, completion), headers, over_s=over_s)


def events(body: Mapping[str, Any], completion: Mapping[str, Any]) -> list[bytes]:
    """The events of the stream that `body` asked for, with usage where it asked for that."""
    return stream(completion, usage=wants_usage(body))


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Whether `stream_options` asks for the chunk with usage."""
    return bool((body.get("stream_options") or {}).get("include_usage"))


def streamed(parts: list[bytes], headers: type_of_headers, *, over_s: float = 0.0) -> Script:
    """The parts as a chunked body of events, each its own HTTP chunk."""
    opening = head(OK, (*EVENTS, *headers, *CHUNKED))
    if over_s <= 0:
        return Script(OK, (opening + framed(parts) + LAST_CHUNK,))
    size = max(1, -(-len(parts) // _BURSTS))
    steps: list[bytes | float] = [opening]
    for start in range(0, len(parts), size):
        steps += [framed(parts[start : start + size]), over_s / _BURSTS]
    return Script(OK, (*steps, LAST_CHUNK))
