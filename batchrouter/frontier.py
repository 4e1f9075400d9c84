"""What is asked next on each lane: retries that are due first, then fresh rows in input order.

Rules of this file: a row that waits for its retry holds no worker; a row that is out with a worker may still come back,
so the end is known only when none is out; a row drawn on the way to another lane's is parked there; what waits is
bounded by its bytes, and beyond that no fresh row is drawn; so is what is out, and beyond that none is handed out. A
lane is known here by any value that can be a key.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from batchrouter.bounds import Reservation
from batchrouter.records import Request, Usage
from batchrouter.routing import Route

MOST_WAITING_BYTES: Final = 32 * 2**20
MOST_OUT_BYTES: Final = 512 * 2**20
_RETRIES_A_ROW: Final = 0.1  # of what is asked while fresh rows are left, retries are at most a tenth …
_PARKED_AT_ONCE: Final = 64  # rows drawn for other lanes before those have their turn
_RETRIES_AT_ONCE: Final = 10.0  # … and this many more at once, so that a few rows in trouble need not wait


@dataclass(slots=True, eq=False)
class Job:
    """A row on its way: `attempts` were sent, `counted` of them count against it, `usage` is what they reported.

    `failed_s` is when it last failed, by the loop's clock; it is `suspect` once it has failed again although others
    that were sent in between were answered: what fails then says more of the row than of the endpoint.
    """

    request: Request
    attempts: int = 0
    counted: int = 0
    misfits: int = 0
    failed_s: float | None = None
    suspect: bool = False
    usage: Usage | None = None
    reservation: Reservation | None = None
    names: tuple[str, ...] = ()  # the model or pool that it is asked of and those after it; empty: as the row says
    route: Route | None = None  # the way it takes, and the request as it is sent there
    sending: Request = field(init=False)

    def __post_init__(self) -> None:
        self.sending = self.request

    @property
    def model(self) -> str:
        """The model that it is asked of."""
        return self.request.model if self.route is None else self.route.model


@dataclass(slots=True, eq=False)
class _Queue:
    """One lane's waiting rows, by when they are due, and the workers that have nothing to do."""

    waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    idle: deque[asyncio.Future[None]] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None

    def wake_one(self) -> None:
        while self.idle:
            idle = self.idle.popleft()
            if not idle.done():
                idle.set_result(None)
                return

    def arm(self) -> None:
        """Wake an idle worker when the first waiting row is due."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.idle and self.waiting:
            self.timer = asyncio.get_running_loop().call_at(self.waiting[0][0], self._ring)

    def _ring(self) -> None:
        self.timer = None
        self.wake_one()


def _one_lane(_: Job) -> tuple[Hashable, float]:
    return None, 0.0


class Frontier:
    """The rows of a run still to be asked. `next` hands one out; `done` or `put_back` takes it off the books.

    `place` says on which lane a row is asked, and when it is due there; `may_draw` whether a lane's workers draw
    fresh rows at all.
    """

    def __init__(
        self,
        fresh: Iterator[Request],
        place: Callable[[Job], tuple[Hashable, float]] = _one_lane,
        may_draw: Callable[[Any], bool] = lambda _: True,
    ) -> None:
        self._fresh: Iterator[Request] | None = fresh
        self._place = place
        self._may_draw = may_draw
        self._queues: dict[Hashable, _Queue] = {}
        self._waiting_bytes = 0
        self._sequence = 0
        self._out = self._out_bytes = 0
        self._retries_left = _RETRIES_AT_ONCE
        self._closed = False

    @property
    def waiting(self) -> int:
        """Rows that wait for their retry, or for a worker of their lane."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    @property
    def has_fresh(self) -> bool:
        """Whether there are rows that nobody has drawn yet, and room for them."""
        return self._fresh is not None and self._has_room()

    def backlog(self, lane: Hashable = None) -> int:
        """Rows that wait on a lane, due or not."""
        queue = self._queues.get(lane)
        return 0 if queue is None else len(queue.waiting)

    def waiting_on(self, lane: Hashable = None) -> list[tuple[float, Job]]:
        """The rows that wait on a lane, each with when it is due, the first one first."""
        return [(due_s, job) for due_s, _, job in sorted(self._queue(lane).waiting)]

    def move(self, lanes: Iterable[Hashable]) -> None:
        """These lanes are closed: what waits there goes where it is better."""
        for lane in lanes:
            moving = self.waiting_on(lane)
            self._queue(lane).waiting.clear()
            self._waiting_bytes -= sum(len(job.request.body) for _, job in moving)
            for due_s, job in moving:
                self.add(job, due_s)

    def _queue(self, lane: Hashable) -> _Queue:
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = _Queue()
        return queue

    def start(self) -> None:
        """Look at the first row, so that its lane is known; with none there is nothing to do."""
        request = None if self._fresh is None else next(self._fresh, None)
        if request is None:
            self._fresh = None
        else:
            self.add(Job(request))

    async def next(self, lane: Hashable = None) -> Job | None:
        """The next row to ask on a lane; None when no row is left, or none is to be asked any more."""
        queue = self._queue(lane)
        while not self._closed:
            if self._out_bytes > MOST_OUT_BYTES:
                await self._woken(queue, by_time=False)
                continue
            draws = self._may_draw(lane)
            job = self._due(queue) or (self._draw(lane) if draws else None)
            if job is not None:
                self._out += 1
                self._out_bytes += len(job.request.body)
                return job
            if self._fresh is None and not self._out and not self.waiting:
                self.close()
                break
            if self.has_fresh and draws:
                await asyncio.sleep(0)  # rows for other lanes were drawn, many of them: let those go on
            else:
                await self._woken(queue, by_time=True)
        return None

    def _due(self, queue: _Queue) -> Job | None:
        """A waiting row that is due, if one is; one that failed before only within the budget for retries."""
        if not queue.waiting or queue.waiting[0][0] > asyncio.get_running_loop().time():
            return None
        if queue.waiting[0][2].counted and self._fresh is not None and self._has_room():
            if self._retries_left < 1:
                return None
            self._retries_left -= 1
        _, _, job = heapq.heappop(queue.waiting)
        had_room = self._has_room()
        self._waiting_bytes -= len(job.request.body)
        if not had_room and self._has_room():
            self._wake_all()  # fresh rows may be drawn again, by everybody
        if queue.idle:
            queue.arm()  # the next one may be due as well
        return job

    def _has_room(self) -> bool:
        return self._waiting_bytes <= MOST_WAITING_BYTES

    def _draw(self, lane: Hashable) -> Job | None:
        """A fresh row of this lane, if there is one; those of other lanes that come before it are parked there."""
        parked = 0
        while self._fresh is not None and self._has_room() and parked < _PARKED_AT_ONCE:
            request = next(self._fresh, None)
            if request is None:
                self._fresh = None
                self._wake_all()  # what the budget held back may go now, and who waits in vain may leave
                return None
            self._retries_left = min(_RETRIES_AT_ONCE, self._retries_left + _RETRIES_A_ROW)
            job = Job(request)
            its_lane, due_s = self._place(job)
            if its_lane is lane and not due_s:
                return job
            self._park(job, due_s, its_lane)
            parked += 1
        return None

    async def _woken(self, queue: _Queue, *, by_time: bool) -> None:
        """Until there may be a row; `by_time`: also when one that waits is due."""
        idle = asyncio.get_running_loop().create_future()
        queue.idle.append(idle)
        if by_time:
            queue.arm()
        try:
            await idle
        except asyncio.CancelledError:
            if idle.done() and not idle.cancelled():
                queue.wake_one()  # its turn goes to another
            raise

    def done(self, job: Job) -> None:
        """A row that was out has come to its end."""
        self._is_in(job)
        if not self._out and self._fresh is None and not self.waiting:
            self._wake_all()

    def put_back(self, job: Job, due_s: float = 0.0) -> None:
        """A row that was out is to be asked again, not before `due_s` on the loop's clock."""
        self._is_in(job)
        self.add(job, due_s)

    def _is_in(self, job: Job) -> None:
        """A row is out no more, and what it held is free."""
        was_full = self._out_bytes > MOST_OUT_BYTES
        self._out -= 1
        self._out_bytes -= len(job.request.body)
        if was_full and self._out_bytes <= MOST_OUT_BYTES:
            self._wake_all()

    def add(self, job: Job, due_s: float = 0.0) -> None:
        """A row that is not out is to be asked after all, on the lane that is best for it by now."""
        lane, earliest_s = self._place(job)
        self._park(job, max(due_s, earliest_s), lane)

    def _park(self, job: Job, due_s: float, lane: Hashable) -> None:
        self._sequence += 1
        queue = self._queue(lane)
        heapq.heappush(queue.waiting, (due_s, self._sequence, job))
        self._waiting_bytes += len(job.request.body)
        if not self._closed:
            queue.arm()

    def wake(self, lane: Hashable) -> None:
        """A lane may draw again: its idle workers have a look."""
        queue = self._queue(lane)
        for _ in range(len(queue.idle)):
            queue.wake_one()

    def close(self) -> None:
        """Hand out nothing more: whoever waits in `next` gets None."""
        self._closed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for queue in self._queues.values():
            if self._closed and queue.timer is not None:
                queue.timer.cancel()
            while queue.idle:
                queue.wake_one()
