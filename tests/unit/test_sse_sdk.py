"""The official SDK assembles the same answers from the same streams, and takes ours for its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.streams import DONE, HEAD, LOGPROBS, USAGE, assembled, call, chunk, opening, said, sse
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk


def without_nulls(value: Any) -> Any:
    """The value without its null members, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def by_the_sdk(chunks: list[dict[str, Any]]) -> Any:
    """What the SDK has assembled of these chunks, but for the `index` that it leaves in tool calls."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for one in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(one))
    whole = without_nulls(state.current_completion_snapshot.to_dict())
    for one in whole["choices"]:
        for tool_call in one["message"].get("tool_calls", []):
            del tool_call["index"]
    return whole


@st.composite
def deltas(draw: st.DrawFn, calls: list[int]) -> dict[str, Any]:
    """Any delta of a choice with so many tool calls open."""
    text = draw(st.text(max_size=4))
    kind = draw(st.sampled_from(["content", "refusal", "both", "function_call", "new call", "call"]))
    match kind:
        case "both":
            return {"content": text, "refusal": text}
        case "function_call":
            return {"function_call": {"arguments": text}}
        case "call" if calls:
            return call(draw(st.sampled_from(calls)), text)
        case "call" | "new call":
            calls.append(len(calls))
            return opening(calls[-1], text)
    return {kind: text}


@st.composite
def official_streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The chunks of a stream as the official endpoint sends them: choices, calls and log probabilities in any mix."""
    count = draw(st.integers(1, 3))
    first = {
        "role": "assistant",
        "content": draw(st.sampled_from(["", None])),
        "function_call": {"name": "f", "arguments": ""},
    }
    choices = [said(first, index=index) for index in range(count)]
    calls: list[list[int]] = [[] for _ in range(count)]
    for index in draw(st.lists(st.integers(0, count - 1), max_size=12)):
        logprobs = draw(st.sampled_from([None, {"content": LOGPROBS}, {"refusal": LOGPROBS, "content": None}]))
        choices.append(said(draw(deltas(calls[index])), index=index, logprobs=logprobs))
    choices += [said({}, draw(st.sampled_from(["stop", "length"])), index) for index in range(count)]
    shared = {"service_tier": "default", "system_fingerprint": "fp"}
    usage = [chunk(usage=USAGE, **shared)] if draw(st.booleans()) else []
    return [*(chunk(one, usage=None, **shared) for one in choices), *usage]


@given(official_streams())
def test_equal_to_what_the_sdk_assembles(chunks: list[dict[str, Any]]) -> None:
    """Of any official stream the SDK makes the same answer but for nulls, and ours validates as its type."""
    result = assembled([sse(*chunks), DONE])
    assert without_nulls(result) == by_the_sdk(chunks)
    ChatCompletion.model_validate(result)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(said({"role": "assistant", "content": ""})), chunk(said({"content": "Hi"})), chunk(said({}, "stop"))],
        [chunk(said({"role": "assistant", "content": "Hi"}, "length")), chunk(usage=USAGE)],
        [
            chunk(said({"role": "assistant", "content": None, **opening(0)})),
            chunk(said(call(0, "{}"))),
            chunk(said(opening(1))),
            chunk(said(call(1, "[]"))),
            chunk(said({}, "tool_calls")),
        ],
    ],
)
def test_equal_to_what_the_sdk_assembles_in_plain_cases(chunks: list[dict[str, Any]]) -> None:
    """So it is with the streams that everyone sees, whatever hypothesis finds."""
    result = assembled([sse(*chunks)])
    assert without_nulls(result) == by_the_sdk(chunks)
    ChatCompletion.model_validate(result)


def test_a_text_completion_is_one_to_the_sdk() -> None:
    """The answer of the older API validates as the SDK's type too."""
    one = {"text": "a", "index": 0, "logprobs": None, "finish_reason": "stop"}
    Completion.model_validate(assembled([sse({**HEAD, "object": "text_completion", "choices": [one]})]))
