"""What an answer is to look like: one of some labels, or an object by a JSON schema, with a column a property.

Rules of this file: pure but for reading the schema's file. A model is asked with `response_format`; what it answered
is read here into columns, or found not to fit. That is a check of what a column can hold (is it JSON, are the
properties there, of their type, one of their values); the whole schema is the run's to check, which can ask again.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter import jsontext
from batchrouter.dataset.tables import Column, Kind
from batchrouter.errors import UsageError

_KINDS: Final[Mapping[str, Kind]] = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
}
_USUAL: Final[Mapping[str, int]] = {"integer": 4, "number": 6, "boolean": 5}
_USUAL_TEXT: Final = 200
_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]+")
_INT64: Final = 2**63
_LARGEST: Final = 1e308
_MOST_REFERENCES: Final = 20
_SHOWN: Final = 80


class Mismatch(ValueError):  # noqa: N818  (a finding about an answer)
    """The content is not what was asked for; the text says how."""


class Property(NamedTuple):
    """One property that fills a column: `type` is JSON's own, None for any; `choices` the values of an enum."""

    name: str
    type: str | None
    choices: tuple[Any, ...] | None
    required: bool
    nullable: bool

    @property
    def usual_length(self) -> int:
        """Characters that a value takes in an answer: as many as the longest choice, or what is usual for the type."""
        if self.choices:
            return max(len(jsontext.dumps(choice)) for choice in self.choices)
        return _USUAL.get(self.type or "", _USUAL_TEXT)

    def read(self, value: Any) -> Any:
        """The value for the column; raises Mismatch."""
        if value is None and (self.nullable or self.type is None):
            return None
        if self.choices is not None and not any(value == choice for choice in self.choices):
            raise Mismatch(f"{self.name} is {_short(value)}, none of {', '.join(map(str, self.choices))[:200]}")
        match self.type:
            case "string" if type(value) is str:
                return value
            case "boolean" if type(value) is bool:
                return value
            case "integer" if type(value) in {int, float} and value == int(value) and -_INT64 <= value < _INT64:
                return int(value)
            case "number" if type(value) in {int, float} and abs(value) < _LARGEST:
                return float(value)  # in every row, so that readers which look at the first ones find the type
            case None:
                return value
        raise Mismatch(f"{self.name} is {_short(value)}, not of type {self.type}")


