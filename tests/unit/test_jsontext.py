"""What a peer's text becomes, what is written of it, and what splicing leaves alone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter import jsontext
from batchrouter.jsontext import NotJson, dumps, loads

_LIMIT = 4300  # digits: the interpreter's own limit

READ: list[tuple[str, bytes, Any]] = [
    ("plain", b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
    ("scalar", b" 7 ", 7),
    ("byte order mark", b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    ("CRLF and indent", b'{\r\n\t"a" :\r\n 1\r\n}\r\n', {"a": 1}),
    ("NaN and both infinities", b'{"a":NaN,"b":Infinity,"c":-Infinity}', {"a": None, "b": None, "c": None}),
    ("floats too large", b"[1e999,-1e999,1.5e308]", [None, None, 1.5e308]),
    ("largest unsigned 64 bits", b"18446744073709551615", 2**64 - 1),
    ("one more", b"[18446744073709551616]", [2**64]),
    ("one more, alone", b"18446744073709551616", 2**64),
    ("one more, as a member", b'{"n":18446744073709551616}', {"n": 2**64}),
    ("one more, after a space", b'{"n" : 18446744073709551616 }', {"n": 2**64}),
    ("least signed 64 bits", b"-9223372036854775808", -(2**63)),
    ("one less", b"[1, -9223372036854775809]", [1, -(2**63) - 1]),
    ("an integer beyond any float", b"[" + b"9" * 400 + b"]", [10**400 - 1]),
    ("as many digits as may be", b"9" * _LIMIT, 10**_LIMIT - 1),
    ("more digits than may be", b"[1," + b"9" * (_LIMIT + 1) + b"]", [1, None]),
    ("more digits than may be, below zero", b"-" + b"9" * 50_000, None),
    ("a long run of digits in a string", b'["12345678901234567890"]', ["12345678901234567890"]),
    ("a long run in a float", b"[12345678901234567890.5]", [12345678901234567890.5]),
    ("a long run in a fraction", b"[0.12345678901234567890]", [0.1234567890123456789]),
    ("a long run with an exponent", b"[12345678901234567890e2]", [1.234567890123456789e21]),
    ("lone high surrogate", rb'"a\ud83d"', "a\ud83d"),
    ("lone low surrogate", rb'"\udE00b"', "\ude00b"),
    ("surrogate pair", rb'"\ud83d\ude00"', "😀"),
    ("a surrogate in a key", rb'{"\ud83d":1}', {"\ud83d": 1}),
    ("duplicate keys", b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
    ("duplicate keys, the slow way", b'{"a":NaN,"b":2,"a":3}', {"a": 3, "b": 2}),
    ("NUL, ANSI and separators in a string", rb'"\u0000\u001b[31m\u2028\u0085"', "\0\x1b[31m\u2028\x85"),
]

NO_JSON: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("space", b" \r\n"),
    ("HTML", b"<html>502</html>"),
    ("cut short", b'{"a": [1, 2'),
    ("trailing comma", b"[1,]"),
    ("trailing garbage", b"{} x"),
    ("trailing NUL", b"{}\0"),
    ("two values", b"{}{}"),
    ("invalid UTF-8", b'"\xff"'),
    ("an encoded surrogate", b'"\xed\xa0\xbd"'),
    ("UTF-16", '{"a":1}'.encode("utf-16")),
    ("a raw newline in a string", b'"a\nb"'),
    ("single quotes", b"{'a':1}"),
    ("leading zero", b"[01]"),
    ("nan", b"nan"),
    ("two byte order marks", b"\xef\xbb\xbf\xef\xbb\xbf{}"),
    ("200,000 lists deep", b"[" * 200_000 + b"]" * 200_000),
    ("200,000 objects deep", b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    ("200,000 lists, never closed", b"[" * 200_000),
]


@pytest.mark.parametrize(("raw", "value"), [case[1:] for case in READ], ids=[case[0] for case in READ])
def test_reads(raw: bytes, value: Any) -> None:
    """Each text has exactly this value, integers as integers and floats as floats."""
    read = loads(raw)
    assert read == value
    assert repr(read) == repr(value) if len(raw) < _LIMIT else type(read) is type(value)


@pytest.mark.parametrize("raw", [case[1] for case in NO_JSON], ids=[case[0] for case in NO_JSON])
def test_refuses(raw: bytes) -> None:
    """What is not JSON raises `NotJson`, whose message is one line that quotes none of the text."""
    with pytest.raises(NotJson) as caught:
        loads(raw)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 100
    assert "html" not in message


@pytest.mark.parametrize("raw", [b'{"a":NaN}', b"[-Infinity]", b"Infinity"])
def test_strict_reading_refuses_words_that_are_no_json(raw: bytes) -> None:
    """`strict` refuses NaN and Infinity."""
    with pytest.raises(NotJson):
        loads(raw, strict=True)


@pytest.mark.parametrize("raw", [b"[1e999]", b'\xef\xbb\xbf{"n":18446744073709551616}', rb'"\ud83d"', b"{}"])
def test_strict_reading_takes_what_the_grammar_takes(raw: bytes) -> None:
    """`strict` reads all else as `loads` does."""
    assert loads(raw, strict=True) == loads(raw)


WRITTEN: list[tuple[str, Any, bytes]] = [
    ("plain", {"a": [1, None, True, False, "é\u2028"]}, '{"a":[1,null,true,false,"é\u2028"]}'.encode()),
    ("newlines", "a\r\nb", rb'"a\r\nb"'),
    ("not finite", [math.nan, math.inf, -math.inf], b"[null,null,null]"),
    ("lone surrogates", {"\ud83d": ["\udc00x", "é\n"]}, rb'{"\ud83d":["\udc00x","\u00e9\n"]}'),
    ("a pair in two halves", "\ud83d\ude00", rb'"\ud83d\ude00"'),
    ("a large integer", [2**64, -(2**63) - 1, 1], b"[18446744073709551616,-9223372036854775809,1]"),
    ("all beside a large integer", [2**70, True, False, None, 1.0, 1e300, math.nan, {}, []],
     b"[1180591620717411303424,true,false,null,1.0,1e+300,null,{},[]]"),
    ("members beside a large integer", {"a": 2**64, "b": {"c": (), "d": {"e": 1}}},
     b'{"a":18446744073709551616,"b":{"c":[],"d":{"e":1}}}'),
    ("more digits than may be", [10**_LIMIT], b"[null]"),
    ("wide is not deep", [2**64, *[[]] * 600, {}], b"[18446744073709551616" + b",[]" * 600 + b",{}]"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "line"), [case[1:] for case in WRITTEN], ids=[case[0] for case in WRITTEN])
def test_writes(value: Any, line: bytes) -> None:
    """Each value has exactly this line, which the strictest reading of the standard library takes."""
    assert dumps(value) == line
    json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("value", [{1: 2}, {1: 2**70}, object(), {"a": ["\ud83d", object()]}, b"x"])
def test_writing_what_is_no_json_value_is_a_type_error(value: Any) -> None:
    """A caller's mistake is an exception, on the fast way and on the slow one."""
    with pytest.raises(TypeError):
        dumps(value)


