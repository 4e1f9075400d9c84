"""Ends that the user has set: each with its code, its reason and its rows pending, and never more than was allowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.hostile import Heard, Step, hostile, http, right
from kit.promises import books, strict_lines
from kit.warm import Warm, warm
from kit.world import request_row, serving, write_jsonl

from batchrouter.emulator import Behaviour, Latency

PRICES = '[model."gpt-5.4"]\nprompt = 2.0\ncompletion = 8.0\n'


@pytest.fixture(scope="module")
def shell() -> Iterator[Warm]:
    with warm() as shell:
        yield shell


def total_of(folder: Path) -> dict[str, Any]:
    return strict_lines(folder / "in.run/usage.jsonl")[-1]


@pytest.mark.parametrize("budget", [{}, {"max_tokens": 60}], ids=["no budget", "a budget"])
@pytest.mark.parametrize("bound", [("--max-tokens", "1500"), ("--max-cost", "0.008")], ids=lambda bound: bound[0])
def test_no_more_than_the_bound_is_spent(
    shell: Warm, tmp_path: Path, bound: tuple[str, str], budget: dict[str, Any]
) -> None:
    """With 32 at once: exit 6, the bound neither passed nor left half unused, the rest pending; the same command goes on
    where it stopped, and in the end all are answered.
    """
    (tmp_path / "batchrouter.toml").write_text(PRICES, "utf-8")
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, **budget) for n in range(60)])
    spent, starts, code = 0.0, 0, 6
    with serving(Behaviour(latency=Latency(0.005))) as served:
        while code == 6:
            starts += 1
            done = shell.run("run", "in.jsonl", *bound, "--concurrency", "32", cwd=tmp_path, env=served.environment)
            code = done.returncode
            assert code in {0, 6}, done.stderr
            total = total_of(tmp_path)
            before, spent = spent, float(total["total_tokens" if bound[0] == "--max-tokens" else "cost"])
            assert spent - before <= float(bound[1])
            if code == 6:
                assert spent - before >= 0.5 * float(bound[1])
                assert f"stopped: {bound[0]} {bound[1]} reached: " in done.stderr
                assert f"{60 - total['requests']} pending" in done.stderr
        assert starts > 1
        assert served.asked == 60
    found = books(tmp_path / "in.run")
    assert (len(found.results), found.errors) == (60, [])


@pytest.mark.parametrize(
    "bound",
    [("--max-tokens", "100000"), ("--max-cost", "0.5"), ("--max-tokens", "20")],
    ids="=".join,
)
def test_a_row_that_may_take_more_than_the_bound_is_not_sent(
    shell: Warm, tmp_path: Path, bound: tuple[str, str]
) -> None:
    """Exit 6 before it, with its place and what it may take, as the same command would do no better."""
    (tmp_path / "batchrouter.toml").write_text(PRICES, "utf-8")
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, max_tokens=10**9) for n in range(30)])
    with serving() as served:
        done = shell.run("run", "in.jsonl", *bound, cwd=tmp_path, env=served.environment)
        assert done.returncode == 6
        assert served.asked == 0
    assert "30 rows: 0 answered, 0 failed, 30 pending" in done.stderr
    assert "in.jsonl:1 may take" in done.stderr
    assert (
        "to go on (with a higher bound, or a smaller max_tokens in that row): batchrouter run in.jsonl" in done.stderr
    )


def test_answers_that_tell_no_usage_are_counted_at_their_worst(shell: Warm, tmp_path: Path) -> None:
    """Half of them without usage: what is reckoned stays within the bound, and the reason says so."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, f"x{n}", max_tokens=100) for n in range(40)])

    def script(heard: Heard) -> Iterable[Step]:
        body = right(heard)
        if int(heard.said[1:]) % 2:
            del body["usage"]
        return [http(200, body)]

    with hostile(script) as server:
        done = shell.run("run", "in.jsonl", "--max-tokens", "2500", cwd=tmp_path, env=server.environment)
        assert done.returncode == 6
        asked = [len(heard.raw) + 100 if int(heard.said[1:]) % 2 else 5 for heard in server.heard]
    assert 2000 < sum(asked) <= 2500
    assert "requests that told no usage, at their worst" in done.stderr


