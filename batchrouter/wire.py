"""Plain requests over aiohttp's connections, without the task and the objects that it makes for each: half its cost.

Rules of this file: a head is written once, and sent with each body in one piece; connections, TLS and the reading of
answers are aiohttp's, but a connection that is of further use stays here, and does not go back there in between. What
is not plain (a proxy, a large body, a header that changes how bodies travel) is `aiohttp.ClientSession`'s, whose
responses have all that an `Answer` has.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

MOST_BYTES: Final = 2**20  # of a body that is sent in one piece
_KEEP_S: Final = 15.0  # as long as aiohttp keeps an idle connection
_NOT_PLAIN: Final = frozenset({"expect", "transfer-encoding"})
_UNFIT: Final = frozenset("\r\n\0")
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None, connect=None)


def is_plain(headers: Mapping[str, str]) -> bool:
    """Whether requests with these headers can go by a `Wire`."""
    return not any(name.lower() in _NOT_PLAIN or _UNFIT & {*name, *value} for name, value in headers.items())


def has_spoken(connection: Connection) -> bool:
    """Whether there is more from the peer, or its end, than was read: here already, or still at the socket."""
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.should_close:
        return True
    end = protocol.transport.get_extra_info("socket")
    if end is None or end.fileno() < 0:
        return True
    peer = select.poll()
    peer.register(end, select.POLLIN)
    return bool(peer.poll(0))


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
    ) -> None:
        self._connector = connector
        self._on_kept = on_kept
        self._keep_s = keep_s
        self._kept: deque[tuple[Connection, float]] = deque()  # and since when, the latest last
        self._left_to = 0  # who ask the connector
        self._targets: dict[str, tuple[_Target, bytes]] = {}
        for name, url in urls.items():
            target = _Target("POST", URL(url), headers=headers)
            self._targets[name] = target, target.head()

    async def post(self, name: str, body: bytes) -> Answer:
        """Send a body to an address; gives the answer as soon as its head is there; raises as aiohttp does."""
        target, head = self._targets[name]
        connection = self._take()
        if connection is None:
            with self.leaving_room():
                connection = await self._connector.connect(target, [], _NO_TIMEOUT)
        try:
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101  (nobody has let go of it)
            if protocol.transport is None or protocol.transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")  # noqa: TRY301
            protocol.set_response_params(read_until_eof=True)
            protocol.transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientResponseError(target.request_info, (), status=error.code) from error
        except BaseException:
            connection.close()
            raise
        return Answer(message.code, message.headers, content, connection, self)

    def _take(self) -> Connection | None:
        """A kept connection, but none on which the peer has spoken unasked: it would be taken for the answer. The one
        kept longest, as on that it has had most time to.
        """
        while self._kept:
            connection, _ = self._kept.popleft()
            if not has_spoken(connection):
                self._on_kept(connection.transport)
                return connection
            connection.close()
        return None

    def keep(self, connection: Connection) -> None:
        """A connection is free for the next request; those that nobody has needed for long are closed."""
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
