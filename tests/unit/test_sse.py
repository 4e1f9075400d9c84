"""What a stream becomes: whole answers, errors, and answers that are not whole, to the last field."""

from __future__ import annotations

import json
import random
import sys
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.streams import (
    DONE,
    HEAD,
    LOGPROBS,
    USAGE,
    answer,
    assembled,
    call,
    choice,
    chunk,
    cut,
    lines,
    opening,
    said,
    sse,
    told,
    tool,
)

from batchrouter.sse import Assembly, Incomplete

HELLO = [
    chunk(said({"role": "assistant", "content": ""})),
    chunk(said({"content": "Hé"})),
    chunk(said({"content": "llo"})),
]
STOP = chunk(said({}, "stop"))
HELLO_ANSWER = answer(choice(content="Héllo"))

MESSAGES: dict[str, tuple[bytes, Any]] = {
    "content": (sse(*HELLO, STOP) + DONE, HELLO_ANSWER),
    "role in each delta": (told(*({"role": "assistant", "content": c} for c in "ab")), answer(choice(content="ab"))),
    "no role but an empty one": (told({"role": "", "content": "x"}), answer(choice(content="x"))),
    "no role at all": (told({"content": "x"}), answer(choice(content="x"))),
    "the first role that is one": (told({"role": ""}, {"role": "tool"}, {"role": None}), answer(choice(role="tool"))),
    "empty content": (told({"content": ""}, end="length"), answer(choice("length", content=""))),
    "nothing but an end": (told(), answer(choice())),
    "null deltas": (told({"content": "x"}, None, {"content": None}), answer(choice(content="x"))),
    "a field that is always null": (told({"tool_calls": None}, {"tool_calls": None}), answer(choice(tool_calls=None))),
    "refusal": (told({"refusal": "I "}, {"refusal": "can't"}), answer(choice(refusal="I can't"))),
    "reasoning_content": (
        told({"reasoning_content": "a"}, {"reasoning_content": "b", "content": None}, {"content": "c"}),
        answer(choice(content="c", reasoning_content="ab")),
    ),
    "reasoning": (told({"reasoning": "a"}, {"reasoning": "b"}), answer(choice(reasoning="ab"))),
    "a pair of surrogates in two deltas": (
        told({"content": "a\ud83d"}, {"content": "\ude00\ud83d"}),
        answer(choice(content="a😀\ud83d")),
    ),
    "a whole message": (sse(answer(choice(content="whole"))), answer(choice(content="whole"))),
    "deltas, then the whole message": (
        sse(*HELLO, chunk({**choice(content="Héllo"), "delta": {"content": ""}})),
        HELLO_ANSWER,
    ),
    "deltas, then an empty message": (sse(*HELLO, chunk(choice(content=""))), HELLO_ANSWER),
}

CHOICES: dict[str, tuple[bytes, Any]] = {
    "finish reason first": (
        sse(chunk(said({"content": "x"}, "stop")), chunk(said({"content": "y"}))),
        answer(choice(content="xy")),
    ),
    "the last finish reason that is one": (
        sse(*(chunk(said({}, end)) for end in ("stop", "length", "", None))),
        answer(choice("length")),
    ),
    "interleaved": (
        sse(
            chunk(said({"content": "b"}, index=1)),
            chunk(said({"content": "a"}), said({"content": "B"}, "length", 1)),
            STOP,
        ),
        answer(choice(content="a"), choice("length", 1, content="bB")),
    ),
    "without an index": (
        sse(chunk(*({"delta": {"content": text}, "finish_reason": "stop"} for text in "ab"))),
        answer(choice(content="a"), choice(index=1, content="b")),
    ),
    "log probabilities": (
        sse(*(chunk(said({}, logprobs={"content": [token], "refusal": None})) for token in LOGPROBS), STOP),
        answer(choice(logprobs={"content": LOGPROBS, "refusal": None})),
    ),
    "log probabilities of a refusal": (
        sse(*(chunk(said({}, "stop", logprobs={"content": None, "refusal": LOGPROBS})) for _ in range(2))),
        answer(choice(logprobs={"content": None, "refusal": LOGPROBS * 2})),
    ),
    "unknown fields: the last": (
        sse(chunk(said({}, native="a", stop=None)), chunk(said({}, "stop", native="b", stop=13))),
        answer({**choice(), "native": "b", "stop": 13}),
    ),
    "some that are no objects": (sse(chunk(5, None, [], said({}, "stop"))), answer(choice())),
}

