"""Admission in virtual time: order, pauses, rates, room, and an endpoint that is down."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import virtual
from kit.scripted import Steady

from batchrouter.circuit import Circuit
from batchrouter.gates import Slots
from batchrouter.hints import Hints
from batchrouter.pace import Pace, Sent
from batchrouter.records import Halt
from batchrouter.throttle import Throttle


class Door:
    """A throttle over a pace that a test sets, and who went through it, when."""

    def __init__(self, pace: Steady | None = None, *, max_wait_s: float = 3600.0, slots: Slots | None = None) -> None:
        self.pace = pace or Steady(concurrency=10_000)
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.throttle = Throttle(cast("Pace", self.pace), max_wait_s=max_wait_s, note=self._note, slots=slots)
        self.through: list[tuple[float, int]] = []

    def _note(self, event: str, **about: Any) -> None:
        self.notes.append((event, about))

    async def one(self, name: int, *, tokens: int = 10, takes_s: float = 0.0) -> None:
        """Go through, stay `takes_s` in flight, be answered."""
        sent = await self.throttle.admit(tokens)
        self.through.append((virtual.elapsed_s(), name))
        await asyncio.sleep(takes_s)
        self.answer(sent)

    def answer(self, sent: Sent) -> None:
        self.throttle.left()
        self.throttle.answered(now(), sent, sent.tokens, None)

    def refuse(self, sent: Sent, retry_after_s: float | None) -> Halt | None:
        self.throttle.left()
        hints = None if retry_after_s is None else Hints(retry_after_s=retry_after_s)
        return self.throttle.limited(now(), sent, hints)

    def count(self, start_s: float, end_s: float) -> int:
        return sum(start_s <= at < end_s for at, _ in self.through)

    @property
    def names(self) -> list[int]:
        return [name for _, name in self.through]


def now() -> float:
    return asyncio.get_running_loop().time()


def played(scene: Callable[[], Coroutine[Any, Any, Door]]) -> Door:
    return virtual.run(scene())


async def all_of(*doings: Awaitable[Any]) -> None:
    await asyncio.gather(*doings)


# --- order -------------------------------------------------------------------------------------------------------

PACES: dict[str, dict[str, Any]] = {
    "unbounded": {},
    "room": {"concurrency": 3},
    "requests": {"requests_per_s": 50.0},
    "slow requests": {"requests_per_s": 0.5},
    "tokens": {"tokens_per_s": 500.0},
    "all": {"concurrency": 3, "requests_per_s": 50.0, "tokens_per_s": 500.0},
}


@pytest.mark.parametrize("bounds", PACES.values(), ids=PACES.keys())
def test_first_come_first_served(bounds: dict[str, Any]) -> None:
    """Small and large requests leave in the order in which they came, whatever holds them up."""

    async def scene() -> Door:
        door = Door(Steady(**{"concurrency": 10_000, **bounds}))
        await all_of(*(door.one(n, tokens=900 if n % 7 == 3 else 10, takes_s=0.05) for n in range(60)))
        return door

    assert played(scene).names == list(range(60))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=30),
    st.sampled_from([1, 3, 100]),
    st.sampled_from([math.inf, 40.0, 3.0]),
    st.sampled_from([math.inf, 300.0]),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 2)), max_size=3),
)
def test_whatever_comes_leaves_in_order_within_its_bounds(
    comers: list[tuple[float, int, float]],
    room: int,
    requests_per_s: float,
    tokens_per_s: float,
    pauses: list[tuple[float, float]],
) -> None:
    """For any arrivals and pauses: nobody is lost, nobody overtakes, nobody leaves in a pause or beyond the room."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=room, requests_per_s=requests_per_s, tokens_per_s=tokens_per_s))
        came: list[int] = []
        most = 0

        async def come(name: int, at: float, tokens: int, takes_s: float) -> None:
            nonlocal most
            await asyncio.sleep(at)
            came.append(name)
            sent = await door.throttle.admit(tokens)
            most = max(most, door.throttle.in_flight)
            door.through.append((virtual.elapsed_s(), name))
            await asyncio.sleep(takes_s)
            door.answer(sent)

        held: list[tuple[float, float]] = []

        async def pause(at: float, seconds: float) -> None:
            await asyncio.sleep(at)
            held.append((virtual.elapsed_s(), virtual.elapsed_s() + seconds))
            door.throttle.pause(now() + seconds, "cooldown")

        await all_of(
            *(come(n, *comer) for n, comer in enumerate(comers)), *(pause(at, seconds) for at, seconds in pauses)
        )
        assert door.names == came
        assert most <= room
        for begin, end in held:
            assert door.count(begin + 1e-4, end) == 0
        assert door.throttle.in_flight == 0
        return door

    assert len(played(scene).through) == len(comers)