def test_a_model_without_a_price_is_an_error_under_max_cost(shell: Warm, tmp_path: Path) -> None:
    """Exit 2 with the lines to add, also where only a fallback has none; nothing is sent."""
    (tmp_path / "batchrouter.toml").write_text(PRICES, "utf-8")
    write_jsonl(tmp_path / "in.jsonl", [request_row(0)])
    with serving() as served:
        for options in (("--override-model", "gpt-5.4-mini"), ("--fallback-model", "gpt-5.4-mini")):
            done = shell.run("run", "in.jsonl", "--max-cost", "1", *options, cwd=tmp_path, env=served.environment)
            assert done.returncode == 2
            assert '[model."gpt-5.4-mini"] prompt = ' in done.stderr
        assert served.asked == 0


def test_defaults_of_a_model_are_reckoned_with(shell: Warm, tmp_path: Path) -> None:
    """A `max_tokens` that the config file adds to the body is what the row may take."""
    (tmp_path / "batchrouter.toml").write_text('[model."gpt-5.4"]\nbody = { max_tokens = 5000 }\n', "utf-8")
    write_jsonl(tmp_path / "in.jsonl", [request_row(0)])
    with serving() as served:
        done = shell.run("run", "in.jsonl", "--max-tokens", "4999", cwd=tmp_path, env=served.environment)
        assert done.returncode == 6, done.stderr
        assert served.asked == 0


def test_max_time_ends_in_time_for_what_is_in_flight(shell: Warm, tmp_path: Path) -> None:
    """Answers of 0.4 s, 3 s allowed, no grace at all: exit 6 with every answer that was asked for recorded."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(200)])
    with serving(Behaviour(latency=Latency(0.4))) as served:
        options = ("--max-time", "3s", "--concurrency", "4", "--grace", "0s")
        done = shell.run("run", "in.jsonl", *options, cwd=tmp_path, env=served.environment)
        assert done.returncode == 6, done.stderr
        found = books(tmp_path / "in.run")
        assert served.asked == len(found.results)
        assert 4 <= len(found.results) < 40
    assert found.errors == []
    assert f"{200 - len(found.results)} pending" in done.stderr
    assert "stopped: --max-time 3 s reached" in done.stderr


def test_until_is_local_time(shell: Warm, tmp_path: Path) -> None:
    """In a zone of its own, with the night's end a minute ago or some hours ahead: the run is not stopped."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(3)])
    with serving() as served:
        for minutes in (-1, 300):
            clock = (datetime.now().astimezone() + timedelta(minutes=minutes)).strftime("%H:%M")
            options = ("--until", clock, "-o", f"{minutes}.run")
            done = shell.run("run", "in.jsonl", *options, cwd=tmp_path, env=served.environment)
            assert done.returncode == 0, done.stderr


def test_failures_within_the_ratio_are_success(shell: Warm, tmp_path: Path) -> None:
    """29 of 100 rows fail: 0 from a ratio of 0.29 on, else 1; the summary tells of them either way."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, "good" if n < 71 else "bad") for n in range(100)])

    def script(heard: Heard) -> Iterable[Step]:
        return [http(200, right(heard)) if heard.said == "good" else http(400, {"error": {"message": "no"}})]

    with hostile(script) as server:
        for ratio, code in (("0.29", 0), ("0.28", 1), ("0.3", 0), ("1", 0), ("0", 1)):
            done = shell.run("run", "in.jsonl", "--max-fail-ratio", ratio, cwd=tmp_path, env=server.environment)
            assert done.returncode == code, ratio
            assert ", 29 failed, 0 pending" in done.stderr
        assert len(server.heard) == 100
