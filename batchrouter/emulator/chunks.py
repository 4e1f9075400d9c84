"""An answer as the events of a stream: put together again, the same answer, letter for letter."""

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


def stream(answer: Mapping[str, Any], *, usage: bool) -> list[bytes]:
    """The whole stream as events, `[DONE]` included where the answer's route says it."""
    match answer["object"]:
        case "response":
            return [*map(_named_event, response_events(answer))]
        case "text_completion":
            return [*map(event, text_chunks(answer, usage=usage)), DONE]
        case _:
            return [*map(event, chunks(answer, usage=usage)), DONE]


def text_chunks(completion: Mapping[str, Any], *, usage: bool) -> Iterator[type_of_chunk]:
    """The chunks of a legacy text completion: choices take turns; with `usage`, the last one carries it."""
    base = {name: value for name, value in completion.items() if name not in {"choices", "usage"}}
    blank = {"usage": None} if usage else {}
    turns = zip_longest(*(_texts(choice) for choice in completion["choices"]))
    for part in chain.from_iterable(turns):
        if part is not None:
            yield {**base, "choices": [part], **blank}
    if usage:
        yield {**base, "choices": [], "usage": completion["usage"]}


def _texts(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for piece in pieces(choice["text"]):
        yield {"index": choice["index"], "text": piece, "logprobs": None, "finish_reason": None}
    yield {"index": choice["index"], "text": "", "logprobs": None, "finish_reason": choice["finish_reason"]}


def response_events(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a response of one message of text; the last one holds the whole of it."""
    open_ = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    [item] = response["output"]
    [part] = item["content"]
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": open_},
        {"type": "response.in_progress", "response": open_},
        {"type": "response.output_item.added", "output_index": 0, "item": _begun(item)},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
            for piece in pieces(part["text"])
        ),
        {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": f"response.{response['status']}", "response": response},
    ]
    for number, one in enumerate(told):
        yield {**one, "sequence_number": number}


def _begun(item: Mapping[str, Any]) -> dict[str, Any]:
    return {**item, "status": "in_progress", "content": []}


def _named_event(about: Mapping[str, Any]) -> bytes:
    return b"event: %b\n%b" % (about["type"].encode(), event(about))


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
            yield from _pieces_of(choice, name, value)
        elif value is not None and name != "role":
            yield _part(index, {name: value})
    extra = {k: v for k, v in choice.items() if k not in {"index", "message", "logprobs", "finish_reason"}}
    yield {**_part(index, {}), "finish_reason": choice["finish_reason"], **extra}


def _pieces_of(choice: Mapping[str, Any], name: str, text: str) -> Iterator[dict[str, Any]]:
    """A text piece by piece, of the content each with what is told of its likelihood."""
    told = (choice.get("logprobs") or {}).get("content") or () if name == "content" else ()
    for piece, likely in zip_longest(pieces(text), told):  # a fault may have put another text in place of the content
        part = _part(choice["index"], {} if piece is None else {name: piece})
        yield part if likely is None else {**part, "logprobs": {"content": [likely], "refusal": None}}


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
