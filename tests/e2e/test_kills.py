"""Killed at random moments, start-up and recovery included. BATCHROUTER_KILLS=200 makes it the long version."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from kit.promises import books
from kit.world import (
    Served,
    check_answers,
    lines_in,
    request_row,
    run,
    running,
    serving,
    wait_until,
    write_jsonl,
)

from batchrouter.emulator import Behaviour, Latency

KILLS = int(os.environ.get("BATCHROUTER_KILLS", "8"))
ROWS, AT_ONCE, CHECKPOINT_S = 3000, 32, 0.2
MOST_ASKED = 150


def asked_in_vain(served: Served, results: Path) -> int:
    """Requests so far whose answers are not on the disk, now that nobody asks any more."""
    wait_until(lambda: served.call(lambda emulator: emulator.stats.in_flight) == 0)
    return served.asked - lines_in(results)


def wait_for_a_moment(rng: random.Random, served: Served, process: subprocess.Popen[str]) -> None:
    """A moment that nobody chose: while it starts and recovers, or so many requests later."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0.1, 0.8))
        return
    wanted = served.asked + rng.randint(1, MOST_ASKED)
    wait_until(lambda: served.asked >= wanted or process.poll() is not None)
    time.sleep(rng.uniform(0, 0.06))


@pytest.mark.timeout(60 + 5 * KILLS)
def test_random_kills_lose_double_and_burn_nothing(tmp_path: Path) -> None:
    """Killed again and again, in one run after another: no kill costs more than the requests in flight, `verify` is
    content at every stop, and in the end every row of each run is answered once, and none has failed.
    """
    rng = random.Random(20261122)
    rows = [request_row(n) for n in range(ROWS)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    kills = runs = worst = in_vain = 0
    while kills < KILLS:
        runs += 1
        directory = tmp_path / f"{runs}.run"
        arguments = (
            "run", "in.jsonl", "-o", directory, "--concurrency", AT_ONCE, "--checkpoint-every", CHECKPOINT_S
        )  # fmt: skip
        words = tuple(map(str, arguments))
        lost = 0
        with serving(Behaviour(latency=Latency(0.04))) as served:
            while kills < KILLS and lines_in(directory / "results.jsonl") < ROWS:
                with running(*words, cwd=tmp_path, env=served.environment) as process:
                    wait_for_a_moment(rng, served, process)
                    process.kill()
                kills += 1
                before, lost = lost, asked_in_vain(served, directory / "results.jsonl")
                worst = max(worst, lost - before)
                assert lost - before <= AT_ONCE
                if (directory / "run.json").exists() and kills % 4 == 0:
                    found = run("verify", directory, cwd=tmp_path)
                    assert found.returncode == 0, found.stdout
            done = run(*words, cwd=tmp_path, env=served.environment)
            assert done.returncode == 0, done.stderr
            check_answers(directory, rows, served)
            assert books(directory).errors == []
            assert served.asked == ROWS + lost
            in_vain += lost
    print(
        f"{kills} kills in {runs} runs of {ROWS:,} rows: {in_vain} answers asked for again, at most {worst} by a kill"
    )
