"""Does an answer fit the `response_format` that its row asked for?

Rules of this file: pure; it judges the text of the first choice's message, as that is what `response_format` shapes; a
schema is compiled once however many rows bring it; a schema that is none is the row's own affair, and lets all pass.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from batchrouter import jsontext
from batchrouter.errors import UsageError

_MOST_SCHEMAS: Final = 1000
_MESSAGE_CHARACTERS: Final = 200


class AnswerCheck:
    """Checks answers against `response_format` (`json_object`, `json_schema`); needs the extra `json`."""

    def __init__(self) -> None:
        """Raises UsageError where the extra is not installed."""
        try:
            import jsonschema  # noqa: F401, PLC0415  (an extra)
        except ImportError:
            raise UsageError("--check-json needs an extra: pip install 'batchrouter[json]'") from None
        self._validators: dict[bytes, Any] = {}

    def problem(self, request_body: bytes, answer: dict[str, Any]) -> str | None:
        """What is wrong with an answer, in one line; None when it fits or nothing was asked for."""
        wanted = jsontext.loads(request_body).get("response_format")
        kind = wanted.get("type") if type(wanted) is dict else None
        if kind not in {"json_object", "json_schema"}:
            return None
        for choice in answer["choices"]:
            text = _text_of(choice["message"])
            problem = None if text is None else self._problem_of(text, wanted)
            if problem is not None:
                return problem
        return None

    def _problem_of(self, text: str, wanted: dict[str, Any]) -> str | None:
        if not text.strip():
            return "the content is empty"
        try:
            value = jsontext.loads(text.encode("utf-8", "surrogatepass"), strict=True)
        except jsontext.NotJson as error:
            return f"the content is {error}"
        if wanted["type"] == "json_object":
            return None if type(value) is dict else "the content is JSON, but no object"
        return self._misfit(value, wanted.get("json_schema"))

    def _misfit(self, value: Any, holder: Any) -> str | None:
        schema = holder.get("schema") if type(holder) is dict else None
        if type(schema) is not dict:
            return None
        validator = self._validator(schema)
        try:
            error = None if validator is None else next(validator.iter_errors(value), None)
        except Exception:  # noqa: BLE001  (a reference to nowhere, a pattern that is none, one that refers to itself …)
            return None
        if error is None:
            return None
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"the content does not fit the schema{' at ' + where if where else ''}: {error.message}"[
            :_MESSAGE_CHARACTERS
        ]

    def _validator(self, schema: dict[str, Any]) -> Any:
        digest = hashlib.blake2b(jsontext.dumps(schema), digest_size=16).digest()
        if digest not in self._validators:
            if len(self._validators) >= _MOST_SCHEMAS:
                self._validators.clear()
            self._validators[digest] = _compiled(schema)
        return self._validators[digest]


def _compiled(schema: dict[str, Any]) -> Any:
    """A validator, None for a schema that is none. What it refers to elsewhere is not fetched."""
    from jsonschema import validators  # noqa: PLC0415  (an extra)
    from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

    try:
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
        return kind(schema, registry=EMPTY_REGISTRY)
    except Exception:  # noqa: BLE001  (whatever a row brings as its schema, the run goes on)
        return None


def _text_of(message: dict[str, Any]) -> str | None:
    """The text that was to fit; None for a refusal or a tool call."""
    content = message.get("content")
    if type(content) is list:  # some endpoints answer in parts
        texts = [part.get("text") for part in content if type(part) is dict]
        content = "".join(text for text in texts if type(text) is str)
    if type(content) is str and content:
        return content
    return None if any(message.get(name) for name in ("refusal", "tool_calls", "function_call")) else ""
