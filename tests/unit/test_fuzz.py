"""Whatever a peer or a file says, nothing raises: parsers, verdicts and checks, fed with noise and near misses."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.hostile import KEY, Heard, Step, hostile, http, opened, piece, right
from kit.scripted import request
from multidict import CIMultiDict

from batchrouter import jsontext
from batchrouter.answercheck import AnswerCheck
from batchrouter.frontier import Job
from batchrouter.hints import read_hints
from batchrouter.intake import PATHS, Shaping, identify, read_identity, read_planned, read_row, read_usual
from batchrouter.jsonl import Line
from batchrouter.keys import Secret
from batchrouter.records import Fault, Refusal, Reply, Request
from batchrouter.redaction import Redactor
from batchrouter.retry import Accept, Again, GiveUp, History, Policy, Stop, error_code_of, judge, message_of, unwrapped
from batchrouter.review import Review
from batchrouter.transport import Transport
from batchrouter.usage import read_usage

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "60"))
bounded = settings(max_examples=EXAMPLES)

NAMES = [
    "id", "object", "choices", "index", "message", "delta", "content", "role", "refusal", "tool_calls",
    "function", "arguments", "name", "type", "text", "logprobs", "finish_reason", "usage", "prompt_tokens",
    "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens", "error", "code", "status",
    "detail", "msg", "data", "output", "input", "incomplete_details", "reason", "model", "messages", "body",
    "custom_id", "method", "url", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens",
    "n", "response_format", "json_schema", "schema", "properties", "items", "pattern", "$ref", "$schema",
    "required", "enum", "maximum", "anyOf", "embedding", "param",
]  # fmt: skip
WORDS = ["stop", "length", "error", "failed", "queued", "incomplete", "max_output_tokens", "insufficient_quota", "402",
         "message", "output_text", "json_object", "json_schema", "object", "string", "(", "#", "POST", "", "\ud83d", *PATHS]  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, 1, 200, 400, 402, 429, 502, 10**30, -1])
    | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(WORDS) | st.text(max_size=5)
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
paths = st.sampled_from(sorted(set(PATHS.values())))

DURATIONS = ["1", "0", "-1", "nan", "1e400", "6m0s", "20ms", "1_0", "Wed, 21 Oct 2026 07:28:00 GMT", "٣", "9" * 400,
             '"a";r=5;t=', "100, 100;w=60", "2026-01-01T00:00:00Z", "Mon, 99 Foo 99999 99:99:99", ";;=", "\x00", "d"]  # fmt: skip
HEADERS = [
    "retry-after", "retry-after-ms", "llm_provider-retry-after", "date", "x-should-retry", "ratelimit",
    "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens", "x-request-id",
]  # fmt: skip
headers = st.dictionaries(
    st.sampled_from(HEADERS), st.sampled_from([*DURATIONS, "true", "false"]) | st.text(max_size=20)
)


@bounded
@given(st.integers(100, 999), objects, headers, paths, st.integers(1, 9), st.integers(0, 5))
def test_any_answer_has_a_verdict(
    status: int, body: dict[str, Any], said: dict[str, str], path: str, attempts: int, waits: int
) -> None:
    """Unwrapped, hinted, counted, judged, told and named: no body, header or status is too odd."""
    reply = unwrapped(Reply(status, CIMultiDict(said), body, 0.1))
    hints = read_hints(reply.headers, 1_800_000_000.0)
    usage = read_usage(body)
    assert usage is None or min(usage) >= 0
    verdict = judge(
        reply,
        path,
        History(attempts, waits),
        Policy(5, 3600),
        retry_after_s=None if hints is None else hints.retry_after_s,
        rng=random.Random(0),
    )
    match verdict:
        case Again(wait_s, blame):
            assert wait_s > 0 or blame == "limit"
        case Accept() | GiveUp() | Stop():
            pass
    assert message_of(body).isprintable()
    assert error_code_of(reply).isprintable()


@bounded
@given(values, st.sampled_from(["json_object", "json_schema"]), values | st.text(), objects)
def test_any_schema_can_be_checked_against(schema: Any, kind: str, content: Any, message: dict[str, Any]) -> None:
    """Whatever a row calls its schema, and whatever the answer holds."""
    wanted = {"type": kind, "json_schema": {"schema": schema}}
    body = jsontext.dumps({"response_format": wanted})
    said = jsontext.dumps(content).decode()
    for one in ({"content": said}, {"content": content}, message):
        problem = AnswerCheck().problem(body, {"choices": [{"message": one}]})
        assert problem is None or type(problem) is str


@bounded
@given(objects, values)
def test_any_budget_can_grow(fields: dict[str, Any], budget: Any) -> None:
    """Whatever stands where a budget would: it is doubled or it is left alone."""
    body = jsontext.dumps({**fields, "max_tokens": budget})
    job = Job(request(body=body, answer_tokens=7))
    if Review("grow", max_grow=1000).grows(job):
        grown = jsontext.loads(job.request.body)
        assert any(grown.get(name) != fields.get(name) for name in ("max_tokens", "max_completion_tokens"))


lines = (
    st.binary(max_size=60)
    | objects.map(jsontext.dumps)
    | st.builds(lambda fields, body: jsontext.dumps({**fields, "body": body}), objects, values)
    | st.builds(
        lambda fields, body: b'{"body": %b, %b' % (jsontext.dumps(body), jsontext.dumps(fields)[1:]), objects, objects
    )
    | st.builds(
        lambda name, fields, messages, rest: (
            b'{"custom_id": "%b", "method": "POST", "url": "/v1/chat/completions", "body": %b%b'
            % (name.encode(), jsontext.dumps({"model": "m", "messages": messages, **fields}), rest)
        ),
        st.sampled_from(["a", "", "x y", "\\u00e9", "é"]),
        objects,
        st.lists(objects | values, max_size=2) | values,
        st.sampled_from([b"}", b"}", b"}", b" }", b"}}", b"} ", b',"k": {}}', b""]),
    )
)


@bounded
@given(
    lines,
    st.sampled_from([None, True, False]),
    st.sampled_from([(), (("max_tokens", "7"), ("stream", "true"))]),
    st.sampled_from([None, "m"]),
)
def test_any_line_is_a_request_or_a_refusal(
    raw: bytes,
    stream: bool | None,  # noqa: FBT001  (three-valued setting)
    defaults: tuple[tuple[str, str], ...],
    model: str | None,
) -> None:
    """Noise, bodies, envelopes: a refusal says where; a request's body is JSON that names its model."""
    shaping = Shaping(model=model, defaults=defaults, stream=stream)
    line = Line(3, 0, raw.replace(b"\n", b""), len(raw))
    row = read_row(line, 0, "f.jsonl", shaping)
    quick = read_identity(line, "f.jsonl", shaping)
    match row:
        case None:
            assert quick is None
        case Refusal():
            assert row.message.startswith("f.jsonl:3: ")
            assert quick is not None
            assert quick == (row.identity, "")
        case Request():
            assert jsontext.loads(row.body)["model"] == row.model
            assert quick == (row.identity, row.model)
            if shaping.spares_usual_rows:
                assert read_planned(line.raw or b"", 0, "f.jsonl", 3, row.identity) in (row, None)
    usual = read_usual(line.raw or b"") if shaping.spares_usual_rows else None
    assert usual is None or (usual[:2], usual[2]) == quick
    assert usual is None or (isinstance(row, Request) and row.body == usual[3])


