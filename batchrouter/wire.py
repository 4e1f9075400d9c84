"""Plain requests over aiohttp's connections, without the task and the objects that it makes for each: half its cost.

Rules of this file: a head is written once, and sent with each body in one piece; connections, TLS and the reading of
answers are aiohttp's, but a connection that is of further use stays here, and does not go back there in between. What
leaves in one turn of the loop leaves at its end, all at once: a peer that sleeps is woken once for it and not for each,
which costs a tenth of a request. What is not plain (a proxy, a large body, a header that changes how bodies travel) is
`aiohttp.ClientSession`'s, whose responses have all that an `Answer` has.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from batchrouter.records import OK

MOST_BYTES: Final = 2**20  # of a body that is sent in one piece
_KEEP_S: Final = 15.0  # as long as aiohttp keeps an idle connection
_NOT_PLAIN: Final = frozenset({"expect", "transfer-encoding"})
_ANSWER: Final = b"HTTP/1.1 200"
_UNFIT: Final = frozenset("\r\n\0")
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None, connect=None)


def is_plain(headers: Mapping[str, str]) -> bool:
    """Whether requests with these headers can go by a `Wire`."""
    return not any(name.lower() in _NOT_PLAIN or _UNFIT & {*name, *value} for name, value in headers.items())


def silent(connections: Iterable[Connection]) -> dict[Connection, asyncio.Transport]:
    """Those on which the peer has said nothing that was not read, be it here already or still at the socket."""
    found: dict[int, tuple[Connection, asyncio.Transport]] = {}
    peers = select.poll()
    for connection in connections:
        protocol = connection.protocol
        transport = None if protocol is None or protocol.should_close else protocol.transport
        end = None if transport is None or transport.is_closing() else transport.get_extra_info("socket")
        if transport is not None and end is not None and (descriptor := end.fileno()) >= 0:
            found[descriptor] = connection, transport
            peers.register(descriptor, select.POLLIN)
    for descriptor, _ in peers.poll(0):
        del found[descriptor]
    return dict(found.values())


class Trust:
    """Whether a peer answers only what it was asked. Once it has given an answer that nobody had asked for, the next
    such may come when a request has left, and be taken for its answer: each connection is to be used once then.
    """

    __slots__ = ("is_lost",)

    def __init__(self) -> None:
        self.is_lost = False

    def heard(self, status: int) -> None:
        """The peer has said that unasked; others than 200 say that it has waited for too long."""
        self.is_lost = self.is_lost or status == OK

    async def look_at(self, connection: Connection) -> None:
        """The peer has spoken unasked on it: see what that is."""
        protocol = connection.protocol
        if protocol is None:
            return
        if len(protocol):
            message, _ = await protocol.read()
            self.heard(message.code)
        else:
            self.peek_at(protocol.transport)

    def peek_at(self, transport: asyncio.Transport | None) -> None:
        """The same where it is still at the socket (over TLS, that tells nothing)."""
        self.is_lost = self.is_lost or _peeked(transport).startswith(_ANSWER)


def _peeked(transport: asyncio.Transport | None) -> bytes:
    """How what is still at the socket begins."""
    end = None if transport is None else transport.get_extra_info("socket")
    if end is None:
        return b""
    try:
        with socket.socket(fileno=os.dup(end.fileno())) as peer:
            return peer.recv(len(_ANSWER), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


class _NotSentError(Exception):
    """A kept connection was of no use any more, and nothing was written to it."""


class _Target(aiohttp.ClientRequest):
    """Where requests go, as a connector is told it; made once, and so is the key that the connector knows it by."""

    @cached_property
    def connection_key(self) -> Any:
        return super().connection_key

    def head(self) -> bytes:
        """All that stands before a body, but for its length."""
        lines = [f"POST {self.url.raw_path_qs} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "content-length"]
        return "\r\n".join([*lines, "Content-Length: "]).encode()


class Answer:
    """An answer whose head has been read. The names are those of `aiohttp.ClientResponse`."""

    __slots__ = ("_connection", "_wire", "closed", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        connection: Connection,
        wire: Wire,
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self.closed = False
        self._connection = connection
        self._wire = wire

    def release(self) -> None:
        """Let go of the connection; it is of further use only where request and answer have come to their ends."""
        protocol = self._connection.protocol
        if protocol is not None and len(protocol):
            self._wire.trust.heard(OK)  # so soon after an answer that nobody can have waited for too long
        if protocol is None or protocol.writing_paused or protocol.should_close:
            self.close()
        else:
            self._wire.keep(self._connection)

    def close(self) -> None:
        """End the connection."""
        self.closed = True
        self._connection.close()


class Wire:
    """The way of plain requests to the addresses `urls` (name -> address) of one server, over connections that
    `connector` makes; `on_kept` is told when one that was kept is used again. `close` it.
    """

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        urls: Mapping[str, str],
        headers: CIMultiDict[str],
        on_kept: Callable[[asyncio.Transport | None], None] = lambda _: None,
        keep_s: float = _KEEP_S,
        trust: Trust | None = None,
    ) -> None:
        self.trust = trust or Trust()
        self._connector = connector
        self._on_kept = on_kept
        self._keep_s = keep_s
        self._kept: deque[tuple[Connection, float]] = deque()  # and since when, the latest last
        self._unsent: dict[Connection, bytes] = {}
        self._sends_soon = False
        self._loop = asyncio.get_running_loop()
        self._left_to = 0  # who ask the connector
        self._targets: dict[str, tuple[_Target, bytes]] = {}
        for name, url in urls.items():
            target = _Target("POST", URL(url), headers=headers)
            self._targets[name] = target, target.head()

    async def post(self, name: str, body: bytes) -> Answer:
        """Send a body to an address; gives the answer as soon as its head is there; raises as aiohttp does."""
        target, head = self._targets[name]
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        while self._kept and not self.trust.is_lost:
            connection, _ = self._kept.popleft()  # the oldest: there the peer has had most time to speak unasked
            self._on_kept(connection.transport)
            try:
                return await self._ask(target, connection, request, self._send_soon)
            except _NotSentError:
                continue
        with self.leaving_room():
            connection = await self._connector.connect(target, [], _NO_TIMEOUT)
        return await self._ask(target, connection, request, _send)

    async def _ask(
        self, target: _Target, connection: Connection, request: bytes, send: Callable[[Connection, bytes], None]
    ) -> Answer:
        protocol = connection.protocol
        assert protocol is not None  # noqa: S101  (nobody has let go of it)
        try:
            protocol.set_response_params(read_until_eof=True)
            send(connection, request)
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
            if connection in self._unsent:
                self.trust.heard(message.code)
                raise _NotSentError  # noqa: TRY301  (so that was no answer)
        except BaseException as error:
            connection.close()
            if self._unsent.pop(connection, None) is not None and isinstance(error, Exception):
                raise _NotSentError from None
            if isinstance(error, HttpProcessingError):
                raise aiohttp.ClientResponseError(target.request_info, (), status=error.code) from error
            raise
        return Answer(message.code, message.headers, content, connection, self)

    def _send_soon(self, connection: Connection, request: bytes) -> None:
        """On a kept connection, at the end of this turn."""
        if not self._sends_soon:
            self._sends_soon = True
            self._loop.call_soon(self._send_all)
        self._unsent[connection] = request

    def _send_all(self) -> None:
        """Send what has gathered, but not where the peer has spoken unasked: that would be taken for the answer."""
        self._sends_soon = False
        for connection, transport in silent(self._unsent).items():
            transport.write(self._unsent.pop(connection))
        for connection in self._unsent:
            protocol = connection.protocol
            if protocol is None or len(protocol):
                continue  # nobody waits for it any more, or what was said is read next
            self.trust.peek_at(protocol.transport)
            protocol.set_exception(_NotSentError())

    def keep(self, connection: Connection) -> None:
        """A connection is free for the next request; those that nobody has needed for long are closed."""
        if self.trust.is_lost:
            connection.close()
            self.close()
            return
        if self._left_to:
            connection.release()
            return
        now = time.monotonic()
        self._kept.append((connection, now))
        while now - self._kept[0][1] > self._keep_s:
            self._kept.popleft()[0].close()

    @contextmanager
    def leaving_room(self) -> Iterator[None]:
        """While somebody asks the connector for a connection, none is kept from it: it may have no room for more."""
        if self._kept:
            self._kept.pop()[0].release()
        self._left_to += 1
        try:
            yield
        finally:
            self._left_to -= 1

    def close(self) -> None:
        """Close what was kept."""
        while self._kept:
            self._kept.pop()[0].close()


def _send(connection: Connection, request: bytes) -> None:
    """On a connection that was made for it."""
    if connection.transport is None or connection.transport.is_closing():
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    connection.transport.write(request)
