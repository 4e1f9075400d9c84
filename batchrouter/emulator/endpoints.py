"""The endpoint's other routes: models, completions, embeddings, responses."""

from __future__ import annotations

import array
import base64
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from batchrouter.emulator.answers import answer
from batchrouter.emulator.plays import problem

type_of_body = Mapping[str, Any]

_OWNERS: Final = {"claude": "anthropic", "gpt": "openai", "text": "openai"}
_DIMENSIONS: Final = 256
_MOST_DIMENSIONS: Final = 4096


def catalogue(models: tuple[str, ...]) -> dict[str, Any]:
    """What `GET /models` answers."""
    return {"object": "list", "data": [one_model(name) for name in models]}


def one_model(name: str) -> dict[str, Any]:
    """One entry of the catalogue."""
    owner = _OWNERS.get(name.split("-", maxsplit=1)[0], "worldrouter")
    return {"id": name, "object": "model", "created": 1_738_960_610, "owned_by": owner}


def completion(body: type_of_body, seed: int) -> dict[str, Any]:
    """A legacy text completion: each prompt is asked as one user message."""
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    answers = [answer(_asked(body, prompt), seed) for prompt in prompts]
    texts = [(choice["message"]["content"], choice["finish_reason"]) for one in answers for choice in one["choices"]]
    return {
        "id": answers[0]["id"].replace("chatcmpl", "cmpl"),
        "object": "text_completion",
        "created": answers[0]["created"],
        "model": body["model"],
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(texts)
        ],
        "usage": {
            name: sum(one["usage"][name] for one in answers)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }


def embedding(body: type_of_body, seed: int) -> dict[str, Any]:
    """Unit-free seeded vectors, as floats or as base64 of little-endian 32-bit floats."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    size = body.get("dimensions") or _DIMENSIONS
    tokens = sum((len(str(text)) + 3) // 4 for text in texts)
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _vector(f"{seed}|{body['model']}|{text}", size, str(body.get("encoding_format"))),
            }
            for index, text in enumerate(texts)
        ],
        "model": body["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def response(body: type_of_body, seed: int) -> dict[str, Any]:
    """A response with one message of text."""
    asked = body["input"]
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    inner = answer({**_plain(body), "messages": messages, "max_tokens": body.get("max_output_tokens")}, seed)
    choice, usage = inner["choices"][0], inner["usage"]
    cut = choice["finish_reason"] == "length"
    part = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    message = {
        "type": "message",
        "id": "msg_0",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {
        "id": inner["id"].replace("chatcmpl-", "resp_"),
        "object": "response",
        "created_at": inner["created"],
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "instructions": body.get("instructions"),
        "model": body["model"],
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
                "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {
                "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
            },
            "total_tokens": usage["total_tokens"],
        },
    }


def other_refusal(path: str, body: type_of_body) -> bytes | None:
    """What is wrong with a request to one of the POST routes above, or null."""
    name = "prompt" if path == "/completions" else "input"
    given = body.get(name)
    if not isinstance(given, str | list) or not given:
        return problem(f"'{name}' must be a string or a list", kind="invalid_request_error", param=name)
    if path == "/responses" and isinstance(given, list) and not all(isinstance(one, Mapping) for one in given):
        return problem("'input' must be a list of messages", kind="invalid_request_error", param="input")
    if body.get("stream") and path == "/embeddings":
        return problem("embeddings are not streamed", kind="invalid_request_error", param="stream")
    size = body.get("dimensions")
    if size is not None and not (isinstance(size, int) and 1 <= size <= _MOST_DIMENSIONS):
        return problem("'dimensions' must be an integer", kind="invalid_request_error", param="dimensions")
    return None


OTHERS: Final[Mapping[str, Callable[[type_of_body, int], dict[str, Any]]]] = {
    "/completions": completion,
    "/embeddings": embedding,
    "/responses": response,
}


def _plain(body: type_of_body) -> dict[str, Any]:
    """The body without what means something else in a chat completion."""
    return {k: v for k, v in body.items() if k not in {"tools", "tool_choice", "input", "prompt", "text"}}


def _asked(body: type_of_body, prompt: Any) -> dict[str, Any]:
    return {**_plain(body), "messages": [{"role": "user", "content": str(prompt)}]}


def _vector(name: str, size: int, encoding: str) -> list[float] | str:
    source = random.Random(name)
    floats = array.array("f", (source.uniform(-1, 1) for _ in range(size)))
    return base64.b64encode(floats.tobytes()).decode() if encoding == "base64" else list(floats)
