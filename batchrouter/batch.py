"""run_batch: opens, wires, closes; the only place that constructs. The library's front door.

Rules of this file: whatever is opened is entered with `with`; nothing is sent before the plan stands; the last
checkpoint is made however the run ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from batchrouter import __version__
from batchrouter import plan as planning
from batchrouter.answercheck import AnswerCheck
from batchrouter.bounds import Budget, Deadline
from batchrouter.errors import DiskError, UsageError
from batchrouter.index import Index, disk_faults
from batchrouter.intake import Shaping, Source, find_sources
from batchrouter.ledger import Ledger
from batchrouter.pace import Learned, Pace
from batchrouter.plan import Plan
from batchrouter.progress import Observer, Silence
from batchrouter.records import Halt, Outcome, Reply, Request, Summary, Tally, Usage
from batchrouter.redaction import Redactor
from batchrouter.retry import Policy
from batchrouter.review import Review
from batchrouter.rows import Twins
from batchrouter.runner import Lane, Runner, disk_halt
from batchrouter.settings import Model, Secret, Settings
from batchrouter.standard_input import StandardInput
from batchrouter.throttle import Note, Slots, Throttle
from batchrouter.transport import Catalogue, Transport, connections_for

MOST_CONCURRENT: Final = 512
_MOST_LANES: Final = 64
_CATALOGUE_S: Final = 3.0


class Stopped(Exception):  # noqa: N818  (it is what was asked for)
    """The run was asked to stop before anything was sent."""


class Control:
    """A handle on a run from outside, for signal handlers: `stop` once, `abort` when it must end now."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._halt: Halt | None = None
        self._aborted = False
        self.stopping = asyncio.Event()

    def stop(self, halt: Halt) -> None:
        """Admit nothing more, finish what is in flight within the grace, and end with `halt`."""
        self._halt = self._halt or halt
        self.stopping.set()
        if self._runner is not None:
            self._runner.stop(self._halt)

    def abort(self) -> None:
        """End at once; what has arrived is recorded."""
        self._aborted = True
        if self._runner is not None:
            self._runner.abort()

    @property
    def halt(self) -> Halt | None:
        """Why the run was asked to stop, if it was."""
        return self._halt

    def check(self) -> None:
        """Raise Stopped when the run was asked to stop."""
        if self._halt is not None:
            raise Stopped

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
    observer, control = observer or Silence(), control or Control()
    directory = Path(directory)
    with Ledger.open(directory, redact=Redactor(key)) as ledger:
        stdin = StandardInput(directory)
        try:
            if "-" in inputs:
                await asyncio.to_thread(stdin.keep, sys.stdin.buffer, control.check)
            sources = find_sources(tuple(inputs), stdin.copy)
            plan = await asyncio.to_thread(_plan, sources, settings, ledger, control.check)
        except Stopped:
            return Summary(str(directory), Tally(), time.monotonic() - began, control.halt)
        except UsageError:
            stdin.put_back()
            raise
        stdin.settle()
        observer.planned(plan.total, plan.pending)
        tally = Tally(rows=plan.total, answered_before=plan.answered, failed_before=plan.failed, state="running")
        halt = None
        try:
            ledger.write_run(_about(sources, settings))
            with disk_faults(ledger.directory), contextlib.closing(_Books(ledger, plan.rows.twins())) as books:
                _record_refusals(plan, ledger, tally)
                tally.answered += books.serve_twins()
                ledger.checkpoint()()  # whoever has an end by now is not asked
                ledger.sync_names()
                if tally.pending:
                    halt = await _ask(plan, settings, key, ledger, books, tally, observer, control, seed)
        except DiskError as error:
            halt = disk_halt(error)
        halt = _close_books(ledger, settings.models, halt)
        return Summary(str(directory), tally, time.monotonic() - began, halt)


class _Books:
    """Where ends of rows are recorded: in the ledger, for a row's twins as well when equal bodies are sent once."""

    def __init__(self, ledger: Ledger, twins: Twins | None) -> None:
        self._ledger = ledger
        self._twins = twins
        if twins is None:
            self.record = ledger.record  # type: ignore[method-assign]  # nothing between a row and its ledger

    def record(self, outcome: Outcome) -> int:
        """Record a row and its twins, who cost nothing; gives how many rows that were."""
        count = self._ledger.record(outcome)
        if self._twins is not None and isinstance(outcome.request, Request):
            for twin in self._twins.of(outcome.request):
                count += self._ledger.record(outcome._replace(request=twin, attempts=0, usage=Usage()))
        return count

    def serve_twins(self) -> int:
        """Give pending rows the answer that an equal row has had; gives how many rows that were."""
        if self._twins is None:
            return 0
        count = 0
        for twin, places in self._twins.unserved():
            answers = (self._ledger.answer_for(twin, at) for at in places)
            answer = next(filter(None, answers), None)
            count += self._ledger.record(answer) if answer else 0
        return count

    def close(self) -> None:
        """Let go of the twins' files."""
        if self._twins is not None:
            self._twins.close()


