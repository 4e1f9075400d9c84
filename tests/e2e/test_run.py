"""The main job, as its users have it."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit.world import (
    check_answers,
    has_lines,
    lines_in,
    read_jsonl,
    request_row,
    run,
    running,
    serving,
    wait_until,
    write_jsonl,
)

from batchrouter.emulator import Behaviour, Latency


@pytest.fixture(params=["uvloop", "asyncio"], autouse=True)
def _loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Everything here holds with uvloop and, as if that was not installed, without."""
    if request.param == "asyncio":
        package = tmp_path_factory.mktemp("blocked") / "uvloop.py"
        package.write_text("raise ImportError('not installed')\n")
        monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{os.environ.get('PYTHONPATH', '')}")


def test_every_answer_stands_beside_the_id_that_asked(tmp_path: Path) -> None:
    """2,000 rows at 20 ms and 64 at once: all answered rightly, never more than 64 in flight, within 1.5 times."""
    rows = [request_row(n) for n in range(2000)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving(Behaviour(latency=Latency(0.02))) as served:
        done = run("run", "in.jsonl", "--concurrency", "64", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        check_answers(tmp_path / "in.run", rows, served)
        assert served.emulator.stats.peak_in_flight <= 64
        before = (tmp_path / "in.run/results.jsonl").read_bytes()
        again = run("run", "in.jsonl", "--concurrency", "64", cwd=tmp_path, env=served.environment)
        assert again.returncode == 0
        assert served.asked == 2000
        assert (tmp_path / "in.run/results.jsonl").read_bytes() == before


def test_a_wrong_key_stops_the_run_and_blames_no_row(tmp_path: Path) -> None:
    """Exit 3 after at most `concurrency` requests, nothing in errors.jsonl; the right key finishes the same command."""
    rows = [request_row(n) for n in range(200)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving() as served:
        wrong = served.environment | {"WORLDROUTER_API_KEY": "sk-wrong-0123456789"}
        done = run("run", "in.jsonl", "--concurrency", "8", cwd=tmp_path, env=wrong)
        assert done.returncode == 3
        assert "key is refused" in done.stderr
        assert "sk-wrong-0123456789" not in done.stderr
        assert served.asked <= 8
        assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []
        done = run("run", "in.jsonl", "--concurrency", "8", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        check_answers(tmp_path / "in.run", rows, served)


@pytest.mark.parametrize("kills", [1, 3])
def test_kill_9_costs_only_what_was_in_flight(tmp_path: Path, kills: int) -> None:
    """Killed in the middle and started again: each row once, and no answer that was on disk is asked for again."""
    rows = [request_row(n) for n in range(1500)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    results = tmp_path / "in.run/results.jsonl"
    with serving(Behaviour(latency=Latency(0.03), journal=True)) as served:
        for kill in range(kills):
            with running("run", "in.jsonl", "--concurrency", "32", cwd=tmp_path, env=served.environment) as process:
                least = 1500 * (kill + 1) // (kills + 2)
                wait_until(partial(has_lines, results, least))
                process.kill()
        done = run("run", "in.jsonl", "--concurrency", "32", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        check_answers(tmp_path / "in.run", rows, served)
        assert served.asked <= 1500 + 32 * kills


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_what_is_in_flight_finish(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Requests in flight finish, files are whole, the exit code and the message say how to go on."""
    rows = [request_row(n) for n in range(1000)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    results = tmp_path / "in.run/results.jsonl"
    with serving(Behaviour(latency=Latency(0.1))) as served:
        with running("run", "in.jsonl", "--concurrency", "16", cwd=tmp_path, env=served.environment) as process:
            wait_until(lambda: lines_in(results) >= 50)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
        assert process.returncode == code
        assert "to go on: " in stderr
        assert "run in.jsonl" in stderr
        answered = len(read_jsonl(results))
        assert served.asked == answered < 1000
        done = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        assert served.asked == 1000
        check_answers(tmp_path / "in.run", rows, served)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    """With answers that take 30 s, two SIGINTs end the run within a second; the rows are pending, not failed."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(50)])
    with serving(Behaviour(latency=Latency(30.0))) as served:
        with running("run", "in.jsonl", cwd=tmp_path, env=served.environment) as process:
            wait_until(lambda: served.asked > 0)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)  # a person's second Ctrl-C
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            assert time.monotonic() - asked < 1.0
        assert process.returncode == 130
        assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    """Exit 75 within a second or so, saying who holds the directory; after a kill -9 nothing needs unlocking."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(20)])
    with serving(Behaviour(latency=Latency(30.0))) as served:
        with running("run", "in.jsonl", cwd=tmp_path, env=served.environment) as process:
            wait_until(lambda: served.asked > 0)
            second = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
            assert second.returncode == 75
            assert f"process {process.pid} since " in second.stderr
            process.kill()
        served.call(lambda emulator: setattr(emulator, "latency", Latency(0.0)))
        assert run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 0


def test_both_shapes_and_several_inputs_make_one_run(tmp_path: Path) -> None:
    """Batch rows and bare bodies of two files: all answered; a row without an id is called by its place."""
    write_jsonl(tmp_path / "a.jsonl", [request_row(0), request_row(1)])
    bare = [{"model": "gpt-5.4", "messages": [{"role": "user", "content": f"bare {n}"}]} for n in range(2)]
    write_jsonl(tmp_path / "b.jsonl", bare)
    with serving() as served:
        done = run("run", "a.jsonl", "b.jsonl", "-o", "out", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
    ids = {row["custom_id"] for row in read_jsonl(tmp_path / "out/results.jsonl")}
    assert ids == {"row-0", "row-1", "b.jsonl:1", "b.jsonl:2"}


def test_a_file_of_mistakes_names_each_of_them(tmp_path: Path) -> None:
    """Each bad line is one row in errors.jsonl with its place; the good rows are answered; exit 1."""
    good = request_row(1)
    lines = ['{"broken', "[]", json.dumps({"custom_id": "x", "body": {"messages": []}}), "", json.dumps(good)]
    lines += [json.dumps({**request_row(2), "custom_id": 7}), json.dumps({**request_row(3), "method": "GET"})]
    lines += [json.dumps({**request_row(4), "custom_id": "row-1"})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), "utf-8")
    with serving() as served:
        done = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert done.returncode == 1
        assert served.asked == 1
        errors = {row["batchrouter"]["line"]: row for row in read_jsonl(tmp_path / "in.run/errors.jsonl")}
        assert sorted(errors) == [1, 2, 3, 6, 7, 8]
        assert {row["error"]["code"] for line, row in errors.items() if line != 8} == {"invalid_row"}
        assert errors[8]["error"]["code"] == "duplicate_custom_id"
        assert "in.jsonl:5" in errors[8]["error"]["message"]
        assert [errors[line]["custom_id"] for line in (1, 3, 6, 7)] == ["in.jsonl:1", "x", "in.jsonl:6", "row-3"]
        check_answers(tmp_path / "in.run", [good], served)
        strict = run("run", "in.jsonl", "-o", "strict.run", "--strict", cwd=tmp_path, env=served.environment)
        assert strict.returncode == 2
        assert "in.jsonl:1: " in strict.stderr
        assert served.asked == 1


def test_usage_is_the_sum_of_the_rows(tmp_path: Path) -> None:
    """usage.jsonl equals the sum over `batchrouter.usage`, by model and in all."""
    rows = [request_row(n, model="gpt-5.4" if n % 2 else "gpt-5.4-mini") for n in range(40)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving() as served:
        assert run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 0
    results = read_jsonl(tmp_path / "in.run/results.jsonl")
    usage = {line["model"]: line for line in read_jsonl(tmp_path / "in.run/usage.jsonl")}
    assert set(usage) == {"gpt-5.4", "gpt-5.4-mini", "*"}
    for model, line in usage.items():
        mine = [row["batchrouter"] for row in results if model in {"*", row["batchrouter"]["model"]}]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert line[name] == sum(row["usage"][name] for row in mine) > 0
        assert line["requests"] == line["succeeded"] == line["attempts"] == len(mine)


def test_what_bounds_a_run_is_told_everywhere(tmp_path: Path) -> None:
    """At 50 a second: in the progress, in the events and in the last words stand what bounds it, the limit, and the
    time lost.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(150)])
    with serving() as served:
        done = run("run", "in.jsonl", "--rpm", "3000", "--progress", "json", cwd=tmp_path, env=served.environment)
    assert done.returncode == 0, done.stderr
    shown = [line["health"] for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "progress"]
    bounds = [next(iter(health.values()))["bound"] for health in shown]
    assert "requests" in bounds  # but before the first has left, and when nobody waits any more
    [(lane, health)] = shown[bounds.index("requests")].items()
    assert 2900 <= health["requests_per_min"] <= 3000
    assert health["lost_s"]["requests"] > 0
    events = {event["event"]: event for event in read_jsonl(tmp_path / "in.run/events.jsonl")}
    assert events["limit"]["requests_per_min"] == health["requests_per_min"]
    assert events["health"]["lanes"][lane]["lost_s"]["requests"] >= health["lost_s"]["requests"]
    assert f"limit of {lane}: at most " in done.stderr
    assert "held up by requests " in done.stderr
