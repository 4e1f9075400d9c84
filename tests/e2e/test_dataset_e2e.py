"""From a table to the labelled table, as the bulk labeller has it."""

from __future__ import annotations

import csv
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from kit.world import Served, has_lines, read_jsonl, request_row, run, running, serving, wait_until, write_jsonl
from pyarrow import parquet

from batchrouter.cli import main
from batchrouter.emulator import Behaviour, Latency

SAMPLES = Path(__file__).parents[2] / "samples"
ASK = ("--model", "gpt-5.4-mini", "--progress", "none", "--concurrency", "4")


def asked(served: Served) -> int:
    """Chat requests that have reached the endpoint."""
    return int(served.emulator.stats.by_path["/v1/chat/completions"])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_the_sample_table_is_labelled_in_one_command(tmp_path: Path) -> None:
    """The five columns as they were and in order, a column for each property with values the schema allows, and no
    error; the same command again sends nothing and changes nothing.
    """
    arguments: list[str | Path] = [
        "label", SAMPLES / "reviews.csv", "--prompt-file", SAMPLES / "review-prompt.txt",
        "--schema", SAMPLES / "review-schema.json", "--id", "id", *ASK, "-o", "out.csv",
    ]  # fmt: skip
    with serving() as served:
        done = run(*arguments, cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        source, found = read(SAMPLES / "reviews.csv"), read(tmp_path / "out.csv")
        assert [{name: row[name] for name in source[0]} for row in found] == source
        schema = json.loads((SAMPLES / "review-schema.json").read_text())
        assert list(found[0]) == [*source[0], *schema["properties"], "error"]
        for row in found:
            assert row["sentiment"] in schema["properties"]["sentiment"]["enum"]
            assert 0 <= float(row["confidence"]) <= 1
            assert row["needs_reply"] in {"true", "false"}
            assert isinstance(json.loads(row["aspects"]), list)
            assert row["error"] == ""
        before = (tmp_path / "out.csv").read_bytes(), (tmp_path / "reviews.run/results.jsonl").read_bytes()
        again = run(*arguments, cwd=tmp_path, env=served.environment)
        assert again.returncode == 0, again.stderr
        assert asked(served) == len(source)
        assert ((tmp_path / "out.csv").read_bytes(), (tmp_path / "reviews.run/results.jsonl").read_bytes()) == before


def test_labels_fill_a_column_without_a_key(tmp_path: Path) -> None:
    """`--labels` gives one of them in `label`, `--emulate` needs nothing; a source column `label` keeps its name."""
    write(tmp_path / "t.csv", [["text", "label"], ["one", "old"], ["two", ""]])
    done = run(
        "label", "t.csv", "--prompt", "{{ text }}", "--labels", "good,bad", *ASK, "--emulate", "-o", "out.jsonl",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [(row["text"], row["label"], row["error"]) for row in found] == [("one", "old", ""), ("two", "", "")]
    assert {row["label_2"] for row in found} <= {"good", "bad"}
    assert "the table has a column 'label' of its own: ours is 'label_2'" in done.stderr


def test_a_parquet_table_gets_an_answer_to_each_row(tmp_path: Path) -> None:
    """Without a form the answer is the column `answer`, beside the row that asked; types survive."""
    table = pa.table({"n": pa.array(range(30), pa.int16()), "text": [f"question {n}" for n in range(30)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    arguments = ["label", "t.parquet", "--prompt", "{{ text }}", "--system", "Be brief.", *ASK, "-o", "out.parquet"]
    with serving() as served:
        done = run(*arguments, cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        found = parquet.read_table(tmp_path / "out.parquet")
        assert found.select(["n", "text"]).equals(table)
        for row in found.to_pylist():
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["text"]}]
            answer = served.emulator.answer({"messages": messages, "model": "gpt-5.4-mini"})
            assert row["answer"] == answer["choices"][0]["message"]["content"]


def test_several_questions_are_asked_in_one_pass(tmp_path: Path) -> None:
    """Each question fills columns that begin with its name; what is wrong is told with the question's name."""
    (tmp_path / "q.toml").write_text(
        '[question.tone]\nprompt = "Tone of {{ text }}?"\nlabels = ["good", "bad"]\n'
        "[question.topic]\nprompt = \"Topic of {{ text }}? {% if text == 'two' %}[[fault:status_400]]{% endif %}\"\n"
    )
    write(tmp_path / "t.csv", [["text"], ["one"], ["two"]])
    with serving() as served:
        arguments = ["label", "t.csv", "--questions", "q.toml", *ASK, "-o", "out.csv"]
        done = run(*arguments, cwd=tmp_path, env=served.environment)
    assert done.returncode == 1, done.stderr
    found = read(tmp_path / "out.csv")
    assert list(found[0]) == ["text", "tone", "topic", "error"]
    assert [row["tone"] in {"good", "bad"} for row in found] == [True, True]
    assert "Topic of one?" in found[0]["topic"]
    assert found[1]["topic"] == ""
    assert found[0]["error"] == ""
    assert found[1]["error"].startswith("topic: 400: ")


def test_label_again_fills_in_just_what_is_missing(tmp_path: Path) -> None:
    """Credits end in the middle: failed, truncated and pending rows are there and marked. After a top-up the same
    command fills in those, and asks no other row again.
    """
    faults = {3: "[[fault:status_400*1]]", 5: "[[fault:empty_length*1]]"}
    write(tmp_path / "t.csv", [["text"], *([f"row {n} {faults.get(n, '')}"] for n in range(40))])
    arguments = ["label", "t.csv", "--prompt", "{{ text }}", *ASK, "-o", "out.csv"]
    with serving(Behaviour(balance=20, journal=True)) as served:
        first = run(*arguments, cwd=tmp_path, env=served.environment)
        assert first.returncode == 4, first.stderr
        found = read(tmp_path / "out.csv")
        assert len(found) == 40
        assert found[3]["error"].startswith("400: ")
        assert found[5]["error"].startswith("truncated: ")
        pending = [n for n, row in enumerate(found) if row["error"] == "pending"]
        assert 15 <= len(pending) <= 25
        assert all(bool(row["answer"]) == (row["error"] == "") for row in found)
        kept = [line for line in read_jsonl(tmp_path / "t.run/results.jsonl") if not line["batchrouter"]["truncated"]]
        served.call(lambda emulator: setattr(emulator, "balance", 1000))
        before = asked(served)
        second = run(*arguments, cwd=tmp_path, env=served.environment)
        assert second.returncode == 0, second.stderr
        found = read(tmp_path / "out.csv")
        assert all(row["answer"] and not row["error"] for row in found)
        assert asked(served) - before == len(pending) + 2
        assert read_jsonl(tmp_path / "t.run/results.jsonl")[: len(kept)] == kept


def test_label_goes_on_after_whatever_stopped_it(tmp_path: Path) -> None:
    """A refused key, Ctrl-C, SIGKILL, the end of --max-time: `run`'s exit codes, a whole table with the rest pending
    (SIGKILL: the one before), and in the end each row was asked once, but for those in flight when it was killed.
    """
    write(tmp_path / "t.csv", [["text"], *([f"row {n}"] for n in range(160))])
    arguments = ["label", "t.csv", "--prompt", "{{ text }}", *ASK, "-o", "out.csv"]
    log = tmp_path / "t.run/results.jsonl"

    def answered() -> int:
        found = read(tmp_path / "out.csv")
        assert len(found) == 160
        assert all(bool(row["answer"]) == (row["error"] == "") for row in found)
        assert {row["error"] for row in found} <= {"", "pending"}
        return sum(row["error"] == "" for row in found)

    with serving(Behaviour(latency=Latency(0.05))) as served:
        wrong = served.environment | {"WORLDROUTER_API_KEY": "sk-wrong-0123456789"}
        assert run(*arguments, cwd=tmp_path, env=wrong).returncode == 3
        assert answered() == 0
        before = asked(served)
        with running(*arguments, cwd=tmp_path, env=served.environment) as process:
            wait_until(partial(has_lines, log, 20))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        first = answered()
        assert 20 <= first < 160
        with running(*arguments, cwd=tmp_path, env=served.environment) as process:
            wait_until(partial(has_lines, log, first + 20))
            process.kill()
        assert answered() == first
        bounded = run(*arguments, "--max-time", "0.3", cwd=tmp_path, env=served.environment)
        assert bounded.returncode == 6, bounded.stderr
        assert first + 20 <= answered() < 160
        assert run(*arguments, cwd=tmp_path, env=served.environment).returncode == 0
        assert answered() == 160
        assert 160 <= asked(served) - before <= 160 + 4
    assert len(read_jsonl(log)) == 160


def test_labels_that_the_model_breaks_are_asked_for_again_and_then_marked(tmp_path: Path) -> None:
    """What is no label, once, costs one request more; what never is one is a failed row with the reason, and asked
    again by the next start.
    """
    cells = ["fine", "odd once [[fault:formula_content*1]]", "empty once [[fault:content_empty*1]]",
             "odd [[fault:html_content*2]]", "refused [[fault:refusal]]"]  # fmt: skip
    write(tmp_path / "t.csv", [["text"], *([cell] for cell in cells)])
    arguments = ["label", "t.csv", "--prompt", "{{ text }}", "--labels", "good,bad", *ASK, "-o", "out.csv"]
    with serving() as served:
        first = run(*arguments, cwd=tmp_path, env=served.environment)
        assert first.returncode == 1, first.stderr
        found = read(tmp_path / "out.csv")
        assert [row["label"] in {"good", "bad"} for row in found] == [True, True, True, False, False]
        assert [row["error"].partition(":")[0] for row in found] == ["", "", "", "schema_mismatch", "refusal"]
        assert asked(served) == 1 + 2 + 2 + 2 + 1
        second = run(*arguments, cwd=tmp_path, env=served.environment)
        assert second.returncode == 1, second.stderr
        assert [row["error"].partition(":")[0] for row in read(tmp_path / "out.csv")] == ["", "", "", "", "refusal"]
        assert asked(served) == 8 + 1


def test_a_changed_prompt_is_a_change_of_its_rows(tmp_path: Path) -> None:
    """Another prompt in the same run directory is refused and loses nothing; the first prompt goes on as before;
    `--changed rerun` asks anew.
    """
    write(tmp_path / "t.csv", [["text"], *([f"row {n}"] for n in range(10))])

    def arguments(prompt: str, *more: str) -> list[str]:
        return ["label", "t.csv", "--prompt", prompt, *ASK, "-o", "out.csv", *more]

    with serving() as served:
        assert run(*arguments("A {{ text }}"), cwd=tmp_path, env=served.environment).returncode == 0
        table = (tmp_path / "out.csv").read_bytes()
        other = run(*arguments("B {{ text }}"), cwd=tmp_path, env=served.environment)
        assert other.returncode == 2
        assert "asked before with another body" in other.stderr
        assert (tmp_path / "out.csv").read_bytes() == table
        assert run(*arguments("A {{ text }}"), cwd=tmp_path, env=served.environment).returncode == 0
        assert (tmp_path / "out.csv").read_bytes() == table
        assert asked(served) == 10
        rerun = run(*arguments("B {{ text }}", "--changed", "rerun"), cwd=tmp_path, env=served.environment)
        assert rerun.returncode == 0, rerun.stderr
        assert asked(served) == 20
        assert all("B row" in row["answer"] for row in read(tmp_path / "out.csv"))


def test_export_reads_beside_a_run_that_goes_on(tmp_path: Path) -> None:
    """Every row is there, answered or pending; no answer is another row's; the run is not disturbed."""
    rows = [request_row(n) for n in range(400)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving(Behaviour(latency=Latency(0.05))) as served:
        with running("run", "in.jsonl", "--concurrency", "8", cwd=tmp_path, env=served.environment) as process:
            wait_until(partial(has_lines, tmp_path / "in.run/results.jsonl", 60))
            done = run("export", "in.run", "-o", "now.jsonl", cwd=tmp_path)
            assert process.poll() is None, "the run had ended: the test shows nothing"
            assert done.returncode == 0, done.stderr
            assert process.wait(60) == 0
        found = read_jsonl(tmp_path / "now.jsonl")
        assert [row["id"] for row in found] == [row["custom_id"] for row in rows]
        answered = [n for n, row in enumerate(found) if row["error"] == ""]
        assert 60 <= len(answered) < 400
        assert all(row["error"] in {"", "pending"} for row in found)
        for n in answered:
            expected = served.emulator.answer(rows[n]["body"])
            assert found[n]["content"] == expected["choices"][0]["message"]["content"]


def test_a_table_that_changes_while_it_is_labelled_is_not_joined(tmp_path: Path) -> None:
    """Rows that move under the run get no other row's answer: exit 2, nothing written, and the answers are kept."""
    rows = [["text"], *([f"row {n}"] for n in range(60))]
    write(tmp_path / "t.csv", rows)
    arguments = ["label", "t.csv", "--prompt", "{{ text }}", *ASK, "-o", "out.csv"]
    with serving(Behaviour(latency=Latency(0.1))) as served:
        with running(*arguments, cwd=tmp_path, env=served.environment) as process:
            wait_until(partial(has_lines, tmp_path / "t.run/results.jsonl", 1))
            write(tmp_path / "t.csv", [rows[0], ["new"], *rows[1:]])
            assert process.wait(60) == 2
        assert not (tmp_path / "out.csv").exists()
        write(tmp_path / "t.csv", [*rows, ["new"]])
        done = run(*arguments, cwd=tmp_path, env=served.environment)
        assert done.returncode == 0, done.stderr
        assert asked(served) == 61
    assert all(row["text"] in row["answer"] for row in read(tmp_path / "out.csv"))


def test_a_second_label_of_the_same_run_waits_for_nobody(tmp_path: Path) -> None:
    """It exits 75, and the first one's requests are not touched."""
    write(tmp_path / "t.csv", [["text"], *([f"row {n}"] for n in range(400))])
    first = ["label", "t.csv", "--prompt", "A {{ text }}", *ASK, "-o", "a.csv"]
    second = ["label", "t.csv", "--prompt", "B {{ text }}", *ASK, "-o", "b.csv"]
    with (
        serving(Behaviour(latency=Latency(0.2))) as served,
        running(*first, cwd=tmp_path, env=served.environment) as process,
    ):
        wait_until(partial(has_lines, tmp_path / "t.run/results.jsonl", 1))
        requests = (tmp_path / "t.run/requests.jsonl").read_bytes()
        done = run(*second, cwd=tmp_path, env=served.environment)
        assert process.poll() is None, "the first had ended: the test shows nothing"
        assert done.returncode == 75, done.stderr
    assert (tmp_path / "t.run/requests.jsonl").read_bytes() == requests
    assert not (tmp_path / "b.csv").exists()


def test_prepare_shows_and_writes_requests(tmp_path: Path) -> None:
    """`--preview` writes nothing and obeys no cell; `-o -` streams rows that `run` reads; hostile cells are data."""
    cells = ["{{ 7*7 }}", "{% raw %}", "=cmd()|' /C calc'!A0", "\x1b]0;owned\x07\x1b[31mred", "a\0b"]
    write(tmp_path / "t.csv", [["text"], *([cell] for cell in cells)])
    shown = run("prepare", "t.csv", "--prompt", "Say: {{ text }}", "--preview", "9", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "{{ 7*7 }}" in shown.stdout
    assert "5 rows, about" in shown.stdout
    assert not set(shown.stdout) & {"\x1b", "\x07", "\0"}
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    streamed = run("prepare", "t.csv", "--prompt", "Say: {{ text }}", "--model", "gpt-5.4", "-o", "-", cwd=tmp_path)
    rows = [json.loads(line) for line in streamed.stdout.splitlines()]
    assert [row["body"]["messages"][0]["content"] for row in rows] == [f"Say: {cell}" for cell in cells]
    done = run("run", "-", "--emulate", cwd=tmp_path, stdin=streamed.stdout.encode())
    assert done.returncode == 0, done.stderr
    out = run("export", "stdin.run", "--join", "t.csv", "-o", "out.csv", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert [row["text"] for row in read(tmp_path / "out.csv")] == cells


LABEL = ["label", "t.csv", "--prompt", "x", "--model", "gpt-5.4", "--emulate"]
PREPARE = ["prepare", "t.csv", "--prompt", "x", "-o", "r.jsonl"]
WRONG: list[tuple[list[str], str]] = [
    (["prepare", "t.csv", "-o", "r.jsonl"], "give the prompt with either --prompt TEXT or --template FILE"),
    (["prepare", "t.csv", "--prompt", "x"], "or look at some with --preview 3"),
    (["prepare", "t.csv", "--prompt", "{{ txt }}", "-o", "r.jsonl"], "t.csv:2: --prompt: 'txt' is undefined; the col"),
    ([*PREPARE[:-1], "t.csv"], "is the table itself"),
    ([*PREPARE[:-1], "r.jsonl.gz"], "request rows are written uncompressed"),
    ([*PREPARE, "--response-format", "{"], "--response-format: not JSON"),
    ([*PREPARE, "--set", "temperature"], "'temperature' is no KEY=JSON"),
    ([*PREPARE, "--id", "id"], "t.csv:2 has no column 'id'; there are: text"),
    ([*PREPARE, "--image", "pic"], "t.csv:2 has no column 'pic' for --image; there are: text"),
    ([*LABEL, "-o", "t.csv"], "is the source itself"),
    ([*LABEL, "-o", "o.xlsx"], "must tell the format"),
    ([*LABEL, "-o", "no/o.csv"], "no/o.csv: there is no folder no"),
    ([*LABEL, "-o", "o.jsonl", "--spreadsheet-safe"], "--spreadsheet-safe is for .csv and .tsv"),
    ([*LABEL, "-o", "o.csv", "--labels", "a", "--schema", "s.json"], "either --labels or --schema"),
    ([*LABEL, "-o", "o.csv", "--questions", "q.toml"], "give the prompt with one of"),
    (["label", "t.csv", "--prompt", "x", "--emulate", "-o", "o.csv"], "name a model with --model"),
    (["label", "t.csv", "--emulate", "-o", "o.csv"], "give the prompt with one of"),
    (["label", "no.csv", *LABEL[2:], "-o", "o.csv"], "there is no such file"),
    (["export", ".", "-o", "o.csv"], "is no run directory"),
    (["export", ".", "-o", "o.csv", "--id", "x"], "give that with --join DATA"),
    (["export", ".", "-o", "o.csv", "--column", "x"], "write NAME=JMESPATH"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG)
def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    """What is wrong, where, and the next move; nothing is sent and nothing written. (In this process: they are many.)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["batchrouter", *arguments])
    write(tmp_path / "t.csv", [["text"], ["one"]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert (tmp_path / "t.csv").read_bytes() == b"text\r\none\r\n"
