"""An event loop in virtual time: sleeping costs nothing, and a waiter that nobody wakes fails the test.

The selector never waits. Asked to wait for s seconds, it moves the loop's clock s ahead and returns. Every
select also ticks the clock by 1 us: code that computes "how long until it is due" in floats can round to a wait
that never ends on a clock that stands still. Asked to wait for ever, with nothing scheduled, it raises
`LostWakeUp`.

Work for threads (`asyncio.to_thread`, `run_in_executor`) is done at once on the loop's own thread: it takes no
virtual time and comes in the same order in every run. There is no I/O here: sockets and pipes never become ready.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 1e-6
STARTED_AT_S = 1_000.0
"""Not 0: code that takes 0 for "never" would pass at a clock that starts there."""


class LostWakeUp(AssertionError):  # noqa: N818  (it is what went wrong in the code under test, not in this loop)
    """Something waits and nothing is scheduled that could wake it: in real time this is a hang."""


class VirtualSelector(selectors.SelectSelector):
    """Moves its own clock in place of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = STARTED_AT_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise LostWakeUp(f"everything waits and nothing is scheduled, at {self.now_s - STARTED_AT_S:.6f} s")
        self.now_s += max(timeout, 0.0) + TICK_S
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`loop.time()` is virtual; see the module's docstring for what it does with threads."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(  # type: ignore[override]  # the base promises a future, as does this
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run(coro: Coroutine[Any, Any, T]) -> T:
    """What `coro` returns, run to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coro)


def elapsed_s() -> float:
    """Virtual seconds since the running loop's start."""
    return asyncio.get_running_loop().time() - STARTED_AT_S
