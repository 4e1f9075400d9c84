"""`verify`, `verify --repair`, `status` and `plan` over run directories in every state, and the damage that they mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.damage import (
    a_row_twice,
    answered_and_failed,
    fill_with_nul,
    garbage_index,
    garbage_inside,
    json_of_nobodys_inside,
    no_index,
    no_totals,
    older_index,
    spoil_superseded,
    tear,
    tear_errors,
    wrong_totals,
)
from kit.promises import books, check_questions, strict_lines
from kit.warm import Warm, warm
from kit.world import Served, request_row, serving, write_jsonl

from batchrouter.emulator import Behaviour

ROWS = [request_row(n) for n in range(8)] + [{**request_row(8, "[[fault:status_400]] x"), "custom_id": "bad"}]


@pytest.fixture(scope="module")
def shell() -> Iterator[Warm]:
    with warm() as shell:
        yield shell


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Behaviour(journal=True)) as served:
        yield served


@pytest.fixture(scope="module")
def finished(shell: Warm, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two starts: `older.sqlite` is the index between the two."""
    folder = tmp_path_factory.mktemp("finished")
    write_jsonl(folder / "in.jsonl", ROWS)
    assert shell.run("run", "in.jsonl", "--limit", "3", cwd=folder, env=served.environment).returncode == 0
    shutil.copy(folder / "in.run/checkpoint.sqlite", folder / "older.sqlite")
    assert shell.run("run", "in.jsonl", cwd=folder, env=served.environment).returncode == 1
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "folder", copy_function=shutil.copy2)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


COMPOUND = {
    "tail": ([tear, tear_errors, garbage_inside, wrong_totals, no_index], 3),
    "inside": ([json_of_nobodys_inside, fill_with_nul, spoil_superseded, garbage_index], 3),
    "twice": ([a_row_twice, answered_and_failed, older_index], 0),
}


@pytest.mark.parametrize("name", COMPOUND)
def test_several_damages_are_told_line_by_line_and_mended(shell: Warm, served: Served, folder: Path, name: str) -> None:
    """`verify` names files and lines, exit 1, and changes nothing; `--repair` says what it did; then one line and exit
    0; the next start asks the damaged rows and no others; then every row is in one place, with its own answer.
    """
    damages, cost = COMPOUND[name]
    directory = folder / "in.run"
    for damage in damages:
        damage(directory)
    before = contents(directory)
    found = shell.run("verify", "in.run", cwd=folder)
    assert (found.returncode, found.stderr) == (1, "")
    assert f" {cost} pending: something is wrong" in found.stdout
    for file in {"tail": ["results.jsonl:4", "results.jsonl:8", "errors.jsonl:1", "usage.jsonl"],
                 "inside": ["results.jsonl:4", "results.jsonl:5", "superseded.jsonl:1"],
                 "twice": ["in.jsonl:"]}[name]:  # fmt: skip
        assert file in found.stdout
    assert contents(directory) == before
    mended = shell.run("verify", "in.run", "--repair", cwd=folder)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "every row is in exactly one place" in mended.stdout
    again = shell.run("verify", "in.run", cwd=folder)
    assert (again.returncode, again.stdout.count("\n")) == (0, 1)
    asked = served.asked
    done = shell.run("run", "in.jsonl", cwd=folder, env=served.environment)
    assert done.returncode == 1, done.stderr
    assert served.asked == asked + cost
    end = books(directory)
    assert (end.answered, end.failed) == ({f"row-{n}" for n in range(8)}, {"bad"})
    check_questions(end, ROWS, served)


def test_a_start_tells_what_it_mends(shell: Warm, served: Served, folder: Path) -> None:
    """A torn tail and a line inside that is damaged: mended on the way, said with the place, and kept aside."""
    tear(folder / "in.run")
    garbage_inside(folder / "in.run")
    done = shell.run("run", "in.jsonl", cwd=folder, env=served.environment)
    assert done.returncode == 1
    assert "torn" in done.stderr
    assert "results.jsonl:4" in done.stderr
    assert strict_lines(folder / "in.run/events.jsonl")
    assert b"garbage" in (folder / "in.run/damaged.jsonl").read_bytes()
    assert shell.run("verify", "in.run", cwd=folder).returncode == 0


def test_the_status_of_a_damaged_run_is_still_a_status(shell: Warm, folder: Path) -> None:
    """Whatever stands at the end of its files, and without an index: figures, and no traceback."""
    directory = folder / "in.run"
    for name in ("results.jsonl", "events.jsonl"):
        with (directory / name).open("ab") as file:
            file.write(b'[]\n7\n{}\n{"batchrouter": 5}\n\xff\xfe\n{"event"')
    (directory / "checkpoint.sqlite").write_bytes(b"garbage")
    told = shell.run("status", "in.run", "--json", cwd=folder)
    assert (told.returncode, told.stderr) == (0, "")
    seen = json.loads(told.stdout)
    assert (seen["running"], seen["rows"], seen["failed"], seen["pending"]) == (None, None, 1, None)
    assert shell.run("status", "in.run", cwd=folder).stdout.startswith("? rows: ")


