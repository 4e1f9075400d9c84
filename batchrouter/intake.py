"""One line of input -> a Request that can be sent, or a Refusal that says why not.

Rules of this file: pure; a body leaves as the bytes it came in, changed only
where a setting asks for it. The fast way cuts the body out of its line and proves the cut (what is left must parse with
a null in the body's place, and the body must parse by itself); every line that does not fit goes the slow, general way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from batchrouter import jsontext
from batchrouter.estimate import answer_budget, estimate_tokens
from batchrouter.jsonl import BOM, LONGEST_LINE_BYTES, Line
from batchrouter.records import Identity, Refusal, Request

# What a row may be sent to, by the `url` of a batch row, and the field of the body without which it is no request.
PATHS: Final = {
    f"{prefix}{path}": path
    for path in ("/chat/completions", "/completions", "/embeddings", "/responses")
    for prefix in ("", "/v1")
}
_CHAT: Final = "/chat/completions"
_NEEDED: Final = {"/completions": "prompt", "/embeddings": "input", "/responses": "input"}

_BODY: Final = re.compile(rb'"body"[ \t]*:[ \t]*(?=\{)')
# How nearly all batch rows begin: nothing else of theirs but the body is to be looked at then.
_USUAL: Final = re.compile(
    rb'\{"custom_id": ?"([ !#-\[\]-~]*)", ?"method": ?"POST", ?"url": ?"/v1/chat/completions", ?"body": ?(?=\{)'
)
_ENVELOPE_KEYS: Final = frozenset({"custom_id", "method", "url", "body"})
_LINE_END: Final = b" \t\r"
_BLANKS: Final = b" \t\r\n"
_BRACE: Final = ord("}")
_BLANK_DIGEST: Final = hashlib.blake2b(digest_size=12)  # a copy of it costs half of what making one does
_NO_ID: Final = object()


@dataclass(frozen=True, slots=True)
class Shaping:
    """What settings do to every body: part of a row's identity, all but `stream`."""

    model: str | None = None
    override_model: str | None = None
    defaults: tuple[tuple[str, str], ...] = ()
    stream: bool | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether every body stays as it is."""
        return not self.defaults and self.model is None and self.override_model is None

    @property
    def spares_usual_rows(self) -> bool:
        """Whether every body that names its model stays as it is, asked as a stream or not as it says itself."""
        return not self.defaults and self.override_model is None and self.stream is None

    def fingerprint(self) -> str:
        """A text that differs when a body could."""
        return repr((self.model, self.override_model, self.defaults))


class Invalid(ValueError):  # noqa: N818  (a finding about a row)
    """Why a row cannot be asked; `custom_id` where it could be read all the same."""

    def __init__(self, problem: str, custom_id: object = None) -> None:
        super().__init__(problem)
        self.custom_id = custom_id if type(custom_id) is str else None


class Reading(NamedTuple):
    """What a line asks for: its body with the settings' model and defaults worked in, as it is sent (`--stream` worked
    in too), and its fields.
    """

    custom_id: str
    path: str
    body: bytes
    sent: bytes
    streamed: bool
    model: str
    fields: dict[str, Any]
    envelope: dict[str, Any]


def _digest(content: bytes) -> bytes:
    digest = _BLANK_DIGEST.copy()
    digest.update(content)
    return digest.digest()


def identify(custom_id: str, body: bytes, path: str = _CHAT) -> Identity:
    """A row's identity: 96-bit BLAKE2b of its id and of its body as it is sent, and where to, if it is no chat."""
    if path != _CHAT:
        body = path.encode() + body
    return Identity(key_of(custom_id), _digest(body))


def key_of(custom_id: str) -> bytes:
    """The key of a row by its id."""
    return _digest(custom_id.encode("utf-8", "surrogatepass"))


def key_of_duplicate(key: bytes, file: str, line: int) -> bytes:
    """The key of a row whose custom_id an earlier row has: by its place too, as its id is not its own."""
    return _digest(b"%b\0%b:%d" % (key, file.encode("utf-8", "surrogateescape"), line))


