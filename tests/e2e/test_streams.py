"""Streamed or not, the answer is the same: through the command, over real sockets, for every kind of row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from kit.world import Served, read_jsonl, run, serving, write_jsonl
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from batchrouter.emulator import Behaviour

CHAT, TEXT, RESPONSES, EMBEDDINGS = (
    f"/v1/{route}" for route in ("chat/completions", "completions", "responses", "embeddings")
)
TYPES: dict[str, Any] = {
    CHAT: ChatCompletion,
    TEXT: Completion,
    RESPONSES: Response,
    EMBEDDINGS: CreateEmbeddingResponse,
}


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("get_weather"), tool("get_time")]
SCHEMA = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}

CHATS: dict[str, dict[str, Any]] = {
    "content": {},
    "several choices": {"n": 3},
    "one tool": {"tools": TOOLS[:1], "tool_choice": "required"},
    "tools in several choices": {"tools": TOOLS, "n": 4},
    "tools cut off": {"tools": TOOLS, "max_tokens": 2},
    "reasoning": {"model": "reasoner-1"},
    "reasoning cut off": {"model": "reasoner-1", "max_tokens": 20},
    "reasoning fields": {"said": "[[fault:reasoning_fields]] think"},
    "log probabilities": {"logprobs": True, "top_logprobs": 3, "n": 2},
    "a refusal": {"said": "[[fault:refusal]] no"},
    "parts": {"said": "[[fault:content_parts]] parts"},
    "content null": {"said": "[[fault:content_null]]"},
    "wide signs": {"said": "[[fault:wide_content]]"},
    "control signs": {"said": "[[fault:nul_content]]"},
    "half a surrogate pair": {"said": "[[fault:lone_surrogate]]"},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "cut off": {"max_completion_tokens": 4},
    "filtered": {"said": "[[fault:finish_filter]]"},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (TEXT, {"prompt": "Once upon a time"}),
    "texts": (TEXT, {"prompt": ["Once", "Twice"], "n": 2, "max_tokens": 7}),
    "response": (RESPONSES, {"input": "Tell me"}),
    "response cut off": (RESPONSES, {"input": "Tell me more", "max_output_tokens": 3}),
    "response of a reasoner": (RESPONSES, {"input": "Think", "model": "reasoner-1"}),
    "vectors": (EMBEDDINGS, {"input": ["a", "b"], "model": "text-embedding-3", "dimensions": 8}),
    "vectors in base64": (EMBEDDINGS, {"input": "a", "model": "text-embedding-3", "encoding_format": "base64"}),
}


def chat_body(name: str) -> dict[str, Any]:
    fields = dict(CHATS[name])
    return {"model": "gpt-5.4", "messages": [{"role": "user", "content": fields.pop("said", name)}], **fields}


def rows() -> list[dict[str, Any]]:
    chats = [{"custom_id": name, "method": "POST", "url": CHAT, "body": chat_body(name)} for name in CHATS]
    return chats + [
        {"custom_id": name, "method": "POST", "url": url, "body": {"model": "gpt-5.4", **fields}}
        for name, (url, fields) in OTHERS.items()
    ]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Behaviour(seed=5)) as running:
        yield running


@pytest.fixture(scope="module")
def answers(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results by option and custom id, of the same rows run streamed and plain."""
    folder = tmp_path_factory.mktemp("streams")
    write_jsonl(folder / "in.jsonl", rows())
    found = {}
    for option in ("--stream", "--no-stream"):
        done = run("run", "in.jsonl", option, "-o", option, cwd=folder, env=served.environment, dev_mode=True)
        assert done.returncode == 0, done.stderr
        found[option] = {row["custom_id"]: row for row in read_jsonl(folder / option / "results.jsonl")}
        totals = read_jsonl(folder / option / "usage.jsonl")[-1]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"):
            assert totals[name] == sum(row["batchrouter"]["usage"][name] for row in found[option].values()) > 0
        assert totals["unknown_usage"] == 0
    return found


def test_streamed_and_plain_answers_are_equal(answers: dict[str, dict[str, Any]]) -> None:
    """The whole body, id and all: content, tools, choices, reasoning, log probabilities, refusals, every route."""
    for row in rows():
        streamed, plain = (answers[option][row["custom_id"]] for option in ("--stream", "--no-stream"))
        assert streamed["response"]["body"] == plain["response"]["body"], row["custom_id"]
        assert streamed["batchrouter"]["usage"] == plain["batchrouter"]["usage"]
        assert streamed["batchrouter"]["truncated"] == plain["batchrouter"]["truncated"]
        assert "ttft_s" not in plain["batchrouter"]
    silent = {"vectors", "vectors in base64", "reasoning cut off", "content null"}  # there is no first token
    timed = {name for name, row in answers["--stream"].items() if "ttft_s" in row["batchrouter"]}
    assert timed == {row["custom_id"] for row in rows()} - silent
    assert answers["--stream"]["reasoning cut off"]["batchrouter"]["truncated"] is True


def test_the_sdk_takes_every_answer_for_its_own(answers: dict[str, dict[str, Any]]) -> None:
    """Each body, streamed or not, is what the type of its route expects."""
    odd = {"parts", "half a surrogate pair", "vectors in base64"}  # what endpoints send, and the types do not know
    for found in answers.values():
        for row in rows():
            if row["custom_id"] not in odd:
                TYPES[row["url"]].model_validate(found[row["custom_id"]]["response"]["body"], strict=False)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_the_sdk_assembles_the_same_streams_to_the_same_answers(
    served: Served, answers: dict[str, dict[str, Any]]
) -> None:
    """`chat.completions.stream` and `responses.stream` of the same questions end in what we recorded."""
    emulator = served.emulator
    with openai.OpenAI(api_key=emulator.key, base_url=emulator.base_url, max_retries=0) as sdk:
        for name in ("content", "several choices", "one tool", "tools in several choices", "reasoning", "a refusal"):
            body = chat_body(name)
            with sdk.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
                final = without_nulls(stream.get_final_completion().to_dict())
            for choice in final["choices"]:
                for call in choice["message"].get("tool_calls", ()):
                    call.pop("index", None)
                    call["function"].pop("parsed_arguments", None)
            assert final == without_nulls(answers["--stream"][name]["response"]["body"]), name
        with sdk.responses.stream(model="gpt-5.4", input="Tell me") as events:
            response = json.loads(events.get_final_response().to_json())
        ours = answers["--stream"]["response"]["response"]["body"]
        assert response["output"][0]["content"][0]["text"] == ours["output"][0]["content"][0]["text"]
        assert response["id"] == ours["id"]