TOOLS: dict[str, tuple[bytes, Any]] = {
    "one call": (
        told({"content": None, **opening(0)}, call(0, '{"a"'), call(0, ":1}"), end="tool_calls"),
        answer(choice("tool_calls", tool_calls=[tool(0, '{"a":1}')])),
    ),
    "interleaved, the second first": (
        told(opening(1), opening(0, "{"), call(1, "[]"), call(0, "}")),
        answer(choice(tool_calls=[tool(0, "{}"), tool(1, "[]")])),
    ),
    "id, type and name repeated": (told(opening(0, "{"), opening(0, "}")), answer(choice(tool_calls=[tool(0, "{}")]))),
    "id, type and name empty later": (
        told(opening(0, "{"), call(0, "}", "", id="", type="")),
        answer(choice(tool_calls=[tool(0, "{}")])),
    ),
    "id, type and name empty at first": (
        told(call(0, "{", "", id="", type=""), opening(0, "}")),
        answer(choice(tool_calls=[tool(0, "{}")])),
    ),
    "another id for every fragment": (
        told(opening(0, "{"), call(0, "}", id="t9", type="function")),
        answer(choice(tool_calls=[tool(0, "{}")])),
    ),
    "two fragments in one delta": (
        told({"tool_calls": [*opening(0, "{")["tool_calls"], *call(0, "}")["tool_calls"]]}),
        answer(choice(tool_calls=[tool(0, "{}")])),
    ),
    "whole calls, all with index 0": (
        told(*({"tool_calls": [{"index": 0, **tool(number, "{}")}]} for number in (0, 1))),
        answer(choice(tool_calls=[tool(0, "{}"), tool(1, "{}")])),
    ),
    "whole calls without an index": (
        told(*({"tool_calls": [tool(number, "{}")]} for number in (0, 1))),
        answer(choice(tool_calls=[tool(0, "{}"), tool(1, "{}")])),
    ),
    "old-style function call": (
        told({"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}}),
        answer(choice(function_call={"name": "f", "arguments": "{}"})),
    ),
    "custom tool": (
        told(
            *(
                {"tool_calls": [{"index": 0, "id": "t", "type": "custom", "custom": {"name": "c", "input": i}}]}
                for i in "ab"
            )
        ),
        answer(choice(tool_calls=[{"id": "t", "type": "custom", "custom": {"name": "c", "input": "ab"}}])),
    ),
}

MERGED: dict[str, tuple[bytes, Any]] = {
    "strings concatenate": (told({"x": "a"}, {"x": ""}, {"x": "b"}), answer(choice(x="ab"))),
    "names do not": (
        told(*({"name": name, "format": "f"} for name in ("", "a", "b"))),
        answer(choice(name="a", format="f")),
    ),
    "lists extend": (told({"x": [1, "a"]}, {"x": [{"y": 1}, None]}), answer(choice(x=[1, "a", {"y": 1}, None]))),
    "items merge by index": (
        told({"x": [{"index": 1, "t": "b"}, {"index": 0, "t": "a"}]}, {"x": [{"index": 0, "t": "A"}, 5]}),
        answer(choice(x=[{"index": 0, "t": "aA"}, {"index": 1, "t": "b"}, 5])),
    ),
    "an index that is no integer": (
        told(*({"x": [{"index": index}]} for index in ("0", True, 0.0, None))),
        answer(choice(x=[{"index": "0"}, {"index": True}, {"index": 0.0}, {"index": None}])),
    ),
    "objects merge": (
        told({"x": {"a": "1", "b": {"c": "2"}}}, {"x": {"a": "1", "b": {"c": "2", "d": None}}}),
        answer(choice(x={"a": "11", "b": {"c": "22", "d": None}})),
    ),
    "of others the last that is one": (
        told(*({"x": x, "y": y} for x, y in ((1, True), (2.5, False), (None, None)))),
        answer(choice(x=2.5, y=False)),
    ),
    "of another kind: the last": (
        told({"x": "a", "y": 1, "z": {"a": 1}}, {"x": 1, "y": "b", "z": [1]}),
        answer(choice(x=1, y="b", z=[1])),
    ),
    "parts, then text": (
        told({"content": ""}, {"content": [{"type": "thinking"}]}, {"content": ""}, {"content": "a"}, {"content": "b"}),
        answer(choice(content=[{"type": "thinking"}, {"type": "text", "text": "ab"}])),
    ),
    "text, then parts": (
        told({"content": "a"}, {"content": [{"type": "image"}]}),
        answer(choice(content=[{"type": "text", "text": "a"}, {"type": "image"}])),
    ),
    "reasoning details": (
        told(*({"reasoning_details": [{"type": "text", "text": text, "format": "f", "index": 0}]} for text in "ab")),
        answer(choice(reasoning_details=[{"type": "text", "text": "ab", "format": "f", "index": 0}])),
    ),
}

FIELDS: dict[str, tuple[bytes, Any]] = {
    "usage without choices": (sse(*HELLO, STOP, chunk(usage=USAGE)), {**HELLO_ANSWER, "usage": USAGE}),
    "usage, choices null": (sse(*HELLO, STOP, {"choices": None, "usage": USAGE}), {**HELLO_ANSWER, "usage": USAGE}),
    "usage cut off": (sse(*HELLO, STOP) + b'data: {"usage"', HELLO_ANSWER),
    "usage alone": (sse(*HELLO, STOP, {"usage": USAGE}), {**HELLO_ANSWER, "usage": USAGE}),
    "usage in each chunk": (
        sse(*({**one, "usage": {"total_tokens": n}} for n, one in enumerate(HELLO)), {**STOP, "usage": USAGE}),
        {**HELLO_ANSWER, "usage": USAGE},
    ),
    "usage null at last": (sse(*HELLO, {**STOP, "usage": USAGE}, chunk(usage=None)), {**HELLO_ANSWER, "usage": USAGE}),
    "usage always null": (sse(*({**one, "usage": None} for one in (*HELLO, STOP))), HELLO_ANSWER),
    "usage of another kind": (sse(*HELLO, {**STOP, "usage": "5"}), {**HELLO_ANSWER, "usage": "5"}),
    "numbers beyond JSON's": (
        b'data: {"usage":{"a":NaN,"b":18446744073709551616},"choices":[{"finish_reason":"stop","x":1e999}]}\n\n',
        {"object": "chat.completion", "choices": [choice()], "usage": {"a": None, "b": 2**64}},
    ),
    "of other fields the last": (
        sse(
            chunk(service_tier="auto", fp="a", x={"a": 1}), {**STOP, "service_tier": "flex", "fp": None, "x": {"b": 2}}
        ),
        answer(choice(), service_tier="flex", fp="a", x={"b": 2}),
    ),
    "padding and empty errors": (sse({**STOP, "obfuscation": "zz", "error": {}}, chunk(error="")), answer(choice())),
    "of id, created and model the first": (
        sse(
            {"id": "", "object": "", "created": 0, "model": "", "choices": []},
            *HELLO,
            {**STOP, "id": "c2", "created": 8},
        ),
        HELLO_ANSWER,
    ),
    "neither id nor model": (
        sse({"choices": [said({"content": "x"}, "stop")]}),
        {"object": "chat.completion", "choices": [choice(content="x")]},
    ),
}

OTHER_KINDS: dict[str, tuple[bytes, Any]] = {
    "text completion": (
        sse(*({**HEAD, "object": "text_completion", "choices": [
            {"text": text, "index": 0, "logprobs": {"tokens": [text]}, "finish_reason": end}
        ]} for text, end in (("a", None), ("b", "stop")))),
        {**HEAD, "object": "text_completion", "choices": [
            {"index": 0, "text": "ab", "logprobs": {"tokens": ["a", "b"]}, "finish_reason": "stop"}
        ]},
    ),
    "response": (
        sse({"type": "response.created", "response": {"error": None}}, {"type": "response.text.delta", "delta": "x"},
            {"type": "response.completed", "response": {"id": "r", "output": [1]}}, {"type": "error"}),
        {"id": "r", "output": [1]},
    ),
    "response, its events named": (
        lines("event: response.incomplete", 'data: {"type":"response.incomplete","response":{"id":"r"}}', ""),
        {"id": "r"},
    ),
    "plain JSON": (json.dumps(HELLO_ANSWER).encode(), HELLO_ANSWER),
    "plain JSON, indented": (lines(*json.dumps(HELLO_ANSWER, indent=2).split("\n"), end="\r\n"), HELLO_ANSWER),
    "plain JSON, byte order mark": (b"\xef\xbb\xbf" + json.dumps(HELLO_ANSWER).encode(), HELLO_ANSWER),
    "plain JSON after comments": (b": PROCESSING\n\n" * 2 + json.dumps(HELLO_ANSWER).encode(), HELLO_ANSWER),
    "a plain error": (b'{"error": {"code": 429}}', {"error": {"code": 429}}),
}  # fmt: skip

ERRORS: dict[str, tuple[bytes, Any]] = {
    "an event of its own": (
        sse(*HELLO, {"error": {"message": "x", "code": 502}}, STOP),
        {"error": {"message": "x", "code": 502}},
    ),
    "a string": (sse({"error": "overloaded"}), {"error": {"message": "overloaded"}}),
    "another value": (sse({"error": [429]}), {"error": {"message": "[429]"}}),
    "beside choices": (sse(*HELLO, {**chunk(said({}, "error")), "error": {"code": 429}}), {"error": {"code": 429}}),
    "after the end": (sse(*HELLO, STOP, {"error": {"code": 500}}) + DONE, {"error": {"code": 500}}),
    "event: error, wrapped": (lines("event: error", 'data: {"error":{"code":1}}', ""), {"error": {"code": 1}}),
    "event: error, bare": (lines("event: error", 'data: {"code":1}', ""), {"error": {"code": 1}}),
    "event: error, a string": (lines("event:error", 'data: "x"', ""), {"error": {"message": "x"}}),
    "event: error, no JSON": (b"event: error\ndata: bad \xff way\n\n", {"error": {"message": "bad \ufffd way"}}),
    "event: error, empty": (lines("event: error", "data: {}"), {"error": {"message": "an error without a reason"}}),
    "type error": (sse({"type": "error", "code": "x"}), {"error": {"type": "error", "code": "x"}}),
    "object error": (sse({"object": "error", "message": "y"}), {"error": {"object": "error", "message": "y"}}),
    "finish reason error": (
        sse(*HELLO, chunk(said({}, "error"))),
        {"error": {"message": "the stream ended with finish reason 'error'"}},
    ),
    "a choice's own": (sse(*HELLO, chunk(said({}, "error", error={"code": 502}))), {"error": {"code": 502}}),
    "a choice's own, with another end": (sse(chunk(said({}, "stop", error={"code": 5}))), {"error": {"code": 5}}),
    "a failed response": (sse({"type": "response.failed", "response": {"error": {"code": 1}}}), {"error": {"code": 1}}),
    "a failed response without a reason": (
        sse({"type": "response.failed", "response": {"error": None}}),
        {"error": {"message": "the response failed"}},
    ),
}

NOT_JSON = "an event is not JSON"
NO_END = "without a finish reason for choice"
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty stream"),
    "blank lines and comments": (b"\n\r\n: ping\n\n", "empty stream"),
    "only [DONE]": (DONE, "the stream said [DONE] without an answer"),
    "only usage": (sse(chunk(usage=USAGE)), "the stream ended without an answer"),
    "only pings": (lines("event: ping", "data: {}", ""), "the stream ended without an answer"),
    "an unfinished response": (sse({"type": "response.completed"}), "the stream ended without an answer"),
    "cut between events": (sse(*HELLO), f"the stream ended {NO_END} 0"),
    "cut between events, and [DONE]": (sse(*HELLO) + DONE, f"the stream said [DONE] {NO_END} 0"),
    "one of two choices cut": (sse(chunk(said({}, index=1)), STOP) + DONE, f"the stream said [DONE] {NO_END} 1"),
    "an empty finish reason": (sse(*HELLO, chunk(said({}, ""))), f"the stream ended {NO_END} 0"),
    "a finish reason of another kind": (sse(chunk(said({}, end=True))), f"the stream ended {NO_END} 0"),
    "cut inside an event": (sse(*HELLO) + b'data: {"usage"', f"{NOT_JSON}: Expecting ':' delimiter (char 8)"),
    "bad JSON": (sse(*HELLO) + b"data: [}\n\n" + sse(STOP) + DONE, f"{NOT_JSON}: Expecting value (char 1)"),
    "plain words": (b"data: Bad Gateway\n\n", f"{NOT_JSON}: Expecting value (char 0)"),
    "invalid UTF-8": (sse(*HELLO) + b'data: {"a":"\xff"}\n\n' + sse(STOP), f"{NOT_JSON}: invalid UTF-8 at byte 6"),
    "nested too deeply": (b"data: " + b"[" * 200_000, "an event is nested too deeply to be read"),
    "a delta nested too deeply": (
        b'data: {"choices":[{"delta":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}]}",
        "an event is nested too deeply to be merged",
    ),
}  # fmt: skip

# What is kept of a body in place of a stream: it is cleaned and cut by whoever shows it.
STRAY: dict[str, tuple[bytes, bytes]] = {
    "HTML": (b"<html>\r\n<b>502</b>\r\n</html>", b"<html>\n<b>502</b>\n</html>"),
    "a JSON list": (b"[1]", b"[1]"),
    "null": (b"null", b"null"),
    "two JSON objects": (b"{}\n{}\n", b"{}\n{}"),
    "JSON cut short": (b'{"id": "\xc3', b'{"id": "\xc3'),
}

CASES: dict[str, tuple[bytes, Any]] = {
    f"{kind}: {name}": case
    for kind, table in (
        ("message", MESSAGES),
        ("choices", CHOICES),
        ("tools", TOOLS),
        ("merge", MERGED),
        ("fields", FIELDS),
        ("kind", OTHER_KINDS),
        ("error", ERRORS),
        ("broken", {name: (stream, Incomplete(message)) for name, (stream, message) in BROKEN.items()}),
        ("stray", {name: (body, Incomplete("no event stream", kept)) for name, (body, kept) in STRAY.items()}),
    )
    for name, case in table.items()
}
SMALL = sorted(name for name, (stream, _) in CASES.items() if len(stream) < 4000)


@pytest.mark.parametrize("case", CASES)
def test_fed_whole_and_byte_by_byte(case: str) -> None:
    """Each stream has exactly this result, fed at once or byte by byte, and has it again when asked again."""
    stream, expected = CASES[case]
    assembly = Assembly()
    assembly.feed(stream)
    assert assembly.result() == expected
    assert assembly.result() == expected
    assert assembled(stream[at : at + 1] for at in range(len(stream))) == expected


@given(st.sampled_from(SMALL), st.lists(st.integers(0, 4000), max_size=8))
def test_fed_in_any_pieces(case: str, places: list[int]) -> None:
    """Each stream has this result however it is cut, empty pieces too."""
    stream, expected = CASES[case]
    assert assembled(cut(stream, places)) == expected


def test_fields_stand_in_the_order_of_a_plain_answer() -> None:
    """An answer from a stream reads like a plain one, its fields in the same order."""
    result = assembled([sse(*HELLO, {**STOP, "x": 1}, {"usage": USAGE})])
    assert isinstance(result, dict)
    assert list(result) == ["id", "object", "created", "model", "choices", "x", "usage"]
    assert list(result["choices"][0]) == ["index", "message", "logprobs", "finish_reason"]
    assert list(result["choices"][0]["message"]) == ["role", "content", "refusal"]


@pytest.mark.parametrize(
    ("delta", "speaks"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None, "tool_calls": []}, False),
        ({}, False),
        (None, False),
        ({"content": "x"}, True),
        ({"reasoning_content": "x"}, True),
        ({"reasoning": "x"}, True),
        ({"refusal": "x"}, True),
        (call(0, ""), True),
        ({"function_call": {"name": "f"}}, True),
    ],
)
def test_started_with_the_first_output(delta: Any, speaks: bool) -> None:  # noqa: FBT001 -- a column of the table
    """Time to first token ends with output, not with a role or an empty string, and not before the event is whole."""
    assembly = Assembly()
    assembly.feed(sse(chunk()) + sse(chunk(said(delta)))[:-1])
    assert not assembly.started
    assembly.feed(b"\n")
    assert assembly.started is speaks


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 0, "text": "x"}]},
        {"choices": [{"index": 0, "message": {"content": "x"}}]},
        {"type": "response.output_text.delta", "delta": "x"},
    ],
)
def test_started_in_streams_of_other_kinds(event: dict[str, Any]) -> None:
    """A completion's text, a whole message and a response's delta are output too."""
    assembly = Assembly()
    assembly.feed(sse({"type": "response.created", "response": {}}, {"type": "ping"}))
    assert not assembly.started
    assembly.feed(sse(event))
    assert assembly.started


