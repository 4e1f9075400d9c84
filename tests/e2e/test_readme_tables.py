"""The README's and the sample's lines about tables, typed as they stand: what they show is what they give."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest

from batchrouter.cli import main
from batchrouter.dataset.tables import open_table

ROOT = Path(__file__).resolve().parents[2]
TIME = re.compile(r", \d+ s( on uvloop)?$")


def section(name: str, heading: str) -> str:
    text = (ROOT / name).read_text("utf-8")
    start = text.index(heading)
    return text[start : text.index("\n## ", start)] if "\n## " in text[start:] else text[start:]


def typed(text: str) -> list[tuple[list[str], list[str]]]:
    """The commands of a text's blocks, each with the lines that it shows below it."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ ")) if "batchrouter " in line else []
            if words[:1] == ["batchrouter"]:
                found.append((words[1:], []))
            else:
                found[-1][1].append(line)
    return found


class Terminal:
    """Types commands in a folder with the samples (in this process: they are many)."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capsys = capsys
        patch.chdir(folder)
        (folder / "samples").symlink_to(ROOT / "samples")

    def type(self, words: list[str]) -> list[str]:
        """What a command that ends well says."""
        self._patch.setattr(sys, "argv", ["batchrouter", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.err.splitlines()


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, monkeypatch, capsys)


def test_the_lines_about_tables_do_what_they_show(terminal: Terminal) -> None:
    """Typed one after the other; only the time taken may differ from what is shown."""
    for words, shown in typed(section("README.md", "### From a table to a labelled table")):
        said = terminal.type(words)
        assert not shown or [TIME.sub("", line) for line in said] == [TIME.sub("", line) for line in shown]
    labelled, answers = pd.read_csv("labelled.csv"), pd.read_csv("answers.csv")
    assert list(labelled.columns) == ["id", "product", "rating", "review", "posted", "label", "error"]
    assert labelled["label"].isin(["positive", "negative", "neutral"]).all()
    assert list(labelled["id"]) == list(answers["id"]) == [f"R-{n}" for n in range(1001, 1301)]
    assert answers["content"].notna().all()


def test_the_sample_gives_the_columns_that_it_tells(terminal: Terminal) -> None:
    """The tables of reviews.md name the columns of the source, and those of the result beside them, in order."""
    text = section("samples/reviews.md", "# The sample table")
    names = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    source = [column.name for column in open_table(ROOT / "samples/reviews.csv").columns()]
    assert names[: len(source)] == source
    [(words, _)] = typed(text)
    for output in ("o.csv", "o.parquet", "o.jsonl"):
        terminal.type([*words[:-1], output])
    frames = [pd.read_csv("o.csv"), pd.read_parquet("o.parquet"), pl.read_ndjson("o.jsonl")]
    assert [list(frame.columns) for frame in frames] == [names] * 3
    assert [len(frame) for frame in frames] == [300] * 3


def test_several_prompts_give_the_columns_that_are_told(terminal: Terminal) -> None:
    """Those of each question begin with its name, in the order of the file."""
    text = section("samples/reviews.md", "## Several prompts in one pass")
    [(words, _)] = typed(text)
    terminal.type(words)
    told = re.findall(r"`(\w+)`", text[text.index("begin with its name") :])
    found = pd.read_csv("several.csv", keep_default_na=False)
    assert list(found.columns) == ["id", "product", "rating", "review", "posted", *told]
    assert found["tone"].isin(["positive", "negative", "neutral"]).all()
    assert (found["error"] == "").all()
