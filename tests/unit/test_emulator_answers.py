"""The emulator's answers: a pure function of body and seed, in the shape the endpoint has."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.emulator import answer
from batchrouter.emulator.chunks import chunks
from batchrouter.emulator.endpoints import completion, embedding, response
from batchrouter.emulator.schema import SchemaError, instance

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
OTHER_TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def body(text: str = "What is the capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5.4", "messages": [{"role": "user", "content": text}], **more}


def content(completion: dict[str, Any], index: int = 0) -> Any:
    return completion["choices"][index]["message"]["content"]


def assembled(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that a stream says, put together by index."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        for one in part["choices"]:
            choice = choices.setdefault(one["index"], {"content": None, "calls": {}, "finish_reason": None})
            delta = one["delta"]
            if "content" in delta:
                choice["content"] = (choice["content"] or "") + delta["content"]
            for call in delta.get("tool_calls", []):
                known = choice["calls"].setdefault(call["index"], {"arguments": ""})
                known |= {"id": call["id"], "name": call["function"]["name"]} if "id" in call else {}
                known["arguments"] += call["function"]["arguments"]
            choice["finish_reason"] = one["finish_reason"] or choice["finish_reason"]
    return [choices[index] for index in sorted(choices)]


def plainly(completion: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a plain answer, in the form of `assembled`."""
    return [
        {
            "content": one["message"]["content"],
            "calls": {
                index: {"id": call["id"], **call["function"]}
                for index, call in enumerate(one["message"].get("tool_calls", []))
            },
            "finish_reason": one["finish_reason"],
        }
        for one in completion["choices"]
    ]


def test_the_same_body_and_seed_get_the_same_answer() -> None:
    """Whatever the order of keys; another seed, question or model gets another."""
    asked = body(temperature=0.5)
    assert answer(asked, 7) == answer(dict(reversed(asked.items())), 7)
    others = [answer(asked, 8), answer(body("What else?"), 7), answer({**asked, "model": "gpt-5.4-mini"}, 7)]
    assert len({content(one) for one in [answer(asked, 7), *others]}) == 4


def test_many_questions_get_as_many_answers() -> None:
    """10,000 rows of one template: no two share an id or a text."""
    answers = [answer(body(f"Label row {n}")) for n in range(10_000)]
    assert len({one["id"] for one in answers}) == 10_000
    assert len({content(one) for one in answers}) == 10_000


def test_a_budget_cuts_the_same_text() -> None:
    """`max_tokens` and its newer name give a beginning of the whole text, with finish_reason length."""
    whole = answer(body())
    assert whole["choices"][0]["finish_reason"] == "stop"
    for cut in (answer(body(max_tokens=5)), answer(body(max_completion_tokens=5))):
        assert content(whole).startswith(content(cut))
        assert 0 < len(content(cut)) < len(content(whole))
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 5
        assert cut["id"] == whole["id"]


def test_a_reasoning_model_may_spend_its_budget_in_silence() -> None:
    """A small budget gives empty content; a large one an answer; both report the hidden tokens."""
    silent = answer({**body(), "model": "reasoner-1", "max_tokens": 20})
    assert content(silent) == ""
    assert silent["choices"][0]["finish_reason"] == "length"
    assert silent["usage"]["completion_tokens"] == 20
    assert silent["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    spoken = answer({**body(), "model": "reasoner-1", "max_tokens": 4000})
    assert content(spoken)
    assert spoken["choices"][0]["finish_reason"] == "stop"
    assert 32 <= spoken["usage"]["completion_tokens_details"]["reasoning_tokens"] < 160


def test_usage_adds_up() -> None:
    """The total is prompt and completion; a long prompt is cached in part."""
    usage = answer(body("word " * 2000))["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 2000
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def test_several_choices_differ() -> None:
    """`n` gives so many different choices, numbered, and the first is the only one of `n` 1."""
    several = answer(body(n=3))
    assert [one["index"] for one in several["choices"]] == [0, 1, 2]
    assert len({content(several, n) for n in range(3)}) == 3
    assert several["choices"][0] == answer(body())["choices"][0]


def test_stop_ends_the_text_before_it() -> None:
    """The first of the stop strings that occurs is cut off with all behind it."""
    whole = content(answer(body()))
    word = whole.split()[-3]
    stopped = answer(body(stop=["never there", word]))
    assert content(stopped) == whole[: whole.index(word)]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_tools_are_called_as_the_choice_says() -> None:
    """With auto it calls until a tool has answered; none never; required and a named function always."""
    asked = body(tools=[TOOL, OTHER_TOOL])
    called = answer(asked)["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert called["message"]["content"] is None
    named = answer(body(tools=[TOOL, OTHER_TOOL], tool_choice={"type": "function", "function": {"name": "get_time"}}))
    assert [c["function"]["name"] for c in named["choices"][0]["message"]["tool_calls"]] == ["get_time"]
    assert content(answer({**asked, "tool_choice": "none"}))
    told = [*asked["messages"], {"role": "assistant"}, {"role": "tool", "tool_call_id": "c", "content": "18 C"}]
    assert content(answer({**asked, "messages": told}))
    single = answer(body(tools=[TOOL], tool_choice="required"))["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(single[0]["function"]["arguments"])
    assert isinstance(arguments["city"], str)
    assert arguments["unit"] in {"C", "F"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3},
        {"max_tokens": 3},
        {"tools": [TOOL, OTHER_TOOL], "n": 4},
        {"tools": [TOOL], "max_tokens": 2},
        {"response_format": {"type": "json_object"}},
        {"model": "reasoner-1", "max_tokens": 20},
    ],
)
def test_a_stream_is_the_plain_answer(more: dict[str, Any]) -> None:
    """The chunks put together are the choices of the plain answer; the last chunk carries its usage."""
    plain = answer({**body(), **more})
    parts = list(chunks(plain, usage=True))
    assert assembled(parts) == plainly(plain)
    assert {part["id"] for part in parts} == {plain["id"]}
    assert {part["created"] for part in parts} == {plain["created"]}
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == plain["usage"]
    assert all(part["usage"] is None for part in parts[:-1])
    assert all("usage" not in part for part in chunks(plain, usage=False))


def test_json_modes_answer_json() -> None:
    """json_object gives an object; json_schema one that has what the schema requires."""
    loose = json.loads(content(answer(body(response_format={"type": "json_object"}))))
    assert isinstance(loose, dict)
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["label", "score"],
    }
    shape = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema, "strict": True}}
    answers = [json.loads(content(answer(body(f"row {n}", response_format=shape)))) for n in range(50)]
    assert {one["label"] for one in answers} == {"good", "bad"}
    assert {one["score"] for one in answers} == {1, 2, 3, 4, 5}


