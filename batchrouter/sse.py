"""The bytes of a stream -> one chat completion, as the endpoint would have answered without a stream.

Rules of this file:

- Nothing a peer can send raises: an answer that is not whole is `Incomplete`, an error `{"error": {...}}`.
- Whole means that there is a choice and that every choice seen has a finish reason; without `[DONE]` also that there
  are as many as were asked for. `[DONE]` alone proves nothing: some servers cut a stream and still say it.
- A choice's deltas and log probabilities merge as `deltas` tells. Of a chunk's `id`, `created` and `model`
  the first that is not empty stands, as in the official SDK; of every other field of a chunk or a choice,
  usage too, the last that is not null.
- Nothing is invented: what no chunk says is not there, but for the role, the kind of object, and the nulls
  that a plain answer has (`content`, `refusal`, `logprobs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchrouter.deltas import Fields, built, grown
from batchrouter.eventstream import Event, Events
from batchrouter.jsontext import NotJson, dumps, loads

__all__ = ["Assembly", "Incomplete"]

_DONE = b"[DONE]"

_FIRST_STANDS = frozenset({"id", "object", "created", "model"})
_TOO_DEEP = "an event is nested too deeply to be merged"

# A delta with one of these is output: its arrival is the time to first token.
_OUTPUT = (
    "content",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "reasoning_details",
)


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The stream holds no whole answer, and why: one line; `beginning` is what came where no event did, as it came."""

    message: str
    beginning: bytes = b""


class _Choice:
    """One choice: its message (or the `text` of the older API) and the fields beside it."""

    __slots__ = ("fields", "finish_reason", "logprobs", "message", "text")

    def __init__(self) -> None:
        self.message = Fields()
        self.text: Any = None
        self.logprobs: Any = None
        self.finish_reason: str | None = None
        self.fields: dict[str, Any] = {}

    def add(self, choice: dict[str, Any]) -> None:
        """Take in what one chunk says of this choice."""
        for key, value in choice.items():
            if value is None or key == "index":
                continue
            if key == "delta":
                grown(self.message, value, key)
            elif key == "finish_reason":
                if value and isinstance(value, str):
                    self.finish_reason = value
            elif key == "logprobs":
                self.logprobs = grown(self.logprobs, value, key)
            elif key == "text":
                self.text = grown(self.text, value, key)
            elif key == "message" and isinstance(value, dict):
                # Some servers end with, or send nothing but, the whole message.
                self.message.update((name, grown(None, whole, name)) for name, whole in value.items() if whole)
            else:
                self.fields[key] = value

    @property
    def is_text(self) -> bool:
        """Whether this is a choice of `/v1/completions`, which has a text where others have a message."""
        return self.text is not None and not self.message

    def built(self, index: int) -> dict[str, Any]:
        """The choice as a plain answer has it."""
        if self.is_text:
            said: dict[str, Any] = {"text": built(self.text)}
        else:
            said = {"message": _message(built(self.message))}
        closing = {"logprobs": built(self.logprobs), "finish_reason": self.finish_reason}
        return {"index": index, **said, **closing, **self.fields}


