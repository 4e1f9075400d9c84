"""`batchrouter run`: plan, then run or resume."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import shlex
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar

import click

from batchrouter.batch import run_batch
from batchrouter.cli.exits import code_for, last_words, signals_to
from batchrouter.cli.options import settings_from, settings_options
from batchrouter.cli.paths import default_directory
from batchrouter.control import Control
from batchrouter.keys import Secret, key_of
from batchrouter.progress import Observer, choose
from batchrouter.records import Summary
from batchrouter.settings import Settings

Value = TypeVar("Value")


@click.command(name="run")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="DIR", help="The run directory [<first input's stem>.run].")
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
def command(
    ctx: click.Context,
    /,
    inputs: tuple[str, ...],
    output: str | None,
    progress: str,
    emulate: bool,  # noqa: FBT001  (click passes it by name)
    verbose: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **values: Any,
) -> None:
    """Send the rows of INPUT (JSONL: OpenAI Batch rows or bare bodies; files, globs, or - for standard input) and
    write answers, failures and usage to DIR. The same command again resumes: no answer is paid for twice.

    \b
    Example: batchrouter run requests.jsonl --model gpt-5.4 --rpm 600
    """
    settings = settings_from(values)
    directory = output or default_directory(inputs[0])
    observer = choose("verbose" if verbose else "none" if quiet else progress)
    summary = to_end(run_to_end(inputs, directory, settings, observer, emulate=emulate))
    again = shlex.join(["batchrouter", *sys.argv[1:]])
    code = code_for(summary, settings.max_fail_ratio)
    if code or not quiet:
        with contextlib.suppress(OSError):
            click.echo(last_words(summary, again), err=True)
    ctx.exit(code)


def to_end(work: Coroutine[Any, Any, Value]) -> Value:
    """Run it on an event loop of its own: uvloop's, which takes a third less, where that is installed."""
    try:
        factory = import_module("uvloop").new_event_loop
    except ImportError:
        factory = None
    gc.freeze()  # what is loaded by now stays, and to look at it now and then would hold up the loop for 25 ms
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)
    finally:
        gc.unfreeze()


async def run_to_end(
    inputs: Sequence[str], directory: str, settings: Settings, observer: Observer, *, emulate: bool
) -> Summary:
    """Run a batch as a command does: signals stop it, and `emulate` puts an endpoint of its own in place."""
    control = Control()
    with signals_to(control, asyncio.get_running_loop()), contextlib.closing(observer):
        if not emulate:
            keys = {
                endpoint.name: key_of(endpoint, os.environ, settings.api_key_file)
                for endpoint in settings.all_endpoints()
            }
            return await run_batch(inputs, directory, settings, keys, observer=observer, control=control)
        await asyncio.to_thread(importlib.import_module, "batchrouter.emulator")  # so long that asyncio would complain
        from batchrouter.emulator import Emulator  # noqa: PLC0415  (only here)

        async with Emulator() as emulator:
            local = replace(settings, base_url=emulator.base_url, endpoints=())
            return await run_batch(inputs, directory, local, Secret(emulator.key), observer=observer, control=control)
