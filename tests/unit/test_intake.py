"""From a line of input to a request, or to the reason why not: CONTRACT 3."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.errors import UsageError
from batchrouter.intake import Shaping, identify, read_row
from batchrouter.jsonl import Line, read_lines
from batchrouter.records import Refusal, Request
from batchrouter.sources import Source, find_sources

PLAIN = Shaping()
HELLO = '{"model":"m","messages":[{"role":"user","content":"hi"}]}'
ASKED = '"messages":[{"role":"user","content":"hi"}]'


def row(text: str | bytes, shaping: Shaping = PLAIN, *, number: int = 7) -> Request | Refusal | None:
    raw = text.encode() if isinstance(text, str) else text
    return read_row(Line(number, 0, raw, len(raw) + 1), 3, "in.jsonl", shaping)


def asked(text: str | bytes, shaping: Shaping = PLAIN) -> Request:
    found = row(text, shaping)
    assert isinstance(found, Request), found
    return found


def refused(text: str | bytes, shaping: Shaping = PLAIN) -> Refusal:
    found = row(text, shaping)
    assert isinstance(found, Refusal), found
    assert found.message.startswith("in.jsonl:7: ")
    assert found.code == "invalid_row"
    return found


def batch(body: str = HELLO, custom_id: str = '"a"', rest: str = "") -> str:
    return f'{{"custom_id":{custom_id},"method":"POST","url":"/v1/chat/completions","body":{body}{rest}}}'


# --- what is taken -----------------------------------------------------------------------------------------------

DIALECTS: dict[str, tuple[str, str, str]] = {
    "batch row": (batch(), "a", "/chat/completions"),
    "no method or url (Together)": (f'{{"custom_id":"a","body":{HELLO}}}', "a", "/chat/completions"),
    "url without /v1 (Azure)": (
        f'{{"custom_id":"a","method":"POST","url":"/chat/completions","body":{HELLO}}}', "a", "/chat/completions",
    ),
    "no custom_id": (f'{{"body":{HELLO}}}', "in.jsonl:7", "/chat/completions"),
    "bare body": (HELLO, "in.jsonl:7", "/chat/completions"),
    "bare body with an id": (f'{{"custom_id":"a",{HELLO[1:]}', "a", "/chat/completions"),
    "empty id": (batch(custom_id='""'), "", "/chat/completions"),
    "spaced": ('  { "custom_id" : "a" , "body" : ' + HELLO + " }\t ", "a", "/chat/completions"),
    "CRLF": (batch() + "\r", "a", "/chat/completions"),
    "an id with an escape": (batch(custom_id=r'"\u00e9\n\t\u0000"'), "é\n\t\0", "/chat/completions"),
    "an id with a lone surrogate": (batch(custom_id=r'"\ud83d"'), "\ud83d", "/chat/completions"),
    "a hostile id": (
        batch(custom_id=r'"../../etc/passwd\u001b[2J<script>"'), "../../etc/passwd\x1b[2J<script>", "/chat/completions",
    ),
    "a long id": (batch(custom_id='"' + "x" * 100_000 + '"'), "x" * 100_000, "/chat/completions"),
    "completions": (
        '{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"x"}}', "a",
        "/completions",
    ),
    "embeddings": (
        '{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":["x"]}}', "a",
        "/embeddings",
    ),
    "responses": (
        '{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"model":"m","input":"x"}}', "a", "/responses",
    ),
    "U+2028 in a text": (HELLO.replace("hi", "\u2028\u0085"), "in.jsonl:7", "/chat/completions"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "custom_id", "path"), DIALECTS.values(), ids=DIALECTS.keys())
def test_a_row_is_read(text: str, custom_id: str, path: str) -> None:
    """Each dialect of CONTRACT 3: its id, its path, and where it stands."""
    found = asked(text)
    assert (found.custom_id, found.path) == (custom_id, path)
    assert (found.n, found.file, found.line, found.model) == (3, "in.jsonl", 7, "m")
    assert found.extra is None
    assert not found.streamed


def test_other_keys_of_a_batch_row_come_back_and_are_not_sent() -> None:
    """Before the body, after it, nested, and of any size: unchanged in `extra`."""
    big = 123456789012345678901234567890
    text = f'{{"custom_id":"a","meta":{{"id":{big},"t":"x"}},"body":{HELLO}}}'
    assert asked(text).extra == {"meta": {"id": big, "t": "x"}}
    assert asked(f'{{"custom_id":"a","body":{HELLO},"label":null,"n":{big}}}').extra == {"label": None, "n": big}
    assert asked(text).body == HELLO.encode()


def test_a_bare_body_has_no_extra_keys() -> None:
    """Every field of it but `custom_id` is sent."""
    found = asked('{"model":"m", "custom_id": "a", "x_unknown": {"body": 1}, ' + ASKED + "}")
    assert found.extra is None
    assert found.body == b'{"model":"m", "x_unknown": {"body": 1}, ' + ASKED.encode() + b"}"


# --- what is refused ---------------------------------------------------------------------------------------------

INVALID: dict[str, tuple[str | bytes, str, str]] = {
    "not JSON": ('{"broken', "in.jsonl:7", "not JSON"),
    "half a row": (batch()[:40], "in.jsonl:7", "not JSON"),
    "two rows on a line": (HELLO + HELLO, "in.jsonl:7", "not JSON"),
    "a wrong end": (batch()[:-1] + "]", "in.jsonl:7", "not JSON"),
    "no end": (batch()[:-1], "in.jsonl:7", "not JSON"),
    "an end too many": (batch() + "}", "in.jsonl:7", "not JSON"),
    "a list of a row": (f"[{batch()}]", "in.jsonl:7", "object"),
    "NaN": (HELLO[:-1] + ',"temperature":NaN}', "in.jsonl:7", "not JSON"),
    "invalid UTF-8": (b'{"model":"m\xff"}', "in.jsonl:7", "UTF-8"),
    "invalid UTF-8 in an id": (b'{"custom_id":"\xc3(","body":' + HELLO.encode() + b"}", "in.jsonl:7", "UTF-8"),
    "UTF-16": (HELLO.encode("utf-16"), "in.jsonl:7", "not JSON"),
    "a list": ("[]", "in.jsonl:7", "object"),
    "a text": ('"x"', "in.jsonl:7", "object"),
    "a number": ("7", "in.jsonl:7", "object"),
    "null": ("null", "in.jsonl:7", "object"),
    "an empty object": ("{}", "in.jsonl:7", "messages"),
    "no messages": (batch('{"model":"m"}'), "a", "messages"),
    "messages null": (batch('{"model":"m","messages":null}'), "a", "messages"),
    "messages empty": (batch('{"model":"m","messages":[]}'), "a", "empty"),
    "messages a text": (batch('{"model":"m","messages":"hi"}'), "a", "messages"),
    "messages an object": (batch('{"model":"m","messages":{}}'), "a", "messages"),
    "messages of texts": (batch('{"model":"m","messages":["hi"]}'), "a", "messages"),
    "messages with a null": (batch('{"model":"m","messages":[{"role":"user"},null]}'), "a", "messages"),
    "no model": (batch(f"{{{ASKED}}}"), "a", "model"),
    "model null": (batch(f'{{"model":null,{ASKED}}}'), "a", "model"),
    "model empty": (batch(f'{{"model":"",{ASKED}}}'), "a", "model"),
    "model a number": (batch(f'{{"model":5,{ASKED}}}'), "a", "model"),
    "model a list": (batch(f'{{"model":["m"],{ASKED}}}'), "a", "model"),
    "id a number": (batch(custom_id="7"), "in.jsonl:7", "custom_id"),
    "id null": (batch(custom_id="null"), "in.jsonl:7", "custom_id"),
    "id a list": (batch(custom_id='["a"]'), "in.jsonl:7", "custom_id"),
    "id true, bare": ('{"custom_id":true,' + HELLO[1:], "in.jsonl:7", "custom_id"),
    "method GET": (batch().replace("POST", "GET"), "a", "method"),
    "method null": (batch().replace('"POST"', "null"), "a", "method"),
    "method a list": (batch().replace('"POST"', '["POST"]'), "a", "method"),
    "another url": (batch().replace("/v1/chat/completions", "/v1/images/generations"), "a", "url"),
    "a whole url": (batch().replace("/v1/", "https://api.openai.com/v1/"), "a", "url"),
    "url null": (batch().replace('"/v1/chat/completions"', "null"), "a", "url"),
    "url a list": (batch().replace('"/v1/chat/completions"', "[]"), "a", "url"),
    "body null": (batch("null"), "a", "body"),
    "body a list": (batch("[]"), "a", "body"),
    "body a text": (batch('"x"'), "a", "body"),
    "no prompt": ('{"custom_id":"a","url":"/v1/completions","body":{"model":"m"}}', "a", "prompt"),
    "no input": ('{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m"}}', "a", "input"),
    "no input for responses": ('{"custom_id":"a","url":"/v1/responses","body":{"model":"m"}}', "a", "input"),
}


@pytest.mark.parametrize(("text", "custom_id", "reason"), INVALID.values(), ids=INVALID.keys())
def test_a_row_is_refused(text: str | bytes, custom_id: str, reason: str) -> None:
    """Each rule of CONTRACT 3: the reason with its place, under the row's own id where that can be read."""
    found = refused(text)
    assert reason in found.message
    assert found.custom_id == custom_id