@pytest.mark.parametrize("levels", [254, 255, 499, 500, 501, 1000, 1024])
def test_what_can_be_read_can_be_written_and_read_back(levels: int) -> None:
    """Up to 500 levels a value survives; what is deeper still leaves a line that `loads` reads."""
    raw = b"[" * levels + b"]" * levels
    line = dumps({"response": {"body": loads(raw)}})
    loads(line)
    assert (line == b'{"response":{"body":%s}}' % raw) is (levels <= 498)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
wild_text = st.text(st.characters(exclude_categories=[])).map(
    # A pair in two halves is read back as the character it stands for.
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
wild_values = st.recursive(
    st.integers() | st.integers(2**63, 2**80) | st.floats(allow_nan=False, allow_infinity=False) | wild_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(wild_text, inner, max_size=4),
    max_leaves=12,
)


@given(wild_values)
def test_round_trip(value: Any) -> None:
    """Whatever is written is one line, reads back the same, and is the same to the standard library."""
    line = dumps(value)
    assert b"\n" not in line
    assert b"\r" not in line
    assert loads(line) == value
    assert json.loads(line) == value


@given(json_values, st.sampled_from([None, 0, 3]))
def test_reads_like_the_standard_library(value: Any, indent: int | None) -> None:
    """Any layout of any value reads as the standard library reads it."""
    text = json.dumps(value, indent=indent, ensure_ascii=indent == 0)
    assert loads(text.encode()) == json.loads(text)


@given(st.binary() | st.text('[]{}",:\\ud89e+-.01NaIfinty \n\ufeff').map(str.encode))
def test_nothing_but_not_json_is_raised(raw: bytes) -> None:
    """No bytes make any function here raise anything but `NotJson`; what is read can be written."""
    for act in (
        lambda: dumps(loads(raw)),
        lambda: loads(raw, strict=True),
        lambda: jsontext.replace(raw, {"a": b"1"}),
        lambda: jsontext.without(raw, "a"),
    ):
        try:
            act()
        except NotJson as error:
            assert str(error).isprintable()  # noqa: PT017 -- most texts raise, and some do not


def test_members_are_spans() -> None:
    """A member's offsets cut its key and its value out of the text, however they are spelled."""
    text = ' { "\\u006dodel" : "x" ,\n"m":[ {"a":1} ],"é":-1e5,"model":null }\n'
    found = jsontext.members(text)
    assert [member.key for member in found] == ["model", "m", "é", "model"]
    assert [text[m.key_start : m.key_end] for m in found] == [r'"\u006dodel"', '"m"', '"é"', '"model"']
    assert [text[m.value_start : m.value_end] for m in found] == ['"x"', '[ {"a":1} ]', "-1e5", "null"]


@pytest.mark.parametrize("text", ["{}", " { \n} ", "\ufeff{}"])
def test_an_empty_object_has_no_members(text: str) -> None:
    """Space and a byte order mark are no members."""
    assert jsontext.members(text) == []


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "null", "{", "{}x", '{"a"}', '{"a":1,}', '{"a":1', "{a:1}", '{"a":1}}', "{,}", '{"\x01":1}',
     "{1:2}", '{"a":1 "b":2}', '{"a":}', '{"a":1,,"b":2}', '{"a":' + "[" * 200_000, '{"a', '{"a":1}\0'],
)  # fmt: skip
def test_members_of_what_is_no_object(text: str) -> None:
    """Whatever is not one JSON object raises `NotJson`."""
    with pytest.raises(NotJson):
        jsontext.members(text)


