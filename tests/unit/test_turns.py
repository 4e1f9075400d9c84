"""A few go on in each turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kit import virtual

from batchrouter.turns import Turns

Act = Callable[[Turns, list[asyncio.Task[None]]], Awaitable[None]]


async def went_on(count: int, act: Act | None = None) -> list[list[int]]:
    """Who of `count` went on in each turn of the loop."""
    turns, current, seen = Turns(), list[int](), list[list[int]]()

    async def work(n: int) -> None:
        await turns.wait()
        current.append(n)

    tasks = [asyncio.create_task(work(n)) for n in range(count)]
    await asyncio.sleep(0)
    if act is not None:
        await act(turns, tasks)
    while not all(task.done() for task in tasks):
        seen.append(current[:])
        current.clear()
        await asyncio.sleep(0)
    return [*filter(None, [*seen, current])]


def test_those_who_come_together_go_on_a_few_at_a_time() -> None:
    """Twenty at once: eight, eight and four, in the order in which they came."""
    assert virtual.run(went_on(20)) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_few_wait_for_nobody() -> None:
    """As many as may go on in a turn do, in the one in which they came."""
    assert virtual.run(went_on(8)) == [list(range(8))]


def test_who_leaves_takes_nobodys_place() -> None:
    """Cancelled while they wait: the others go on as if those had never come."""

    async def cancel(_: Turns, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks[8:14]:
            task.cancel()

    assert virtual.run(went_on(22, cancel)) == [list(range(8)), list(range(14, 22))]


def test_at_the_end_all_go_on() -> None:
    """Whoever waits, and whoever comes later."""

    async def end(turns: Turns, _: list[asyncio.Task[None]]) -> None:
        turns.end()

    assert [len(group) for group in virtual.run(went_on(40, end))] == [8, 32]
    assert virtual.run(came_later()) == 30


async def came_later() -> int:
    """How many of thirty go on, in one turn, after the end."""
    turns = Turns()
    turns.end()
    tasks = [asyncio.create_task(turns.wait()) for _ in range(30)]
    await asyncio.sleep(0)
    return sum(task.done() for task in tasks)
