"""What a command costs: wall, CPU and peak memory of a process of its own; alternated, repeated, as medians and ratios.

Rules of this file: nothing heavy is imported, as a child's peak begins at its parent's; a process is ended by its id; a
figure comes with how often it was taken and how far apart the takes were.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")

KEY = "sk-0123456789abcdefghij"  # none; in no answer either, as it would be taken out of it


class Failed(Exception):  # noqa: N818  (a finding about a command)
    """A command that did not do what it was measured for; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took, its children that it waited for included."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    started_s: float
    exit_code: int


class Process:
    """A command under way. `wait` gives its cost, once."""

    def __init__(self, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._command = command
        with log.open("wb") as output:
            self.started_s = time.monotonic()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env or environment()
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended (waited for or not)."""
        if self._process.returncode is not None:
            return False
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; nothing happens when it has ended and was waited for."""
        if self._process.returncode is None:
            os.kill(self._process.pid, number)

    def wait(self, timeout_s: float) -> Cost:
        """Its cost, when it has ended; it is killed when it has not after so long."""
        timer = threading.Timer(timeout_s, self.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
            wall_s = time.monotonic() - self.started_s
        finally:
            timer.cancel()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime
        return Cost(wall_s, cpu_s, usage.ru_maxrss / 1024, self.started_s, self._process.returncode)

    def last_words(self) -> str:
        """The end of what it printed."""
        return self._log.read_bytes()[-2000:].decode("utf-8", "replace").strip()

    def failed(self, why: str) -> Failed:
        """The finding that it did not do its work."""
        return Failed(f"{Path(self._command[0]).name} {why}: {self.last_words()[-400:]}")


def environment() -> dict[str, str]:
    """Ours, for children: a key that is none, compiled files kept as any user has them, no settings from outside."""
    dropped = ("BATCHROUTER_", "WORLDROUTER_", "OPENAI_", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "WORLDROUTER_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}


def run(command: Sequence[str], log: Path, *, timeout_s: float) -> Cost:
    """Run a command to its end; raises Failed unless it exits with 0."""
    process = Process(command, log)
    cost = process.wait(timeout_s)
    if cost.exit_code != 0:
        raise process.failed(f"ended with {cost.exit_code} after {cost.wall_s:.1f} s")
    return cost


class Spread(NamedTuple):
    """The median of several takes, and the lowest and highest of them."""

    median: float
    low: float
    high: float
    takes: int

    def show(self, digits: int = 2) -> str:
        """`1.23 (1.20-1.31)`, or the one take."""
        middle = f"{self.median:,.{digits}f}"
        return middle if self.takes == 1 else f"{middle} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Several takes as one figure."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours against theirs, take by take as they were made side by side."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


class Clock:
    """How much of the time that everything may take is left."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds
        self._began_s = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self._end_s - time.monotonic()

    @property
    def passed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began_s


def rounds(takes: Mapping[str, Callable[[], _T]], *, most: int, budget_s: float) -> dict[str, list[_T]]:
    """Take each measure in turn, in alternating order, `most` times or until another round would exceed the budget."""
    found: dict[str, list[_T]] = {name: [] for name in takes}
    began = time.monotonic()
    for number in range(most):
        order = list(takes)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            found[name].append(takes[name]())
        passed_s = time.monotonic() - began
        if passed_s * (number + 2) / (number + 1) > budget_s:
            break
    return found
