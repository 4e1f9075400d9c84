"""The nouns that walk through the house: values only, no I/O, legal once built.

Those made for every row are NamedTuples (0.3 us to build, where a frozen dataclass of this size takes 1.8 us);
those made a few times a run are frozen slotted dataclasses.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

FaultCode = Literal["timeout", "connection", "bad_response", "redirect", "tls"]

# `error.code` of a row in errors.jsonl.
ErrorCode = Literal[
    "invalid_row",
    "duplicate_custom_id",
    "timeout",
    "connection",
    "bad_response",
    "truncated",
    "redirect",
    "schema_mismatch",
    "attempts_exhausted",
]


class Usage(NamedTuple):
    """Tokens as an endpoint reported them. All are counts, never negative."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def plus(self, other: Usage) -> Usage:
        """The two together, as two attempts of one row are."""
        return Usage(*map(operator.add, self, other))


class Identity(NamedTuple):
    """What makes a row this row: `key` (12 bytes) of its custom_id, `digest` (12 bytes) of its body.

    A row whose digest changed under the same key was edited. Both stand in a result's `id`, so the log alone
    tells which question an answer belongs to.
    """

    key: bytes
    digest: bytes

    def __str__(self) -> str:
        return f"batch_req_{self.key.hex()}{self.digest.hex()}"


class Request(NamedTuple):
    """One row to ask. `body` is what is sent, byte for byte; `tokens` is the estimate that the pace uses, and
    `answer_tokens` the most that the row allows for its answers (0: it does not say).
    """

    n: int
    custom_id: str
    file: str
    line: int
    identity: Identity
    path: str
    body: bytes
    model: str
    streamed: bool
    tokens: int
    answer_tokens: int
    extra: Mapping[str, Any] | None


class Refusal(NamedTuple):
    """One row that cannot be asked: recorded as failed before anything is sent."""

    n: int
    custom_id: str
    file: str
    line: int
    identity: Identity
    code: Literal["invalid_row", "duplicate_custom_id"]
    message: str


class Reply(NamedTuple):
    """An HTTP answer, read to its end. `body` is a JSON object (a body that was none is wrapped, see transport)."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]
    latency_s: float
    ttft_s: float | None = None


class Fault(NamedTuple):
    """An attempt that brought no readable answer: the peer's doing or the network's, as data.

    `reached` is false when there was not even a connection: no request can be the cause of that.
    """

    code: FaultCode
    message: str
    latency_s: float
    reached: bool = True


class Outcome(NamedTuple):
    """The end of a row's life: answered when `error` is null and the status 200, else failed for good."""

    request: Request | Refusal
    reply: Reply | None
    error: tuple[ErrorCode, str] | None
    attempts: int
    usage: Usage | None
    truncated: bool
    model: str
    endpoint: str

    @property
    def answered(self) -> bool:
        """Whether the row stands in results.jsonl (else in errors.jsonl)."""
        return self.error is None and self.reply is not None and self.reply.status == OK


OK: Final = 200
KEY_REFUSED, CREDITS_SPENT, ENDPOINT_DOWN = 3, 4, 5  # exit codes of a halt
_MOST_CAUSES: Final = 50


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a run stops before its end: the exit code, what happened, and the user's next move."""

    exit_code: int
    reason: str
    remedy: str = ""


class Share(NamedTuple):
    """What one way to the answers did in a start, and how it is: `state` is empty where nothing holds it up."""

    name: str
    answered: int
    failed: int
    state: str


@dataclass(slots=True)
class Tally:
    """What a run has done so far: counted by the runner, read by whoever shows it. Never grows with the rows.
    `moved` are the rows that went from one model to another that stands in for it, `shares` what each lane did, and
    `limits`, in words, what was found to be allowed there.
    """

    rows: int = 0
    answered: int = 0
    failed: int = 0
    answered_before: int = 0
    failed_before: int = 0
    truncated: int = 0
    attempts: int = 0
    retries: int = 0
    limited: int = 0
    in_flight: int = 0
    usage: Usage = field(default_factory=Usage)
    unknown_usage: int = 0
    causes: dict[str, Cause] = field(default_factory=dict)
    lost_s: dict[str, float] = field(default_factory=dict)
    moved: dict[tuple[str, str], int] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    limits: dict[str, str] = field(default_factory=dict)
    state: str = "starting"

    @property
    def pending(self) -> int:
        """Rows of this start that are neither answered nor failed."""
        return self.rows - self.answered - self.failed - self.answered_before - self.failed_before

    def add_failure(self, kind: str, example: str) -> None:
        """Count a row as failed by `kind`; of the first of a kind the example is kept."""
        self.failed += 1
        cause = self.causes.get(kind)
        if cause is not None:
            cause.count += 1
        elif len(self.causes) < _MOST_CAUSES:
            self.causes[kind] = Cause(1, example)


@dataclass(slots=True)
class Cause:
    """One reason for which rows failed: how many, and the first of them as the example."""

    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended. `halt` is null when it reached the end of its rows; `loop` is whose event loop it ran on."""

    directory: str
    tally: Tally
    duration_s: float
    halt: Halt | None
    loop: str = "asyncio"
