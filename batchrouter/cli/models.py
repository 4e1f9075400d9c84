"""`batchrouter models`: what the endpoint offers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any, Final

import click

from batchrouter.catalogue import Catalogue
from batchrouter.cli.options import settings_from, settings_options
from batchrouter.keys import Secret, key_of
from batchrouter.records import CREDITS_SPENT, ENDPOINT_DOWN, KEY_REFUSED, Fault, Reply
from batchrouter.remedies import remedy_for
from batchrouter.retry import clean, is_about_credits, message_of
from batchrouter.settings import Endpoint, Settings
from batchrouter.transport import Transport

_PATIENCE_S: Final = 30.0
_CHECK_URL: Final = "is the base URL right, up to and with /v1?"
_NO_CATALOGUE: Final = frozenset({404, 405, 410, 501})


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="The catalogue as the endpoint gives it.")
@settings_options
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:  # noqa: FBT001  (click passes it by name)
    """List the models of each endpoint (GET /models), by their ids.

    \b
    Example: batchrouter models --base-url http://127.0.0.1:8080/v1
    """
    settings = settings_from(values)
    endpoints = settings.all_endpoints()
    keys = [key_of(endpoint, os.environ, settings.api_key_file) for endpoint in endpoints]
    found = list(zip(endpoints, asyncio.run(_catalogues(settings, endpoints, keys)), strict=True))
    listed = [(endpoint.name, catalogue.models) for endpoint, catalogue in found if catalogue.models is not None]
    if listed and as_json:
        shown: Any = [{"endpoint": name, "models": models} for name, models in listed]
        click.echo(json.dumps(shown if len(endpoints) > 1 else listed[0][1], indent=2))  # ASCII: safe on any terminal
    elif listed:
        click.echo("\n".join(_table(listed, several=len(endpoints) > 1)))
    code = 0
    for endpoint, catalogue in found:
        if catalogue.models is None:
            its_code, reason = _why_none(catalogue.refusal, endpoint.base_url)
            click.echo(f"batchrouter: {reason}", err=True)
            code = code or its_code
    ctx.exit(code)


async def _catalogues(settings: Settings, endpoints: Sequence[Endpoint], keys: Sequence[Secret]) -> list[Catalogue]:
    return await asyncio.gather(*(_catalogue(settings, *each) for each in zip(endpoints, keys, strict=True)))


async def _catalogue(settings: Settings, endpoint: Endpoint, key: Secret) -> Catalogue:
    async with Transport(
        endpoint.base_url,
        key,
        concurrency=1,
        timeout_s=settings.timeout,
        idle_timeout_s=settings.idle_timeout,
        max_response_bytes=settings.max_response,
        headers=dict(endpoint.headers),
        proxy=settings.proxy,
        ca_file=settings.ca_file,
    ) as transport:
        return await transport.catalogue(_PATIENCE_S)


def _table(listed: list[tuple[str, list[dict[str, Any]]]], *, several: bool) -> list[str]:
    """A line a model: its id, who owns it, and (where there are several) the endpoint's name."""
    rows = sorted(
        (clean(model["id"]), clean(str(model.get("owned_by") or "")), name if several else "")
        for name, models in listed
        for model in models
    )
    rows.insert(0, ("MODEL", "OWNER", "ENDPOINT" if several else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{model:{widths[0]}}  {owner:{widths[1]}}  {name}".rstrip() for model, owner, name in rows]


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
