"""Faults in what a 200 says: an altered completion, sent plain or streamed as it was asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from batchrouter.emulator.delivery import delivered, events, streamed
from batchrouter.emulator.faults.fault import Fault, Scene
from batchrouter.emulator.plays import Play, Whole

type_of_change = Callable[[dict[str, Any], Scene], None]

# Stands in the JSON where the raw bytes of a fault come, since no encoder would write them.
_MARK: Final = "<<spliced>>"
_QUOTED: Final = b'"<<spliced>>"'


def contents() -> Iterator[Fault]:
    """Every fault of this file."""
    yield from _choices()
    yield from _usages()
    yield from _messages()
    yield from _texts()
    yield from _raw()


def _altered(change: type_of_change) -> Callable[[Scene], Play]:
    """A play of the completion after a change to a copy of it."""

    def play(scene: Scene) -> Play:
        completion = copy.deepcopy(scene.completion)
        change(completion, scene)
        return delivered(scene.body, completion, scene.headers)

    return play


def _spliced(change: type_of_change, old: bytes, new: bytes) -> Callable[[Scene], Play]:
    """The same, with bytes replaced in the encoded JSON (in each event of a stream)."""

    def play(scene: Scene) -> Play:
        completion = copy.deepcopy(scene.completion)
        change(completion, scene)
        if scene.streamed:
            return streamed([e.replace(old, new) for e in events(scene.body, completion)], scene.headers)
        whole = delivered(scene.body, completion, scene.headers)
        return whole._replace(body=whole.body.replace(old, new)) if isinstance(whole, Whole) else whole

    return play


def _choices() -> Iterator[Fault]:
    def put(value: Any) -> type_of_change:
        return lambda completion, _: completion.__setitem__("choices", value)

    yield Fault("choices_empty", "200 whose choices are an empty list", _altered(put([])))
    yield Fault("choices_missing", "200 that is an object without choices", _bare("choices", None))
    yield Fault("choices_null", "200 whose choices are null", _bare("choices", _MARK))
    yield Fault("finish_error", 'finish_reason "error"', _altered(_finish("error")))
    yield Fault("finish_null", "200 whose finish_reason is null", _altered(_finish(None)))
    yield Fault("finish_length", 'finish_reason "length" after some text', _altered(_finish("length")), usable=True)
    yield Fault("finish_filter", 'finish_reason "content_filter"', _altered(_finish("content_filter")), usable=True)
    yield Fault("choice_error", "200 whose choice holds an error object", _altered(_choice_error))
    yield Fault("empty_length", 'empty content with finish_reason "length"', _altered(_spent), usable=True)
    yield Fault(
        "other_model",
        "the answer names another model; the parameter says which",
        _altered(_model),
        usable=True,
    )


def _bare(name: str, value: str | None) -> Callable[[Scene], Play]:
    """The plain body with a field left out or null, also where a stream was asked for: no stream has such."""

    def play(scene: Scene) -> Play:
        completion = {k: v for k, v in scene.completion.items() if k != name}
        if value is not None:
            completion[name] = None
        return delivered({}, completion, scene.headers)

    return play


def _finish(reason: str | None) -> type_of_change:
    def change(completion: dict[str, Any], _: Scene) -> None:
        for choice in completion["choices"]:
            choice["finish_reason"] = reason

    return change


def _choice_error(completion: dict[str, Any], _: Scene) -> None:
    for choice in completion["choices"]:
        choice["error"] = {"code": 502, "message": "Provider disconnected", "metadata": {}}
        choice["finish_reason"] = "error"


def _spent(completion: dict[str, Any], scene: Scene) -> None:
    _say("")(completion, scene)
    _finish("length")(completion, scene)


def _model(completion: dict[str, Any], scene: Scene) -> None:
    completion["model"] = scene.text("another-model-2026-01-01")


def _usages() -> Iterator[Fault]:
    def put(value: Any) -> Callable[[Scene], Play]:
        return _altered(lambda completion, _: completion.__setitem__("usage", value))

    def count(number: Any) -> dict[str, Any]:
        return {"prompt_tokens": number, "completion_tokens": number, "total_tokens": number}

    left_out = _altered(lambda completion, _: completion.__delitem__("usage"))
    digits = _spliced(lambda c, _: c.__setitem__("usage", count(_MARK)), _QUOTED, b"9" * 5000)
    yield Fault("usage_missing", "no usage", left_out, usable=True)
    yield Fault("usage_null", "usage is null", put(None), usable=True)
    yield Fault("usage_negative", "token counts of -7", put(count(-7)), usable=True)
    yield Fault("usage_float", "token counts of 12.5", put(count(12.5)), usable=True)
    yield Fault("usage_string", 'token counts of "12"', put(count("12")), usable=True)
    yield Fault("usage_list", "usage is a list", put([1, 2, 3]), usable=True)
    yield Fault("usage_digits", "token counts of 5,000 digits", digits, usable=True)


def _say(content: Any) -> type_of_change:
    def change(completion: dict[str, Any], _: Scene) -> None:
        for choice in completion["choices"]:
            choice["message"]["content"] = content

    return change


def _add(fields: dict[str, Any]) -> type_of_change:
    def change(completion: dict[str, Any], _: Scene) -> None:
        for choice in completion["choices"]:
            choice["message"] |= fields

    return change


def _messages() -> Iterator[Fault]:
    refused = {"content": None, "refusal": "I'm sorry, I cannot assist with that request."}
    thought = {"reasoning": "First, the question.", "reasoning_content": "First, the question."}
    yield Fault("content_null", "content is null", _altered(_say(None)), usable=True)
    yield Fault("content_empty", 'content is ""', _altered(_say("")), usable=True)
    yield Fault("refusal", "content is null and refusal speaks", _altered(_add(refused)), usable=True)
    yield Fault("content_parts", "content is a list of parts", _altered(_parts), usable=True)
    yield Fault("reasoning_fields", "reasoning beside the content", _altered(_add(thought)), usable=True)
    yield Fault(
        "tool_arguments_broken",
        "a tool call whose arguments are no JSON",
        _altered(_broken_call),
        usable=True,
    )


def _parts(completion: dict[str, Any], _: Scene) -> None:
    for choice in completion["choices"]:
        choice["message"]["content"] = [{"type": "text", "text": choice["message"]["content"] or ""}]


def _broken_call(completion: dict[str, Any], scene: Scene) -> None:
    function = {"name": "look_up", "arguments": '{"word": "unfinish'}
    _add({"content": None, "tool_calls": [{"id": "call_0", "type": "function", "function": function}]})(
        completion, scene
    )
    _finish("tool_calls")(completion, scene)


def _texts() -> Iterator[Fault]:
    """Content that is dangerous to show, or breaks lines where none should break."""
    for name, about, text in (
        (
            "line_separators",
            "U+2028, U+2029, U+0085, \\x1c and \\r\\n in the content",
            "a\u2028b\u2029c\x85d\x1ce\r\nf\vg",
        ),
        ("nul_content", "NUL and control characters in the content", "a\x00b\x01c\x7fd\x9be"),
        ("ansi_content", "terminal escapes in the content", "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J"),
        (
            "html_content",
            "HTML and script in the content",
            '</script><script>alert("x")</script><img src=x onerror=a()>',
        ),
        (
            "formula_content",
            "a spreadsheet formula as the content",
            '=HYPERLINK("http://127.0.0.1/?"&A1,"open")',
        ),
        (
            "wide_content",
            "emoji, combining and right-to-left text in the content",
            "👩‍👩‍👧 e\u0301 \u202eright\u202c 日本語 \U0001d518",
        ),
    ):
        yield Fault(name, about, _altered(_say(text)), usable=True)
    yield Fault("echo_key", "the key comes back in the content and in headers", _echo_key, usable=True)


def _echo_key(scene: Scene) -> Play:
    completion = copy.deepcopy(scene.completion)
    _say(f"Your key is {scene.key}; keep it safe.")(completion, scene)
    echo = (("x-echo-authorization", f"Bearer {scene.key}"), ("x-debug", scene.key))
    return delivered(scene.body, completion, (*scene.headers, *echo))


def _raw() -> Iterator[Fault]:
    """JSON that an encoder would not write; the odd value stands under usage, so streams carry it too."""

    def odd(value: bytes) -> Callable[[Scene], Play]:
        return _spliced(lambda c, _: c["usage"].__setitem__("cost", _MARK), _QUOTED, value)

    surrogate = _spliced(_say(f"half a pair: {_MARK}"), _MARK.encode(), b"\\ud83d")
    bad_utf8 = _spliced(_say(f"not UTF-8: {_MARK}"), _MARK.encode(), b"\xff\xfe\xc3")
    yield Fault("nan", "a bare NaN in the JSON", odd(b"NaN"), usable=True)
    yield Fault("infinity", "a bare -Infinity in the JSON", odd(b"-Infinity"), usable=True)
    yield Fault("huge_float", "1e999 in the JSON", odd(b"1e999"), usable=True)
    yield Fault("lone_surrogate", "half a surrogate pair, escaped, in the content", surrogate, usable=True)
    yield Fault("invalid_utf8", "bytes in the content that are no UTF-8", bad_utf8)
    yield Fault("duplicate_keys", "the id stands twice; the last one is right", _twice, usable=True)


def _twice(scene: Scene) -> Play:
    right = b'"id":' + orjson.dumps(scene.completion["id"])
    return _spliced(lambda *_: None, right, b'"id":"an earlier id",' + right)(scene)
