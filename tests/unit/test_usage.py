"""Tokens: what is believed of what endpoints report, and sums that are those of the rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrouter.records import Usage
from batchrouter.usage import Totals, read_usage

READ: list[tuple[Any, Usage | None]] = [
    ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, Usage(3, 2, 5)),
    ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2, 5)),
    ({"prompt_tokens": 3, "total_tokens": 3}, Usage(3, 0, 3)),
    ({"total_tokens": 9}, Usage(0, 0, 9)),
    ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, Usage(3, 2, 5)),
    ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
    (
        {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4},
         "completion_tokens_details": {"reasoning_tokens": 3}},
        Usage(9, 5, 14, 4, 3),
    ),
    (
        {"input_tokens": 9, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4},
         "output_tokens_details": {"reasoning_tokens": 3}},
        Usage(9, 5, 14, 4, 3),
    ),
    ({"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(3, 2, 5)),
    ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": "x"}}, Usage(3, 0, 3)),
    (None, None),
    ({}, None),
    ([], None),
    ("5", None),
    (7, None),
    ({"prompt_tokens": None}, None),
    ({"prompt_tokens": -1}, None),
    ({"prompt_tokens": 2.5}, None),
    ({"prompt_tokens": "3"}, None),
    ({"prompt_tokens": True}, None),
    ({"prompt_tokens": 10**4000}, None),
    ({"prompt_tokens": 3, "completion_tokens": -7, "total_tokens": 5.5}, Usage(3, 0, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("reported", "expected"), READ)
def test_what_is_believed(reported: Any, expected: Usage | None) -> None:
    """Whole numbers from 0 on, by any of the names; what is none is unknown, not zero."""
    assert read_usage({"usage": reported}) == expected


def test_no_usage_is_unknown() -> None:
    """An answer without the field."""
    assert read_usage({}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_nothing_reported_poisons_a_sum(reported: Any) -> None:
    """Whatever it is: whole numbers within reason, or unknown."""
    found = read_usage({"usage": reported})
    if found is not None:
        assert all(type(count) is int and 0 <= count < 2**54 for count in found)


ROWS = st.tuples(
    st.sampled_from(["m", "n", ""]),
    st.none() | st.builds(Usage, *[st.integers(0, 1000)] * 5),
    st.integers(0, 5),
    st.booleans(),
)


def lines(totals: Totals) -> dict[str, dict[str, Any]]:
    return {found["model"]: found for found in map(json.loads, totals.lines({}).splitlines())}


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=20))
def test_the_totals_are_the_rows(rows: list[tuple[str, Usage | None, int, bool]]) -> None:
    """A line a model, then one of all; every figure the sum over the rows; and the same after `dump` and `load`."""
    totals = Totals()
    for model, usage, attempts, answered in rows:
        totals.count((model, "e"), usage, attempts, answered=answered)
    found = lines(totals)
    assert list(found)[-1] == "*"
    assert {line["scope"] for line in list(found.values())[:-1]} <= {"model"}
    assert found["*"]["scope"] == "total"
    for model in [*{row[0] for row in rows}, "*"]:
        mine = [row for row in rows if model in {"*", row[0]}]
        line = found[model]
        assert line["requests"] == len(mine)
        assert line["succeeded"] == sum(answered for *_, answered in mine)
        assert line["failed"] == len(mine) - line["succeeded"]
        assert line["attempts"] == sum(attempts for _, _, attempts, _ in mine)
        assert line["unknown_usage"] == sum(usage is None for _, usage, *_ in mine)
        for name in Usage._fields:
            assert line[name] == sum(getattr(usage, name) for _, usage, *_ in mine if usage is not None)
    assert Totals.load(json.loads(json.dumps(totals.dump()))).lines({}) == totals.lines({})


def test_a_line_has_the_contracts_fields() -> None:
    """CONTRACT 4, in its order."""
    totals = Totals()
    totals.count(("m", "e"), Usage(1, 2, 3), 1, answered=True)
    assert sorted(lines(totals)["m"]) == sorted(
        ["scope", "model", "requests", "succeeded", "failed", "attempts", "prompt_tokens", "completion_tokens",
         "total_tokens", "cached_tokens", "reasoning_tokens", "unknown_usage", "cost"]
    )  # fmt: skip


def test_no_rows_are_a_total_of_nothing() -> None:
    """An empty run has its line, too."""
    assert lines(Totals())["*"]["requests"] == 0
