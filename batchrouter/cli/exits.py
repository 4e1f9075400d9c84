"""The border to the process: signals in, exit codes and last words out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from batchrouter.control import Control
from batchrouter.health import lost_in_words, short_time
from batchrouter.records import Halt, Summary, Tally
from batchrouter.remedies import remedy_for

_STOPPED_BY: Final = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "the terminal's end (SIGHUP)",
}
_MOST_KINDS: Final = 12
_OF_THE_INPUT: Final = frozenset({"invalid_row", "duplicate_custom_id"})  # no asking again helps these


def code_for(summary: Summary, max_fail_ratio: float) -> int:
    """The exit code of a run that has ended."""
    if summary.halt is not None:
        return summary.halt.exit_code
    failed = summary.tally.failed + summary.tally.failed_before
    return 1 if failed and failed / summary.tally.rows > max_fail_ratio else 0


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

    heeded = [number for number in _STOPPED_BY if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    for number in heeded:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in heeded:
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
    lines += _causes(tally)
    if tally.truncated:
        lines.append(
            f"  {tally.truncated:,} truncated: the budget was used up, perhaps by hidden reasoning, before any text"
        )
        lines.append(f"    fix: {remedy_for('truncated')}")
    lines += _ways(tally)
    usage = tally.usage
    if tally.attempts:
        lines.append(
            f"{usage.total_tokens:,} tokens ({usage.prompt_tokens:,} prompt, {usage.completion_tokens:,} completion)"
            f" in {tally.attempts:,} request{'' if tally.attempts == 1 else 's'}, {short_time(summary.duration_s)}"
            + (" on uvloop" if summary.loop == "uvloop" else "")
        )
    lines += [f"limit of {lane}: {limits}" for lane, limits in tally.limits.items()]
    if lost := lost_in_words(tally.lost_s):
        lines.append(f"held up by {lost}")
    lines.append(f"answers: {summary.directory}/results.jsonl")
    if failed:
        lines.append(f"failures: {summary.directory}/errors.jsonl")
        if summary.halt is None and (tally.failed_before or not tally.causes.keys() <= _OF_THE_INPUT):
            lines.append(f"to ask failed rows again, once the cause is mended: {command} --retry all")
    if summary.halt is not None:
        lines.append(f"stopped: {summary.halt.reason}")
        lines.append(f"to go on{_after(summary.halt)}: {command}")
    return "\n".join(lines)


def _ways(tally: Tally) -> list[str]:
    """What each model and endpoint did, where there were several, and who stood in for whom."""
    lines = [f"  {count:,} rows went from {before} to {after}" for (before, after), count in tally.moved.items()]
    if len(tally.shares) > 1:
        for share in tally.shares:
            failed = f", {share.failed:,} failed" if share.failed else ""
            state = f" ({share.state})" if share.state else ""
            lines.append(f"  {share.name}: {share.answered:,} answered{failed}{state}")
    return lines


def _causes(tally: Tally) -> list[str]:
    """The failures of this start by kind, the most frequent first: how many, an example, and the next move."""
    kinds = sorted(tally.causes.items(), key=lambda item: -item[1].count)
    lines = []
    for kind, cause in kinds[:_MOST_KINDS]:
        lines.append(f"  {cause.count:,} x {kind}, for example {cause.example}")
        if remedy := remedy_for(kind):
            lines.append(f"    fix: {remedy}")
    if len(kinds) > _MOST_KINDS:
        rest = sum(cause.count for _, cause in kinds[_MOST_KINDS:])
        lines.append(f"  {rest:,} of {len(kinds) - _MOST_KINDS} other kinds")
    return lines


def _after(halt: Halt) -> str:
    return f" ({halt.remedy})" if halt.remedy else ""
