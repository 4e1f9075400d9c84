"""The worker pool and the life of one request: the file to read first.

A worker draws a row from the frontier, waits at the throttle's door, sends it, and acts on the verdict. Rules of this
file: decide synchronously (retry, circuit, jury), act asynchronously (frontier, throttle, transport); whatever happens,
a row that was drawn ends in exactly one of the ledger, the frontier, or (when the run stops) nowhere: still pending.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Literal, Protocol

from batchrouter import jsontext
from batchrouter.bounds import Budget, Deadline
from batchrouter.errors import BatchrouterError, DiskError
from batchrouter.estimate import answer_budget
from batchrouter.frontier import Frontier, Job
from batchrouter.hints import read_hints
from batchrouter.jury import Failure, Jury
from batchrouter.lanes import Lane, Lanes, Place
from batchrouter.pace import Sent
from batchrouter.records import (
    CREDITS_SPENT,
    ENDPOINT_DOWN,
    OK,
    ErrorCode,
    Fault,
    Halt,
    Outcome,
    Reply,
    Request,
    Tally,
    Usage,
)
from batchrouter.retry import (
    Accept,
    Again,
    GiveUp,
    History,
    Policy,
    Stop,
    Verdict,
    error_code_of,
    is_model_gone,
    is_too_long,
    judge,
    message_of,
    unwrapped,
)
from batchrouter.review import Review
from batchrouter.turns import Turns
from batchrouter.usage import read_usage

_CLOCK_S: Final = 0.1
_LAST_TURNS: Final = 5  # of the loop: what is at the sockets is read, and who waits for it wakes

Blame = Literal["endpoint", "row"]


class Record(Protocol):
    """Where the ends of rows are kept (`Ledger.record`); raises DiskError."""

    def __call__(self, outcome: Outcome) -> int:
        """Keep it, so that no kill takes it back; gives how many rows have ended by it."""
        ...


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
        self._record = record
        self._policy = policy
        self._tally = tally
        self._rng = rng
        self._grace_s = grace_s
        self._max_outage_s = max_outage_s
        self._budget = budget
        self._review = review
        self._budget_freed = asyncio.Event()
        self._deadline = deadline
        self._credit_patience_s = credit_patience_s
        self._last_trouble = ""
        self._wall = wall
        self._jury = Jury(rows=tally.pending)
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
                self._book(self._jury.closing())
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

    def _put_back(self, job: Job, due_s: float) -> None:
        """A row that was out is to be asked again, not before `due_s`, on the lane that is best for it by now."""
        lane, earliest_s = self._place(job)
        self._frontier.put_back(job, max(due_s, earliest_s), lane)

    def _move_away(self, place: Place) -> None:
        """An endpoint, or a lane of it, closed: what waits there goes where it is better."""
        for lane in self._lanes.all:
            if lane.place is place and lane.is_closed:
                for due_s, job in self._frontier.take_all(lane):
                    other, earliest_s = self._place(job)
                    self._frontier.add(job, max(due_s, earliest_s), other)

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
                if self._budget.is_bounded and not await self._reserve(job):
                    return
                tokens = job.request.tokens
                sent = await (
                    throttle.admit_unless(partial(self._lanes.has_way_out, job), tokens)
                    if self._lanes.is_plural
                    else throttle.admit(tokens)
                )
                if sent is None:
                    self._budget.release(job.reservation)
                    self._budget_freed.set()
                    self._put_back(job, 0.0)
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
                self._conclude(lane, job, answer, sent)
        except DiskError as error:
            self.stop(disk_halt(error))
            self.abort()  # there is nowhere to record what is in flight
        except BatchrouterError as error:  # an input that changed under way: by now something may have been sent
            self.stop(disk_halt(DiskError(str(error))))
        finally:
            lane.workers -= 1

    async def _reserve(self, job: Job) -> bool:
        """Set aside what a request may cost at worst; false when the run's bounds have no room for it any more."""
        request, model = job.request, _model_of(job)
        if job.sending is not request:  # its model's defaults may say how long an answer may be
            request = job.sending._replace(answer_tokens=answer_budget(jsontext.loads(job.sending.body)))
        while (reservation := self._budget.reserve(request, model)) is None:
            if not self._budget.has_reservations:
                self.stop(self._budget.halt(request, model))
                return False
            self._budget_freed.clear()
            await self._budget_freed.wait()
        job.reservation = reservation
        return True

    def _look_at_clock(self) -> None:
        """Stop in time for what is in flight to end by the deadline, and let it go on until then."""
        now = self._loop.time()
        if self._deadline is not None:
            self._heed(self._deadline, now)
        if (halt := self._dead_end(now)) is not None:
            self.stop(halt)
        for lane in self._lanes.all:
            self._listen(lane, now)
        self._clock = self._loop.call_later(_CLOCK_S, self._look_at_clock)

    def _heed(self, deadline: Deadline, now: float) -> None:
        wall = self._wall()
        if (halt := deadline.passed(now, wall)) is not None:
            self._stop(halt, max(self._grace_s, deadline.left_s(now, wall)))

    def _listen(self, lane: Lane, now: float) -> None:
        """Send nothing but probes where nothing comes back; each has a worker of its own, as all others wait."""
        throttle = lane.throttle
        in_flight = throttle.in_flight - throttle.stuck
        silent = lane.silence.look(now, _CLOCK_S, in_flight=in_flight, heard_s=lane.place.heard_s())
        has_more = self._frontier.has_fresh or self._frontier.waiting > 0
        if silent and has_more and not lane.is_closed:
            self._last_trouble = "requests are taken, and nothing comes back"
            throttle.fall_silent(now)
            throttle.note("circuit_open", lane=lane.name, reason=self._last_trouble)
            self._move_away(lane.place)
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
            self._move_away(place)  # who was to probe, and has another way, takes that
        if not lanes.is_stuck(has_fresh=self._frontier.has_fresh):
            return None
        return self._outage() if down_s >= self._max_outage_s else halt if down_s < 0 else None

    def _outage(self) -> Halt:
        reason = f"the endpoint has been down for {self._max_outage_s:g} s: {self._last_trouble}"
        return Halt(ENDPOINT_DOWN, reason, "when it is back")

    # --- one answer ------------------------------------------------------------------------------------------------

    def _conclude(self, lane: Lane, job: Job, answer: Reply | Fault, sent: Sent) -> None:
        """Read what came back: its usage, its hints, and the verdict on it."""
        hints = used = None
        if isinstance(answer, Reply):
            answer = unwrapped(answer)
            hints = read_hints(answer.headers, self._wall())
            used = read_usage(answer.body)
            if used is not None:
                job.usage = used if job.usage is None else job.usage.plus(used)
                self._tally.usage = self._tally.usage.plus(used)
        if self._budget.is_bounded:
            self._settle(job, answer, used)
        verdict = judge(
            answer,
            job.request.path,
            History(job.counted + 1, lane.throttle.credit_waits(sent)),
            self._policy,
            retry_after_s=None if hints is None else hints.retry_after_s,
            rng=self._rng,
        )
        now = self._loop.time()
        if isinstance(answer, Reply) or answer.code != "timeout":
            lane.silence.heard(now - sent.at)
        if isinstance(verdict, Accept) and isinstance(answer, Reply):
            tokens = job.request.tokens if used is None else used.total_tokens
            lane.throttle.answered(now, sent, tokens, hints, estimated=job.request.tokens)
            self._accept(lane, job, answer, sent, now, truncated=verdict.truncated)
        elif isinstance(verdict, Again) and verdict.blame == "limit":
            self._tally.limited += 1
            halt = lane.throttle.limited(now, sent, hints)
            if halt is not None:
                self._shut(lane, halt, now)
            self._put_back(job, now)
        else:
            lane.throttle.failed(now, sent)
            self._refuse(lane, job, answer, verdict, sent, now)

    def _accept(self, lane: Lane, job: Job, reply: Reply, sent: Sent, now: float, *, truncated: bool) -> None:
        """Book an answered row."""
        if self._deadline is not None:
            self._deadline.answered(reply.latency_s)
            self._heed(self._deadline, now)
        if self._jury.is_watching:
            self._book(self._jury.answered())
        self._take_answer(lane, sent)
        if truncated and self._review.grows(job):
            self._put_back(job, now)
            return
        problem = self._review.problem(job, reply, truncated=truncated)
        if problem is not None:
            if self._review.asks_again(job, problem):
                self._tally.retries += 1
                self._put_back(job, now)
            else:
                outcome = self._outcome(lane, job, reply, problem, truncated=truncated)
                self._frontier.done(job)
                self._book([Failure(job, outcome, problem[0], problem[1], "row", lane, now)])
            return
        self._tally.answered += self._record(self._outcome(lane, job, reply, None, truncated=truncated))
        lane.answered += 1
        self._frontier.done(job)
        self._tally.truncated += truncated
        self._tally.unknown_usage += job.usage is None
        self._hire(lane)

    def _refuse(self, lane: Lane, job: Job, answer: Reply | Fault, verdict: Verdict, sent: Sent, now: float) -> None:
        """Put a row back, give it up, or stop."""
        match verdict:
            case Again(wait_s, "credits"):
                lane.throttle.wait_for_credits(now, sent, wait_s)
                self._put_back(job, now)
            case Again(wait_s, "endpoint" | "row" as blame):
                self._take_failure(lane, job, answer, sent, now, blame)
                self._tally.retries += 1
                self._put_back(job, now + wait_s)
            case GiveUp(error, blame):
                self._take_failure(lane, job, answer, sent, now, blame)
                self._give_up(lane, job, answer, sent, error, blame, now)
            case Stop(halt):
                waits = halt.exit_code == CREDITS_SPENT and self._credit_patience_s > 0
                if not (waits and lane.throttle.out_of_credits(now, sent, self._credit_patience_s)):
                    self._shut(lane, halt, now)
                self._put_back(job, now)
            case _:
                raise AssertionError("an answer is never refused, and a limit is not handled here")

    def _settle(self, job: Job, answer: Reply | Fault, used: Usage | None) -> None:
        if job.reservation is not None:
            may_have_cost = answer.reached if isinstance(answer, Fault) else answer.status == OK
            self._budget.settle(job.reservation, job.request, used, may_have_cost=may_have_cost)
            job.reservation = None
            self._budget_freed.set()

    def _take_failure(self, lane: Lane, job: Job, answer: Reply | Fault, sent: Sent, now: float, blame: Blame) -> None:
        """Count a failure against its row, and take it as evidence for or against the endpoint."""
        circuit = lane.throttle.circuit
        if blame == "row":
            self._take_answer(lane, sent)
        else:
            self._last_trouble = _trouble(answer)
            reached = not isinstance(answer, Fault) or answer.reached
            job.suspect = job.suspect or (job.failed_s is not None and circuit.answered_to_s >= job.failed_s)
            job.failed_s = now
            if not reached:
                self._take_evidence(lane, job, None, sent, now)
                return
            if not job.suspect:
                self._take_evidence(lane, job, job.request.n, sent, now)
        if not lane.excuses(sent.at):
            job.counted += 1

    def _take_answer(self, lane: Lane, sent: Sent) -> None:
        """The endpoint answered somebody, be it with a refusal: it is not down."""
        if self._jury.is_watching:
            self._book(self._jury.heard(lane, sent.at))
        was_silent = lane.throttle.circuit.is_silent
        if self._lanes.reopen(lane, sent):
            if was_silent:
                lane.throttle.is_heard_again()
            lane.throttle.note("circuit_closed", lane=lane.name)
            for other in self._lanes.all:
                if other.place is lane.place:
                    self._frontier.wake(other)

    def _take_evidence(self, lane: Lane, job: Job, row: int | None, sent: Sent, now: float) -> None:
        """Tell the circuits; when one opens, what failed by the endpoint is no longer held against the rows."""
        was_closed = lane.is_closed
        if not self._lanes.take_evidence(lane, row, sent, now):
            return
        if not was_closed:
            lane.throttle.note("circuit_open", lane=lane.name, reason=self._last_trouble)
        job.counted = 0
        for _, waiting in self._frontier.waiting_on(lane):
            waiting.counted = 0
        closed = [lane, *(other for other in self._lanes.all if other.place is lane.place and other.is_closed)]
        for failure in self._jury.excused(closed):
            failure.job.counted = 0
            other, due_s = self._place(failure.job)
            self._frontier.add(failure.job, due_s, other)
        self._move_away(lane.place)

    def _shut(self, lane: Lane, halt: Halt, now: float) -> None:
        """An endpoint refuses us: the others carry on, if there are any."""
        was_open = lane.place.halt is None
        if not self._lanes.shut(lane, halt, now):
            self.stop(halt)
        elif was_open:
            lane.throttle.note("endpoint_closed", endpoint=lane.endpoint, reason=halt.reason)
            self._move_away(lane.place)

    def _give_up(
        self,
        lane: Lane,
        job: Job,
        answer: Reply | Fault,
        sent: Sent,
        error: tuple[ErrorCode, str] | None,
        blame: Blame,
        now: float,
    ) -> None:
        """Book a row as failed, or hold it back while it may be everybody's failure."""
        if self._goes_elsewhere(lane, job, answer, blame) or (blame == "endpoint" and lane.excuses(sent.at)):
            self._put_back(job, now)
            return
        reply = answer if isinstance(answer, Reply) and (error is None or error[0] == "attempts_exhausted") else None
        text = error[1] if error is not None else message_of(reply.body if reply is not None else {})
        failure = Failure(
            job, self._outcome(lane, job, reply, error, truncated=False), error_code_of(answer), text, blame, lane, now
        )
        self._frontier.done(job)
        self._book(self._jury.failed(failure))
        if self._jury.halt is not None:
            self.stop(self._jury.halt)

    def _goes_elsewhere(self, lane: Lane, job: Job, answer: Reply | Fault, blame: Blame) -> bool:
        """Whether a row that would be given up has another model to go to."""
        before = _model_of(job)
        is_gone = isinstance(answer, Reply) and is_model_gone(answer)
        if is_gone and self._lanes.strikes_off(lane, job):
            return True
        if isinstance(answer, Reply) and is_too_long(answer):
            moves = self._lanes.widens(job)
        elif blame == "endpoint" or is_gone:
            moves = self._lanes.falls_back(job)
        else:
            return False
        if moves:
            self._tally.moved[before, job.names[0]] = self._tally.moved.get((before, job.names[0]), 0) + 1
        return moves

    def _book(self, failures: list[Failure]) -> None:
        for failure in failures:
            request = failure.outcome.request
            failure.lane.failed += 1
            for _ in range(self._record(failure.outcome)):
                self._tally.add_failure(failure.kind, f"{request.file}:{request.line}: {failure.text}")

    def _outcome(
        self, lane: Lane, job: Job, reply: Reply | None, error: tuple[ErrorCode, str] | None, *, truncated: bool
    ) -> Outcome:
        request = job.request
        return Outcome(request, reply, error, job.attempts, job.usage, truncated, _model_of(job), lane.endpoint)


def _model_of(job: Job) -> str:
    """The model that a row is asked of."""
    return job.request.model if job.route is None else job.route.model


def _trouble(answer: Reply | Fault) -> str:
    """What went wrong at the endpoint, in one line."""
    return answer.message if isinstance(answer, Fault) else f"{answer.status}: {message_of(answer.body)}"


def disk_halt(error: BatchrouterError) -> Halt:
    """The stop that a local fault means: the files are whole, and what had not arrived is pending."""
    return Halt(error.exit_code, str(error), "mend it, then start the same command again")
