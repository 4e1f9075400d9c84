"""A scripted endpoint, and builders of what goes to it and comes back.

A script is a function of (request, nth attempt of that row, virtual seconds since the start) that gives the answer;
the answer's own `latency_s` is how long it takes to come. Nothing here knows how rows are retried or kept.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from kit.virtual import elapsed_s

from batchrouter.bounds import Budget
from batchrouter.errors import DiskError
from batchrouter.gates import Slots
from batchrouter.hints import Hints
from batchrouter.intake import Shaping, identify, read_row
from batchrouter.jsonl import Line
from batchrouter.lanes import Lane, Lanes, Place
from batchrouter.pace import Learned, Pace, Sent
from batchrouter.records import Fault, FaultCode, Halt, Outcome, Refusal, Reply, Request, Tally, Usage
from batchrouter.retry import Policy
from batchrouter.review import Review
from batchrouter.routing import Route, Routes
from batchrouter.runner import Runner
from batchrouter.settings import Assign, Model
from batchrouter.settings import Endpoint as Known
from batchrouter.throttle import Throttle

LATENCY_S = 0.1
WALL_S = 1_800_000_000.0

Script = Callable[[Request, int, float], Reply | Fault]

# --- values ------------------------------------------------------------------------------------------------------


def request(n: int = 0, **fields: Any) -> Request:
    """A row to ask: `row-<n>` of line n + 1, of 10 tokens."""
    line = b'{"custom_id":"row-%d","body":{"model":"m","messages":[{"role":"user","content":"question %d"}]}}' % (n, n)
    made = read_row(Line(n + 1, 0, line, len(line)), n, "in.jsonl", Shaping())
    assert isinstance(made, Request)
    made = made._replace(**{"tokens": 10, **fields})
    return made._replace(identity=identify(made.custom_id, made.body))


def refusal(n: int = 0, **fields: Any) -> Refusal:
    """A row that cannot be asked."""
    custom_id = fields.get("custom_id", f"row-{n}")
    made = Refusal(n, custom_id, "in.jsonl", n + 1, identify(custom_id, b"x"), "invalid_row", "in.jsonl: not JSON")
    return made._replace(**fields)


def chat(content: Any = "yes", finish_reason: str = "stop", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], **fields}


def used(prompt: int = 3, completion: int = 2) -> dict[str, int]:
    """A usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def reply(
    status: int = 200,
    body: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    latency_s: float = LATENCY_S,
) -> Reply:
    """An HTTP answer; by default a good one."""
    return Reply(status, dict(headers or {}), chat() if body is None else body, latency_s)


def refused(
    status: int,
    code: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    latency_s: float = LATENCY_S,
    **fields: Any,
) -> Reply:
    """An HTTP error as OpenAI writes it."""
    error = {"message": f"told {status}", "type": None, "code": code, **fields}
    return Reply(status, dict(headers or {}), {"error": error}, latency_s)


def limited(retry_after_s: float | None = None, *, latency_s: float = LATENCY_S) -> Reply:
    """A 429."""
    headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:g}"}
    return refused(429, "rate_limit_exceeded", headers, latency_s=latency_s)


def fault(code: FaultCode = "connection", *, reached: bool = True, latency_s: float = LATENCY_S) -> Fault:
    """An attempt without a readable answer."""
    return Fault(code, f"it was a {code}", latency_s, reached)


def outcome(row: Request | Refusal, answer: Reply | None = None, **fields: Any) -> Outcome:
    """The end of a row's life: answered with a `yes`, unless told otherwise."""
    if isinstance(row, Refusal):
        made = Outcome(row, None, (row.code, row.message), 0, Usage(), truncated=False, model="", endpoint="")
    else:
        made = Outcome(row, answer or reply(), None, 1, Usage(3, 2, 5), truncated=False, model=row.model, endpoint="e")
    return made._replace(**fields)


# --- the two sides -----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One attempt as the endpoint saw it."""

    n: int
    nth: int
    at_s: float


