"""Tokens: read from what an endpoint says, and added up by model into usage.jsonl.

Rules of this file: a count that is no whole number from 0 on is no count; what nobody reported is unknown, not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from batchrouter import jsontext
from batchrouter.records import Usage
from batchrouter.settings import Model

_BELIEVABLE: Final = 2**53  # above it a count is noise, and would poison every sum


def read_usage(body: Mapping[str, Any]) -> Usage | None:
    """The usage an answer reports, by the names of chat, completions, embeddings or responses; None for none."""
    usage = body.get("usage")
    if type(usage) is not dict:
        return None
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens", "total_tokens")
    if prompt is completion is total is None:
        return None
    return Usage(
        prompt or 0,
        completion or 0,
        (prompt or 0) + (completion or 0) if total is None else total,
        _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
        _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )


def _count(usage: Mapping[str, Any], name: str, other: str) -> int | None:
    value = usage.get(name)
    if value is None:
        value = usage.get(other)
    return value if type(value) is int and 0 <= value < _BELIEVABLE else None


def _detail(usage: Mapping[str, Any], holders: tuple[str, str], name: str) -> int:
    for holder in holders:
        details = usage.get(holder)
        if type(details) is dict:
            return _count(details, name, name) or 0
    return 0


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


@dataclass(slots=True)
class Totals:
    """Usage by model: follows the log, row by row."""

    by_model: dict[str, Total] = field(default_factory=dict)

    def of(self, model: str) -> Total:
        """The total of one model."""
        total = self.by_model.get(model)
        if total is None:
            total = self.by_model[model] = Total()
        return total

    def count(self, model: str, usage: Usage | None, attempts: int, *, answered: bool) -> None:
        """Count a row as it stands in one of the logs."""
        total = self.of(model)
        total.add(usage, attempts)
        if answered:
            total.succeeded += 1
        else:
            total.failed += 1

    def lines(self, prices: Mapping[str, Model]) -> bytes:
        """usage.jsonl: a line a model, then one of all; a cost is null where a price it needs is not known."""
        rows, whole, costs = [], Total(), list[float | None]()
        for model, total in sorted(self.by_model.items()):
            if not total.attempts and not total.succeeded and not total.failed:
                continue
            cost = _cost(total, prices.get(model))
            costs.append(cost)
            rows.append(_line("model", model, total, cost))
            for name in Total.__slots__:
                setattr(whole, name, getattr(whole, name) + getattr(total, name))
        known = [cost for cost in costs if cost is not None]
        rows.append(_line("total", "*", whole, sum(known) if known and len(known) == len(costs) else None))
        return b"".join(jsontext.dumps(row) + b"\n" for row in rows)

    def dump(self) -> dict[str, Any]:
        """As JSON for the index; `load` reads it."""
        return {model: asdict(total) for model, total in self.by_model.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Totals:
        """The totals that `dump` gave."""
        return cls({model: Total(**fields) for model, fields in dumped.items()})


def _cost(total: Total, price: Model | None) -> float | None:
    if not total.total_tokens:
        return 0.0
    if price is None:
        return None
    return round(price.cost(total.prompt_tokens, total.cached_tokens, total.completion_tokens), 9)


def _line(scope: str, model: str, total: Total, cost: float | None) -> dict[str, Any]:
    requests = total.succeeded + total.failed
    return {"scope": scope, "model": model, "requests": requests, **asdict(total), "cost": cost}
