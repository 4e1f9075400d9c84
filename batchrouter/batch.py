"""run_batch: opens, wires, closes; the only place that constructs. The library's front door.

Rules of this file: whatever is opened is entered with `with`; nothing is sent before the plan stands; the last
checkpoint is made however the run ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batchrouter import __version__
from batchrouter import plan as planning
from batchrouter.answercheck import AnswerCheck
from batchrouter.bounds import Budget, Deadline, End, next_time_of_day
from batchrouter.control import Control, Stopped
from batchrouter.database import disk_faults
from batchrouter.errors import DiskError, UsageError
from batchrouter.health import LimitLog, limits_in_words
from batchrouter.intake import Shaping
from batchrouter.keys import Secret
from batchrouter.lanes import Lanes
from batchrouter.ledger import Ledger
from batchrouter.plan import Plan
from batchrouter.progress import Observer, Silence, health_of, lost_to
from batchrouter.records import Halt, Outcome, Request, Summary, Tally, Usage
from batchrouter.redaction import Redactor
from batchrouter.retry import Policy
from batchrouter.review import Review
from batchrouter.routing import routes_of
from batchrouter.rows import Twins
from batchrouter.runner import Runner, disk_halt
from batchrouter.settings import Settings
from batchrouter.sources import Source, find_sources
from batchrouter.standard_input import StandardInput
from batchrouter.throttle import Note

if TYPE_CHECKING:
    from batchrouter.endpoints import Endpoints

_TICK_S: Final = 0.2


async def run_batch(
    inputs: Sequence[str],
    directory: str | Path,
    settings: Settings,
    key: Secret | Mapping[str, Secret],
    *,
    observer: Observer | None = None,
    control: Control | None = None,
    seed: int | None = None,
) -> Summary:
    """Run or resume a batch: rows of `inputs` (paths, globs, `-`) to the endpoints, answers into `directory`.

    `key` is the endpoint's, or each endpoint's by its name in `settings.endpoints`.
    Calling it again with the same arguments resumes; rows that are answered or failed for good are not sent again.
    Raises UsageError (nothing was sent), BusyError, DiskError; every other end is told by `Summary.halt`.
    """
    began, deadline = time.monotonic(), _deadline(settings)
    observer, control = observer or Silence(), control or Control()
    directory = Path(directory)
    keys = key if isinstance(key, Mapping) else {endpoint.name: key for endpoint in settings.all_endpoints()}
    with Ledger.open(directory, redact=Redactor(*keys.values())) as ledger:
        stdin = StandardInput(directory)
        try:
            if "-" in inputs:
                await asyncio.to_thread(stdin.keep, sys.stdin.buffer, control.check)
            sources = find_sources(tuple(inputs), stdin.copy)
            plan, _ = await asyncio.gather(  # the HTTP client takes as long to load as a large plan to be checked
                asyncio.to_thread(_plan, sources, settings, ledger, control.check),
                asyncio.to_thread(importlib.import_module, "batchrouter.endpoints"),
            )
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
                    halt = await _ask(plan, settings, keys, ledger, books, tally, observer, control, deadline, seed)
        except DiskError as error:
            halt = disk_halt(error)
        halt = _close_books(ledger, settings, halt)
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        return Summary(str(directory), tally, time.monotonic() - began, halt, loop)


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
    def approve(plan: Plan, models: Collection[str]) -> None:
        routes = routes_of(settings)
        routes.check(models)
        if settings.max_cost is not None:
            _check_prices({model for name in models for model in routes.may_meet(name)}, settings)
        if settings.strict and (plan.invalid or plan.duplicates):
            shown = [refusal.message for refusal, _ in zip(plan.rows.refusals(), range(20), strict=False)]
            raise UsageError("--strict, and there are invalid rows; nothing was sent\n" + "\n".join(shown))

    with disk_faults(ledger.directory):
        return planning.make(
            sources,
            Shaping(settings.model, settings.override_model, settings.set, settings.stream),
            ledger,
            limit=settings.limit,
            changed=settings.changed,
            retry=settings.retry,
            dedupe=settings.dedupe,
            check=check,
            approve=approve,
        )


def _check_prices(models: Collection[str], settings: Settings) -> None:
    unpriced = sorted(set(models) - set(settings.prices))
    if unpriced:
        raise UsageError(
            f'--max-cost needs the price of {unpriced[0]}: [model."{unpriced[0]}"] prompt = …, completion = … (USD per'
            " million tokens) in batchrouter.toml; nothing was sent"
        )


def _about(sources: Sequence[Source], settings: Settings) -> dict[str, Any]:
    inputs = [
        {"label": source.label, "path": str(source.path.absolute()), **source.fingerprint()} for source in sources
    ]
    return {
        "version": __version__,
        "inputs": inputs,
        "settings": settings.shown(),
        "models": {name: asdict(price) for name, price in settings.prices.items()},
        "endpoints": [
            {"name": endpoint.name, "base_url": endpoint.base_url, "models": endpoint.models}
            for endpoint in settings.endpoints
        ],
    }


def _record_refusals(plan: Plan, ledger: Ledger, tally: Tally) -> None:
    """Book the rows that cannot be asked, before anything is sent."""
    for refusal in plan.rows.refusals():
        ledger.record(planning.refused_outcome(refusal))
        tally.add_failure(refusal.code, refusal.message)


async def _ask(
    plan: Plan,
    settings: Settings,
    keys: Mapping[str, Secret],
    ledger: Ledger,
    books: _Books,
    tally: Tally,
    observer: Observer,
    control: Control,
    deadline: Deadline | None,
    seed: int | None,
) -> Halt | None:
    """Send what is pending; null when every row has come to its end."""
    from batchrouter.endpoints import Endpoints  # noqa: PLC0415  (loaded by now, beside the planning)

    rng = random.Random(seed)

    def note(event: str, **about: Any) -> None:
        ledger.note(event, **about)
        observer.told(event, about)

    check = await asyncio.to_thread(AnswerCheck) if settings.check_json else None
    routes = routes_of(settings)
    learned = plan.index.meta().get("learned", {})
    async with Endpoints(settings, routes, keys, learned, note=note, rng=rng) as endpoints:
        lanes = endpoints.lanes
        runner = Runner(
            plan.rows.requests(),
            lanes=lanes,
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
            budget=Budget(settings.max_tokens, settings.max_cost, settings.prices),
            deadline=deadline,
            credit_patience_s=settings.wait_for_credits or 0.0,
        )
        control.attach(runner)
        for text in await _warnings(endpoints, plan.models, control):
            note("notice", text=text)
        for text in ledger.notes:
            note("notice", text=text)
        note("start", pending=tally.pending, endpoint=", ".join(each.base_url for each in settings.all_endpoints()))
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            keeper = group.create_task(_keep_checkpoints(ledger, settings.checkpoint_every, runner, over))
            timer = group.create_task(_keep_time(observer, tally, lanes, note))
            halt = await runner.run()
            over.set()
            timer.cancel()
            halt = halt or await keeper
        observer.tick(tally, lanes.all)
        tally.shares = [lane.share() for lane in lanes.all]
        if len(tally.shares) > 1:
            ledger.note("lanes", lanes=[share._asdict() for share in tally.shares])
        tally.lost_s = lost_to(lanes.all)
        tally.limits = _limits_found(lanes)
        ledger.note("health", lanes=health_of(lanes.all))
        with disk_faults(plan.index.path):
            plan.index.put_meta({"learned": learned | endpoints.learned()})
    return halt


async def _warnings(endpoints: Endpoints, names: Mapping[str, int], control: Control) -> list[str]:
    """What the endpoints' catalogues lack; nothing when the run is asked to stop meanwhile."""
    asking = asyncio.create_task(endpoints.look(names))
    stopping = asyncio.create_task(control.stopping.wait())
    await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if asking.done():
        return asking.result()
    asking.cancel()
    return []


