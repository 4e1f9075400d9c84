"""What a user waits for: the event loop's lateness, `--help`, and an empty Python to compare with."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from .bench import Bench
from .clients import HAS_UVLOOP
from .measure import Failed, Spread, ratio, rounds, run, spread

_HERE: Final = Path(__file__).parent


class Lag(NamedTuple):
    """How late the loop was, over several runs: the median run's p50 and p99, and the highest of all."""

    name: str
    p50_ms: Spread
    p99_ms: Spread
    max_ms: Spread


class Lateness(NamedTuple):
    """One run's."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class Help(NamedTuple):
    """CPU milliseconds of `batchrouter --help` and of an empty Python, in turns."""

    help_ms: Spread
    empty_ms: Spread
    ratio: Spread


def lags(bench: Bench, *, takes: int, budget_s: float) -> list[Lag]:
    """At 64 and at a concurrency left to itself, with uvloop too where it is installed."""
    plans = {"64 in flight": partial(_lateness, bench, ["--concurrency", "64"]), "auto": partial(_lateness, bench, [])}
    if HAS_UVLOOP:
        plans["64 in flight, uvloop"] = partial(_lateness, bench, ["--concurrency", "64", "--uvloop"])
    found = rounds(plans, most=takes, budget_s=budget_s)
    return [
        Lag(name, *(spread([getattr(take, field) for take in taken]) for field in Lateness._fields))
        for name, taken in found.items()
    ]


def _lateness(bench: Bench, options: Sequence[str]) -> Lateness:
    rows = bench.large
    directory, log = bench.work / "lag", bench.work / "lag.log"
    shutil.rmtree(directory, ignore_errors=True)
    source = str(bench.input(rows))
    url = ["--base-url", bench.endpoint.url]
    run([sys.executable, str(_HERE / "lag.py"), source, str(directory), *url, *options], log, timeout_s=120)
    shutil.rmtree(directory, ignore_errors=True)
    told = json.loads(log.read_text().splitlines()[-1])
    if told.pop("answered") != rows:
        raise Failed("the run whose lateness was measured did not answer every row")
    return Lateness(**told)


def help_cost(bench: Bench, *, takes: int, budget_s: float) -> Help:
    """`--help` by the installed command where there is one, beside an empty Python."""
    script = Path(sys.executable).with_name("batchrouter")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "batchrouter"]

    def cpu_ms(words: Sequence[str]) -> float:
        return run(words, bench.work / "help.log", timeout_s=30).cpu_s * 1000

    plans = {"help": partial(cpu_ms, [*command, "--help"]), "empty": partial(cpu_ms, [sys.executable, "-c", "pass"])}
    rounds(plans, most=1, budget_s=budget_s)  # so that compiled files are there
    found = rounds(plans, most=takes, budget_s=budget_s)
    return Help(spread(found["help"]), spread(found["empty"]), ratio(found["help"], found["empty"]))
