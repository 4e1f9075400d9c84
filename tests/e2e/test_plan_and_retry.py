"""What a second start makes of failed, changed and equal rows: `--retry`, `--changed`, `--dedupe`, and `plan` before it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from kit.promises import Books, books, check_questions
from kit.warm import Warm, warm
from kit.world import Served, request_row, serving, write_jsonl

from batchrouter.emulator import Behaviour


@pytest.fixture(scope="module")
def shell() -> Iterator[Warm]:
    with warm() as shell:
        yield shell


class Desk:
    """A folder with one input, one run directory and one endpoint, at which commands are typed."""

    def __init__(self, shell: Warm, folder: Path, served: Served) -> None:
        self.shell = shell
        self.folder = folder
        self.served = served
        self.directory = folder / "in.run"

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_jsonl(self.folder / "in.jsonl", rows)

    def type(self, *arguments: str) -> CompletedProcess[str]:
        return self.shell.run(*arguments, cwd=self.folder, env=self.served.environment)

    def start(self, *options: str, code: int = 0) -> tuple[list[str], Books]:
        """Run it: the questions that were asked meanwhile, and the books."""
        before = self.asked()
        done = self.type("run", "in.jsonl", *options)
        assert done.returncode == code, done.stderr
        asked = [question for question, times in self.asked().items() for _ in range(times - before.get(question, 0))]
        return asked, books(self.directory)

    def asked(self) -> dict[str, int]:
        """Completion's id -> how often it was asked."""
        journal = self.served.emulator.stats.journal
        assert journal is not None
        return {name: row.asked for name, row in journal.items()}

    def questions(self, rows: Iterable[Mapping[str, Any]], *ids: str) -> list[str]:
        """The completions' ids of the rows with these ids."""
        bodies = {row["custom_id"]: row["body"] for row in rows}
        return sorted(self.served.emulator.answer(bodies[custom_id])["id"] for custom_id in ids)

    def plan(self, *options: str) -> dict[str, Any]:
        done = self.type("plan", "in.jsonl", "--json", *options)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def named(custom_id: str, content: str, **body: Any) -> dict[str, Any]:
    return {**request_row(0, content, **body), "custom_id": custom_id}


# Each fails once, in its own way, and then no more; a connection that is reset may be free to try again, so that row
# fails each time.
TROUBLES = {
    "bad": ("status_400*1", 400), "lost": ("status_404*1", 404), "broken": ("status_500*1", "attempts_exhausted"),
    "away": ("status_503*1", "attempts_exhausted"), "slow": ("stall_before_headers*1", "timeout"),
    "cut": ("reset_before_headers", "connection"), "odd": ("invalid_json*1", "bad_response"),
    "short": ("empty_length*1", "truncated"), "moved": ("redirect_302*1", "redirect"),
}  # fmt: skip


def test_each_class_of_retry_asks_its_own_rows_and_no_others(shell: Warm, tmp_path: Path) -> None:
    """--retry with a status, 4xx, 5xx, each code, several, all: those rows move to superseded.jsonl as they were and are
    asked; no other row is asked or moved, and the totals are the sum over all three files.
    """
    rows = [named(name, f"[[fault:{fault}]] {name}") for name, (fault, _) in TROUBLES.items()]
    rows = [row for n, bad in enumerate(rows) for row in (bad, *(request_row(9 * n + i) for i in range(5)))]
    options = ("--max-attempts", "1", "--timeout", "2s", "--on-truncated", "fail")
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        _, found = desk.start(*options, code=1)
        assert {name: found.failure(name) for name in found.failed} == {n: code for n, (_, code) in TROUBLES.items()}
        assert len(found.answered) == 5 * len(TROUBLES)
        steps = [
            ("404", ["lost"]), ("4xx", ["bad"]), ("503", ["away"]), ("timeout", ["slow"]), ("connection", ["cut"]),
            ("truncated,bad_response", ["odd", "short"]), ("5xx", ["broken"]), ("4xx", []), ("all", ["cut", "moved"]),
        ]  # fmt: skip
        for classes, names in steps:
            before = found
            asked, found = desk.start(*options, "--retry", classes, code=1)
            assert sorted(set(asked)) == desk.questions(rows, *names), classes
            assert found.superseded == before.superseded + [row for row in before.errors if row["custom_id"] in names]
            assert [row for row in found.errors if row["custom_id"] not in names] == [
                row for row in before.errors if row["custom_id"] not in names
            ]
            assert found.results[: len(before.results)] == before.results
            assert found.answered == before.answered | set(names) - {"cut"}
        check_questions(found, rows, served)