def _deadline(settings: Settings) -> Deadline | None:
    """The ends that `--max-time` and `--until` set to a start that begins now."""
    ends = []
    if settings.max_time is not None:
        now = asyncio.get_running_loop().time()
        ends.append(End(now + settings.max_time, f"--max-time {settings.max_time:g} s reached"))
    if settings.until is not None:
        at_s = next_time_of_day(settings.until, time.time())
        ends.append(End(at_s, f"--until {settings.until} reached", is_wall=True))
    return Deadline(*ends) if ends else None


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


async def _keep_time(observer: Observer, tally: Tally, lanes: Lanes, note: Note) -> None:
    now = asyncio.get_running_loop().time
    logs: dict[str, LimitLog] = {}
    while True:
        for lane in lanes.all:
            throttle = lane.throttle
            throttle.tick()
            throttle.look(_TICK_S)
            news = logs.setdefault(lane.name, LimitLog()).news(throttle.limits(), throttle.bound(), now())
            if news:
                note("limit", lane=lane.name, **news)
        observer.tick(tally, lanes.all)
        await asyncio.sleep(_TICK_S)


def _limits_found(lanes: Lanes) -> dict[str, str]:
    """In words, by lane, the limits that bound it; how many may be at once only where that held it up."""
    found = {}
    for lane in lanes.all:
        limits = lane.throttle.limits()
        if lane.throttle.lost_s.get("concurrency", 0.0) < 1:
            del limits["at_once"]
        if limits:
            found[lane.name] = limits_in_words(limits)
    return found


def _close_books(ledger: Ledger, settings: Settings, halt: Halt | None) -> Halt | None:
    """The last checkpoint and the totals; a disk that fails now is the reason, if there is none yet."""
    try:
        ledger.note("stop", reason=halt.reason if halt else "all rows have ended")
        ledger.checkpoint()()
        ledger.write_usage(settings.prices, [endpoint.name for endpoint in settings.endpoints])
    except DiskError as error:
        return halt or disk_halt(error)
    return halt