@dataclass(frozen=True, slots=True)
class Shape:
    """An object that an answer's content is asked to be, and the properties of it that fill columns."""

    form: Mapping[str, Any]  # the `response_format` of a request that asks for it
    properties: tuple[Property, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the schema's order; a property of no simple type is text (its JSON)."""
        return tuple(Column(found.name, _KINDS.get(found.type or "", "text")) for found in self.properties)

    @property
    def likely_tokens(self) -> int:
        """About how long an answer will be: names, and values of a usual length for their type."""
        return sum(len(jsontext.dumps(part.name)) + part.usual_length + 4 for part in self.properties) // 4 + 1

    def read(self, content: str) -> dict[str, Any]:
        """The values of a content by property; raises Mismatch."""
        try:
            value = jsontext.loads(content.encode("utf-8", "surrogatepass"))
        except jsontext.NotJson as error:
            raise Mismatch(f"the content is {error}") from None
        if type(value) is not dict:
            raise Mismatch(f"the content is {_short(value)}, not an object")
        found = {}
        for part in self.properties:
            if part.name in value:
                found[part.name] = part.read(value[part.name])
            elif part.required:
                raise Mismatch(f"the content has no {part.name}")
            else:
                found[part.name] = None
        return found


def shape_of_labels(labels: Sequence[str], *, name: str = "label") -> Shape:
    """One of `labels`, in the property and column `name`; raises UsageError for labels that cannot be told apart."""
    if not labels or "" in labels:
        raise UsageError("--labels needs texts, as in --labels positive,negative,neutral")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UsageError(f"--labels names {twice!r} twice")
    return shape_of_schema(
        {
            "type": "object",
            "properties": {name: {"type": "string", "enum": list(labels)}},
            "required": [name],
            "additionalProperties": False,
        },
        name,
        source="--labels",
    )


def split_labels(text: str) -> tuple[str, ...]:
    """`a, b, "c, d"` -> the labels, as a line of CSV has them, the space around them dropped."""
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(cell.strip() for cell in rows[0]) if rows else ()


def read_schema(path: str | Path) -> Shape:
    """The shape that a file asks for: a JSON schema, or a whole `response_format`; raises UsageError."""
    path = Path(path)
    return shape_of_schema(read_json(path), path.stem, source=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UsageError."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def parse_json(text: bytes, source: str) -> dict[str, Any]:
    """The object that a text is; raises UsageError naming `source`."""
    try:
        document = jsontext.loads(text, strict=True)
    except jsontext.NotJson as error:
        raise UsageError(f"{source}: {error}") from None
    if type(document) is not dict:
        raise UsageError(f"{source}: not a JSON object")
    return document


def response_format(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What asks for a document: it is that itself, or a JSON schema to be named and wrapped (strict if it can be)."""
    if document.get("type") in {"json_schema", "json_object", "text"}:
        return dict(document)
    title = document.get("title")
    known = _NAME.sub("_", title if isinstance(title, str) and title else name)[:64] or "answer"
    strict = {"strict": True} if _is_strict(document) else {}
    return {"type": "json_schema", "json_schema": {"name": known, **strict, "schema": dict(document)}}


def shape_of_schema(document: Mapping[str, Any], name: str, *, source: str) -> Shape:
    """The shape of a JSON schema for objects; raises UsageError naming `source` where there is nothing to fill."""
    form = response_format(document, name)
    inner = form.get("json_schema")
    schema = inner.get("schema", {}) if isinstance(inner, Mapping) else {}
    root = _resolved(schema, schema)
    properties = root.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        raise UsageError(
            f'{source}: a column is filled for each property, and the schema has none: give {{"type": "object",'
            ' "properties": {...}}'
        )
    required = root.get("required", ())
    found = tuple(_property(str(key), inner, key in required, schema) for key, inner in properties.items())
    return Shape(form, found)


def _property(name: str, schema: Any, required: bool, root: Mapping[str, Any]) -> Property:  # noqa: FBT001  (as the schema says)
    branches = _branches(schema, root)
    types = {str(kind) for branch in branches for kind in _types(branch)}
    nullable = "null" in types
    types.discard("null")
    kind = types.pop() if len(types) == 1 else None
    values = [value for branch in branches for value in _choices(branch)]
    closed = all(_choices(branch) or branch.get("type") == "null" for branch in branches) and bool(values)
    nullable = nullable or None in values
    if kind not in _KINDS:
        kind = None
    return Property(name, kind, tuple(values) if closed else None, required, nullable)


def _branches(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A schema's alternatives, references followed; a schema without any is its own."""
    resolved = _resolved(schema, root)
    either = resolved.get("anyOf") or resolved.get("oneOf")
    return [_resolved(branch, root) for branch in either] if isinstance(either, list) else [resolved]


def _types(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The types a schema names; of one that names none, those of its values, or one that is none of ours."""
    named = schema.get("type")
    if named is not None:
        yield from named if isinstance(named, list) else [named]
        return
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    yield from {names.get(type(value), "any") for value in _choices(schema)} or {"any"}


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, once its references inside `root` are followed; an empty one where they lead nowhere."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        found: Any = root
        for step in filter(None, reference[1:].split("/")):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        schema = found
    return {}


def _is_strict(schema: Any) -> bool:
    """Whether every object in the schema is closed and requires all it has: what `strict` demands."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, Mapping):
        names = set(properties) if isinstance(properties, Mapping) else set()
        if schema.get("additionalProperties") is not False or names != set(schema.get("required", ())):
            return False
    return all(_is_strict(inner) for key, inner in schema.items() if key not in {"enum", "const", "required"})


def _short(value: Any) -> str:
    text = jsontext.dumps(value).decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
