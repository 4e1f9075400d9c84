"""`batchrouter models`: what the endpoint offers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click
import orjson

from batchrouter.cli.options import settings_from, settings_options
from batchrouter.errors import UsageError
from batchrouter.retry import clean
from batchrouter.settings import Secret, Settings, find_key
from batchrouter.transport import Transport


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="The catalogue as the endpoint gives it.")
@settings_options
def command(as_json: bool, **values: Any) -> None:  # noqa: FBT001  (click passes it by name)
    """List the endpoint's models (GET /models).

    \b
    Example: batchrouter models --base-url http://127.0.0.1:8080/v1
    """
    settings = settings_from(values)
    models = asyncio.run(_models(settings, find_key(os.environ, settings.api_key_file)))
    if models is None:
        raise UsageError(f"{settings.base_url} gives no catalogue; is the base URL right, up to and with /v1?")
    if as_json:
        click.echo(orjson.dumps(models, option=orjson.OPT_INDENT_2).decode())
        return
    width = max((len(model["id"]) for model in models), default=0)
    for model in models:
        owner = model.get("owned_by")
        click.echo(f"{clean(model['id']):{width}}  {clean(str(owner)) if owner else ''}".rstrip())


async def _models(settings: Settings, key: Secret) -> list[dict[str, Any]] | None:
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
        return (await transport.catalogue()).models
