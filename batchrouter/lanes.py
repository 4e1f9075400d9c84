"""Lanes: the ways to the answers, each with its own limit and health, and which of them a row takes now.

Rules of this file: decisions only, nothing is awaited. A lane is *closed* while its circuit is open: for what failed
there, for an outage of its endpoint, or because the endpoint refused our key or credits. A row that has another way
goes that way; one that has none waits. While rows are left, a closed lane with another way around it is given one row
to probe with, so that it is used again when it is back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from batchrouter.circuit import Circuit, Silence
from batchrouter.frontier import Job
from batchrouter.pace import Sent
from batchrouter.records import Fault, Halt, Reply, Request, Share
from batchrouter.routing import Route, Routes, choose
from batchrouter.throttle import Throttle


class Send(Protocol):
    """What brings a request to an endpoint (`Transport.send`); a peer's failure is data."""

    async def __call__(self, request: Request) -> Reply | Fault:
        """Send one, read its answer."""
        ...


def _never() -> float:
    return -math.inf


@dataclass(slots=True, eq=False)
class Place:
    """An endpoint as the lanes to it share it: one circuit for all of them, and why it is closed to us, if it is."""

    name: str
    send: Send
    weight: float = 1.0
    circuit: Circuit = field(default_factory=Circuit)
    halt: Halt | None = None
    heard_s: Callable[[], float] = _never  # when a byte last came in, by the loop's clock


@dataclass(slots=True, eq=False)
class Lane:
    """One way to the answers: an endpoint, and a model there (or all of them, where they share a told limit)."""

    name: str
    place: Place
    throttle: Throttle
    workers: int = 0
    answered: int = 0
    failed: int = 0
    latest: int = 0  # the nth that left last
    is_gone: bool = False  # there is no such model, and others stand in for it
    silence: Silence = field(default_factory=Silence)

    @property
    def endpoint(self) -> str:
        """The endpoint's name."""
        return self.place.name

    def share(self) -> Share:
        """What it did so far, and how it is."""
        state = self.place.halt.reason if self.place.halt is not None else self.throttle.state()
        state = _GONE if self.is_gone else state
        return Share(self.name, self.answered, self.failed, state)

    @property
    def is_closed(self) -> bool:
        """Whether nobody leaves here but a probe."""
        return self.throttle.circuit.is_open or self.place.circuit.is_open

    def excuses(self, sent_s: float) -> bool:
        """Whether what left here at that moment, and failed, did so in an outage."""
        return self.throttle.circuit.excuses(sent_s) or self.place.circuit.excuses(sent_s)


_GONE: Final = "no such model"


def _no_backlog(_: Hashable) -> int:
    return 0