def test_truncated_answers_are_taken_out_of_the_results(shell: Warm, tmp_path: Path) -> None:
    """--retry truncated: an answer that was cut off before it said anything is asked again, though it counts as one;
    `all` means what failed, and leaves it alone.
    """
    rows = [named("short", "[[fault:empty_length*1]] short"), named("bad", "[[fault:status_400]] bad"), request_row(1)]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        _, first = desk.start(code=1)
        assert first.answered == {"short", "row-1"}
        assert desk.start("--retry", "all", code=1)[0] == desk.questions(rows, "bad")
        asked, found = desk.start("--retry", "truncated", code=1)
        assert asked == desk.questions(rows, "short")
        assert found.answered == {"short", "row-1"}
        assert found.taken_out == ["bad", "short"]
        check_questions(found, rows, served)


def test_a_failed_row_that_was_mended_may_be_asked_again(shell: Warm, tmp_path: Path) -> None:
    """`--retry once the cause is mended`, where the cause was the row: its new body is asked. Nothing answered is at
    stake, so it is no change to ask about; an answered row that was edited besides still is.
    """
    rows = [named("a", "[[fault:status_400]] one"), request_row(1), request_row(2)]
    mended = [named("a", "one, mended"), *rows[1:]]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        _, before = desk.start(code=1)
        desk.write([*mended[:2], request_row(2, "another question")])
        asked, found = desk.start("--retry", "400", code=2)
        assert (asked, found) == ([], before)
        desk.write(mended)
        assert desk.plan("--retry", "400")["new"] == 1
        asked, found = desk.start("--retry", "400")
        assert asked == desk.questions(mended, "a")
        assert found.taken_out == ["a"]
        check_questions(found, mended, served)


@pytest.mark.parametrize("refused", [("--strict",), ("--max-cost", "1")], ids=lambda options: options[0])
def test_a_start_that_is_refused_moves_no_row(shell: Warm, tmp_path: Path, refused: tuple[str, ...]) -> None:
    """Exit 2 means that nothing was done: failed rows are where they were, for all that --retry was there too."""
    rows = [named("bad", "[[fault:status_400*1]] x"), request_row(1), {"custom_id": "invalid", "body": {}}]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        _, before = desk.start(code=1)
        assert desk.start("--retry", "all", *refused, code=2) == ([], before)
        assert desk.start("--retry", "all", code=1)[0] == desk.questions(rows, "bad")


EDITS = {"edited": "another question", "kept": "kept"}


def test_what_became_of_the_input_is_told_refused_kept_or_asked_again(shell: Warm, tmp_path: Path) -> None:
    """An input that was edited, reordered, grown and shrunk at once: `plan` counts it, `run` stops with the first lines
    and asks nothing; `keep` asks what is new alone; `rerun` what changed as well, and throws nothing away.
    """
    old = [named(f"row-{n}", f"question {n}") for n in range(8)]
    new = [old[6], named("new-1", "one"), named("row-2", "edited two"), *old[3:6], named("row-0", "edited nought")]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(old)
        _, first = desk.start()
        desk.write(new)
        plan = desk.plan()
        assert {name: plan[name] for name in ("rows", "new", "answered", "failed", "changed", "removed")} == {
            "rows": 7, "new": 1, "answered": 4, "failed": 0, "changed": 2, "removed": 2,
        }  # fmt: skip
        done = desk.type("run", "in.jsonl")
        assert done.returncode == 2
        assert "2 rows" in done.stderr
        assert "in.jsonl:3, in.jsonl:7" in done.stderr
        assert "--changed rerun" in done.stderr
        assert books(desk.directory) == first

        assert desk.plan("--changed", "keep")["new"] == 1
        asked, kept = desk.start("--changed", "keep")
        assert asked == desk.questions(new, "new-1")
        check_questions(kept, [*old, new[1]], served)
        verified = desk.type("verify", "in.run")
        assert verified.returncode == 0, verified.stdout
        assert "2 rows keep their answers to other bodies" in verified.stdout
        assert desk.start("--changed", "keep") == ([], kept)
        assert desk.type("run", "in.jsonl").returncode == 2  # what was kept was kept for one start, not for good

        assert desk.plan("--changed", "rerun")["new"] == 2
        asked, found = desk.start("--changed", "rerun")
        assert sorted(asked) == desk.questions(new, "row-0", "row-2")
        assert sorted(found.taken_out) == ["row-0", "row-2"]
        check_questions(found, [*new, old[1], old[7]], served)
        assert desk.start() == ([], found)


def test_a_changed_setting_is_a_change_of_the_rows_it_touches(shell: Warm, tmp_path: Path) -> None:
    """--model touches rows without one, --set rows that lack the field, --override-model those of another model: these
    and no others are refused, or asked again.
    """
    bare = [{"messages": [{"role": "user", "content": f"bare {n}"}]} for n in range(2)]
    rows = [
        {"custom_id": "bare", "body": bare[0]},
        {"custom_id": "warm", "body": {**bare[1], "model": "gpt-5.4", "temperature": 1.0}},
        {"custom_id": "plain", "body": {**bare[1], "model": "gpt-5.4-mini"}},
    ]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        assert len(desk.start("--model", "gpt-5.4")[0]) == 3
        assert desk.start("--model", "gpt-5.4", "--stream")[0] == []
        for options, places in (
            (("--model", "claude-haiku-5"), "in.jsonl:1"),
            (("--model", "gpt-5.4", "--set", "temperature=0"), "in.jsonl:1, in.jsonl:3"),
            (("--override-model", "gpt-5.4"), "in.jsonl:3"),
        ):
            assert desk.plan(*options)["changed"] == places.count(":")
            done = desk.type("run", "in.jsonl", *options)
            assert done.returncode == 2
            assert f"body: {places}\n" in done.stderr
            asked, _ = desk.start(*options, "--changed", "rerun")
            assert len(asked) == places.count(":")
            desk.start("--model", "gpt-5.4", "--changed", "rerun")


