"""Servers to find a pace against, in the simulator: each a name, and how one policy fares there."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kit.simulator import (
    Chance,
    Client,
    Concurrency,
    FixedWindow,
    Limit,
    Policy,
    Schedule,
    Server,
    Simulation,
    SlidingWindow,
    TokenBucket,
)

PolicyOf = Callable[[int], Policy]
"""A new policy, by seed."""

RATE: Final = 200.0
TOKENS: Final = 60_000.0
SIGMA: Final = 0.5
KINDS: Final = ("token bucket", "sliding window", "fixed window")
TELLS: Final = {"nothing": "", "retry": ", Retry-After", "all": ", Retry-After and meters"}


class Outcome(NamedTuple):
    """Of what was allowed, the share that was used; of what was sent, the share that was refused."""

    used: float
    refused: float


class Scenario(NamedTuple):
    """`play` it with a policy and a seed: what came of it in all, and once it had settled."""

    name: str
    play: Callable[[PolicyOf, int], tuple[Outcome, Outcome]]


def limit_of(kind: str, rate: Schedule, seed: int, *, window_s: float = 1.0, by_tokens: bool = False) -> Limit:
    """A limit of one of the `KINDS`; a bucket holds a tenth of a second's worth."""
    if kind == "token bucket":
        return TokenBucket(rate, rate.at(0.0) / 10, by_tokens)
    if kind == "sliding window":
        return SlidingWindow(rate, window_s, by_tokens)
    return FixedWindow(rate, window_s, phase_s=seed * 0.37 % 1 * window_s, by_tokens=by_tokens)


def played(clients: Sequence[Client], server: Server, seed: int, until_s: float) -> None:
    Simulation(server, clients, seed=seed).run(until_s)


def outcome(
    clients: Sequence[Client], start_s: float, end_s: float, allowed: float, *, by_tokens: bool = False
) -> Outcome:
    """What the clients did between those moments, where `allowed` units were."""
    counts = [
        count for client in clients for tenth, count in client.counts.items() if start_s * 10 <= tenth < end_s * 10
    ]
    accepted, refused = sum(count.accepted for count in counts), sum(count.refused for count in counts)
    used = sum(count.tokens for count in counts) if by_tokens else accepted
    return Outcome(used / allowed, refused / max(accepted + refused, 1))


def sizes(seed: int) -> Callable[[], int]:
    """Tokens of requests: lognormal, 350 on average."""
    rng = random.Random(seed + 100)
    return lambda: int(rng.lognormvariate(math.log(300), SIGMA)) + 10


def one() -> int:
    """A request of one token, where tokens are not limited."""
    return 1


def mean_s(median_s: float) -> float:
    """The mean of the server's lognormal latencies, and the way there and back."""
    return median_s * math.exp(SIGMA**2 / 2) + 0.001


def rated(
    kind: str, tells: str, *, rate: float = RATE, by_tokens: bool = False, median_s: float = 0.08,
    window_s: float = 1.0, until_s: float = 30.0, warm_s: float = 10.0,
) -> Callable[[PolicyOf, int], tuple[Outcome, Outcome]]:  # fmt: skip
    """So many a second, of requests or of tokens."""

    def play(policy_of: PolicyOf, seed: int) -> tuple[Outcome, Outcome]:
        limit = limit_of(kind, Schedule(((0.0, rate),)), seed, window_s=window_s, by_tokens=by_tokens)
        client = Client(policy_of(seed), 0.0, sizes(seed) if by_tokens else one)
        played([client], Server([limit], tells=tells, median_s=median_s), seed, until_s)
        return (
            outcome([client], 0, until_s, rate * until_s, by_tokens=by_tokens),
            outcome([client], warm_s, until_s, rate * (until_s - warm_s), by_tokens=by_tokens),
        )

    return play