def test_a_reason_is_told_once_and_in_one_line() -> None:
    """No words twice, no line breaks, no row quoted whole."""
    for text, *_ in INVALID.values():
        message = refused(text).message
        assert message.count("not JSON") <= 1
        assert "\n" not in message
        assert len(message) < 400


def test_a_line_beyond_the_bound_is_refused_by_its_place() -> None:
    """A line that was not read, as it is too long, is a refused row like any other."""
    found = read_row(Line(9, 100, None, 2**40), 3, "in.jsonl", PLAIN)
    assert isinstance(found, Refusal)
    assert (found.custom_id, found.line) == ("in.jsonl:9", 9)
    assert "longer" in found.message


@pytest.mark.parametrize("text", [b"", b" ", b"\t \r", b"\r"])
def test_blank_lines_are_nothing(text: bytes) -> None:
    """Neither a row nor a mistake."""
    assert row(text) is None


@pytest.mark.parametrize("text", [HELLO, batch(), '{"custom_id":"a",' + HELLO[1:]])
@pytest.mark.parametrize("number", [1, 2])
def test_a_byte_order_mark_is_never_sent(text: str, number: int) -> None:
    """In front of the first line it is skipped; further down (two files made one) it is at least no part of a body."""
    found = row(b"\xef\xbb\xbf" + text.encode(), number=number)
    if number == 1:
        assert isinstance(found, Request)
    if isinstance(found, Request):
        assert found.body == HELLO.encode()


