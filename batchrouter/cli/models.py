"""`batchrouter models`: what the endpoint offers."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Final

import click

from batchrouter.cli.options import settings_from, settings_options
from batchrouter.records import CREDITS_SPENT, ENDPOINT_DOWN, KEY_REFUSED, Fault, Reply
from batchrouter.remedies import remedy_for
from batchrouter.retry import clean, is_about_credits, message_of
from batchrouter.settings import Secret, Settings, find_key
from batchrouter.transport import Catalogue, Transport

_PATIENCE_S: Final = 30.0
_CHECK_URL: Final = "is the base URL right, up to and with /v1?"
_NO_CATALOGUE: Final = frozenset({404, 405, 410, 501})


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="The catalogue as the endpoint gives it.")
@settings_options
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:  # noqa: FBT001  (click passes it by name)
    """List the endpoint's models (GET /models), by their ids.

    \b
    Example: batchrouter models --base-url http://127.0.0.1:8080/v1
    """
    settings = settings_from(values)
    found = asyncio.run(catalogue_of(settings, find_key(os.environ, settings.api_key_file), _PATIENCE_S))
    if found.models is None:
        code, reason = _why_none(found.refusal, settings.base_url)
        click.echo(f"batchrouter: {reason}", err=True)
        ctx.exit(code)
    if as_json:
        click.echo(json.dumps(found.models, indent=2))  # ASCII: safe on any terminal
    else:
        click.echo("\n".join(_table(found.models)))


async def catalogue_of(settings: Settings, key: Secret, within_s: float) -> Catalogue:
    """What the endpoint lists."""
    async with Transport(
        settings.base_url,
        key,
        concurrency=1,
        timeout_s=settings.timeout,
        idle_timeout_s=settings.idle_timeout,
        max_response_bytes=settings.max_response,
        proxy=settings.proxy,
        ca_file=settings.ca_file,
    ) as transport:
        return await transport.catalogue(within_s)


def _table(models: list[dict[str, Any]]) -> list[str]:
    """A line a model: its id, and who owns it."""
    rows = sorted((clean(model["id"]), clean(str(model.get("owned_by") or ""))) for model in models)
    width = max([len("MODEL"), *(len(name) for name, _ in rows)])
    return [f"{name:{width}}  {owner}".rstrip() for name, owner in [("MODEL", "OWNER"), *rows]]


def _why_none(refusal: Reply | Fault | None, base_url: str) -> tuple[int, str]:
    """The exit code and the reason, with the next move, where there is no catalogue."""
    if refusal is None:
        return 2, f"{base_url}/models is no catalogue; {_CHECK_URL}"
    if isinstance(refusal, Fault):
        return ENDPOINT_DOWN, f"{base_url}/models: {refusal.message}"
    told = f"{base_url}/models: {refusal.status}, {message_of(refusal.body)}"
    if refusal.status in _NO_CATALOGUE or 300 <= refusal.status < 400:
        return 2, f"{told}; {_CHECK_URL}"
    if refusal.status in {401, 403}:
        return KEY_REFUSED, f"{told}; {remedy_for('401')}"
    if refusal.status == 402 or is_about_credits(refusal.body):
        return CREDITS_SPENT, f"{told}; {remedy_for('402')}"
    return ENDPOINT_DOWN, told
