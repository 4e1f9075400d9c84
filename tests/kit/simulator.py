"""Servers with limits, and clients that pace themselves against them, in virtual time: an event heap, no I/O.

A `Client` is the mechanism (first come first served, a rate gate a few ms deep, a concurrency gate, one shared
pause) around a policy; a `Server` decides at the moment a request arrives and says how long the answer takes.
Everything follows from the seed. Times are in seconds since the start, rates in units a second.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from batchrouter.hints import Hints, Meter
from batchrouter.pace import Sent

GATE_DEPTH_S = 0.005
"""How much of its rate a gate may let through at once: a few grains of a real loop's timer."""


class Policy(Protocol):
    """What the simulator drives: `batchrouter.pace.Pace`, or anything of its kind."""

    @property
    def requests_per_s(self) -> float: ...
    @property
    def tokens_per_s(self) -> float: ...
    @property
    def concurrency(self) -> int: ...

    def sent(self, now: float, tokens: int) -> Sent: ...
    def answered(self, now: float, sent: Sent, tokens: int, hints: Hints | None) -> None: ...
    def limited(self, now: float, sent: Sent, hints: Hints | None) -> float: ...
    def tick(self, now: float) -> None: ...


class Limit(Protocol):
    """One limit: `None` when it lets the request through (and counts it), else the seconds until it might."""

    def take(self, now: float, tokens: int) -> float | None: ...
    def hints(self, now: float) -> Hints: ...


@dataclass(slots=True)
class Schedule:
    """A limit a second that changes: `((0.0, 200.0), (10.0, 100.0))`."""

    steps: tuple[tuple[float, float], ...]

    def at(self, now: float) -> float:
        rate = self.steps[0][1]
        for start, value in self.steps:
            if now >= start:
                rate = value
        return rate

    def total(self, start: float, end: float) -> float:
        """What it allows from `start` to `end`."""
        edges = [start, *(s for s, _ in self.steps if start < s < end), end]
        return sum((b - a) * self.at(a) for a, b in itertools.pairwise(edges))


@dataclass(slots=True)
class TokenBucket:
    """Refills evenly, `burst` deep."""

    rate: Schedule
    burst: float
    by_tokens: bool = False
    _level: float = field(init=False)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self._level = self.burst

    def take(self, now: float, tokens: int) -> float | None:
        rate = self.rate.at(now)
        self._level = min(self.burst, self._level + (now - self._at) * rate)
        self._at = now
        units = min(tokens, self.burst) if self.by_tokens else 1
        if self._level < units:
            return (units - self._level) / rate
        self._level -= units
        return None

    def hints(self, now: float) -> Hints:
        rate = self.rate.at(now)
        return _told(self.by_tokens, limit=rate * 60, remaining=self._level, reset_s=(self.burst - self._level) / rate)


@dataclass(slots=True)
class FixedWindow:
    """So many in each window; windows begin at multiples of `window_s`, shifted by `phase_s`."""

    rate: Schedule
    window_s: float
    phase_s: float = 0.0
    by_tokens: bool = False
    _window: int = -1
    _used: float = 0.0

    def take(self, now: float, tokens: int) -> float | None:
        window = math.floor((now + self.phase_s) / self.window_s)
        if window != self._window:
            self._window, self._used = window, 0.0
        units = tokens if self.by_tokens else 1
        if self._used + units > self.rate.at(now) * self.window_s:
            return (window + 1) * self.window_s - self.phase_s - now
        self._used += units
        return None

    def hints(self, now: float) -> Hints:
        limit = self.rate.at(now) * self.window_s
        reset_s = (self._window + 1) * self.window_s - self.phase_s - now
        return _told(self.by_tokens, limit=self.rate.at(now) * 60, remaining=limit - self._used, reset_s=reset_s)


