"""`batchrouter export`: a run's answers as a table."""

from __future__ import annotations

from typing import Any

import click

from batchrouter.cli.options import config_option
from batchrouter.cli.questions import Line
from batchrouter.dataset.export import Exported, export
from batchrouter.errors import UsageError
from batchrouter.retry import clean


@click.command(name="export")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", required=True, metavar="FILE", help=".csv, .tsv, .jsonl, .parquet; -: JSONL to stdout.")
@click.option("--join", metavar="DATA", help="The table that was prepared: its columns come first, as they were.")
@click.option("--id", metavar="COLUMN", help="The column of DATA with the ids, as given to prepare.")
@click.option("--schema", metavar="FILE", help="A JSON schema: a column for each property of the content.")
@click.option("--column", type=Line(), metavar="NAME=JMESPATH", multiple=True, help="A column from the JSON content.")
@click.option("--spreadsheet-safe", is_flag=True, help="In CSV, an apostrophe before what looks like a formula.")
@config_option
def command(directory: str, output: str, join: str | None, **values: Any) -> None:
    """Write the answers of the run in DIR as a table, in input order, with failed and pending rows in their places.

    The columns are id, content, finish_reason, model, error, tokens and cost. `error` is empty for a good answer and
    else begins with what it is: pending, timeout, 400, truncated, … It works while the run goes on, too.

    \b
    Examples:
      batchrouter export reviews.run -o answers.parquet
      batchrouter export reviews.run --join reviews.csv --column score=sentiment.score -o labelled.csv
    """
    if values["id"] is not None and join is None:
        raise UsageError("--id names a column of the table to join: give that with --join DATA")
    exported = export(
        directory, output, join=join, id_column=values["id"], schema=values["schema"],
        columns=_named(values["column"]), spreadsheet_safe=values["spreadsheet_safe"],
    )  # fmt: skip
    for line in told(exported):
        click.echo(line, err=True)


def _named(columns: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in columns:
        name, equals, expression = text.partition("=")
        if not equals or not name.strip() or not expression.strip():
            raise UsageError(f"--column {text!r}: write NAME=JMESPATH, as in score=sentiment.score")
        if name.strip() in found:
            raise UsageError(f"--column names {name.strip()!r} twice")
        found[name.strip()] = expression
    return found


def told(exported: Exported) -> list[str]:
    """What a user is told of a table that was written."""
    lines = [clean(note) for note in exported.notes]
    lines += [
        f"the table has a column {clean(name)!r} of its own: ours is {clean(given)!r}"
        for name, given in exported.renamed.items()
    ]
    marked = f", {exported.marked:,} of them marked in `error`" if exported.marked else ""
    lines.append(f"{exported.rows:,} rows{marked}: {exported.output}")
    return lines
