"""What the endpoint does with a request: who may ask, what is let in, what is answered, what goes wrong.

Pure and seeded: the time is passed in, and the same requests in the same order get the same plays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from email.utils import formatdate
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from batchrouter.emulator.account import Account
from batchrouter.emulator.answers import MARKER, answer, said
from batchrouter.emulator.checks import chat_refusal, refusal
from batchrouter.emulator.delivery import delivered
from batchrouter.emulator.endpoints import OTHERS, catalogue, one_model, other_refusal
from batchrouter.emulator.faults import Call, Scene, call, chosen
from batchrouter.emulator.limits import Limits
from batchrouter.emulator.plays import JSON, NO_HTTP, OK, Asked, Play, Whole, problem, type_of_headers
from batchrouter.emulator.schema import SchemaError
from batchrouter.emulator.stats import Row, Stats

MODELS: Final = (
    *("gpt-5.4", "gpt-5.4-mini", "reasoner-1", "claude-sonnet-5", "claude-haiku-5"),
    "text-embedding-3",
)
FIRST_ERROR: Final = 300  # statuses from here on cost nothing
_MODELS: Final = "/v1/models/"
_CHAT: Final = "/v1/chat/completions"
_MOVED: Final = "/v1/moved/chat/completions"  # where redirects point: the same answers, without faults
_POSTS: Final = frozenset({_CHAT, _MOVED, *(f"/v1{path}" for path in OTHERS)})
_FIRST_BYTE_SHARE: Final = 0.3  # of a stream's latency; the rest is spread over its chunks
_MARKER_BYTES: Final = b"[[fault:"


class Latency(NamedTuple):
    """How long an answer takes: lognormal about a median, or constant when sigma is 0."""

    median_s: float = 0.0
    sigma: float = 0.0

    def drawn(self, source: random.Random) -> float:
        """One latency, in seconds."""
        if self.median_s <= 0 or self.sigma <= 0:
            return max(0.0, self.median_s)
        return source.lognormvariate(math.log(self.median_s), self.sigma)


class Outage(NamedTuple):
    """From `start` until `end` (the server's clock) every chat completion meets that fault."""

    start: float
    end: float
    fault: Call


class At(NamedTuple):
    """When a request came: on the clock that never runs backwards, and by the time of day. Seconds."""

    now: float
    wall: float


class Turn(NamedTuple):
    """What one request gets: a play after a delay. `admitted`: it holds a place until it is over."""

    play: Play
    delay_s: float = 0.0
    admitted: bool = False
    answers: bool = False
    row: Row | None = None


class Behaviour:
    """An endpoint's rules and memory. Every public attribute may be changed between two requests.

    `account` holds key, limits and credits; `faults` maps calls (`NAME` or `NAME=PARAMETER`) to the share of
    requests that meet them. Without `models` every model is known. Raises ValueError for an unknown fault.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        models: tuple[str, ...] = MODELS,
        limits: Limits | None = None,
        latency: Latency | None = None,
        faults: Mapping[str, float] | None = None,
        balance: float | None = None,
        price: float = 1.0,
        key: str | None = None,
        journal: bool = False,
    ) -> None:
        self.seed = seed
        self.models = models
        self.latency = latency or Latency()
        own = f"wr-emulator-{blake2b(str(seed).encode(), digest_size=12).hexdigest()}"
        self.account = Account(key=key or own, limits=limits or Limits(), balance=balance, price=price)
        self.stats = Stats(journal={} if journal else None)
        self.outages: list[Outage] = []
        self._random = random.Random(seed)
        self._attempts: dict[str, int] = {}
        self._date = (0, "")
        self.faults = faults or {}

    @property
    def faults(self) -> Mapping[str, float]:
        """The share of requests that meet each fault."""
        return self._faults

    @faults.setter
    def faults(self, faults: Mapping[str, float]) -> None:
        shares = [(call(text), share) for text, share in faults.items()]
        if any(not 0 <= share <= 1 for _, share in shares) or sum(share for _, share in shares) > 1 + 1e-9:
            raise ValueError("the shares of faults lie between 0 and 1, and so does their sum")
        self._faults = dict(faults)
        self._shares = shares

    def receive(self, asked: Asked, now: float, wall: float) -> Turn:
        """Decides about a request that came at `now`; `wall` is the time of day. `finish` must follow."""
        path = asked.path.partition("?")[0]
        self.stats.came(path, now)
        number = f"req_{self.stats.requests:016x}"
        headers = (("x-request-id", number), ("date", self._dated(wall)))
        method = "POST" if path in _POSTS else "GET" if f"{path}/".startswith(_MODELS) else None
        if method is None:
            message = f"Invalid URL ({asked.method} {path}): a base URL ends with /v1, the route is added to it"
            return _refused(404, message, headers, code="unknown_url")
        if asked.method != method:
            return _refused(405, f"{path} takes {method}", (*headers, ("allow", method)))
        if unauthorised := self.account.unauthorised(asked.headers.get("authorization", ""), headers):
            return Turn(unauthorised)
        if method == "GET":
            return self._catalogue(path, headers)
        return self._posted(path, asked, headers, At(now, wall))

    def finish(self, turn: Turn, *, delivered_whole: bool) -> None:
        """The turn is over; `delivered_whole` says whether the client was still there at its end."""
        self.stats.left(turn.play.status if delivered_whole else NO_HTTP)
        if turn.admitted:
            self.account.places -= 1
        if turn.answers and delivered_whole and turn.row is not None:
            turn.row.answered += 1

    def _dated(self, wall: float) -> str:
        if self._date[0] != int(wall):
            self._date = (int(wall), formatdate(wall, usegmt=True))
        return self._date[1]

    def _catalogue(self, path: str, headers: type_of_headers) -> Turn:
        name = path.removeprefix("/v1/models").strip("/")
        if name and name not in self.models:
            return _refused(404, f"The model `{name}` does not exist", headers, code="model_not_found")
        found = one_model(name) if name else catalogue(self.models)
        return Turn(Whole(OK, (*JSON, *headers), orjson.dumps(found)))

    def _posted(self, path: str, asked: Asked, headers: type_of_headers, at: At) -> Turn:
        try:
            body = orjson.loads(asked.body)
        except orjson.JSONDecodeError as error:
            return _refused(400, f"We could not parse the JSON body of your request: {error}", headers)
        other = None if path in {_CHAT, _MOVED} else path.removeprefix("/v1")
        wrong = refusal(body, self.models)
        wrong = wrong or (chat_refusal(body) if other is None else other_refusal(other, body))
        if wrong is not None:
            return Turn(Whole(400, (*JSON, *headers), wrong))
        try:
            completion = answer(body, self.seed) if other is None else OTHERS[other](body, self.seed)
            marked = _marked(asked.body, body) if path == _CHAT else None
        except SchemaError as error:
            return _refused(400, f"Invalid schema: {error}", headers, code="invalid_json_schema")
        except ValueError as error:  # a marker that names no fault
            return _refused(400, str(error), headers, code="unknown_fault")
        origin = f"http://{asked.headers.get('host', '')}"
        scene = Scene(body, completion, headers, "", self.account.key, at.wall, origin)
        return self._decided(scene, marked, at)

    def _decided(self, scene: Scene, marked: list[Call] | None, at: At) -> Turn:
        """Lets a good request in, past outages, credits and limits; `marked` null: nothing goes wrong."""
        name, model = scene.completion.get("id", ""), scene.body["model"]
        row = self.stats.row(name) if name else None
        if row is not None:
            row.asked += 1
        if marked is not None and (outage := self._outage(at.now)):
            return self._faulty(scene, outage, 0.0)
        tokens = scene.completion["usage"]["total_tokens"]
        if limited := self.account.limited(model, tokens, scene.headers, now=at.now, wall=at.wall):
            return Turn(limited)
        self.stats.let_in(row, at.now)
        if told := self.account.headers(model, at.now):
            scene = scene._replace(headers=scene.headers + told)
        latency_s = self.latency.drawn(self._random)
        fault = None if marked is None else self._fault(scene, marked, name)
        if fault is None:
            turn = self._honest(scene, latency_s, row)
        else:
            turn = self._faulty(scene, fault, latency_s)._replace(admitted=True, row=row)
        if turn.play.status < FIRST_ERROR:
            self.account.charge()
        return turn

    def _outage(self, now: float) -> Call | None:
        if not self.outages:
            return None
        self.outages = [outage for outage in self.outages if now < outage.end]
        return next((outage.fault for outage in self.outages if outage.start <= now), None)

    def _fault(self, scene: Scene, marked: list[Call], name: str) -> Call | None:
        """The fault this request meets: what its messages name, else what chance brings."""
        met = None
        if marked:
            attempt = self._attempts.get(name, 0)
            self._attempts[name] = attempt + 1
            met = chosen(marked, attempt)
        elif self._shares:
            met = self._by_chance()
        return None if met is None or (met.fault.streams_only and not scene.streamed) else met

    def _by_chance(self) -> Call | None:
        left = self._random.random()
        for fault, share in self._shares:
            left -= share
            if left < 0:
                return fault
        return None

    def _faulty(self, scene: Scene, met: Call, delay_s: float) -> Turn:
        self.stats.by_fault[met.fault.name] += 1
        play = met.fault.play(scene._replace(argument=met.argument))
        return Turn(play, delay_s, answers=met.fault.usable)

    def _honest(self, scene: Scene, latency_s: float, row: Row | None) -> Turn:
        first_s = latency_s * _FIRST_BYTE_SHARE if scene.streamed else latency_s
        play = delivered(scene.body, scene.completion, scene.headers, over_s=latency_s - first_s)
        return Turn(play, first_s, admitted=True, answers=True, row=row)


def _marked(raw: bytes, body: Mapping[str, Any]) -> list[Call]:
    """The faults that the messages themselves ask for. Raises ValueError for a name there is not."""
    if _MARKER_BYTES not in raw:
        return []
    return [call(text) for message in body["messages"] for text in MARKER.findall(said(message))]


def _refused(status: int, message: str, headers: type_of_headers, *, code: str | None = None) -> Turn:
    return Turn(Whole(status, (*JSON, *headers), problem(message, kind="invalid_request_error", code=code)))
