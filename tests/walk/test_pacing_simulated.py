"""The pace in the simulator: limits of every kind, with and without headers, told to nobody."""

from __future__ import annotations

import random

import pytest
from kit.comparison import POLICIES, our_pace
from kit.scenarios import (
    KINDS,
    RATE,
    TOKENS,
    Outcome,
    changing,
    crowded,
    limit_of,
    one,
    outcome,
    played,
    rated,
    shared,
    sizes,
    unlucky,
)
from kit.simulator import Client, Schedule, Server, Simulation, Storm

from batchrouter.pace import Learned, Pace

SEEDS = (1, 2, 3)


def is_good(whole: Outcome, settled: Outcome) -> bool:
    """Over the whole run at least 90 % used and at most 3 % refused; once it has settled 95 % and 1 %."""
    return whole.used >= 0.9 and whole.refused <= 0.03 and settled.used >= 0.95 and settled.refused <= 0.01


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("tells", ["nothing", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_limit_of_requests_is_found(kind: str, tells: str, seed: int) -> None:
    """200 a second for 30 s, by nothing but refusals, and with Retry-After and meters."""
    assert is_good(*rated(kind, tells)(our_pace, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_limit_of_tokens_is_found(kind: str, seed: int) -> None:
    """60,000 a second, in requests of 350 on average that differ by half: it may be taken for one of requests for a
    while, which costs a few per cent.
    """
    whole, settled = rated(kind, "nothing", rate=TOKENS, by_tokens=True)(our_pace, seed)
    assert whole.used >= 0.88
    assert whole.refused <= 0.03
    assert settled.used >= 0.88
    assert settled.refused <= 0.01


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_refusals_that_cost_a_second_each_are_few(kind: str, seed: int) -> None:
    """A Retry-After of whole seconds and nothing else: each refusal stops everything for a second at least."""
    whole, settled = rated(kind, "retry")(our_pace, seed)
    assert whole.used >= 0.7
    assert settled.used >= 0.75
    assert whole.refused <= 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_tokens", [False, True], ids=["requests", "tokens"])
def test_a_known_limit_is_never_refused(kind: str, by_tokens: bool) -> None:  # noqa: FBT001
    """Told the limit, the pace keeps to 98 to 100 % of it, and meets no 429. Requests that are each some per cent of a
    minute's tokens cannot be fitted in so closely: a few in a thousand meet one.
    """
    rate, window_s, until_s = (1000.0, 60.0, 300.0) if by_tokens else (RATE, 1.0, 60.0)
    pace = Pace(
        requests_per_s=None if by_tokens else rate, tokens_per_s=rate if by_tokens else None, concurrency=None,
        max_concurrency=512, learned=None, now=0.0, rng=random.Random(1),
    )  # fmt: skip
    client = Client(pace, 0.0, sizes(1) if by_tokens else one)
    limit = limit_of(kind, Schedule(((0.0, rate),)), 1, window_s=window_s, by_tokens=by_tokens)
    played([client], Server([limit]), 1, until_s)
    steady = outcome([client], 1, until_s, (until_s - 1) * rate, by_tokens=by_tokens)
    assert steady.refused <= (0.005 if by_tokens else 0)
    assert (0.96 if by_tokens else 0.98) <= steady.used <= 1.0


def test_what_was_learned_is_the_next_start() -> None:
    """The second run of the same job uses 95 % from its first second on, and is hardly refused."""
    learned = Learned(requests_per_s=RATE, tokens_per_s=None, concurrency=24)
    pace = Pace(
        requests_per_s=None, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=learned, now=0.0,
        rng=random.Random(1),
    )  # fmt: skip
    client = Client(pace, 0.0, one)
    played([client], Server([limit_of("sliding window", Schedule(((0.0, RATE),)), 1)]), 1, 10.0)
    whole = outcome([client], 0, 10, 10 * RATE)
    assert whole.used >= 0.95
    assert whole.refused <= 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_a_limit_of_requests_at_once_is_told_from_one_of_their_rate(seed: int) -> None:
    """40 at once, any number a second."""
    whole, settled = crowded(40)(our_pace, seed)
    assert whole.used >= 0.85
    assert whole.refused <= 0.03
    assert settled.used >= 0.95
    assert settled.refused <= 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_where_more_only_wait_no_more_are_sent(seed: int) -> None:
    """32 are served at once, the others queue: the server is kept busy, and its queue short."""
    client = Client(our_pace(seed), 0.0, one)
    played([client], Server([], slots=32), seed, 30.0)
    assert client.policy.concurrency <= 3 * 32
    assert crowded(32, is_queue=True)(our_pace, seed)[1].used >= 0.95


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_that_halves_and_doubles_back_is_regained(kind: str, seed: int) -> None:
    """From 10 s after each change on, 90 % of what is allowed then is used."""
    _, regained = changing(kind, "nothing")(our_pace, seed)
    assert regained.used >= 0.9
    assert regained.refused <= 0.01


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("second_at_s", [0.0, 10.0], ids=["together", "one later"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_that_share_a_limit_do_not_starve_one_another(kind: str, second_at_s: float, seed: int) -> None:
    """Each gets 35 to 65 % of it, and together they use it."""
    whole, first = shared(kind, "nothing", second_at_s=second_at_s)(our_pace, seed)
    assert 0.35 <= first.used <= 0.65
    assert whole.used >= 0.9
    assert whole.refused <= 0.03


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("share", [0.002, 0.01])
def test_refusals_at_random_do_not_drive_the_pace_down(share: float, seed: int) -> None:
    """A server that refuses 1 in 500, or in 100, whatever the pace, is used nearly as if it did not."""
    whole, settled = unlucky(share)(our_pace, seed)
    assert whole.used >= 0.6
    assert settled.used >= 0.6


@pytest.mark.parametrize("tells", ["nothing", "retry"])
@pytest.mark.parametrize("until_s", [0.5, 2.0, 10.0])
def test_a_storm_at_the_start_is_got_over(until_s: float, tells: str) -> None:
    """All are refused at first, so nothing is learned of any limit: few are sent meanwhile, and soon after it many."""
    client = Client(our_pace(1), 0.0, one)
    played([client], Server([Storm(until_s)], tells=tells), 1, 2 * until_s + 15)
    assert sum(count.refused for count in client.counts.values()) <= 40
    assert outcome([client], 0, 1.5 * until_s + 5, 1.0).used >= 60
    assert outcome([client], 0, 2 * until_s + 15, 1.0).used >= 1000


@pytest.mark.parametrize("seed", [1, 2])
def test_slow_answers_do_not_slow_the_start(seed: int) -> None:
    """600 a minute, answers that take 10 s: 100 must be in flight, long before the first is answered."""
    scene = rated(
        "sliding window", "retry", rate=10.0, median_s=10.0, window_s=60.0, until_s=300.0, warm_s=100.0
    )  # fmt: skip
    whole, _ = scene(our_pace, seed)
    assert whole.used >= 0.9
    assert whole.refused <= 0.03


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_that_is_compared_works(name: str) -> None:
    """At a server without limits each keeps 20 and more in flight, so that what docs/pacing.md says of it is of limits."""
    client = Client(POLICIES[name](1), 0.0, one)
    Simulation(Server([]), [client], seed=1).run(5.0)
    assert client.most_flying >= 20