class Lanes:
    """All lanes of a run, made by `make` as rows come to need them."""

    def __init__(
        self, routes: Routes, make: Callable[[Route], Lane], rng: random.Random, *, endpoints: int = 1
    ) -> None:
        self._routes = routes
        self._make = make
        self._rng = rng
        self._endpoints = endpoints
        self.is_plural = endpoints > 1 or routes.is_plural
        self._by_route: dict[Route, Lane] = {}
        self._gone: set[Route] = set()
        self._only: dict[str, Lane] = {}  # names with one way, on which bodies go as they are
        self.all: list[Lane] = []
        self.backlog: Callable[[Hashable], int] = _no_backlog  # rows that wait for a worker of a lane
        self.may_probe = True  # whether rows are left to probe a closed lane with

    def _lane(self, route: Route) -> Lane:
        lane = self._by_route.get(route)
        if lane is None:
            lane = self._by_route[route] = self._make(route)
            if lane not in self.all:
                self.all.append(lane)
        return lane

    # --- which way -------------------------------------------------------------------------------------------------

    def place(self, job: Job, now: float) -> tuple[Lane, float]:
        """The lane that a row takes now, and when it is due there; its route and what is sent are set on the job."""
        only = self._only.get(job.request.model)
        if only is not None and not only.is_closed and not job.names:
            job.route, job.sending = None, job.request
            return only, 0.0
        name = job.names[0] if job.names else job.request.model
        routes = self._ways(name, job)
        if len(routes) == 1:
            lane = self._lane(routes[0])
            if not lane.is_closed:
                if self._routes.is_plain(name, routes[0]):
                    self._only[name] = lane
                return self._take(job, routes[0], lane), 0.0
        return self._choose(job, routes, now)

    def _choose(self, job: Job, routes: tuple[Route, ...], now: float) -> tuple[Lane, float]:
        open_ways: list[tuple[Route, Lane]] = []
        closed: list[tuple[Route, Lane]] = []
        for routes_there in (routes, *self._stand_ins(job)):
            ways = [(route, self._lane(route)) for route in routes_there]
            open_ways = [way for way in ways if not way[1].is_closed]
            closed += [way for way in ways if way[1].is_closed]
            if open_ways:
                break
        if self.may_probe and open_ways and not job.counted:
            for route, lane in closed:
                if not lane.throttle.in_flight and not lane.throttle.waiting and not self.backlog(lane):
                    return self._take(job, route, lane), now + lane.throttle.probe_in_s(now)
        if not open_ways:
            route, lane = min(closed, key=lambda way: way[1].throttle.probe_in_s(now) + self.backlog(way[1]))
            return self._take(job, route, lane), 0.0
        waits_s = [lane.throttle.wait_s(now, self.backlog(lane)) for _, lane in open_ways]
        route, lane = open_ways[choose(waits_s, [lane.place.weight for _, lane in open_ways], self._rng)]
        return self._take(job, route, lane), 0.0

    def _stand_ins(self, job: Job) -> Iterator[tuple[Route, ...]]:
        names = job.names[1:] if job.names else self._routes.chain(job.request.model)
        for name in names:
            yield self._ways(name, job)

    def _ways(self, name: str, job: Job) -> tuple[Route, ...]:
        """The routes of a name, without those whose model is gone, if any are left."""
        routes = self._routes.of(name, job.request.identity.key)
        if not self._gone:
            return routes
        return tuple(route for route in routes if route not in self._gone) or routes

    def _take(self, job: Job, route: Route, lane: Lane) -> Lane:
        if job.route is not route:
            job.route = route
            request = job.request
            body = self._routes.body(request.body, request.model, route)
            job.sending = request if body is request.body else request._replace(body=body, model=route.model)
        return lane

    def has_way_out(self, job: Job, now: float, shut_s: float) -> bool:
        """Whether a row could be asked elsewhere in less than half of the time that its own lane is shut for."""
        name = job.names[0] if job.names else job.request.model
        for routes in (self._ways(name, job), *self._stand_ins(job)):
            for route in routes:
                lane = self._lane(route)
                is_open = route != job.route and not lane.is_closed
                if is_open and lane.throttle.wait_s(now, self.backlog(lane)) < shut_s / 2:
                    return True
        return False

    def may_draw(self, lane: Lane) -> bool:
        """Whether a lane's workers draw fresh rows: not while it is closed and others are there for them."""
        return not (self.is_plural and lane.is_closed and any(not other.is_closed for other in self.all))

    # --- when a way fails --------------------------------------------------------------------------------------------

    def strikes_off(self, lane: Lane, job: Job) -> bool:
        """There is no such model where a row was asked: nobody goes there again; false where there is no other way."""
        if job.route is None:
            return False
        name = job.names[0] if job.names else job.request.model
        if all(route in {job.route, *self._gone} for route in self._routes.of(name, job.request.identity.key)):
            return False
        if job.route not in self._gone:
            self._gone.add(job.route)
            lane.is_gone = sum(other is lane for other in self._by_route.values()) == 1
            lane.throttle.note("model_gone", model=job.route.model, endpoint=job.route.endpoint)
        _forget_failures(job)
        return True

    def falls_back(self, job: Job) -> bool:
        """Send a row to the next name of its chain; false when there is none. What failed no longer counts."""
        names = job.names or (job.request.model, *self._routes.chain(job.request.model))
        return self._goes_on(job, names[1:])

    def widens(self, job: Job) -> bool:
        """Send a row that is too long for its model to a larger one; false when none is known."""
        wider = self._routes.wider(job.request.model if job.route is None else job.route.model)
        return wider is not None and self._goes_on(job, (wider,))

    def _goes_on(self, job: Job, names: tuple[str, ...]) -> bool:
        if not names:
            return False
        job.names = names
        _forget_failures(job)
        return True

    def shut(self, lane: Lane, halt: Halt, now: float) -> bool:
        """An endpoint refuses us: its lanes close and probe, slowly. False when no other endpoint is left."""
        lane.place.halt = halt
        lane.place.circuit.shut(now)
        halted = {each.place.name for each in self.all if each.place.halt is not None}
        return len(halted) < self._endpoints

    def take_evidence(self, lane: Lane, row: int | None, sent: Sent, now: float) -> bool:
        """An attempt of `row` failed by the endpoint; true when the lane, or all of its endpoint, closed by it."""
        circuit = lane.throttle.circuit
        if not circuit.is_open and circuit.excuses(sent.at):
            return False
        opened = circuit.failed(row, sent.at, now, nth=sent.nth, latest=lane.latest)
        return lane.place.circuit.failed(row, sent.at, now) or opened

    def closed_at(self, place: Place) -> list[Lane]:
        """The lanes of an endpoint that are closed."""
        return [lane for lane in self.all if lane.place is place and lane.is_closed]

    def reopen(self, lane: Lane, sent: Sent) -> bool:
        """An endpoint answered what left then; true when it was closed until now."""
        is_back = lane.place.circuit.answered(sent.at)
        if not lane.place.circuit.is_open:
            lane.place.halt = None
        return lane.throttle.circuit.answered(sent.at, sent.nth) or is_back

    # --- when no way is left -----------------------------------------------------------------------------------------

    def is_stuck(self, *, has_fresh: bool) -> bool:
        """Whether nothing goes on any more but waiting for who is closed, nor could."""
        is_open = [lane for lane in self.all if not lane.is_closed]
        if not is_open:
            return bool(self.all)
        if has_fresh or any(lane.throttle.in_flight for lane in self.all):
            return False
        return not any(lane.throttle.waiting or self.backlog(lane) for lane in is_open)

    def down_since(self) -> float:
        """When the longest outage that lasts began; infinity when there is none."""
        opened = [
            since
            for lane in self.all
            for circuit in (lane.throttle.circuit, lane.place.circuit)
            if (since := circuit.open_since) is not None and not circuit.is_silent and lane.place.halt is None
        ]
        return min(opened, default=math.inf)

    def halt(self) -> Halt | None:
        """Why an endpoint is closed to us, if one is."""
        return next((lane.place.halt for lane in self.all if lane.place.halt is not None), None)


def _forget_failures(job: Job) -> None:
    """What failed where a row was before does not count where it goes now."""
    job.counted = 0
    job.failed_s, job.suspect = None, False