# --- pauses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", PACES.values(), ids=PACES.keys())
def test_nobody_slips_into_a_pause(bounds: dict[str, Any]) -> None:
    """A pause that begins while somebody waits for tokens, for a request or for room holds that one, too."""

    async def scene() -> Door:
        door = Door(Steady(**{"concurrency": 10_000, **bounds}))
        crowd = asyncio.gather(*(door.one(n, takes_s=0.02) for n in range(80)))
        await asyncio.sleep(0.305)
        door.throttle.pause(now() + 5, "cooldown")
        await crowd
        return door

    assert played(scene).count(0.3051, 5.305) == 0


def test_a_longer_pause_extends_and_a_shorter_one_does_not_cut() -> None:
    """Pauses never add up and never shrink: the latest end stands."""

    async def scene() -> Door:
        door = Door()
        for seconds in (5, 2, 7, 1):
            door.throttle.pause(now() + seconds, "cooldown")
        waiting = asyncio.gather(*(door.one(n) for n in range(5)))
        await asyncio.sleep(6)
        door.throttle.pause(now() + 4, "cooldown")
        await waiting
        return door

    door = played(scene)
    assert [round(at, 2) for at, _ in door.through] == [10.0] * 5


def test_a_pause_is_told_with_its_length() -> None:
    """What people are told of: a cooldown of a second or more, once, with its seconds."""

    async def scene() -> Door:
        door = Door()
        door.throttle.pause(now() + 0.5, "cooldown")
        door.throttle.pause(now() + 5, "cooldown")
        door.throttle.pause(now() + 4, "cooldown")
        assert "cooldown" in door.throttle.state()
        await door.one(1)
        assert door.throttle.state() == ""
        return door

    door = played(scene)
    assert door.notes == [("cooldown", {"seconds": 5.0})]
    assert door.throttle.lost_s["cooldown"] == pytest.approx(5, abs=0.01)


def test_after_a_429_the_pace_says_how_long_and_nobody_leaves() -> None:
    """The pause is the pace's; without a Retry-After it is the pace's own."""

    async def scene() -> Door:
        door = Door()
        for retry_after_s in (3.0, None):
            sent = await door.throttle.admit(10)
            assert door.refuse(sent, retry_after_s) is None
            await door.one(0)
        return door

    door = played(scene)
    assert [round(at, 2) for at, _ in door.through] == [3.0, 4.0]
    assert door.pace.ends == {"limited": 2, "answered": 2}


# --- a wait too long ---------------------------------------------------------------------------------------------


def test_a_huge_retry_after_is_waited_so_long_then_one_goes() -> None:
    """Of 20 that wait, one leaves after --max-wait; the others follow when it was answered, not before."""

    async def scene() -> Door:
        door = Door(max_wait_s=100)
        assert door.refuse(await door.throttle.admit(10), 1e9) is None
        await all_of(*(door.one(n, takes_s=5) for n in range(20)))
        return door

    times = [round(at, 1) for at, _ in played(scene).through]
    assert times[0] == 100
    assert times[1:] == [105] * 19


