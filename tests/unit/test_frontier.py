"""What is asked next, in virtual time: due retries, then fresh rows; and the end is seen by everybody who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import virtual
from kit.scripted import request

from batchrouter.frontier import MOST_OUT_BYTES, MOST_WAITING_BYTES, Frontier, Job
from batchrouter.records import Request

BIG = MOST_WAITING_BYTES // 4 + 1
HUGE = MOST_OUT_BYTES // 4 + 1
LARGE = {size: bytes(size) for size in (1000, BIG, MOST_WAITING_BYTES + 1, HUGE)}


def now() -> float:
    return asyncio.get_running_loop().time()


def frontier(rows: int = 0, *, bytes_each: int | None = None) -> Frontier:
    return Frontier(iter([row(n, bytes_each) for n in range(rows)]))


def row(n: int, size: int | None = None) -> Request:
    return request(n) if size is None else request(n)._replace(body=LARGE[size])


async def drawn(of: Frontier) -> int:
    """The number of the next row; -1 for the end."""
    job = await of.next()
    return -1 if job is None else job.request.n


async def got(of: Frontier) -> Job:
    job = await of.next()
    assert job is not None
    return job


def played(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    virtual.run(scene())


async def idle(doing: Awaitable[Any]) -> asyncio.Future[Any]:
    """It, begun, and brought to where it waits."""
    future = asyncio.ensure_future(doing)
    await asyncio.sleep(0.001)
    assert not future.done()
    return future


def test_fresh_rows_come_in_order_and_then_the_end() -> None:
    """All rows once, in order; the end comes when the last one that was out has ended, not before."""

    async def scene() -> None:
        rows = frontier(3)
        jobs = [await got(rows) for _ in range(3)]
        assert [job.request.n for job in jobs] == [0, 1, 2]
        ending = await idle(drawn(rows))
        rows.done(jobs[0])
        rows.done(jobs[2])
        await asyncio.sleep(100)
        assert not ending.done()
        rows.done(jobs[1])
        assert await ending == -1
        assert await drawn(rows) == -1

    played(scene)


def test_an_empty_input_ends_at_once() -> None:
    """Nobody waits for rows that never were."""

    async def scene() -> None:
        assert await drawn(frontier()) == -1

    played(scene)


def test_a_retry_that_is_due_comes_before_fresh_rows() -> None:
    """Due: before them. Not yet due: fresh rows go on meanwhile."""

    async def scene() -> None:
        rows = frontier(5)
        job = await got(rows)
        rows.put_back(job, now() + 10)
        assert [await drawn(rows) for _ in range(2)] == [1, 2]
        await asyncio.sleep(10.1)
        assert await got(rows) is job
        assert await drawn(rows) == 3

    played(scene)


def test_retries_come_in_the_order_in_which_they_are_due() -> None:
    """Whatever order they were put back in; those due together come in the order of putting back."""

    async def scene() -> None:
        rows = frontier(6)
        jobs = [await got(rows) for _ in range(6)]
        for job, wait_s in zip(jobs, (5, 3, 9, 3, 1, 5), strict=True):
            rows.put_back(job, now() + wait_s)
        found = []
        for _ in range(6):
            job = await got(rows)
            found.append(job.request.n)
            rows.done(job)
        assert found == [4, 1, 3, 0, 5, 2]
        assert 9 <= virtual.elapsed_s() < 9.1

    played(scene)


def test_no_retry_comes_before_it_is_due() -> None:
    """An idle worker is woken when the first is due, also when an earlier one is put back while it sleeps."""

    async def scene() -> None:
        rows = frontier(2)
        first, second = await got(rows), await got(rows)
        rows.put_back(first, now() + 50)
        waiting = await idle(rows.next())
        rows.put_back(second, now() + 5)
        assert await waiting is second
        assert 5 <= virtual.elapsed_s() < 5.1
        assert await got(rows) is first
        assert 50 <= virtual.elapsed_s() < 50.1

    played(scene)


def test_several_due_at_once_wake_several() -> None:
    """Five workers idle, five retries due in the same moment: all five are at work then."""

    async def scene() -> None:
        rows = frontier(5)
        jobs = [await got(rows) for _ in range(5)]
        workers = [await idle(rows.next()) for _ in range(5)]
        due = now() + 7
        for job in jobs:
            rows.put_back(job, due)
        await asyncio.sleep(7.01)
        assert {worker.result().request.n for worker in workers} == set(range(5))

    played(scene)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_waiter_that_leaves_hands_its_turn_on(who: int) -> None:
    """A worker is cancelled in the very moment in which it was woken for a row: another one takes the row."""

    async def scene() -> None:
        rows = frontier(1)
        job = await got(rows)
        workers = [await idle(rows.next()) for _ in range(3)]
        rows.put_back(job, now() + 5)

        def leave() -> None:
            workers[who].cancel()

        asyncio.get_running_loop().call_at(now() + 5, leave)
        found = await asyncio.wait_for(asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED), 10)
        await asyncio.sleep(0.01)
        assert found
        assert [worker.result() for worker in workers if worker.done() and not worker.cancelled()] == [job]

    played(scene)


def test_the_end_wakes_everybody() -> None:
    """All who wait for a row learn that there is none any more."""

    async def scene() -> None:
        rows = frontier(1)
        job = await got(rows)
        workers = [await idle(drawn(rows)) for _ in range(20)]
        rows.done(job)
        assert await asyncio.gather(*workers) == [-1] * 20

    played(scene)


def test_close_hands_out_nothing_more() -> None:
    """After `close` fresh rows and due retries stay where they are; those who wait are let go."""

    async def scene() -> None:
        rows = frontier(5)
        job, other = await got(rows), await got(rows)
        rows.put_back(job, now())
        rows.close()
        assert await drawn(rows) == -1
        rows.put_back(other, now())
        assert await drawn(rows) == -1
        await asyncio.sleep(10)
        waiting = frontier(1)
        await got(waiting)
        worker = await idle(drawn(waiting))
        waiting.close()
        assert await worker == -1

    played(scene)


def test_a_row_that_was_done_can_be_added_again() -> None:
    """An excused failure comes back as long as some row is out."""

    async def scene() -> None:
        rows = frontier(2)
        first, second = await got(rows), await got(rows)
        rows.done(first)
        rows.add(first, now())
        rows.put_back(second, now())
        assert {(await got(rows)).request.n, (await got(rows)).request.n} == {0, 1}

    played(scene)


# --- memory ------------------------------------------------------------------------------------------------------


def test_what_waits_is_bounded_by_its_bytes() -> None:
    """Four rows that fill the bound: no fresh row is drawn until one of them has gone."""

    async def scene() -> None:
        rows = frontier(10, bytes_each=BIG)
        for wait_s in (100, 200, 300, 400):
            rows.put_back(await got(rows), now() + wait_s)
        worker = await idle(drawn(rows))
        await asyncio.sleep(50)
        assert not worker.done()
        assert await worker == 0
        assert await drawn(rows) == 4
        assert 100 <= virtual.elapsed_s() < 101

    played(scene)


def test_what_is_out_is_bounded_by_its_bytes() -> None:
    """Four rows that fill the bound are out: nobody gets a fifth, nor a retry that is due, until one has come back."""

    async def scene() -> None:
        rows = frontier(8, bytes_each=HUGE)
        jobs = [await got(rows) for _ in range(4)]
        workers = [await idle(drawn(rows)) for _ in range(3)]
        await asyncio.sleep(50)
        assert not any(worker.done() for worker in workers)
        rows.done(jobs[0])
        await asyncio.sleep(1)
        assert [worker.result() for worker in workers if worker.done()] == [4]
        rows.put_back(jobs[1], now())
        await asyncio.sleep(1)
        assert sum(worker.done() for worker in workers) == 2

    played(scene)


def test_a_row_larger_than_the_bound_goes_alone() -> None:
    """It is handed out where nothing else is out; the next one after it."""

    async def scene() -> None:
        rows = Frontier(iter([request(0)._replace(body=bytes(MOST_OUT_BYTES + 1)), row(1)]))
        large = await got(rows)
        other = await idle(drawn(rows))
        rows.done(large)
        assert await other == 1

    played(scene)


def test_the_bound_wakes_those_whom_it_stopped() -> None:
    """Eight workers stopped by the bound: when the row over it has gone, all of them have fresh rows at once."""

    async def scene() -> None:
        rows = Frontier(iter([row(0, MOST_WAITING_BYTES + 1), *map(row, range(1, 30))]))
        rows.put_back(await got(rows), now() + 5)
        workers = [await idle(drawn(rows)) for _ in range(8)]
        await asyncio.sleep(5)
        assert sorted(worker.result() for worker in workers if worker.done()) == list(range(8))

    played(scene)


@settings(max_examples=50)
@given(
    st.integers(0, 40),
    st.integers(1, 9),
    st.lists(st.lists(st.floats(0, 20), max_size=4), min_size=1, max_size=40),
    st.sampled_from([None, 1000, BIG, MOST_WAITING_BYTES + 1]),
    st.floats(0, 3),
)
def test_all_rows_come_to_their_end(
    rows: int, workers: int, waits: list[list[float]], size: int | None, takes_s: float
) -> None:
    """Any retries with any waits and any number of workers: every row ends, never twice at once, never too early."""

    async def scene() -> None:
        line = frontier(rows, bytes_each=size)
        ended: list[int] = []
        out: set[int] = set()
        due: dict[int, float] = {}

        async def work() -> None:
            while (job := await line.next()) is not None:
                n = job.request.n
                assert n not in out
                assert now() >= due.get(n, 0)
                out.add(n)
                job.attempts += 1
                await asyncio.sleep(takes_s)
                out.remove(n)
                mine = waits[n % len(waits)]
                if job.attempts <= len(mine):
                    due[n] = now() + mine[job.attempts - 1]
                    line.put_back(job, due[n])
                else:
                    ended.append(n)
                    line.done(job)

        await asyncio.gather(*(work() for _ in range(workers)))
        assert sorted(ended) == list(range(rows))

    played(scene)
