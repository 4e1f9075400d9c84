"""Promises 1 and 2 checked over the files of a run directory, by what CONTRACT.md says of them and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kit.world import Served

SUMMED = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")


def _refuse(word: str) -> NoReturn:
    raise AssertionError(f"{word} is no JSON")


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each one strict JSON object ended by a newline; none for no file."""
    content = path.read_bytes() if path.exists() else b""
    assert not content or content.endswith(b"\n"), f"{path.name} has a torn tail"
    found = [json.loads(line, parse_constant=_refuse) for line in content.split(b"\n")[:-1]]
    assert all(isinstance(line, dict) for line in found)
    return found


@dataclass(frozen=True)
class Books:
    """What a run directory says of its rows."""

    results: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    superseded: list[dict[str, Any]]

    @property
    def answered(self) -> set[str]:
        return {row["custom_id"] for row in self.results}

    @property
    def failed(self) -> set[str]:
        return {row["custom_id"] for row in self.errors}

    @property
    def taken_out(self) -> list[str]:
        return [row["custom_id"] for row in self.superseded]

    def answer(self, custom_id: str) -> str:
        """What stands under an id in results.jsonl."""
        (content,) = [
            row["response"]["body"]["choices"][0]["message"]["content"]
            for row in self.results
            if row["custom_id"] == custom_id
        ]
        assert isinstance(content, str)
        return content

    def failure(self, custom_id: str) -> int | str:
        """The status, or else the code, that stands under an id in errors.jsonl."""
        (row,) = [row for row in self.errors if row["custom_id"] == custom_id]
        return row["response"]["status_code"] if row["error"] is None else row["error"]["code"]  # type: ignore[no-any-return]


def books(directory: Path) -> Books:
    """The books of a run that has ended: files whole, no row in two places, the totals those of the rows."""
    found = Books(*(strict_lines(directory / f"{name}.jsonl") for name in ("results", "errors", "superseded")))
    standing = [row["id"] for row in found.results + found.errors]
    assert len(standing) == len(set(standing)), "a row stands in two places"
    for row in found.results:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
    for row in found.errors:
        assert row["error"] is not None or row["response"]["status_code"] != 200
    _check_usage(strict_lines(directory / "usage.jsonl"), found)
    return found


def _check_usage(lines: Iterable[Mapping[str, Any]], found: Books) -> None:
    *by_model, total = lines
    assert total["scope"] == "total"
    paid = found.results + found.errors + found.superseded
    for line in (*by_model, total):
        mine = [row for row in paid if line is total or row["batchrouter"].get("model", "") == line["model"]]
        standing = [row for row in mine if not any(row is other for other in found.superseded)]
        usages = [row["batchrouter"].get("usage") for row in mine]
        expected = {
            "requests": len(standing),
            "succeeded": sum(row["error"] is None and row["response"]["status_code"] == 200 for row in standing),
            "failed": sum(row["error"] is not None or row["response"]["status_code"] != 200 for row in standing),
            "attempts": sum(row["batchrouter"]["attempts"] for row in mine),
            "unknown_usage": usages.count(None),
            **{name: sum(usage[name] for usage in usages if usage is not None) for name in SUMMED},
        }
        assert {name: line[name] for name in expected} == expected, line["model"]
    counted = found.results + found.errors + [row for row in found.superseded if row["batchrouter"]["attempts"]]
    assert {line["model"] for line in by_model} == {row["batchrouter"].get("model", "") for row in counted}


def check_questions(found: Books, rows: Iterable[Mapping[str, Any]], served: Served) -> None:
    """Every answer is the one to the question of the row whose id it has."""
    bodies = {row["custom_id"]: row["body"] for row in rows}
    for row in found.results:
        expected = served.emulator.answer(bodies[row["custom_id"]])
        assert row["response"]["body"]["choices"] == expected["choices"], row["custom_id"]
