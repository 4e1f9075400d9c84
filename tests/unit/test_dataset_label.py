"""`label` as a library call: what it hands to the run, and what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench.dataset import outcome, play

from batchrouter.dataset import Question, label, shape_of_labels
from batchrouter.dataset.tables import open_table
from batchrouter.errors import UsageError
from batchrouter.records import Halt, Summary, Tally
from batchrouter.settings import Settings

ASK = Question(prompt="{{ text }}")
SETTINGS = Settings(model="gpt-5.4")


class Runs:
    """A run without a network: plays answers into the ledger, and keeps what it was asked to do."""

    def __init__(self, outcome_of: Callable[[Any], Any]) -> None:
        self.outcome_of = outcome_of
        self.settings: list[Settings] = []
        self.halt: Halt | None = None

    def __call__(self, inputs: Sequence[str], directory: Path, settings: Settings) -> Summary:
        self.settings.append(settings)
        if self.halt is None:
            play(directory, Path(inputs[0]), self.outcome_of)
        return Summary(str(directory), Tally(), 0.0, self.halt)


def echo(request: Any) -> Any:
    return outcome(request, content=json.loads(request.body)["messages"][-1]["content"])


def table_of(folder: Path, *cells: str) -> Path:
    path = folder / "t.csv"
    path.write_text("text\n" + "".join(cell + "\n" for cell in cells))
    return path


def test_requests_are_touched_only_when_they_must_say_something_else(tmp_path: Path) -> None:
    """The same table saved again is prepared again to the same requests: their file stays, so that the run's index
    does; another cell makes another file.
    """
    run = Runs(echo)

    def again() -> tuple[int, list[str]]:
        label(table, tmp_path / "out.csv", ASK, directory=tmp_path / "t.run", settings=SETTINGS, run=run)
        return (tmp_path / "t.run/requests.jsonl").stat().st_ino, (tmp_path / "out.csv").read_text().splitlines()

    table = table_of(tmp_path, "one", "two")
    first, rows = again()
    assert rows == ["text,answer,error", "one,one,", "two,two,"]
    os.utime(table, ns=(10**18, 10**18))
    assert again()[0] == first
    table_of(tmp_path, "one", "two", "three")
    assert again()[0] != first


def test_labelling_asks_again_what_is_not_usable(tmp_path: Path) -> None:
    """Rows that failed or were truncated are to be asked again, and forms are to be checked; what the caller says of
    --retry stands.
    """
    run = Runs(lambda request: outcome(request, content='{"label": "a"}'))
    shaped = Question(prompt="x", shape=shape_of_labels(["a", "b"]))
    table = table_of(tmp_path, "one")
    label(table, tmp_path / "o.csv", shaped, directory=tmp_path / "a.run", settings=SETTINGS, run=run)
    own = Settings(model="m", retry=("timeout",))
    label(table, tmp_path / "o.csv", ASK, directory=tmp_path / "b.run", settings=own, run=run)
    assert [(found.retry, found.check_json) for found in run.settings] == [
        (("all", "truncated"), True),
        (("timeout",), False),
    ]


def test_a_run_stopped_before_its_rows_are_known_leaves_no_table(tmp_path: Path) -> None:
    """There is nothing to tell of rows that were never planned."""
    run = Runs(echo)
    run.halt = Halt(130, "stopped by Ctrl-C")
    done = label(
        table_of(tmp_path, "one"), tmp_path / "o.csv", ASK, directory=tmp_path / "t.run", settings=SETTINGS, run=run
    )
    assert done.exported is None
    assert not (tmp_path / "o.csv").exists()


def test_an_answer_that_says_nothing_or_not_all_is_marked(tmp_path: Path) -> None:
    """No text, text cut off by the budget, a refusal: what there is stands in `answer`, and why in `error`."""

    def answer(request: Any) -> Any:
        made = outcome(request, content="said")
        choice = made.reply.body["choices"][0]
        match request.n:
            case 1:
                choice["finish_reason"] = "length"
            case 2:
                choice["message"]["content"] = ""
            case 3:
                choice["message"] |= {"content": None, "refusal": "No."}
        return made

    table = table_of(tmp_path, "a", "b", "c", "d")
    done = label(table, tmp_path / "o.csv", ASK, directory=tmp_path / "t.run", settings=SETTINGS, run=Runs(answer))
    assert [tuple(row.values.values()) for row in open_table(tmp_path / "o.csv").rows()] == [
        ("a", "said", ""),
        ("b", "said", "cut off: the token budget ran out in the middle of the answer; raise max_tokens"),
        ("c", "", "empty: the model answered without any text"),
        ("d", "", "refusal: No."),
    ]
    assert done.exported is not None
    assert (done.exported.answered, done.exported.marked) == (4, 3)


def test_several_questions_stand_side_by_side(tmp_path: Path) -> None:
    """Columns begin with the question's name; a form's only column of that name is the name itself."""
    questions = {
        "echo": Question(prompt="say {{ text }}"),
        "tone": Question(prompt="tone", shape=shape_of_labels(["a", "b"], name="tone")),
    }

    def answer(request: Any) -> Any:
        return outcome(request, content='{"tone": "b"}') if request.custom_id.endswith("/tone") else echo(request)

    table = table_of(tmp_path, "one", "two")
    label(table, tmp_path / "o.csv", questions, directory=tmp_path / "t.run", settings=SETTINGS, run=Runs(answer))
    assert (tmp_path / "o.csv").read_text().splitlines() == ["text,echo,tone,error", "one,say one,b,", "two,say two,b,"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_empty_table_is_a_table(tmp_path: Path, kind: str) -> None:
    """A header and no rows: nothing to ask, and a table with all columns and no rows."""
    output = tmp_path / f"o.{kind}"
    label(table_of(tmp_path), output, ASK, directory=tmp_path / "t.run", settings=SETTINGS, run=Runs(echo))
    assert list(open_table(output).rows()) == []
    if kind != "jsonl":
        assert [column.name for column in open_table(output).columns()] == ["text", "answer", "error"]


def test_a_table_that_cannot_be_asked_sends_nothing(tmp_path: Path) -> None:
    """No model, an unknown column: the run is never called."""
    run = Runs(echo)
    for question, settings in [(ASK, Settings()), (Question(prompt="{{ txt }}"), SETTINGS)]:
        with pytest.raises(UsageError):
            label(
                table_of(tmp_path, "x"),
                tmp_path / "o.csv",
                question,
                directory=tmp_path / "t.run",
                settings=settings,
                run=run,
            )
    assert run.settings == []


def test_text_that_no_encoding_has_is_no_obstacle(tmp_path: Path) -> None:
    """Half a surrogate pair in ids, columns and cells, and a file and a folder whose names are no UTF-8."""
    run = Runs(echo)
    table = tmp_path / os.fsdecode(b"t\xff.jsonl")
    table.write_text('{"a\\ud83d": "one \\udc00", "b": 1}\n{"a\\ud83d": "two", "b": 2}\n')
    directory = tmp_path / os.fsdecode(b"t\xff.run")
    question = Question(prompt="{{ row['a\ud83d'] }}{{ b }}")
    for _ in range(2):
        label(
            table, tmp_path / "o.jsonl", question, directory=directory, settings=SETTINGS, run=run, id_column="a\ud83d"
        )
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert [row["a\ud83d"] for row in found] == ["one \udc00", "two"]