def test_equal_bodies_are_sent_once_where_asked(shell: Warm, tmp_path: Path) -> None:
    """--dedupe: one request for all rows with a body, each answered under its own id; a failure is the failure of all;
    without it each is asked. `plan` says what it would save, also of what was answered before.
    """
    rows = [named(f"row-{n}", f"question {n % 3}") for n in range(9)]
    rows += [named(f"bad-{n}", "[[fault:status_400]] bad") for n in range(2)]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        plain, saving = desk.plan(), desk.plan("--dedupe")
        assert (plain["new"], plain["equal_bodies"]) == (11, 7)
        assert saving["equal_bodies"] == 7
        assert saving["tokens"] < plain["tokens"]
        assert desk.start("--limit", "1")[0] == desk.questions(rows, "row-0")
        assert desk.plan()["equal_bodies"] == 7
        asked, found = desk.start("--dedupe", code=1)
        assert sorted(asked) == desk.questions(rows, "row-1", "row-2", "bad-0")
        assert found.answered == {f"row-{n}" for n in range(9)}
        assert {name: found.failure(name) for name in found.failed} == {"bad-0": 400, "bad-1": 400}
        check_questions(found, rows, served)
        assert sum(row["batchrouter"]["attempts"] for row in found.results + found.errors) == 4
        for row in found.results:  # a row's answer says what it is, whoever asked for it
            about = row["batchrouter"]
            assert (about["model"], about["truncated"], about["file"]) == ("gpt-5.4", False, "in.jsonl")
            assert about["endpoint"]
        asked, found = desk.start("--dedupe", "--retry", "all", code=1)
        assert asked == desk.questions(rows, "bad-0")
        other, _ = desk.type("run", "in.jsonl", "-o", "plain.run"), None
        assert other.returncode == 1
        assert len(books(tmp_path / "plain.run").results) == 9


def test_an_old_answer_is_nobody_elses(shell: Warm, tmp_path: Path) -> None:
    """--dedupe beside --changed keep: a row that asks what an edited row asks now does not get what that one was
    answered before.
    """
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write([named("a", "one")])
        desk.start()
        rows = [named("a", "two"), named("b", "two"), named("c", "one")]
        desk.write(rows)
        asked, found = desk.start("--changed", "keep", "--dedupe")
        assert sorted(asked) == desk.questions(rows, "b", "c")
        check_questions(found, [named("a", "one"), *rows[1:]], served)


def test_equal_bodies_to_different_places_are_different_requests(shell: Warm, tmp_path: Path) -> None:
    """An embedding and a response may have the same body: neither is taken for the other, by --dedupe or a later start."""
    body = {"model": "text-embedding-3", "input": "the same"}
    rows = [
        {"custom_id": path, "method": "POST", "url": f"/v1/{path}", "body": body}
        for path in ("embeddings", "responses")
    ]
    with serving() as served:
        desk = Desk(shell, tmp_path, served)
        write_jsonl(tmp_path / "in.jsonl", rows)
        assert desk.type("run", "in.jsonl", "--dedupe").returncode == 0
        kinds = {row["custom_id"]: row["response"]["body"]["object"] for row in books(desk.directory).results}
        assert kinds == {"embeddings": "list", "responses": "response"}
        rows[0]["url"] = "/v1/responses"
        write_jsonl(tmp_path / "in.jsonl", rows)
        assert desk.type("run", "in.jsonl").returncode == 2


def test_a_limit_keeps_its_hands_off_the_rest(shell: Warm, tmp_path: Path) -> None:
    """What is beyond --limit is no part of a start: an edit there neither stops it nor is taken out."""
    rows = [request_row(0), named("bad", "[[fault:status_400*1]] x"), request_row(2)]
    with serving(Behaviour(journal=True)) as served:
        desk = Desk(shell, tmp_path, served)
        desk.write(rows)
        _, before = desk.start(code=1)
        rows[2] = request_row(2, "another question")
        desk.write([*rows, request_row(4)])
        assert desk.start("--limit", "2", code=1)[1] == before
        asked, found = desk.start("--limit", "2", "--retry", "all")
        assert asked == desk.questions(rows, "bad")
        assert found.taken_out == ["bad"]
        assert desk.start("--limit", "2", "--changed", "rerun") == ([], found)
