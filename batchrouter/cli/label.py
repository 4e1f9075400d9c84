"""`batchrouter label`: a table in, the labelled table out."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from batchrouter.cli.exits import code_for, last_words
from batchrouter.cli.export import told
from batchrouter.cli.options import settings_from, settings_options
from batchrouter.cli.questions import directory_of, question_options, questions_from
from batchrouter.cli.run import run_to_end, to_end
from batchrouter.dataset.label import Labelled, label
from batchrouter.progress import choose
from batchrouter.records import Summary
from batchrouter.settings import Settings


@click.command(name="label")
@click.argument("data", metavar="DATA")
@click.option("-o", "--output", required=True, metavar="FILE", help="The labelled table: .csv, .tsv, .jsonl, .parquet.")
@question_options
@click.option("--directory", metavar="DIR", help="The run directory [<DATA's stem>.run].")
@click.option("--spreadsheet-safe", is_flag=True, help="In CSV, an apostrophe before what looks like a formula.")
@click.option("--emulate", is_flag=True, help="Send to an embedded emulator: nothing is paid, no key is needed.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "json", "none"]),
    default="auto",
    help="How to show it. [auto]",
)
@click.option("-v", "--verbose", is_flag=True, help="A line every 5 s, whatever --progress says.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, and no last words where all went well.")
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
    observer = choose("verbose" if values["verbose"] else "none" if values["quiet"] else values["progress"])

    def run(inputs: Sequence[str], directory: Path, settings: Settings) -> Summary:
        return to_end(run_to_end(inputs, str(directory), settings, observer, emulate=values["emulate"]))

    labelled = label(
        data,
        output,
        questions_from(ctx, values),
        directory=values["directory"] or directory_of(data),
        settings=settings,
        run=run,
        id_column=values["id"],
        spreadsheet_safe=values["spreadsheet_safe"],
    )
    code = _code(labelled, settings.max_fail_ratio)
    if code or not values["quiet"]:
        again = shlex.join(["batchrouter", *sys.argv[1:]])
        with contextlib.suppress(OSError):
            click.echo(last_words(labelled.summary, again), err=True)
            for line in told(labelled.exported) if labelled.exported else ():
                click.echo(line, err=True)
    ctx.exit(code)


def _code(labelled: Labelled, max_fail_ratio: float) -> int:
    """The run's exit code; 1 also where too many answers cannot be used, which the run takes for answers."""
    code = code_for(labelled.summary, max_fail_ratio)
    exported = labelled.exported
    if code != 0 or exported is None:
        return code
    # Pending rows are those beyond --limit, which do not count.
    return int(exported.marked - exported.pending > max_fail_ratio * (exported.rows - exported.pending))
