"""Answers that are answers, and yet not what was asked for: those that do not fit, and those that were cut off."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from kit.hostile import Heard, Step, hostile, http, opened, piece, right
from kit.world import read_jsonl, request_row, run, write_jsonl

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "number"}},
    "required": ["label"],
    "additionalProperties": False,
}
GOOD, BAD = '{"label": "good", "score": 1}', '{"label": "so so"}'
JSON_OBJECT = {"type": "json_object"}


def schema(inner: Any = SCHEMA) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}


# name -> (response_format, contents of its answers in order, the last one for ever, and whether it is answered)
FITS: dict[str, tuple[dict[str, Any] | None, list[Any], bool]] = {
    "fits": (schema(), [GOOD], True),
    "fits the second time": (schema(), [BAD, GOOD], True),
    "never fits": (schema(), [BAD], False),
    "no JSON": (schema(), ["The label is good."], False),
    "fenced": (schema(), [f"```json\n{GOOD}\n```"], False),
    "NaN": (JSON_OBJECT, ['{"score": NaN}'], False),
    "empty": (schema(), [""], False),
    "an object": (JSON_OBJECT, ['{"any": []}'], True),
    "a list": (JSON_OBJECT, ["[1]"], False),
    "in parts": (schema(), [[{"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]], True),
    "text was asked for": ({"type": "text"}, ["anything"], True),
    "nothing was asked for": (None, ["anything"], True),
    # what no schema should do, and nobody can check
    "no schema": (schema(None), [BAD], True),
    "a schema that is none": (schema({"type": "objekt"}), [BAD], True),
    "a schema of another kind": (schema({"$schema": ["x"], "type": "object"}), [BAD], True),
    "a reference elsewhere": (schema({"$ref": "http://127.0.0.1:9/schema.json"}), [BAD], True),
    "a reference to itself": (schema({"$ref": "#"}), [BAD], True),
    "a pattern that is none": (schema({"properties": {"label": {"pattern": "("}}}), [BAD], True),
    "a number beyond all": (schema({"properties": {"label": {"maximum": 10**40}}}), [BAD], True),
}


def fits_script() -> Any:
    asked: Counter[str] = Counter()

    def script(heard: Heard) -> Iterable[Step]:
        name = heard.said
        contents = FITS[name][1]
        content = contents[min(asked[name], len(contents) - 1)]
        asked[name] += 1
        if heard.body.get("stream"):
            choice = {"index": 0, "delta": {"content": content}, "finish_reason": "stop"}
            chunk = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
            return [opened(), piece(b"data: " + json.dumps(chunk).encode() + b"\n\n"), piece(b"")]
        return [http(200, right(heard, content))]

    return script


def fits_rows() -> list[dict[str, Any]]:
    rows = []
    for n, (name, (wanted, _, _)) in enumerate(FITS.items()):
        body = {} if wanted is None else {"response_format": wanted}
        rows.append({**request_row(n, name, **body), "custom_id": name})
    return rows


def test_answers_that_do_not_fit_are_asked_for_again(tmp_path: Path) -> None:
    """So often as `--json-attempts` says, then failed as schema_mismatch, with the last answer kept and all paid for."""
    write_jsonl(tmp_path / "in.jsonl", fits_rows())
    options = ("--json-attempts", "3", "--stream")
    with hostile(fits_script()) as server:
        done = run("run", "in.jsonl", "--check-json", *options, cwd=tmp_path, env=server.environment, dev_mode=True)
        sent = Counter(heard.said for heard in server.heard)
    assert done.returncode == 1, done.stderr
    found = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/results.jsonl")}
    failed = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/errors.jsonl")}
    assert found.keys() == {name for name, (_, _, answered) in FITS.items() if answered}
    assert failed.keys() == FITS.keys() - found.keys()
    for name, row in failed.items():
        assert row["error"]["code"] == "schema_mismatch"
        assert row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"][0]["message"]["content"] == FITS[name][1][-1]
        assert sent[name] == row["batchrouter"]["attempts"] == 3
        assert row["batchrouter"]["usage"]["total_tokens"] == 5 * 3
    for name, row in found.items():
        assert sent[name] == row["batchrouter"]["attempts"] == len(FITS[name][1])
    messages = {name: row["error"]["message"] for name, row in failed.items()}
    assert messages["never fits"].startswith("the content does not fit the schema at ['label']: 'so so' is not one of")
    assert messages["a list"] == "the content is JSON, but no object"
    assert messages["empty"] == "the content is empty"
    assert messages["NaN"] == "the content is not JSON: NaN"
    assert f"{len(failed)} x schema_mismatch, for example in.jsonl:" in done.stderr
    assert "--retry schema_mismatch" in done.stderr
    [total] = [line for line in read_jsonl(tmp_path / "in.run/usage.jsonl") if line["scope"] == "total"]
    assert total["total_tokens"] == 5 * total["attempts"] == 5 * sum(sent.values())


# name -> (what the row says of its budget, the budgets that `grow` sends for it up to 300, answered with text by 150)
BUDGETS: dict[str, tuple[dict[str, int], list[int | None]]] = {
    "max_tokens": ({"max_tokens": 50}, [50, 100, 200]),
    "max_completion_tokens": ({"max_completion_tokens": 40}, [40, 80, 160]),
    "both": ({"max_tokens": 9, "max_completion_tokens": 60}, [60, 120, 240]),
    "large enough": ({"max_tokens": 150}, [150]),
    "none at all": ({}, [None]),
}
NEVER: dict[str, tuple[dict[str, int], list[int | None]]] = {
    "never": ({"max_tokens": 100}, [100, 200, 300]),
    "beyond": ({"max_tokens": 400}, [400]),
}


def budget_of(body: dict[str, Any]) -> int | None:
    found = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    return found if found is None else int(found)


def cut(heard: Heard) -> Iterable[Step]:
    """Text from a budget of 150 on; below it, and for some rows always, nothing but reasoning."""
    budget = budget_of(heard.body)
    spoke = budget is not None and budget >= 150
    if heard.path == "/v1/responses":
        item = (
            {"type": "message", "content": [{"type": "output_text", "text": "text"}]}
            if spoke
            else {"type": "reasoning"}
        )
        usage = {"input_tokens": 3, "output_tokens": budget, "total_tokens": 3 + (budget or 0)}
        status = {"status": "completed"} if spoke else {
            "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
        }  # fmt: skip
        return [http(200, {"id": "r", "object": "response", "output": [item], "usage": usage, **status})]
    spoke = spoke and heard.said not in NEVER
    usage = {"prompt_tokens": 3, "completion_tokens": budget or 7, "total_tokens": 3 + (budget or 7)}
    choice = {"index": 0, "message": {"role": "assistant", "content": "text" if spoke else ""}}
    return [http(200, right(heard, choices=[{**choice, "finish_reason": "stop" if spoke else "length"}], usage=usage))]


def budget_rows() -> list[dict[str, Any]]:
    rows = [
        {**request_row(n, name, **body), "custom_id": name}
        for n, (name, (body, _)) in enumerate({**BUDGETS, **NEVER}.items())
    ]
    body = {"model": "gpt-5.4", "input": "x", "max_output_tokens": 75}
    return [*rows, {"custom_id": "a response", "method": "POST", "url": "/v1/responses", "body": body}]


@pytest.mark.parametrize("how", ["keep", "grow", "fail"])
def test_answers_cut_off_before_their_first_word(tmp_path: Path, how: str) -> None:
    """Kept and flagged; or asked again with twice the budget the row has; or failed. All of it counts as used, and the
    summary tells what to do.
    """
    write_jsonl(tmp_path / "in.jsonl", budget_rows())
    with hostile(cut) as server:
        options = ("--on-truncated", how, "--max-grow", "300")
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=server.environment, dev_mode=True)
        sent: dict[str, list[int | None]] = {}
        for heard in server.heard:
            name = "a response" if heard.path == "/v1/responses" else heard.said
            sent.setdefault(name, []).append(budget_of(heard.body))
    wanted: dict[str, list[int | None]] = {"a response": [75, 150]}
    wanted |= {name: budgets for name, (_, budgets) in [*BUDGETS.items(), *NEVER.items()]}
    assert sent == (wanted if how == "grow" else {name: budgets[:1] for name, budgets in wanted.items()})
    found = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/results.jsonl")}
    failed = {row["custom_id"]: row for row in read_jsonl(tmp_path / "in.run/errors.jsonl")}
    cut_off = {"none at all", *NEVER} if how == "grow" else wanted.keys() - {"large enough"}
    if how == "fail":
        assert failed.keys() == cut_off
        assert {row["error"]["code"] for row in failed.values()} == {"truncated"}
        assert all(row["response"]["status_code"] == 200 for row in failed.values())
        assert done.returncode == 1
        assert f"{len(cut_off)} x truncated, for example in.jsonl:" in done.stderr
    else:
        assert not failed
        assert done.returncode == 0
        assert {name for name, row in found.items() if row["batchrouter"]["truncated"]} == cut_off
        assert f"{len(cut_off)} truncated: " in done.stderr
    assert "raise max_tokens, or run them again with --retry truncated --on-truncated grow" in done.stderr
    for name, row in {**found, **failed}.items():
        assert row["batchrouter"]["attempts"] == len(sent[name])
        assert row["batchrouter"]["usage"]["completion_tokens"] == sum(budget or 7 for budget in sent[name])
    [total] = [line for line in read_jsonl(tmp_path / "in.run/usage.jsonl") if line["scope"] == "total"]
    assert total["completion_tokens"] == sum(budget or 7 for budgets in sent.values() for budget in budgets)


def test_what_was_kept_truncated_is_grown_by_the_command_that_the_summary_names(tmp_path: Path) -> None:
    """`--retry truncated --on-truncated grow` afterwards: answered, and the old answers are still paid for."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(0, "max_tokens", max_tokens=75)])
    with hostile(cut) as server:
        assert run("run", "in.jsonl", cwd=tmp_path, env=server.environment).returncode == 0
        again = ("--retry", "truncated", "--on-truncated", "grow")
        done = run("run", "in.jsonl", *again, cwd=tmp_path, env=server.environment)
    assert done.returncode == 0, done.stderr
    assert [budget_of(heard.body) for heard in server.heard] == [75, 75, 150]
    [row] = read_jsonl(tmp_path / "in.run/results.jsonl")
    assert row["batchrouter"]["truncated"] is False
    [total] = [line for line in read_jsonl(tmp_path / "in.run/usage.jsonl") if line["scope"] == "total"]
    assert total["completion_tokens"] == 75 + 75 + 150
