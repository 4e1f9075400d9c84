"""A server that answers chat completions at a small part of what any client costs: what is left is the client's own.

Run by path, in a process of its own: `python responder.py --port 0`. The first line it prints is its port.

Rules of this file: HTTP/1.1 spoken by hand over a raw asyncio protocol, answers built once and kept as bytes; a body is
counted, not kept; requests may come in pieces or several at once, and are answered in their order.

    POST …/chat/completions      a chat completion, as a stream when the body's beginning says `"stream": true`
    GET  /stats, GET /reset      what was counted, as JSON; the latter begins anew
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import re
import socket
import time
from typing import Final, cast

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_STREAM: Final = re.compile(rb'"stream"[ \t]*:[ \t]*true')
_PEEKED_BYTES: Final = 4096
_MOST_HEADS: Final = 4096
_ANSWER_TEXT: Final = "The answer is forty-two; it took a while to find, and longer to understand. " * 3


class Counts:
    """What this server has seen; monotonic seconds are the machine's, so that another process may compare."""

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.peak_in_flight = 0
        self.connections = 0
        self.first_request_s: float | None = None
        self.last_request_s: float | None = None

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps({name: value for name, value in vars(self).items() if name != "in_flight"}).encode()


class Answers:
    """The two answers, whole HTTP messages, and how long to wait before one is given."""

    def __init__(self, answer_bytes: int, latency_s: float, chunks: int) -> None:
        self.plain = _message(_completion(answer_bytes), b"application/json")
        self.stream = _stream(chunks)
        self.latency_s = latency_s
        self.counts = Counts()
        self.lengths: dict[bytes, int] = {}

    def length_of(self, head: bytes) -> int:
        """The length of the body that follows a head; -1 where there is none to be known."""
        length = self.lengths.get(head)
        if length is None:
            found = _LENGTH.search(head)
            length = int(found[1]) if found else (0 if head.startswith(b"GET ") else -1)
            if len(self.lengths) < _MOST_HEADS:
                self.lengths[head] = length
        return length


def _completion(size: int) -> bytes:
    answer = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "bench-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _ANSWER_TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 48, "total_tokens": 168},
        "system_fingerprint": "fp_bench",
    }
    body = json.dumps(answer, separators=(",", ":")).encode()
    return body.replace(b"The answer", b"x" * (size - len(body)) + b"The answer", 1) if size > len(body) else body


def _message(body: bytes, kind: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nx-request-id: req_bench\r\n\r\n"
    return head % (kind, len(body)) + body


def _stream(chunks: int) -> bytes:
    """A streamed completion of so many chunks, as one chunked HTTP message."""
    frame = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1, "model": "bench-1"}
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"word {number} "} for number in range(chunks)]
    events = [{**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    events.append({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 120, "completion_tokens": chunks, "total_tokens": 120 + chunks}
    events.append({**frame, "choices": [], "usage": usage})
    lines = [b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in events]
    lines.append(b"data: [DONE]\n\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._counts = answers.counts
        self._head = b""  # the beginning of a request whose head is not complete
        self._left = 0  # bytes of the present body still to come
        self._answer = b""  # what the present request will be given
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nagle's algorithm off, and counted."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._counts.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """Whoever hung up gets nothing more."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Bytes of a request, of a part of one, or of several."""
        if self._left:
            if len(data) < self._left:
                self._left -= len(data)
                return
            data = data[self._left :]
            self._left = 0
            self._end()
        elif self._head:
            data = self._head + data
            self._head = b""
        while data:
            end = data.find(_HEAD_END)
            if end < 0:
                self._head = data
                return
            end += len(_HEAD_END)
            length = self._answers.length_of(data[:end])
            if length < 0:
                self._refuse()
                return
            self._begin(data, end)
            have = len(data) - end
            if have < length:
                self._left = length - have
                return
            self._end()
            data = data[end + length :] if have > length else b""

    def _begin(self, data: bytes, body: int) -> None:
        """A request whose head is complete: what is it to be answered?"""
        if data.startswith(b"GET "):
            self._answer = self._about(data)
            return
        counts = self._counts
        counts.in_flight += 1
        counts.peak_in_flight = max(counts.peak_in_flight, counts.in_flight)
        streamed = _STREAM.search(data, body, body + _PEEKED_BYTES)
        self._answer = self._answers.stream if streamed else self._answers.plain

    def _about(self, data: bytes) -> bytes:
        if data.startswith(b"GET /reset"):
            self._counts.__init__()  # type: ignore[misc]
        return _message(self._counts.dump(), b"application/json")

    def _refuse(self) -> None:
        if self._transport is not None:
            self._transport.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n")
            self._transport.close()

    def _end(self) -> None:
        """A request is complete: answer it, at once or after the latency."""
        answer = self._answer
        if answer is self._answers.plain or answer is self._answers.stream:
            counts = self._counts
            counts.requests += 1
            counts.last_request_s = time.monotonic()
            if counts.first_request_s is None:
                counts.first_request_s = counts.last_request_s
            if self._answers.latency_s:
                self._loop.call_later(self._answers.latency_s, self._give, answer)
                return
            counts.in_flight -= 1
        if self._transport is not None:
            self._transport.write(answer)

    def _give(self, answer: bytes) -> None:
        self._counts.in_flight -= 1
        if self._transport is not None:
            self._transport.write(answer)


async def _serve(port: int, answers: Answers) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(answers), "127.0.0.1", port, backlog=2048
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--answer-bytes", type=int, default=600)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--core", type=int, help="the core to stay on")
    options = parser.parse_args()
    if options.core is not None:
        with contextlib.suppress(OSError, AttributeError):  # not every system can
            os.sched_setaffinity(0, {options.core})
    answers = Answers(options.answer_bytes, options.latency_s, options.chunks)
    factory = None
    with contextlib.suppress(ImportError):
        factory = importlib.import_module("uvloop").new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(options.port, answers))


if __name__ == "__main__":
    main()
