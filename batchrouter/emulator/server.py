"""The emulator as a running server: it gives a behaviour an address, a clock and a place for each request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from batchrouter.emulator.answers import answer
from batchrouter.emulator.behaviour import Behaviour, Latency, Outage, Turn
from batchrouter.emulator.control import PREFIX, controlled
from batchrouter.emulator.faults import call
from batchrouter.emulator.limits import Limits
from batchrouter.emulator.plays import Asked, Whole
from batchrouter.emulator.stats import Row, Stats
from batchrouter.emulator.wire import Connection

REFUSED: Final = "refused"  # the outage that no server can play: nobody listens
_BACKLOG: Final = 4096


class Emulator:
    """A WorldRouter endpoint on this machine: `async with Emulator(...) as emulator`.

    `port` 0 takes a free one. Raises OSError when the address is taken. Leaving ends what is being played.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._served = 0
        self._watches: list[tuple[int, Callable[[], None]]] = []

    async def __aenter__(self) -> Self:
        await self._listen()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deafen()
        for task in self._running:
            task.cancel()
        if self._tasks is not None:
            # Not told of the body's error: a group would wrap it, and here it passes through as it is.
            await self._tasks.__aexit__(None, None, None)

    @property
    def base_url(self) -> str:
        """The URL to use as base URL, with `/v1`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104 (compared alone)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self._port}/v1"

    @property
    def key(self) -> str:
        """The key it takes; another may be set."""
        return self.behaviour.account.key

    @key.setter
    def key(self, key: str) -> None:
        self.behaviour.account.key = key
        self.behaviour.account.revoked = False

    @property
    def stats(self) -> Stats:
        """What it has seen."""
        return self.behaviour.stats

    @property
    def limits(self) -> Limits:
        """The limits in force; setting them starts them anew."""
        return self.behaviour.account.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.behaviour.account.limits = limits
        self._seat_waiting()

    @property
    def latency(self) -> Latency:
        """How long answers take."""
        return self.behaviour.latency

    @latency.setter
    def latency(self, latency: Latency) -> None:
        self.behaviour.latency = latency

    @property
    def faults(self) -> Mapping[str, float]:
        """The share of requests that meet each fault."""
        return self.behaviour.faults

    @faults.setter
    def faults(self, faults: Mapping[str, float]) -> None:
        self.behaviour.faults = faults

    @property
    def balance(self) -> float | None:
        """The credits left; null is no end of them."""
        return self.behaviour.account.balance

    @balance.setter
    def balance(self, balance: float | None) -> None:
        self.behaviour.account.balance = balance

    def top_up(self, amount: float) -> None:
        """Adds credits."""
        self.balance = (self.balance or 0.0) + amount

    def revoke_key(self) -> None:
        """From now on every request gets 401, until a key is set."""
        self.behaviour.account.revoked = True

    def outage(self, start_s: float, duration_s: float, kind: str = "status_503") -> None:
        """From `start_s` from now on, chat completions meet the fault `kind` (`refused`: nobody listens)."""
        start = asyncio.get_running_loop().time() + start_s
        if kind == REFUSED:
            self._start(self._refusing(start_s, duration_s))
        else:
            self.behaviour.outages.append(Outage(start, start + duration_s, call(kind)))

    def when_accepted(self, count: int, action: Callable[[], None]) -> None:
        """Calls `action` as soon as that many requests have been let in, before the next one is looked at."""
        self._watches.append((count, action))

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The completion that a right answer to this body is."""
        return answer(body, self.behaviour.seed)

    def row(self, body: Mapping[str, Any]) -> Row:
        """How often this body was asked, let in and answered. Raises ValueError without a journal."""
        if self.stats.journal is None:
            raise ValueError("the emulator keeps no journal; make it with Behaviour(journal=True)")
        return self.stats.journal.get(self.answer(body)["id"], Row())

    def opened(self, connection: Connection) -> None:
        """A client has connected."""
        self._connections.add(connection)

    def gone(self, connection: Connection) -> None:
        """A client has left."""
        self._connections.discard(connection)

    def dropped(self) -> None:
        """A request came on a connection that a fault had doomed."""
        self.stats.dropped += 1

    def serve(self, connection: Connection, asked: Asked) -> None:
        """Answers a request: at once when nothing has to be waited for, else in a task."""
        now = asyncio.get_running_loop().time()
        if asked.path.startswith(PREFIX):
            connection.whole(controlled(self.behaviour, asked, now))
            self._seat_waiting()
            return
        turn = self.behaviour.receive(asked, now, time.time())
        if self._watches:
            self._look_at_watches()
        if turn.delay_s <= 0 and isinstance(turn.play, Whole) and not self.limits.queue:
            connection.whole(turn.play)
            self.behaviour.finish(turn, delivered_whole=True)
        else:
            connection.task = self._start(self._served_later(connection, turn))

    async def _served_later(self, connection: Connection, turn: Turn) -> None:
        whole = False
        try:
            if turn.admitted:
                await self._take_place()
            try:
                if turn.delay_s > 0:
                    await asyncio.sleep(turn.delay_s)
                await connection.play(turn.play)
                whole = True
            finally:
                if turn.admitted:
                    self._served -= 1
                    self._seat_waiting()
        finally:
            self.behaviour.finish(turn, delivered_whole=whole)

    async def _take_place(self) -> None:
        """Waits for one of `max_concurrency` places when requests queue for them, in the order they came."""
        if not self._full() and not self._waiting:
            self._served += 1
            return
        seat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(seat)
        try:
            await seat
        except asyncio.CancelledError:
            if seat.done() and not seat.cancelled():  # it was given the place as its client left
                self._served -= 1
                self._seat_waiting()
            raise

    def _full(self) -> bool:
        most = self.limits.max_concurrency
        return self.limits.queue and most is not None and self._served >= most

    def _seat_waiting(self) -> None:
        while self._waiting and not self._full():
            seat = self._waiting.popleft()
            if not seat.done():
                self._served += 1
                seat.set_result(None)

    def _look_at_watches(self) -> None:
        due = [action for count, action in self._watches if self.stats.accepted >= count]
        self._watches = [(count, action) for count, action in self._watches if self.stats.accepted < count]
        for action in due:
            action()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("the emulator is not running: use `async with Emulator()`")
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        make = partial(Connection, self)
        self._server = await loop.create_server(make, self._host, self._port, backlog=_BACKLOG)
        self._port = self._server.sockets[0].getsockname()[1]

    def _deafen(self) -> None:
        """Nobody listens any more, and the connections there are end."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    async def _refusing(self, start_s: float, duration_s: float) -> None:
        await asyncio.sleep(start_s)
        self._deafen()
        await asyncio.sleep(duration_s)
        await self._listen()
