"""The options that say what is asked of every row of a table: `label` and `plan` have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from batchrouter.cli.options import OTHER_TABLES, Texts, questions_of_config
from batchrouter.cli.paths import default_directory
from batchrouter.dataset.labels import Shape, read_schema, shape_of_labels, split_labels
from batchrouter.dataset.prepare import Question
from batchrouter.dataset.questions import read_prompt, read_questions
from batchrouter.dataset.tables import FORMATS
from batchrouter.errors import UsageError

_PROMPTS: Final = ("prompt", "prompt_file", "questions")
_STRONGEST_FIRST: Final = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


class Line(click.types.StringParamType):
    """One text of several: in an environment variable each has a line of its own, as it may hold blanks."""

    envvar_list_splitter = "\n"


_OPTIONS: Final = (
    click.option("--prompt", metavar="TEXT", help="What is asked of every row, a Jinja template: {{ column }}."),
    click.option("--prompt-file", "--template", "prompt_file", metavar="FILE", help="A file with the prompt's text."),
    click.option(
        "--questions",
        metavar="FILE",
        help="Several prompts in one pass: a config file (TOML) with a table [question.NAME] for each.",
    ),
    click.option("--system", metavar="TEXT", help="A system message before the prompt, a template too."),
    click.option(
        "--labels", type=Texts(split_labels), metavar="A,B,C", help="Ask for one of these; it fills the column `label`."
    ),
    click.option("--schema", metavar="FILE", help="Ask for JSON by this schema; each property fills a column."),
    click.option("--id", metavar="COLUMN", help="The column with the rows' ids. [row-1, row-2, …]"),
    click.option(
        "--image", type=Line(), metavar="COLUMN", multiple=True, help="A column with pictures: paths or URLs."
    ),
)


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what is asked."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def strongest(ctx: click.Context, values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Which of options that exclude each other count: a flag stands above what the environment says by another one of
    them, and that above the config file.
    """
    given = [name for name in names if values[name] is not None]
    for source in _STRONGEST_FIRST:
        found = [name for name in given if ctx.get_parameter_source(name) is source]
        if found:
            return found
    return given


def is_asked(ctx: click.Context, values: Mapping[str, Any]) -> bool:
    """Whether a prompt was given for this very command."""
    return bool(strongest(ctx, values, _PROMPTS))


def questions_from(ctx: click.Context, values: Mapping[str, Any]) -> Question | dict[str, Question]:
    """What is asked of every row; raises UsageError where there is not just one source of prompts."""
    sources = strongest(ctx, values, _PROMPTS)
    config = None if sources else questions_of_config(ctx)
    if len(sources) != 1 and config is None:
        raise UsageError("give the prompt with one of --prompt TEXT, --prompt-file FILE and --questions FILE")
    if config is None and sources != ["questions"]:
        return _question(ctx, values, sources[0])
    file = config or values["questions"]
    for name in ("system", "labels", "schema"):
        if values[name] is not None:
            raise UsageError(f"--{name} goes into the table of its question, in {file}")
    if values["image"]:
        raise UsageError(f"--image goes into the table of its question, as images, in {file}")
    return read_questions(file, beside=OTHER_TABLES | {"run", "model"})


def _question(ctx: click.Context, values: Mapping[str, Any], source: str) -> Question:
    return Question(
        prompt=values["prompt"] if source == "prompt" else read_prompt(values["prompt_file"]),
        name="--prompt" if source == "prompt" else values["prompt_file"],
        system=values["system"],
        images=values["image"],
        shape=_shape(ctx, values),
    )


def _shape(ctx: click.Context, values: Mapping[str, Any]) -> Shape | None:
    given = strongest(ctx, values, ("labels", "schema"))
    if len(given) > 1:
        raise UsageError("give either --labels or --schema")
    if given == ["labels"]:
        return shape_of_labels(values["labels"])
    return read_schema(values["schema"]) if given else None


def is_table(name: str) -> bool:
    """Whether a file's name says that it holds a table, and not request rows."""
    plain = Path(name).with_suffix("") if Path(name).suffix.lower() in {".gz", ".zst"} else Path(name)
    return FORMATS.get(plain.suffix.lower(), "jsonl") != "jsonl"


def directory_of(data: str) -> str:
    """The run directory of a table where none is named: `reviews.run` for `reviews.csv.gz`."""
    path = Path(data)
    while path.suffix.lower() in {".gz", ".zst", *FORMATS}:
        path = path.with_suffix("")
    return default_directory(path.name)
