"""Where a row may go, and which way it takes: the tables."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from batchrouter.errors import UsageError
from batchrouter.routing import Route, Routes, choose
from batchrouter.settings import Endpoint, Model

HERE = Endpoint(name="here", base_url="http://127.0.0.1:1/v1", models={"small": "s-1", "large": "large"})
THERE = Endpoint(name="there", base_url="http://127.0.0.1:2/v1", models={"small": "small"})
ANY = Endpoint(name="any", base_url="http://127.0.0.1:3/v1")
KEY = bytes(12)


def routes(*endpoints: Endpoint, **rest: Any) -> Routes:
    return Routes(endpoints or (HERE, THERE), rest.pop("models", {}), rest.pop("pools", {}), **rest)


def test_a_model_goes_to_all_who_serve_it_under_the_id_they_know() -> None:
    """Each by its own id; an endpoint that names no models serves any."""
    assert routes().of("small", KEY) == (Route("here", "small", "s-1"), Route("there", "small", "small"))
    assert routes().of("large", KEY) == (Route("here", "large", "large"),)
    assert routes(ANY).of("whatever", KEY) == (Route("any", "whatever", "whatever"),)
    assert routes().of("unheard", KEY) == ()


def test_a_pool_goes_to_all_of_its_models() -> None:
    """Those at each of their endpoints."""
    found = routes(pools={"fast": ("small", "large")}).of("fast", KEY)
    assert [(route.model, route.endpoint) for route in found] == [
        ("small", "here"), ("small", "there"), ("large", "here"),
    ]  # fmt: skip


def test_a_fixed_assignment_is_by_the_id_alone() -> None:
    """The same model for the same id in every run, both models about as often."""
    table = routes(pools={"fast": ("small", "large")}, assign="fixed")
    rng = random.Random(1)
    keys = [rng.randbytes(12) for _ in range(2000)]
    models = [{route.model for route in table.of("fast", key)} for key in keys]
    assert all(len(found) == 1 for found in models)
    again = routes(pools={"fast": ("small", "large")}, assign="fixed")
    assert models == [{route.model for route in again.of("fast", key)} for key in keys]
    assert 900 < sum(found == {"small"} for found in models) < 1100


def test_the_chain_is_the_models_own_then_everybodys() -> None:
    """In order, without the model itself, each once."""
    known = {"a": Model(fallback=("b", "c", "a")), "b": Model(context_fallback="wide")}
    table = routes(ANY, models=known, default_fallback="c")
    assert table.chain("a") == ("b", "c")
    assert table.chain("c") == ()
    assert table.chain("other") == ("c",)
    assert table.wider("b") == "wide"
    assert set(table.may_meet("a")) == {"a", "b", "c", "wide"}


@pytest.mark.parametrize(
    ("known", "name"), [({}, "unheard"), ({"small": Model(fallback=("gone",))}, "small")],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_an_error_of_the_config(known: dict[str, Model], name: str) -> None:
    """Of the row, or of a fallback: nothing is sent, and the message names it."""
    with pytest.raises(UsageError, match=r"unheard|gone"):
        routes(models=known).check([name])


def test_nothing_but_the_model_is_touched() -> None:
    """The id the endpoint knows, and the model's own defaults where the row is silent; else the very same bytes."""
    body = b'{ "model" : "small", "messages": [{"role":"user","content":"hi"}],"top_p":0.50 }'
    here, there = routes().of("small", KEY)
    table = routes(models={"large": Model(body=(("top_p", "1"), ("seed", "7")))})
    assert table.body(body, "small", there) is body
    assert table.body(body, "small", here) == body.replace(b'"small"', b'"s-1"')
    sent = json.loads(table.body(body, "small", Route("here", "large", "large")))
    assert sent == {**json.loads(body), "model": "large", "seed": 7}


CHOICES: list[tuple[list[float], list[float], set[int]]] = [
    ([0.0], [1.0], {0}),
    ([1.0, 0.5], [1.0, 1.0], {1}),
    ([1.0, 0.5], [100.0, 1.0], {1}),  # a weight breaks ties, and nothing else
    ([0.0, 0.0], [1.0, 1.0], {0, 1}),
    ([0.0, 0.005], [1.0, 1.0], {0, 1}),  # alike
    ([10.0, 10.5, 12.0], [1.0, 1.0, 1.0], {0, 1}),
    ([float("inf"), 3.0], [1.0, 1.0], {1}),
]


@pytest.mark.parametrize(("waits_s", "weights", "expected"), CHOICES)
def test_the_least_expected_wait_is_taken(waits_s: list[float], weights: list[float], expected: set[int]) -> None:
    """Of those that are alike, any."""
    rng = random.Random(1)
    assert {choose(waits_s, weights, rng) for _ in range(100)} == expected


def test_of_those_that_are_alike_each_is_taken_as_often_as_its_weight_says() -> None:
    """Three to one, and the same again with the same seed."""
    rng, again = random.Random(7), random.Random(7)
    taken = [choose([0.0, 0.0], [3.0, 1.0], rng) for _ in range(4000)]
    assert taken == [choose([0.0, 0.0], [3.0, 1.0], again) for _ in range(4000)]
    assert 2850 < Counter(taken)[0] < 3150