def test_a_byte_order_mark_alone_is_a_blank_line() -> None:
    """An empty file as some editors save it."""
    assert row(b"\xef\xbb\xbf", number=1) is None


# --- bodies, byte for byte ---------------------------------------------------------------------------------------

SPACE = st.text(" \t", max_size=2)
TEXTS = st.text(max_size=6) | st.sampled_from(
    ['"body": {', '{"body":{"a":1}}', '\\"body\\": {}', "}", "{", '"', "\\", "\u2028", "\x7f", "é", "😀", '","body":{']
)
NUMBERS = st.sampled_from(
    ["0", "-0", "-0.0", "1E5", "1e+5", "0.10", "1.0", "123456789012345678901234567890", "18446744073709551616", "1e400",
     "5e-324", "0.1000000000000000055511151231257827"]
)  # fmt: skip
KEYS = st.sampled_from(["body", "custom_id", "url", "a", "b", "", "é", '"', "x\n"])


def quoted(text: str, escaped: bool) -> str:  # noqa: FBT001  (drawn)
    return json.dumps(text, ensure_ascii=escaped)


QUOTED = st.builds(quoted, TEXTS, st.booleans())


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """The text of any JSON value, oddly spaced and spelled."""
    kind = draw(st.sampled_from(["scalar", "string", "number", "object", "list"] if depth else ["scalar", "string"]))
    if kind == "scalar":
        return draw(st.sampled_from(["null", "true", "false", "{}", "[]", "{ }"]))
    if kind == "string":
        return draw(QUOTED)
    if kind == "number":
        return draw(NUMBERS)
    if kind == "list":
        return "[" + ",".join(draw(st.lists(spaced(values(depth - 1)), max_size=3))) + "]"
    return draw(objects(depth=depth - 1))


