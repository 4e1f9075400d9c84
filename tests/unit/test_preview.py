"""What a run would do and take, told before it: the figures, and that telling changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.dataset import outcome, play
from kit.world import request_row, write_jsonl

from batchrouter import plan as planning
from batchrouter.dataset import Question, plan, prepare, shape_of_labels, write_requests
from batchrouter.errors import UsageError
from batchrouter.index import Index
from batchrouter.intake import Shaping
from batchrouter.ledger import Ledger
from batchrouter.preview import preview, preview_apart
from batchrouter.settings import DEFAULT_BASE_URL, Model, Price, Settings
from batchrouter.sources import Source

PRICE = Price(prompt=1.0, completion=10.0)
SETTINGS = Settings(model="gpt-5.4", models={"gpt-5.4": Model(price=PRICE)})


def ended(request: Any) -> Any:
    """Rows 0-3 answered, 4 truncated, 5 failed, the rest pending."""
    if request.n < 4:
        return outcome(request, content="yes")
    if request.n == 4:
        return outcome(request, content=None)
    return outcome(request, reply=None, error=("timeout", "no byte"), usage=None) if request.n == 5 else None


def rows_of(folder: Path, *contents: str) -> Path:
    return write_jsonl(folder / "in.jsonl", [request_row(n, content) for n, content in enumerate(contents)])


def test_the_worst_and_the_likely_cost_are_reckoned_from_the_rows(tmp_path: Path) -> None:
    """A token for four bytes and 256 of answer are likely, one byte and the answer's budget the worst; answers that
    may be asked for twice cost twice at worst; one price that is missing leaves the cost unknown.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(0), request_row(1, max_tokens=100)])
    bodies = [json.dumps(row["body"]).encode() for row in (request_row(0), request_row(1, max_tokens=100))]
    found = preview([str(tmp_path / "in.jsonl")], tmp_path / "in.run", SETTINGS)
    prompts = [len(body) // 4 for body in bodies]
    assert found.tokens == sum(prompts) + 256 + 100
    assert found.likely_cost == pytest.approx((sum(prompts) + 10 * 356) / 1e6)
    worst = (sum(len(body) for body in bodies) + 10 * (4096 + 100)) / 1e6
    assert found.cost == pytest.approx(worst)
    checked = Settings(models={"gpt-5.4": Model(price=PRICE)}, check_json=True, json_attempts=3)
    found = preview([str(tmp_path / "in.jsonl")], tmp_path / "in.run", checked)
    assert found.cost == pytest.approx(3 * worst)
    found = preview([str(tmp_path / "in.jsonl")], tmp_path / "in.run", Settings(models={"other": Model(price=PRICE)}))
    assert (found.cost, found.likely_cost) == (None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_only_what_is_asked_is_reckoned(tmp_path: Path) -> None:
    """Not a row that is invalid, a duplicate, beyond --limit, answered, or an equal of another with --dedupe: the figures
    are those of the rows that are left, by themselves.
    """

    def figures(rows: list[Any], name: str = "in", **settings: Any) -> tuple[int, float | None, float | None]:
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        found = preview([str(path)], tmp_path / "no.run", Settings(models={"gpt-5.4": Model(price=PRICE)}, **settings))
        return found.tokens, found.cost, found.likely_cost

    rows = [request_row(n, "x" * 9 * n, max_tokens=10 * n + 1) for n in range(4)]
    wanted = figures(rows[:3], "few")
    assert figures([*rows[:3], {"custom_id": "bad", "body": {}}]) == wanted
    assert figures([*rows[:3], {**rows[3], "custom_id": rows[0]["custom_id"]}]) == wanted
    assert figures(rows, limit=3) == wanted
    assert figures([*rows[:3], {**rows[1], "custom_id": "equal"}], dedupe=True) == pytest.approx(wanted)


def test_rows_answered_before_say_what_a_row_costs(tmp_path: Path) -> None:
    """The mean of what each answered row of the model took, its failures and truncations included."""
    path = rows_of(tmp_path, *"abcdefgh")
    play(tmp_path / "in.run", path, ended)
    found = preview([str(path)], tmp_path / "in.run", SETTINGS)
    assert (found.rows, found.new, found.answered, found.failed) == (8, 2, 5, 1)
    assert found.tokens == 2 * 110
    assert found.likely_cost == pytest.approx(2 * (90 + 10 * 20) / 1e6)


def test_rows_taken_up_again_are_rows_to_ask(tmp_path: Path) -> None:
    """With --retry the failed and truncated ones count, though they still stand in the log."""
    path = rows_of(tmp_path, *"abcdefgh")
    play(tmp_path / "in.run", path, ended)
    retry = Settings(model="gpt-5.4", retry=("all", "truncated"))
    found = preview([str(path)], tmp_path / "in.run", retry)
    assert (found.rows, found.new, found.answered, found.failed) == (8, 4, 4, 0)


@pytest.mark.parametrize("changed", ["refuse", "keep"])
def test_a_plan_made_before_the_run_does_not_settle_changed_rows(tmp_path: Path, changed: Any) -> None:
    """A row that was edited since it was answered is refused (or kept) by the run, planned before or not; and one that
    could not be asked and has been mended is asked.
    """
    rows = [request_row(n) for n in range(4)]
    broken = [*rows[:3], {**rows[3], "url": "/v1/nowhere"}]
    path = write_jsonl(tmp_path / "in.jsonl", broken)
    play(tmp_path / "in.run", path, ended)
    source = Source("in.jsonl", path)
    with Ledger.open(tmp_path / "in.run", redact=bytes) as ledger:
        for refusal in planning.make([source], Shaping(model="gpt-5.4"), ledger).rows.refusals():
            ledger.record(planning.refused_outcome(refusal))
        ledger.checkpoint()()
    write_jsonl(path, [rows[0], {**request_row(1, "another question")}, *rows[2:]])
    before = preview([str(path)], tmp_path / "in.run", Settings(model="gpt-5.4", changed=changed))
    assert before.changed == 1
    with Ledger.open(tmp_path / "in.run", redact=bytes) as ledger:
        if changed == "refuse":
            with pytest.raises(UsageError, match=r"1 rows were asked before .*: in\.jsonl:2"):
                planning.make([source], Shaping(model="gpt-5.4"), ledger)
        else:
            made = planning.make([source], Shaping(model="gpt-5.4"), ledger, changed="keep")
            assert [request.custom_id for request in made.rows.requests()] == ["row-3"]


def test_changed_rows_are_rows_to_ask_with_rerun(tmp_path: Path) -> None:
    """Their tokens and cost count."""
    path = rows_of(tmp_path, *"abcdefgh")
    play(tmp_path / "in.run", path, ended)
    rows_of(tmp_path, *"aBcdefgh")
    found = preview([str(path)], tmp_path / "in.run", Settings(model="gpt-5.4", changed="rerun"))
    assert (found.new, found.answered, found.failed, found.changed) == (3, 4, 1, 1)
    found = preview([str(path)], tmp_path / "in.run", Settings(model="gpt-5.4"))
    assert (found.new, found.answered, found.failed, found.changed) == (2, 4, 1, 1)


def test_the_time_is_by_the_limits_given_or_learned(tmp_path: Path) -> None:
    """Given ones hold for all rows together; else what earlier starts learned of each model; else it is unknown."""
    path = rows_of(tmp_path, *"abcdefgh")
    play(tmp_path / "in.run", path, ended)

    def seconds(**given: Any) -> float | None:
        return preview([str(path)], tmp_path / "in.run", Settings(model="gpt-5.4", **given)).duration_s

    assert seconds() is None
    assert seconds(rpm=12.0) == 60 * 2 / 12
    assert seconds(rpm=12.0, tpm=60.0) == 220
    index = Index.open(tmp_path / "in.run/checkpoint.sqlite")
    limit = f"{DEFAULT_BASE_URL} gpt-5.4"
    index.put_meta({"learned": {limit: {"requests_per_s": 4.0, "tokens_per_s": None, "concurrency": 3}}})
    index.close()
    assert seconds() == 0.5
    assert seconds(retry=("all",)) == 0.75  # read apart


# --- of a table ---------------------------------------------------------------------------------------------------------


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's time and size; a folder's time tells of what came and went again, which SQLite's own files do."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (0 if name.endswith(".run") else stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}


def test_a_table_is_planned_as_label_would_ask_it(tmp_path: Path) -> None:
    """Rows times questions; what failed or was truncated is asked again; nothing is written anywhere."""
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "".join(f"text {n}\n" for n in range(6)))
    questions = {
        "tone": Question(prompt="tone {{ text }}", shape=shape_of_labels(["good", "bad"], name="tone")),
        "sum": Question(prompt="sum {{ text }}"),
    }
    before = state_of(tmp_path)
    fresh = plan(table, questions, directory=tmp_path / "t.run", settings=SETTINGS)
    assert (fresh.rows, fresh.new, fresh.requests_by_model) == (12, 12, {"gpt-5.4": 12})
    assert fresh.likely_cost is not None
    assert fresh.cost is not None
    assert 0 < fresh.likely_cost < fresh.cost
    assert state_of(tmp_path) == before
    one = Question(prompt="{{ text }}")
    write_requests(prepare(table, one), str(tmp_path / "requests.jsonl"))
    play(tmp_path / "t.run", tmp_path / "requests.jsonl", ended)
    before = state_of(tmp_path)
    again = plan(table, one, directory=tmp_path / "t.run", settings=SETTINGS)
    assert (again.rows, again.new, again.answered, again.failed, again.changed) == (6, 2, 4, 0, 0)
    other = plan(table, Question(prompt="{{ text }}!"), directory=tmp_path / "t.run", settings=SETTINGS)
    assert (other.new, other.answered, other.changed) == (2, 0, 4)
    assert state_of(tmp_path) == before


def test_short_answers_are_reckoned_as_short(tmp_path: Path) -> None:
    """One of a few labels is not 256 tokens long; free text may be."""
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "x\n" * 100)
    labels = Question(prompt="{{ text }}", shape=shape_of_labels(["positive", "negative"]))
    likely = [
        plan(table, question, directory=tmp_path / "t.run", settings=SETTINGS).tokens / 100
        for question in (labels, Question(prompt="{{ text }}"))
    ]
    assert likely[0] < 100
    assert likely[1] > 256


def test_a_run_may_be_at_work_meanwhile(tmp_path: Path) -> None:
    """Reading apart needs no lock, and a line that is being written counts for nothing."""
    path = rows_of(tmp_path, *"abcdefgh")
    play(tmp_path / "in.run", path, ended)
    with (tmp_path / "in.run/results.jsonl").open("ab") as log:
        log.write(b'{"id":"batch_req_')
    with Ledger.open(tmp_path / "other.run", redact=bytes), (tmp_path / "in.run/lock").open("rb"):
        found = preview_apart([Source("in.jsonl", path)], tmp_path / "in.run", SETTINGS)
    assert (found.new, found.answered, found.failed) == (2, 5, 1)
