"""Tokens: read from what an endpoint says, and added up by model into usage.jsonl.

Rules of this file: a count that is no whole number from 0 on is no count; what nobody reported is unknown, not zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from batchrouter import jsontext
from batchrouter.records import Usage
from batchrouter.settings import Price

_BELIEVABLE: Final = 2**53  # above it a count is noise, and would poison every sum


def read_usage(body: Mapping[str, Any]) -> Usage | None:
    """The usage an answer reports, by the names of chat, completions, embeddings or responses; None for none."""
    usage = body.get("usage")
    if type(usage) is not dict:
        return None
    prompt = _count(usage.get("prompt_tokens"), usage.get("input_tokens"))
    completion = _count(usage.get("completion_tokens"), usage.get("output_tokens"))
    total = _count(usage.get("total_tokens"))
    if prompt is completion is total is None:
        return None
    return Usage(
        prompt or 0,
        completion or 0,
        (prompt or 0) + (completion or 0) if total is None else total,
        _detail(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"), "cached_tokens"),
        _detail(usage.get("completion_tokens_details") or usage.get("output_tokens_details"), "reasoning_tokens"),
    )


def _count(value: object, other: object = None) -> int | None:
    if value is None:
        value = other
    return value if type(value) is int and 0 <= value < _BELIEVABLE else None


def _detail(details: object, name: str) -> int:
    return _count(details.get(name)) or 0 if type(details) is dict else 0


@dataclass(slots=True)
class Total:
    """What one model's rows, or all, came to. `succeeded` and `failed` are rows as they stand; the tokens and the
    attempts are all that were paid for, superseded rows included.
    """

    succeeded: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    unknown_usage: int = 0

    @property
    def rows(self) -> int:
        """Rows that have come to their end."""
        return self.succeeded + self.failed

    def add(self, usage: Usage | None, attempts: int) -> None:
        """Count what one row used (None: it is not known)."""
        self.attempts += attempts
        if usage is None:
            self.unknown_usage += 1
            return
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.total_tokens += usage.total_tokens
        self.cached_tokens += usage.cached_tokens
        self.reasoning_tokens += usage.reasoning_tokens


Where = tuple[str, str]  # a model and an endpoint


@dataclass(slots=True)
class Totals:
    """Usage by model and endpoint: follows the log, row by row."""

    by_route: dict[Where, Total] = field(default_factory=dict)

    def of(self, where: Where) -> Total:
        """The total of one model at one endpoint."""
        total = self.by_route.get(where)
        if total is None:
            total = self.by_route[where] = Total()
        return total

    def count(self, where: Where, usage: Usage | None, attempts: int, *, answered: bool) -> None:
        """Count a row as it stands in one of the logs."""
        total = self.of(where)
        total.add(usage, attempts)
        if answered:
            total.succeeded += 1
        else:
            total.failed += 1

    def of_model(self, model: str) -> Total:
        """The total of one model at all endpoints together."""
        return _sum(total for where, total in self.by_route.items() if where[0] == model)

    def lines(self, prices: Mapping[str, Price], endpoints: Collection[str] = ()) -> bytes:
        """usage.jsonl: a line a model, one for each of `endpoints`, where the user named several, then one of all; a
        cost is null where a price it needs is not known.
        """
        used = {where: total for where, total in sorted(self.by_route.items()) if total.rows or total.attempts}
        models = dict.fromkeys(model for model, _ in used)
        rows = [
            _line("model", model, {where: total for where, total in used.items() if where[0] == model}, prices)
            for model in models
        ]
        if len(endpoints) > 1:
            rows += [
                {"endpoint": name}
                | _line("endpoint", "*", {where: total for where, total in used.items() if where[1] == name}, prices)
                for name in endpoints
            ]
        rows.append(_line("total", "*", used, prices))
        return b"".join(jsontext.dumps(row) + b"\n" for row in rows)

    def dump(self) -> list[Any]:
        """As JSON for the index; `load` reads it."""
        return [[*where, asdict(total)] for where, total in self.by_route.items()]

    @classmethod
    def load(cls, dumped: Iterable[Any]) -> Totals:
        """The totals that `dump` gave."""
        return cls({(model, endpoint): Total(**fields) for model, endpoint, fields in dumped})


def _line(scope: str, model: str, totals: Mapping[Where, Total], prices: Mapping[str, Price]) -> dict[str, Any]:
    whole = _sum(totals.values())
    costs = [_cost(total, prices.get(priced)) for (priced, _), total in totals.items()]
    known = [cost for cost in costs if cost is not None]
    cost = round(sum(known), 9) if known and len(known) == len(costs) else None
    return {"scope": scope, "model": model, "requests": whole.rows, **asdict(whole), "cost": cost}


def _sum(totals: Iterable[Total]) -> Total:
    whole = Total()
    for total in totals:
        for name in Total.__slots__:
            setattr(whole, name, getattr(whole, name) + getattr(total, name))
    return whole


def _cost(total: Total, price: Price | None) -> float | None:
    if not total.total_tokens:
        return 0.0
    if price is None:
        return None
    return price.cost(total.prompt_tokens, total.cached_tokens, total.completion_tokens)
