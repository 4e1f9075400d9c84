"""The worker pool and the life of one request: the file to read first.

A worker draws a row from the frontier, waits at the throttle's door, sends it, and hands in the answer. Rules of this
file: what waits is here (for a row, for room, for a turn, for the answer); what follows from an answer is decided and
done without waiting, in `answers`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from batchrouter.allowance import Allowance
from batchrouter.answers import Answers, Record
from batchrouter.bounds import Budget, Deadline
from batchrouter.errors import BatchrouterError, DiskError
from batchrouter.frontier import Frontier, Job
from batchrouter.lanes import Lane, Lanes
from batchrouter.records import ENDPOINT_DOWN, Halt, Request, Tally
from batchrouter.retry import Policy
from batchrouter.review import Review
from batchrouter.turns import Turns

_CLOCK_S: Final = 0.1
_LAST_TURNS: Final = 5  # of the loop: what is at the sockets is read, and who waits for it wakes


class Runner:
    """One run over one iterator of requests. `run` it once; `stop` and `abort` end it early.

    `lanes` says on which of them a row is asked; a lane has as many workers as its pace allows.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        *,
        lanes: Lanes,
        record: Record,
        policy: Policy,
        tally: Tally,
        rng: random.Random,
        grace_s: float,
        max_outage_s: float,
        budget: Budget,
        review: Review,
        deadline: Deadline | None = None,
        credit_patience_s: float = 0.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._frontier = Frontier(requests, self._place, lanes.may_draw)
        self._lanes = lanes
        lanes.backlog = self._frontier.backlog
        self._allowance = Allowance(budget)
        self._answers = Answers(
            self._frontier,
            lanes,
            record=record,
            on_stop=self.stop,
            policy=policy,
            tally=tally,
            rng=rng,
            allowance=self._allowance,
            review=review,
            deadline=deadline,
            credit_patience_s=credit_patience_s,
            wall=wall,
        )
        self._tally = tally
        self._grace_s = grace_s
        self._max_outage_s = max_outage_s
        self._deadline = deadline
        self._wall = wall
        self._workers: dict[asyncio.Task[None], bool] = {}  # task -> whether its request is in flight
        self._group: asyncio.TaskGroup | None = None
        self._halt: Halt | None = None
        self._loop = asyncio.get_running_loop()
        self._turns = Turns()

    async def run(self) -> Halt | None:
        """Ask every row; None when all have come to their end, else why not. Raises nothing that a peer can cause."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._start()
                self._look_at_clock()
            self._clock.cancel()
            if self._halt is None:
                self._answers.close()
        except DiskError as error:
            self._halt = disk_halt(error)
        return self._halt

    def _start(self) -> None:
        if self._halt is None:
            try:
                self._frontier.start()
            except BatchrouterError as error:
                self._halt = disk_halt(error)

    def stop(self, halt: Halt) -> None:
        """Admit nothing more; what is in flight may finish within the grace. The first reason stands."""
        self._stop(halt, self._grace_s)

    def _stop(self, halt: Halt, grace_s: float) -> None:
        if self._halt is not None:
            return
        self._halt = halt
        self._tally.state = "stopping"
        self._frontier.close()
        self._turns.end()
        for worker, in_flight in self._workers.items():
            if not in_flight:
                worker.cancel()
        self._loop.call_later(grace_s, self.abort)

    def abort(self) -> None:
        """End what is in flight, too: those rows stay pending. What has arrived, even if unread so far, is recorded."""
        if self._halt is None:
            self._halt = Halt(128 + 2, "stopped at once")
            self._frontier.close()
            self._turns.end()
        for worker, in_flight in self._workers.items():
            if not in_flight:
                worker.cancel()
        self._end_after(_LAST_TURNS)

    def _end_after(self, turns: int) -> None:
        if turns > 0:
            self._loop.call_soon(self._end_after, turns - 1)
            return
        for worker in self._workers:
            worker.cancel()

    # --- the pool --------------------------------------------------------------------------------------------------

    def _place(self, job: Job) -> tuple[Lane, float]:
        """The lane that a row takes now, and when it is due there; one that had none so far gets its workers."""
        if self._lanes.is_plural:
            self._lanes.may_probe = self._frontier.has_fresh
        lane, due_s = self._lanes.place(job, self._loop.time())
        if not lane.workers:
            self._hire(lane)
        return lane, due_s

    def _hire(self, lane: Lane) -> None:
        """Have as many workers as may be in flight."""
        while lane.workers < lane.throttle.pace.concurrency + lane.throttle.stuck and self._halt is None:
            self._hire_one(lane)

    def _hire_one(self, lane: Lane) -> None:
        assert self._group is not None  # noqa: S101  (`run` is under way)
        lane.workers += 1
        worker = self._group.create_task(self._work(lane))
        self._workers[worker] = False
        worker.add_done_callback(self._workers.pop)

    async def _work(self, lane: Lane) -> None:
        worker = asyncio.current_task()
        assert worker is not None  # noqa: S101  (a coroutine runs in a task)
        throttle, tally, turns, send = lane.throttle, self._tally, self._turns, lane.place.send
        try:
            while lane.workers <= throttle.pace.concurrency + throttle.stuck or throttle.circuit.is_silent:
                job = await self._frontier.next(lane)
                if job is None:
                    return
                if self._allowance.is_bounded and (halt := await self._allowance.set_aside(job)) is not None:
                    self.stop(halt)
                    return
                tokens = job.request.tokens
                sent = await (
                    throttle.admit_unless(partial(self._lanes.has_way_out, job), tokens)
                    if self._lanes.is_plural
                    else throttle.admit(tokens)
                )
                if sent is None:
                    self._allowance.give_back(job)
                    self._frontier.put_back(job)
                    continue
                lane.latest = sent.nth
                self._workers[worker] = True
                tally.in_flight += 1
                tally.attempts += 1
                job.attempts += 1
                try:
                    answer = await send(job.sending)
                    await turns.wait()
                finally:
                    tally.in_flight -= 1
                    throttle.left()
                    if throttle.stuck:
                        throttle.unstick(sent)
                    self._workers[worker] = False
                self._answers.take(lane, job, answer, sent)
                if self._deadline is not None:
                    self._heed(self._deadline)
                self._hire(lane)
        except DiskError as error:
            self.stop(disk_halt(error))
            self.abort()  # there is nowhere to record what is in flight
        except BatchrouterError as error:  # an input that changed under way: by now something may have been sent
            self.stop(disk_halt(DiskError(str(error))))
        finally:
            lane.workers -= 1

    def _look_at_clock(self) -> None:
        """Stop in time for what is in flight to end by the deadline, and let it go on until then."""
        now = self._loop.time()
        if self._deadline is not None:
            self._heed(self._deadline)
        if (halt := self._dead_end(now)) is not None:
            self.stop(halt)
        for lane in self._lanes.all:
            self._listen(lane, now)
        self._clock = self._loop.call_later(_CLOCK_S, self._look_at_clock)

    def _heed(self, deadline: Deadline) -> None:
        now, wall = self._loop.time(), self._wall()
        if (halt := deadline.passed(now, wall)) is not None:
            self._stop(halt, max(self._grace_s, deadline.left_s(now, wall)))

    def _listen(self, lane: Lane, now: float) -> None:
        """Send nothing but probes where nothing comes back; each has a worker of its own, as all others wait."""
        throttle = lane.throttle
        in_flight = throttle.in_flight - throttle.stuck
        silent = lane.silence.look(now, _CLOCK_S, in_flight=in_flight, heard_s=lane.place.heard_s())
        has_more = self._frontier.has_fresh or self._frontier.waiting > 0
        if silent and has_more and not lane.is_closed:
            self._answers.last_trouble = "requests are taken, and nothing comes back"
            throttle.fall_silent(now)
            throttle.note("circuit_open", lane=lane.name, reason=self._answers.last_trouble)
            self._frontier.move(self._lanes.closed_at(lane.place))
        if throttle.circuit.is_silent and lane.workers == throttle.in_flight and self._halt is None:
            self._hire_one(lane)

    def _dead_end(self, now: float) -> Halt | None:
        """The stop, where nothing goes on but what waits for an endpoint that is down too long, or refuses us."""
        lanes = self._lanes
        down_s, halt = now - lanes.down_since(), lanes.halt()
        if down_s < self._max_outage_s and halt is None:
            return None
        if not lanes.is_stuck(has_fresh=self._frontier.has_fresh):
            return None
        for place in {lane.place for lane in lanes.all}:
            self._frontier.move(lanes.closed_at(place))  # who was to probe, and has another way, takes that
        if not lanes.is_stuck(has_fresh=self._frontier.has_fresh):
            return None
        return self._outage() if down_s >= self._max_outage_s else halt if down_s < 0 else None

    def _outage(self) -> Halt:
        reason = f"the endpoint has been down for {self._max_outage_s:g} s: {self._answers.last_trouble}"
        return Halt(ENDPOINT_DOWN, reason, "when it is back")


def disk_halt(error: BatchrouterError) -> Halt:
    """The stop that a local fault means: the files are whole, and what had not arrived is pending."""
    return Halt(error.exit_code, str(error), "mend it, then start the same command again")
