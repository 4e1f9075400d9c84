"""Rows and log laid over each other: what is to be done, after whatever happened to input, log or index between."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.scripted import chat, outcome, refused, reply, used

from batchrouter import plan as planning
from batchrouter.errors import BatchrouterError, UsageError
from batchrouter.intake import Shaping
from batchrouter.ledger import Ledger
from batchrouter.plan import Plan, refused_outcome
from batchrouter.records import Request, Usage
from batchrouter.sources import find_sources

PLAIN = Shaping()
NOW_S = 1_795_380_180.0


def row(custom_id: str | None, content: str = "hi", **rest: Any) -> str:
    """A batch row, or a bare body for no id, as a line without its end."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return json.dumps(body if custom_id is None else {"custom_id": custom_id, "body": body, **rest})


def same(content: bytes) -> bytes:
    return content


@dataclass
class Place:
    """A folder with input files and a run directory, and one start after another over them."""

    folder: Path

    @property
    def directory(self) -> Path:
        return self.folder / "in.run"

    def write(self, rows: Iterable[str], name: str = "in.jsonl") -> None:
        """The input, as another file of this name."""
        fresh = self.folder / "fresh"
        fresh.write_text("".join(f"{line}\n" for line in rows), "utf-8")
        fresh.replace(self.folder / name)

    @contextmanager
    def planned(
        self, *names: str, shaping: Shaping = PLAIN, limit: int | None = None, **how: Any
    ) -> Iterator[tuple[Plan, Ledger]]:
        """A start: the plan stands, the rows that cannot be asked are recorded."""
        sources = find_sources(
            tuple(str(self.folder / name) for name in names or ("in.jsonl",)), self.directory / "stdin.jsonl"
        )
        with Ledger.open(self.directory, redact=same, now=lambda: NOW_S) as ledger:
            yield planning.make(sources, shaping, ledger, limit=limit, **how), ledger

    def start(
        self,
        *names: str,
        end: Callable[[Request], str] = lambda _: "answered",
        checkpoint: bool = True,
        **how: Any,
    ) -> list[str]:
        """A whole start; gives the ids that were asked. `end` says how each row ends: `answered`, `failed`, or not."""
        asked = []
        with self.planned(*names, **how) as (plan, ledger):
            for refusal in plan.rows.refusals():
                ledger.record(refused_outcome(refusal))
            for request in plan.rows.requests():
                how_it_ends = end(request)
                if how_it_ends == "pending":
                    continue
                asked.append(request.custom_id)
                answer = reply(body=chat(content_of(request), usage=used()))
                ended = outcome(request, answer, usage=Usage(3, 2, 5), model=request.model)
                if how_it_ends == "failed":
                    ended = ended._replace(reply=refused(400), usage=None)
                ledger.record(ended)
            if checkpoint:
                ledger.checkpoint()()
            ledger.write_usage({})
        self.check()
        return asked

    def log(self, name: str = "results.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_bytes().split(b"\n")[:-1]]

    def check(self) -> None:
        """No row stands in the log twice, every answer is that of its own question, and the totals are the rows'."""
        results, errors = self.log(), self.log("errors.jsonl")
        ids = [found["id"][:34] for found in results + errors]
        assert len(ids) == len(set(ids)), "a row is in the log twice"
        usage = {line["model"]: line for line in self.log("usage.jsonl")}
        total = usage["*"]
        assert (total["succeeded"], total["failed"]) == (len(results), len(errors))
        superseded = self.log("superseded.jsonl") if (self.directory / "superseded.jsonl").exists() else []
        tokens = [
            found["batchrouter"].get("usage", {}).get("total_tokens", 0) for found in results + errors + superseded
        ]
        assert total["total_tokens"] == sum(tokens)

    def figures(self, **how: Any) -> dict[str, int]:
        with self.planned(**how) as (plan, _):
            names = ("total", "pending", "answered", "failed", "invalid", "duplicates", "removed")
            return {name: getattr(plan, name) for name in names if getattr(plan, name)}


def content_of(request: Request) -> str:
    return f"answer to {json.loads(request.body)['messages'][0].get('content')}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ids(*numbers: int) -> list[str]:
    return [f"row-{n}" for n in numbers]


def some(count: int) -> list[str]:
    return [row(f"row-{n}", f"question {n}") for n in range(count)]


def only(*numbers: int) -> Callable[[Request], str]:
    """Answer these, leave the others pending."""
    return lambda request: "answered" if request.custom_id in ids(*numbers) else "pending"


# --- starts and restarts -----------------------------------------------------------------------------------------


def test_a_fresh_start_asks_every_row_in_order(place: Place) -> None:
    """All of them, with their places; again: none."""
    place.write(some(5))
    assert place.figures() == {"total": 5, "pending": 5}
    assert place.start() == ids(0, 1, 2, 3, 4)
    assert place.start() == []
    assert place.figures() == {"total": 5, "answered": 5}
    assert [(found["batchrouter"]["file"], found["batchrouter"]["line"]) for found in place.log()] == [
        ("in.jsonl", n + 1) for n in range(5)
    ]


@pytest.mark.parametrize("checkpoint", [True, False], ids=["checkpointed", "killed"])
def test_a_resumed_start_asks_the_rest(place: Place, checkpoint: bool) -> None:  # noqa: FBT001  (a case's column)
    """Answered and failed rows are not asked again, whether the index knows of them or the log alone."""
    place.write(some(9))

    def end(request: Request) -> str:
        n = int(request.custom_id[4:])
        return ["answered", "failed", "pending"][n % 3]

    place.start(end=end, checkpoint=checkpoint)
    assert place.figures() == {"total": 9, "pending": 3, "answered": 3, "failed": 3}
    assert place.start() == ids(2, 5, 8)
    assert place.start() == []


def test_a_limit_is_no_part_of_the_rows(place: Place) -> None:
    """The first N: what is beyond them is not pending, and comes when the limit is raised."""
    place.write(some(9))
    assert place.figures(limit=4) == {"total": 4, "pending": 4}
    assert place.start(limit=4) == ids(0, 1, 2, 3)
    assert place.start(limit=4) == []
    assert place.figures(limit=6) == {"total": 6, "pending": 2, "answered": 4}
    assert place.start(limit=100) == ids(4, 5, 6, 7, 8)


def test_an_empty_input_is_a_plan(place: Place) -> None:
    """No rows, nothing to do."""
    place.write([])
    assert place.figures() == {}
    assert place.start() == []


def test_several_inputs_are_one_run(place: Place) -> None:
    """In the order given; files without ids are told apart by their names, and compressed ones are read alike."""
    place.write([row(None, "one"), row(None, "two")], "a.jsonl")
    (place.folder / "b.jsonl.gz").write_bytes(gzip.compress(f"{row(None, 'three')}\n{row('x', 'four')}".encode()))
    names = ("a.jsonl", "b.jsonl.gz")
    assert place.start(*names) == ["a.jsonl:1", "a.jsonl:2", "b.jsonl.gz:1", "x"]
    assert place.start(*names) == []
    assert place.start(*reversed(names)) == []


# --- the input changed -------------------------------------------------------------------------------------------


def test_rows_that_were_added_are_asked(place: Place) -> None:
    """At the end, in the middle, in front: those alone."""
    place.write(some(3))
    place.start()
    place.write([*some(3), row("row-3", "three")])
    assert place.start() == ids(3)
    place.write([row("row-9", "nine"), *some(3), row("row-3", "three"), row("row-4", "four")])
    assert place.start() == ids(9, 4)


def test_rows_that_were_removed_are_told_and_kept(place: Place) -> None:
    """Their answers stay in the log and in the totals; when they come back they are answered."""
    place.write(some(5))
    place.start(end=only(0, 1, 2, 3))
    place.write([some(5)[0], some(5)[4]])
    assert place.figures() == {"total": 2, "pending": 1, "answered": 1, "removed": 3}
    assert place.figures() == {"total": 2, "pending": 1, "answered": 1, "removed": 3}
    assert place.start() == ids(4)
    assert len(place.log()) == 5
    place.write(some(5))
    assert place.start() == []


def test_the_order_is_no_matter(place: Place) -> None:
    """Rows with ids of their own may move about, among files too."""
    place.write(some(6))
    place.start(end=only(1, 3))
    place.write(reversed(some(6)))
    assert place.start() == ids(5, 4, 2, 0)
    place.write(some(6)[:3], "b.jsonl")
    place.write(some(6)[3:], "a.jsonl")
    assert place.start("a.jsonl", "b.jsonl") == []


def test_an_answer_is_never_that_of_another_question(place: Place) -> None:
    """A body edited under an id that was answered: refused with the place, or asked again, or kept."""
    place.write(some(3))
    place.start()
    edited = [*some(2), row("row-2", "another question")]
    place.write(edited)
    with pytest.raises(UsageError, match=r"in\.jsonl:3"):
        place.start()
    assert place.start(changed="keep") == []
    assert place.start(changed="rerun") == ids(2)
    assert {found["response"]["body"]["choices"][0]["message"]["content"] for found in place.log()} == {
        "answer to question 0", "answer to question 1", "answer to another question",
    }  # fmt: skip
    assert len(place.log("superseded.jsonl")) == 1
    assert place.start() == []


def test_a_line_put_in_front_is_noticed_where_rows_have_no_ids(place: Place) -> None:
    """Then `<file>:<line>` names other questions: no answer moves to another row unseen."""
    place.write([row(None, "one"), row(None, "two")])
    place.start()
    place.write([row(None, "zero"), row(None, "one"), row(None, "two")])
    with pytest.raises(UsageError, match="another body"):
        place.start()


def test_a_shaping_that_changes_bodies_is_a_change(place: Place) -> None:
    """--override-model asks another question; --stream asks the same one."""
    place.write(some(2))
    place.start()
    assert place.start(shaping=Shaping(stream=True)) == []
    with pytest.raises(UsageError, match="another body"):
        place.start(shaping=Shaping(override_model="other"))


def test_a_file_that_changes_under_the_run_is_noticed(place: Place) -> None:
    """A row is asked only if its line is still the one that was planned."""
    place.write(some(3))
    with place.planned() as (plan, _):
        (place.folder / "in.jsonl").write_text(
            "".join(f"{line}\n" for line in some(3)).replace("question 1", "quest!on 1")
        )
        asked = plan.rows.requests()
        assert next(asked).custom_id == "row-0"
        with pytest.raises(UsageError, match=r"in\.jsonl:2 changed"):
            next(asked)


# --- asked again --------------------------------------------------------------------------------------------------


def failing(*numbers: int) -> Callable[[Request], str]:
    return lambda request: "failed" if request.custom_id in ids(*numbers) else "answered"


@pytest.mark.parametrize("checkpoint", [True, False], ids=["checkpointed", "killed"])
def test_failed_rows_beyond_a_limit_are_left_alone(place: Place, checkpoint: bool) -> None:  # noqa: FBT001  (a case's column)
    """`--retry` with `--limit`: they are not asked, so they stay failed, and nothing of theirs moves."""
    place.write(some(8))
    place.start(end=failing(1, 2, 6), checkpoint=checkpoint)
    assert place.start(retry=["all"], limit=4, checkpoint=checkpoint) == ids(1, 2)
    assert [found["custom_id"] for found in place.log("superseded.jsonl")] == ids(1, 2)
    assert [found["custom_id"] for found in place.log("errors.jsonl")] == ids(6)
    assert place.start(retry=["all"]) == ids(6)


@pytest.mark.parametrize("checkpoint", [True, False], ids=["checkpointed", "killed"])
def test_a_plan_that_is_refused_has_taken_nothing_out(place: Place, checkpoint: bool) -> None:  # noqa: FBT001  (as above)
    """Whoever has to approve of it sees what would be asked, those rows too; what was failed and answered still is."""
    place.write([*some(4), json.dumps({"custom_id": "n", "body": {"model": "other", "messages": [{}]}})])
    place.start(
        end=lambda request: "failed" if request.custom_id in {"n", "row-1"} else "answered", checkpoint=checkpoint
    )
    edited = [row("row-0", "another question"), *some(4)[1:]]
    place.write([*edited, json.dumps({"custom_id": "n", "body": {"model": "other", "messages": [{}]}})])
    before = {path.name: path.read_bytes() for path in place.directory.glob("*.jsonl")}
    seen = []

    def refuse(plan: Plan, models: Collection[str]) -> None:
        seen.append((plan.total, plan.pending, sorted(models)))
        raise UsageError("no")

    for limit, models in ((None, ["m", "other"]), (4, ["m"]), (1, ["m"])):
        with pytest.raises(UsageError, match="no"):
            place.start(retry=["all"], changed="rerun", limit=limit, approve=refuse)
        assert seen.pop() == (limit or 5, 0, models)
        assert {path.name: path.read_bytes() for path in place.directory.glob("*.jsonl")} == before
    assert place.start(retry=["all"], changed="rerun") == ["row-0", "row-1", "n"]


# --- rows that cannot be asked -----------------------------------------------------------------------------------


MISTAKES = ['{"broken', row("good"), "[]", row("good", "again"), row("good", "thrice"), row("fine"), "{}"]


def test_refused_rows_are_recorded_once_over_all_restarts(place: Place) -> None:
    """Invalid rows and duplicates: one line each, with their places, however often it is started."""
    place.write(MISTAKES)
    assert place.figures() == {"total": 7, "pending": 7, "invalid": 3, "duplicates": 2}
    for _ in range(3):
        place.start(checkpoint=False)
    for _ in range(2):
        (place.directory / "checkpoint.sqlite").unlink()
        place.start()
    errors = place.log("errors.jsonl")
    assert [(found["batchrouter"]["line"], found["error"]["code"]) for found in errors] == [
        (1, "invalid_row"), (3, "invalid_row"), (4, "duplicate_custom_id"), (5, "duplicate_custom_id"),
        (7, "invalid_row"),
    ]  # fmt: skip
    assert all("in.jsonl:2" in errors[n]["error"]["message"] for n in (2, 3))
    assert [found["custom_id"] for found in errors] == ["in.jsonl:1", "in.jsonl:3", "good", "good", "in.jsonl:7"]
    assert sorted(found["custom_id"] for found in place.log()) == ["fine", "good"]


def test_a_refused_row_that_was_mended_is_asked(place: Place) -> None:
    """Mended, or given a model: its refusal goes, as it was never asked; nothing of it stays behind as failed."""
    place.write(['{"broken', row("a"), json.dumps({"custom_id": "b", "body": {"messages": [{}]}})])
    place.start()
    assert len(place.log("errors.jsonl")) == 2
    place.write([row("c"), row("a"), json.dumps({"custom_id": "b", "body": {"messages": [{}]}})])
    assert place.start() == ["c"]
    assert place.start(shaping=Shaping(model="m")) == ["b"]
    assert place.log("errors.jsonl") == []
    assert len(place.log()) == 3


def test_a_row_that_became_invalid_after_its_answer_is_a_change(place: Place) -> None:
    """The answer is not thrown away, and not taken for that of the broken line."""
    place.write(some(2))
    place.start()
    place.write([some(2)[0], json.dumps({"custom_id": "row-1", "body": {"model": "m"}})])
    with pytest.raises(UsageError, match=r"in\.jsonl:2"):
        place.start()
    assert len(place.log()) == 2


def test_a_file_may_be_called_anything(place: Place) -> None:
    """A name that is no UTF-8: the rows are asked, and recorded under what can be written of it."""
    name = os.fsdecode(b"in\xff\n.jsonl")
    place.write([row(None, "one"), row("a", "two"), "{}"], name)
    assert len(place.start(name)) == 2
    assert place.start(name) == []


# --- log and index apart -----------------------------------------------------------------------------------------


def delete(place: Place) -> None:
    for path in place.directory.glob("checkpoint.sqlite*"):
        path.unlink()


def garbage(place: Place) -> None:
    delete(place)
    (place.directory / "checkpoint.sqlite").write_bytes(b"garbage" * 3000)


def empty(place: Place) -> None:
    delete(place)
    (place.directory / "checkpoint.sqlite").write_bytes(b"")


def cut(place: Place) -> None:
    path = place.directory / "checkpoint.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blot_pages(place: Place) -> None:
    path = place.directory / "checkpoint.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def blot_meta(place: Place) -> None:
    with sqlite3.connect(place.directory / "checkpoint.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '{\"results\": [1], \"errors\": 7}' WHERE name = 'marks'")
    connection.close()


def blot_totals(place: Place) -> None:
    with sqlite3.connect(place.directory / "checkpoint.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '{\"m\": {\"odd\": 1}}' WHERE name = 'totals'")
    connection.close()


def nothing(_: Place) -> None:
    return


def journal_only(place: Place) -> None:
    (place.directory / "checkpoint.sqlite-wal").write_bytes(b"garbage" * 100)


DAMAGES = [delete, garbage, empty, cut, blot_pages, blot_meta, blot_totals, journal_only, nothing]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_index_is_rebuilt_from_the_log(place: Place, damage: Callable[[Place], None]) -> None:
    """Deleted, emptied, cut, blotted: the plan is the same, no row is asked twice, and the totals are the rows'."""
    place.write([*some(12), "{}", row("row-3", "again")])
    place.start(end=lambda request: ["answered", "failed", "pending"][int(request.custom_id[4:]) % 3])
    before = place.figures()
    damage(place)
    assert place.figures() == before
    damage(place)
    assert place.start() == ids(2, 5, 8, 11)
    assert place.start() == []


@pytest.mark.parametrize("column", ["key", "digest", "start", "length", "line", "file", "kind"])
def test_an_index_that_is_wrong_about_a_row_is_left_behind(place: Place, column: str) -> None:
    """A row's place or identity garbled: at worst one start ends with `start it again`, and the next one is right."""
    place.write([*some(8)])
    place.start(end=only(0, 1))
    value = "zeroblob(12)" if column in {"key", "digest"} else "1"
    with sqlite3.connect(place.directory / "checkpoint.sqlite") as connection:
        connection.execute(f"UPDATE row SET {column} = {value} WHERE n = 5")
    connection.close()
    with contextlib.suppress(BatchrouterError):
        place.start()
    place.start()
    assert sorted(found["custom_id"] for found in place.log()) == ids(*range(8))
    assert place.log("errors.jsonl") == []


def test_an_older_copy_of_the_index_is_caught_up(place: Place) -> None:
    """Put back from before the last rows: those are read from the log, once."""
    place.write(some(8))
    place.start(end=only(0, 1, 2))
    shutil.copy(place.directory / "checkpoint.sqlite", place.folder / "older")
    place.start(end=only(3, 4, 5))
    shutil.copy(place.folder / "older", place.directory / "checkpoint.sqlite")
    assert place.figures() == {"total": 8, "pending": 2, "answered": 6}
    assert place.start() == ids(6, 7)


def test_a_log_that_lost_rows_gets_them_asked_again(place: Place) -> None:
    """The index is ahead of the log after a power cut: what is not in the log was not answered."""
    place.write(some(8))
    place.start()
    path = place.directory / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert place.figures() == {"total": 8, "pending": 3, "answered": 5}
    assert place.start() == ids(5, 6, 7)


@pytest.mark.parametrize("tail", [b'{"id":"batch_req_00', b"\0" * 9000, b"\0" * 100 + b"\n", b"{}\n[]\n"])
def test_a_torn_tail_costs_its_own_row_alone(place: Place, tail: bytes) -> None:
    """Half a row, NULs, or lines of nobody's at the end of the log."""
    place.write(some(4))
    place.start(end=only(0, 1))
    path = place.directory / "results.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert place.start() == ids(2, 3)
    assert place.start() == []


def test_a_log_that_was_deleted_begins_anew(place: Place) -> None:
    """results.jsonl deleted while the index stands: all its rows are asked again."""
    place.write(some(3))
    place.start()
    (place.directory / "results.jsonl").unlink()
    assert place.start() == ids(0, 1, 2)


# --- any history -------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("start"), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.booleans()),
    st.tuples(st.just("rows"), st.lists(st.integers(0, 11), unique=True, max_size=12)),
    st.tuples(st.just("damage"), st.sampled_from([delete, garbage, empty, cut, blot_pages, journal_only])),
    st.tuples(st.just("cut"), st.sampled_from(["results.jsonl", "errors.jsonl"]), st.integers(0, 300)),
)


