"""The deltas of a stream -> the value they add up to.

Rules of this file:

- Any JSON value may follow any other: nothing raises, but for `RecursionError` on what is nested too deeply.
- Linear in what is fed: a string that arrives in fragments is a list of them until it is `built`.

How a value grows, at any depth:

- null changes nothing; a field that only ever was null is there as null;
- strings concatenate, but of names (`_NAMES`: role, id, type ...) the first that is not empty stands;
- objects merge member by member;
- lists extend, but items that are objects with an integer `index` merge with their like;
- of anything else, and of a value of another kind than before, the last stands. One exception: where a model
  mixes strings and lists in `content`, a string becomes a text part of the list.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Fields", "built", "grown"]

# Strings that are said again rather than continued.
_NAMES = frozenset({"role", "id", "type", "name", "format", "object", "status"})


class _Text(list[str]):
    """A string, as the fragments that have arrived."""

    __slots__ = ()


class Fields(dict[str, Any]):
    """An object that grows; its values are what `grown` returns."""

    __slots__ = ()


class _Items:
    """A list that grows: items merged by index, then those without an index in the order they came."""

    __slots__ = ("indexed", "others")

    def __init__(self) -> None:
        self.indexed: dict[int, list[Fields]] = {}
        self.others: list[Any] = []

    def extend(self, values: list[Any]) -> None:
        """Add what a delta holds."""
        for value in values:
            index = value.get("index") if isinstance(value, dict) else None
            if type(index) is not int:
                self.others.append(value)
                continue
            same = self.indexed.setdefault(index, [])
            if not same or _is_another_call(same[-1], value):
                same.append(Fields())
            grown(same[-1], value, "")

    def add_text(self, text: str) -> None:
        """Add a string to a list of content parts."""
        if self.others and type(self.others[-1]) is Fields:
            self.others[-1]["text"].append(text)
        elif text:
            self.others.append(Fields(type="text", text=_Text([text])))

    def plain(self) -> list[Any]:
        """The list as plain values."""
        by_index = (fields for _, same in sorted(self.indexed.items()) for fields in same)
        return [built(item) for item in (*by_index, *self.others)]


def grown(kept: Any, value: Any, key: str) -> Any:
    """What `kept`, the growing value of the field `key`, becomes when `value` follows: the merge rule."""
    if value is None:
        return kept
    if isinstance(value, str):
        if type(kept) is _Text:
            kept.append(value)
            return kept
        if key in _NAMES:
            return kept or value
        if type(kept) is _Items:
            kept.add_text(value)
            return kept
        return _Text([value])
    if isinstance(value, dict):
        return _more_fields(kept if type(kept) is Fields else Fields(), value)
    if isinstance(value, list):
        items = kept if type(kept) is _Items else _Items()
        if type(kept) is _Text:
            items.add_text("".join(kept))
        items.extend(value)
        return items
    return value


def _more_fields(fields: Fields, value: dict[str, Any]) -> Fields:
    """`fields`, each of them grown by what `value` says of it."""
    for name, part in value.items():
        kept = fields.get(name)
        if type(kept) is _Text and type(part) is str:  # what nearly every delta is, without a call for it
            kept.append(part)
        else:
            fields[name] = grown(kept, part, name)
    return fields


def built(growing: Any) -> Any:
    """The plain value that a growing one has come to."""
    if type(growing) is _Text:
        return _joined(growing)
    if type(growing) is Fields:
        return {key: built(value) for key, value in growing.items()}
    if type(growing) is _Items:
        return growing.plain()
    return growing


def _joined(fragments: list[str]) -> str:
    """The whole string. A surrogate pair that a server cut in two (some count UTF-16 units) is one again."""
    text = "".join(fragments)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return text


def _is_another_call(kept: Fields, value: dict[str, Any]) -> bool:
    """Whether an item begins a tool call of its own under an index already used.

    Some endpoints send all parallel calls, each whole, with index 0. The id alone does not tell: others
    make up a new one for every fragment, but name the function once.
    """
    function = value.get("function")
    named = isinstance(function, dict) and bool(function.get("name"))
    return named and bool(value.get("id")) and bool(kept.get("id")) and value["id"] != kept["id"]
