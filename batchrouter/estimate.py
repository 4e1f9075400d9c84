"""How many tokens a request may take, told from its body alone: what is likely, for the pace and the plan, and what is
the most, for bounds that must hold.

Rules of this file: pure; no tokenizer is asked, as each model has another. Likely is a token for four bytes of the
body, and 256 for an answer, or what the body allows if that is less; the pace corrects itself by the usage that comes
back. The most is a token for each byte: no tokenizer that works on bytes makes more of them. A picture is 1,000 tokens
likely and 2,000 at most, whatever its size: a `data:` URL is no text, and none of its bytes is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

LIKELY_ANSWER_TOKENS: Final = 256
UNBOUNDED_ANSWER_TOKENS: Final = 4096  # what an answer is reckoned at, at most, where the row sets no bound
_BYTES_A_TOKEN: Final = 4
_MOST_WEIGHTS: Final = 10_000
_PICTURE_TOKENS: Final = 1000
_PICTURE_MOST_TOKENS: Final = 2000
_BUDGETS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_PICTURE: Final = re.compile(rb'"image_url"\s*:')
_PICTURE_DATA: Final = re.compile(rb'"(?:image_)?url"\s*:\s*"(data:image[^"]*)"', re.IGNORECASE)


class Size(NamedTuple):
    """What a body holds: bytes of text (its JSON counts as such), and pictures."""

    text_bytes: int
    pictures: int

    @property
    def likely_tokens(self) -> int:
        """What the prompt takes as a rule."""
        return self.text_bytes // _BYTES_A_TOKEN + self.pictures * _PICTURE_TOKENS

    @property
    def most_tokens(self) -> int:
        """What the prompt takes at most."""
        return self.text_bytes + self.pictures * _PICTURE_MOST_TOKENS


class Weight(NamedTuple):
    """What requests of one model and one answer budget (0: none is set) come to: how many they are, and their prompts'
    tokens.
    """

    model: str
    budget: int
    requests: int
    likely_tokens: int
    most_tokens: int


class Weights:
    """What the requests of an input come to, by model and answer budget; none where there are too many of those."""

    def __init__(self) -> None:
        self._weights: dict[tuple[str, int], Weight] = {}

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._weights.values())

    def add(self, weight: Weight) -> None:
        """Put something on."""
        before = self._weights.get(weight[:2], weight._replace(requests=0, likely_tokens=0, most_tokens=0))
        if len(self._weights) <= _MOST_WEIGHTS:
            sums = (one + other for one, other in zip(before[2:], weight[2:], strict=True))
            self._weights[weight[:2]] = Weight(*weight[:2], *sums)


def size_of(body: bytes) -> Size:
    """Text and pictures of a body."""
    if body.find(b'"image_url"') < 0:  # `in` takes it for a number first, and fails
        return Size(len(body), 0)
    data_bytes = sum(found.end(1) - found.start(1) for found in _PICTURE_DATA.finditer(body))
    return Size(len(body) - data_bytes, sum(1 for _ in _PICTURE.finditer(body)))


def estimate_tokens(body: bytes, allowed: int) -> int:
    """Tokens that a request is likely to take, prompt and answer together; `allowed` is its `answer_budget`."""
    return size_of(body).likely_tokens + min(allowed or LIKELY_ANSWER_TOKENS, LIKELY_ANSWER_TOKENS)


def answer_budget(fields: Mapping[str, Any]) -> int:
    """The most tokens that a body allows for its answers, all of them together; 0 where it does not say."""
    most = 0
    for name in _BUDGETS:
        if name in fields and type(budget := fields[name]) is int and budget > most:
            most = budget
    return most and most * _answers_wanted(fields)


def _answers_wanted(fields: Mapping[str, Any]) -> int:
    if "n" not in fields and "best_of" not in fields and "prompt" not in fields:
        return 1
    wanted = 1
    for name in ("n", "best_of"):
        value = fields.get(name)
        if type(value) is int:
            wanted = max(wanted, value)
    prompts = fields.get("prompt")
    if type(prompts) is list and prompts and type(prompts[0]) in {str, list}:
        wanted *= len(prompts)
    return wanted
