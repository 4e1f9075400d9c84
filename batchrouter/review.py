"""What is asked of an answer beyond being one: that it was not cut off, and that it fits its `response_format`.

Rules of this file: pure; an attempt that was answered but is asked for again uses up no attempt of its row: it has
bounds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from batchrouter import jsontext
from batchrouter.answercheck import AnswerCheck
from batchrouter.frontier import Job
from batchrouter.records import ErrorCode, Reply
from batchrouter.settings import OnTruncated

_BUDGETS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_CHAT: Final = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Review:
    """What to do with truncated answers, and (where `check` is given) with those that do not fit."""

    on_truncated: OnTruncated = "keep"
    max_grow: int = 0
    check: AnswerCheck | None = None
    json_attempts: int = 1

    def grows(self, job: Job) -> bool:
        """Whether a truncated row is to be asked again; if so, its token budget has been doubled."""
        if self.on_truncated != "grow":
            return False
        fields = jsontext.loads(job.request.body)
        for name in _BUDGETS:
            budget = fields.get(name)
            if type(budget) is int and 0 < budget < self.max_grow:
                larger = min(2 * budget, self.max_grow)
                body = jsontext.replace(job.request.body, {name: b"%d" % larger})
                allowed = job.request.answer_tokens // budget * larger
                job.request = job.request._replace(body=body, answer_tokens=allowed)
                job.route = None  # what is sent on its way is to be made anew
                return True
        return False

    def problem(self, job: Job, reply: Reply, *, truncated: bool) -> tuple[ErrorCode, str] | None:
        """Why an answer does not count, by the user's own wish; None when it does."""
        if truncated:
            if self.on_truncated == "fail":
                return "truncated", "the token budget ran out before any text; raise max_tokens"
            return None
        if self.check is None or job.request.path != _CHAT:
            return None
        misfit = self.check.problem(job.request.body, reply.body)
        return None if misfit is None else ("schema_mismatch", misfit)

    def asks_again(self, job: Job, problem: tuple[ErrorCode, str]) -> bool:
        """Whether a row with that problem has another answer to come."""
        if problem[0] != "schema_mismatch":
            return False
        job.misfits += 1
        return job.misfits < self.json_attempts
