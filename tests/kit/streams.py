"""Builders of event streams, and of the plain answers that they should become."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from batchrouter.sse import Assembly, Incomplete

DONE = b"data: [DONE]\n\n"
HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LOGPROBS = [{"token": token, "logprob": -0.5, "bytes": [72], "top_logprobs": []} for token in ("H", "i")]


def sse(*chunks: Any) -> bytes:
    """An event for each chunk."""
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def lines(*given: str, end: str = "\n") -> bytes:
    """These lines, each with its end."""
    return "".join(line + end for line in given).encode()


def chunk(*choices: Any, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    return {**HEAD, "choices": list(choices), **fields}


def said(delta: Any, end: Any = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    """One choice of a chunk."""
    return {"index": index, "delta": delta, "finish_reason": end, **fields}


def told(*deltas: Any, end: str = "stop") -> bytes:
    """A whole stream of one choice: a chunk for each delta, and one for the end."""
    return sse(*(chunk(said(delta)) for delta in deltas), chunk(said({}, end)))


def call(index: int, arguments: str, name: str | None = None, **fields: Any) -> dict[str, Any]:
    """A delta with a fragment of one tool call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, **fields, "function": function}]}


def opening(index: int, arguments: str = "") -> dict[str, Any]:
    """A delta that opens the tool call of `tool(index, ...)`."""
    return call(index, arguments, f"f{index}", id=f"t{index}", type="function")


def tool(index: int, arguments: str) -> dict[str, Any]:
    """A tool call of a plain answer."""
    return {"id": f"t{index}", "type": "function", "function": {"name": f"f{index}", "arguments": arguments}}


def answer(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A plain answer."""
    return {**HEAD, "object": "chat.completion", "choices": list(choices), **fields}


def choice(end: str = "stop", index: int = 0, logprobs: Any = None, **message: Any) -> dict[str, Any]:
    """One choice of a plain answer."""
    whole = {"role": "assistant", "content": None, "refusal": None, **message}
    return {"index": index, "message": whole, "logprobs": logprobs, "finish_reason": end}


def assembled(pieces: Iterable[bytes]) -> dict[str, Any] | Incomplete:
    """The result of a stream fed in these pieces."""
    assembly = Assembly()
    for piece in pieces:
        assembly.feed(piece)
    return assembly.result()


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream in pieces, some of which may be empty."""
    marks = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(marks)]
