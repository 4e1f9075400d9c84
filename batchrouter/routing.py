"""Where a row may go: from the model that it names to the models and endpoints that may answer it.

Rules of this file: pure. A *name* is what a row's `model` says: a model, or a pool of models that stand in for each
other. A *route* is one model at one endpoint. What a route's body looks like is decided here, too: the id that the
endpoint knows the model by, and the model's own defaults; nothing else of a body is touched.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from batchrouter import jsontext
from batchrouter.errors import UsageError
from batchrouter.settings import Assign, Endpoint, Model, Settings

_ALIKE_S: Final = 0.01  # waits that differ by less, or by a tenth, are the same
_ALIKE: Final = 0.1


class Route(NamedTuple):
    """A model at an endpoint, by their names here, and the id that the endpoint knows the model by."""

    endpoint: str
    model: str
    sent_as: str


class Routes:
    """The routes of a run. `default_fallback` stands in for every model, last."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        models: Mapping[str, Model],
        pools: Mapping[str, tuple[str, ...]],
        *,
        default_fallback: str | None = None,
        assign: Assign = "free",
    ) -> None:
        self._endpoints = endpoints
        self._models = models
        self._pools = pools
        self._default_fallback = default_fallback
        self._assign = assign
        self._found: dict[str, tuple[Route, ...]] = {}

    @property
    def is_plural(self) -> bool:
        """Whether any row has more than one way to go."""
        falls_back = any(model.fallback or model.context_fallback for model in self._models.values())
        return bool(self._pools or falls_back or self._default_fallback)

    def of(self, name: str, key: bytes) -> tuple[Route, ...]:
        """The routes that a row of this name may take; `key` is of its id alone, which fixes its model where that is
        asked for. Empty where nobody serves it.
        """
        if self._assign == "fixed" and name in self._pools:
            pool = self._pools[name]
            name = pool[int.from_bytes(key, "big") % len(pool)]
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = tuple(
                Route(endpoint.name, model, model if endpoint.models is None else endpoint.models[model])
                for model in self.models_of(name)
                for endpoint in self._endpoints
                if endpoint.models is None or model in endpoint.models
            )
        return found

    def models_of(self, name: str) -> tuple[str, ...]:
        """The models that a name means: itself, or those of the pool."""
        return self._pools.get(name, (name,))

    def chain(self, name: str) -> tuple[str, ...]:
        """The names that a row goes to, in turn, when its own keeps failing."""
        known = self._models.get(name)
        chain = () if known is None else known.fallback
        if self._default_fallback is not None:
            chain = (*chain, self._default_fallback)
        return tuple(dict.fromkeys(other for other in chain if other != name))

    def wider(self, model: str) -> str | None:
        """The name for rows that are too long for a model."""
        known = self._models.get(model)
        return None if known is None else known.context_fallback

    def may_meet(self, name: str) -> tuple[str, ...]:
        """Every model that a row of this name may come to be asked of."""
        names = [name, *self.chain(name)]
        names += [wider for other in names for model in self.models_of(other) if (wider := self.wider(model))]
        return tuple(dict.fromkeys(model for other in names for model in self.models_of(other)))

    def check(self, names: Collection[str]) -> None:
        """Raise UsageError for a name that leads nowhere: nothing is to be sent then."""
        for name in names:
            for other in (name, *self.chain(name)):
                if not self.of(other, b""):
                    serving = ", ".join(endpoint.name for endpoint in self._endpoints)
                    raise UsageError(
                        f"no [[endpoint]] serves the model {other!r} ({serving} do not): add it to the `models` of one,"
                        " or name another; nothing was sent"
                    )

    def is_plain(self, name: str, route: Route) -> bool:
        """Whether every row of this name goes this way as it is."""
        known = self._models.get(route.model)
        return name == route.model == route.sent_as and (known is None or not known.body)

    def body(self, body: bytes, name: str, route: Route) -> bytes:
        """A row's body as it goes this way; the very same bytes where the row names that model by that id."""
        known = self._models.get(route.model)
        changes: dict[str, bytes] = {}
        if route.sent_as != name:
            changes["model"] = jsontext.dumps(route.sent_as)
        if known is not None and known.body:
            given = orjson.loads(body)
            changes |= {key: text.encode() for key, text in known.body if key not in given}
        return jsontext.replace(body, changes) if changes else body


def choose(waits_s: Sequence[float], weights: Sequence[float], rng: random.Random) -> int:
    """Which of several ways to take: the one with the least expected wait; of those that are alike, each as often as
    its weight says. Both are indexed alike, and not empty.
    """
    least_s = min(waits_s)
    alike = [i for i, wait_s in enumerate(waits_s) if wait_s <= least_s + max(_ALIKE_S, _ALIKE * least_s)]
    if len(alike) == 1:
        return alike[0]
    return rng.choices(alike, [weights[i] for i in alike])[0]


def routes_of(settings: Settings) -> Routes:
    """Where the rows of a run may go."""
    return Routes(
        settings.all_endpoints(),
        settings.models,
        settings.pools,
        default_fallback=settings.fallback_model,
        assign=settings.assign,
    )