def test_a_429_to_the_probe_is_the_end() -> None:
    """The second 429, to a request sent after the wait, stops the run with 5."""

    async def scene() -> Door:
        door = Door(max_wait_s=100)
        assert door.refuse(await door.throttle.admit(10), 1e9) is None
        halt = door.refuse(await door.throttle.admit(10), 1.0)
        assert halt is not None
        assert halt.exit_code == 5
        assert virtual.elapsed_s() >= 100
        return door

    played(scene)


def test_late_429s_of_the_same_storm_are_no_answer_to_the_probe() -> None:
    """Requests that were in flight when the huge Retry-After came bring the same 429: the probe is still to be sent."""

    async def scene() -> Door:
        door = Door(max_wait_s=100)
        flying = [await door.throttle.admit(10) for _ in range(5)]
        assert [door.refuse(sent, 1e9) for sent in flying] == [None] * 5
        await all_of(*(door.one(n, takes_s=5) for n in range(3)))
        return door

    assert [round(at) for at, _ in played(scene).through] == [100, 105, 105]


def test_nothing_but_429_for_max_wait_is_the_end() -> None:
    """429 after 429, each with a short wait: at --max-wait it ends; an answer in between starts the count anew."""

    async def scene() -> Door:
        door = Door(max_wait_s=100)
        for answered_between in (True, False):
            began = virtual.elapsed_s()
            while virtual.elapsed_s() - began < 90:
                assert door.refuse(await door.throttle.admit(10), 9.0) is None
            if answered_between:
                await door.one(0)
        while (halt := door.refuse(await door.throttle.admit(10), 9.0)) is None:
            pass
        assert halt.exit_code == 5
        return door

    assert played(scene).through


def test_another_failure_between_429s_is_not_nothing_but_429() -> None:
    """A 400 among the 429s shows that requests get through: the wait counts from there."""

    async def scene() -> Door:
        door = Door(max_wait_s=100)
        assert door.refuse(await door.throttle.admit(10), 60.0) is None
        sent = await door.throttle.admit(10)
        door.throttle.left()
        door.throttle.failed(now(), sent)
        assert door.refuse(await door.throttle.admit(10), 60.0) is None
        assert door.refuse(await door.throttle.admit(10), 60.0) is None
        return door

    played(scene)


# --- rates -------------------------------------------------------------------------------------------------------


async def crowd_for(door: Door, seconds: float, tokens: Callable[[int], int] = lambda _: 10) -> None:
    """As many as get through in so many seconds, each in no time."""
    end_s = virtual.elapsed_s() + seconds
    name = 0
    while virtual.elapsed_s() < end_s:
        await door.one(name, tokens=tokens(name))
        name += 1


@pytest.mark.parametrize("per_minute", [12, 60, 600, 9000])
def test_a_known_request_rate_is_used_up_and_kept(per_minute: int) -> None:
    """98 to 100 % of it is admitted in a minute, and no second of that minute takes more than its share and a grain."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, requests_per_s=per_minute / 60))
        await crowd_for(door, 60)
        return door

    door = played(scene)
    assert 0.98 * per_minute <= door.count(0, 60) <= per_minute + 1 + 0.01 * per_minute / 60
    share = per_minute / 60
    assert max(door.count(second, second + 1) for second in range(60)) <= share * 1.01 + 1


@pytest.mark.parametrize("late_s", [0.0005, 0.002])
@pytest.mark.parametrize("per_minute", [12, 600, 5700, 18000])
def test_a_loop_that_wakes_late_loses_no_rate_and_gains_none(
    per_minute: int, late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a timer came late is made good, once: 98 to 100 % is admitted on a loop that is busy, too."""
    monkeypatch.setattr(virtual, "TICK_S", late_s)

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, requests_per_s=per_minute / 60))
        await crowd_for(door, 60)
        return door

    assert 0.98 * per_minute <= played(scene).count(0, 60) <= per_minute + 1 + 0.01 * per_minute / 60