def spaced(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda before, text, after: before + text + after, SPACE, inner, SPACE)


@st.composite
def objects(draw: st.DrawFn, depth: int = 1, needed: tuple[str, ...] = ()) -> str:
    """The text of an object with the needed members somewhere among others, of which keys may come twice."""
    escaped = draw(st.booleans())
    others = draw(st.lists(st.tuples(KEYS, spaced(values(depth))), max_size=3))
    found = [f"{draw(SPACE)}{quoted(key, escaped)}{draw(SPACE)}:{value}" for key, value in others]
    found = draw(st.permutations([*found, *needed]))
    return "{" + ",".join(found) + "}"


BODIES = objects(depth=2, needed=(' "model" : "m"', f"{ASKED} "))


@settings(max_examples=70)
@given(BODIES, SPACE, SPACE, st.sampled_from(["first", "middle", "last"]), st.lists(values(1), max_size=2))
def test_a_batch_rows_body_is_sent_byte_for_byte(
    body: str, before: str, after: str, where: str, others: list[str]
) -> None:
    """Whatever its spacing, order, escapes and numbers, and wherever it stands: the very bytes of the input."""
    mine = f'"body"{before}:{after}{body}'
    extra = [f'"x{n}":{value}' for n, value in enumerate(others)]
    members = {"first": [mine, *extra], "middle": [*extra[:1], mine, *extra[1:]], "last": [*extra, mine]}[where]
    found = asked("{" + before + '"custom_id":"a",' + ",".join(members) + after + "}")
    assert found.body == body.encode()
    assert found.custom_id == "a"
    assert set(found.extra or {}) == {f"x{n}" for n in range(len(others))}


@settings(max_examples=50)
@given(BODIES)
def test_a_bare_body_is_sent_byte_for_byte(body: str) -> None:
    """A line without `custom_id` and `body` at its top is itself the body, to the byte."""
    fields = json.loads(body)
    if "custom_id" not in fields and "body" not in fields:
        assert asked(body).body == body.encode()


@settings(max_examples=50)
@given(BODIES, st.sampled_from(["first", "last"]))
def test_of_a_bare_body_only_the_id_is_taken_out(body: str, where: str) -> None:
    """With a `custom_id` beside the other fields: all other members keep their text and their order."""
    fields = json.loads(body)
    if "custom_id" in fields or "body" in fields:
        return
    text = '{"custom_id": "a",' + body[1:] if where == "first" else body[:-1] + ', "custom_id": "a"}'
    found = asked(text)
    assert found.custom_id == "a"
    assert found.body.decode().strip("{} \t") == body.strip("{} \t")
    assert json.loads(found.body, parse_float=str) == json.loads(body, parse_float=str)


def test_of_duplicate_bodies_the_last_one_stands() -> None:
    """As JSON parsers have it: the row that is checked is the row that is sent."""
    text = f'{{"custom_id":"a","body":{{"model":"other"}},"body":{HELLO}}}'
    assert asked(text).body == HELLO.encode()
    reversed_text = f'{{"custom_id":"a","body":{HELLO},"body":{{"model":"other"}}}}'
    assert "messages" in refused(reversed_text).message


def test_of_duplicate_fields_the_last_one_is_checked() -> None:
    """A model named twice: the one that the endpoint will read."""
    assert asked(f'{{"model":"one","model":"two",{ASKED}}}').model == "two"