def read_row(line: Line, n: int, file: str, shaping: Shaping) -> Request | Refusal | None:
    """What a line of `file` asks for, as the run's row `n`; None for a blank line."""
    raw = _content(line.raw)
    if raw == b"":
        return None
    try:
        custom_id, path, body, sent, streamed, model, fields, envelope = _read(raw, file, line.number, shaping)
    except Invalid as error:
        custom_id = error.custom_id or f"{file}:{line.number}"
        message = f"{file}:{line.number}: {error}"
        return Refusal(n, custom_id, file, line.number, identify(custom_id, raw or b""), "invalid_row", message)
    extra = None
    if fields is not envelope and not envelope.keys() <= _ENVELOPE_KEYS:
        whole = jsontext.loads(raw or b"")  # again, exactly: the quick way may have rounded large integers
        extra = {key: value for key, value in whole.items() if key not in _ENVELOPE_KEYS}
    identity = identify(custom_id, body, path)
    allowed = answer_budget(fields)
    tokens = estimate_tokens(sent, allowed)
    return Request(n, custom_id, file, line.number, identity, path, sent, model, streamed, tokens, allowed, extra)


def read_identity(line: Line, file: str, shaping: Shaping) -> tuple[Identity, str] | None:
    """Who the row of a line is, and the model it asks ("" where it is refused): `read_row`, but quicker."""
    raw = _content(line.raw)
    if raw == b"":
        return None
    try:
        reading = _read(raw, file, line.number, shaping)
    except Invalid as error:
        return identify(error.custom_id or f"{file}:{line.number}", raw or b""), ""
    return identify(reading.custom_id, reading.body, reading.path), reading.model


def read_usual(raw: bytes) -> tuple[bytes, bytes, str, bytes, dict[str, Any]] | None:
    """Key, digest, model, body and its fields of a line as nearly all are, where settings leave its body alone:
    `read_identity`, in half the time. None for a line that must be looked at more closely.
    """
    usual = _USUAL.match(raw)
    if usual is None or raw[-2:] != b"}}":
        return None
    body = raw[usual.end() : -1]
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    model, messages = fields.get("model"), fields.get("messages")
    if type(model) is not str or not model or type(messages) is not list or not messages or "stream" in fields:
        return None
    for message in messages:
        if type(message) is not dict:
            return None
    return _digest(usual[1]), _digest(body), model, body, fields


def read_planned(raw: bytes, n: int, file: str, line: int, identity: Identity) -> Request | None:
    """The request that a line as nearly all are was planned to be, where settings leave its body alone: `read_row`, in
    a third of the time, as digests vouch for what was found then. None for a line that must be looked at more closely.
    """
    usual = _USUAL.match(raw)
    if usual is None or raw[-2:] != b"}}":
        return None
    body = raw[usual.end() : -1]
    if _digest(body) != identity.digest or _digest(usual[1]) != identity.key:
        return None
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if "stream" in fields:
        return None
    allowed = answer_budget(fields)
    tokens = estimate_tokens(body, allowed)
    model = fields["model"]
    return Request(n, usual[1].decode(), file, line, identity, _CHAT, body, model, False, tokens, allowed, None)  # noqa: FBT003


def _content(raw: bytes | None) -> bytes | None:
    """A line without what may stand around its object; where files were strung together a mark may begin any line."""
    return None if raw is None else raw.removeprefix(BOM).strip(_LINE_END)


def _read(raw: bytes | None, file: str, number: int, shaping: Shaping) -> Reading:
    """What a line asks for; raises Invalid."""
    if raw is None:
        raise Invalid(f"the line is longer than {LONGEST_LINE_BYTES >> 20} MiB")
    envelope: dict[str, Any] = {}
    try:
        envelope, body, fields = _split(raw)
        custom_id = envelope.get("custom_id", _NO_ID)
        if custom_id is _NO_ID:
            custom_id = f"{file}:{number}"
        elif type(custom_id) is not str:
            raise Invalid("custom_id is not a string")  # noqa: TRY301  (one way out for all that is wrong)
        path = _path(envelope)
        if not shaping.is_nothing:
            body, fields = shape(body, fields, shaping)
        model = _model(fields, path)
        sent, streamed = body, False
        if shaping.stream is not None or "stream" in fields:
            sent, streamed = _shape_stream(body, fields, shaping.stream, path)
        return Reading(custom_id, path, body, sent, streamed, model, fields, envelope)
    except Invalid as error:
        raise Invalid(str(error), error.custom_id or envelope.get("custom_id")) from None
    except jsontext.NotJson as error:
        raise Invalid(str(error)) from None


