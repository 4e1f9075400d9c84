"""The bytes of an event stream, split anywhere -> events, by the WHATWG rules.

Rules of this file:

- Bytes in, bytes out: text is decoded by whoever reads an event, so no split can fall inside a character.
- Linear in the bytes fed: a line that is not whole yet waits as its pieces, which are joined once.
- Nothing raises. What is no field is skipped, as the rules ask, with one addition: what precedes the first
  field is kept (`stray`), for a peer that answers with a plain body where a stream was asked.
- At the end of the bytes an event counts without its blank line: whether it is whole, its content tells.
"""

from __future__ import annotations

__all__ = ["Event", "Events"]

# An event's name (empty for a plain one) and data. A bare tuple: there is one for a token of the answer.
Event = tuple[bytes, bytes]

_FIELDS = frozenset({b"data", b"event", b"id", b"retry"})
_BOM = b"\xef\xbb\xbf"


class Events:
    """An incremental reader of one stream: `feed` it what arrives, `end` it once."""

    __slots__ = ("_after_cr", "_at_start", "_data", "_name", "_pieces", "_stray", "streaming")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of the line that is not whole yet
        self._data: list[bytes] = []  # the data lines of the event that is not whole yet
        self._name = b""
        self._stray: list[bytes] = []
        self.streaming = False  # a field has been seen
        self._at_start = True
        self._after_cr = False  # the last byte fed was a CR: a LF that follows belongs to it

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` makes whole."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        self._pieces.append(lines[0])
        if len(lines) == 1:
            return []
        lines[0] = b"".join(self._pieces)
        self._pieces = [lines.pop()]
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return self._read(lines)

    def end(self) -> list[Event]:
        """The event that the end of the bytes closes, if there is one."""
        return self.feed(b"\n\n")

    def stray(self) -> bytes:
        """What came before the first field and was neither field nor comment: a plain body, or nothing."""
        return b"\n".join(self._stray)

    def _read(self, lines: list[bytes]) -> list[Event]:
        """The events that whole lines complete."""
        events: list[Event] = []
        for line in lines:
            if line[:5] == b"data:":
                self.streaming = True
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line:
                self._other(line)
            else:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                if data:
                    events.append((self._name, data))
                self._data = []
                self._name = b""
        return events

    def _other(self, line: bytes) -> None:
        """Any line but an empty one and the data line of the hot path."""
        name, _, value = line.partition(b":")
        if name in _FIELDS:
            self.streaming = True
            if name == b"event":
                self._name = value.removeprefix(b" ")
            elif name == b"data":  # without a colon: one empty line of data
                self._data.append(b"")
        elif not self.streaming and (name or self._stray):  # a colon first is a comment, but not inside a body
            self._stray.append(line)
