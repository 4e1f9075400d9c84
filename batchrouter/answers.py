"""What an answer does: to its row, to the limit and the endpoint that it came from, and to the run.

Rules of this file: nothing waits here; a row that was out ends in exactly one of the ledger, the frontier, or (when the
run stops) nowhere: still pending. What fails is held back by the jury until it is known whose fault it is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Literal, Protocol

from batchrouter.allowance import Allowance
from batchrouter.bounds import Deadline
from batchrouter.frontier import Frontier, Job
from batchrouter.hints import read_hints
from batchrouter.jury import Failure, Jury
from batchrouter.lanes import Lane, Lanes
from batchrouter.pace import Sent
from batchrouter.records import CREDITS_SPENT, ErrorCode, Fault, Halt, Outcome, Reply, Tally
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
from batchrouter.usage import read_usage

Blame = Literal["endpoint", "row"]


class Record(Protocol):
    """Where the ends of rows are kept (`Ledger.record`); raises DiskError."""

    def __call__(self, outcome: Outcome) -> int:
        """Keep it, so that no kill takes it back; gives how many rows have ended by it."""
        ...


class Answers:
    """All answers of one run go by here: `take` each, and `close` when the input has ended. Both raise DiskError.

    `on_stop` is told why the run cannot go on. `last_trouble` is what went wrong last at an endpoint, in a line.
    """

    def __init__(
        self,
        frontier: Frontier,
        lanes: Lanes,
        *,
        record: Record,
        on_stop: Callable[[Halt], None],
        policy: Policy,
        tally: Tally,
        rng: random.Random,
        allowance: Allowance,
        review: Review,
        deadline: Deadline | None = None,
        credit_patience_s: float = 0.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._frontier = frontier
        self._lanes = lanes
        self._record = record
        self._on_stop = on_stop
        self._policy = policy
        self._tally = tally
        self._rng = rng
        self._allowance = allowance
        self._review = review
        self._deadline = deadline
        self._credit_patience_s = credit_patience_s
        self._wall = wall
        self._jury = Jury(rows=tally.pending)
        self._loop = asyncio.get_running_loop()
        self.last_trouble = ""

    def close(self) -> None:
        """The input has ended: what is still held back is booked."""
        self._book(self._jury.closing())

    def take(self, lane: Lane, job: Job, answer: Reply | Fault, sent: Sent) -> None:
        """Act on what came back to a request: read its usage and its hints, and see the verdict carried out."""
        hints = used = None
        if isinstance(answer, Reply):
            answer = unwrapped(answer)
            hints = read_hints(answer.headers, self._wall())
            used = read_usage(answer.body)
            if used is not None:
                job.usage = used if job.usage is None else job.usage.plus(used)
                self._tally.usage = self._tally.usage.plus(used)
        self._allowance.settle(job, answer, used)
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
            self._frontier.put_back(job, now)
        else:
            lane.throttle.failed(now, sent)
            self._refuse(lane, job, answer, verdict, sent, now)

    def _accept(self, lane: Lane, job: Job, reply: Reply, sent: Sent, now: float, *, truncated: bool) -> None:
        """Book an answered row."""
        if self._deadline is not None:
            self._deadline.answered(reply.latency_s)
        if self._jury.is_watching:
            self._book(self._jury.answered())
        self._take_answer(lane, sent)
        if truncated and self._review.grows(job):
            self._frontier.put_back(job, now)
            return
        problem = self._review.problem(job, reply, truncated=truncated)
        if problem is not None:
            if self._review.asks_again(job, problem):
                self._tally.retries += 1
                self._frontier.put_back(job, now)
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

    def _refuse(self, lane: Lane, job: Job, answer: Reply | Fault, verdict: Verdict, sent: Sent, now: float) -> None:
        """Put a row back, give it up, or stop."""
        match verdict:
            case Again(wait_s, "credits"):
                lane.throttle.wait_for_credits(now, sent, wait_s)
                self._frontier.put_back(job, now)
            case Again(wait_s, "endpoint" | "row" as blame):
                self._take_failure(lane, job, answer, sent, now, blame)
                self._tally.retries += 1
                self._frontier.put_back(job, now + wait_s)
            case GiveUp(error, blame):
                self._take_failure(lane, job, answer, sent, now, blame)
                self._give_up(lane, job, answer, sent, error, blame, now)
            case Stop(halt):
                waits = halt.exit_code == CREDITS_SPENT and self._credit_patience_s > 0
                if not (waits and lane.throttle.out_of_credits(now, sent, self._credit_patience_s)):
                    self._shut(lane, halt, now)
                self._frontier.put_back(job, now)
            case _:
                raise AssertionError("an answer is never refused, and a limit is not handled here")

    def _take_failure(self, lane: Lane, job: Job, answer: Reply | Fault, sent: Sent, now: float, blame: Blame) -> None:
        """Count a failure against its row, and take it as evidence for or against the endpoint."""
        circuit = lane.throttle.circuit
        if blame == "row":
            self._take_answer(lane, sent)
        else:
            self.last_trouble = _trouble(answer)
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
            lane.throttle.note("circuit_open", lane=lane.name, reason=self.last_trouble)
        job.counted = 0
        for _, waiting in self._frontier.waiting_on(lane):
            waiting.counted = 0
        closed = self._lanes.closed_at(lane.place)
        for failure in self._jury.excused(closed):
            failure.job.counted = 0
            self._frontier.add(failure.job)
        self._frontier.move(closed)

    def _shut(self, lane: Lane, halt: Halt, now: float) -> None:
        """An endpoint refuses us: the others carry on, if there are any."""
        was_open = lane.place.halt is None
        if not self._lanes.shut(lane, halt, now):
            self._on_stop(halt)
        elif was_open:
            lane.throttle.note("endpoint_closed", endpoint=lane.endpoint, reason=halt.reason)
            self._frontier.move(self._lanes.closed_at(lane.place))

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
            self._frontier.put_back(job, now)
            return
        reply = answer if isinstance(answer, Reply) and (error is None or error[0] == "attempts_exhausted") else None
        text = error[1] if error is not None else message_of(reply.body if reply is not None else {})
        failure = Failure(
            job, self._outcome(lane, job, reply, error, truncated=False), error_code_of(answer), text, blame, lane, now
        )
        self._frontier.done(job)
        self._book(self._jury.failed(failure))
        if self._jury.halt is not None:
            self._on_stop(self._jury.halt)

    def _goes_elsewhere(self, lane: Lane, job: Job, answer: Reply | Fault, blame: Blame) -> bool:
        """Whether a row that would be given up has another model to go to."""
        before = job.model
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
        return Outcome(request, reply, error, job.attempts, job.usage, truncated, job.model, lane.endpoint)


def _trouble(answer: Reply | Fault) -> str:
    """What went wrong at the endpoint, in one line."""
    return answer.message if isinstance(answer, Fault) else f"{answer.status}: {message_of(answer.body)}"
