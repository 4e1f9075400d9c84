"""A peer's JSON text -> a value -> one strict line; and a body edited by splicing, other bytes left alone.

Rules of this file:

- Reading is lenient where real endpoints are sloppy (`loads` lists how) and has one way to fail: `NotJson`.
- Writing is strict and total: whatever `loads` returns, `dumps` writes as one line that `loads` reads back.
- orjson does the work; the standard library's parser is asked only about what orjson refuses or would change.
- Text is never parsed by hand: strings and values are skipped by the standard library's own scanner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONDecodeError, JSONDecoder
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import Any, NamedTuple

import orjson

__all__ = ["Member", "NotJson", "dumps", "loads", "members", "replace", "value_of", "without"]

# orjson turns an integer that fits neither int64 nor uint64 into a float. Such an integer has 19 digits or more.
# Three of those stand one after another in every sixth byte: looking for three digits there, in a copy whose digits are
# all zeroes, takes 0.2 us for a body of 560 bytes, where the regular expression takes 10 us.
_ZEROED = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_STRIDE = 6
_DIGITS = b"0" * (19 // _STRIDE)
_LONG_INTEGER = re.compile(rb"(?:^|[\[:,\s])-?[0-9]{19}")

_SPACE = re.compile(r"[ \t\n\r]*")
_LEAD = re.compile("\ufeff?[ \t\n\r]*")

# orjson reads 1,024 levels and the standard library somewhat fewer than 1,000: half of that stays readable to
# both once it is wrapped in a result row.
_DEEPEST = 500


class NotJson(ValueError):  # noqa: N818 -- it says what the text is, as the callers read it
    """The text is not JSON, or nested too deeply to be read. The message is one line and quotes no text."""


class Member(NamedTuple):
    """One member of an object's text: `text[key_start:key_end]` is its key in quotes, which spells `key`."""

    key: str
    key_start: int
    key_end: int
    value_start: int
    value_end: int


def loads(raw: bytes, *, strict: bool = False) -> Any:
    """The value of one JSON text in UTF-8; raises `NotJson`.

    Beyond strict JSON it takes a byte order mark, NaN, Infinity and numbers too large for a float (these
    become null), lone surrogate escapes (kept), and integers of any size (exact; null beyond the 4,300
    digits that the interpreter allows). Of members with the same key the last wins. `strict`, for text that
    will be passed on as it stands, refuses the words NaN and Infinity.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _decode(raw, _STRICT if strict else _DECODER)
    # `find`, as `in` takes what is looked for as a number first, and to fail at that costs as much as to look.
    if raw[::_STRIDE].translate(_ZEROED).find(_DIGITS) >= 0 and _LONG_INTEGER.search(raw):
        return _decode(raw, _DECODER)
    return value


def dumps(value: Any) -> bytes:
    """One line of strict JSON in UTF-8, without its newline, for any value that `loads` can return.

    Lone surrogates are written as escapes, integers exactly, non-finite floats as null; null stands also for
    what lies deeper than 500 levels. Raises `TypeError` for what is no JSON value.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return _careful(value).encode("ascii")


def members(text: str) -> list[Member]:
    """Where the top-level members of an object's text stand, duplicates too, in order; raises `NotJson`."""
    start = _past(_LEAD, text, 0)
    if not text.startswith("{", start):
        raise NotJson("not a JSON object")
    try:
        found, end = _members(text, start)
    except (JSONDecodeError, RecursionError) as error:
        raise _not_json(error) from None
    if end != len(text):
        raise NotJson(f"not JSON: Extra data (char {end})")
    return found


def value_of(body: bytes, key: str) -> bytes:
    """The text of the value of `key` in the object `body`: of the last one, as `loads` has it.

    Raises `NotJson` when `body` is not an object, `KeyError` when it has no such member.
    """
    text = _decoded(body)
    for member in reversed(members(text)):
        if member.key == key:
            return text[member.value_start : member.value_end].encode()
    raise KeyError(key)


def replace(body: bytes, changes: Mapping[str, bytes]) -> bytes:
    """The object `body` with the members of `changes` (key -> JSON text of the value), other bytes unchanged.

    A key that is there keeps the place of its first occurrence, and later ones go; a key that is not is added
    at the end. Raises `NotJson` when `body` is not an object.
    """
    text = _decoded(body)
    found = members(text)
    kept: dict[int, str] = {}
    seen: set[str] = set()
    for number, member in enumerate(found):
        if member.key not in changes:
            kept[number] = text[member.key_start : member.value_end]
        elif member.key not in seen:
            kept[number] = text[member.key_start : member.value_start] + changes[member.key].decode()
            seen.add(member.key)
    added = [f"{dumps(key).decode()}:{value.decode()}" for key, value in changes.items() if key not in seen]
    return _spliced(text, found, kept, added)


def without(body: bytes, key: str) -> bytes:
    """The object `body` without the member `key`, its duplicates and their commas, other bytes unchanged.

    Raises `NotJson` when `body` is not an object.
    """
    text = _decoded(body)
    found = members(text)
    kept = {
        number: text[member.key_start : member.value_end] for number, member in enumerate(found) if member.key != key
    }
    return _spliced(text, found, kept, [])


