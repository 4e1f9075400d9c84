"""Any edit of an input and any crash: what the next start does follows from the contract alone, worked out here anew.

The runs are real ones, by the library's front door, against an emulator on loopback.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.promises import Books, books
from kit.world import Served, serving

from batchrouter.audit import audit
from batchrouter.batch import run_batch
from batchrouter.emulator import Behaviour
from batchrouter.errors import UsageError
from batchrouter.keys import Secret
from batchrouter.preview import preview
from batchrouter.records import Summary
from batchrouter.settings import Changed, Settings

# A line of an input: the id it is given (None: none, so that it is called by its place), and what it asks; a question
# of None is a line that cannot be asked, "bad" one that the endpoint refuses.
Line = tuple[str | None, str | None]
Fate = Literal["answered", "failed"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Behaviour(journal=True)) as served:
        yield served


def body_of(question: str) -> dict[str, Any]:
    content = "[[fault:status_400]] bad" if question == "bad" else question
    return {"model": "gpt-5.4", "messages": [{"role": "user", "content": content}]}


def text_of(line: Line) -> str:
    custom_id, question = line
    if question is None:
        return '{"broken' if custom_id is None else json.dumps({"custom_id": custom_id, "body": {"model": "gpt-5.4"}})
    named = {} if custom_id is None else {"custom_id": custom_id}
    return json.dumps({**named, "body": body_of(question)})


@dataclass
class Place:
    """A folder with one input and its run directory, started again and again."""

    folder: Path
    served: Served
    input: Path = field(init=False)

    def __post_init__(self) -> None:
        self.input = self.folder / "in.jsonl"

    @property
    def directory(self) -> Path:
        return self.folder / "in.run"

    def write(self, lines: Iterable[Line]) -> None:
        fresh = self.folder / "fresh"
        fresh.write_text("".join(text_of(line) + "\n" for line in lines), "utf-8")
        fresh.replace(self.input)

    def settings(self, **options: Any) -> Settings:
        return Settings(base_url=self.served.emulator.base_url, concurrency=3, checkpoint_every=0.01, **options)

    def start(self, **options: Any) -> Summary:
        key = Secret(self.served.emulator.key)
        return asyncio.run(run_batch([str(self.input)], self.directory, self.settings(**options), key))

    def asked(self) -> Counter[str]:
        """How often each question was asked so far."""
        journal = self.served.emulator.stats.journal
        assert journal is not None
        return Counter({name: row.asked for name, row in journal.items()})

    def names(self, questions: Iterable[str]) -> Counter[str]:
        return Counter(self.served.emulator.answer(body_of(question))["id"] for question in questions)

    def check_answers(self, found: Books, log: Mapping[str, str]) -> None:
        """Every id has the end of the question that it was asked with."""
        for row in found.results:
            expected = self.served.emulator.answer(body_of(log[row["custom_id"]]))
            assert row["response"]["body"]["choices"] == expected["choices"], row["custom_id"]
        asked_and_failed = {row["custom_id"] for row in found.errors if row["error"] is None}
        assert found.answered | asked_and_failed == log.keys()
        assert asked_and_failed == {custom_id for custom_id, question in log.items() if question == "bad"}


# --- plan(old, new) ----------------------------------------------------------------------------------------------


@dataclass
class World:
    """What the contract says of a run directory: id -> the question whose end it has, and what was thrown out."""

    log: dict[str, str] = field(default_factory=dict)
    taken_out: Counter[str] = field(default_factory=Counter)

    def read(self, lines: Sequence[Line]) -> tuple[dict[str, str | None], int]:
        """The rows by id (a question of None: invalid) and how many more there are with an id that another has."""
        rows: dict[str, str | None] = {}
        for number, (custom_id, question) in enumerate(lines, 1):
            rows.setdefault(f"in.jsonl:{number}" if custom_id is None else custom_id, question)
        return rows, len(lines) - len(rows)


IDS = st.sampled_from([None, None, "a", "b", "c", "d", "in.jsonl:2"])
QUESTIONS = st.sampled_from(["one", "two", "three", "four", "bad", None])
LINES = st.lists(st.tuples(IDS, QUESTIONS), max_size=7)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 7), st.tuples(IDS, QUESTIONS)),
        st.tuples(st.just("delete"), st.integers(0, 7), st.none()),
        st.tuples(st.just("edit"), st.integers(0, 7), QUESTIONS),
        st.tuples(st.just("swap"), st.integers(0, 7), st.integers(0, 7)),
    ),
    max_size=4,
)


def edited(lines: Sequence[Line], edits: Iterable[tuple[str, int, Any]]) -> list[Line]:
    rows = list(lines)
    for what, at, how in edits:
        match what:
            case "insert":
                rows.insert(at, how)
            case "delete" if at < len(rows):
                del rows[at]
            case "edit" if at < len(rows):
                rows[at] = (rows[at][0], how)
            case "swap" if at < len(rows) and how < len(rows):
                rows[at], rows[how] = rows[how], rows[at]
    return rows


def check_start(place: Place, world: World, lines: Sequence[Line], changed: Changed, limit: int | None) -> None:
    """One start over `lines`: what is asked, refused, kept and counted is what the contract says of them."""
    place.write(lines)
    rows, duplicates = world.read(lines)
    shown = list(lines)[:limit]
    mine = world.read(shown)[0]
    now_changed = [name for name, question in mine.items() if world.log.get(name, question) != question]
    planned = preview([str(place.input)], place.directory, place.settings(changed=changed, limit=limit))
    before, log_before = place.asked(), dict(world.log)
    if now_changed and changed == "refuse":
        assert planned.changed == len(now_changed)
        with pytest.raises(UsageError, match=f"^{len(now_changed)} rows were asked before"):
            place.start(changed=changed, limit=limit)
        assert place.asked() == before
        return
    if changed == "rerun":
        world.taken_out.update(now_changed)
        for name in now_changed:
            del world.log[name]
    due = {name: question for name, question in mine.items() if question is not None and name not in world.log}
    assert (planned.rows, planned.new, planned.changed) == (len(shown), len(due), len(now_changed))
    assert planned.removed == len(log_before.keys() - rows.keys())
    place.start(changed=changed, limit=limit)
    assert place.asked() - before == place.names(due.values())
    world.log |= due
    found = books(place.directory)
    place.check_answers(found, world.log)
    refused = Counter(row["error"]["code"] for row in found.errors if row["error"] is not None)
    invalid = [name for name, question in mine.items() if question is None and name not in world.log]
    assert refused["invalid_row"] >= len(invalid)
    if limit is None:
        assert refused == Counter(invalid_row=len(invalid), duplicate_custom_id=duplicates)
        checked = audit(place.directory)
        assert checked.rows == len(lines)
        assert checked.pending == 0
        assert bool(checked.problems) == (changed == "refuse" and bool(now_changed))
    paid = Counter(row["custom_id"] for row in found.superseded if row["batchrouter"]["attempts"])
    assert paid == world.taken_out
    again = place.asked()
    if changed != "refuse":
        place.start(changed=changed, limit=limit)
        assert place.asked() == again
        assert books(place.directory) == found


STARTS = st.lists(
    st.tuples(EDITS, st.sampled_from(["refuse", "rerun", "keep"]), st.one_of(st.none(), st.integers(1, 5))),
    min_size=1,
    max_size=3,
)


@settings(max_examples=8)
@given(LINES, STARTS)
@example([("a", "one"), (None, "two")], [([("insert", 0, (None, "two"))], "rerun", None)])
@example([("a", "one"), ("b", "two")], [([("edit", 0, "two"), ("edit", 1, None)], "keep", None), ([], "refuse", None)])
@example([("a", None), ("a", "one")], [([("edit", 0, "two")], "refuse", None), ([("delete", 0, None)], "rerun", None)])
def test_any_edit_of_an_input_loses_and_mixes_nothing(
    served: Served,
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[Line],
    starts: list[tuple[list[tuple[str, int, Any]], Changed, int | None]],
) -> None:
    """Lines inserted, deleted, edited and moved, with ids given twice or taken from a place, with lines that cannot be
    asked: `plan` foretells and `run` asks exactly the rows that have no end to this very question; no id ever has the
    answer to another question than was asked under it, and what is taken out is kept.
    """
    place, world = Place(tmp_path_factory.mktemp("place"), served), World()
    check_start(place, world, lines, "refuse", None)
    for edits, changed, limit in starts:
        lines = edited(lines, edits)
        check_start(place, world, lines, changed, limit)


# --- crash, then resume ------------------------------------------------------------------------------------------

ROWS: list[Line] = [(f"row-{n}", "bad" if n == 4 else f"question {n}") for n in range(12)]
ROWS[6:6] = [("row-2", "another"), (None, None)]
ROWS += [("twin-0", "question 0"), ("twin-11", "question 11"), ("twin-bad", "bad")]
ASKED = {custom_id: question for custom_id, question in reversed(ROWS) if custom_id and question}


@pytest.fixture(scope="module")
def past(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended; `index-N` is its index as it was after the Nth start."""
    place = Place(tmp_path_factory.mktemp("past"), served)
    place.write(ROWS)
    for number, limit in enumerate((1, 5, 9, len(ROWS))):
        place.start(limit=limit, dedupe=True)
        shutil.copy(place.directory / "checkpoint.sqlite", place.folder / f"index-{number}")
    (place.folder / "index-garbage").write_bytes(b"SQLite format 3\0 and no more")
    return place.folder