class Assembly:
    """One stream on its way to one answer: `feed` it what arrives, ask for the `result` at the end.

    `started` turns True with the first output, so that the caller can stamp the time to first token.
    `events` counts what was said: comments, which keep a connection alive and prove nothing, are not among them.
    `finished` turns True when nothing that follows can change the result ([DONE], an error, an event that
    cannot be read): the caller may stop reading. `wanted` is the number of choices that were asked for.
    """

    __slots__ = ("_choices", "_events", "_fields", "_repeated", "_verdict", "_wanted", "events", "finished", "started")

    def __init__(self, wanted: int = 1) -> None:
        self._wanted = wanted
        self.started = False
        self.finished = False
        self.events = 0
        self._events = Events()
        self._fields: dict[str, Any] = {}
        self._repeated: dict[str, Any] = {}  # the last chunk without its choices
        self._choices: dict[int, _Choice] = {}
        self._verdict: dict[str, Any] | Incomplete | None = None  # a result that does not come from chunks

    def feed(self, data: bytes) -> None:
        """Take in some bytes, split anywhere."""
        if not self.finished:
            self._take(self._events.feed(data))

    @property
    def is_whole(self) -> bool:
        """Whether every choice has come to its end, so that a connection which breaks now costs nothing."""
        choices = self._choices.values()
        return self.finished or (len(choices) >= self._wanted and all(choice.finish_reason for choice in choices))

    def result(self) -> dict[str, Any] | Incomplete:
        """The answer: a completion, a peer's `{"error": {...}}`, or why there is neither.

        To be asked for at the end of the bytes, or once `finished`.
        """
        if not self.finished:
            whole = self.is_whole
            self._take(self._events.end())
            if whole and isinstance(self._verdict, Incomplete):
                self._verdict = None  # what was cut off came behind the answer
        if self._verdict is not None:
            return self._verdict
        if not self._choices:
            return self._without_choices()
        still_open = [index for index, choice in sorted(self._choices.items()) if not choice.finish_reason]
        if still_open:
            return Incomplete(f"the stream {self._end()} without a finish reason for choice {still_open[0]}")
        if not self.is_whole:
            return Incomplete(f"the stream ended with {len(self._choices)} of {self._wanted} choices")
        try:
            return self._completion()
        except RecursionError:
            return Incomplete(_TOO_DEEP)

    def _take(self, events: list[Event]) -> None:
        """Read events until one settles the result."""
        self.events += len(events)
        for name, data in events:
            try:
                self._event(name, loads(data))
            except NotJson as error:
                self._no_json(name, data.strip(), error)
            except RecursionError:
                self._settle(Incomplete(_TOO_DEEP))
            if self.finished:
                return

    def _settle(self, verdict: dict[str, Any] | Incomplete) -> None:
        """Nothing that follows can change the result."""
        self._verdict = verdict
        self.finished = True

    def _no_json(self, name: bytes, data: bytes, error: NotJson) -> None:
        """An event that is not JSON: [DONE], an error in plain words, or the end of what can be trusted."""
        if data == _DONE:
            self.finished = True
        elif name == b"error":
            self._settle(_as_error(data.decode(errors="replace")))
        elif data:
            self._settle(Incomplete(f"an event is {error}"))

    def _event(self, name: bytes, event: Any) -> None:
        """Take in one event, whatever its kind; what no kind of stream knows (pings, metadata) is skipped."""
        if not isinstance(event, dict):
            if name == b"error":
                self._settle(_as_error(event))
        elif event.get("error") or name == b"error":
            self._settle(_as_error(event.get("error") or event))
        elif "choices" in event:
            self._chunk(event)
        elif "error" in (event.get("type"), event.get("object")):
            self._settle(_as_error(event))
        elif str(event.get("type")).startswith("response."):
            self._response(event)
        elif "usage" in event or "object" in event:
            self._chunk(event)

    def _response(self, event: dict[str, Any]) -> None:
        """An event of `/v1/responses`, whose last one carries the whole answer."""
        kind: str = event["type"]
        response = event.get("response")
        if kind == "response.failed":
            reason = response.get("error") if isinstance(response, dict) else None
            self._settle(_as_error(reason or "the response failed"))
        elif kind in {"response.completed", "response.incomplete"} and isinstance(response, dict):
            self._settle(response)
        elif kind.endswith(".delta"):
            self.started = True

    def _chunk(self, chunk: dict[str, Any]) -> None:
        """Take in one chunk of a completion."""
        choices = chunk.pop("choices", None)
        chunk.pop("obfuscation", None)  # padding against eavesdroppers, another in every chunk
        if chunk != self._repeated:  # most say the same about themselves
            self._repeated = chunk
            fields = self._fields
            for key, value in chunk.items():
                if value is None or key == "error" or (key in _FIRST_STANDS and fields.get(key)):
                    continue
                fields[key] = value
        if isinstance(choices, list):
            for position, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._choice(position, choice)

    def _choice(self, position: int, choice: dict[str, Any]) -> None:
        """Take in what one chunk says of one choice, which is the `position`th unless it says otherwise."""
        index = choice.get("index")
        if type(index) is not int:
            index = position
        known = self._choices.get(index)
        if known is None:
            known = self._choices[index] = _Choice()
        known.add(choice)
        if not self.started:
            self.started = _speaks(choice)
        if choice.get("error") or choice.get("finish_reason") == "error":
            self._settle(_as_error(choice.get("error") or "the stream ended with finish reason 'error'"))

    def _end(self) -> str:
        """How a stream that brought no answer came to its end."""
        return "said [DONE]" if self.finished else "ended"

    def _without_choices(self) -> dict[str, Any] | Incomplete:
        """The result when no choice has come: a plain JSON object in place of a stream, or nothing."""
        if self._events.streaming:
            return Incomplete(f"the stream {self._end()} without an answer")
        stray = self._events.stray()
        if not stray:
            return Incomplete("empty stream")
        try:
            answer = loads(stray)
        except NotJson:
            answer = None
        if isinstance(answer, dict):
            return answer
        return Incomplete("no event stream", stray)

    def _completion(self) -> dict[str, Any]:
        """The answer from the chunks, its fields in the order of a plain one."""
        fields = self._fields
        textual = all(choice.is_text for choice in self._choices.values())
        answer = {
            "id": fields.get("id"),
            "object": "text_completion" if textual else "chat.completion",
            "created": fields.get("created"),
            "model": fields.get("model"),
            "choices": [choice.built(index) for index, choice in sorted(self._choices.items())],
        }
        answer |= {key: value for key, value in fields.items() if key not in _FIRST_STANDS}
        return {key: value for key, value in answer.items() if value is not None}


def _message(said: dict[str, Any]) -> dict[str, Any]:
    """A message as a plain answer has it: some fields are always there, and tool calls have no index."""
    calls = said.get("tool_calls")
    if isinstance(calls, list):
        for call in calls:
            if isinstance(call, dict):
                call.pop("index", None)
    role = said.pop("role", None) or "assistant"
    return {"role": role, "content": None, "refusal": None, **said}


def _speaks(choice: dict[str, Any]) -> bool:
    """Whether a choice of a chunk carries output, and not only a role or an end."""
    said = choice.get("delta") or choice.get("message")
    return bool(choice.get("text")) or (isinstance(said, dict) and any(said.get(key) for key in _OUTPUT))


def _as_error(reason: Any) -> dict[str, Any]:
    """A peer's error as the body that a plain answer would have had."""
    if isinstance(reason, dict):
        return {"error": reason or {"message": "an error without a reason"}}
    return {"error": {"message": reason if isinstance(reason, str) else dumps(reason).decode()}}
