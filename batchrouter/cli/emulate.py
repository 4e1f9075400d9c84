"""`batchrouter emulate`: a local WorldRouter endpoint in the foreground."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from batchrouter.errors import UsageError
from batchrouter.values import parse_duration

if TYPE_CHECKING:
    from batchrouter.emulator import Behaviour, Emulator

_KINDS: Final = ("token-bucket", "sliding", "fixed")
_DEFAULT_MODELS: Final = "gpt-5.4, gpt-5.4-mini, reasoner-1, claude-sonnet-5, claude-haiku-5, text-embedding-3"
_HELP: Final = """Run a local WorldRouter endpoint, for trying and testing.

It prints the two lines to paste into another shell, and serves until Ctrl-C.

\b
Examples:
  batchrouter emulate --latency 80ms --rpm 600
  batchrouter emulate --rpm 600 --limit-kind sliding --window 1s --no-headers
  batchrouter emulate --tpm 100000 --max-concurrency 32 --queue
  batchrouter emulate --fault status_503=0.05 --fault retry_after=3=0.01
\b
Limits it plays: requests and tokens a minute (token bucket, sliding or fixed window of any
length), requests at once (429 or a queue), and credits (402).
\b
A message that holds [[fault:NAME]] or [[fault:NAME*2]] meets that fault always, or on its first
two attempts. While it runs, POST /_emulator/credits, key, limits, latency, faults and outage
change it, and GET /_emulator/stats tells what it saw.
"""


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """A duration option's value; click's usage error says what was expected."""
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _shares(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """NAME=SHARE or NAME=PARAMETER=SHARE, each a fault's call and the share of requests that meet it."""
    shares = {}
    for value in values:
        call, _, share = value.rpartition("=")
        try:
            shares[call] = float(share)
        except ValueError:
            call = ""
        if not call:
            raise click.BadParameter(f"{value!r}: write NAME=SHARE, as in status_503=0.05")
    return shares


def _list_faults(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 (click's)
    if not wanted:
        return
    from batchrouter.emulator import FAULTS  # noqa: PLC0415 (the emulator is loaded only where it is used)

    width = max(map(len, FAULTS))
    for name, fault in FAULTS.items():
        click.echo(f"{name:{width}}  {fault.description}")
    ctx.exit()


@click.command(help=_HELP)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the answers, the key and chance.")
@click.option("--latency", metavar="DURATION", default="0", callback=_seconds, help="Median, such as 80ms. [0]")
@click.option("--latency-sigma", type=click.FloatRange(0), default=0.0, help="Of the lognormal; 0: constant. [0]")
@click.option("--rpm", type=click.FloatRange(0, min_open=True), help="Requests a minute. [no limit]")
@click.option("--tpm", type=click.FloatRange(0, min_open=True), help="Tokens a minute. [no limit]")
@click.option("--limit-kind", type=click.Choice(_KINDS), default=_KINDS[0], help="[token-bucket]")
@click.option("--window", metavar="DURATION", default="60s", callback=_seconds, help="Of the limits. [60s]")
@click.option("--burst", type=click.FloatRange(1), help="Depth of the bucket, in requests. [one window]")
@click.option("--max-concurrency", type=click.IntRange(1), help="Requests at once. [no limit]")
@click.option("--queue/--no-queue", help="What is too much at once waits, instead of 429.")
@click.option("--headers/--no-headers", default=True, help="Retry-After and x-ratelimit-*. [on]")
@click.option("--credits", "balance", type=click.FloatRange(0), help="Answers until 402. [no end]")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=SHARE",
    callback=_shares,
    help="The share of requests that meet a fault (NAME=PARAMETER=SHARE with one).",
)
@click.option(
    "--list-faults",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_faults,
    help="Name every fault, and exit.",
)
@click.option("--model", "models", multiple=True, help=f"A model it knows. [{_DEFAULT_MODELS}]")
def command(host: str, port: int, **options: Any) -> None:
    """Serves in the foreground; the help is above."""
    from batchrouter.emulator import Emulator  # noqa: PLC0415 (the emulator is loaded only where it is used)

    try:
        behaviour = _behaviour(options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    emulator = Emulator(behaviour, host=host, port=port)
    try:
        number = asyncio.run(_serve(emulator))
    except OSError as error:
        raise UsageError(_cannot_listen(error, host, port)) from None
    sys.exit(128 + number)


def _behaviour(options: Mapping[str, Any]) -> Behaviour:
    from batchrouter.emulator import MODELS, Behaviour, Latency, Limits  # noqa: PLC0415 (as above)

    limits = Limits(
        requests_per_minute=options["rpm"],
        tokens_per_minute=options["tpm"],
        kind=options["limit_kind"],
        window_s=options["window"],
        burst=options["burst"],
        max_concurrency=options["max_concurrency"],
        queue=options["queue"],
        headers=options["headers"],
    )
    return Behaviour(
        seed=options["seed"],
        models=tuple(options["models"]) or MODELS,
        limits=limits,
        latency=Latency(options["latency"], options["latency_sigma"]),
        faults=options["faults"],
        balance=options["balance"],
    )


async def _serve(emulator: Emulator) -> signal.Signals:
    """Serves until SIGINT or SIGTERM, then ends what is being played; gives the signal."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _settle, stopped, number)
    async with emulator:
        _tell(f"export WORLDROUTER_BASE_URL={emulator.base_url}\nexport WORLDROUTER_API_KEY={emulator.key}\n")
        return await stopped


def _settle(stopped: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not stopped.done():  # a second signal changes nothing: ending is under way
        stopped.set_result(number)


def _tell(text: str) -> None:
    """Prints at once. Whoever started us may have closed our output: the endpoint serves all the same."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # a closed pipe, a closed file, no stdout at all
        _silence()


def _silence() -> None:
    """Lets what is left in the buffer go nowhere, so that the interpreter's last flush does not complain."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None


def _cannot_listen(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: give another with --port, or --port 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed to you: give one above 1023 with --port"
    return f"cannot listen on {host} port {port} ({error.strerror or error}): check --host and --port"
