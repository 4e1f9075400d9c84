"""`make pacing`: our pace and three others against every scenario, as docs/pacing.md."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from kit.policies import Aimd, Cubic, Gradient
from kit.scenarios import SCENARIOS, Outcome, Scenario
from kit.simulator import Policy

from batchrouter.pace import Pace

SEEDS: Final = (1, 2, 3)
_PAGE: Final = Path(__file__).parents[2] / "docs" / "pacing.md"


def our_pace(seed: int) -> Policy:
    """As a run begins that was told nothing."""
    return Pace(
        requests_per_s=None, tokens_per_s=None, concurrency=None, max_concurrency=512, learned=None, now=0.0,
        rng=random.Random(seed),
    )  # fmt: skip


POLICIES: Final[Mapping[str, Callable[[int], Policy]]] = {
    "batchrouter": our_pace,
    "AIMD": lambda seed: Aimd(random.Random(seed)),
    "CUBIC (AWS adaptive)": lambda seed: Cubic(random.Random(seed)),
    "latency gradient": lambda seed: Gradient(random.Random(seed)),
}

_INTRODUCTION: Final = f"""\
# How the pace is found

Nobody tells batchrouter how much an endpoint allows. It finds out: by what is accepted, what is refused, and what the
headers of answers say, where there are any. The policy is pure (`batchrouter/pace.py` and the rooms below it) and is
driven here by a simulator (`tests/kit/simulator.py`) in virtual time, beside three policies that others use. Written by
`make pacing`; run it to check.

Each cell: how much of what was allowed was used over the whole run, starting included, and in parentheses the share of
all requests that were answered 429. Then the same once it had settled: after the first third of the run; where a limit
changes, in the five seconds that begin ten seconds after each change (the worse of the two). Means of {len(SEEDS)} seeds.

A run is 30 s, answers take 80 ms in the median (lognormal), and refusals 2 ms, if not said otherwise; *Retry-After* is
in whole seconds, *meters* are `x-ratelimit-*` headers with limits a minute. A bucket holds a tenth of a second's worth.
More than 100 % is what was in store at the start.

All four get the same mechanism: one shared pause after a 429, as long as was asked for, else with backoff of their own.
AIMD and the gradient bound the number in flight alone, so they can use a limit on the rate only by being refused again
and again; CUBIC bounds the rate, and knows nothing of a number in flight.
"""


def main() -> None:
    """Play everything, a process a core, and write the page."""
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(_row, range(len(SCENARIOS))))
    lines = [_INTRODUCTION]
    for title, nth in (("The whole run", 0), ("Once it has settled", 1)):
        lines += [f"## {title}\n", f"| | {' | '.join(POLICIES)} |", "|---" * (len(POLICIES) + 1) + "|"]
        lines += [
            f"| {scenario.name} | {' | '.join(row[nth])} |" for scenario, row in zip(SCENARIOS, rows, strict=True)
        ]
        lines.append("")
    _PAGE.parent.mkdir(exist_ok=True)
    _PAGE.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write(f"{_PAGE.name} written\n")


def _row(nth: int) -> tuple[list[str], list[str]]:
    whole, settled = zip(*_cells(SCENARIOS[nth]), strict=True)
    return list(whole), list(settled)


def _cells(scenario: Scenario) -> Iterator[tuple[str, str]]:
    for policy_of in POLICIES.values():
        whole, settled = zip(*(scenario.play(policy_of, seed) for seed in SEEDS), strict=True)
        yield _shown(whole), _shown(settled)


def _shown(outcomes: tuple[Outcome, ...]) -> str:
    used, refused = (statistics.mean(each) for each in zip(*outcomes, strict=True))
    return f"{used:.0%} ({refused:.1%})"


if __name__ == "__main__":
    main()
