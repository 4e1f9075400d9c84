"""Which models an endpoint says it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from batchrouter.records import Fault, Reply
from batchrouter.retry import clean

_MOST_NAMED: Final = 10


class Catalogue(NamedTuple):
    """An endpoint's answer to `GET /models`: the models, each with an `id`, or (None) that it has no catalogue.

    `refusal` is what came in place of a 200.
    """

    refusal: Reply | Fault | None
    models: list[dict[str, Any]] | None

    def warning(self, wanted: Iterable[str]) -> str:
        """What to tell of those models that are not listed; nothing where all are, or there is no catalogue."""
        known = {model["id"] for model in self.models or ()}
        unknown = sorted(clean(model) for model in wanted if model not in known) if known else []
        if not unknown:
            return ""
        more = f" and {len(unknown) - _MOST_NAMED} others" if len(unknown) > _MOST_NAMED else ""
        named = ", ".join(unknown[:_MOST_NAMED])
        return f"not in the endpoint's catalogue: {named}{more} (`batchrouter models` lists it; case matters)"