@settings(max_examples=25)
@given(st.lists(STEPS, min_size=1, max_size=6))
def test_whatever_happened_between_no_answer_is_paid_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """Any sequence of starts that end here or there, inputs that grow, shrink and turn, damaged indexes and torn logs:
    a row is asked when, and only when, the log has no line of it.
    """
    place = Place(tmp_path_factory.mktemp("place"))
    current = list(range(12))
    place.write([some(12)[n] for n in current])
    for step in [*steps, ("start", set(range(12)), set(), True)]:
        match step:
            case "rows", current:
                place.write([some(12)[n] for n in current])
            case "start", answered, failed, checkpoint:
                done = ended(place)
                asked = place.start(end=ending(answered, failed), checkpoint=checkpoint)
                due = [n for n in current if n not in done and n in answered | failed]
                assert asked == ids(*due)
                assert ended(place) == done | set(due)
            case "damage", damage if (place.directory / "checkpoint.sqlite").exists():
                damage(place)
            case "cut", name, count if (path := place.directory / name).exists():
                path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - count)])


def ending(answered: set[int], failed: set[int]) -> Callable[[Request], str]:
    def end(request: Request) -> str:
        n = int(request.custom_id[4:])
        return "answered" if n in answered else "failed" if n in failed else "pending"

    return end


