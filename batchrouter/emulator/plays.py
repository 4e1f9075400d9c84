"""What a server can do on a connection, as values: a whole answer, or a script of bytes and pauses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson

type_of_headers = tuple[tuple[str, str], ...]
type_of_step = bytes | float

JSON: Final[type_of_headers] = (("content-type", "application/json"),)
EVENTS: Final[type_of_headers] = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
)
OK: Final = 200
NO_HTTP: Final = 0  # the status of a play that never gets as far as a whole HTTP answer


class Asked(NamedTuple):
    """One HTTP request. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Ending(StrEnum):
    """What becomes of the connection afterwards."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"  # RST instead of FIN: the peer's next read fails
    STALL = "stall"  # held open in silence until the peer leaves
    CLOSE_ON_REUSE = "close-on-reuse"  # kept, and closed when the next request arrives
    RESET_ON_REUSE = "reset-on-reuse"  # the same with RST
    SWALLOW_REUSE = "swallow-reuse"  # kept, and the next request is read and never answered


class Whole(NamedTuple):
    """A complete answer; its length is added, and the connection is kept."""

    status: int
    headers: type_of_headers
    body: bytes


class Script(NamedTuple):
    """Bytes and pauses (seconds) as they go onto the wire, then the ending; `status` is what stats count."""

    status: int
    steps: Iterable[type_of_step]
    ending: Ending = Ending.KEEP


Play = Whole | Script


def rendered(whole: Whole) -> bytes:
    """The answer's bytes on the wire."""
    length = () if whole.status == HTTPStatus.NO_CONTENT else (("content-length", str(len(whole.body))),)
    return head(whole.status, (*whole.headers, *length)) + whole.body


def head(status: int, headers: type_of_headers) -> bytes:
    """A status line and headers, up to and with the blank line."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return (_STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n").encode() + lines.encode("latin-1") + b"\r\n"


def problem(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """An error body as OpenAI writes it."""
    return orjson.dumps({"error": problem_fields(message, kind=kind, code=code, param=param)})


def problem_fields(message: str, *, kind: str, code: str | int | None, param: str | None = None) -> dict[str, Any]:
    """What stands under `error`."""
    return {"message": message, "type": kind, "param": param, "code": code}


_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
