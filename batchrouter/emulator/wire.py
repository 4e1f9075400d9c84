"""One connection of the emulator: requests are read, and plays are put on the wire byte by byte.

An asyncio protocol and not aiohttp.web: half of the faults are answers that no HTTP library agrees to write.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final, Protocol, cast

from batchrouter.emulator.http1 import BadRequestError, Reader
from batchrouter.emulator.plays import JSON, Asked, Ending, Script, Whole, problem, rendered, type_of_step

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_ON_REUSE: Final = frozenset({Ending.CLOSE_ON_REUSE, Ending.RESET_ON_REUSE, Ending.SWALLOW_REUSE})


class Owner(Protocol):
    """Who answers the requests of a connection."""

    def opened(self, connection: Connection) -> None:
        """A client has connected."""

    def serve(self, connection: Connection, asked: Asked) -> None:
        """A request has come: answer with `whole`, or start a task that ends with `finished`."""

    def dropped(self) -> None:
        """A request came on a connection that a fault had doomed; it is not served."""

    def gone(self, connection: Connection) -> None:
        """The connection has ended."""


class Connection(asyncio.Protocol):
    """One client's connection. Requests are served one after another, however many came at once."""

    def __init__(self, owner: Owner) -> None:
        self.task: asyncio.Task[None] | None = None
        self._owner = owner
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._last = False
        self._doom: Ending | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's: the client is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Asyncio's: the client has left, and whatever was being played for it ends."""
        self._transport = None
        if self.task is not None:
            self.task.cancel()
        self._owner.gone(self)

    def data_received(self, data: bytes) -> None:
        """Asyncio's: bytes have come."""
        if self._doom is not None:
            self._meet_doom()
            return
        self._reader.feed(data)
        self._advance()

    def pause_writing(self) -> None:
        """Asyncio's: the client reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Asyncio's: there is room again."""
        self._writable.set()

    def whole(self, play: Whole) -> None:
        """Answers the request at once."""
        if self._transport is not None:
            self._transport.write(rendered(play))
        self._finish(Ending.KEEP)

    async def play(self, play: Whole | Script) -> None:
        """Answers the request as the script says; cancelled when the client leaves."""
        if isinstance(play, Whole):
            self._write(rendered(play))
            ending = Ending.KEEP
        else:
            await self._perform(play.steps)
            ending = play.ending
        await self._writable.wait()
        if ending is Ending.STALL:
            await asyncio.Event().wait()
        self._finish(ending)

    def abort(self) -> None:
        """Ends the connection at once, without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def _perform(self, steps: Iterable[type_of_step]) -> None:
        for step in steps:
            if self._transport is None or self._transport.is_closing():
                await asyncio.Event().wait()  # the client has left; asyncio tells us in a moment and cancels this
            if isinstance(step, bytes):
                self._write(step)
                await self._writable.wait()
            else:
                await asyncio.sleep(step)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _finish(self, ending: Ending) -> None:
        """The request has got all it gets; the next one may be served."""
        self._busy = False
        self.task = None
        if ending in _ON_REUSE:
            self._doom = ending
        elif ending is Ending.RESET:
            self._reset()
        elif (ending is Ending.CLOSE or self._last) and self._transport is not None:
            self._transport.close()
        elif self._reader.has_more:
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Serves the next request, when it is complete and none is being served."""
        if self._busy or self._transport is None or self._transport.is_closing():
            return
        try:
            asked = self._reader.next()
        except BadRequestError as error:
            body = problem(str(error), kind="invalid_request_error")
            self._write(rendered(Whole(error.status, JSON, body)))
            self._transport.close()
            return
        if asked is None:
            if self._reader.expects_continue:
                self._reader.expects_continue = False
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._busy = True
        self._last = asked.headers.get("connection", "").lower() == "close"
        self._owner.serve(self, asked)

    def _meet_doom(self) -> None:
        if self._doom is Ending.CLOSE_ON_REUSE and self._transport is not None:
            self._transport.close()
        elif self._doom is Ending.RESET_ON_REUSE:
            self._reset()
        if self._doom is not Ending.STALL:
            self._owner.dropped()
        self._doom = Ending.STALL  # what still comes on it is ignored, and was counted

    def _reset(self) -> None:
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:  # through a twin of the descriptor, since uvloop's socket takes no options
            with socket.socket(fileno=os.dup(raw.fileno())) as twin:
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
