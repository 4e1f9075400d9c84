"""A run's handle for whoever stops it from outside: signal handlers, and programs that use the library."""

from __future__ import annotations

import asyncio
from typing import Protocol

from batchrouter.records import Halt


class Stoppable(Protocol):
    """What is stopped, once it is there (`Runner`)."""

    def stop(self, halt: Halt) -> None:
        """Admit nothing more; what is in flight may finish within the grace."""
        ...

    def abort(self) -> None:
        """End what is in flight, too."""
        ...


class Stopped(Exception):  # noqa: N818  (it is what was asked for)
    """The run was asked to stop before anything was sent."""


class Control:
    """A handle on a run from outside, for signal handlers: `stop` once, `abort` when it must end now."""

    def __init__(self) -> None:
        self._runner: Stoppable | None = None
        self._halt: Halt | None = None
        self._aborted = False
        self.stopping = asyncio.Event()

    def stop(self, halt: Halt) -> None:
        """Admit nothing more, finish what is in flight within the grace, and end with `halt`."""
        self._halt = self._halt or halt
        self.stopping.set()
        if self._runner is not None:
            self._runner.stop(self._halt)

    def abort(self) -> None:
        """End at once; what has arrived is recorded."""
        self._aborted = True
        if self._runner is not None:
            self._runner.abort()

    @property
    def halt(self) -> Halt | None:
        """Why the run was asked to stop, if it was."""
        return self._halt

    def check(self) -> None:
        """Raise Stopped when the run was asked to stop."""
        if self._halt is not None:
            raise Stopped

    def attach(self, runner: Stoppable) -> None:
        """Hand over the runner; what was asked for before is asked of it now."""
        self._runner = runner
        if self._halt is not None:
            runner.stop(self._halt)
        if self._aborted:
            runner.abort()
