"""The official SDK takes the emulator for the real thing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from kit.world import Served, serving
from openai.types.chat import ChatCompletion

from batchrouter.emulator import Behaviour, Limits

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("get_weather", "get_time")
]


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(Behaviour(journal=True)) as running:
        yield running


@pytest.fixture
def sdk(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=served.emulator.key, base_url=served.emulator.base_url, max_retries=0) as client:
        yield client


def expected(served: Served, **more: Any) -> dict[str, Any]:
    return served.emulator.answer({"model": "gpt-5.4", "messages": MESSAGES, **more})


def test_a_plain_answer(served: Served, sdk: openai.OpenAI) -> None:
    """Content, finish reason, usage and request id arrive in the SDK's own objects."""
    reply = sdk.chat.completions.create(model="gpt-5.4", messages=MESSAGES)
    right = expected(served)
    assert reply.id == right["id"]
    assert reply.choices[0].message.content == right["choices"][0]["message"]["content"]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == right["usage"]["total_tokens"]
    assert reply._request_id is not None


def test_a_stream_says_the_plain_answer(served: Served, sdk: openai.OpenAI) -> None:
    """Deltas joined, the finish reason of each of two choices, and usage in the last chunk."""
    stream = sdk.chat.completions.create(
        model="gpt-5.4", messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", ""], None
    reasons: list[str | None] = [None, None]
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    right = expected(served, n=2)
    assert texts == [choice["message"]["content"] for choice in right["choices"]]
    assert reasons == ["stop", "stop"]
    assert usage is not None
    assert usage.completion_tokens == right["usage"]["completion_tokens"]


def test_the_sdk_s_own_assembly_of_streamed_tool_calls(served: Served, sdk: openai.OpenAI) -> None:
    """Two calls whose arguments are interleaved come out whole, each valid against its tool's schema."""
    with sdk.chat.completions.stream(model="gpt-5.4", messages=MESSAGES, tools=TOOLS, n=4) as stream:
        final = stream.get_final_completion()
    right = expected(served, tools=TOOLS, n=4)
    assert len(final.choices) == 4
    for choice, told in zip(final.choices, right["choices"], strict=True):
        calls = choice.message.tool_calls
        assert calls is not None
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
            (call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in told["message"]["tool_calls"]
        ]
        assert all(isinstance(json.loads(call.function.arguments)["city"], str) for call in calls)
    assert {len(choice.message.tool_calls or []) for choice in final.choices} == {1, 2}


def test_structured_answers(sdk: openai.OpenAI) -> None:
    """A strict schema is met by content that parses."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["yes", "no"]}, "score": {"type": "number"}},
        "required": ["label", "score"],
        "additionalProperties": False,
    }
    shape: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    reply = sdk.chat.completions.create(model="gpt-5.4", messages=MESSAGES, response_format=shape)
    told = json.loads(reply.choices[0].message.content or "")
    assert told["label"] in {"yes", "no"}
    assert isinstance(told["score"], float)


def test_the_other_routes(sdk: openai.OpenAI) -> None:
    """models, embeddings (the SDK asks for base64), completions and responses."""
    assert "gpt-5.4" in {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("reasoner-1").id == "reasoner-1"
    vectors = sdk.embeddings.create(model="text-embedding-3", input=["a", "b"], dimensions=16).data
    assert [len(one.embedding) for one in vectors] == [16, 16]
    assert sdk.completions.create(model="gpt-5.4", prompt="Once").choices[0].text
    assert sdk.responses.create(model="gpt-5.4", input="Hello").output_text


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("status_400", openai.BadRequestError),
        ("key_in_401", openai.AuthenticationError),
        ("status_402", openai.APIStatusError),
        ("moderation", openai.PermissionDeniedError),
        ("status_404", openai.NotFoundError),
        ("status_409", openai.ConflictError),
        ("status_422", openai.UnprocessableEntityError),
        ("retry_after", openai.RateLimitError),
        ("insufficient_quota", openai.RateLimitError),
        ("html_502", openai.InternalServerError),
        ("empty_500", openai.InternalServerError),
        ("reset_before_headers", openai.APIConnectionError),
        ("short_body", openai.APIConnectionError),
    ],
)
def test_errors_are_the_sdk_s_classes(sdk: openai.OpenAI, name: str, error: type[openai.OpenAIError]) -> None:
    """Each fault raises what the endpoint's own would."""
    messages: Any = [{"role": "user", "content": f"[[fault:{name}]]"}]
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(model="gpt-5.4", messages=messages)
    if name == "insufficient_quota":
        assert isinstance(caught.value, openai.RateLimitError)
        assert caught.value.code == "insufficient_quota"


def test_the_endpoint_s_own_refusals(served: Served, sdk: openai.OpenAI) -> None:
    """An unknown model, a wrong key and a limit that is reached."""
    with pytest.raises(openai.BadRequestError) as unknown:
        sdk.chat.completions.create(model="nobody", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="wrong").chat.completions.create(model="gpt-5.4", messages=MESSAGES)
    served.call(lambda emulator: setattr(emulator, "limits", Limits(requests_per_minute=1)))
    sdk.chat.completions.create(model="gpt-5.4", messages=MESSAGES)
    with pytest.raises(openai.RateLimitError) as limited:
        sdk.chat.completions.create(model="gpt-5.4", messages=MESSAGES)
    assert int(limited.value.response.headers["retry-after"]) >= 1


def test_the_sdk_s_retries_get_through(served: Served) -> None:
    """A fault on the first two attempts: the third answers, and all three were of one question."""
    body: Any = {"model": "gpt-5.4", "messages": [{"role": "user", "content": "[[fault:retry_after_ms=1*2]]"}]}

    async def scene() -> str | None:
        emulator = served.emulator
        async with openai.AsyncOpenAI(api_key=emulator.key, base_url=emulator.base_url, max_retries=3) as client:
            reply: ChatCompletion = await client.chat.completions.create(**body)
            return reply.choices[0].message.content

    assert asyncio.run(scene()) == served.emulator.answer(body)["choices"][0]["message"]["content"]
    row = served.emulator.row(body)
    assert (row.asked, row.answered) == (3, 1)
