"""A chat completion as the chunks of a stream: put together again, the same completion, letter for letter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, Final

import orjson

from batchrouter.emulator.words import pieces

DONE: Final = b"data: [DONE]\n\n"
type_of_chunk = dict[str, Any]


def chunks(completion: Mapping[str, Any], *, usage: bool) -> Iterator[type_of_chunk]:
    """The chunks in order: choices take turns; with `usage`, a last chunk without choices carries it."""
    shared = {name: value for name, value in completion.items() if name not in {"object", "choices", "usage"}}
    base = {**shared, "object": "chat.completion.chunk"}
    blank = {"usage": None} if usage else {}
    turns = zip_longest(*(_deltas(choice) for choice in completion["choices"]))
    for part in chain.from_iterable(turns):
        if part is not None:
            yield {**base, "choices": [part], **blank}
    if usage and "usage" in completion:
        yield {**base, "choices": [], "usage": completion["usage"]}


def event(chunk: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % orjson.dumps(chunk)


def stream(completion: Mapping[str, Any], *, usage: bool) -> list[bytes]:
    """The whole stream as events, `[DONE]` included."""
    return [*map(event, chunks(completion, usage=usage)), DONE]


def framed(events: Iterable[bytes]) -> bytes:
    """The events as HTTP chunks, one each, without the chunk that ends the body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events)


def _deltas(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of one choice: its role, what it says, the calls it makes, why it ended."""
    index = choice["index"]
    message = choice["message"]
    opening: dict[str, Any] = {"role": message["role"]}
    if isinstance(message.get("content"), str):
        opening["content"] = ""
    yield _part(index, opening)
    for name, value in message.items():
        if name == "tool_calls":
            yield from (_part(index, {"tool_calls": [piece]}) for piece in _call_pieces(value))
        elif isinstance(value, str) and name != "role":
            yield from (_part(index, {name: piece}) for piece in pieces(value))
        elif value is not None and name != "role":
            yield _part(index, {name: value})
    extra = {k: v for k, v in choice.items() if k not in {"index", "message", "logprobs", "finish_reason"}}
    yield {**_part(index, {}), "finish_reason": choice["finish_reason"], **extra}


def _part(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _call_pieces(calls: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The calls' heads and argument fragments; several calls take turns, told apart by index alone."""
    return (piece for turn in zip_longest(*map(_one_call, *_numbered(calls))) for piece in turn if piece is not None)


def _numbered(calls: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[Mapping[str, Any]]]:
    listed = list(calls)
    return list(range(len(listed))), listed


def _one_call(index: int, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    function = call["function"]
    head = {"name": function["name"], "arguments": ""}
    yield {"index": index, "id": call["id"], "type": call["type"], "function": head}
    for piece in pieces(function["arguments"]):
        yield {"index": index, "function": {"arguments": piece}}
