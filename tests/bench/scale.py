"""What grows with the rows: memory, the time to the first request, what a kill costs; and bodies of 50 MB.

Rules of this file: the big run is killed by SIGKILL in its middle, started again, and once more when it has ended;
where time runs out it is stopped cleanly, and what was reached is told.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from .bench import Bench
from .clients import product_command
from .endpoint import Endpoint
from .inputs import count_lines
from .measure import Cost, Failed, Process

_POLL_S: Final = 0.05
_STOP_S: Final = 60.0
_IN_FLIGHT: Final = 64
_LEAST_S: Final = 20.0
HEAVY_ROWS: Final = 8
HEAVY_BYTES: Final = 50_000_000


class Point(NamedTuple):
    """One run of the product over so many rows, from nothing to the end."""

    rows: int
    rows_per_s: float
    cpu_ms: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Big:
    """The big run: fresh, killed, resumed, and started again when it was finished. None: not come to."""

    rows: int
    answered: int
    sent: int
    fresh_s: float | None
    resumed_s: float | None
    finished_s: float | None
    killed_at: int
    peak_mb: float
    rows_per_s: float
    cpu_ms: float


def by_rows(bench: Bench, *, budget_s: float) -> list[Point]:
    """The product over inputs of growing length, as long as there is time."""
    points: list[Point] = []
    began = bench.clock.passed_s
    for rows in bench.sizes.rows:
        if points and bench.clock.passed_s - began + rows / points[-1].rows_per_s > budget_s:
            break
        cost = _whole_run(bench, bench.input(rows), bench.endpoint.url, rows)
        points.append(Point(rows, rows / cost.wall_s, cost.cpu_s / rows * 1000, cost.peak_mb))
    return points


def _whole_run(bench: Bench, source: Path, url: str, rows: int, concurrency: int = 64) -> Cost:
    directory = bench.work / "out"
    shutil.rmtree(directory, ignore_errors=True)
    process = Process(product_command(source, directory, url, concurrency), bench.work / "run.log")
    cost = process.wait(max(60.0, bench.clock.left_s))
    answered = count_lines(directory / "results.jsonl")
    shutil.rmtree(directory, ignore_errors=True)
    if cost.exit_code != 0 or answered != rows:
        raise process.failed(f"ended with {cost.exit_code}, {answered:,} of {rows:,} rows answered")
    return cost


class _BigRun:
    """The stages of the big run over one directory."""

    def __init__(self, bench: Bench, rows: int) -> None:
        self._bench = bench
        self._rows = rows
        self._directory = bench.work / "big"
        self._command = product_command(bench.input(rows), self._directory, bench.endpoint.url, _IN_FLIGHT)
        self.sent = 0
        self.peak_mb = 0.0

    def start(self, *options: str) -> Process:
        """The same command, whatever there is already."""
        self._bench.endpoint.reset()
        return Process([*self._command, *options], self._bench.work / "big.log")

    def finished_s(self, limit: int | None) -> float | None:
        """Seconds that a start with nothing to do takes; where rows are left, one that is limited to those before."""
        if limit is not None and limit <= 0:
            return None
        process = self.start() if limit is None else self.start("--limit", str(limit))
        cost = self.end(process, _STOP_S)
        return cost.wall_s if cost.exit_code == 0 else None

    def first_request(self, process: Process, within_s: float) -> float | None:
        """Seconds from the start to the first request that arrived."""
        self._until(process, lambda: self._bench.endpoint.seen().requests > 0, within_s)
        first_s = self._bench.endpoint.seen().first_request_s
        return None if first_s is None else first_s - process.started_s

    def until_answered(self, process: Process, rows: int, within_s: float) -> None:
        """Wait for so many requests."""
        self._until(process, lambda: self._bench.endpoint.seen().requests >= rows, within_s)

    def _until(self, process: Process, come: Callable[[], bool], within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s and process.is_running and not come():
            time.sleep(_POLL_S)

    def end(self, process: Process, within_s: float) -> Cost:
        """Let it end by itself, or cleanly when the time is over."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s and process.is_running:
            time.sleep(_POLL_S)
        process.kill(signal.SIGINT)
        return self.count(process.wait(_STOP_S))

    def count(self, cost: Cost) -> Cost:
        """Take note of what a start has cost."""
        self.sent += self._bench.endpoint.seen().requests
        self.peak_mb = max(self.peak_mb, cost.peak_mb)
        return cost

    @property
    def answered(self) -> int:
        """Rows in the log."""
        return count_lines(self._directory / "results.jsonl")


def big_run(bench: Bench, *, budget_s: float) -> Big:
    """Fresh, killed, resumed, finished, started again; raises Failed when a row was lost or asked twice needlessly."""
    rows = bench.sizes.most_rows
    run = _BigRun(bench, rows)
    end_s = time.monotonic() + max(_LEAST_S, budget_s - _LEAST_S)
    bench.tell(f"{rows:,} rows: fresh, until it is killed")
    process = run.start()
    fresh_s = run.first_request(process, end_s - time.monotonic())
    run.until_answered(process, bench.sizes.kill_at, end_s - time.monotonic())
    process.kill()
    first = run.count(process.wait(_STOP_S))
    killed_at = run.answered
    bench.tell(f"{rows:,} rows: resumed at {killed_at:,}")
    process = run.start()
    resumed_s = run.first_request(process, end_s - time.monotonic())
    second = run.end(process, end_s - time.monotonic())
    answered = run.answered
    finished_s = run.finished_s(None if answered == rows else answered - _IN_FLIGHT)
    _audit(answered, run.sent, rows)
    cpu_s, wall_s = first.cpu_s + second.cpu_s, first.wall_s + second.wall_s
    speed, cpu_ms = answered / wall_s, cpu_s / max(answered, 1) * 1000
    return Big(rows, answered, run.sent, fresh_s, resumed_s, finished_s, killed_at, run.peak_mb, speed, cpu_ms)


def _audit(answered: int, sent: int, rows: int) -> None:
    """What was sent and not answered is at most what was in flight at the two ends."""
    if answered > rows or sent - answered > 2 * _IN_FLIGHT:
        raise Failed(f"{sent:,} requests were sent for {answered:,} answers of {rows:,} rows")


def heavy(bench: Bench) -> dict[str, float]:
    """Peak memory, in MB, of 8 answers and of 8 requests of 50 MB at once."""
    with Endpoint("--answer-bytes", str(HEAVY_BYTES)) as endpoint:
        answers = _whole_run(bench, bench.input(HEAVY_ROWS), endpoint.url, HEAVY_ROWS, HEAVY_ROWS)
    source = bench.input(HEAVY_ROWS, row_bytes=HEAVY_BYTES)
    requests = _whole_run(bench, source, bench.endpoint.url, HEAVY_ROWS, HEAVY_ROWS)
    source.unlink()
    return {"answers": answers.peak_mb, "requests": requests.peak_mb}