@pytest.mark.parametrize(
    ("last", "finished"),
    [
        (DONE, True),
        (b"data: [DONE]\n", False),
        (sse(STOP), False),
        (sse({"error": {}}), False),
        (sse({"error": {"code": 1}}), True),
        (b"data: oops\n\n", True),
        (sse({"type": "response.completed", "response": {}}), True),
    ],
)
def test_finished_when_nothing_can_change_the_result(last: bytes, finished: bool) -> None:  # noqa: FBT001 -- as above
    """[DONE], an error or a broken event ends the reading; a finish reason does not, since usage may follow."""
    assembly = Assembly()
    assembly.feed(sse(*HELLO))
    assert not assembly.finished
    assembly.feed(last)
    assert assembly.finished is finished


@pytest.mark.parametrize(
    ("stream", "is_whole", "expected"),
    [
        (sse(*HELLO, STOP), False, Incomplete("the stream ended with 1 of 2 choices")),
        (sse(*HELLO, STOP) + DONE, True, HELLO_ANSWER),
        (sse(*HELLO, STOP, chunk(said({}, "stop", 1))), True, answer(choice(content="Héllo"), choice(index=1))),
        (sse(*HELLO, STOP, chunk(said({"content": "x"}, None, 1))), False, Incomplete(f"the stream ended {NO_END} 1")),
    ],
)
def test_a_stream_that_just_ends_has_all_choices_that_were_asked_for(
    stream: bytes,
    is_whole: bool,  # noqa: FBT001 -- as above
    expected: Any,
) -> None:
    """Two were asked for: one is an answer only where the endpoint says that it is done."""
    assembly = Assembly(wanted=2)
    assembly.feed(stream)
    assert assembly.is_whole is is_whole
    assert assembly.result() == expected


