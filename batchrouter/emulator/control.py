"""The emulator's own routes, `/_emulator/...`: what a test changes by method, a shell changes by curl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from batchrouter.emulator.behaviour import Behaviour, Latency, Outage
from batchrouter.emulator.faults import FAULTS, call
from batchrouter.emulator.limits import changed
from batchrouter.emulator.plays import JSON, OK, Asked, Whole, problem

PREFIX: Final = "/_emulator/"


def controlled(behaviour: Behaviour, asked: Asked, now: float) -> Whole:
    """Answers a request to one of these routes."""
    name = asked.path.partition("?")[0].removeprefix(PREFIX)
    if asked.method == "GET":
        shown = _SHOWN.get(name)
        return _not_found(name) if shown is None else Whole(OK, JSON, orjson.dumps(shown(behaviour)))
    change = _CHANGES.get(name)
    if change is None:
        return _not_found(name)
    try:
        fields = orjson.loads(asked.body or b"{}")
        if not isinstance(fields, dict):
            return Whole(400, JSON, problem(f"{name}: the body must be an object", kind="invalid_request_error"))
        change(behaviour, fields, now)
    except (ValueError, TypeError, KeyError) as error:
        return Whole(400, JSON, problem(f"{name}: {error}", kind="invalid_request_error"))
    return Whole(OK, JSON, b'{"ok":true}')


def _not_found(name: str) -> Whole:
    known = ", ".join([*(f"GET {PREFIX}{one}" for one in _SHOWN), *(f"POST {PREFIX}{one}" for one in _CHANGES)])
    return Whole(404, JSON, problem(f"no {name!r} here; there are {known}", kind="invalid_request_error"))


def _credits(behaviour: Behaviour, fields: dict[str, Any], _: float) -> None:
    if "set" in fields:
        behaviour.account.balance = None if fields["set"] is None else float(fields["set"])
    if "add" in fields:
        behaviour.account.balance = (behaviour.account.balance or 0.0) + float(fields["add"])


def _key(behaviour: Behaviour, fields: dict[str, Any], _: float) -> None:
    behaviour.account.revoked = bool(fields.get("revoked", False))
    behaviour.account.key = str(fields.get("key", behaviour.account.key))


def _limits(behaviour: Behaviour, fields: dict[str, Any], _: float) -> None:
    behaviour.account.limits = changed(behaviour.account.limits, fields)


def _latency(behaviour: Behaviour, fields: dict[str, Any], _: float) -> None:
    behaviour.latency = Latency(float(fields["median_s"]), float(fields.get("sigma", 0.0)))


def _faults(behaviour: Behaviour, fields: dict[str, Any], _: float) -> None:
    behaviour.faults = {name: float(share) for name, share in fields.items()}


def _outage(behaviour: Behaviour, fields: dict[str, Any], now: float) -> None:
    start = now + float(fields.get("start_s", 0.0))
    fault = call(str(fields.get("kind", "status_503")))
    behaviour.outages.append(Outage(start, start + float(fields["duration_s"]), fault))


_SHOWN: Final[Mapping[str, Callable[[Behaviour], Any]]] = {
    "stats": lambda behaviour: behaviour.stats.as_json(),
    "faults": lambda _: {name: fault.description for name, fault in FAULTS.items()},
}
_CHANGES: Final[Mapping[str, Callable[[Behaviour, dict[str, Any], float], None]]] = {
    "credits": _credits,
    "key": _key,
    "limits": _limits,
    "latency": _latency,
    "faults": _faults,
    "outage": _outage,
}
