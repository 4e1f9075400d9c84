"""`batchrouter plan`: what `run` would do, with nothing sent."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from batchrouter.cli.options import DEFAULT_CONFIG, settings_from, settings_options
from batchrouter.cli.paths import default_directory
from batchrouter.cli.questions import directory_of, is_asked, is_table, question_options, questions_from
from batchrouter.dataset.label import plan
from batchrouter.endpoints import Endpoints
from batchrouter.errors import UsageError
from batchrouter.health import short_time
from batchrouter.keys import key_of
from batchrouter.preview import Preview, preview
from batchrouter.routing import routes_of
from batchrouter.settings import Settings


@click.command(name="plan")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="DIR", help="The run directory [<first input's stem>.run].")
@click.option("--json", is_flag=True, help="One JSON object.")
@question_options
@settings_options
@click.pass_context
def command(ctx: click.Context, /, inputs: tuple[str, ...], output: str | None, **values: Any) -> None:
    """Tell what `run` with the same arguments would do: rows that are new, done, failed, changed or invalid, tokens,
    cost and time to expect. With a table and a prompt, tell it of `label`. Nothing is sent.

    \b
    Examples:
      batchrouter plan requests.jsonl --rpm 600
      batchrouter plan reviews.csv --prompt 'Sentiment? {{ review }}' --labels good,bad --model gpt-5.4-mini
    """
    settings = settings_from(values)
    if is_asked(ctx, values) or any(is_table(text) for text in inputs):
        found = _of_table(ctx, inputs, output, settings, values)
    else:
        found = preview(inputs, Path(output or default_directory(inputs[0])), settings)
    if values["json"]:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        click.echo(_text(found, changed=settings.changed))
    for text in _warnings(settings, found.requests_by_model):
        click.echo(f"batchrouter: {text}", err=True)


def _warnings(settings: Settings, names: Mapping[str, int]) -> list[str]:
    """What the endpoints' catalogues lack of the rows' models; nothing where there is no key to ask with."""
    try:
        return asyncio.run(_look(settings, names)) if names else []
    except UsageError:
        return []


async def _look(settings: Settings, names: Mapping[str, int]) -> list[str]:
    keys = {each.name: key_of(each, os.environ, settings.api_key_file) for each in settings.all_endpoints()}
    unused: dict[str, Any] = {"note": lambda *_, **__: None, "rng": random.Random()}  # no row will be sent
    async with Endpoints(settings, routes_of(settings), keys, {}, **unused) as endpoints:
        return await endpoints.look(names)


def _of_table(
    ctx: click.Context, inputs: tuple[str, ...], output: str | None, settings: Settings, values: dict[str, Any]
) -> Preview:
    if len(inputs) != 1:
        raise UsageError("name one table, or request rows without a prompt")
    [data] = inputs
    directory = output or directory_of(data)
    return plan(data, questions_from(ctx, values), directory=directory, settings=settings, id_column=values["id"])


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
    if found.cost is not None and found.likely_cost is not None:
        likely, worst = _usd(found.likely_cost), _usd(found.cost)
        lines.append(f"about {likely} USD, at worst {worst}, by the prices in the config file")
    elif found.new:
        model = next(iter(found.requests_by_model))
        lines.append(f"cost unknown: prices go into {DEFAULT_CONFIG}, as in [model.{json.dumps(model)}]")
    if found.duration_s is not None:
        lines.append(f"at least {short_time(found.duration_s)} at the limits known")
    return "\n".join(lines)


def _usd(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"
