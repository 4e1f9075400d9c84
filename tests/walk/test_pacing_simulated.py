"""The pace in the simulator: limits of every kind, with and without headers, told to nobody."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from kit.simulator import (
    Client,
    Concurrency,
    FixedWindow,
    Limit,
    Schedule,
    Server,
    Simulation,
    SlidingWindow,
    TokenBucket,
)

from batchrouter.pace import Pace

RATE = 200.0
UNTIL_S, WARM_S = 30.0, 10.0

LIMITS: dict[str, Callable[[int], Limit]] = {
    "token bucket": lambda _: TokenBucket(Schedule(((0.0, RATE),)), 20),
    "sliding window": lambda _: SlidingWindow(Schedule(((0.0, RATE),)), 1.0),
    "fixed window": lambda seed: FixedWindow(Schedule(((0.0, RATE),)), 1.0, phase_s=seed * 0.37 % 1),
}


class Share(NamedTuple):
    """What was accepted of what was allowed, and what was refused of what was sent."""

    used: float
    refused: float


def pace(seed: int, *, requests_per_s: float | None = None) -> Pace:
    return Pace(
        requests_per_s=requests_per_s, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=None, now=0.0,
        rng=random.Random(seed),
    )  # fmt: skip


def client_of(seed: int, server: Server, *, requests_per_s: float | None = None) -> Client:
    client = Client(pace(seed, requests_per_s=requests_per_s), 0.0, lambda: 1)
    Simulation(server, [client], seed=seed).run(UNTIL_S)
    return client


def share(client: Client, start_s: float, end_s: float, *, rate: float = RATE) -> Share:
    tenths = [count for tenth, count in client.counts.items() if start_s * 10 <= tenth < end_s * 10]
    accepted, refused = sum(count.accepted for count in tenths), sum(count.refused for count in tenths)
    return Share(accepted / (rate * (end_s - start_s)), refused / (accepted + refused))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("tells", ["nothing", "all"])
@pytest.mark.parametrize("kind", LIMITS)
def test_an_unknown_limit_is_found(kind: str, tells: str, seed: int) -> None:
    """Over the whole run at least 90 % used and at most 3 % refused; in the steady state 95 % and 1 %."""
    client = client_of(seed, Server([LIMITS[kind](seed)], tells=tells))
    whole, steady = share(client, 0, UNTIL_S), share(client, WARM_S, UNTIL_S)
    assert whole.used >= 0.9
    assert whole.refused <= 0.03
    assert steady.used >= 0.95
    assert steady.refused <= 0.01


@pytest.mark.parametrize("kind", LIMITS)
def test_a_known_limit_is_never_refused(kind: str) -> None:
    """Told the limit, the pace keeps to 98 to 100 % of it, and meets no 429."""
    client = client_of(1, Server([LIMITS[kind](1)]), requests_per_s=RATE)
    steady = share(client, 1, UNTIL_S)
    assert steady.refused == 0
    assert 0.98 <= steady.used <= 1.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_limit_of_requests_at_once_is_told_from_one_of_their_rate(seed: int) -> None:
    """40 at once, any number a second: the concurrency comes down to about that, and few are refused."""
    client = client_of(seed, Server([Concurrency(Schedule(((0.0, 40.0),)))]))
    steady = share(client, WARM_S, UNTIL_S, rate=1.0)
    assert 30 <= client.policy.concurrency <= 44
    assert steady.refused <= 0.01
