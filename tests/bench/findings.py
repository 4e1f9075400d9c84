"""All that was measured, and whether it is what the project wants of itself.

Rules of this file: a goal that could not be measured is not met, and says why. Goals in seconds or milliseconds were
set on a machine on which the floor costs 0.107 ms of CPU a row and an empty Python 10 ms: a slower machine is told from
a slower product by what those two cost here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .clients import FLOOR, PRODUCT, PRODUCT_UVLOOP
from .measure import Spread
from .scale import Big, Point
from .speed import Speed
from .sweep import Step
from .waiting import Help, Lag

REFERENCE_FLOOR_MS: Final = 0.107
RIVALS: Final = ("openai", "lm-deluge", "flexllm")
_TEN_THOUSAND: Final = 10_000


@dataclass(slots=True)
class Findings:
    """Filled section by section; `skipped` says of what is missing why it is."""

    speeds: list[Speed] = field(default_factory=list)
    auto: Speed | None = None
    streamed: Speed | None = None
    points: Sequence[Point] = ()
    big: Big | None = None
    heavy: dict[str, float] = field(default_factory=dict)
    lags: Sequence[Lag] = ()
    help: Help | None = None
    concurrency: Sequence[Step] = ()
    bodies: Sequence[Step] = ()
    rivals_missing: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def speed(self, name: str, concurrency: int) -> Speed | None:
        """What was found of a client."""
        return next((it for it in self.speeds if it.name == name and it.concurrency == concurrency), None)

    @property
    def slowness(self) -> float:
        """How many times the reference machine's time this one takes for the same work."""
        floor = self.speed(FLOOR.name, 64)
        return floor.of("cpu_ms").median / REFERENCE_FLOOR_MS if floor else 1.0

    def peak_at(self, rows: int) -> float | None:
        """Peak memory over so many rows."""
        if self.big is not None and self.big.rows == rows and self.big.answered == rows:
            return self.big.peak_mb
        return next((point.peak_mb for point in self.points if point.rows == rows), None)


class Goal(NamedTuple):
    """One goal: what was wanted, what was found, and the verdict."""

    name: str
    wanted: str
    found: str
    verdict: str


def goals(findings: Findings) -> list[Goal]:
    """The project's goals of speed, each with its verdict."""
    return [
        _cpu(findings, PRODUCT.name, 64, 1.25),
        _cpu(findings, PRODUCT.name, 256, 1.35),
        _cpu(findings, PRODUCT_UVLOOP.name, 64, 1.0),
        _rivals(findings),
        _memory(findings),
        _growth(findings),
        _time(findings, "first request, fresh", lambda big: big.fresh_s, 8.0),
        _time(findings, "first request, resumed", lambda big: big.resumed_s, 2.0),
        _time(findings, "a finished run says so", lambda big: big.finished_s, 2.0),
        _lag(findings),
        _help(findings),
    ]


def _verdict(*, met: bool) -> str:
    return "met" if met else "**not met**"


def _unmeasured(name: str, wanted: str) -> Goal:
    return Goal(name, wanted, "not measured", "**not shown**")


def _cpu(findings: Findings, client: str, concurrency: int, most: float) -> Goal:
    name = f"{client}: CPU a row against the floor without uvloop, {concurrency} in flight"
    speed = findings.speed(client, concurrency)
    if speed is None:
        return _unmeasured(name, f"<= {most}")
    found = speed.cpu_ratio
    return Goal(name, f"<= {most}", f"{found.show()} times", _verdict(met=found.median <= most))


def _rivals(findings: Findings) -> Goal:
    name, wanted = "rows/s against the fastest rival measured here", ">= 2 times"
    product = findings.speed(PRODUCT.name, 64)
    rivals = [speed for rival in RIVALS if (speed := findings.speed(rival, 64)) is not None]
    if product is None or not rivals:
        return _unmeasured(name, wanted)
    fastest = max(rivals, key=lambda rival: rival.of("rows_per_s").median)
    times = product.of("rows_per_s").median / fastest.of("rows_per_s").median
    return Goal(name, wanted, f"{times:.1f} times {fastest.name}", _verdict(met=times >= 2))


def _memory(findings: Findings) -> Goal:
    peak = findings.peak_at(_TEN_THOUSAND)
    if peak is None:
        return _unmeasured("peak memory at 10,000 rows", "<= 80 MB")
    return Goal("peak memory at 10,000 rows", "<= 80 MB", f"{peak:.0f} MB", _verdict(met=peak <= 80))


def _growth(findings: Findings) -> Goal:
    big = findings.big
    rows = big.rows if big else 1_000_000
    name, wanted = f"peak memory at {rows:,} rows against 10,000", "<= 1.1 times"
    base = findings.peak_at(_TEN_THOUSAND)
    if big is None or base is None:
        return _unmeasured(name, wanted)
    found = f"{big.peak_mb / base:.2f} times ({big.peak_mb:.0f} MB)"
    if big.answered < rows:
        found += f", {big.answered:,} rows come to"
    return Goal(name, wanted, found, _verdict(met=big.peak_mb <= 1.1 * base))


def _time(findings: Findings, what: str, take: Callable[[Big], float | None], most_s: float) -> Goal:
    big = findings.big
    name, wanted = f"{big.rows if big else 1_000_000:,} rows: {what}", f"<= {most_s:g} s"
    found_s = take(big) if big else None
    if found_s is None:
        return _unmeasured(name, wanted)
    return Goal(name, wanted, f"{found_s:.1f} s", _scaled(findings, found_s, most_s))


def _scaled(findings: Findings, found: float, most: float) -> str:
    """The verdict on a time: as it is, or as it would be at the reference's speed."""
    if found <= most:
        return "met"
    slowness = findings.slowness
    if found / slowness <= most:
        return f"met at the reference's speed (this machine took {slowness:.1f} times as long)"
    return "**not met**"


def _lag(findings: Findings) -> Goal:
    name, wanted = "event loop's lateness at full speed, p99, 64 in flight", "<= 20 ms"
    lag: Lag | None = next((lag for lag in findings.lags if lag.name == "64 in flight"), None)
    if lag is None:
        return _unmeasured(name, wanted)
    return Goal(name, wanted, f"{lag.p99_ms.show(1)} ms", _scaled(findings, lag.p99_ms.median, 20))


def _help(findings: Findings) -> Goal:
    name, wanted = "`batchrouter --help`: CPU against an empty Python", "<= 6 times (60 ms where that takes 10)"
    if findings.help is None:
        return _unmeasured(name, wanted)
    found: Spread = findings.help.ratio
    shown = f"{found.show(1)} times ({findings.help.help_ms.median:.0f} ms)"
    return Goal(name, wanted, shown, _verdict(met=found.median <= 6))