class Endpoint:
    """Answers by its script, and keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._nth: Counter[int] = Counter()

    async def send(self, request: Request) -> Reply | Fault:
        """As `Transport.send`."""
        self._nth[request.n] += 1
        self.calls.append(Call(request.n, self._nth[request.n], elapsed_s()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.script(request, self._nth[request.n], elapsed_s())
            await asyncio.sleep(answer.latency_s)
            return answer
        finally:
            self.in_flight -= 1


class Steady:
    """A pace that learns nothing: what it allows is set by the test."""

    def __init__(
        self, *, concurrency: int = 8, requests_per_s: float = math.inf, tokens_per_s: float = math.inf
    ) -> None:
        self.concurrency = concurrency
        self.requests_per_s = requests_per_s
        self.tokens_per_s = tokens_per_s
        self.pause_s = 1.0
        self.ends: Counter[str] = Counter()
        self.nth = 0
        self.flying = 0
        self.learned = Learned()

    def sent(self, now: float, tokens: int) -> Sent:
        self.nth += 1
        self.flying += 1
        return Sent(now, self.nth, self.flying, tokens)

    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None:
        del now, sent, tokens, hints
        self._end("answered")

    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float:
        del now, sent
        self._end("limited")
        return self.pause_s if hints is None or hints.retry_after_s is None else hints.retry_after_s

    def failed(self, now: float, sent: Sent) -> None:
        del now, sent
        self._end("failed")

    def tick(self, now: float) -> None:
        """Learns nothing."""

    def _end(self, how: str) -> None:
        self.ends[how] += 1
        self.flying -= 1


class Books:
    """Keeps outcomes, as a ledger does; the disk is full after `room` of them."""

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.outcomes: list[Outcome] = []

    def record(self, outcome: Outcome) -> int:
        """As `Ledger.record`: one row has ended by it."""
        if len(self.outcomes) >= self.room:
            raise DiskError("results.jsonl: No space left on device")
        self.outcomes.append(outcome)
        return 1

    @property
    def answered(self) -> list[int]:
        return [ended.request.n for ended in self.outcomes if ended.answered]

    @property
    def failed(self) -> list[int]:
        return [ended.request.n for ended in self.outcomes if not ended.answered]


@dataclass
class Stage:
    """A runner with its surroundings. Make it inside a loop; `run` it once.

    There is one lane, of `pace`, unless `lanes` names the paces of several by their model; `most` bounds what is in
    flight on all of them together. There is one endpoint, unless `elsewhere` names others with their scripts; `pace_of`
    gives the pace of each lane then.
    """

    rows: int
    script: Script
    pace: Steady = field(default_factory=Steady)
    lanes: Mapping[str, Steady] | None = None
    elsewhere: Mapping[str, Script] = field(default_factory=dict)
    pace_of: Callable[[Route], Any] | None = None
    served: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    assign: Assign = "free"
    most: int | None = None
    max_attempts: int = 5
    max_wait_s: float = 3600.0
    max_outage_s: float = 900.0
    grace_s: float = 30.0
    credit_patience_s: float = 0.0
    books: Books = field(default_factory=Books)
    requests: Iterable[Request] | None = None
    seed: int = 1
    halt: Halt | None = None

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(self.script)
        self.endpoints = {"e": self.endpoint} | {name: Endpoint(script) for name, script in self.elsewhere.items()}
        self.places = {
            name: Place(name, each.send, self.weights.get(name, 1.0)) for name, each in self.endpoints.items()
        }
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.tally = Tally(rows=self.rows)
        self.drawn = 0
        self._slots = None if self.most is None else Slots(self.most)
        rng = random.Random(self.seed)
        known = [Known(name=name, base_url="", models=self.served.get(name)) for name in self.endpoints]
        routes = Routes(known, self.models, self.pools, assign=self.assign)
        self.lanes_made = Lanes(routes, self._lane, rng, endpoints=len(known))
        self.runner = Runner(
            self._draw(),
            lanes=self.lanes_made,
            record=self.books.record,
            policy=Policy(self.max_attempts, self.max_wait_s),
            tally=self.tally,
            rng=rng,
            grace_s=self.grace_s,
            max_outage_s=self.max_outage_s,
            budget=Budget(None, None, {}),
            review=Review(),
            credit_patience_s=self.credit_patience_s,
            wall=lambda: WALL_S + elapsed_s(),
        )

    def _lane(self, route: Route) -> Lane:
        if self.pace_of is not None:
            pace, name = self.pace_of(route), f"{route.model} at {route.endpoint}"
        else:
            paces = self.lanes or {"": self.pace}
            name = route.model if route.model in paces else ""
            pace = paces[name]
        found = [lane for lane in self.lanes_made.all if lane.name == name]
        return found[0] if found else Lane(name, self.places[route.endpoint], self._throttle(pace, route.endpoint))

    def _throttle(self, pace: Any, endpoint: str) -> Throttle:
        return Throttle(
            cast("Pace", pace),
            max_wait_s=self.max_wait_s,
            note=self._note,
            slots=self._slots,
            endpoint=self.places[endpoint].circuit,
        )

    def _note(self, event: str, **about: Any) -> None:
        self.notes.append((event, about))

    def _draw(self) -> Iterator[Request]:
        for row in self.requests if self.requests is not None else map(request, range(self.rows)):
            self.drawn += 1
            yield row

    async def run(self) -> Stage:
        """Run to the end, and check what holds at every end: each row is in one place, and the figures agree."""
        self.halt = await self.runner.run()
        ended = [outcome.request.n for outcome in self.books.outcomes]
        assert len(ended) == len(set(ended)), "a row was recorded twice"
        assert self.tally.in_flight == 0
        assert all(endpoint.in_flight == 0 for endpoint in self.endpoints.values())
        assert all(lane.throttle.in_flight == 0 for lane in self.lanes_made.all)
        assert self.tally.answered == len(self.books.answered)
        assert self.tally.failed == len(self.books.failed)
        assert self.tally.attempts == sum(len(endpoint.calls) for endpoint in self.endpoints.values())
        if self.halt is None:
            assert self.tally.pending == 0, "it says that it is done, and rows are pending"
        return self

    def calls_between(self, start_s: float, end_s: float) -> list[Call]:
        """The attempts that left in [start, end)."""
        return [call for call in self.endpoint.calls if start_s <= call.at_s < end_s]