def fits(value: Any, schema: Any) -> bool:
    """A second opinion on the keywords that the strategy below draws."""
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "object":
            inner = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(inner)
                and all(fits(value[name], inner[name]) for name in value)
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(fits(one, schema["items"]) for one in value)
            )
        case "string":
            return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case "number":
            return (
                type(value) in {int, float} and math.isfinite(value) and schema["minimum"] <= value <= schema["maximum"]
            )
        case "boolean":
            return isinstance(value, bool)
        case _:
            return value is None


def ranged(kind: str, low: str, high: str, most: int) -> st.SearchStrategy[dict[str, Any]]:
    pairs = st.tuples(st.integers(0, most), st.integers(0, most)).map(sorted)
    return pairs.map(lambda pair: {"type": kind, low: pair[0], high: pair[1]})


LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.integers() | st.text(), min_size=1).map(lambda values: {"enum": values}),
    ranged("integer", "minimum", "maximum", 1000),
    ranged("number", "minimum", "maximum", 1000),
    ranged("string", "minLength", "maxLength", 200),
)


def grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        some = st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([])
        return some.map(lambda required: {"type": "object", "properties": properties, "required": required})

    objects = st.dictionaries(st.text(min_size=1), inner, max_size=4).flatmap(an_object)
    arrays = st.tuples(ranged("array", "minItems", "maxItems", 5), inner).map(lambda two: {**two[0], "items": two[1]})
    return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})


@given(schema=st.recursive(LEAVES, grown, max_leaves=12), seed=st.integers(0, 2**32))
def test_an_instance_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    """Any schema of the keywords that models are given gets a valid instance, the same for the same seed."""
    drawn = instance(schema, random.Random(seed))
    assert fits(drawn, schema), drawn
    assert instance(schema, random.Random(seed)) == drawn


def test_recursive_schemas_end() -> None:
    """A tree by $ref is drawn to a bounded depth; one that requires itself is refused in words."""
    tree = {
        "$defs": {
            "node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
        },
        "$ref": "#/$defs/node",
    }
    for seed in range(100):
        assert isinstance(instance(tree, random.Random(seed)), dict)
    endless = {"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"]}
    with pytest.raises(SchemaError, match="without an end"):
        instance(endless, random.Random(0))
    with pytest.raises(SchemaError, match="points at nothing"):
        instance({"$ref": "#/$defs/none"}, random.Random(0))
    with pytest.raises(SchemaError, match="unknown type"):
        instance({"type": "text"}, random.Random(0))


def test_keywords_beyond_the_basic_ones_hold() -> None:
    """const, allOf, uniqueItems, exclusive bounds, multipleOf and formats are met."""
    for seed in range(50):
        source = random.Random(seed)
        assert instance({"const": 4}, source) == 4
        parts = [
            {"properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"properties": {"b": {"const": 1}}, "required": ["b"]},
        ]
        assert instance({"allOf": parts}, source) == {"a": None, "b": 1}
        unique = instance({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 3}, source)
        assert sorted(unique) == [1, 2, 3]
        assert instance({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, source) == 4
        assert instance({"type": "integer", "minimum": 1, "maximum": 99, "multipleOf": 7}, source) % 7 == 0
        assert 0 < instance({"type": "number", "exclusiveMinimum": 0, "maximum": 0.001}, source) <= 0.001
        assert "@" in instance({"type": "string", "format": "email"}, source)


def test_the_other_routes_answer_in_their_own_shape() -> None:
    """Completions, embeddings (floats and base64 alike) and responses."""
    text = completion({"model": "gpt-5.4", "prompt": ["a", "b"]}, 0)
    assert [one["index"] for one in text["choices"]] == [0, 1]
    assert text["usage"]["total_tokens"] == text["usage"]["prompt_tokens"] + text["usage"]["completion_tokens"]
    vectors = embedding({"model": "text-embedding-3", "input": ["a", "a", "b"], "dimensions": 8}, 0)["data"]
    assert vectors[0]["embedding"] == vectors[1]["embedding"] != vectors[2]["embedding"]
    assert len(vectors[0]["embedding"]) == 8
    said = response({"model": "gpt-5.4", "input": "Hello", "max_output_tokens": 3}, 0)
    assert said["status"] == "incomplete"
    assert said["output"][0]["content"][0]["text"]
