"""`batchrouter plan`: what `run` would do, with nothing sent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson

from batchrouter.cli.options import settings_from, settings_options
from batchrouter.cli.paths import default_directory
from batchrouter.preview import Preview, preview
from batchrouter.progress import short_time


@click.command(name="plan")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="DIR", help="The run directory [<first input's stem>.run].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@settings_options
def command(inputs: tuple[str, ...], output: str | None, as_json: bool, **values: Any) -> None:  # noqa: FBT001  (click passes it by name)
    """Tell what `run` with the same arguments would do: rows that are new, done, failed, changed or invalid, tokens and
    time to expect. Nothing is sent.

    \b
    Example: batchrouter plan requests.jsonl --rpm 600
    """
    settings = settings_from(values)
    found = preview(inputs, Path(output or default_directory(inputs[0])), settings)
    if as_json:
        click.echo(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(_text(found, changed=settings.changed))


def _text(found: Preview, *, changed: str) -> str:
    lines = [f"{found.rows:,} rows: {found.new:,} to ask, {found.answered:,} answered, {found.failed:,} failed"]
    if found.changed:
        consequence = {"refuse": "run will refuse", "rerun": "asked again", "keep": "old answers kept"}[changed]
        lines.append(f"{found.changed:,} changed since they were asked ({consequence}; --changed)")
    if found.removed:
        lines.append(f"{found.removed:,} answered before and no longer in the input")
    if found.invalid:
        lines.append(f"{found.invalid:,} invalid: they are recorded as failed, or stop a run with --strict")
    if found.duplicates:
        lines.append(f"{found.duplicates:,} with a custom_id that an earlier row has")
    if found.equal_bodies:
        lines.append(f"{found.equal_bodies:,} with the body of an earlier row: --dedupe would not send them")
    for model, count in found.requests_by_model.items():
        lines.append(f"  {count:,} x {model}")
    lines.append(f"about {found.tokens:,} tokens, prompt and answer together (estimated)")
    if found.cost is not None:
        lines.append(f"at worst {found.cost:,.2f} USD, by the prices in the config file")
    if found.duration_s is not None:
        lines.append(f"at least {short_time(found.duration_s)} at the limits given")
    return "\n".join(lines)
