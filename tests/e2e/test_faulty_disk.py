"""Crash safety by exhaustion: every step that a run does to the disk fails or is its last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.world import Served, environment, request_row, run, serving, write_jsonl

TESTS = Path(__file__).resolve().parents[1]
SHARES = 4  # every step is struck; a test takes each fourth
EVERY = [*[(mode, first, SHARES) for mode in ("die", "fail") for first in range(1, SHARES + 1)], ("die-after", 1, 3)]
EVERY_AGAIN = [("die", 1, 6), ("fail", 1, 10)]


def strike(folder: Path, served: Served, mode: str, first: int, every: int, *ended: Path) -> list[dict[str, Any]]:
    """What became of a run whose Nth step on the disk was struck, for every `every`th N from `first` on."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "kit.faulty_disk", folder / "in.jsonl", folder, served.emulator.key,
         served.emulator.base_url, mode, str(first), str(every), *ended],
        cwd=TESTS, env=environment({"PYTHONPATH": path}), capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("mode", "first", "every"), EVERY)
def test_no_step_on_the_disk_can_lose_or_double_a_row(tmp_path: Path, mode: str, first: int, every: int) -> None:
    """Whatever step is struck, and then another one of the recovery: in the end every row is answered exactly once, the
    files verify, and a step that failed (rather than killed) stopped the run with 7 or was mended on the way.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(6)])
    with serving() as served:
        cases = strike(tmp_path, served, mode, first, every)
    assert sum(case["struck"] for case in cases) * every > 40
    for case in cases:
        assert not case["lost"], case
        assert not case["doubled"], case
        assert not case["problems"], case
        assert case["exits"][2] == 0, case
        assert case["exits"][0] in ({0, 7} if mode == "fail" else {0, 9}), case


@pytest.mark.parametrize(("mode", "first", "every"), EVERY_AGAIN)
def test_no_step_on_the_disk_can_throw_an_answer_away(tmp_path: Path, mode: str, first: int, every: int) -> None:
    """A start that takes failed and changed rows out of the log to ask them again, struck at any of its steps: in the
    end every row stands in the log once, and every line that stood in the log before stands in exactly one file.
    """
    rows = [request_row(n, "[[fault:status_400*1]] x" if n < 2 else None) for n in range(5)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving() as served:
        begun = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert begun.returncode == 1, begun.stderr
        write_jsonl(tmp_path / "in.jsonl", [*rows[:3], request_row(3, "edited"), rows[4]])
        cases = strike(tmp_path, served, mode, first, every, tmp_path / "in.run")
    assert sum(case["struck"] for case in cases) * every > 40
    for case in cases:
        assert not case["lost"], case
        assert not case["doubled"], case
        assert not case["thrown_away"], case
        assert not case["problems"], case
        assert case["exits"][2] == 0, case