@pytest.mark.parametrize("waiters", [1, 50])
def test_a_known_token_rate_is_used_up_and_kept(waiters: int) -> None:
    """90,000 tokens a minute, requests of 10 to 900: 98 to 100 % of the tokens leave in a minute."""
    sizes = [10 + (n * 377) % 890 for n in range(5000)]

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, tokens_per_s=1500))
        crowd = [asyncio.ensure_future(crowd_for(door, 60, lambda n: sizes[n])) for _ in range(waiters)]
        await asyncio.gather(*crowd)
        return door

    door = played(scene)
    left = sum(sizes[name] for at, name in door.through if at < 60)
    assert 0.98 * 90_000 <= left <= 90_000 + 900


def test_requests_and_tokens_bind_together() -> None:
    """The slower of the two decides: 10 a second by requests, 5 by tokens, then 2 by requests."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, requests_per_s=10, tokens_per_s=500))
        await crowd_for(door, 20, lambda _: 100)
        door.pace.requests_per_s = 2
        await crowd_for(door, 20, lambda _: 100)
        return door

    door = played(scene)
    assert 98 <= door.count(0, 20) <= 102
    assert 39 <= door.count(20, 40) <= 42


@pytest.mark.parametrize("start", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("growth", [1.01, 0.995])
def test_a_rate_that_moves_is_followed(start: float, growth: float) -> None:
    """A pace that changes its rate with every request is obeyed as exactly as one that stands still: changing the
    rate gives nobody a free pass.
    """

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, requests_per_s=start))
        for n in range(200):
            await door.one(n)
            door.pace.requests_per_s *= growth
        return door

    door = played(scene)
    due_s = sum(1 / (start * growth**n) for n in range(199))
    assert door.through[-1][0] == pytest.approx(due_s, rel=0.02, abs=1 / start)


def test_a_rate_given_up_is_no_rate() -> None:
    """From a rate to none: whoever comes next does not wait."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, requests_per_s=1))
        await all_of(*(door.one(n) for n in range(3)))
        door.pace.requests_per_s = math.inf
        await all_of(*(door.one(n) for n in range(50)))
        return door

    door = played(scene)
    assert door.through[-1][0] == pytest.approx(2, abs=0.01)


def test_a_request_larger_than_the_whole_token_budget_goes_alone() -> None:
    """5,000 tokens at 1,000 a minute: it is sent, not queued for ever, and what comes after it waits till it is paid."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=10_000, tokens_per_s=1000 / 60))
        await all_of(door.one(0, tokens=100), door.one(1, tokens=5000), door.one(2, tokens=100))
        return door

    door = played(scene)
    assert door.names == [0, 1, 2]
    assert [round(at) for at, _ in door.through] == [0, 6, 306]


# --- room --------------------------------------------------------------------------------------------------------


def test_room_is_used_up_and_never_exceeded() -> None:
    """With room for 4 and 1 s each, 40 take 10 s."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=4))
        await all_of(*(door.one(n, takes_s=1) for n in range(40)))
        return door

    door = played(scene)
    assert [round(at) for at, _ in door.through] == [n // 4 for n in range(40)]
    assert door.throttle.lost_s["concurrency"] > 0


def test_room_that_grows_is_used_at_once() -> None:
    """When the pace allows more after an answer, those who wait come in with it."""

    async def scene() -> Door:
        door = Door(Steady(concurrency=1))
        waiting = asyncio.gather(*(door.one(n, takes_s=1) for n in range(9)))
        await asyncio.sleep(0.5)
        door.pace.concurrency = 4
        await waiting
        return door

    assert [round(at) for at, _ in played(scene).through] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


# --- room that several share ------------------------------------------------------------------------------------


def test_several_doors_share_their_room() -> None:
    """Three doors, together never more than 4 in flight, and none of them is starved."""

    async def scene() -> Door:
        slots = Slots(4)
        doors = [Door(slots=slots) for _ in range(3)]
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, sum(door.throttle.in_flight for door in doors))
                await asyncio.sleep(0.01)

        looking = asyncio.ensure_future(look())
        await all_of(*(door.one(n, takes_s=1) for n in range(20) for door in doors))
        looking.cancel()
        assert most == 4
        assert virtual.elapsed_s() == pytest.approx(15, abs=0.1)
        assert slots.taken == 0
        return doors[0]

    played(scene)


