"""Requests under way, and what ends those that take too long or fall silent.

Rules of this file: an attempt's clock starts when it has a connection (one that has to be opened may take as long as
silence may last); only the peer's silence counts, not ours; one sweep looks at all attempts twice a second, as a timer
for each would cost a tenth of a whole request.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import math
import struct
import termios
from contextvars import ContextVar
from typing import Any, Final, Literal

import aiohttp

from batchrouter.sse import Assembly
from batchrouter.wire import Answer

_SWEEP_S: Final = 0.5
_STALE_S: Final = 5.0  # a connection that breaks later than this after the request was not stale: its endpoint failed

How = Literal["opening", "fresh", "kept"]


class Attempt:
    """One request under way. `response`, `upload` and `assembly` are told by whoever sends it."""

    __slots__ = (
        "_seen", "_task", "assembly", "connection", "expired", "response", "seen_s", "started_s", "transport", "upload",
    )  # fmt: skip

    def __init__(self, task: asyncio.Task[Any], now: float) -> None:
        self.started_s = self.seen_s = now
        self.connection: How | Literal["none"] = "none"
        self.transport: asyncio.Transport | None = None
        self.upload: io.BytesIO | None = None
        self.response: aiohttp.ClientResponse | Answer | None = None
        self.assembly: Assembly | None = None
        self.expired = ""
        self._task = task
        self._seen = -1

    def outlived(self) -> bool:
        """Whether it was the sweep alone that cancelled it: then its task goes on."""
        if not self.expired or self._task.cancelling() != 1:
            return False
        self._task.uncancel()
        return True

    def was_stale(self, now: float) -> bool:
        """Whether a connection that broke had been kept too long: then nobody has read the request."""
        return self.connection == "kept" and self.response is None and now - self.started_s < _STALE_S

    def look(self, now: float, timeout_s: float, idle_timeout_s: float) -> None:
        """End it when it is past its deadline, or nothing has moved for too long; not while it waits for its turn."""
        progress = self._progress()
        if progress != self._seen:
            self._seen, self.seen_s = progress, now
        if self.expired or self.connection == "none":
            return
        if now - self.started_s >= timeout_s:
            self.expired = f"not finished after {timeout_s:g} s"
        elif now - self.seen_s >= idle_timeout_s:
            self.expired = f"not a byte for {idle_timeout_s:g} s"
        else:
            return
        self._task.cancel()

    def _progress(self) -> int:
        """A figure that changes with what goes out and comes in: of a stream its events, once there was one; what only
        keeps it alive is believed while the endpoint is thinking, but not in the middle of what it says.
        """
        if self.response is None:
            written = 0 if self.upload is None or self.upload.closed else self.upload.tell()
            return written - 1 - _untaken_bytes(self.transport)
        if self.assembly is not None and self.assembly.events:
            return self.assembly.events
        return self.response.content.total_bytes


def _untaken_bytes(transport: asyncio.Transport | None) -> int:
    """How much of what was written the peer's machine has not taken yet: the system may hold megabytes of a body that
    a slow line takes minutes for.
    """
    if transport is None or transport.is_closing():
        return 0
    here = transport.get_write_buffer_size()
    peer = transport.get_extra_info("socket")
    try:
        held = fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4)) if peer is not None else bytes(4)
    except (OSError, ValueError):  # a system that does not tell
        return here
    return here + int(struct.unpack("i", held)[0])


_OURS: ContextVar[Attempt | None] = ContextVar("the running task's attempt", default=None)


class Watch:
    """All attempts under way. `start` it on the running loop, and `stop` it."""

    def __init__(self, timeout_s: float, idle_timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._attempts: set[Attempt] = set()
        self.heard_s = -math.inf  # when an answer under way last went on

    def start(self) -> None:
        """Begin to look."""
        self._loop = asyncio.get_running_loop()
        self._period_s = min(_SWEEP_S, self._timeout_s / 8, self._idle_timeout_s / 8)
        self._set_timer()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def begin(self) -> Attempt:
        """The running task makes an attempt; `end` must follow."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  (a coroutine runs in a task)
        attempt = Attempt(task, self._loop.time())
        self._attempts.add(attempt)
        _OURS.set(attempt)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """The attempt is over."""
        self._attempts.discard(attempt)

    def connected(self, how: How, transport: asyncio.Transport | None = None) -> None:
        """The running task's attempt opens a connection, or has one: made for it, or else kept from another."""
        attempt = _OURS.get()
        if attempt is not None:
            attempt.transport = transport
            if how != "kept" or attempt.connection == "none":
                attempt.connection = how
            attempt.started_s = attempt.seen_s = self._loop.time()

    def _sweep(self) -> None:
        now = self._loop.time()
        late_s = now - self._sweep_due_s
        if late_s > self._period_s:  # we were held up (a huge body, a suspended process): the peer was not silent
            for attempt in self._attempts:
                attempt.started_s += late_s
                attempt.seen_s += late_s
        for attempt in self._attempts:
            attempt.look(now, self._timeout_s, self._idle_timeout_s)
            if attempt.response is not None:
                self.heard_s = max(self.heard_s, attempt.seen_s)
        self._set_timer()

    def _set_timer(self) -> None:
        self._sweep_due_s = self._loop.time() + self._period_s
        self._timer = self._loop.call_at(self._sweep_due_s, self._sweep)