def _split(raw: bytes) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """A line -> (envelope, body text, body's fields); of a bare body the envelope is the fields themselves."""
    usual = _USUAL.match(raw)
    if usual is not None and raw[-1] == _BRACE:
        body = raw[usual.end() : -1].rstrip(_BLANKS)
        try:
            return {"custom_id": usual[1].decode()}, body, orjson.loads(body)
        except orjson.JSONDecodeError:  # it has more keys, or is no JSON
            return _split_slowly(raw)
    match = _BODY.search(raw)
    if match is not None:
        begin, end = match.end(), len(raw) - 1
        body = raw[begin:end].rstrip(_BLANKS)
        try:
            envelope = orjson.loads(b"%bnull}" % raw[:begin])
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _split_slowly(raw)
        if raw[end] == _BRACE and type(envelope) is dict and envelope.get("body", 0) is None:
            return envelope, body, fields
        return _split_slowly(raw)
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _split_slowly(raw)
    if type(fields) is not dict or "custom_id" in fields or "body" in fields:
        return _split_slowly(raw)
    return fields, raw, fields


def _split_slowly(raw: bytes) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    whole = jsontext.loads(raw, strict=True)
    if type(whole) is not dict:
        raise Invalid("not a JSON object")
    if "body" not in whole:
        body = jsontext.without(raw, "custom_id") if "custom_id" in whole else raw
        return whole, body, whole
    fields = whole["body"]
    if type(fields) is not dict:
        raise Invalid("body is not an object", whole.get("custom_id"))
    return whole, jsontext.value_of(raw, "body"), fields


def _path(envelope: Mapping[str, Any]) -> str:
    if "body" not in envelope:
        return _CHAT
    method = envelope.get("method", "POST")
    if method != "POST":
        raise Invalid(f"method is {method!r}, not POST"[:200])
    url = envelope.get("url", "/v1/chat/completions")
    path = PATHS.get(url) if type(url) is str else None
    if path is None:
        raise Invalid(f"url is {url!r}; known are /v1/chat/completions, completions, embeddings, responses"[:300])
    return path


def _model(fields: Mapping[str, Any], path: str) -> str:
    """The model of a body that can be sent; raises Invalid."""
    needed = _NEEDED.get(path)
    if needed is None:
        messages = fields.get("messages")
        if type(messages) is not list:
            raise Invalid("messages is not a list" if "messages" in fields else "there is no messages")
        if not messages:
            raise Invalid("messages is empty")
        for message in messages:
            if type(message) is not dict:
                raise Invalid("messages holds something that is no object")
    elif needed not in fields:
        raise Invalid(f"there is no {needed}")
    model = fields.get("model")
    if type(model) is not str or not model:
        raise Invalid("there is no model; name one in the row or with --model")
    return model


def shape(body: bytes, fields: dict[str, Any], shaping: Shaping) -> tuple[bytes, dict[str, Any]]:
    """The body with the settings' model and defaults worked in; the very same bytes where nothing is to be done."""
    changes: dict[str, str] = {key: text for key, text in shaping.defaults if key not in fields}
    if shaping.override_model is not None:
        changes["model"] = jsontext.dumps(shaping.override_model).decode()
    elif shaping.model is not None and fields.get("model") is None:
        changes["model"] = jsontext.dumps(shaping.model).decode()
    if not changes:
        return body, fields
    fields = fields | {key: jsontext.loads(text.encode()) for key, text in changes.items()}
    return jsontext.replace(body, {key: text.encode() for key, text in changes.items()}), fields


def _shape_stream(body: bytes, fields: Mapping[str, Any], wanted: bool | None, path: str) -> tuple[bytes, bool]:  # noqa: FBT001  (three-valued setting)
    """The body asking for a stream, or for none; a streamed chat asks for its usage where it says nothing of it."""
    streamed = fields.get("stream") is True
    if wanted is None and not streamed:
        return body, streamed
    changes: dict[str, bytes] = {}
    if wanted is not None and wanted != streamed and path != "/embeddings":
        streamed = wanted
        changes["stream"] = b"true" if wanted else b"false"
    if streamed and path in {"/chat/completions", "/completions"} and "stream_options" not in fields:
        changes["stream_options"] = b'{"include_usage":true}'
    if not changes:
        return body, streamed
    body = jsontext.replace(body, changes)
    if not streamed and "stream_options" in fields:
        body = jsontext.without(body, "stream_options")  # it is an error beside "stream": false
    return body, streamed