@pytest.mark.parametrize("why", ["pause", "outage", "cancelled"])
def test_shared_room_that_one_cannot_use_goes_to_another(why: str) -> None:
    """One door waits for shared room; when it comes, that door has to wait on: the room goes to the other door."""

    async def scene() -> Door:
        slots = Slots(1)
        held, free = Door(slots=slots), Door(slots=slots)
        sent = await held.throttle.admit(10)
        first = asyncio.ensure_future(held.one(1))
        second = asyncio.ensure_future(free.one(2))
        await asyncio.sleep(1)
        if why == "pause":
            held.throttle.pause(now() + 3600, "cooldown")
        elif why == "outage":
            down(held)
        held.answer(sent)
        if why == "cancelled":
            first.cancel()
        await asyncio.wait_for(second, 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return free

    assert played(scene).names == [2]


# --- leaving the queue -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", PACES.values(), ids=PACES.keys())
@pytest.mark.parametrize("who", [0, 1, 5])
def test_one_who_gives_up_hands_its_turn_on(bounds: dict[str, Any], who: int) -> None:
    """A waiter that is cancelled, wherever it stands, holds nobody up: all others get through."""

    async def scene() -> Door:
        door = Door(Steady(**{"concurrency": 10_000, **bounds}))
        door.throttle.pause(now() + 1, "cooldown")
        crowd = [asyncio.ensure_future(door.one(n, takes_s=0.1)) for n in range(10)]
        await asyncio.sleep(0.5)
        crowd[who].cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return door

    assert played(scene).names == [n for n in range(10) if n != who]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1.5))), min_size=1, max_size=20),
    st.sampled_from(sorted(PACES)),
)
def test_whoever_gives_up_the_others_get_through(leavers: list[tuple[float, float | None]], bounds: str) -> None:
    """For any arrivals and cancellations, at any moment: those who stay get through, and nothing is left in flight."""

    async def scene() -> Door:
        door = Door(Steady(**{"concurrency": 10_000, **PACES[bounds]}))

        async def come(name: int, at: float) -> None:
            await asyncio.sleep(at)
            await door.one(name, takes_s=0.05)

        crowd = [asyncio.ensure_future(come(n, at)) for n, (at, _) in enumerate(leavers)]
        for task, (_, leaves) in zip(crowd, leavers, strict=True):
            if leaves is not None:
                asyncio.get_running_loop().call_later(leaves, task.cancel)
        await asyncio.gather(*crowd, return_exceptions=True)
        assert {n for n, (_, leaves) in enumerate(leavers) if leaves is None} <= set(door.names)
        return door

    played(scene)


# --- an endpoint that is down ------------------------------------------------------------------------------------


def down(door: Door) -> None:
    """Ten failures of as many rows: the circuit opens."""
    for row in range(10):
        door.throttle.circuit.failed(row, now(), now())
    assert door.throttle.circuit.is_open


def test_while_the_endpoint_is_down_probes_leave_at_growing_intervals() -> None:
    """A crowd at the door: one leaves after half a second, the next ones ever later, at most 5 s apart."""

    async def scene() -> Door:
        door = Door()
        down(door)

        async def probe(name: int) -> None:
            sent = await door.throttle.admit(10)
            door.through.append((virtual.elapsed_s(), name))
            door.throttle.left()
            door.throttle.failed(now(), sent)

        crowd = [asyncio.ensure_future(probe(n)) for n in range(40)]
        await asyncio.sleep(60)
        assert door.throttle.state().startswith("endpoint down")
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return door

    times = [at for at, _ in played(scene).through]
    gaps = [b - a for a, b in pairwise(times)]
    assert 0.4 < times[0] < 0.7
    assert all(later >= earlier - 0.11 for earlier, later in pairwise(gaps))
    assert max(gaps) <= 5
    assert len(times) < 20


