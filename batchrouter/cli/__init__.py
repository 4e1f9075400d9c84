"""The command `batchrouter`: a click group that loads a command's module when it is called, and no sooner."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from batchrouter import __version__
from batchrouter.errors import BatchrouterError

# command -> (module, what it does, as the list of commands tells)
COMMANDS: Final = {
    "run": ("batchrouter.cli.run", "Run or resume a batch of requests."),
    "plan": ("batchrouter.cli.plan", "Tell what `run` would do, with nothing sent."),
    "status": ("batchrouter.cli.status", "Tell where a run stands, also while it runs."),
    "verify": ("batchrouter.cli.verify", "Check that no row is lost, doubled or mixed up."),
    "label": ("batchrouter.cli.label", "A table in, a labelled table out."),
    "prepare": ("batchrouter.cli.prepare", "A table and a prompt to request rows."),
    "export": ("batchrouter.cli.export", "Answers as a table, in input order, beside the source data."),
    "models": ("batchrouter.cli.models", "List the endpoint's models."),
    "emulate": ("batchrouter.cli.emulate", "A local WorldRouter endpoint for trying and testing."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """The commands' names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command called `cmd_name`, imported."""
        if cmd_name not in COMMANDS:
            return None
        with _left_at_once():
            command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)  # noqa: S101  (the table above is ours)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, from the table instead of from the modules."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@contextmanager
def _left_at_once() -> Iterator[None]:
    """While inside, Ctrl-C raises nothing but ends the process: compiled modules that are being loaded crash on it."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or a caller's own
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "BATCHROUTER", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="batchrouter")
def group() -> None:
    """Run millions of LLM calls through an OpenAI-compatible endpoint: pay for each once, lose none.

    \b
    Try it without a key:   batchrouter run samples/*.jsonl --emulate
    The real thing:         batchrouter run requests.jsonl
    The same again resumes: batchrouter run requests.jsonl
    """


def main() -> None:
    """Entry point: a user's mistake is a line on stderr and an exit code, never a traceback."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may hold what the terminal has no word for
    try:
        code = group.main(prog_name="batchrouter", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BatchrouterError as error:
        click.echo(f"batchrouter: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _open_what_is_closed() -> None:
    """Have nothing in the place of standard streams that are closed, lest a file of the run takes it."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode))