def test_result_asked_for_where_the_stack_is_nearly_full() -> None:
    """What could be merged but cannot be built, because the caller stands deeper, is not whole: nothing raises."""
    assembly = Assembly()
    assembly.feed(
        b'data: {"choices":[{"delta":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b',"finish_reason":"stop"}]}\n\n'
    )

    def deeper(levels: int) -> dict[str, Any] | Incomplete:
        return deeper(levels - 1) if levels else assembly.result()

    assert isinstance(assembly.result(), dict)
    frames = sum(1 for _ in traceback.walk_stack(None))
    full = deeper(sys.getrecursionlimit() - frames - 60)
    assert full == Incomplete("an event is nested too deeply to be merged")


def test_linear_in_bytes() -> None:
    """One event of 8 MB in pieces of 64 bytes, and 100,000 deltas, are assembled well within the suite's time limit.

    Concatenating what has come so far at every piece would copy 500 GB for the one.
    """
    stream = sse(chunk(said({"content": "x" * 8_000_000}, "stop")))
    pieces = (stream[at : at + 64] for at in range(0, len(stream), 64))
    assert assembled(pieces) == answer(choice(content="x" * 8_000_000))
    delta = sse(chunk(said({"content": "é"})))
    assert assembled([*[delta] * 100_000, sse(STOP)]) == answer(choice(content="é" * 100_000))


