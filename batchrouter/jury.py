"""Failures on trial: is it the row, or everybody? Held back until that is known.

Rules of this file: pure. Two questions: the canary's (have the first 20 rows to end all failed alike, and none been
answered?) and the circuit's (has the endpoint answered anything that was sent after a row had failed by it, so that the
row is to blame itself?). An answer to what was sent before says nothing: it may be the last one before an outage.
What is held is not booked: should the run stop, those rows are still pending.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from batchrouter.frontier import Job
from batchrouter.records import ENDPOINT_DOWN, KEY_REFUSED, Halt, Outcome
from batchrouter.remedies import remedy_for

_CANARY_ROWS: Final = 20


class Way(Protocol):
    """The lane on which a row failed; it counts those that are booked."""

    failed: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A row about to be booked as failed, at `at_s` by the loop's clock. `kind` is its status and error code; `text` is
    told of it.
    """

    job: Job
    outcome: Outcome
    kind: str
    text: str
    blame: Literal["endpoint", "row"]
    lane: Way
    at_s: float


class Jury:
    """The failures of one start that are held back. `halt` is set once the canary has spoken."""

    def __init__(self, *, rows: int) -> None:
        """`rows` are to be asked in this start: of fewer than 20 nothing is judged by the canary."""
        self._canary = rows >= _CANARY_ROWS
        self._held: list[Failure] = []
        self.halt: Halt | None = None

    @property
    def is_watching(self) -> bool:
        """Whether an answer would change anything here."""
        return self._canary or bool(self._held)

    def failed(self, failure: Failure) -> list[Failure]:
        """Take in a failure, give those that may be booked now."""
        self._held.append(failure)
        if self._canary:
            if any(held.kind != failure.kind for held in self._held):
                self._canary = False
            elif len(self._held) >= _CANARY_ROWS:
                self.halt = _same_for_all(failure)
        if self._canary:
            return []
        return self._release(lambda held: held.blame == "row")

    def answered(self) -> list[Failure]:
        """A row was answered: failures by the rows' own errors are no longer everybody's."""
        self._canary = False
        return self._release(lambda held: held.blame == "row")

    def heard(self, lane: Way, sent_s: float) -> list[Failure]:
        """The endpoint answered, be it with a refusal, what was sent at `sent_s`: who had failed by then on that lane
        has failed alone.
        """
        if self._canary:
            return []
        return self._release(lambda held: held.blame == "endpoint" and held.lane is lane and held.at_s <= sent_s)

    def excused(self, lanes: Collection[Way]) -> list[Failure]:
        """The endpoint is down on these lanes: those who failed by it there, to be asked again."""
        return self._release(lambda held: held.blame == "endpoint" and any(held.lane is lane for lane in lanes))

    def closing(self) -> list[Failure]:
        """The input has ended: what is still held, to be booked."""
        return self._release(lambda _: True)

    def _release(self, condition: Callable[[Failure], bool]) -> list[Failure]:
        if self.halt is not None:  # what is answered while the run stops comes too late
            return []
        released = [held for held in self._held if condition(held)]
        self._held = [held for held in self._held if not condition(held)]
        return released


def _same_for_all(failure: Failure) -> Halt:
    forbidden = failure.outcome.reply is not None and failure.outcome.reply.status == 403
    reason = f"the first {_CANARY_ROWS} rows to end have all failed alike ({failure.kind}): {failure.text}"
    return Halt(KEY_REFUSED if forbidden else ENDPOINT_DOWN, reason, remedy_for(failure.kind) or "mend it")
