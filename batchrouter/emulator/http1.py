"""Bytes of a connection -> HTTP requests. Pure; lenient where clients differ, strict about lengths."""

from __future__ import annotations

import re
from typing import Final

from batchrouter.emulator.plays import Asked

_LONGEST_HEAD_BYTES: Final = 256 * 1024
_LONGEST_BODY_BYTES: Final = 256 * 2**20
_REQUEST_LINE_WORDS: Final = 3
_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")


class BadRequestError(Exception):
    """The bytes are no HTTP request that can be answered; the connection cannot be read further."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Reader:
    """One connection's incoming bytes. `next()` gives the requests in order, each once it is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: Asked | None = None
        self._length: int | None = 0
        self.expects_continue = False

    def feed(self, data: bytes) -> None:
        """Adds bytes as they came."""
        self._buffer += data

    @property
    def has_more(self) -> bool:
        """Whether bytes of another request have come."""
        return bool(self._buffer) or self._head is not None

    def next(self) -> Asked | None:
        """The next whole request, or null when its end has not come. Raises BadRequestError."""
        if self._head is None and not self._take_head():
            return None
        body = self._take_body()
        if body is None or self._head is None:
            return None
        asked, self._head = self._head._replace(body=body), None
        self.expects_continue = False
        return asked

    def _take_head(self) -> bool:
        while self._buffer.startswith(b"\r\n"):  # a stray line end between requests is allowed
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _LONGEST_HEAD_BYTES:
                raise BadRequestError(431, "the request's head is too long")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = lines[0].split(" ")
        if len(words) != _REQUEST_LINE_WORDS or not words[2].startswith("HTTP/1."):
            raise BadRequestError(400, "the request line is none")
        headers = _headers(lines[1:])
        if words[2] == "HTTP/1.0" and headers.get("connection", "").lower() != "keep-alive":
            headers["connection"] = "close"
        self._head = Asked(words[0], words[1], headers, b"")
        self._length = _length(headers)
        self.expects_continue = headers.get("expect", "").lower() == "100-continue"
        return True

    def _take_body(self) -> bytes | None:
        if self._length is None:
            return self._take_chunks()
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return body

    def _take_chunks(self) -> bytes | None:
        """The whole chunked body; read from its start each time, since requests rarely come in chunks."""
        parts: list[bytes] = []
        at = 0
        while (end := self._buffer.find(b"\r\n", at)) >= 0:
            size = _chunk_size(bytes(self._buffer[at:end]))
            start = end + 2
            if size == 0:
                done = self._buffer.find(b"\r\n", start)
                if done < 0:
                    return None
                del self._buffer[: done + 2]
                return b"".join(parts)
            if start + size > _LONGEST_BODY_BYTES:
                raise BadRequestError(413, "the request is too large")
            parts.append(bytes(self._buffer[start : start + size]))
            at = start + size + 2
        return None


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not _HEX.fullmatch(digits):
        raise BadRequestError(400, "a chunk's size is no number")
    return int(digits, 16)


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError(400, "a header has no colon")
        headers[name.strip().lower()] = value.strip()
    return headers


def _length(headers: dict[str, str]) -> int | None:
    """The body's bytes, null when it comes in chunks."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return None
    text = headers.get("content-length", "0")
    if not text.isdigit():
        raise BadRequestError(400, "Content-Length is no number")
    if int(text) > _LONGEST_BODY_BYTES:
        raise BadRequestError(413, "the request is too large")
    return int(text)
