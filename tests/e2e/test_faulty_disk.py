"""Crash safety by exhaustion: every step that a run does to the disk fails or is its last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit.world import environment, request_row, serving, write_jsonl

TESTS = Path(__file__).resolve().parents[1]
EVERY = {"die": 1, "die-after": 3, "fail": 1}


@pytest.mark.parametrize("mode", ["die", "die-after", "fail"])
def test_no_step_on_the_disk_can_lose_or_double_a_row(tmp_path: Path, mode: str) -> None:
    """Whatever step is struck, and then another one of the recovery: in the end every row is answered exactly once, the
    files verify, and a step that failed (rather than killed) stopped the run with 7 or was mended on the way.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(6)])
    with serving() as served:
        done = subprocess.run(
            [sys.executable, "-m", "kit.faulty_disk", tmp_path / "in.jsonl", tmp_path, served.emulator.key,
             served.emulator.base_url, mode, str(EVERY[mode])],
            cwd=TESTS, env=environment({"PYTHONPATH": str(TESTS)}), capture_output=True, text=True, timeout=110,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(case["struck"] for case in cases) * EVERY[mode] > 40
    for case in cases:
        assert not case["lost"], case
        assert not case["doubled"], case
        assert not case["problems"], case
        assert case["exits"][2] == 0, case
        assert case["exits"][0] in ({0, 7} if mode == "fail" else {0, 9}), case