def crowded(
    most: int, *, median_s: float = 0.08, is_queue: bool = False
) -> Callable[[PolicyOf, int], tuple[Outcome, Outcome]]:
    """So many at once; more are refused, or wait."""

    def play(policy_of: PolicyOf, seed: int) -> tuple[Outcome, Outcome]:
        client = Client(policy_of(seed), 0.0, one)
        limits = [] if is_queue else [Concurrency(Schedule(((0.0, float(most)),)))]
        played([client], Server(limits, median_s=median_s, slots=most if is_queue else None), seed, 30.0)
        rate = most / mean_s(median_s)
        return outcome([client], 0, 30, 30 * rate), outcome([client], 10, 30, 20 * rate)

    return play


def changing(kind: str, tells: str) -> Callable[[PolicyOf, int], tuple[Outcome, Outcome]]:
    """The limit halves after 15 s and doubles back after 30; how much is used from 10 s after each change on."""

    def play(policy_of: PolicyOf, seed: int) -> tuple[Outcome, Outcome]:
        rate = Schedule(((0.0, RATE), (15.0, RATE / 2), (30.0, RATE)))
        client = Client(policy_of(seed), 0.0, one)
        played([client], Server([limit_of(kind, rate, seed)], tells=tells), seed, 45.0)
        low, high = outcome([client], 25, 30, 2.5 * RATE), outcome([client], 40, 45, 5 * RATE)
        return outcome([client], 0, 45, rate.total(0, 45)), min(low, high)

    return play


def shared(kind: str, tells: str, *, second_at_s: float) -> Callable[[PolicyOf, int], tuple[Outcome, Outcome]]:
    """Two clients at one limit for a minute; the second outcome is the first client's share, since 5 s after."""

    def play(policy_of: PolicyOf, seed: int) -> tuple[Outcome, Outcome]:
        limit = limit_of(kind, Schedule(((0.0, RATE),)), seed)
        clients = [Client(policy_of(10 * seed + nth), nth * second_at_s, one) for nth in range(2)]
        played(clients, Server([limit], tells=tells), seed, 60.0)
        since_s = second_at_s + 5
        both = outcome(clients, since_s, 60, 1.0).used
        return outcome(clients, 0, 60, 60 * RATE), outcome(clients[:1], since_s, 60, both)

    return play


def unlucky(share: float) -> Callable[[PolicyOf, int], tuple[Outcome, Outcome]]:
    """No limit, but this share of requests is refused at random; 32 are served at once, the rest wait."""

    def play(policy_of: PolicyOf, seed: int) -> tuple[Outcome, Outcome]:
        client = Client(policy_of(seed), 0.0, one)
        played([client], Server([Chance(share, random.Random(seed))], median_s=0.08, slots=32), seed, 30.0)
        rate = 32 / mean_s(0.08)
        return outcome([client], 0, 30, 30 * rate), outcome([client], 10, 30, 20 * rate)

    return play


SCENARIOS: Final[Sequence[Scenario]] = (
    *(Scenario(f"200 requests/s, {kind}{told}", rated(kind, tells)) for kind in KINDS for tells, told in TELLS.items()),
    *(
        Scenario(f"60,000 tokens/s, {kind}{TELLS[tells]}", rated(kind, tells, rate=TOKENS, by_tokens=True))
        for kind in KINDS
        for tells in ("nothing", "all")
    ),
    Scenario(
        "600 requests/min, a minute's sliding window, Retry-After, answers take 10 s",
        rated("sliding window", "retry", rate=10.0, median_s=10.0, window_s=60.0, until_s=600.0, warm_s=120.0),
    ),
    Scenario("40 at once", crowded(40)),
    Scenario("5 at once, answers take 1 s", crowded(5, median_s=1.0)),
    Scenario("32 are served at once, the rest wait", crowded(32, is_queue=True)),
    Scenario("200/s, then 100, then 200; token bucket", changing("token bucket", "nothing")),
    Scenario("200/s, then 100, then 200; sliding window", changing("sliding window", "nothing")),
    Scenario("1 in 100 refused at random", unlucky(0.01)),
    Scenario("1 in 500 refused at random", unlucky(0.002)),
)