def test_probes_leave_one_by_one_at_growing_intervals() -> None:
    """Of an endpoint that swallows requests no probe comes back: the next one leaves all the same, ever later, so that
    the end of the outage is noticed within 5 s.
    """

    async def scene() -> Door:
        door = Door()
        down(door)
        crowd = [asyncio.ensure_future(door.one(n, takes_s=1000)) for n in range(40)]
        await asyncio.sleep(60)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return door

    times = [at for at, _ in played(scene).through]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 10 <= len(times) <= 20
    assert gaps == sorted(gaps[:4]) + gaps[4:]
    assert max(gaps) < 5


def test_when_it_answers_again_everybody_goes() -> None:
    """The first answer closes the circuit: the crowd at the door follows within a moment."""

    async def scene() -> Door:
        door = Door()
        down(door)
        crowd = asyncio.gather(*(door.one(n) for n in range(40)))
        await asyncio.sleep(2.02)
        door.throttle.circuit.answered(now())
        await crowd
        return door

    assert played(scene).through[-1][0] < 2.2


def test_a_circuit_that_opens_in_a_pause_is_heeded() -> None:
    """Whoever waits out a pause while the endpoint goes down leaves as a probe, not before its time."""

    async def scene() -> Door:
        door = Door()
        door.throttle.pause(now() + 3, "cooldown")
        first = asyncio.ensure_future(door.one(0))
        await asyncio.sleep(2.9)
        down(door)
        await first
        return door

    assert played(scene).through[0][0] >= 3.4


# --- how it is -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "at_once", "word"),
    [
        ({}, 3, ""),
        ({"requests_per_s": 10.0}, 3, "requests"),
        ({"tokens_per_s": 100.0}, 3, "tokens"),
        ({"requests_per_s": 10.0, "tokens_per_s": 1e9}, 3, "requests"),
        ({"requests_per_s": 1e5, "tokens_per_s": 100.0}, 3, "tokens"),
        ({"concurrency": 2}, 9, "concurrency"),
        ({"concurrency": 5}, 9, "workers"),
        ({"concurrency": 99}, 9, "workers"),
    ],
    ids=str,
)
def test_what_bounds_it_is_told_in_a_word(bounds: dict[str, Any], at_once: int, word: str) -> None:
    """As many requests of 100 tokens as want to leave, places for 5: what the next one waits for, and in `state` too."""

    async def play() -> None:
        pace = Steady(**{"concurrency": 8, **bounds})
        throttle = Throttle(cast("Pace", pace), max_wait_s=60, note=lambda *_, **__: None, slots=Slots(5))
        waiting = [asyncio.create_task(throttle.admit(100)) for _ in range(at_once)]
        await asyncio.sleep(0.05)
        assert throttle.bound() == word
        assert throttle.state().startswith(f"bound by {word}, " if word else "")
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    virtual.run(play())


def test_workers_that_are_all_out_are_time_lost_as_well() -> None:
    """Nobody stands at the door then: what is looked at in turn counts, and what ends first does."""

    async def play() -> None:
        throttle = Throttle(
            cast("Pace", Steady(concurrency=2)), max_wait_s=60, note=lambda *_, **__: None, slots=Slots(2)
        )
        for _ in range(2):
            await throttle.admit(1)
        throttle.look(0.5)
        throttle.left()
        throttle.look(0.5)
        assert throttle.lost_s == {"workers": 0.5}

    virtual.run(play())


def test_a_pause_and_an_outage_come_before_all_else() -> None:
    """In a cooldown, and in an outage of this limit or of its endpoint, nothing else is what bounds."""

    async def play() -> None:
        endpoint = Circuit()
        throttle = Throttle(
            cast("Pace", Steady(concurrency=1)), max_wait_s=60, note=lambda *_, **__: None, endpoint=endpoint
        )
        await throttle.admit(1)
        assert throttle.bound() == "concurrency"
        throttle.pause(now() + 5, "cooldown")
        assert throttle.bound() == "cooldown"
        endpoint.shut(now())
        assert throttle.bound() == "outage"
        assert throttle.state() == "endpoint down for 0 s"

    virtual.run(play())