SPLICED: list[tuple[str, bytes, dict[str, bytes], bytes]] = [
    ("in place", b' {"a" : 1 , "b":2}\n', {"a": b"[3]"}, b' {"a" : [3] , "b":2}\n'),
    ("an escaped key", rb'{"\u006dodel":"x"}', {"model": b'"y"'}, rb'{"\u006dodel":"y"}'),
    ("added at the end", b'{ "a":1 }', {"b": b"2", "c": b"3"}, b'{ "a":1,"b":2,"c":3 }'),
    ("added to nothing", b" { } ", {"b": b"2"}, b' { "b":2} '),
    ("duplicates collapse", b'{"a":1, "b":2, "a":3}', {"a": b"4"}, b'{"a":4, "b":2}'),
    ("adjacent duplicates", b'{"b":2,"a":1 , "a":3}', {"a": b"4"}, b'{"b":2,"a":4}'),
    ("other duplicates stay", b'{"b":1,"b":2}', {"a": b"4"}, b'{"b":1,"b":2,"a":4}'),
    ("non-ASCII around", '{"é":"😀","a":1,"ü":0}'.encode(), {"a": '"ß"'.encode()}, '{"é":"😀","a":"ß","ü":0}'.encode()),
    ("byte order mark", b'\xef\xbb\xbf{"a":1}', {"a": b"2"}, b'\xef\xbb\xbf{"a":2}'),
    ("nothing to do", b'{"a" :1.0e2}', {}, b'{"a" :1.0e2}'),
    ("inner members stay", b'{"x":{"a":1},"a":2}', {"a": b"3"}, b'{"x":{"a":1},"a":3}'),
    ("numbers are not rewritten", b'{"n":10.10e00,"a":1}', {"a": b"2"}, b'{"n":10.10e00,"a":2}'),
    ("a key that needs escapes", b"{}", {'q"\n': b"1"}, rb'{"q\"\n":1}'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "changes", "expected"), [case[1:] for case in SPLICED], ids=[case[0] for case in SPLICED]
)
def test_replaces(body: bytes, changes: dict[str, bytes], expected: bytes) -> None:
    """Each change gives exactly these bytes."""
    assert jsontext.replace(body, changes) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":1}', b"{}"),
        (b'{ "a":1 }', b"{  }"),
        (b'{ "a":1 , "b":2 }', b'{ "b":2 }'),
        (b'{ "b":2 , "a":1 }', b'{ "b":2 }'),
        (b'{"b":2 , "a":1, "c" :3}', b'{"b":2, "c" :3}'),
        (b'{"a":1,"b":2,"a":3,"c":4,"a":5}', b'{"b":2,"c":4}'),
        (b'{"a":1,"a":2}', b"{}"),
        (rb'{"\u0061":1,"b":"\u0061"}', rb'{"b":"\u0061"}'),
        (b'{"b": {"a":1}}', b'{"b": {"a":1}}'),
    ],
)
def test_without(body: bytes, expected: bytes) -> None:
    """A member goes with its duplicates and its comma, and nothing else does."""
    assert jsontext.without(body, "a") == expected