def test_a_body_as_deep_as_may_be_is_sent_or_refused_but_breaks_nothing() -> None:
    """Nested to any depth, shaped or not: a request or a refusal, never an exception."""
    for depth in (100, 400, 900, 970, 1000, 1020, 1100, 100_000):
        nested = "[" * depth + "]" * depth
        body = f'{{"model":"m",{ASKED},"x":{nested}}}'
        for shaping in (PLAIN, Shaping(defaults=(("a", "1"),)), Shaping(stream=True), Shaping(override_model="o")):
            for text in (body, batch(body), f'{{"custom_id":"b",{body[1:]}'):
                found = row(text, shaping)
                assert isinstance(found, Request | Refusal)
                assert found.custom_id in {"a", "b", "in.jsonl:7"}


# --- what settings add -------------------------------------------------------------------------------------------

BODY = '{ "model" : "m", ' + ASKED + ' ,  "temperature":1E0}'
BARE = "{" + ASKED + "}"
SHAPED: dict[str, tuple[Shaping, str, str]] = {
    "nothing asked": (PLAIN, BODY, BODY),
    "--model, named": (Shaping(model="x"), BODY, BODY),
    "--model, not named": (Shaping(model="x"), BARE, "{" + ASKED + ',"model":"x"}'),
    "--model, null": (Shaping(model="x"), '{"model": null,' + ASKED + "}", '{"model": "x",' + ASKED + "}"),
    "--override-model": (Shaping(override_model="x"), BODY, BODY.replace('"m"', '"x"')),
    "--override-model over --model": (
        Shaping(model="y", override_model="x"), BARE, "{" + ASKED + ',"model":"x"}',
    ),
    "--override-model, a number": (
        Shaping(override_model="x"), '{"model":5,' + ASKED + "}", '{"model":"x",' + ASKED + "}",
    ),
    "--set, lacking": (Shaping(defaults=(("top_p", "0.5"),)), BODY, BODY[:-1] + ',"top_p":0.5}'),
    "--set, there": (Shaping(defaults=(("temperature", "0"),)), BODY, BODY),
    "--set, there as null": (
        Shaping(defaults=(("temperature", "0"),)), BODY.replace("1E0", "null"), BODY.replace("1E0", "null"),
    ),
    "--set of two": (
        Shaping(defaults=(("a", '{"b": [1]}'), ("c", '"d"'))), BODY, BODY[:-1] + ',"a":{"b": [1]},"c":"d"}',
    ),
    "--stream": (
        Shaping(stream=True), BODY, BODY[:-1] + ',"stream":true,"stream_options":{"include_usage":true}}',
    ),
    "--stream, there": (
        Shaping(stream=True), BODY[:-1] + ',"stream": true}',
        BODY[:-1] + ',"stream": true,"stream_options":{"include_usage":true}}',
    ),
    "a streamed row without options": (
        PLAIN, BODY[:-1] + ',"stream": true}', BODY[:-1] + ',"stream": true,"stream_options":{"include_usage":true}}',
    ),
    "a streamed row with options": (
        PLAIN, BODY[:-1] + ',"stream": true,"stream_options":{}}', BODY[:-1] + ',"stream": true,"stream_options":{}}',
    ),
    "a row that says no": (PLAIN, BODY[:-1] + ',"stream": false}', BODY[:-1] + ',"stream": false}'),
    "--stream over no": (
        Shaping(stream=True), BODY[:-1] + ',"stream": false}',
        BODY[:-1] + ',"stream": true,"stream_options":{"include_usage":true}}',
    ),
    "--no-stream": (Shaping(stream=False), BODY, BODY),
    "--no-stream over yes": (
        Shaping(stream=False), BODY[:-1] + ',"stream": true,"stream_options":{"include_usage":true}}',
        BODY[:-1] + ',"stream": false}',
    ),
    "--set stream": (
        Shaping(defaults=(("stream", "true"),)), BODY,
        BODY[:-1] + ',"stream":true,"stream_options":{"include_usage":true}}',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("shaping", "body", "expected"), SHAPED.values(), ids=SHAPED.keys())
@pytest.mark.parametrize("shape", ["batch", "bare"])
def test_settings_add_only_what_was_asked(shaping: Shaping, body: str, expected: str, shape: str) -> None:
    """Spliced in at the member's own place, or at the end; all other bytes stay."""
    found = asked(batch(body) if shape == "batch" else body, shaping)
    assert found.body == expected.encode()
    fields = json.loads(expected)
    assert found.streamed is (fields.get("stream") is True)
    assert found.model == fields["model"]


def test_embeddings_are_never_streamed() -> None:
    """--stream has no meaning there, and adds nothing."""
    text = '{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"x"}}'
    found = asked(text, Shaping(stream=True))
    assert found.body == b'{"model":"m","input":"x"}'
    assert not found.streamed


def test_streamed_responses_get_no_options() -> None:
    """`stream_options` is a field of chat and completions."""
    text = '{"custom_id":"a","url":"/v1/responses","body":{"model":"m","input":"x"}}'
    assert asked(text, Shaping(stream=True)).body == b'{"model":"m","input":"x","stream":true}'


@pytest.mark.parametrize("value", ["1e999", r'"\ud83d"', "123456789012345678901234567890", ' [1, "a"] ', "-0.0"])
def test_a_default_of_any_json_is_sent_as_it_was_given(value: str) -> None:
    """--set takes JSON text; what parsers make of it is the endpoint's business."""
    assert asked(HELLO, Shaping(defaults=(("x", value),))).body == HELLO[:-1].encode() + f',"x":{value}}}'.encode()


def test_who_a_row_is_depends_on_its_id_and_its_body() -> None:
    """The same id and body: the same identity. Another body or id: another. A stream of the same is the same row."""
    first = asked(batch()).identity
    assert asked(batch()).identity == first == identify("a", HELLO.encode())
    assert asked(batch(custom_id='"b"')).identity.key != first.key
    assert asked(batch(custom_id='"b"')).identity.digest == first.digest
    other = asked(batch(HELLO.replace("hi", "ho"))).identity
    assert (other.key == first.key, other.digest == first.digest) == (True, False)
    assert asked(batch(), Shaping(stream=True)).identity == first
    assert asked(batch(), Shaping(override_model="x")).identity.digest != first.digest
    assert len(str(first)) == len("batch_req_") + 48


def test_a_shaping_says_when_it_is_another() -> None:
    """Everything that can change a body's identity is in its fingerprint, and `stream` is not."""
    made = [PLAIN, Shaping(model="x"), Shaping(override_model="x"), Shaping(defaults=(("a", "1"),))]
    assert len({one.fingerprint() for one in made}) == 4
    assert Shaping(stream=True).fingerprint() == PLAIN.fingerprint()


def test_tokens_are_estimated_from_the_text_and_the_budget() -> None:
    """More text, more tokens; a small budget, fewer; a budget of any odd type is no budget and no error."""
    plain = asked(HELLO).tokens
    assert asked(HELLO.replace("hi", "x" * 4000)).tokens >= plain + 990
    assert asked(HELLO[:-1] + ',"max_tokens":5}').tokens < plain - 200
    for odd in ("-1", "0", '"5"', "2.5", "null", "[]", "true", "1e999", "123456789012345678901234567890"):
        assert abs(asked(HELLO[:-1] + f',"max_tokens":{odd}}}').tokens - plain) < 15


# --- files -------------------------------------------------------------------------------------------------------


def lines_of(source: Source) -> list[bytes | None]:
    with source.open() as file:
        return [line.raw for line in read_lines(file)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_a_gzip_file_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    """Whatever it is called; and several members are one file."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"one\ntwo\n") + gzip.compress(b"three"))
    assert lines_of(Source("a", path)) == [b"one", b"two", b"three"]


def test_a_plain_file_called_gz_is_a_plain_file(tmp_path: Path) -> None:
    """The name decides nothing."""
    path = tmp_path / "a.gz"
    path.write_bytes(b"one\n")
    assert lines_of(Source("a", path)) == [b"one"]


@pytest.mark.parametrize("content", [b"", b"\x1f", b"\x28\xb5\x2f", b"{}\n"])
def test_files_of_a_few_bytes_are_files(tmp_path: Path, content: bytes) -> None:
    """Empty, or shorter than any mark."""
    path = tmp_path / "a"
    path.write_bytes(content)
    assert lines_of(Source("a", path)) == ([content.rstrip(b"\n")] if content else [])


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    """Opened or asked for its fingerprint: the path and the reason."""
    source = Source("a", tmp_path / "missing.jsonl")
    for act in (source.open, source.fingerprint):
        with pytest.raises(UsageError, match=r"missing\.jsonl"):
            act()


def test_a_fingerprint_tells_another_file(tmp_path: Path) -> None:
    """The same when untouched; another after a rewrite of the same length."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    before = Source("a", path).fingerprint()
    assert Source("a", path).fingerprint() == before
    (tmp_path / "b").write_bytes(b"two\n")
    (tmp_path / "b").replace(path)
    assert Source("a", path).fingerprint() != before


def labels(*inputs: str | Path, stdin: str = "stdin.jsonl") -> list[str]:
    return [source.label for source in find_sources(tuple(map(str, inputs)), Path(stdin))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with files of the same name in several places."""
    for name in ("a.jsonl", "b.jsonl", "x/a.jsonl", "y/a.jsonl", "x/deep/a.jsonl", "y/deep/a.jsonl", "odd[1].jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inputs_are_called_by_their_names(folder: Path) -> None:
    """The file's name; where two share it, as much of the paths as tells them apart; standard input is `stdin`."""
    assert labels("a.jsonl", "b.jsonl") == ["a.jsonl", "b.jsonl"]
    assert labels("x/a.jsonl", "b.jsonl") == ["a.jsonl", "b.jsonl"]
    assert labels("x/a.jsonl", "y/a.jsonl", "b.jsonl") == ["x/a.jsonl", "y/a.jsonl", "b.jsonl"]
    assert labels("a.jsonl", "y/a.jsonl") == ["a.jsonl", "y/a.jsonl"]
    assert labels("x/deep/a.jsonl", "y/deep/a.jsonl") == ["x/deep/a.jsonl", "y/deep/a.jsonl"]
    assert len(set(labels("a.jsonl", "x/a.jsonl", "x/deep/a.jsonl", "y/deep/a.jsonl"))) == 4
    assert labels("-", "a.jsonl", stdin=str(folder / "stdin.jsonl")) == ["stdin", "a.jsonl"]


def test_globs_are_opened_in_order(folder: Path) -> None:
    """Those that the shell leaves: sorted, also from the root on; a file that is really called so is that file."""
    assert labels("*.jsonl") == ["a.jsonl", "b.jsonl", "odd[1].jsonl"]
    assert labels("odd[1].jsonl") == ["odd[1].jsonl"]
    assert labels(f"{folder}/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert labels("**/deep/*.jsonl") == ["x/deep/a.jsonl", "y/deep/a.jsonl"]
    paths = [source.path for source in find_sources(("b.jsonl", "x/*.jsonl"), Path("s"))]
    assert paths == [Path("b.jsonl"), Path("x/a.jsonl")]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (("missing.jsonl",), "missing.jsonl"),
        (("*.csv",), r"\*\.csv"),
        (("x",), "folder"),
        (("a.jsonl", "a.jsonl"), "twice"),
        (("a.jsonl", "./x/../a.jsonl"), "twice"),
        (("-", "-"), "twice"),
        (("a.jsonl", "*.jsonl"), "twice"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_inputs_that_cannot_be_meant_are_refused(inputs: tuple[str, ...], reason: str) -> None:
    """Nothing there, a folder, or the same file twice: exit 2 with the reason."""
    with pytest.raises(UsageError, match=reason):
        labels(*inputs)


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.csv.gz", "t.tsv", "t.parquet"])
def test_a_table_is_no_input(tmp_path: Path, name: str) -> None:
    """Said before any of its lines is called an invalid row, with the commands that take it."""
    content = b"id,text\na,fine\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UsageError, match=f"{name} looks like a table.*batchrouter label .*batchrouter prepare "):
        find_sources((str(tmp_path / name),), Path("s"))


def test_request_rows_are_an_input_whatever_their_file_is_called(tmp_path: Path) -> None:
    """What is in it decides."""
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf\n " + HELLO.encode())
    assert len(find_sources((str(tmp_path / "t.csv"),), Path("s"))) == 1