INDEXES = st.sampled_from(["none", "garbage", "0", "1", "2", "3"])
CRASHES = st.lists(
    st.tuples(
        st.floats(0, 1), st.floats(0, 1), INDEXES, st.sampled_from([b"", b"\0" * 700, b"\xff{}\n", b'{"id":"x'])
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip


@settings(max_examples=15)
@given(crashes=CRASHES, dedupe=st.booleans())
@example(crashes=[(1.0, 1.0, "3", b"")], dedupe=False)
@example(crashes=[(0.0, 0.0, "3", b"\0" * 700)], dedupe=False)
@example(crashes=[(0.5, 0.5, "none", b"")], dedupe=True)
def test_a_run_resumed_after_any_crash_is_the_run(
    past: Path,
    served: Served,
    tmp_path_factory: pytest.TempPathFactory,
    crashes: list[tuple[float, float, str, bytes]],
    *,
    dedupe: bool,
) -> None:
    """Each log cut at any byte, with a tail that a file system may leave, beside an index of any moment or none, and that
    twice over: the start after it asks the rows that the logs do not have, and no others (of equal ones with --dedupe
    one, and none where an answer is there); whole lines stay as they were; in the end every row is in one place, with
    the end of its own question.
    """
    place = Place(tmp_path_factory.mktemp("place"), served)
    shutil.copytree(past / "in.run", place.directory)
    place.input = past / "in.jsonl"  # the very file, so that an index of it is used
    for results_share, errors_share, index, tail in crashes:
        kept = Counter[str]()
        for name, share in (("results.jsonl", results_share), ("errors.jsonl", errors_share)):
            path = place.directory / name
            content = path.read_bytes()
            cut = content[: round(share * len(content))]
            rows = [json.loads(line) for line in cut.split(b"\n")[:-1]]
            kept.update(row["custom_id"] for row in rows if row["error"] is None)
            path.write_bytes(cut + (tail if name == "results.jsonl" else b""))
        for path in place.directory.glob("checkpoint.sqlite*"):
            path.unlink()
        if index != "none":
            shutil.copy(past / f"index-{index}", place.directory / "checkpoint.sqlite")
        before = place.asked()
        place.start(dedupe=dedupe)
        missing = [question for custom_id, question in ASKED.items() if custom_id not in kept]
        if dedupe:
            have = {ASKED[custom_id] for custom_id in kept} - {"bad"}
            missing = [question for question in dict.fromkeys(missing) if question not in have]
        assert place.asked() - before == place.names(missing)
        found = books(place.directory)
        assert len(found.results) + len(found.errors) == len(ROWS)
        place.check_answers(found, ASKED)
        assert audit(place.directory).problems == []