def test_value_of_is_the_text_of_the_last() -> None:
    """The value is cut out byte for byte; of duplicates the last is meant, as when the object is read."""
    body = r'{"body" : {"n":1} , "\u0062ody":{ "n" : 1e0, "é":2 } }'.encode()
    assert jsontext.value_of(body, "body") == '{ "n" : 1e0, "é":2 }'.encode()
    with pytest.raises(KeyError):
        jsontext.value_of(body, "n")


keys = st.sampled_from(["a", "b", "model", "é", 'q"', "\ud83d", ""])
spaces = st.text(" \t\r\n", max_size=2)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """The text of an object: any layout, any spelling of keys, duplicates."""
    pieces = []
    for key in draw(st.lists(keys, max_size=5)):
        plain = json.dumps(key, ensure_ascii=draw(st.booleans()) or key == "\ud83d")
        escaped = '"' + "".join(f"\\u{ord(letter):04x}" for letter in key) + '"'
        spelled = draw(st.sampled_from([plain, escaped]))
        value = json.dumps(draw(json_values), ensure_ascii=draw(st.booleans()))
        pieces.append(f"{draw(spaces)}{spelled}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}")
    return f"{draw(spaces)}{{{','.join(pieces) or draw(spaces)}}}{draw(spaces)}".encode()


@given(objects(), st.dictionaries(keys, json_values, max_size=3))
def test_replace_changes_what_it_says_and_nothing_else(body: bytes, changes: dict[str, Any]) -> None:
    """The object reads the same but for the changes; each changed key is there once; a second time changes nothing."""
    texts = {key: dumps(value) for key, value in changes.items()}
    spliced = jsontext.replace(body, texts)
    assert loads(spliced) == {**loads(body), **{key: loads(text) for key, text in texts.items()}}
    assert jsontext.replace(spliced, texts) == spliced
    before, after = body.decode(), spliced.decode()
    assert _untouched(after, set(changes)) == _untouched(before, set(changes))
    for key in changes:
        assert [member.key for member in jsontext.members(after)].count(key) == 1


@given(objects(), keys)
def test_without_removes_what_it_says_and_nothing_else(body: bytes, key: str) -> None:
    """The object reads the same but for the key, and what is gone was a separator and the member."""
    spliced = jsontext.without(body, key)
    assert loads(spliced) == {name: value for name, value in loads(body).items() if name != key}
    assert _untouched(spliced.decode(), {key}) == _untouched(body.decode(), {key})
    if key not in loads(body):
        assert spliced == body


def _untouched(text: str, changed: set[str]) -> list[str]:
    """The spelling of each member not in `changed`, and what stands around the braces."""
    found = [m for m in jsontext.members(text) if m.key not in changed]
    spelled = [text[m.key_start : m.value_end] for m in found]
    return [text[: text.index("{") + 1], *spelled, text[text.rindex("}") :]]