def _integer(digits: str) -> int | None:
    """The integer that is written, or None beyond the interpreter's limit on digits."""
    try:
        return int(digits)
    except ValueError:
        return None


def _float(digits: str) -> float | None:
    """The number that is written, or None when no float is that large."""
    number = float(digits)
    return number if isfinite(number) else None


def _no_constant(name: str) -> None:
    """Refuses NaN, Infinity and -Infinity."""
    raise NotJson(f"not JSON: {name}")


_DECODER = JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=lambda _name: None)
_STRICT = JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_no_constant)


def _decode(raw: bytes, decoder: JSONDecoder) -> Any:
    """`loads` by the standard library, for what orjson refuses or would change."""
    try:
        return decoder.decode(_decoded(raw).removeprefix("\ufeff"))
    except (JSONDecodeError, RecursionError) as error:
        raise _not_json(error) from None


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"not JSON: invalid UTF-8 at byte {error.start}") from None


def _not_json(error: JSONDecodeError | RecursionError) -> NotJson:
    """The one error of this file, from whatever the standard library said."""
    if isinstance(error, RecursionError):
        return NotJson("nested too deeply to be read")
    return NotJson(f"not JSON: {error.msg} (char {error.pos})")


class _Mark(str):
    """Punctuation between values, written as it stands."""

    __slots__ = ()


def _careful(value: Any) -> str:
    """`dumps` in ASCII by a loop of our own, for what orjson refuses: it has no recursion to run out of."""
    written: list[str] = []
    left: list[Any] = [value]  # a stack: what comes next is last
    depth = 0
    while left:
        item = left.pop()
        if type(item) is _Mark:
            written.append(item)
            depth -= item in "]}"
        elif isinstance(item, (dict, list, tuple)) and depth < _DEEPEST:
            left.extend(reversed(_unfolded(item)))
            depth += 1
        else:
            written.append(_leaf(item))
    return "".join(written)


def _unfolded(container: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> list[Any]:
    """The marks and values that a container's text is made of, in order, one level deep."""
    line: list[Any] = []
    if isinstance(container, dict):
        for key, value in container.items():
            line += (_Mark(f"{',' if line else '{'}{encode_basestring_ascii(key)}:"), value)
        return [*(line or [_Mark("{")]), _Mark("}")]
    for value in container:
        line += (_Mark("," if line else "["), value)
    return [*(line or [_Mark("[")]), _Mark("]")]


def _leaf(value: Any) -> str:
    """The text of one scalar; null for a number that JSON cannot hold and a container that is too deep."""
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:  # more than 4,300 digits
            return "null"
    if isinstance(value, float):
        return float.__repr__(value) if isfinite(value) else "null"
    if value is None or isinstance(value, (dict, list, tuple)):
        return "null"
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where `pattern`, which may match nothing, ends when it begins at `at`."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _members(text: str, at: int) -> tuple[list[Member], int]:
    """The members of the object that opens at `at`, and where the space after it ends."""
    found: list[Member] = []
    at = _past(_SPACE, text, at + 1)
    if not text.startswith("}", at):
        found.append(_member(text, at))
        at = _past(_SPACE, text, found[-1].value_end)
        while text.startswith(",", at):
            found.append(_member(text, _past(_SPACE, text, at + 1)))
            at = _past(_SPACE, text, found[-1].value_end)
    return found, _past(_SPACE, text, _after("}", text, at))


def _after(mark: str, text: str, at: int) -> int:
    """The offset after `mark`, which must stand at `at`."""
    if not text.startswith(mark, at):
        raise JSONDecodeError(f"Expecting {mark!r}", text, at)
    return at + 1


def _member(text: str, at: int) -> Member:
    """The member whose key begins at `at`; the standard library's error where there is none."""
    _after('"', text, at)
    key, key_end = _DECODER.raw_decode(text, at)
    value_start = _past(_SPACE, text, _after(":", text, _past(_SPACE, text, key_end)))
    _, value_end = _DECODER.raw_decode(text, value_start)
    return Member(key, at, key_end, value_start, value_end)


def _spliced(text: str, found: list[Member], kept: dict[int, str], added: list[str]) -> bytes:
    """The object's text again: its members `kept` (number -> text), then `added`.

    A member that goes takes the separator before it along; where nothing is left before it, the one after it.
    """
    # An empty object keeps whatever stands between its braces in front of what is added.
    start, end = (found[0].key_start, found[-1].value_end) if found else (text.rindex("}"), text.rindex("}"))
    pieces = [text[:start]]
    for number, member_text in kept.items():
        if len(pieces) > 1:
            pieces.append(text[found[number - 1].value_end : found[number].key_start])
        pieces.append(member_text)
    joined = "".join(pieces)
    tail = ",".join(added)
    return f"{joined}{',' if tail and kept else ''}{tail}{text[end:]}".encode()
