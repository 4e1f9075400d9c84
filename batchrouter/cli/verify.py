"""`batchrouter verify`: are the promises kept in this directory?"""

from __future__ import annotations

from pathlib import Path

import click

from batchrouter.audit import audit
from batchrouter.audit import repair as mend


@click.command(name="verify")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Mend what can be mended: torn, damaged and doubled lines, index, totals.")
@click.pass_context
def command(ctx: click.Context, directory: Path, repair: bool) -> None:  # noqa: FBT001  (click passes it by name)
    """Check that every input row of DIR is in exactly one of answered, failed and pending, that no answer stands under
    another row's id, and that the totals are the sum of the rows. Exit 0 when all is well, else 1.

    \b
    Example: batchrouter verify requests.run
    """
    if repair:
        for line in mend(directory):
            click.echo(line)
    found = audit(directory)
    for note in found.notes:
        click.echo(f"note: {note}")
    for problem in found.problems:
        click.echo(problem)
    if found.unshown:
        click.echo(f"… and {found.unshown:,} more")
    rows = f"{found.rows:,} rows: {found.answered:,} answered, {found.failed:,} failed, {found.pending:,} pending"
    rows += f", {found.removed:,} answered before and no longer in the input" if found.removed else ""
    click.echo(f"{rows}: {'something is wrong' if found.problems else 'every row is in exactly one place'}")
    ctx.exit(1 if found.problems else 0)
