"""SIGKILL at random moments, start-up and recovery included. BATCHROUTER_KILLS=200 makes it the long version."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from kit.world import check_answers, lines_in, read_jsonl, request_row, run, running, serving, write_jsonl

from batchrouter.emulator import Behaviour, Latency

KILLS = int(os.environ.get("BATCHROUTER_KILLS", "8"))
ROWS, AT_ONCE, CHECKPOINT_S = 3000, 32, 0.2


@pytest.mark.timeout(60 + 5 * KILLS)
def test_random_kills_lose_double_and_burn_nothing(tmp_path: Path) -> None:
    """Killed again and again: every row once, none failed, `verify` content at every stop, and each kill costs at most
    the requests in flight.
    """
    rng = random.Random(20261122)
    rows = [request_row(n) for n in range(ROWS)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    results = tmp_path / "in.run/results.jsonl"
    arguments = ("run", "in.jsonl", "--concurrency", str(AT_ONCE), "--checkpoint-every", str(CHECKPOINT_S))
    least_s = 0.3 if KILLS < 50 else 0.2
    with serving(Behaviour(latency=Latency(0.04))) as served:
        kills = 0
        while kills < KILLS and lines_in(results) < ROWS:
            with running(*arguments, cwd=tmp_path, env=served.environment) as process:
                time.sleep(rng.uniform(least_s, least_s + 0.7))  # a moment nobody chose
                process.kill()
            kills += 1
            if (tmp_path / "in.run/run.json").exists() and kills % 4 == 0:
                found = run("verify", "in.run", cwd=tmp_path)
                assert found.returncode == 0, found.stdout
        done = run(*arguments, cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        check_answers(tmp_path / "in.run", rows, served)
        assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []
        assert served.asked <= ROWS + AT_ONCE * kills
    assert kills == KILLS