def test_usual_rows_are_taken_for_it() -> None:
    """As batch files have them, whatever stands in their bodies but `stream`; no row that settings may change."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi }} \xc3\xa9"}], "n": 2}'
    raw = b'{"custom_id": "a b", "method": "POST", "url": "/v1/chat/completions", "body": %b}' % body
    assert read_usual(raw) == (*identify("a b", body), "m", body, jsontext.loads(body))
    assert read_usual(raw.replace(b": ", b":")) is not None
    assert Shaping(model="m").spares_usual_rows
    for shaping in (Shaping(stream=True), Shaping(override_model="m"), Shaping(defaults=(("n", "1"),))):
        assert not shaping.spares_usual_rows


@bounded
@given(st.binary(max_size=80), objects)
def test_anything_can_be_redacted(noise: bytes, body: dict[str, Any]) -> None:
    """Bytes, texts and values of any kind come out whole where there is no key in them."""
    redact = Redactor(Secret(KEY))
    assert redact(noise) == noise
    assert redact.value(body) == jsontext.loads(jsontext.dumps(body))


def mutated(text: bytes, dice: random.Random) -> bytes:
    """The text with some of its bytes changed, doubled or gone."""
    data = bytearray(text)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data))
        match dice.randrange(4):
            case 0:
                data[at] = dice.randrange(256)
            case 1:
                del data[at : at + dice.randint(1, 30)]
            case 2:
                data[at:at] = data[at : at + dice.randint(1, 30)]
            case _:
                data[at:at] = dice.choice([b"\r\n", b"\n\n", b"\0", b":", b"data: ", b"0\r\n\r\n", b"\xff", b"[" * 50])
        data = data or bytearray(b"x")
    return bytes(data)


def test_any_bytes_from_the_network_are_a_reply_or_a_fault() -> None:
    """Two hundred damaged answers and streams, over real sockets: nothing is raised, and each is over in time."""
    dice = random.Random(7)

    def script(heard: Heard) -> Iterable[Step]:
        choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
        chunk = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        plain = http(200, right(heard), "x-request-id: 7", "retry-after: 1")
        return [mutated(dice.choice([plain, opened() + piece(chunk) * 3 + piece(b"")]), dice), "close"]

    async def scene(base_url: str) -> list[Reply | Fault]:
        options: Any = {"timeout_s": 20.0, "idle_timeout_s": 10.0, "max_response_bytes": 10**6}
        async with Transport(base_url, Secret(KEY), concurrency=20, **options) as door:
            return await asyncio.gather(*(door.send(request(n)._replace(streamed=n % 2 == 0)) for n in range(200)))

    with hostile(script) as server:
        answers = asyncio.run(scene(server.base_url))
    assert all(isinstance(answer, Reply) or answer.message.isprintable() for answer in answers)
    assert any(isinstance(answer, Reply) for answer in answers)
    assert len({type(answer) for answer in answers}) == 2


def test_usual_rows_are_read_again_quickly() -> None:
    """As they were planned; not where the id or the body is another by now, or may have to be changed."""
    raw = (
        b'{"custom_id": "a b", "method": "POST", "url": "/v1/chat/completions", '
        b'"body": {"model": "m", "messages": [{"content": "hi \xc3\xa9"}], "max_tokens": 5, "n": 2}}'
    )
    row = read_row(Line(3, 0, raw, len(raw)), 7, "f.jsonl", Shaping())
    assert isinstance(row, Request)
    assert read_planned(raw, 7, "f.jsonl", 3, row.identity) == row
    for other in (raw.replace(b"a b", b"a c"), raw.replace(b"hi", b"ho"), raw[:-1]):
        assert read_planned(other, 7, "f.jsonl", 3, row.identity) is None
    streamed = raw.replace(b'"n": 2', b'"stream": true')
    row = read_row(Line(3, 0, streamed, len(streamed)), 7, "f.jsonl", Shaping())
    assert isinstance(row, Request)
    assert row.streamed
    assert read_planned(streamed, 7, "f.jsonl", 3, row.identity) is None
