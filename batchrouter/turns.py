"""Turns on the event loop: answers that arrive together are worked off a few at a time, so that timers, signals and
other requests never wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

_AT_ONCE: Final = 8  # about a millisecond of work


class Turns:
    """So many may go on in one turn of the loop; the others follow in the next ones, first come, first served. Turns in
    which nobody waits are not counted: each ninth then waits for one, for nothing.
    """

    __slots__ = ("_left", "_loop", "_waiting")

    def __init__(self) -> None:
        self._left: float = _AT_ONCE
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Until the caller may go on."""
        if self._left > 0:
            self._left -= 1
            return
        if not self._waiting:
            self._loop.call_soon(self._begin)
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self) -> None:
        self._left = max(self._left, _AT_ONCE)
        while self._waiting and self._left > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._left -= 1
        if self._waiting:
            self._loop.call_soon(self._begin)

    def end(self) -> None:
        """From now on everybody goes on at once."""
        self._left = float("inf")
        self._begin()
