"""What every section of the benchmark works with: sizes, time, a place for files, an endpoint, somebody to tell."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .endpoint import Endpoint
from .inputs import ROW_BYTES, write_rows
from .measure import Clock, Failed

_LEAST_ROWS: Final = 1_200
_LEAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured, and within how many seconds.

    `large` rows are what a client is compared by, or fewer when the floor takes more than `large_s` for them; a quarter
    of it is the smaller size.
    """

    seconds: float
    large: int
    large_s: float
    takes: int
    rows: tuple[int, ...]
    most_rows: int
    kill_at: int
    concurrencies: tuple[int, ...]
    bodies: tuple[int, ...]
    is_full: bool


FULL: Final = Sizes(
    seconds=840,
    large=20_000,
    large_s=4.0,
    takes=5,
    rows=(1_000, 3_000, 10_000, 30_000, 100_000),
    most_rows=1_000_000,
    kill_at=120_000,
    concurrencies=(1, 4, 16, 64, 256, 1000),
    bodies=(500, 5_000, 50_000, 500_000, 1_000_000),
    is_full=True,
)
QUICK: Final = Sizes(
    seconds=100,
    large=4_000,
    large_s=0.6,
    takes=2,
    rows=(1_000, 3_000, 10_000),
    most_rows=30_000,
    kill_at=8_000,
    concurrencies=(1, 64, 256),
    bodies=(500, 50_000),
    is_full=False,
)


class Bench:
    """One benchmark under way."""

    def __init__(self, sizes: Sizes, work: Path, endpoint: Endpoint) -> None:
        self.sizes = sizes
        self.work = work
        self.endpoint = endpoint
        self.clock = Clock(sizes.seconds)
        self.large = sizes.large
        self._inputs: dict[tuple[int, int, bool], Path] = {}

    def input(self, rows: int, *, row_bytes: int = ROW_BYTES, streamed: bool = False) -> Path:
        """A file of such rows; made once."""
        key = (rows, row_bytes, streamed)
        if key not in self._inputs:
            path = self.work / f"rows-{rows}-{row_bytes}{'-streamed' if streamed else ''}.jsonl"
            self._inputs[key] = write_rows(path, rows, row_bytes=row_bytes, streamed=streamed)
        return self._inputs[key]

    @property
    def small(self) -> int:
        """The smaller of the two sizes by which clients are compared."""
        return self.large // 4

    def fit(self, row_s: float) -> None:
        """Choose sizes for a machine on which the floor takes so long for a row."""
        most = int(self.sizes.large_s / row_s) // 400 * 400
        self.large = max(_LEAST_ROWS, min(self.sizes.large, most))

    def share(self, part: float) -> float:
        """A part of all the time there is; raises Failed when there is hardly any left."""
        seconds = min(part * self.sizes.seconds, self.clock.left_s)
        if seconds < _LEAST_S:
            raise Failed("time ran out")
        return seconds

    def tell(self, text: str) -> None:
        """A line for whoever waits."""
        sys.stderr.write(f"{self.clock.passed_s:6.1f} s  {text}\n")
        sys.stderr.flush()
