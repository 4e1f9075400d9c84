"""The border to the process: signals in, exit codes and last words out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from batchrouter.batch import Control
from batchrouter.progress import short_time
from batchrouter.records import Halt, Summary

_STOPPED_BY: Final = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "the terminal's end (SIGHUP)",
}
_REMEDIES: Final = {  # the endpoint's own advice, by the status that a group of failures has
    "400": "check the model's id (case matters) and the fields of the body",
    "404": "check --base-url and the model's id",
    "500": "run them again with --retry; if it persists, try a different model",
}


def code_for(summary: Summary, max_fail_ratio: float) -> int:
    """The exit code of a run that has ended."""
    if summary.halt is not None:
        return summary.halt.exit_code
    failed = summary.tally.failed + summary.tally.failed_before
    return 1 if failed > max_fail_ratio * summary.tally.rows else 0


@contextmanager
def signals_to(control: Control, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While inside: a first SIGINT, SIGTERM or SIGHUP stops the run cleanly, a second one at once."""
    seen: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        seen.append(number)
        if len(seen) == 1:
            control.stop(Halt(128 + number, f"stopped by {_STOPPED_BY[number]}"))
        else:
            control.abort()

    for number in _STOPPED_BY:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in _STOPPED_BY:
            loop.remove_signal_handler(number)


def last_words(summary: Summary, command: str) -> str:
    """What a user reads at the end: how it ended, why, where the files are, and what to type next."""
    tally = summary.tally
    failed = tally.failed + tally.failed_before
    rows = f"{tally.rows:,} rows: {tally.answered + tally.answered_before:,} answered"
    if tally.answered_before:
        rows += f" ({tally.answered_before:,} of them before)"
    rows += f", {failed:,} failed, {tally.pending:,} pending"
    lines = [rows]
    for kind, cause in sorted(tally.causes.items(), key=lambda item: -item[1].count):
        lines.append(f"  {cause.count:,} x {kind}, for example {cause.example}")
        remedy = _REMEDIES.get(kind.split(" ")[0])
        if remedy:
            lines.append(f"    {remedy}")
    if tally.truncated:
        lines.append(f"  {tally.truncated:,} truncated: the token budget ran out before any text; raise max_tokens")
    usage = tally.usage
    if tally.attempts:
        lines.append(
            f"{usage.total_tokens:,} tokens ({usage.prompt_tokens:,} prompt, {usage.completion_tokens:,} completion)"
            f" in {tally.attempts:,} requests, {short_time(summary.duration_s)}"
        )
    lost = {reason: seconds for reason, seconds in tally.lost_s.items() if seconds >= 1}
    if lost:
        lines.append("held up by " + ", ".join(f"{reason} {short_time(seconds)}" for reason, seconds in lost.items()))
    lines.append(f"answers: {summary.directory}/results.jsonl")
    if failed:
        lines.append(f"failures: {summary.directory}/errors.jsonl")
    if summary.halt is not None:
        lines.append(f"stopped: {summary.halt.reason}")
        lines.append(f"to go on{_after(summary.halt)}: {command}")
    return "\n".join(lines)


def _after(halt: Halt) -> str:
    return f" ({halt.remedy})" if halt.remedy else ""
