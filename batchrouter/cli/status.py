"""`batchrouter status`: where a run stands."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from batchrouter.health import short_time
from batchrouter.standing import Standing, look

_WATCH_EVERY_S: Final = 2.0


@click.command(name="status")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Again every 2 s, until nobody runs it any more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object (a line each with --watch).")
def command(directory: Path, watch: bool, as_json: bool) -> None:  # noqa: FBT001  (click passes them by name)
    """Tell where the run of DIR stands, from its files alone; it may be running meanwhile.

    \b
    Example: batchrouter status requests.run --watch
    """
    while True:
        standing = look(directory)
        click.echo(json.dumps(asdict(standing)) if as_json else _text(standing))
        if not watch or standing.running is None:
            return
        time.sleep(_WATCH_EVERY_S)


def _text(standing: Standing) -> str:
    rows = "?" if standing.rows is None else f"{standing.rows:,}"
    pending = "?" if standing.pending is None else f"{standing.pending:,}"
    text = f"{rows} rows: {standing.answered:,} answered, {standing.failed:,} failed, {pending} pending"
    if len(standing.shares) > 1:
        text += "; of late " + ", ".join(f"{count:,} by {way}" for way, count in standing.shares.items())
    if standing.running is None:
        event = standing.last_event or {}
        return f"{text}; not running" + (f" (last: {event['reason']})" if "reason" in event else "")
    text += f"; running as process {standing.running}"
    if standing.rows_per_s:
        text += f", {standing.rows_per_s:,.1f} rows/s"
        if standing.pending:
            text += f", about {short_time(standing.pending / standing.rows_per_s)} left"
    return text
