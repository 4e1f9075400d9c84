"""`python -m tests.bench`, or `make bench`: measure, and write docs/benchmarks.md and docs/benchmarks.svg.

With QUICK=1 in the environment it takes 2 minutes instead of 15: smaller sizes, fewer takes, nothing installed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import page, scale, speed, sweep, waiting
from .bench import FULL, QUICK, Bench
from .endpoint import Endpoint
from .findings import Findings
from .measure import Failed
from .rivals import find_rivals

_DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Every section in turn; one that fails is told, and the others go on."""
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as work, Endpoint() as endpoint:
        bench = Bench(QUICK if quick else FULL, Path(work), endpoint)
        for name, section in _SECTIONS.items():
            bench.tell(name)
            try:
                section(bench, findings)
            except (Failed, OSError, ValueError) as error:
                findings.skipped[name] = " ".join(str(error).split())[:300]
                bench.tell(f"failed: {error}")
        page.write(findings, _DOCS, command=page.command_line(quick=quick), passed_s=bench.clock.passed_s)
    sys.stdout.write((_DOCS / "benchmarks.md").read_text())


def _compare(bench: Bench, findings: Findings) -> None:
    rivals, findings.rivals_missing = find_rivals(bench)
    problems = speed.warm_up(bench, [*speed.ours(), *(client for client, _ in rivals.values())])
    for name in set(rivals) & set(problems):
        del rivals[name]
        findings.rivals_missing[name] = problems[name]
    speed.fit_to_machine(bench)
    takes = bench.sizes.takes
    findings.speeds += speed.compare(bench, 64, rivals, takes=takes, budget_s=bench.share(0.24))


def _compare_more(bench: Bench, findings: Findings) -> None:
    takes = bench.sizes.takes
    findings.speeds += speed.compare(bench, 256, {}, takes=takes, budget_s=bench.share(0.12))
    findings.auto = speed.compare_auto(bench, takes=takes, budget_s=bench.share(0.05))


def _streamed(bench: Bench, findings: Findings) -> None:
    findings.streamed = speed.streamed(bench, takes=3, budget_s=bench.share(0.04))


def _waits(bench: Bench, findings: Findings) -> None:
    findings.help = waiting.help_cost(bench, takes=10, budget_s=bench.share(0.03))
    findings.lags = waiting.lags(bench, takes=3, budget_s=bench.share(0.06))


def _sweeps(bench: Bench, findings: Findings) -> None:
    findings.concurrency = sweep.by_concurrency(bench, budget_s=bench.share(0.06))
    findings.bodies = sweep.by_body(bench, budget_s=bench.share(0.05))


def _memory(bench: Bench, findings: Findings) -> None:
    findings.points = scale.by_rows(bench, budget_s=bench.share(0.1))


def _heavy(bench: Bench, findings: Findings) -> None:
    if not bench.sizes.is_full:
        raise Failed("the quick run leaves it out")
    findings.heavy = scale.heavy(bench)


def _big(bench: Bench, findings: Findings) -> None:
    findings.big = scale.big_run(bench, budget_s=bench.clock.left_s)


_SECTIONS: dict[str, Callable[[Bench, Findings], None]] = {
    "CPU a row, 64 in flight": _compare,
    "CPU a row, 256 in flight and auto": _compare_more,
    "streamed rows": _streamed,
    "lateness and --help": _waits,
    "concurrency and bodies": _sweeps,
    "memory over rows": _memory,
    "bodies of 50 MB": _heavy,
    "the big run": _big,
}

if __name__ == "__main__":
    main()
