"""What each answer means for its row and for the run, as the contract's table has it, and what a newcomer reads of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from kit.hostile import Heard, Step, hostile, http, opened, piece, right
from kit.world import lines_in, read_jsonl, request_row, run, running, serving, wait_until, write_jsonl

from batchrouter.emulator import Behaviour

Script = Callable[[Heard], Iterable[Step]]

TOLD = {"error": {"message": "told", "type": "t", "param": None, "code": None}}


def fixed(*steps: Step) -> Script:
    return lambda _: list(steps)


def inner(**error: Any) -> Script:
    """A 200 that holds an error in place of an answer."""
    return fixed(http(200, {"error": {"message": "inner", **error}}))


def in_stream(text: bytes) -> Script:
    return fixed(
        opened(), piece(b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n' + text), piece(b"")
    )


def refused(status: int, body: Any = TOLD, *headers: str) -> Script:
    return fixed(http(status, body, *headers))


# script -> status kept under `response`, `error.code`, attempts of the two that a row has
ROWS: dict[str, tuple[Script, int | None, str | None, int]] = {
    **{
        f"{status}": (refused(status), status, None, 1)
        for status in (400, 403, 404, 405, 406, 407, 410, 413, 414, 415, 416, 418, 422, 424, 426, 428, 431, 451, 499)
    },
    **{
        f"{status}": (refused(status), status, "attempts_exhausted", 2)
        for status in (201, 202, 203, 206, 226, 408, 409, 421, 423, 425, 500, 501, 505, 511, 530, 599, 600, 999)
    },
    "204": (fixed(b"HTTP/1.1 204 No Content\r\n\r\n"), 204, "attempts_exhausted", 2),
    "500, final": (refused(500, TOLD, "x-should-retry: false"), 500, None, 1),
    "422, not final": (refused(422, TOLD, "x-should-retry: true"), 422, "attempts_exhausted", 2),
    "inner 400": (inner(code=400), 400, None, 1),
    "inner '404'": (inner(code="404"), 404, None, 1),
    "inner 403 by name": (inner(type="permission_error"), 403, None, 1),
    "inner 503": (inner(code=503), 503, "attempts_exhausted", 2),
    "inner overload": (inner(type="overloaded_error"), 529, "attempts_exhausted", 2),
    "inner riddle": (inner(code="huh"), 502, "attempts_exhausted", 2),
    "inner string": (fixed(http(200, {"error": "upstream"})), 502, "attempts_exhausted", 2),
    "streamed 400": (in_stream(b'data: {"error": {"code": 400, "message": "m"}}\n\n'), 400, None, 1),
    "streamed 502": (in_stream(b'event: error\ndata: {"message": "m"}\n\n'), 502, "attempts_exhausted", 2),
    "streamed half": (in_stream(b"data: [DONE]\n\n"), None, "bad_response", 2),
    "no JSON": (fixed(http(200, b"<html>")), None, "bad_response", 2),
    "no choices": (fixed(http(200, {"choices": []})), None, "bad_response", 2),
    "cut": (fixed(http(200, b'{"choices": [', length=99), "close"), None, "bad_response", 2),
    "reset": (fixed("reset"), None, "connection", 2),
    "silence": (fixed("stall"), None, "timeout", 2),
    "moved": (refused(307, b"", "location: https://elsewhere.invalid/v1"), None, "redirect", 1),
}
# script of the first two attempts, which count for nothing: the third is answered, though a row has only two
LATER: dict[str, Script] = {
    "429, final": refused(429, TOLD, "x-should-retry: false", "retry-after: 0.1"),
    "inner 429": fixed(http(200, {"error": {"code": "rate_limit_exceeded"}}, "retry-after-ms: 50")),
}


def table() -> Script:
    asked: Counter[str] = Counter()

    def script(heard: Heard) -> Iterable[Step]:
        name = heard.said
        asked[name] += 1
        if name in ROWS:
            return ROWS[name][0](heard)
        return LATER[name](heard) if name in LATER and asked[name] <= 2 else [http(200, right(heard))]

    return script


def test_what_each_answer_means_for_its_row(tmp_path: Path) -> None:
    """Its status and body kept or its code, after as many attempts as the table says; rows beside it are answered."""
    rows = []
    for n, name in enumerate(ROWS):
        streamed: dict[str, Any] = {"stream": True} if name.startswith("streamed") else {}
        rows.append({**request_row(n, name, **streamed), "custom_id": name})
        rows += [{**request_row(n, f"good {n} {i}"), "custom_id": f"good {n} {i}"} for i in range(4)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    options = ("--max-attempts", "2", "--idle-timeout", "1", "--concurrency", "12")
    with hostile(table()) as server:
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment, dev_mode=True)
    assert done.returncode == 1, done.stderr
    failed = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/errors.jsonl")}
    found = {
        name: (
            row["response"] and row["response"]["status_code"],
            row["error"] and row["error"]["code"],
            row["batchrouter"]["attempts"],
        )
        for name, row in failed.items()
    }
    assert found == {name: (status, code, attempts) for name, (_, status, code, attempts) in ROWS.items()}
    for name, (_, status, _, _) in ROWS.items():
        if name.isdigit() and name != "204":
            assert failed[name]["response"]["body"] == TOLD, name
        assert (failed[name]["response"] is None) is (status is None)
    answered = {row["custom_id"] for row in read_jsonl(tmp_path / "in.run/results.jsonl")}
    assert answered == {row["custom_id"] for row in rows} - ROWS.keys()


def test_limits_use_up_no_attempt(tmp_path: Path) -> None:
    """Limited twice, with two attempts allowed, and answered at the third; also where the server says not to retry."""
    write_jsonl(tmp_path / "in.jsonl", [{**request_row(n, name), "custom_id": name} for n, name in enumerate(LATER)])
    with hostile(table()) as server:
        done = run("run", "in.jsonl", "--max-attempts", "2", cwd=tmp_path, env=server.environment, dev_mode=True)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "in.run/results.jsonl")
    assert {row["custom_id"]: row["batchrouter"]["attempts"] for row in rows} == dict.fromkeys(LATER, 3)


BODIES: dict[str, tuple[bytes, str, dict[str, Any] | None]] = {
    "OpenAI": (b'{"error": {"message": "m1", "code": 7}}', "m1", None),
    "a string": (b'{"error": "m2"}', "m2", None),
    "FastAPI": (b'{"detail": "m3"}', "m3", None),
    "FastAPI's list": (b'{"detail": [{"loc": ["body"], "msg": "m4"}]}', "m4", None),
    "message": (b'{"message": "m5\\u001b[31m\\n!"}', "m5 [31m !", None),
    "page": (b"<html>\r\n<b>m6</b></html>", "<html> <b>m6</b></html>", {"error": {"message": "<html> <b>m6</b></html>", "type": "non_json_body"}}),
    "nothing": (b"", "non_json_body", {"error": {"message": "", "type": "non_json_body"}}),
    "a list": (b"[1]", "[1]", {"error": {"message": "[1]", "type": "non_json_body"}}),
    "a flood": (b"m9 " * 100_000, "m9 m9", {"error": {"message": ("m9 " * 700)[:2000], "type": "non_json_body"}}),
}  # fmt: skip


def test_an_error_of_any_shape_is_one_line(tmp_path: Path) -> None:
    """Its body is kept, or (where it is no JSON object) its text, cleaned and bounded; the message is bounded as well."""
    names = list(BODIES)
    statuses = dict(zip(names, (400, 404, 405, 406, 410, 413, 415, 422, 451), strict=True))
    rows = [{**request_row(n, name), "custom_id": name} for n, name in enumerate(names)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with hostile(lambda heard: [http(statuses[heard.said], BODIES[heard.said][0])]) as server:
        done = run("run", "in.jsonl", cwd=tmp_path, env=server.environment)
    assert done.returncode == 1
    causes = [line for line in done.stderr.splitlines() if " x " in line]
    assert len(causes) == len(BODIES)
    assert all(len(line) < 360 for line in causes)
    failed = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/errors.jsonl")}
    for n, (name, (_, message, body)) in enumerate(BODIES.items()):
        [line] = [line for line in causes if f" x {statuses[name]}" in line]
        assert f", for example in.jsonl:{n + 1}: {message}" in line
        if body is not None:
            assert failed[name]["response"]["body"] == body


STOPS: dict[str, tuple[Script, int, str, str]] = {
    "401": (refused(401), 3, "the key is refused (401): told",
            "check that the key is set correctly and has not been revoked in the dashboard"),
    "402": (refused(402), 4, "credits are spent (402): told", "top up on the Credits page"),
    "403 everywhere": (refused(403), 3, "the first 20 rows to end have all failed alike (403 t): told",
                       "check that the key may use this model, and what the rows say"),
    "400 everywhere": (refused(400), 5, "the first 20 rows to end have all failed alike (400 t): told",
                       "check the fields of the body, and the model's id: case matters, `batchrouter models` lists them"),
    "429 for ever": (refused(429), 5, "the endpoint answers nothing but 429 (rate limited)",
                     "back off: come later, or spread the load across models"),
    "500 for ever": (refused(500), 5, "the endpoint has been down for 0.3 s: 500: told", "when it is back"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_a_run_blames_no_row(tmp_path: Path, name: str) -> None:
    """Its exit code; nothing in errors.jsonl, every row pending; why, what to do, and what to type, a line each."""
    script, code, reason, remedy = STOPS[name]
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(40)])
    with hostile(script) as server:
        options = ("--max-wait", "0.3", "--max-outage", "0.3")
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment, dev_mode=True)
        assert len(server.heard) <= 60
    assert done.returncode == code, done.stderr
    assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []
    lines = done.stderr.splitlines()
    assert "40 rows: 0 answered, 0 failed, 40 pending" in lines
    assert lines[-2:] == [
        f"stopped: {reason}",
        f"to go on ({remedy}): batchrouter run in.jsonl --max-wait 0.3 --max-outage 0.3",
    ]


def test_failures_are_told_by_cause_with_the_fix(tmp_path: Path) -> None:
    """The most frequent cause first: how many, one example, and the advice of the endpoint's reference; then how to
    ask them again.
    """
    said = ["400"] * 3 + ["500"] * 2 + ["good"] * 10 + ["200"]
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, text) for n, text in enumerate(said)] + [{"model": "m"}])

    def script(heard: Heard) -> Iterable[Step]:
        body = {"error": {"message": f"no {heard.said}", "code": "c"}}
        return [http(200, right(heard)) if heard.said == "good" else http(int(heard.said), body)]

    options = ("--max-attempts", "1", "--concurrency", "1")  # so that the first of each cause is the first to fail
    with hostile(script) as server:
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if " tokens " not in line] == [
        "17 rows: 10 answered, 7 failed, 0 pending",
        "  3 x 400 c, for example in.jsonl:1: no 400",
        "    fix: check the fields of the body, and the model's id: case matters, `batchrouter models` lists them",
        "  2 x 500 c, for example in.jsonl:4: still 500 after 1 attempts: no 500",
        "    fix: run them again with --retry 5xx; if it persists, try a different model or contact support",
        "  1 x invalid_row, for example in.jsonl:17: there is no messages",
        "    fix: mend these lines, then start the same command again",
        "  1 x 502 c, for example in.jsonl:16: still 502 after 1 attempts: no 200",
        "    fix: run them again with --retry 5xx; if it persists, try a different model or contact support",
        "answers: in.run/results.jsonl",
        "failures: in.run/errors.jsonl",
        "to ask failed rows again, once the cause is mended: batchrouter run in.jsonl --max-attempts 1 --concurrency 1 --retry all",
    ]


def test_after_a_top_up_the_same_command_goes_on(tmp_path: Path) -> None:
    """Credits for 30 of 80 rows: 4 with 50 pending and none failed; topped up, the same command asks just those. One
    that waits for credits does so without being started again, or gives up at the end of its time.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(80)])
    with serving(Behaviour(balance=30.0)) as served:
        for options in ((), ("--wait-for-credits=0.3s",)):
            done = run("run", "in.jsonl", *options, cwd=tmp_path, env=served.environment)
            assert done.returncode == 4, done.stderr
            assert "80 rows: 30 answered" in done.stderr
            assert "0 failed, 50 pending" in done.stderr
            assert "(top up on the Credits page): batchrouter run in.jsonl" in done.stderr
        served.call(lambda emulator: setattr(emulator.behaviour.account, "balance", 20.0))
        with running("run", "in.jsonl", "--wait-for-credits", "1.5s", cwd=tmp_path, env=served.environment) as process:
            wait_until(lambda: lines_in(tmp_path / "in.run/results.jsonl") == 50 and told(tmp_path, "credits"))
            served.call(lambda emulator: setattr(emulator.behaviour.account, "balance", None))
            assert process.wait(60) == 0
    assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []
    assert len({row["custom_id"] for row in read_jsonl(tmp_path / "in.run/results.jsonl")}) == 80


def told(folder: Path, event: str) -> bool:
    """Whether events.jsonl has it."""
    return f'"{event}"' in (folder / "in.run/events.jsonl").read_text("utf-8")
