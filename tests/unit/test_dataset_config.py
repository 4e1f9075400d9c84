"""What the commands of tables are told: flag, environment, config file and default, in this order, by the same words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from batchrouter.cli import group, main
from batchrouter.dataset.tables import open_table


class Shell:
    """A folder with a table, in which commands are typed (in this process: they are many)."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        patch.chdir(folder)
        for name in ("BATCHROUTER_RUN_MODEL", "WORLDROUTER_BASE_URL", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        (folder / "t.csv").write_text("id,text\na,one\nb,two\n")

    def type(self, *arguments: str) -> int:
        """The exit code of a command."""
        self.patch.setattr(sys, "argv", ["batchrouter", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The bodies of request rows, with what was asked in one word."""
        rows = [json.loads(line) for line in (self.folder / path).read_text().splitlines()]
        return [
            {"id": row["custom_id"], **row["body"], "messages": row["body"]["messages"][-1]["content"]} for row in rows
        ]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, monkeypatch)


def test_prepare_takes_every_option_from_its_table_and_variables(shell: Shell) -> None:
    """[prepare] speaks the flags' words; a variable stands above it, a flag above both; [run] is not prepare's."""
    (shell.folder / "batchrouter.toml").write_text(
        '[run]\nmodel = "of run"\n'
        '[prepare]\nprompt = "config {{ text }}"\nid = "id"\nmodel = "of config"\nresponse-format = "json_object"\n'
        "[prepare.set]\ntemperature = 0\n"
    )
    assert shell.type("prepare", "t.csv", "-o", "r.jsonl") == 0
    form = {"type": "json_object"}
    assert shell.asked("r.jsonl") == [
        {"id": "a", "model": "of config", "messages": "config one", "temperature": 0, "response_format": form},
        {"id": "b", "model": "of config", "messages": "config two", "temperature": 0, "response_format": form},
    ]
    shell.patch.setenv("BATCHROUTER_PREPARE_ID", "text")
    shell.patch.setenv("BATCHROUTER_PREPARE_MODEL", "of environment")
    shell.patch.setenv("BATCHROUTER_PREPARE_SET", "top_p=0.5\nseed=1")
    (shell.folder / "p.txt").write_text("file {{ id }}")
    assert shell.type("prepare", "t.csv", "--template", "p.txt", "--model", "of flag", "-o", "r.jsonl") == 0
    assert shell.asked("r.jsonl")[0] == {
        "id": "one", "model": "of flag", "messages": "file a", "top_p": 0.5, "seed": 1, "response_format": form,
    }  # fmt: skip


def test_label_takes_its_table_above_run(shell: Shell) -> None:
    """[run] holds the settings of all runs, [label] label's own and what is to differ; lists are lists."""
    (shell.folder / "batchrouter.toml").write_text(
        '[run]\nmodel = "gpt-5.4"\nmax-attempts = 7\nset = {temperature = 0}\n'
        '[label]\nlabels = ["yes", "no, never"]\nprompt = "{{ text }}?"\nmax-attempts = 3\nid = "id"\n'
    )
    shell.patch.setenv("BATCHROUTER_LABEL_SPREADSHEET_SAFE", "1")
    shell.patch.setenv("BATCHROUTER_LABEL_CONCURRENCY", "2")
    assert shell.type("label", "t.csv", "--emulate", "-o", "out.csv") == 0
    assert {row.values["label"] for row in open_table("out.csv").rows()} <= {"yes", "no, never"}
    settings = json.loads((shell.folder / "t.run/run.json").read_text())["settings"]
    assert (settings["max_attempts"], settings["concurrency"], settings["set"]) == (3, 2, [["temperature", "0"]])
    assert [row["messages"] for row in shell.asked("t.run/requests.jsonl")] == ["one?", "two?"]


def test_several_prompts_stand_in_the_config_file(shell: Shell) -> None:
    """[question.NAME] tables of --config are asked in one pass; a prompt that is given puts them aside."""
    (shell.folder / "c.toml").write_text(
        '[run]\nmodel = "gpt-5.4"\n[question.tone]\nprompt = "Tone of {{ text }}?"\nlabels = ["good", "bad"]\n'
        '[question.sum]\nprompt = "Sum up {{ text }}"\n'
    )
    assert shell.type("label", "t.csv", "--config", "c.toml", "--emulate", "-o", "out.csv") == 0
    assert [column.name for column in open_table("out.csv").columns()] == ["id", "text", "tone", "sum", "error"]
    assert shell.type("label", "t.csv", "--questions", "c.toml", "--model", "gpt-5.4", "--emulate", "-o", "b.csv") == 0
    assert (shell.folder / "b.csv").read_bytes() == (shell.folder / "out.csv").read_bytes()
    one = ["label", "t.csv", "--config", "c.toml", "--prompt", "x", "--directory", "one.run", "--emulate"]
    assert shell.type(*one, "-o", "one.csv") == 0
    assert [column.name for column in open_table("one.csv").columns()] == ["id", "text", "answer", "error"]


def test_export_takes_every_option_from_its_table(shell: Shell) -> None:
    """Columns, the join and the rest; a single one of several may stand without brackets."""
    assert shell.type("label", "t.csv", "--prompt", "x", "--model", "gpt-5.4", "--emulate", "--labels", "a,b",
                      "--set", "seed=1", "-o", "o.csv") == 0  # fmt: skip
    (shell.folder / "batchrouter.toml").write_text(
        '[export]\njoin = "t.csv"\ncolumn = "first=label"\nspreadsheet_safe = true\noutput = "e.csv"\n'
    )
    assert shell.type("export", "t.run") == 0
    names = [column.name for column in open_table("e.csv").columns()]
    assert names[:4] == ["id", "text", "id_2", "content"]
    assert names[-1] == "first"


WRONG: list[tuple[str, str]] = [
    ('[label]\nprompts = "x"\n', "batchrouter.toml: [label]: unknown key 'prompts'; did you mean prompt?"),
    ("[label]\nprompt = [1]\n", "batchrouter.toml: [label] prompt: [1] is no single value"),
    ('[label]\nmax-attempts = "many"\n', "batchrouter.toml: [label] max-attempts: 'many' is no whole number"),
    ('[label]\nprompt = "a"\nprompt-file = "b"\n', "give the prompt with one of"),
    ('[question.a]\nprompt = "x"\nlables = ["a"]\n', "did you mean labels?"),
    ("[lable]\n", "batchrouter.toml: unknown key 'lable'; did you mean label?"),
    ("label = 1\n", "batchrouter.toml: label must be a table: [label]"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_a_mistake_in_the_config_file_is_named(
    shell: Shell, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    """The file, the table, the key and the nearest word; nothing is sent."""
    (shell.folder / "batchrouter.toml").write_text(text)
    assert shell.type("label", "t.csv", "--model", "gpt-5.4", "--emulate", "-o", "o.csv") == 2
    assert told in capsys.readouterr().err
    assert not (shell.folder / "t.run").exists()


def test_a_command_s_own_variable_comes_first(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The base URL that other programs read too is the last of the variables that count."""
    shell.patch.setenv("WORLDROUTER_BASE_URL", "http://127.0.0.1:1/v1")
    shell.patch.setenv("BATCHROUTER_LABEL_BASE_URL", "ftp://own")
    assert shell.type("label", "t.csv", "--prompt", "x", "--model", "m", "-o", "o.csv") == 2
    assert "--base-url must look like" in capsys.readouterr().err


def test_plan_tells_of_a_table_or_of_request_rows(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt makes the input a table, whatever its name; without one a table is refused; nothing is left behind."""
    (shell.folder / "batchrouter.toml").write_text('[model."gpt-5.4"]\nprompt = 1.0\ncompletion = 2.0\n')
    ask = ["plan", "t.csv", "--prompt", "{{ text }}?", "--labels", "yes,no", "--model", "gpt-5.4", "--rpm", "60"]
    assert shell.type(*ask, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["new"], told["duration_s"]) == (2, 2, 2.0)
    assert 0 < told["likely_cost"] < told["cost"]
    assert shell.type(*ask) == 0
    text = capsys.readouterr().out
    assert "2 rows: 2 to ask, 0 answered, 0 failed" in text
    assert " USD, at worst " in text
    assert "at least 2 s at the limits known" in text
    (shell.folder / "rows.jsonl").write_text('{"text": "a"}\n')
    assert shell.type("plan", "rows.jsonl", "--prompt", "{{ text }}", "--model", "m") == 0
    assert "1 rows: 1 to ask" in capsys.readouterr().out
    assert shell.type("plan", "rows.jsonl", "--model", "m") == 0
    assert "1 invalid" in capsys.readouterr().out
    assert shell.type("plan", "t.csv", "--model", "m") == 2
    assert "give the prompt with one of" in capsys.readouterr().err
    assert shell.type(*ask, "other.csv") == 2
    assert "name one table" in capsys.readouterr().err
    assert sorted(path.name for path in shell.folder.iterdir()) == ["batchrouter.toml", "rows.jsonl", "t.csv"]


def test_label_and_plan_have_the_options_of_run() -> None:
    """Whatever `run` may be told, `label` may; `plan` all that bears on what would be asked."""

    def flags(command: click.Command) -> set[str]:
        return {flag for param in command.params if isinstance(param, click.Option) for flag in param.opts}

    run, label, plan = (group.get_command(click.Context(group), name) for name in ("run", "label", "plan"))
    assert run is not None
    assert label is not None
    assert plan is not None
    assert flags(run) <= flags(label)
    assert flags(run) - flags(plan) == {"--emulate", "--progress", "--verbose", "-v", "--quiet", "-q"}
    prompts = {"--prompt", "--prompt-file", "--questions", "--system", "--labels", "--schema", "--id", "--image"}
    assert prompts <= flags(label) & flags(plan)


@pytest.mark.parametrize("name", ["label", "plan", "prepare", "export"])
def test_a_parameter_is_named_as_its_flag(name: str) -> None:
    """So that flag, variable and key are one word."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    for param in command.params:
        if isinstance(param, click.Option):
            assert f"--{str(param.name).replace('_', '-')}" in param.opts
