"""The findings as docs/benchmarks.md and docs/benchmarks.svg."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from .clients import FLOOR, HAS_UVLOOP
from .findings import REFERENCE_FLOOR_MS, Findings, goals
from .plot import Panel, Series, draw
from .rivals import version_of
from .scale import HEAVY_BYTES, HEAVY_ROWS
from .speed import AUTO, Speed
from .sweep import Step

_PACKAGES: Final = ("batchrouter", "aiohttp", "orjson", "aiolimiter", "uvloop", "openai")

_INTRODUCTION: Final = """\
# Benchmarks

Written by `{command}` in {minutes:.0f} minutes on {day}; run it to check. {machine}.
{versions}.

How to read it. The endpoint is a responder on the same machine that answers at once and costs far less than any client,
so **every client here is bound by its own CPU**. An endpoint whose answers take seconds makes all clients equal until
they reach that ceiling; then CPU a row decides how many rows a second one process can drive. *The floor* is one asyncio
process with bare aiohttp that reads a row, parses it, sends its body, parses the answer, counts tokens and appends a
result and a checkpoint line, and does nothing besides: no plan, no resume, no retry, no limits, no fsync, no checks.

Figures are medians of takes made in turns, side by side, with the lowest and the highest in parentheses; ratios are of
takes of the same round. CPU is user and system time of the whole client process. "A row" is the difference between a
larger and a smaller run, so that starting up is not in it; "whole" is the larger run with everything. Rows are
about 580 bytes, answers 600. On this machine the floor took {slowness:.1f} times the {reference} ms of CPU a row of the
machine on which the goals in seconds were set. Without uvloop means: as if it was not installed.
"""


def write(findings: Findings, docs: Path, *, command: str, passed_s: float) -> None:
    """Put the table and the plot into `docs`."""
    docs.mkdir(exist_ok=True)
    introduction = _INTRODUCTION.format(
        command=command,
        minutes=passed_s / 60,
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=_machine(),
        versions=_versions(),
        slowness=findings.slowness,
        reference=REFERENCE_FLOOR_MS,
    )
    parts = [
        introduction,
        _goals(findings),
        _speeds(findings),
        _growth(findings),
        _waiting(findings),
        _sweeps(findings),
        _skipped(findings),
    ]
    (docs / "benchmarks.md").write_text("\n".join(part for part in parts if part))
    (docs / "benchmarks.svg").write_text(draw(_panels(findings)))


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{cores} cores of {model}, {platform.system()} {platform.release()}, {python}"


def _versions() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    found += [f"{name} {there}" for name in ("lm-deluge", "flexllm") if (there := version_of(name))]
    return ", ".join(found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _goals(findings: Findings) -> str:
    return "## Goals\n\n" + _table(("goal", "wanted", "found", ""), goals(findings))


def _speeds(findings: Findings) -> str:
    head = (
        "client", "in flight", "rows/s", "CPU ms a row", "CPU against the floor", "rows/s, whole",
        "CPU ms a row, whole", "peak MB", "growth, kB a row", "takes x rows",
    )  # fmt: skip
    speeds = [*findings.speeds, *(speed for speed in (findings.auto, findings.streamed) if speed)]
    text = "## Speed\n\n" + _table(head, (_speed_row(speed) for speed in speeds))
    if findings.rivals_missing:
        text += "\n" + "\n".join(f"- {name}: skipped: {why}" for name, why in findings.rivals_missing.items()) + "\n"
    if not HAS_UVLOOP:
        text += "\n- with uvloop: skipped: it is not installed (`pip install 'batchrouter[uvloop]'`)\n"
    return text


def _speed_row(speed: Speed) -> Sequence[str]:
    of = speed.of
    return (
        speed.name,
        "auto" if speed.concurrency == AUTO else str(speed.concurrency),
        of("rows_per_s").show(0),
        of("cpu_ms").show(3),
        "1" if speed.name == FLOOR.name else speed.cpu_ratio.show(),
        of("whole_rows_per_s").show(0),
        of("whole_cpu_ms").show(3),
        of("peak_mb").show(0),
        of("growth_kb").show(2),
        f"{len(speed.takes)} x {speed.rows:,}",
    )


def _growth(findings: Findings) -> str:
    rows = [
        (f"{point.rows:,}", f"{point.rows_per_s:,.0f}", f"{point.cpu_ms:.3f}", f"{point.peak_mb:.0f}")
        for point in findings.points
    ]
    text = "## As the rows grow\n\n64 in flight, uvloop used where it is installed, starting up included.\n\n"
    big = findings.big
    if big is not None:
        rows.append((f"{big.rows:,}", f"{big.rows_per_s:,.0f}", f"{big.cpu_ms:.3f}", f"{big.peak_mb:.0f}"))
    text += _table(("rows", "rows/s", "CPU ms a row", "peak MB"), rows)
    if big is not None:
        text += (
            f"\nThe run of {big.rows:,} rows was killed (SIGKILL) at {big.killed_at:,} answers and started again:"
            f" {big.sent:,} requests were sent for {big.answered:,} answers; what is more was in flight when it was"
            " killed.\n\n"
        )
        steps = (
            ("fresh", big.fresh_s),
            ("resumed after the kill", big.resumed_s),
            ("finished already", big.finished_s),
        )
        shown = [(name, "not come to" if found_s is None else f"{found_s:.2f}") for name, found_s in steps]
        text += _table((f"{big.rows:,} rows", "seconds to the first request, or to the end"), shown)
    for name, peak_mb in findings.heavy.items():
        size_mb = HEAVY_BYTES / 1e6
        times = f"{peak_mb / (HEAVY_ROWS * size_mb):.1f} times their size"
        text += f"\n{HEAVY_ROWS} {name} of {size_mb:.0f} MB at once: peak {peak_mb:,.0f} MB, {times}.\n"
    return text


def _waiting(findings: Findings) -> str:
    rows = [(lag.name, lag.p50_ms.show(1), lag.p99_ms.show(1), lag.max_ms.show(1)) for lag in findings.lags]
    text = "## What is waited for\n\n" + _table(("event loop's lateness, ms", "p50", "p99", "highest"), rows)
    told = findings.help
    if told is not None:
        text += (
            f"\n`batchrouter --help`: {told.help_ms.show(0)} ms of CPU; an empty Python: {told.empty_ms.show(0)} ms.\n"
        )
    return text


def _sweeps(findings: Findings) -> str:
    head = ("rows/s", "the floor's rows/s", "CPU a row against the floor", "peak MB", "rows")
    text = "## As the work changes\n\nWithout uvloop; the cost of a run of one row is taken off both.\n\n"
    text += "![rows/s and memory](benchmarks.svg)\n\n"
    text += _table(("in flight", *head), (_step_row(step) for step in findings.concurrency)) + "\n"
    return text + _table(("bytes of a row, 64 in flight", *head), (_step_row(step) for step in findings.bodies))


def _step_row(step: Step) -> Sequence[str]:
    return (
        f"{step.at:,}",
        f"{step.rows_per_s:,.0f}",
        f"{step.floor_rows_per_s:,.0f}",
        f"{step.cpu_ratio:.2f}",
        f"{step.peak_mb:.0f}",
        f"{step.rows:,}",
    )


def _skipped(findings: Findings) -> str:
    if not findings.skipped:
        return ""
    return "## Not measured\n\n" + "\n".join(f"- {name}: {why}" for name, why in findings.skipped.items()) + "\n"


def _panels(findings: Findings) -> list[Panel]:
    points = [*findings.points]
    rows = [(float(point.rows), point.rows_per_s) for point in points]
    memory = [(float(point.rows), point.peak_mb) for point in points]
    if findings.big is not None and findings.big.answered:
        rows.append((float(findings.big.rows), findings.big.rows_per_s))
        memory.append((float(findings.big.rows), findings.big.peak_mb))
    return [
        Panel("Rows/s over the input's length", "rows", "rows/s", [Series("batchrouter", rows)]),
        Panel("Peak memory over the input's length", "rows", "MB", [Series("batchrouter", memory)], linear_y=True),
        Panel("Rows/s over requests in flight", "in flight", "rows/s", _both(findings.concurrency)),
        Panel("Rows/s over a row's size", "bytes", "rows/s", _both(findings.bodies)),
    ]


def _both(steps: Sequence[Step]) -> list[Series]:
    return [
        Series("batchrouter", [(float(step.at), step.rows_per_s) for step in steps]),
        Series("the floor", [(float(step.at), step.floor_rows_per_s) for step in steps]),
    ]


def command_line(*, quick: bool) -> str:
    """What to type to get this page again."""
    return "make bench QUICK=1" if quick else "make bench" if sys.platform != "win32" else "python -m tests.bench"
