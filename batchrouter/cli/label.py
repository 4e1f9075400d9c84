"""`batchrouter label`: a table in, the labelled table out."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from batchrouter.cli.exits import code_for, last_words
from batchrouter.cli.export import Line, told
from batchrouter.cli.options import settings_from, settings_options
from batchrouter.cli.paths import default_directory
from batchrouter.cli.run import run_to_end
from batchrouter.dataset.label import Labelled, label
from batchrouter.dataset.labels import Shape, read_schema, shape_of_labels, split_labels
from batchrouter.dataset.prepare import Question
from batchrouter.dataset.questions import read_prompt, read_questions
from batchrouter.dataset.tables import FORMATS
from batchrouter.errors import UsageError
from batchrouter.progress import choose
from batchrouter.records import Summary
from batchrouter.settings import Settings


@click.command(name="label")
@click.argument("data", metavar="DATA")
@click.option("-o", "--output", required=True, metavar="FILE", help="The labelled table: .csv, .tsv, .jsonl, .parquet.")
@click.option("--prompt", metavar="TEXT", help="What is asked of every row, a Jinja template: {{ column }}.")
@click.option("--prompt-file", metavar="FILE", help="A file with the prompt's text.")
@click.option("--questions", metavar="FILE", help="Several prompts in one pass (TOML): [question.NAME] prompt = …")
@click.option("--system", metavar="TEXT", help="A system message before the prompt, a template too.")
@click.option("--labels", metavar="A,B,C", help="Ask for one of these; it fills the column `label`.")
@click.option("--schema", metavar="FILE", help="Ask for JSON by this schema; each property fills a column.")
@click.option("--id", "id_column", metavar="COLUMN", help="The column with the rows' ids. [row-1, row-2, …]")
@click.option(
    "--image", "images", type=Line(), metavar="COLUMN", multiple=True, help="A column with pictures: paths or URLs."
)
@click.option("--directory", metavar="DIR", help="The run directory [<DATA's stem>.run].")
@click.option("--spreadsheet-safe", is_flag=True, help="In CSV, an apostrophe before what looks like a formula.")
@click.option("--emulate", is_flag=True, help="Send to an embedded emulator: nothing is paid, no key is needed.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "json", "none"]),
    default="auto",
    help="How to show it. [auto]",
)
@settings_options
@click.pass_context
def command(ctx: click.Context, /, data: str, output: str, **values: Any) -> None:
    """Ask a prompt of every row of DATA and write the table with the answers beside it: prepare, run and export in one.

    The same command again fills in what is missing: rows that are pending, failed or truncated. The answer is the
    column `answer`; with --labels `label`, with --schema a column a property. `error` says what is wrong where there is
    none. A column that DATA has already keeps its name, and ours gets another (`answer_2`), which is told.

    \b
    Examples:
      batchrouter label reviews.csv --prompt 'Sentiment? {{ review }}' --labels positive,negative,neutral \\
        --model gpt-5.4-mini -o labelled.csv
      batchrouter label samples/reviews.csv --prompt 'Sum up: {{ review }}' --model gpt-5.4 --emulate -o try.csv
    """
    settings = settings_from(values)
    observer = choose(values["progress"])

    def run(inputs: Sequence[str], directory: Path, settings: Settings) -> Summary:
        return asyncio.run(run_to_end(inputs, str(directory), settings, observer, emulate=values["emulate"]))

    labelled = label(
        data,
        output,
        read_questions(values["questions"]) if _asks_several(values) else _question(values),
        directory=values["directory"] or _directory(data),
        settings=settings,
        run=run,
        id_column=values["id_column"],
        spreadsheet_safe=values["spreadsheet_safe"],
    )
    again = shlex.join(["batchrouter", *sys.argv[1:]])
    with contextlib.suppress(OSError):
        click.echo(last_words(labelled.summary, again), err=True)
        for line in told(labelled.exported) if labelled.exported else ():
            click.echo(line, err=True)
    ctx.exit(_code(labelled, settings.max_fail_ratio))


def _asks_several(values: Mapping[str, Any]) -> bool:
    """Whether the prompts come from a file of several; raises UsageError where there is not just one source of them."""
    sources = [name for name in ("prompt", "prompt_file", "questions") if values[name] is not None]
    if len(sources) != 1:
        raise UsageError("give the prompt with one of --prompt TEXT, --prompt-file FILE and --questions FILE")
    if sources == ["questions"]:
        for name in ("system", "labels", "schema"):
            if values[name] is not None:
                raise UsageError(f"--{name} goes into the table of its question, in {values['questions']}")
        if values["images"]:
            raise UsageError(f"--image goes into the table of its question, as images, in {values['questions']}")
    return sources == ["questions"]


def _question(values: Mapping[str, Any]) -> Question:
    prompt, file = values["prompt"], values["prompt_file"]
    return Question(
        prompt=read_prompt(file) if prompt is None else prompt,
        name="--prompt" if prompt is not None else file,
        system=values["system"],
        images=values["images"],
        shape=_shape(values["labels"], values["schema"]),
    )


def _shape(labels: str | None, schema: str | None) -> Shape | None:
    if labels is not None and schema is not None:
        raise UsageError("give either --labels or --schema")
    if labels is not None:
        return shape_of_labels(split_labels(labels))
    return None if schema is None else read_schema(schema)


def _directory(data: str) -> str:
    """`reviews.run` for `reviews.csv.gz`."""
    path = Path(data)
    while path.suffix.lower() in {".gz", ".zst", *FORMATS}:
        path = path.with_suffix("")
    return default_directory(path.name)


def _code(labelled: Labelled, max_fail_ratio: float) -> int:
    """The run's exit code; 1 also where too many answers cannot be used, which the run takes for answers."""
    code = code_for(labelled.summary, max_fail_ratio)
    exported = labelled.exported
    if code != 0 or exported is None:
        return code
    # Pending rows are those beyond --limit, which do not count.
    return int(exported.marked - exported.pending > max_fail_ratio * (exported.rows - exported.pending))
