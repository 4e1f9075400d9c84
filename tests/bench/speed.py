"""CPU a row and rows a second: the product, the floor and the rivals, in turns, at the same number in flight.

Rules of this file: every take runs a client on two sizes; the difference of the two is what rows cost, free of what
starting costs, and the larger one as a whole is what a user sees. Ratios are of takes that were made side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from .bench import Bench
from .clients import FLOOR, FLOOR_UVLOOP, HAS_UVLOOP, PRODUCT, PRODUCT_UVLOOP, Client
from .measure import Failed, Spread, ratio, rounds, spread

AUTO: Final = 0


@dataclass(frozen=True, slots=True)
class Take:
    """One client once: per row between the two sizes, and the larger size as a whole."""

    cpu_ms: float
    rows_per_s: float
    whole_cpu_ms: float
    whole_rows_per_s: float
    peak_mb: float
    growth_kb: float


@dataclass(frozen=True, slots=True)
class Speed:
    """One client's takes beside the floor's of the same rounds."""

    name: str
    concurrency: int
    rows: int
    takes: Sequence[Take]
    floor: Sequence[Take]

    @property
    def cpu_ratio(self) -> Spread:
        """CPU a row against the floor."""
        return ratio([take.cpu_ms for take in self.takes], [take.cpu_ms for take in self.floor])

    @property
    def speed_ratio(self) -> Spread:
        """Rows a second against the floor."""
        return ratio([take.rows_per_s for take in self.takes], [take.rows_per_s for take in self.floor])

    def of(self, name: str) -> Spread:
        """A figure of the takes, by its name."""
        return spread([getattr(take, name) for take in self.takes])


def _take(bench: Bench, client: Client, concurrency: int, small: int, large: int, *, streamed: bool = False) -> Take:
    few, many = (
        client.send(
            bench.input(rows, streamed=streamed), bench.work, bench.endpoint.url, concurrency=concurrency, rows=rows
        )
        for rows in (small, large)
    )
    more = large - small
    return Take(
        cpu_ms=(many.cpu_s - few.cpu_s) / more * 1000,
        rows_per_s=more / max(many.wall_s - few.wall_s, 1e-3),
        whole_cpu_ms=many.cpu_s / large * 1000,
        whole_rows_per_s=large / many.wall_s,
        peak_mb=many.peak_mb,
        growth_kb=max(0.0, many.peak_mb - few.peak_mb) * 1024 / more,
    )


def warm_up(bench: Bench, clients: Sequence[Client]) -> dict[str, str]:
    """Run each on a few rows, so that compiled files are there; why those that cannot do it cannot."""
    problems = {}
    for client in clients:
        try:
            client.send(bench.input(100), bench.work, bench.endpoint.url, concurrency=8, rows=100)
        except (Failed, OSError) as error:
            problems[client.name] = str(error)
    return problems


def fit_to_machine(bench: Bench) -> None:
    """Choose sizes by how long the floor takes here."""
    take = _take(bench, FLOOR, 64, 200, 1_400)
    bench.fit(1 / take.rows_per_s)
    bench.tell(f"the floor does {take.rows_per_s:,.0f} rows/s here: up to {bench.large:,} rows a take")


def ours() -> list[Client]:
    """The product and the floor, with uvloop too where it is installed."""
    return [FLOOR, PRODUCT, *([FLOOR_UVLOOP, PRODUCT_UVLOOP] if HAS_UVLOOP else [])]


def compare(
    bench: Bench, concurrency: int, rivals: Mapping[str, tuple[Client, int]], *, takes: int, budget_s: float
) -> list[Speed]:
    """Everybody at one concurrency; a rival comes with by how much fewer rows it is measured."""
    small, large = bench.small, bench.large
    sizes = {client.name: (client, 1) for client in ours()} | dict(rivals)
    plans: dict[str, Callable[[], Take]] = {
        name: partial(_take, bench, client, concurrency, small // fewer, large // fewer)
        for name, (client, fewer) in sizes.items()
    }
    found = rounds(plans, most=takes, budget_s=budget_s)
    return [
        Speed(name, concurrency, large // sizes[name][1], takes, found[FLOOR.name]) for name, takes in found.items()
    ]


def compare_auto(bench: Bench, *, takes: int, budget_s: float) -> Speed:
    """The product with nothing given, beside the floor at 256."""
    small, large = bench.small, bench.large
    found = rounds(
        {
            "floor": partial(_take, bench, FLOOR, 256, small, large),
            "auto": partial(_take, bench, PRODUCT, AUTO, small, large),
        },
        most=takes,
        budget_s=budget_s,
    )
    return Speed("batchrouter", AUTO, large, found["auto"], found["floor"])


def streamed(bench: Bench, *, takes: int, budget_s: float) -> Speed:
    """Streamed rows beside the same number of plain ones by the floor, which cannot stream."""
    small, large = bench.small // 2, bench.large // 2
    found = rounds(
        {
            "floor": partial(_take, bench, FLOOR, 64, small, large),
            "streamed": partial(_take, bench, PRODUCT, 64, small, large, streamed=True),
        },
        most=takes,
        budget_s=budget_s,
    )
    return Speed("batchrouter, streamed", 64, large, found["streamed"], found["floor"])
