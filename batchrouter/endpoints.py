"""The endpoints of a run: opened together, asked for what they serve, and made into lanes as rows come to need them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any, Final, Self

from batchrouter.catalogue import Catalogue
from batchrouter.descriptors import connections_for
from batchrouter.gates import Slots
from batchrouter.keys import Secret
from batchrouter.lanes import Lane, Lanes, Place
from batchrouter.pace import Learned, Pace
from batchrouter.records import Reply
from batchrouter.routing import Route, Routes
from batchrouter.settings import Endpoint, Settings
from batchrouter.throttle import Note, Throttle
from batchrouter.transport import Transport

MOST_CONCURRENT: Final = 512
_MOST_LANES: Final = 64
_CATALOGUE_S: Final = 3.0


class Endpoints:
    """All endpoints of a run. Enter it with `async with`; `lanes` are the ways to them.

    Endpoints limit each model by itself, so each has a lane of its own, unless a limit was told: that is the account's,
    for all of them. All lanes together have no more in flight than `--concurrency`.
    """

    def __init__(
        self,
        settings: Settings,
        routes: Routes,
        keys: Mapping[str, Secret],
        learned: Mapping[str, Mapping[str, Any]],
        *,
        note: Note,
        rng: random.Random,
    ) -> None:
        """`keys` are by endpoint, `learned` is what `learned` gave at an earlier start. Raises UsageError."""
        self._settings = settings
        self._routes = routes
        self._learned = learned
        self._note = note
        self._rng = rng
        most = connections_for(settings.concurrency, MOST_CONCURRENT)
        self._slots = Slots(most)
        self._endpoints = {endpoint.name: endpoint for endpoint in settings.all_endpoints()}
        self._transports = {
            name: _transport(settings, endpoint, keys[name], most) for name, endpoint in self._endpoints.items()
        }
        self._places = {
            name: Place(name, self._transports[name].send, endpoint.weight, heard_s=self._transports[name].heard_s)
            for name, endpoint in self._endpoints.items()
        }
        self._by_limit: dict[str, Lane] = {}
        self._doubtful: set[str] = set()  # endpoints to which our key looks wrong
        self.lanes = Lanes(routes, self._lane, rng, endpoints=len(self._endpoints))

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for transport in self._transports.values():
                await stack.enter_async_context(transport)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # --- what they serve ---------------------------------------------------------------------------------------------

    async def look(self, names: Mapping[str, int]) -> list[str]:
        """Ask each for its catalogue; gives a warning for each that lacks a model which rows of these names ask for."""
        catalogues = await asyncio.gather(*(self._catalogue(name, names) for name in self._endpoints))
        return [warning for warning in catalogues if warning]

    async def _catalogue(self, endpoint: str, names: Mapping[str, int]) -> str:
        found: Catalogue = await self._transports[endpoint].catalogue(within_s=_CATALOGUE_S)
        if isinstance(found.refusal, Reply) and found.refusal.status == 401:
            self._doubtful.add(endpoint)
        routes = [route for name in names for route in self._routes.of(name, b"") if route.endpoint == endpoint]
        warning = found.warning(dict.fromkeys(route.sent_as for route in routes))
        return f"{endpoint}: {warning}" if warning and len(self._endpoints) > 1 else warning

    # --- the ways to them --------------------------------------------------------------------------------------------

    def _lane(self, route: Route) -> Lane:
        endpoint = self._endpoints[route.endpoint]
        is_shared = endpoint.is_limited or len(self._by_limit) >= _MOST_LANES
        limit = f"{endpoint.base_url} {'' if is_shared else route.model}"
        lane = self._by_limit.get(limit)
        if lane is None:
            name = self._name(route, is_shared=is_shared)
            lane = self._by_limit[limit] = Lane(name, self._places[route.endpoint], self._throttle(endpoint, limit))
        return lane

    def _name(self, route: Route, *, is_shared: bool) -> str:
        if is_shared:
            return route.endpoint
        return route.model if len(self._endpoints) == 1 else f"{route.model} at {route.endpoint}"

    def _throttle(self, endpoint: Endpoint, limit: str) -> Throttle:
        settings = self._settings
        known = self._learned.get(limit)
        pace = Pace(
            requests_per_s=endpoint.rpm and endpoint.rpm / 60,
            tokens_per_s=endpoint.tpm and endpoint.tpm / 60,
            concurrency=endpoint.concurrency,
            max_concurrency=min(endpoint.concurrency or self._slots.most, self._slots.most),
            learned=Learned(**known) if known else None,
            now=asyncio.get_running_loop().time(),
            rng=self._rng,
        )
        throttle = Throttle(
            pace,
            max_wait_s=settings.max_wait,
            note=self._note,
            slots=self._slots,
            endpoint=self._places[endpoint.name].circuit,
        )
        if endpoint.name in self._doubtful:
            throttle.probe()
        return throttle

    def learned(self) -> dict[str, dict[str, Any]]:
        """What was learned of each limit, for the next start: by base URL and model."""
        return {limit: asdict(lane.throttle.pace.learned) for limit, lane in self._by_limit.items()}


def _transport(settings: Settings, endpoint: Endpoint, key: Secret, most: int) -> Transport:
    return Transport(
        endpoint.base_url,
        key,
        concurrency=endpoint.concurrency or most,
        timeout_s=settings.timeout,
        idle_timeout_s=settings.idle_timeout,
        max_response_bytes=settings.max_response,
        headers=dict(endpoint.headers),
        proxy=settings.proxy,
        ca_file=settings.ca_file,
    )
