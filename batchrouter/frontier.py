"""What is asked next: retries that are due first, then fresh rows in input order.

Rules of this file: a row that waits for its retry holds no worker; a row that is out with a worker may still come back,
so the end is known only when none is out; what waits is bounded by its bytes, and beyond that no fresh row is drawn.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from batchrouter.records import Request, Usage

MOST_WAITING_BYTES: Final = 32 * 2**20


@dataclass(slots=True, eq=False)
class Job:
    """A row on its way: `attempts` were sent, `counted` of them count against it, `usage` is what they reported."""

    request: Request
    attempts: int = 0
    counted: int = 0
    credit_waits: int = 0
    usage: Usage | None = None


class Frontier:
    """The rows of a run still to be asked. `next` hands one out; `done` or `put_back` takes it off the books."""

    def __init__(self, fresh: Iterator[Request]) -> None:
        self._fresh: Iterator[Request] | None = fresh
        self._waiting: list[tuple[float, int, Job]] = []
        self._waiting_bytes = 0
        self._sequence = 0
        self._out = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Rows that wait for their retry."""
        return len(self._waiting)

    def jobs_waiting(self) -> Iterator[Job]:
        """The rows that wait for their retry, in no order."""
        return (job for _, _, job in self._waiting)

    async def next(self) -> Job | None:
        """The next row to ask; None when no row is left, or none is to be asked any more."""
        while not self._closed:
            if self._waiting and self._waiting[0][0] <= asyncio.get_running_loop().time():
                _, _, job = heapq.heappop(self._waiting)
                self._waiting_bytes -= len(job.request.body)
                self._out += 1
                if self._idle:
                    self._arm()  # the next one may be due as well
                return job
            if self._fresh is not None and self._waiting_bytes <= MOST_WAITING_BYTES:
                request = next(self._fresh, None)
                if request is not None:
                    self._out += 1
                    return Job(request)
                self._fresh = None
            if self._fresh is None and not self._waiting and not self._out:
                self.close()
                break
            await self._something_due()
        return None

    async def _something_due(self) -> None:
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        self._arm()
        try:
            await idle
        except asyncio.CancelledError:
            if idle.done() and not idle.cancelled():
                self._wake_one()  # its turn goes to another
            raise

    def done(self) -> None:
        """A row that was out has come to its end."""
        self._out -= 1
        if not self._out and self._fresh is None and not self._waiting:
            self._wake_one()

    def put_back(self, job: Job, due_s: float) -> None:
        """A row that was out is to be asked again, not before `due_s` on the loop's clock."""
        self._out -= 1
        self.add(job, due_s)

    def add(self, job: Job, due_s: float) -> None:
        """A row that was done is to be asked again after all."""
        self._sequence += 1
        heapq.heappush(self._waiting, (due_s, self._sequence, job))
        self._waiting_bytes += len(job.request.body)
        self._arm()

    def close(self) -> None:
        """Hand out nothing more: whoever waits in `next` gets None."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._wake_one()

    def _arm(self) -> None:
        """Wake an idle worker when the first waiting row is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._idle and self._waiting and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._waiting[0][0], self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            idle = self._idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return
