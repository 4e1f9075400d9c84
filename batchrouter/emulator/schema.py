"""A valid instance of a JSON schema, drawn from a seeded source: what a model answers under `json_schema`.

Understood: type (also a list), enum, const, anyOf, oneOf, allOf, local $ref, properties, required, items,
prefixItems, the bounds of numbers, strings and arrays, and the common string formats. `pattern` is not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Final

from batchrouter.emulator.words import WORDS

type_of_schema = Mapping[str, Any]

_DEEP: Final = 5  # from here on only what is required is drawn, so that recursive schemas end
_BOTTOM: Final = 60  # a schema that still nests here requires itself for ever
_FORMATS: Final = {
    "date": "20{0:02d}-{1:02d}-{2:02d}",
    "date-time": "20{0:02d}-{1:02d}-{2:02d}T{3:02d}:{4:02d}:00Z",
    "time": "{3:02d}:{4:02d}:00Z",
    "duration": "PT{4}M",
    "email": "{w}{4}@example.com",
    "uri": "https://example.com/{w}/{4}",
    "hostname": "{w}.example.com",
    "ipv4": "192.0.2.{4}",
    "ipv6": "2001:db8::{4}",
    "uuid": "00000000-0000-4000-8000-0000000000{4:02d}",
}


class SchemaError(ValueError):
    """The schema cannot be met as written: an unknown type, a dangling $ref, a schema that holds itself."""


def instance(schema: type_of_schema, source: random.Random) -> Any:
    """A JSON value that the schema allows; the same schema and source state give the same value."""
    return _Drawing(schema, source).value(schema, 0)


class _Drawing:
    """One instance being drawn: the root that $ref points into, and the source."""

    def __init__(self, root: type_of_schema, source: random.Random) -> None:
        self._root = root
        self._source = source

    def value(self, schema: Any, depth: int) -> Any:
        if schema is True or schema == {}:
            return self._words(1, 3)
        if not isinstance(schema, Mapping):
            raise SchemaError(f"a schema must be an object, not {type(schema).__name__}")
        if depth > _BOTTOM:
            raise SchemaError("the schema requires itself without an end")
        schema = self._flat(schema, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._source.choice(_filled(schema["enum"], "enum"))
        return self._typed(schema, depth)

    def _flat(self, schema: type_of_schema, depth: int) -> type_of_schema:
        """The schema with $ref, allOf and one branch of anyOf or oneOf folded into it."""
        for _ in range(_BOTTOM):
            rest = {k: v for k, v in schema.items() if k not in {"$ref", "allOf", "anyOf", "oneOf"}}
            if "$ref" in schema:
                schema = {**self._resolve(schema["$ref"]), **rest}
            elif "allOf" in schema:
                schema = {**self._joined(_filled(schema["allOf"], "allOf")), **rest}
            elif "anyOf" in schema or "oneOf" in schema:
                branches = _filled(schema.get("anyOf", schema.get("oneOf")), "anyOf")
                schema = {**self._branch(branches, depth), **rest}
            else:
                return schema
        raise SchemaError("the schema refers to itself without an end")

    def _joined(self, parts: list[Any]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for part in parts:
            flat = self._flat(part, 0)
            properties = {**joined.get("properties", {}), **flat.get("properties", {})}
            required = [*joined.get("required", []), *flat.get("required", [])]
            joined = {**joined, **flat}
            if properties:
                joined |= {"properties": properties, "required": required}
        return joined

    def _branch(self, branches: list[Any], depth: int) -> type_of_schema:
        if depth >= _DEEP:  # a leaf where there is one: recursion has gone far enough
            leaves = [b for b in branches if isinstance(b, Mapping) and "$ref" not in b and "properties" not in b]
            branches = leaves or branches
        chosen = self._source.choice(branches)
        if not isinstance(chosen, Mapping):
            raise SchemaError("a branch of anyOf must be an object")
        return chosen

    def _resolve(self, reference: Any) -> type_of_schema:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaError(f"only references inside the schema are followed, not {reference!r}")
        found: Any = self._root
        for step in reference[1:].strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if name and not (isinstance(found, Mapping) and name in found):
                raise SchemaError(f"{reference} points at nothing")
            found = found[name] if name else found
        if not isinstance(found, Mapping):
            raise SchemaError(f"{reference} is not a schema")
        return found

    def _typed(self, schema: type_of_schema, depth: int) -> Any:
        kind = schema.get("type") or _implied(schema)
        if isinstance(kind, list):
            simple = [k for k in kind if k not in {"object", "array"}]
            kind = self._source.choice(_filled((simple or kind) if depth >= _DEEP else kind, "type"))
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean":
                return self._source.random() < 0.5
            case "null":
                return None
            case _:
                raise SchemaError(f"unknown type {kind!r}")

    def _object(self, schema: type_of_schema, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties") or {}
        required = schema.get("required") or []
        drawn = {}
        for name, inner in properties.items():
            optional = depth >= _DEEP or self._source.random() < 0.5
            if name in required or not optional:
                drawn[name] = self.value(inner, depth + 1)
        for name in required:
            if name not in drawn:
                drawn[name] = self._words(1, 2)
        return drawn

    def _array(self, schema: type_of_schema, depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        prefix = schema.get("prefixItems") or []
        length = least if depth >= _DEEP else self._source.randint(max(least, min(1, most)), most)
        drawn: list[Any] = [self.value(inner, depth + 1) for inner in prefix[:length]]
        for _ in range(200):  # a unique list over a small enum may need many draws
            if len(drawn) >= length:
                break
            item = self.value(schema.get("items", True), depth + 1)
            if not schema.get("uniqueItems") or item not in drawn:
                drawn.append(item)
        if len(drawn) < least:
            raise SchemaError(f"no {least} different items can be drawn")
        return drawn

    def _string(self, schema: type_of_schema) -> str:
        shape = _FORMATS.get(str(schema.get("format")))
        if shape is not None:
            draw = self._source.randint
            parts = (draw(0, 29), draw(1, 12), draw(1, 28), draw(0, 23), draw(0, 59))
            return shape.format(*parts, w=self._source.choice(WORDS))
        least = int(schema.get("minLength", 0))
        text = self._words(1, 4)
        while len(text) < least:
            text += " " + self._words(1, 4)
        text = text[: int(schema.get("maxLength", max(least, 80)))]
        return text if text == text.strip() else text[:-1] + "a"

    def _integer(self, schema: type_of_schema) -> int:
        low, high = _bounds(schema, 1)
        step = schema.get("multipleOf") or 1
        first, last = math.ceil(low / step), math.floor(high / step)
        if first > last:
            raise SchemaError("no integer lies between the bounds")
        return int(self._source.randint(first, last) * step)

    def _number(self, schema: type_of_schema) -> float:
        low, high = _bounds(schema, 0)
        if low > high:
            raise SchemaError("no number lies between the bounds")
        if step := schema.get("multipleOf"):
            return float(self._source.randint(math.ceil(low / step), math.floor(high / step)) * step)
        drawn = self._source.uniform(low, high)
        rounded = round(drawn, 2)
        return rounded if low < rounded < high else drawn

    def _words(self, least: int, most: int) -> str:
        return " ".join(self._source.choices(WORDS, k=self._source.randint(least, most)))


def _filled(values: Any, keyword: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise SchemaError(f"{keyword} must be a list that holds something")
    return values


def _implied(schema: type_of_schema) -> str:
    if "properties" in schema or "required" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if "minimum" in schema or "maximum" in schema:
        return "number"
    return "string"


def _bounds(schema: type_of_schema, inset: int) -> tuple[float, float]:
    """The closed interval that a number is drawn from; `inset` 1 moves exclusive integer bounds inwards."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if above is not None:
        low = math.floor(above) + 1 if inset else math.nextafter(above, math.inf)
    if below is not None:
        high = math.ceil(below) - 1 if inset else math.nextafter(below, -math.inf)
    if low is None:
        low = 0 if high is None else high - 100
    return low, low + 100 if high is None else high