def test_the_status_of_a_first_start_is_told_before_its_plan_stands(shell: Warm, tmp_path: Path) -> None:
    """A million rows take seconds to plan: until then there is a lock, and no more to tell."""
    (tmp_path / "in.run").mkdir()
    (tmp_path / "in.run/lock").write_text("process 1 since 2026-11-23T00:00:00Z\n", "utf-8")
    told = shell.run("status", "in.run", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("? rows: 0 answered, 0 failed, ? pending")


@pytest.mark.parametrize("arguments", [("status", "nowhere.run"), ("verify", "nowhere.run"), ("verify", ".")])
def test_what_is_no_run_directory_is_a_mistake(shell: Warm, tmp_path: Path, arguments: tuple[str, str]) -> None:
    """Exit 2, in one line."""
    done = shell.run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "no run directory" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_plan_writes_and_sends_nothing(shell: Warm, served: Served, folder: Path, tmp_path: Path) -> None:
    """Not a byte of a run directory that is there, damaged or not, and none that is not; it says what a run would do."""
    asked = served.asked
    plan = shell.run("plan", "in.jsonl", "-o", "new.run", "--json", cwd=folder)
    assert json.loads(plan.stdout)["new"] == 9
    assert not (folder / "new.run").exists()
    directory = folder / "in.run"
    for damage, new in ((no_totals, 0), (garbage_inside, 1), (tear, 2), (no_index, 2)):
        damage(directory)
        before = contents(directory)
        stamps = {path.name: path.stat().st_mtime_ns for path in (directory, *directory.iterdir())}
        plan = shell.run("plan", "in.jsonl", "--json", cwd=folder)
        assert plan.returncode == 0, plan.stderr
        found = json.loads(plan.stdout)
        assert (found["rows"], found["new"], found["answered"], found["failed"]) == (9, new, 8 - new, 1)
        assert contents(directory) == before
        assert {path.name: path.stat().st_mtime_ns for path in (directory, *directory.iterdir())} == stamps
    for command in ("run", "plan"):
        assert (
            shell.run(command, "missing.jsonl", "--emulate" if command == "run" else "--json", cwd=tmp_path).returncode
            == 2
        )
    assert served.asked == asked


PRICES = '[model."gpt-5.4"]\nprompt = 2.0\ncompletion = 8.0\n'


def test_a_plan_tells_tokens_worst_cost_and_time(shell: Warm, tmp_path: Path) -> None:
    """Of what is to be asked: more tokens and cost for a larger budget, no less than what the run then takes; no cost
    without a price; at least so long at the limits given. Mistakes of the input are counted, and sent nowhere.
    """
    (tmp_path / "batchrouter.toml").write_text(PRICES, "utf-8")
    rows = [request_row(n, max_tokens=50) for n in range(6)]
    lines = [json.dumps(row) for row in rows] + ['{"broken', json.dumps(rows[0]), "[]"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), "utf-8")
    with serving(Behaviour()) as served:
        plan = json.loads(shell.run("plan", "in.jsonl", "--json", "--rpm", "60", cwd=tmp_path).stdout)
        counts = {name: plan[name] for name in ("rows", "new", "invalid", "duplicates", "answered", "equal_bodies")}
        assert counts == {"rows": 9, "new": 6, "invalid": 2, "duplicates": 1, "answered": 0, "equal_bodies": 0}
        assert plan["requests_by_model"] == {"gpt-5.4": 6}
        assert plan["duration_s"] == pytest.approx(6)
        text = shell.run("plan", "in.jsonl", "--rpm", "60", cwd=tmp_path).stdout
        for words in ("9 rows: 6 to ask", "2 invalid", "1 with a custom_id", "6 x gpt-5.4", "USD", "6 s"):
            assert words in text
        done = shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert done.returncode == 1
        (total,) = (line for line in strict_lines(tmp_path / "in.run/usage.jsonl") if line["scope"] == "total")
        assert 0 < total["cost"] <= plan["cost"]
        after = json.loads(shell.run("plan", "in.jsonl", "--json", cwd=tmp_path).stdout)
        assert (after["new"], after["tokens"], after["cost"], after["answered"]) == (0, 0, 0, 6)
        (tmp_path / "batchrouter.toml").unlink()
        assert json.loads(shell.run("plan", "in.jsonl", "-o", "x", "--json", cwd=tmp_path).stdout)["cost"] is None