@dataclass(slots=True)
class SlidingWindow:
    """So many in any window: each is forgotten `window_s` after it came."""

    rate: Schedule
    window_s: float
    by_tokens: bool = False
    _log: deque[tuple[float, float]] = field(default_factory=deque)
    _used: float = 0.0

    def take(self, now: float, tokens: int) -> float | None:
        log = self._log
        while log and log[0][0] <= now - self.window_s:
            self._used -= log.popleft()[1]
        units = tokens if self.by_tokens else 1
        if self._used + units > self.rate.at(now) * self.window_s:
            return (log[0][0] + self.window_s - now) if log else self.window_s
        log.append((now, units))
        self._used += units
        return None

    def hints(self, now: float) -> Hints:
        limit = self.rate.at(now) * self.window_s
        reset_s = self._log[0][0] + self.window_s - now if self._log else 0.0
        return _told(self.by_tokens, limit=self.rate.at(now) * 60, remaining=limit - self._used, reset_s=reset_s)


def _told(by_tokens: bool, *, limit: float, remaining: float, reset_s: float) -> Hints:  # noqa: FBT001
    meter = Meter(round(limit), int(remaining), math.ceil(reset_s * 1000) / 1000)
    return Hints(tokens=meter) if by_tokens else Hints(requests=meter)


@dataclass(slots=True)
class Concurrency:
    """At most `most` in flight; the rest is refused."""

    most: Schedule
    flying: int = 0

    def take(self, now: float, tokens: int) -> float | None:
        del tokens
        if self.flying >= self.most.at(now):
            return 0.05
        return None

    def hints(self, now: float) -> Hints:
        del now
        return Hints()


@dataclass(slots=True)
class Chance:
    """No limit: this share is refused, whatever the pace."""

    share: float
    rng: random.Random

    def take(self, now: float, tokens: int) -> float | None:
        del now, tokens
        return 0.05 if self.rng.random() < self.share else None

    def hints(self, now: float) -> Hints:
        del now
        return Hints()


@dataclass(slots=True)
class Storm:
    """Everything is refused until then, and nothing after it."""

    until_s: float

    def take(self, now: float, tokens: int) -> float | None:
        del tokens
        return None if now > self.until_s else max(self.until_s - now, 0.01)

    def hints(self, now: float) -> Hints:
        del now
        return Hints()


@dataclass(slots=True)
class Server:
    """`limits` refuse; `slots` serve so many at once and let the rest wait (None: any number at once).

    `tells` is which headers come: `nothing`, `retry` (Retry-After in whole seconds), `exact` (to the millisecond),
    `all` (whole seconds and the meters, with limits told a minute as OpenAI does).
    """

    limits: Sequence[Limit]
    tells: str = "nothing"
    median_s: float = 0.08
    sigma: float = 0.5
    refusal_s: float = 0.002
    slots: int | None = None
    _free_at: list[float] = field(default_factory=list)

    def arrive(self, now: float, tokens: int, rng: random.Random) -> tuple[float, Hints | None] | None:
        """Refused: when it may be tried again and what is told. Accepted: None."""
        for limit in self.limits:
            wait_s = limit.take(now, tokens)
            if wait_s is not None:
                return wait_s, self.told(now, wait_s)
        del rng
        return None

    def told(self, now: float, wait_s: float | None) -> Hints | None:
        if self.tells == "nothing":
            return None
        retry_s = None
        if wait_s is not None:
            retry_s = max(0.001, math.ceil(wait_s * 1000) / 1000)
            if self.tells != "exact":
                retry_s = float(max(1, math.ceil(wait_s)))
        meters = self.limits[0].hints(now) if self.tells == "all" and self.limits else Hints()
        return meters._replace(retry_after_s=retry_s)

    def takes_s(self, now: float, rng: random.Random) -> float:
        """How long an accepted request takes."""
        service_s = self.median_s * math.exp(self.sigma * rng.gauss(0.0, 1.0))
        if self.slots is None:
            return service_s
        begins = now if len(self._free_at) < self.slots else max(now, heapq.heappop(self._free_at))
        heapq.heappush(self._free_at, begins + service_s)
        return begins + service_s - now


@dataclass(slots=True)
class Count:
    """What happened in one tenth of a second, by the time the server decided."""

    accepted: int = 0
    tokens: int = 0
    refused: int = 0


