"""The pace, found out over real sockets: the quota is not told to the command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
from kit.world import read_jsonl, request_row, run, serving, write_jsonl

from batchrouter.emulator import Behaviour, Latency, Limits


@pytest.mark.parametrize("kind", ["token-bucket", "sliding"])
def test_an_unknown_quota_is_found_and_kept(tmp_path: Path, kind: Literal["token-bucket", "sliding"]) -> None:
    """200 requests/s allowed, told to nobody: all rows answered, at most 3 % of the requests refused, and once the pace
    is found the seconds are used to nine tenths and more.
    """
    rows = [request_row(n) for n in range(1600)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    limits = Limits(
        requests_per_minute=12_000 if kind == "token-bucket" else 200 * 60, kind=kind, window_s=1.0, burst=20
    )
    with serving(Behaviour(latency=Latency(0.05, 0.4), limits=limits)) as served:
        done = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        refused = served.emulator.stats.by_status[429]
    assert refused <= 0.03 * len(rows)
    results = read_jsonl(tmp_path / "in.run/results.jsonl")
    by_second = Counter(result["batchrouter"]["finished_at"][:19] for result in results)
    whole = [by_second[second] for second in sorted(by_second)][3:-1]
    assert sorted(whole)[len(whole) // 2] >= 180
