"""run_batch: opens, wires, closes; the only place that constructs. The library's front door.

Rules of this file: whatever is opened is entered with `with`; nothing is sent before the plan stands; the last
checkpoint is made however the run ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from batchrouter import __version__
from batchrouter import plan as planning
from batchrouter.errors import DiskError, UsageError
from batchrouter.intake import Shaping, Source, find_sources
from batchrouter.ledger import Ledger
from batchrouter.pace import Pace
from batchrouter.plan import Plan
from batchrouter.progress import Observer, Silence
from batchrouter.records import Halt, Summary, Tally
from batchrouter.retry import Policy
from batchrouter.runner import Runner, disk_halt
from batchrouter.settings import Secret, Settings
from batchrouter.throttle import Throttle
from batchrouter.transport import Redactor, Transport

MOST_CONCURRENT: Final = 512
_STDIN_COPY: Final = "stdin.jsonl"


class Control:
    """A handle on a run from outside, for signal handlers: `stop` once, `abort` when it must end now."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._halt: Halt | None = None
        self._aborted = False

    def stop(self, halt: Halt) -> None:
        """Admit nothing more, finish what is in flight within the grace, and end with `halt`."""
        self._halt = self._halt or halt
        if self._runner is not None:
            self._runner.stop(self._halt)

    def abort(self) -> None:
        """End at once; what has arrived is recorded."""
        self._aborted = True
        if self._runner is not None:
            self._runner.abort()

    def attach(self, runner: Runner) -> None:
        """Hand over the runner; what was asked for before is asked of it now."""
        self._runner = runner
        if self._halt is not None:
            runner.stop(self._halt)
        if self._aborted:
            runner.abort()


_TICK_S: Final = 0.2


async def run_batch(
    inputs: Sequence[str],
    directory: str | Path,
    settings: Settings,
    key: Secret,
    *,
    observer: Observer | None = None,
    control: Control | None = None,
    seed: int | None = None,
) -> Summary:
    """Run or resume a batch: rows of `inputs` (paths, globs, `-`) to the endpoint, answers into `directory`.

    Calling it again with the same arguments resumes; rows that are answered or failed for good are not sent again.
    Raises UsageError (nothing was sent), BusyError, DiskError; every other end is told by `Summary.halt`.
    """
    began = time.monotonic()
    observer = observer or Silence()
    directory = Path(directory)
    sources = find_sources(tuple(inputs), directory / _STDIN_COPY)
    redact = Redactor(key)
    with Ledger.open(directory, redact=redact) as ledger:
        plan = _plan(sources, settings, ledger)
        observer.planned(plan.rows, plan.pending)
        ledger.write_run(_about(sources, settings))
        tally = Tally(rows=plan.rows, answered_before=plan.answered, failed_before=plan.failed, state="running")
        halt = None
        try:
            _record_refusals(plan, ledger, tally)
            if tally.pending:
                halt = await _ask(plan, settings, key, ledger, tally, observer, control or Control(), seed)
        except DiskError as error:
            halt = disk_halt(error)
        halt = _close_books(ledger, halt)
        return Summary(str(directory), tally, time.monotonic() - began, halt)


def _plan(sources: Sequence[Source], settings: Settings, ledger: Ledger) -> Plan:
    shaping = Shaping(settings.model, settings.override_model, settings.set, settings.stream)
    plan = planning.make(sources, shaping, ledger, limit=settings.limit, changed=settings.changed, retry=settings.retry)
    if settings.strict and (plan.invalid or plan.duplicates):
        shown = [refusal.message for refusal, _ in zip(planning.refusals(plan), range(20), strict=False)]
        raise UsageError("--strict, and there are invalid rows; nothing was sent\n" + "\n".join(shown))
    return plan


def _about(sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    inputs = [{"label": source.label, "path": str(source.path), **source.fingerprint()} for source in sources]
    return {"version": __version__, "inputs": inputs, "settings": settings.shown()}


def _record_refusals(plan: Plan, ledger: Ledger, tally: Tally) -> None:
    """Book the rows that cannot be asked, before anything is sent."""
    for refusal in planning.refusals(plan):
        ledger.record(planning.refused_outcome(refusal))
        tally.add_failure(refusal.code, refusal.message)
    ledger.checkpoint()()
    ledger.sync_names()


async def _ask(
    plan: Plan,
    settings: Settings,
    key: Secret,
    ledger: Ledger,
    tally: Tally,
    observer: Observer,
    control: Control,
    seed: int | None,
) -> Halt | None:
    """Send what is pending; null when every row has come to its end."""
    rng = random.Random(seed)

    def note(event: str, **about: Any) -> None:
        ledger.note(event, **about)
        observer.told(event, about)

    concurrency = settings.concurrency or MOST_CONCURRENT
    throttle = Throttle(
        Pace(
            requests_per_s=settings.rpm and settings.rpm / 60,
            tokens_per_s=settings.tpm and settings.tpm / 60,
            concurrency=settings.concurrency,
            max_concurrency=concurrency,
            learned=None,
            now=asyncio.get_running_loop().time(),
            rng=rng,
        ),
        max_wait_s=settings.max_wait,
        note=note,
    )
    async with Transport(
        settings.base_url,
        key,
        concurrency=concurrency,
        timeout_s=settings.timeout,
        idle_timeout_s=settings.idle_timeout,
        max_response_bytes=settings.max_response,
        proxy=settings.proxy,
        ca_file=settings.ca_file,
    ) as transport:
        runner = Runner(
            planning.requests(plan),
            send=transport.send,
            record=ledger.record,
            throttle=throttle,
            policy=Policy(settings.max_attempts, settings.max_wait),
            endpoint=urlsplit(settings.base_url).netloc,
            tally=tally,
            rng=rng,
            grace_s=settings.grace,
            max_outage_s=settings.max_outage,
        )
        control.attach(runner)
        note("start", pending=tally.pending, endpoint=settings.base_url)
        async with asyncio.TaskGroup() as group:
            aside = [
                group.create_task(_keep_checkpoints(ledger, settings.checkpoint_every, runner)),
                group.create_task(_show(observer, tally, throttle)),
            ]
            halt = await runner.run()
            for task in aside:
                task.cancel()
        observer.tick(tally, throttle)
    return halt


async def _keep_checkpoints(ledger: Ledger, every_s: float, runner: Runner) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(ledger.checkpoint())
        except DiskError as error:
            runner.stop(disk_halt(error))
            runner.abort()
            return


async def _show(observer: Observer, tally: Tally, throttle: Throttle) -> None:
    while True:
        observer.tick(tally, throttle)
        await asyncio.sleep(_TICK_S)


def _close_books(ledger: Ledger, halt: Halt | None) -> Halt | None:
    """The last checkpoint and the totals; a disk that fails now is the reason, if there is none yet."""
    try:
        ledger.note(
            "stop",
            exit_code=halt.exit_code if halt else 0,
            reason=halt.reason if halt else "all rows have ended",
        )
        ledger.checkpoint()()
        ledger.write_usage()
    except DiskError as error:
        return halt or disk_halt(error)
    return halt
