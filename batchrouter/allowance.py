"""What requests may still cost: set aside before one leaves, settled when it is back. The sums are `bounds.Budget`'s;
this is who waits for them.
"""

from __future__ import annotations

import asyncio

from batchrouter import jsontext
from batchrouter.bounds import Budget
from batchrouter.estimate import answer_budget
from batchrouter.frontier import Job
from batchrouter.records import OK, Fault, Halt, Reply, Usage


class Allowance:
    """The bounds of one run, as its workers share them."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._freed = asyncio.Event()
        self.is_bounded = budget.is_bounded

    async def set_aside(self, job: Job) -> Halt | None:
        """Reserve what a request may cost at worst, waiting for others to come back if need be; the stop, where the
        bounds have no room for it any more.
        """
        request = job.request
        if job.sending is not request:  # its model's defaults may say how long an answer may be
            request = job.sending._replace(answer_tokens=answer_budget(jsontext.loads(job.sending.body)))
        while (reservation := self._budget.reserve(request, job.model)) is None:
            if not self._budget.has_reservations:
                return self._budget.halt(request, job.model)
            self._freed.clear()
            await self._freed.wait()
        job.reservation = reservation
        return None

    def give_back(self, job: Job) -> None:
        """A request does not leave after all."""
        self._budget.release(job.reservation)
        job.reservation = None
        self._freed.set()

    def settle(self, job: Job, answer: Reply | Fault, used: Usage | None) -> None:
        """A request is back: what it used takes the place of what was set aside."""
        if job.reservation is not None:
            may_have_cost = answer.reached if isinstance(answer, Fault) else answer.status == OK
            self._budget.settle(job.reservation, job.request, used, may_have_cost=may_have_cost)
            job.reservation = None
            self._freed.set()