class Client:
    """The mechanism around one policy: always has rows to send, from `starts` on."""

    def __init__(self, policy: Policy, starts: float, sizes: Callable[[], int]) -> None:
        self.policy = policy
        self.starts = starts
        self.sizes = sizes
        self.flying = 0
        self.most_flying = 0
        self.requests_due = starts
        self.tokens_due = starts
        self.paused_until = starts
        self.woken_at = math.inf
        self.next_size = sizes()
        self.cpu_free = 0.0
        self.counts: dict[int, Count] = {}
        self.latencies: list[float] = []

    def due(self, now: float) -> float:
        """When the next request may leave, as far as rates and pauses go."""
        return max(now, self.requests_due - GATE_DEPTH_S, self.tokens_due - GATE_DEPTH_S, self.paused_until)

    def leave(self, now: float, tokens: int) -> None:
        """The gates take it into account."""
        self.flying += 1
        self.requests_due = max(self.requests_due, now) + 1 / self.policy.requests_per_s
        self.tokens_due = max(self.tokens_due, now) + tokens / self.policy.tokens_per_s


class Simulation:
    """Clients against a server, until `until_s`."""

    def __init__(
        self, server: Server, clients: Sequence[Client], *, seed: int, way_s: float = 0.001, cpu_s: float = 0.0
    ) -> None:
        self.server = server
        self.clients = clients
        self.rng = random.Random(seed)
        self.way_s = way_s
        self.cpu_s = cpu_s
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._n = 0

    def run(self, until_s: float) -> None:
        for client in self.clients:
            self._at(client.starts, self._admit, client)
        self._at(0.5, self._tick)
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now, _, do, arguments = heapq.heappop(heap)
            do(*arguments)

    def _at(self, at: float, do: Callable[..., None], *arguments: object) -> None:
        self._n += 1
        heapq.heappush(self._heap, (at, self._n, do, arguments))

    def _tick(self) -> None:
        for client in self.clients:
            client.policy.tick(self.now)
            self._admit(client)
        self._at(self.now + 0.5, self._tick)

    def _wake(self, client: Client) -> None:
        client.woken_at = math.inf
        self._admit(client)

    def _admit(self, client: Client) -> None:
        now = self.now
        if now < client.starts:
            return
        while client.flying < client.policy.concurrency:
            due = client.due(now)
            if due > now:
                if due < client.woken_at:
                    client.woken_at = due
                    self._at(due, self._wake, client)
                return
            tokens, client.next_size = client.next_size, client.sizes()
            client.leave(now, tokens)
            sent = client.policy.sent(now, tokens)
            client.most_flying = max(client.most_flying, client.flying)
            leaves = now
            if self.cpu_s:
                leaves = client.cpu_free = max(client.cpu_free, now) + self.cpu_s
            self._at(leaves + self.way_s * (0.5 + self.rng.random()), self._arrive, client, sent)

    def _arrive(self, client: Client, sent: Sent) -> None:
        now, server = self.now, self.server
        count = client.counts.setdefault(int(now * 10), Count())
        refused = server.arrive(now, sent.tokens, self.rng)
        if refused is not None:
            count.refused += 1
            self._at(now + server.refusal_s * (0.5 + self.rng.random()), self._refused, client, sent, refused[1])
            return
        count.accepted += 1
        count.tokens += sent.tokens
        for limit in server.limits:
            if isinstance(limit, Concurrency):
                limit.flying += 1
        hints = server.told(now, None)
        self._at(now + server.takes_s(now, self.rng), self._answered, client, sent, hints)

    def _answered(self, client: Client, sent: Sent, hints: Hints | None) -> None:
        for limit in self.server.limits:
            if isinstance(limit, Concurrency):
                limit.flying -= 1
        if self.cpu_s:
            client.cpu_free = max(client.cpu_free, self.now) + self.cpu_s
            self._at(client.cpu_free, self._conclude, client, sent, hints)
        else:
            self._conclude(client, sent, hints)

    def _conclude(self, client: Client, sent: Sent, hints: Hints | None) -> None:
        client.flying -= 1
        client.latencies.append(self.now - sent.at)
        client.policy.answered(self.now, sent, sent.tokens, hints)
        self._admit(client)

    def _refused(self, client: Client, sent: Sent, hints: Hints | None) -> None:
        client.flying -= 1
        pause_s = client.policy.limited(self.now, sent, hints)
        client.paused_until = max(client.paused_until, self.now + min(pause_s, 3600.0))
        self._admit(client)