def ended(place: Place) -> set[int]:
    """The rows that the log has a whole line of."""
    found = set()
    for name in ("results.jsonl", "errors.jsonl"):
        path = place.directory / name
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
            found.add(int(json.loads(line)["custom_id"][4:]))
    return found


def test_planning_can_be_ended(place: Place) -> None:
    """A Ctrl-C during the plan: what `check` raises ends it, and the next start plans anew."""
    place.write(some(3))

    class StoppedError(BatchrouterError):
        pass

    def check() -> None:
        raise StoppedError("now")

    with pytest.raises(StoppedError):
        place.start(check=check)
    assert place.start() == ids(0, 1, 2)


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_damaged_compressed_file_is_an_error_of_the_input(place: Place, compress: Callable[[bytes], bytes]) -> None:
    """Cut short or garbled: exit 2 with the file's name, before anything is asked."""
    content = compress("\n".join(some(500)).encode())
    for damaged in (content[: len(content) // 2], content[:20] + b"\xff" * 50 + content[70:]):
        (place.folder / "in.jsonl").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"in\.jsonl"):
            place.start()


def test_labels_map_to_places(place: Place) -> None:
    """What a result says of its row is where the row is found."""
    place.write(["", row("a"), "  ", row("b")])
    place.start()
    places: Mapping[str, int] = {found["custom_id"]: found["batchrouter"]["line"] for found in place.log()}
    assert places == {"a": 2, "b": 4}
