"""Does an answer fit the `response_format` that its row asked for?

Rules of this file: pure; it judges the text of the first choice's message, as that is what `response_format` shapes; a
schema is compiled once however many rows bring it; a schema that is none is the row's own affair, and lets all pass.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import orjson

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
            content = choice["message"].get("content")
            if type(content) is not str or not content:
                continue  # a refusal or a tool call: not text that could fit
            try:
                value = jsontext.loads(content.encode("utf-8", "surrogatepass"))
            except jsontext.NotJson as error:
                return f"the content is {error}"
            if kind == "json_object":
                if type(value) is not dict:
                    return "the content is JSON, but no object"
                continue
            problem = self._misfit(value, wanted.get("json_schema"))
            if problem is not None:
                return problem
        return None

    def _misfit(self, value: Any, holder: Any) -> str | None:
        schema = holder.get("schema") if type(holder) is dict else None
        if type(schema) is not dict:
            return None
        validator = self._validator(schema)
        error = None if validator is None else next(validator.iter_errors(value), None)
        if error is None:
            return None
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"the content does not fit the schema{' at ' + where if where else ''}: {error.message}"[
            :_MESSAGE_CHARACTERS
        ]

    def _validator(self, schema: dict[str, Any]) -> Any:
        digest = hashlib.blake2b(orjson.dumps(schema), digest_size=16).digest()
        if digest not in self._validators:
            from jsonschema import SchemaError, validators  # noqa: PLC0415  (an extra)

            if len(self._validators) >= _MOST_SCHEMAS:
                self._validators.clear()
            kind = validators.validator_for(schema)
            try:
                kind.check_schema(schema)
                self._validators[digest] = kind(schema)
            except SchemaError:
                self._validators[digest] = None
        return self._validators[digest]