def _plan(sources: Sequence[Source], settings: Settings, ledger: Ledger, check: Callable[[], None]) -> Plan:
    with disk_faults(ledger.directory):
        plan = planning.make(
            sources,
            Shaping(settings.model, settings.override_model, settings.set, settings.stream),
            ledger,
            limit=settings.limit,
            changed=settings.changed,
            retry=settings.retry,
            dedupe=settings.dedupe,
            check=check,
        )
        models = plan.index.models(plan.rows.below) if settings.max_cost is not None else {}
    unpriced = [model for model in models if model not in settings.models]
    if unpriced:
        raise UsageError(
            f'--max-cost needs the price of {unpriced[0]}: [model."{unpriced[0]}"] prompt = …, completion = … (USD per'
            " million tokens) in batchrouter.toml; nothing was sent"
        )
    if settings.strict and (plan.invalid or plan.duplicates):
        shown = [refusal.message for refusal, _ in zip(plan.rows.refusals(), range(20), strict=False)]
        raise UsageError("--strict, and there are invalid rows; nothing was sent\n" + "\n".join(shown))
    return plan


def _about(sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    inputs = [
        {"label": source.label, "path": str(source.path.absolute()), **source.fingerprint()} for source in sources
    ]
    models = {name: asdict(model) for name, model in settings.models.items()}
    return {"version": __version__, "inputs": inputs, "settings": settings.shown(), "models": models}


def _record_refusals(plan: Plan, ledger: Ledger, tally: Tally) -> None:
    """Book the rows that cannot be asked, before anything is sent."""
    for refusal in plan.rows.refusals():
        ledger.record(planning.refused_outcome(refusal))
        tally.add_failure(refusal.code, refusal.message)


async def _ask(
    plan: Plan,
    settings: Settings,
    key: Secret,
    ledger: Ledger,
    books: _Books,
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

    check = await asyncio.to_thread(AnswerCheck) if settings.check_json else None
    async with _transport(settings, key) as transport:
        lanes = _Lanes(settings, transport, _learned(plan.index), note, rng)
        runner = Runner(
            plan.rows.requests(),
            lane_of=lanes.of,
            record=books.record,
            policy=Policy(settings.max_attempts, settings.max_wait),
            tally=tally,
            rng=rng,
            grace_s=settings.grace,
            max_outage_s=settings.max_outage,
            review=Review(
                settings.on_truncated,
                settings.max_grow,
                check,
                settings.json_attempts,
            ),
            budget=Budget(settings.max_tokens, settings.max_cost, settings.models),
            deadline=_deadline(settings),
            credit_patience_s=settings.wait_for_credits or 0.0,
        )
        control.attach(runner)
        catalogue = await _catalogue(transport, control)
        lanes.cautious = isinstance(catalogue.refusal, Reply) and catalogue.refusal.status == 401
        if warning := catalogue.warning(plan.index.models(plan.rows.below)):
            note("notice", text=warning)
        for text in ledger.notes:
            note("notice", text=text)
        note("start", pending=tally.pending, endpoint=settings.base_url)
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            keeper = group.create_task(_keep_checkpoints(ledger, settings.checkpoint_every, runner, over))
            shower = group.create_task(_show(observer, tally, lanes))
            halt = await runner.run()
            over.set()
            shower.cancel()
            halt = halt or await keeper
        observer.tick(tally, lanes.all)
        for lane in lanes.all:
            for reason, seconds in lane.throttle.lost_s.items():
                tally.lost_s[reason] = tally.lost_s.get(reason, 0.0) + seconds
        with disk_faults(plan.index.path):
            plan.index.put_meta({"learned": {lane.name: asdict(lane.throttle.pace.learned) for lane in lanes.all}})
    return halt


def _learned(index: Index) -> dict[str, Learned]:
    """What an earlier start has learned of each lane's limit."""
    return {name: Learned(**values) for name, values in index.meta().get("learned", {}).items()}


async def _catalogue(transport: Transport, control: Control) -> Catalogue:
    """The endpoint's catalogue; an empty one when the run is asked to stop meanwhile."""
    asking = asyncio.create_task(transport.catalogue(within_s=_CATALOGUE_S))
    stopping = asyncio.create_task(control.stopping.wait())
    await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if asking.done():
        return asking.result()
    asking.cancel()
    return Catalogue(None, None)


def _transport(settings: Settings, key: Secret) -> Transport:
    return Transport(
        settings.base_url,
        key,
        concurrency=connections_for(settings.concurrency, MOST_CONCURRENT),
        timeout_s=settings.timeout,
        idle_timeout_s=settings.idle_timeout,
        max_response_bytes=settings.max_response,
        proxy=settings.proxy,
        ca_file=settings.ca_file,
    )


def _deadline(settings: Settings) -> Deadline | None:
    """The nearer of `--max-time` and `--until`, on the running loop's clock."""
    now = asyncio.get_running_loop().time()
    bounds = []
    if settings.max_time is not None:
        bounds.append((now + settings.max_time, f"--max-time {settings.max_time:g} s reached"))
    if settings.until is not None:
        hour, minute = map(int, settings.until.split(":"))
        wall = datetime.now().astimezone()
        end = wall.replace(hour=hour, minute=minute, second=0, microsecond=0)
        end += timedelta(days=end <= wall)
        bounds.append((now + (end - wall).total_seconds(), f"--until {settings.until} reached"))
    return Deadline(*min(bounds)) if bounds else None


class _Lanes:
    """A lane a model, as endpoints limit each model by itself; one for all where the limit was told, as it is the
    account's. All of them together have no more in flight than `--concurrency`.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        learned: Mapping[str, Learned],
        note: Note,
        rng: random.Random,
    ) -> None:
        self.cautious = False  # whether the key looks wrong: then one request at a time, until one is answered
        self._learned = learned
        self._settings = settings
        self._transport = transport
        self._note = note
        self._rng = rng
        self._slots = Slots(transport.concurrency)
        self._endpoint = urlsplit(settings.base_url).netloc
        self._by_model: dict[str, Lane] = {}

    @property
    def all(self) -> list[Lane]:
        """The lanes there are so far."""
        return list(self._by_model.values())

    def of(self, request: Request) -> Lane:
        """The lane of a request's model."""
        lane = self._by_model.get(request.model)
        return lane if lane is not None else self._new(request.model)

    def _new(self, model: str) -> Lane:
        settings = self._settings
        if settings.rpm is not None or settings.tpm is not None or len(self._by_model) >= _MOST_LANES:
            model = ""
            if model in self._by_model:
                return self._by_model[model]
        pace = Pace(
            requests_per_s=settings.rpm and settings.rpm / 60,
            tokens_per_s=settings.tpm and settings.tpm / 60,
            concurrency=settings.concurrency,
            max_concurrency=self._slots.most,
            learned=self._learned.get(model),
            now=asyncio.get_running_loop().time(),
            rng=self._rng,
        )
        throttle = Throttle(pace, max_wait_s=settings.max_wait, note=self._note, slots=self._slots)
        if self.cautious:
            throttle.probe()
        lane = self._by_model[model] = Lane(model, self._endpoint, self._transport.send, throttle)
        return lane


async def _keep_checkpoints(ledger: Ledger, every_s: float, runner: Runner, over: asyncio.Event) -> Halt | None:
    """A checkpoint now and then, in another thread, until the run is over; gives the halt where the disk fails. Never
    cancelled: that would leave the thread at work on files which are about to be closed.
    """
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await over.wait()
        try:
            await asyncio.to_thread(ledger.checkpoint())
        except DiskError as error:
            halt = disk_halt(error)
            runner.stop(halt)
            runner.abort()
            return halt
    return None


async def _show(observer: Observer, tally: Tally, lanes: _Lanes) -> None:
    while True:
        observer.tick(tally, lanes.all)
        await asyncio.sleep(_TICK_S)


def _close_books(ledger: Ledger, prices: Mapping[str, Model], halt: Halt | None) -> Halt | None:
    """The last checkpoint and the totals; a disk that fails now is the reason, if there is none yet."""
    try:
        ledger.note("stop", reason=halt.reason if halt else "all rows have ended")
        ledger.checkpoint()()
        ledger.write_usage(prices)
    except DiskError as error:
        return halt or disk_halt(error)
    return halt
