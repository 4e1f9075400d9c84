"""Is a request one that the endpoint takes? Each check gives a refusal, as a 400's error body, or null."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from batchrouter.emulator.plays import problem

type_of_body = Mapping[str, Any]

_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MOST_CHOICES: Final = 128


def refusal(body: Any, models: Collection[str]) -> bytes | None:
    """What is wrong with any request that names a model. An empty `models` knows every model."""
    if not isinstance(body, Mapping):
        return _wrong("We could not parse the JSON body of your request: it must be an object.", None)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return _wrong("you must provide a model parameter", "model")
    if models and model not in models:
        text = f"The model `{model[:200]}` does not exist or you do not have access to it."
        return problem(text, kind="invalid_request_error", param="model", code="model_not_found")
    return None


def chat_refusal(body: type_of_body) -> bytes | None:
    """What is wrong with a chat completion request."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _wrong("'messages' must be an array of messages", "messages")
    if not messages:
        return _wrong("'messages' must contain at least one entry", "messages", "empty_array")
    for place, message in enumerate(messages):
        if text := _message_fault(message):
            return _wrong(f"'messages[{place}]' {text}", f"messages[{place}]")
    for name, value in body.items():
        if value is not None and name in _FIELDS:
            fits, expected = _FIELDS[name]
            if not fits(value):
                return _wrong(f"Invalid value for '{name}': expected {expected}.", name, "invalid_value")
    return None


def _message_fault(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return "must be an object"
    if message.get("role") not in _ROLES:
        return f"must have a role out of {', '.join(sorted(_ROLES))}"
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        return "must have a content"
    if content is not None and not isinstance(content, str | list):
        return "must have a string or a list of parts as content"
    return None


def _wrong(message: str, param: str | None, code: str | None = None) -> bytes:
    return problem(message, kind="invalid_request_error", param=param, code=code)


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _stops(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) and one for one in value))


def _tools(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(tool, Mapping)
        and isinstance(function := tool.get("function"), Mapping)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("parameters", {}), Mapping)
        for tool in value
    )


def _choice(value: Any) -> bool:
    if isinstance(value, Mapping):
        function = value.get("function")
        return isinstance(function, Mapping) and isinstance(function.get("name"), str)
    return value in {"none", "auto", "required"}


def _format(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.get("type") not in {"text", "json_object", "json_schema"}:
        return False
    inner = value.get("json_schema")
    return value["type"] != "json_schema" or (
        isinstance(inner, Mapping) and isinstance(inner.get("schema", {}), Mapping)
    )


_FIELDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "temperature": (_number(0, 2), "a number between 0 and 2"),
    "top_p": (_number(0, 1), "a number between 0 and 1"),
    "max_tokens": (_whole(1, 10**9), "a positive integer"),
    "max_completion_tokens": (_whole(1, 10**9), "a positive integer"),
    "n": (_whole(1, _MOST_CHOICES), f"an integer between 1 and {_MOST_CHOICES}"),
    "seed": (_whole(-(2**63), 2**63 - 1), "an integer"),
    "stream": (lambda value: isinstance(value, bool), "a boolean"),
    "stream_options": (lambda value: isinstance(value, Mapping), "an object"),
    "logprobs": (lambda value: isinstance(value, bool), "a boolean"),
    "top_logprobs": (_whole(0, 20), "an integer between 0 and 20"),
    "stop": (_stops, "a string or a list of strings"),
    "tools": (_tools, "a list of tools, each a function with a name"),
    "tool_choice": (_choice, "none, auto, required, or a function by name"),
    "response_format": (_format, "an object of type text, json_object or json_schema"),
}
