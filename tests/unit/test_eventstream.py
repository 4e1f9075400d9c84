"""Every spelling of an event stream is the same events, however its bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kit.streams import answer, assembled, choice, chunk, cut, lines, said

from batchrouter.eventstream import Event, Events

CHUNK = chunk(said({"content": "Héllo 😀"}, "stop"))
DATA = json.dumps(CHUNK, ensure_ascii=False)
DATA_LINES = json.dumps(CHUNK, ensure_ascii=False, indent=1).split("\n")
ONCE = answer(choice(content="Héllo 😀"))
TWICE = answer(choice(content="Héllo 😀" * 2))

SPELLED: dict[str, tuple[bytes, Any]] = {
    "LF": (lines(f"data: {DATA}", "", "data: [DONE]", ""), ONCE),
    "CRLF": (lines(f"data: {DATA}", "", "data: [DONE]", "", end="\r\n"), ONCE),
    "CR": (lines(f"data: {DATA}", "", "data: [DONE]", "", end="\r"), ONCE),
    "all three": (f"data: {DATA}\r\n\rdata: {DATA}\n\r\ndata: [DONE]\r\r\n".encode(), TWICE),
    "byte order mark": (b"\xef\xbb\xbf" + lines(f"data: {DATA}", ""), ONCE),
    "no space": (lines(f"data:{DATA}", "", "data:[DONE]", ""), ONCE),
    "spaces": (lines(f"data:  {DATA} ", "", "data:  [DONE] ", "", "data: {", ""), ONCE),
    "many lines of data": (lines(*(f"data: {line}" for line in DATA_LINES), ""), ONCE),
    "many lines of data, CRLF": (lines(*(f"data:{line}" for line in DATA_LINES), "", end="\r\n"), ONCE),
    "an empty line of data": (lines("data", f"data: {DATA}", "data:", ""), ONCE),
    "other fields": (lines("id: 1", "retry: 10", "event: message", f"data: {DATA}", "other: x", "other", ""), ONCE),
    "comments": (lines(": PROCESSING", "", ":", f"data: {DATA}", ":inside", "", ": ping", "", "data: [DONE]"), ONCE),
    "pings": (
        lines("event: ping", 'data: {"type":"ping"}', "", f"data: {DATA}", "", "data: null", "", "data: 5"),
        ONCE,
    ),
    "empty events": (lines("data:", "", "data", "data", "", "event: x", "", f"data: {DATA}", "", "", ""), ONCE),
    "no blank line at the end": (lines(f"data: {DATA}"), ONCE),
    "no newline at the end": (f"data: {DATA}".encode(), ONCE),
    "[DONE] without a newline": (f"data: {DATA}\n\ndata:[DONE]".encode(), ONCE),
    "data after [DONE]": (lines(f"data: {DATA}", "", "data: [DONE]", "", f"data: {DATA}", "", "data: {", ""), ONCE),
    "no [DONE]": (lines(f"data: {DATA}", ""), ONCE),
    "words that resemble data": (lines("database: x", " data: {", f"data: {DATA}", "Data: {", ""), ONCE),
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_spellings(spelling: str) -> None:
    """Each spelling is the same answer, fed whole and byte by byte."""
    stream, expected = SPELLED[spelling]
    assert assembled([stream]) == expected
    assert assembled(stream[at : at + 1] for at in range(len(stream))) == expected


@given(st.sampled_from(sorted(SPELLED)), st.lists(st.integers(0, 1000), max_size=8))
def test_spellings_in_any_pieces(spelling: str, places: list[int]) -> None:
    """Each spelling is the same answer however it is cut, empty pieces too."""
    stream, expected = SPELLED[spelling]
    assert assembled(cut(stream, places)) == expected


def test_events_are_those_of_the_standard() -> None:
    """The examples of the WHATWG, a name that is reset, and an event that the end of the bytes closes."""
    stream = b": test\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    stream += b"data\n\ndata\ndata\n\ndata:\n\nevent: add\ndata: 7\n\ndata: 8\n\nevent: lost\n\ndata: 9\n\ndata: open"
    events = Events()
    assert events.feed(stream) == [
        (b"", b"first event"),
        (b"", b"second event"),
        (b"", b" third event"),
        (b"", b"\n"),
        (b"add", b"7"),
        (b"", b"8"),
        (b"", b"9"),
    ]
    assert events.end() == [(b"", b"open")]
    assert events.end() == []
    assert events.stray() == b""


def test_stray_text_is_what_precedes_the_first_field() -> None:
    """A body in place of a stream is kept but for comments and blank lines; once a field was seen nothing is."""
    events = Events()
    assert events.feed(b'\xef\xbb\xbf: comment\n{"a"\r\n\r\n: 1}\n') == []
    assert (events.stray(), events.streaming) == (b'{"a"\n: 1}', False)
    assert events.feed(b"id: 1\nstray\n") == []
    assert (events.stray(), events.streaming) == (b'{"a"\n: 1}', True)


@given(st.binary() | st.text("dat: \r\n\ufeff{}").map(str.encode), st.lists(st.integers(0, 200)))
@example(b"data: a\r\ndata: b\r\n\r\n", [8, 8, 9])  # CR, nothing, LF: one end of a line
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])  # a byte order mark in pieces
@example(b"data: a\n\xef\xbb\xbfdata: b\n\n", [8])  # one that is not at the start
def test_events_do_not_depend_on_pieces(stream: bytes, places: list[int]) -> None:
    """Any bytes are the same events and the same stray text, whole or in pieces."""
    assert _events(cut(stream, places)) == _events([stream])


def _events(pieces: list[bytes]) -> tuple[list[Event], bytes]:
    events = Events()
    read = [event for piece in pieces for event in events.feed(piece)]
    return read + events.end(), events.stray()
