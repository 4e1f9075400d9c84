"""Failures on trial: is it the row, or everybody? Held back until that is known.

Rules of this file: pure. Two questions: the canary's (have the first 20 rows to end all failed alike, and none been
answered?) and the circuit's (has the endpoint answered anybody lately, so that a row which failed is to blame itself?).
What is held is not booked: should the run stop, those rows are still pending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from batchrouter.frontier import Job
from batchrouter.records import ENDPOINT_DOWN, KEY_REFUSED, Halt, Outcome
from batchrouter.remedies import remedy_for

_CANARY_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A row about to be booked as failed. `kind` is its status and error code; `text` is told of it."""

    job: Job
    outcome: Outcome
    kind: str
    text: str
    blame: Literal["endpoint", "row"]


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

    def failed(self, failure: Failure, *, endpoint_answers: bool) -> list[Failure]:
        """Take in a failure, give those that may be booked now."""
        self._held.append(failure)
        if self._canary:
            if any(held.kind != failure.kind for held in self._held):
                self._canary = False
            elif len(self._held) >= _CANARY_ROWS:
                self.halt = _same_for_all(failure)
        if self._canary:
            return []
        return self._release(lambda held: held.blame == "row" or endpoint_answers)

    def answered(self) -> list[Failure]:
        """A row was answered: what is held is the rows' own."""
        self._canary = False
        return self._release(lambda _: True)

    def excused(self) -> list[Failure]:
        """The endpoint is down: those who failed by it, to be asked again."""
        return self._release(lambda held: held.blame == "endpoint")

    def closing(self) -> list[Failure]:
        """The input has ended: what is still held, to be booked."""
        return self._release(lambda _: True)

    def _release(self, condition: Callable[[Failure], bool]) -> list[Failure]:
        released = [held for held in self._held if condition(held)]
        self._held = [held for held in self._held if not condition(held)]
        return released


def _same_for_all(failure: Failure) -> Halt:
    forbidden = failure.outcome.reply is not None and failure.outcome.reply.status == 403
    reason = f"the first {_CANARY_ROWS} rows to end have all failed alike ({failure.kind}): {failure.text}"
    return Halt(KEY_REFUSED if forbidden else ENDPOINT_DOWN, reason, remedy_for(failure.kind) or "mend it")
