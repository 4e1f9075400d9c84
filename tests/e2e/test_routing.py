"""Several endpoints by a config file: the command, real sockets, and endpoints that fail while it runs."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit.world import Served, has_lines, read_jsonl, request_row, run, running, serving, wait_until, write_jsonl

from batchrouter.emulator import Behaviour, Latency, Limits

KEYS = {"KEY_A": "sk-of-the-first-00001", "KEY_B": "sk-of-the-second-0002"}


def endpoint(name: str, served: Served, **rest: Any) -> str:
    lines = {"name": name, "base_url": served.emulator.base_url, "key_env": f"KEY_{name.upper()}", **rest}
    return "[[endpoint]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def two(stack: ExitStack, **rest: Any) -> tuple[Served, Served]:
    """Two emulators, each with a key of its own."""
    return tuple(  # type: ignore[return-value]
        stack.enter_context(serving(Behaviour(key=key, latency=Latency(0.02), **rest))) for key in KEYS.values()
    )


def test_rows_are_spread_and_each_result_says_who_answered(tmp_path: Path) -> None:
    """Each endpoint is sent its own key and id of the model, and nothing else is touched; costs add up by both."""
    rows = [request_row(n, temperature=0.5) for n in range(120)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with ExitStack() as stack:
        first, second = two(stack, models=("gpt-5.4", "local/gpt"), journal=True)
        (tmp_path / "batchrouter.toml").write_text(
            endpoint("a", first)
            + endpoint("b", second, models={"gpt-5.4": "local/gpt"}).replace('{"gpt-5.4": ', '{ "gpt-5.4" = ')
            + '[model."gpt-5.4"]\nprompt = 2.5\ncompletion = 10\n'
        )
        done = run("run", "in.jsonl", "--concurrency", "8", cwd=tmp_path, env=KEYS)
        assert done.returncode == 0, done.stderr
        asked = Counter({"a": first.asked, "b": second.asked})
    found = read_jsonl(tmp_path / "in.run/results.jsonl")
    assert sorted(row["custom_id"] for row in found) == sorted(row["custom_id"] for row in rows)
    assert Counter(row["batchrouter"]["endpoint"] for row in found) == asked
    assert min(asked.values()) >= 20
    for row in found:
        assert row["batchrouter"]["model"] == "gpt-5.4"
        expected = "gpt-5.4" if row["batchrouter"]["endpoint"] == "a" else "local/gpt"
        assert row["response"]["body"]["model"] == expected
    by_model, *by_endpoint, total = read_jsonl(tmp_path / "in.run/usage.jsonl")
    assert [line["endpoint"] for line in by_endpoint] == ["a", "b"]
    assert [line["requests"] for line in by_endpoint] == [asked["a"], asked["b"]]
    usages = [row["batchrouter"]["usage"] for row in found]
    cost = sum(usage["prompt_tokens"] * 2.5 + usage["completion_tokens"] * 10 for usage in usages) / 1e6
    for line in (by_model, total):
        assert line["cost"] == pytest.approx(cost, abs=1e-9)
    assert sum(line["cost"] for line in by_endpoint) == pytest.approx(cost, abs=1e-9)
    assert "gpt-5.4 at a: " in done.stderr
    verified = run("verify", "in.run", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert not any(key in path.read_bytes().decode() for key in KEYS.values() for path in tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("failure", ["401", "402", "status_503", "reset_before_headers"])
def test_one_of_two_fails_and_is_used_again_when_it_is_back(tmp_path: Path, failure: str) -> None:
    """No row is burned; the other carries on meanwhile; afterwards both answer."""
    rows = [request_row(n) for n in range(1600)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with ExitStack() as stack:
        first, second = two(stack)
        (tmp_path / "batchrouter.toml").write_text(endpoint("a", first) + endpoint("b", second))
        results = tmp_path / "in.run/results.jsonl"
        with running("run", "in.jsonl", "--concurrency", "8", "--progress", "none", cwd=tmp_path, env=KEYS) as process:
            wait_until(partial(has_lines, results, 200))
            fail(first, failure)
            wait_until(partial(has_lines, results, 500))
            asked = first.asked
            fail(first, "")
            assert process.wait(60) == 0
        assert first.asked > asked + 100
    found = read_jsonl(results)
    assert len(found) == len({row["custom_id"] for row in found}) == 1600
    assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []


def fail(served: Served, failure: str) -> None:
    """From now on every request meets this fault, or none."""
    if failure in {"401", "402"}:
        key = KEYS["KEY_A"] if failure != "401" else "another"

        def change(emulator: Any) -> None:
            emulator.behaviour.account.key = key
            emulator.behaviour.account.balance = 0.0 if failure == "402" else None

        served.call(change)
    else:
        served.call(lambda emulator: setattr(emulator.behaviour, "faults", {failure: 1.0} if failure else {}))
        if not failure:
            served.call(lambda emulator: setattr(emulator.behaviour.account, "key", KEYS["KEY_A"]))
            served.call(lambda emulator: setattr(emulator.behaviour.account, "balance", None))


def test_a_model_of_a_pool_that_nobody_has_burns_no_row(tmp_path: Path) -> None:
    """The others stand in for it, as the pool says; it is asked no more, and the summary names it."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(400)])
    (tmp_path / "batchrouter.toml").write_text('[pool.crew]\nmodels = ["gpt-5.4", "gpt-nobody", "gpt-5.4-mini"]\n')
    with serving(Behaviour(models=("gpt-5.4", "gpt-5.4-mini"), latency=Latency(0.05))) as served:
        done = run("run", "in.jsonl", "--override-model", "crew", cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        assert served.asked < 400 + 100
    assert {row["batchrouter"]["model"] for row in read_jsonl(tmp_path / "in.run/results.jsonl")} == {
        "gpt-5.4",
        "gpt-5.4-mini",
    }
    assert "gpt-nobody: 0 answered (no such model)" in done.stderr
    events = read_jsonl(tmp_path / "in.run/events.jsonl")
    assert [event["model"] for event in events if event["event"] == "model_gone"] == ["gpt-nobody"]


def test_unknown_limits_of_two_endpoints_are_both_used(tmp_path: Path) -> None:
    """100 and 300 requests a second: the quicker gets more of the rows, and hardly any is refused."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(1200)])
    with ExitStack() as stack:
        served = [
            stack.enter_context(
                serving(Behaviour(key=key, latency=Latency(0.05), limits=Limits(requests_per_minute=rpm, burst=20)))
            )
            for key, rpm in zip(KEYS.values(), (6_000, 18_000), strict=True)
        ]
        (tmp_path / "batchrouter.toml").write_text("".join(map(endpoint, "ab", served)))
        done = run("run", "in.jsonl", cwd=tmp_path, env=KEYS)
        assert done.returncode == 0, done.stderr
    shares = Counter(row["batchrouter"]["endpoint"] for row in read_jsonl(tmp_path / "in.run/results.jsonl"))
    assert shares["b"] > shares["a"] > 100
    assert sum(one.asked for one in served) <= 1200 * 1.03


def test_a_pool_and_a_fallback_by_the_command(tmp_path: Path) -> None:
    """--model names a pool; --fallback-model stands in for a model that nobody has; the summary says so."""
    rows = [request_row(n) for n in range(60)]
    for number, row in enumerate(rows):
        row["body"]["model"] = "any" if number % 2 else "retired"
    write_jsonl(tmp_path / "in.jsonl", rows)
    (tmp_path / "batchrouter.toml").write_text('[pool.any]\nmodels = ["one", "two"]\n')
    with serving(Behaviour(models=("one", "two"))) as served:
        done = run("run", "in.jsonl", "--fallback-model", "two", cwd=tmp_path, env=served.environment)
    assert done.returncode == 0, done.stderr
    found = {row["custom_id"]: row["batchrouter"]["model"] for row in read_jsonl(tmp_path / "in.run/results.jsonl")}
    assert {found[row["custom_id"]] for row in rows if row["body"]["model"] == "retired"} == {"two"}
    assert {found[row["custom_id"]] for row in rows if row["body"]["model"] == "any"} == {"one", "two"}
    assert "30 rows went from retired to two" in done.stderr


def test_a_model_that_nobody_serves_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """Exit 2, with the model and what to do."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(1)])
    with serving(Behaviour(key=KEYS["KEY_A"])) as served:
        (tmp_path / "batchrouter.toml").write_text(endpoint("a", served, models=["other"]))
        done = run("run", "in.jsonl", cwd=tmp_path, env=KEYS)
        assert done.returncode == 2
        assert "'gpt-5.4'" in done.stderr
        assert served.asked == 0
