"""Two gates of a throttle: places for requests in flight, and a rate.

Rules of this file: first come, first served; a waiter leaves by being cancelled, and what it had is the next one's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from aiolimiter import AsyncLimiter

_BUCKET_S: Final = 0.01  # a rate's depth, in seconds of it: a few grains of the loop's timer


class Slots:
    """Places for requests in flight that several throttles share: at most `most` at once, first come, first served."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._called = 0  # places kept for who was woken and has not run yet
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_free(self) -> bool:
        """Whether there is a place for who did not stand in line."""
        return self.taken + self._called < self.most and not self._waiting

    async def wait(self) -> None:
        """Until there is a free place; it is the caller's as soon as it adds to `taken`, without awaiting between."""
        if self.is_free:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._called -= 1
                self.wake_one()
            raise
        self._called -= 1

    def wake_one(self) -> None:
        """Call the longest waiting, if there is a place."""
        while self._waiting and self.taken + self._called < self.most:
            turn = self._waiting.popleft()
            if not turn.done():
                self._called += 1
                turn.set_result(None)
                return


class Meter:
    """A rate, in seconds of the limit's own time: a request leaves as soon as those before it are paid for, however
    much it costs itself. What a timer came late, up to the bucket's depth, is made good.
    """

    def __init__(self) -> None:
        self._bucket = AsyncLimiter(_BUCKET_S, _BUCKET_S)

    async def pay(self, seconds: float) -> None:
        """Wait for a turn that costs so much (0: there is no limit)."""
        self._bucket.max_rate = _BUCKET_S + seconds
        await self._bucket.acquire(seconds)
