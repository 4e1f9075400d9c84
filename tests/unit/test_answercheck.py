"""What fits the `response_format` of a row, beside what the command is asked for (see e2e/test_reviewed.py)."""

from __future__ import annotations

from typing import Any

import pytest
from kit.hostile import hostile, http

from batchrouter import jsontext
from batchrouter.answercheck import AnswerCheck

GOOD, BAD = {"content": '{"a": 1}'}, {"content": '{"a": "x"}'}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BODY = jsontext.dumps({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}})


@pytest.mark.parametrize(
    ("messages", "fits"),
    [
        ([GOOD], True),
        ([BAD], False),
        ([GOOD, GOOD], True),
        ([GOOD, BAD], False),
        ([{"content": None, "refusal": "no"}], True),
        ([{"content": "", "tool_calls": [{}]}], True),
        ([{"content": None, "function_call": {"name": "f"}}], True),
        ([{"content": None}], False),
        ([{"content": []}], False),
        ([{}], False),
        ([{"content": [{"type": "text", "text": '{"a":'}, {"type": "image"}, {"type": "text", "text": "1}"}]}], True),
    ],
)
def test_what_fits(messages: list[dict[str, Any]], fits: bool) -> None:  # noqa: FBT001  (a column of the table)
    """Of several choices each is looked at; a refusal and a call are not text that could fit; nothing at all is none."""
    problem = AnswerCheck().problem(BODY, {"choices": [{"message": message} for message in messages]})
    assert (problem is None) is fits


def test_what_a_schema_refers_to_elsewhere_is_not_fetched() -> None:
    """A row's schema sends nobody to another machine; what cannot be known cannot be held against the answer."""
    asked: list[str] = []
    with hostile(lambda _: [], catalogue=http(200, {"type": "string"}), on_get=asked.append) as server:
        schema = {"$ref": f"{server.base_url}/schema.json"}
        wanted = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        assert AnswerCheck().problem(jsontext.dumps(wanted), {"choices": [{"message": GOOD}]}) is None
    assert asked == []