def mutated(stream: bytes, dice: random.Random) -> bytes:
    """The stream with a few of its bytes removed, doubled, replaced or reversed."""
    mutant = bytearray(stream)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(mutant) + 1)
        to = min(len(mutant), at + dice.choice([0, 1, 2, 5, 40]))
        odd = dice.choice([b"null", b'"', b"{", b"[]", b"\r", b"\n\n", b"1e999", b"\xff", b"{}", b'""', b"5", b"data:"])
        mutant[at:to] = dice.choice([b"", mutant[at:to] * 2, odd, mutant[at:to][::-1]])
    return bytes(mutant)


@given(st.sampled_from(SMALL), st.randoms(use_true_random=False))
def test_no_mutant_raises(case: str, dice: random.Random) -> None:
    """A damaged stream has a result, the same in pieces; a message is one line, and a chat answer has its ends."""
    stream = mutated(CASES[case][0], dice)
    result = assembled([stream])
    assert result == assembled(cut(stream, [dice.randrange(4000) for _ in range(5)]))
    match result:
        case Incomplete(message):
            assert message.isprintable()
        case {"object": "chat.completion", "choices": [*choices]} if stream.startswith(b"data"):
            assert choices
            assert all(one["finish_reason"] for one in choices)


@given(st.binary())
def test_no_bytes_raise(noise: bytes) -> None:
    """Nor do any bytes raise, alone, as an event's data, or as a choice."""
    for stream in (noise, b"data: " + noise, b'data: {"choices":[' + noise + b"]}\n\n"):
        assert isinstance(assembled([stream]), (dict, Incomplete))


WORDS = [
    "choices",
    "delta",
    "index",
    "message",
    "text",
    "tool_calls",
    "function",
    "id",
    "name",
    "error",
    "type",
    "usage",
]
WORDS += [
    "finish_reason",
    "content",
    "logprobs",
    "response",
    "object",
    "stop",
    "response.completed",
    "response.failed",
    "",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=5))
def test_no_json_raises(values: list[Any]) -> None:
    """Nor does any JSON with the known names in unknown places, as events or as choices and deltas."""
    assert isinstance(assembled([sse(*values)]), (dict, Incomplete))
    assert isinstance(
        assembled([sse(*({"choices": [value, {"delta": value}]} for value in values))]), (dict, Incomplete)
    )
