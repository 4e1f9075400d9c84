"""How rows a second and memory change with the number in flight and with the size of a body, beside the floor's."""

from __future__ import annotations

from typing import Final, NamedTuple

from .bench import Bench
from .clients import FLOOR, PRODUCT, Client
from .inputs import ROW_BYTES
from .measure import Cost, ratio, rounds, spread

_BODY_BYTES_A_RUN: Final = 60_000_000
_LEAST_ROWS: Final = 40
_TAKES: Final = 3
_STEP_S: Final = 10.0


class Step(NamedTuple):
    """The product and the floor over the same rows: `at` is the number in flight, or a body's bytes."""

    at: int
    rows: int
    rows_per_s: float
    floor_rows_per_s: float
    cpu_ratio: float
    peak_mb: float


def by_concurrency(bench: Bench, *, budget_s: float) -> list[Step]:
    """From one request in flight to a thousand."""
    rows = bench.small
    steps: list[Step] = []
    end = bench.clock.left_s - budget_s
    for concurrency in bench.sizes.concurrencies:
        if bench.clock.left_s < end:
            break
        steps.append(_step(bench, concurrency, rows=rows, row_bytes=ROW_BYTES, concurrency=concurrency))
    return steps


def by_body(bench: Bench, *, budget_s: float) -> list[Step]:
    """From bodies of 500 bytes to a megabyte; as many rows as make 60 MB."""
    steps: list[Step] = []
    end = bench.clock.left_s - budget_s
    for size in bench.sizes.bodies:
        if bench.clock.left_s < end:
            break
        rows = min(bench.small, max(_LEAST_ROWS, _BODY_BYTES_A_RUN // size))
        steps.append(_step(bench, size, rows=rows, row_bytes=size, concurrency=64))
    return steps


class _Net(NamedTuple):
    """One run without what a run of one row costs."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def _net(bench: Bench, client: Client, rows: int, row_bytes: int, concurrency: int) -> _Net:
    few, many = (_send(bench, client, count, row_bytes, concurrency) for count in (1, rows))
    return _Net(max(many.wall_s - few.wall_s, 1e-3), max(many.cpu_s - few.cpu_s, 1e-3), many.peak_mb)


def _send(bench: Bench, client: Client, rows: int, row_bytes: int, concurrency: int) -> Cost:
    source = bench.input(rows, row_bytes=row_bytes)
    return client.send(source, bench.work, bench.endpoint.url, concurrency=concurrency, rows=rows)


def _step(bench: Bench, at: int, *, rows: int, row_bytes: int, concurrency: int) -> Step:
    found = rounds(
        {
            "ours": lambda: _net(bench, PRODUCT, rows, row_bytes, concurrency),
            "floor": lambda: _net(bench, FLOOR, rows, row_bytes, concurrency),
        },
        most=_TAKES,
        budget_s=_STEP_S,
    )
    ours, floor = found["ours"], found["floor"]
    return Step(
        at,
        rows,
        spread([rows / net.wall_s for net in ours]).median,
        spread([rows / net.wall_s for net in floor]).median,
        ratio([net.cpu_s for net in ours], [net.cpu_s for net in floor]).median,
        spread([net.peak_mb for net in ours]).median,
    )
