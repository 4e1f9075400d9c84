"""The run directory: rows as CONTRACT 4 writes them, what a kill may leave, and what a failing disk may cost."""

from __future__ import annotations

import json
import math
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.scripted import chat, outcome, refusal, refused, reply, request, used

from batchrouter.errors import BusyError, DiskError
from batchrouter.index import ANSWERED, FAILED, Index
from batchrouter.ledger import Ledger
from batchrouter.records import Outcome, Reply, Usage

NOW_S = 1_795_380_180.1234


def plain(content: bytes) -> bytes:
    return content


def opened(directory: Path, redact: Callable[[bytes], bytes] = plain) -> Ledger:
    return Ledger.open(directory, redact=redact, now=lambda: NOW_S)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path / "run") as held:
        yield held


def lines(ledger: Ledger, name: str = "results.jsonl") -> list[dict[str, Any]]:
    """The rows of a log, read strictly."""

    def never(word: str) -> None:
        raise AssertionError(word)

    content = (ledger.directory / name).read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line, parse_constant=never) for line in content.split(b"\n")[:-1]]


def recorded(ledger: Ledger, ended: Outcome, name: str = "results.jsonl") -> dict[str, Any]:
    ledger.record(ended)
    return lines(ledger, name)[-1]


# --- rows as they are written ------------------------------------------------------------------------------------


def test_an_answer_is_an_openai_batch_output_row(ledger: Ledger) -> None:
    """To the last field of CONTRACT 4, in its order."""
    body = chat(usage=used(26, 9))
    answer = Reply(200, {"x-request-id": "req_1"}, body, 1.25, 0.31)
    row = request(6, custom_id="a", model="gpt-5.4")
    found = recorded(ledger, outcome(row, answer, attempts=2, usage=Usage(26, 9, 35), endpoint="api.example"))
    about = found.pop("batchrouter")
    assert found == {
        "id": str(row.identity),
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": body},
        "error": None,
    }
    usage = about.pop("usage")
    assert about == {
        "file": "in.jsonl", "line": 7, "model": "gpt-5.4", "endpoint": "api.example", "attempts": 2, "latency_s": 1.25,
        "ttft_s": 0.31, "finished_at": "2026-11-22T20:43:00.123Z", "truncated": False,
    }  # fmt: skip
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (26, 9, 35)
    assert found["id"].startswith("batch_req_")


def test_what_is_not_known_is_left_out(ledger: Ledger) -> None:
    """No `ttft_s` of a plain answer, no `usage` that nobody reported, no `extra` that was not there: not null."""
    about = recorded(ledger, outcome(request(), usage=None))["batchrouter"]
    assert not {"ttft_s", "usage", "extra"} & about.keys()
    assert None not in about.values()


def test_extra_keys_come_back(ledger: Ledger) -> None:
    """Whatever stood beside the body in the batch row, of any size."""
    extra = {"label": None, "n": 10**40, "s": "\ud83d"}
    assert recorded(ledger, outcome(request(extra=extra)))["batchrouter"]["extra"] == extra


@pytest.mark.parametrize("latency_s", [2.0, 0.0, 1e-9, 123456.7])
def test_floats_are_floats(ledger: Ledger, latency_s: float) -> None:
    """A field's type never varies: `2.0`, not `2`."""
    ledger.record(outcome(request(), Reply(200, {}, chat(), latency_s, latency_s)))
    about = lines(ledger)[0]["batchrouter"]
    assert isinstance(about["latency_s"], float)
    assert isinstance(about["ttft_s"], float)


REQUEST_IDS: list[tuple[dict[str, str], Any, str | None]] = [
    ({"x-request-id": "r"}, "b", "r"),
    ({}, "b", "b"),
    ({"x-request-id": ""}, "b", "b"),
    ({}, None, None),
    ({}, 7, None),
    ({}, ["x"], None),
    ({}, "", None),
]


@pytest.mark.parametrize(("headers", "body_id", "expected"), REQUEST_IDS)
def test_a_request_id_is_always_a_text(
    ledger: Ledger, headers: dict[str, str], body_id: Any, expected: str | None
) -> None:
    """The answer's header, else its body's id, else one made here."""
    found = recorded(ledger, outcome(request(), Reply(200, headers, chat(id=body_id), 0.1)))["response"]["request_id"]
    assert isinstance(found, str)
    assert found
    assert expected is None or found == expected


FAILURES: dict[str, tuple[Outcome, Any, Any]] = {
    "an HTTP error of its own": (outcome(request(), refused(400, "bad")), 400, None),
    "out of attempts": (
        outcome(request(), refused(503), error=("attempts_exhausted", "still 503")), 503, "attempts_exhausted",
    ),
    "timeout": (outcome(request())._replace(reply=None, error=("timeout", "too late")), None, "timeout"),
    "invalid row": (outcome(refusal()), None, "invalid_row"),
    "duplicate": (outcome(refusal(code="duplicate_custom_id")), None, "duplicate_custom_id"),
}  # fmt: skip


@pytest.mark.parametrize(("ended", "status", "code"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_have_the_same_shape(ledger: Ledger, ended: Outcome, status: Any, code: Any) -> None:
    """In errors.jsonl: an HTTP answer under `response` where there was one, `error` for what has none."""
    found = recorded(ledger, ended, "errors.jsonl")
    assert list(found) == ["id", "custom_id", "response", "error", "batchrouter"]
    assert (found["response"] and found["response"]["status_code"]) == status
    assert (found["error"] and found["error"]["code"]) == code
    assert lines(ledger, "results.jsonl") == []


HOSTILE: dict[str, Any] = {
    "lone surrogate": "a\ud83d",
    "separators": "\u2028\u2029\u0085\x1c",
    "controls": "\0\x1b[2J\r\n",
    "a huge integer": 10**4000,
    "large integers": [2**63, -(2**63) - 1, 2**64],
    "floats": [1e308, 5e-324, -0.0],
    "emoji": "😀é",
    "markup": "</script><script>alert(1)</script>",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_answer_is_one_strict_line(ledger: Ledger, content: Any) -> None:
    """What was in the answer is in the row, unchanged, on one line; ids of any kind beside it."""
    found = recorded(ledger, outcome(request(custom_id="i\ud800\n"), reply(body=chat(content, x=[content]))))
    assert found["response"]["body"]["choices"][0]["message"]["content"] == content
    assert found["response"]["body"]["x"] == [content]
    assert found["custom_id"] == "i\ud800\n"


def test_an_answer_as_deep_as_can_be_read_is_written(ledger: Ledger) -> None:
    """No nesting keeps a paid answer out of the file."""
    for depth in (200, 300, 490, 1000):
        deep: Any = 1
        for _ in range(depth):
            deep = [deep]
        assert "x" in recorded(ledger, outcome(request(depth), reply(body=chat(x=deep))))["response"]["body"]


def test_numbers_that_json_lacks_are_null(ledger: Ledger) -> None:
    """Every line of output is strict JSON."""
    found = recorded(ledger, outcome(request(), reply(body=chat(x=[math.nan, math.inf, "\ud83d"]))))
    assert found["response"]["body"]["x"] == [None, None, "\ud83d"]


def test_what_is_redacted_is_in_no_file(tmp_path: Path) -> None:
    """Whatever is written passes the redaction: rows, totals, events, run.json."""
    with opened(tmp_path / "run", lambda content: content.replace(b"sk-secret", b"[key]")) as ledger:
        ledger.record(outcome(request(custom_id="sk-secret"), reply(body=chat("sk-secret"))))
        ledger.record(outcome(request(1), refused(401, "sk-secret")))
        ledger.note("start", endpoint="sk-secret")
        ledger.write_run({"x": "sk-secret"})
        ledger.write_usage({})
    for path in (tmp_path / "run").iterdir():
        assert b"sk-secret" not in path.read_bytes()


def test_events_have_their_time_and_name(ledger: Ledger) -> None:
    """One JSON object a line."""
    ledger.note("cooldown", seconds=5.0)
    assert lines(ledger, "events.jsonl") == [{"at": "2026-11-22T20:43:00.123Z", "event": "cooldown", "seconds": 5.0}]


def test_events_that_cannot_be_written_are_told_once_and_end_nothing(tmp_path: Path) -> None:
    """A full disk for events alone does not stop a run."""
    with opened(tmp_path / "run") as ledger:
        write = os.write
        ledger.note("start")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", failing(28, "No space left on device"))
            for _ in range(5):
                ledger.note("cooldown")
        assert os.write is write
        assert len([note for note in ledger.notes if "events.jsonl" in note]) == 1
        ledger.record(outcome(request()))


def test_all_files_are_private(ledger: Ledger) -> None:
    """Answers are nobody else's business."""
    ledger.record(outcome(request()))
    ledger.note("start")
    ledger.write_run({})
    ledger.write_usage({})
    assert stat.S_IMODE(ledger.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in ledger.directory.iterdir()} == {0o600}


# --- holding the directory ---------------------------------------------------------------------------------------


def test_a_directory_is_held_by_one(tmp_path: Path) -> None:
    """The second is turned away with the holder's name; after the first has let go, it may."""
    with opened(tmp_path / "run"):
        with pytest.raises(BusyError, match=f"process {os.getpid()} since") as caught:
            opened(tmp_path / "run")
        assert caught.value.exit_code == 75
    opened(tmp_path / "run").close()


def test_a_lock_left_by_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    """What counts is the lock, not what the file says."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").write_text("process 1 since 2020\n")
    opened(tmp_path / "run").close()


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl", "events.jsonl", "lock"])
def test_links_in_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    """No file is written to through a symbolic link."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_bytes(b"precious\ntorn")
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(DiskError):
        opened(tmp_path / "run")
    assert (tmp_path / "precious").read_bytes() == b"precious\ntorn"


def test_a_file_in_the_directorys_place_is_an_error(tmp_path: Path) -> None:
    """Exit 7 with the path, before anything is sent."""
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(DiskError, match="run"):
        opened(tmp_path / "run")


# --- what a kill leaves ------------------------------------------------------------------------------------------


def rows(count: int) -> list[Outcome]:
    """Ends of rows, every third of them a failure."""
    return [
        outcome(request(n), refused(400) if n % 3 == 2 else reply(body=chat(f"answer {n}", usage=used(n, 1))))._replace(
            usage=None if n % 3 == 2 else Usage(n, 1, n + 1)
        )
        for n in range(count)
    ]


def replayed(ledger: Ledger) -> dict[int, int]:
    """Row -> state, as the log tells after a start."""
    keys = {request(n).identity.key: n for n in range(50)}
    found = [(keys[logged.key], logged.state) for logged in ledger.replay(None)]
    assert len(found) == len(dict(found))
    return dict(found)


EXPECTED = {n: FAILED if n % 3 == 2 else ANSWERED for n in range(9)}


@pytest.mark.parametrize("tail", [b'{"id": "batch_req_', b"\0" * 5000, b"\xff", b"{}" * 3000, b" "])
@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl", "events.jsonl"])
def test_a_torn_last_line_is_cut(tmp_path: Path, tail: bytes, name: str) -> None:
    """Half a row, NULs, garbage without a newline: gone, said so, and nothing is appended behind it."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(9):
            ledger.record(ended)
        ledger.note("start")
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with opened(tmp_path / "run") as ledger:
        assert path.read_bytes() == whole
        assert len(ledger.notes) == 1
        assert name in ledger.notes[0]
        assert replayed(ledger) == EXPECTED
        ledger.record(outcome(request(40)))
        assert replayed(ledger) == EXPECTED | {40: ANSWERED}


@pytest.mark.parametrize("name", ["results.jsonl", "errors.jsonl"])
def test_a_log_cut_anywhere_keeps_its_whole_lines(tmp_path: Path, name: str) -> None:
    """For every length to which a power cut may shorten a log: the whole rows stand, the rest is pending."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(9):
            ledger.record(ended)
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    mine = [n for n, state in EXPECTED.items() if (state == ANSWERED) == (name == "results.jsonl")]
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with opened(tmp_path / "run") as ledger:
            left = mine[: whole[:size].count(b"\n")]
            assert replayed(ledger) == {n: state for n, state in EXPECTED.items() if n not in mine or n in left}
            assert sum(total.succeeded + total.failed for total in ledger.totals.by_route.values()) == len(left) + (
                9 - len(mine)
            )


DAMAGE = [b"{}\n", b"\n", b"null\n", b'{"id":"batch_req_x"}\n', b"\0\0\0\n", b"[1,2]\n", b'"x"\n', b"\xff\xfe\n"]


@pytest.mark.parametrize("tail", DAMAGE)
def test_a_damaged_tail_is_cut(tmp_path: Path, tail: bytes) -> None:
    """Whole lines at the end that nobody here can have written: cut while replaying, and said so."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(9):
            ledger.record(ended)
    path = tmp_path / "run/results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail + tail)
    with opened(tmp_path / "run") as ledger:
        assert replayed(ledger) == EXPECTED
        assert path.read_bytes() == whole
        assert any("damaged" in note for note in ledger.notes)
        ledger.record(outcome(request(40)))
        assert replayed(ledger) == EXPECTED | {40: ANSWERED}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_inside_is_never_skipped_in_silence(tmp_path: Path, damage: bytes) -> None:
    """It is set aside and named with its line; the rows around it stand, and it is never read as a row."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(9):
            ledger.record(ended)
    path = tmp_path / "run/results.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*before[:2], damage, *before[3:]]))
    with opened(tmp_path / "run") as ledger:
        lost = [n for n, state in EXPECTED.items() if state == ANSWERED][2]
        assert replayed(ledger) == {n: state for n, state in EXPECTED.items() if n != lost}
        assert ledger.set_damage_aside()
        assert path.read_bytes() == b"".join([*before[:2], *before[3:]])
        assert (tmp_path / "run/damaged.jsonl").read_bytes() == damage
        assert any("results.jsonl:3" in note for note in ledger.notes)
        assert replayed(ledger) == {n: state for n, state in EXPECTED.items() if n != lost}
        assert not ledger.set_damage_aside()


def test_a_log_read_back_gives_the_totals_that_were_counted(tmp_path: Path) -> None:
    """The totals follow from the rows, whichever way they were come by."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(30):
            ledger.record(ended)
        ledger.record(outcome(refusal(31)))
        counted = ledger.totals.lines({})
    with opened(tmp_path / "run") as ledger:
        assert len(list(ledger.replay(None))) == 31
        assert ledger.totals.lines({}) == counted


@settings(max_examples=60)
@given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.floats(allow_nan=False), max_size=3),
    st.integers(0, 9),
    st.sampled_from([None, Usage(1, 2, 3, 4, 5)]),
)
def test_whatever_is_recorded_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, custom_id: str, extra: dict[str, Any], attempts: int, usage: Usage | None
) -> None:
    """Any id, any extra keys: the line belongs to the row that was recorded, with what it used."""
    row = request(custom_id=custom_id, extra=extra)
    with opened(tmp_path_factory.mktemp("run")) as ledger:
        ledger.record(outcome(row, usage=usage, attempts=attempts))
        [found] = ledger.replay(None)
        assert (found.key, found.digest) == row.identity
        total = ledger.totals.of_model("m")
        assert (total.succeeded, total.attempts) == (1, attempts)
        assert total.unknown_usage == (usage is None)
        assert found.at == 0


# --- a disk that fails -------------------------------------------------------------------------------------------


def failing(number: int, text: str) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, text)

    return fail


def test_a_full_disk_is_an_error_and_the_file_is_whole(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """DiskError with the reason; what was there stands, and when there is room again, the next row follows it."""
    ledger.record(outcome(request(0)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(28, "No space left on device"))
        with pytest.raises(DiskError, match="No space left"):
            ledger.record(outcome(request(1)))
    ledger.record(outcome(request(2)))
    assert replayed(ledger) == {0: ANSWERED, 2: ANSWERED}


def with_index(ledger: Ledger, count: int = 20) -> Index:
    """An index of rows 0 to count - 1, which the ledger follows."""
    index = Index.build(
        ledger.directory / "checkpoint.sqlite",
        ([0, *request(n).identity, n + 1, 0, 0, 0, 0] for n in range(count)),
    )
    index.finish_build({"marks": None, "totals": {}, "models": ["m"]})
    ledger.follow_with(index)
    return index


def booked(index: Index) -> set[int]:
    return {row.n for row, state, _ in index.rows_in_order() if state}


def test_a_checkpoint_books_what_was_recorded_and_syncs_first(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log, then the index: rows are in the index only after the fsync of their lines, with marks that fit."""
    index = with_index(ledger)
    synced: list[set[int]] = []
    fsync = os.fsync

    def watch(fd: int) -> None:
        synced.append(booked(index))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watch)
    for ended in rows(6):
        ledger.record(ended)
    make_durable = ledger.checkpoint()
    ledger.record(outcome(request(6)))
    make_durable()
    assert synced[0] == set()
    assert booked(index) == set(range(6))
    marks = index.meta()["marks"]
    assert ledger.fits(marks)
    assert [logged.state for logged in ledger.replay(marks)] == [ANSWERED]


@pytest.mark.parametrize("fails", ["fsync", "index"])
def test_after_a_failed_checkpoint_the_index_never_runs_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """A row whose booking failed is not skipped by a later one: after a start, no recorded row is pending."""
    with opened(tmp_path / "run") as ledger:
        index = with_index(ledger)
        ledger.record(outcome(request(0)))
        with monkeypatch.context() as patch:
            if fails == "fsync":
                patch.setattr(os, "fsync", failing(5, "Input/output error"))
            else:
                patch.setattr(index, "commit", failing(5, "disk I/O error"))
            with pytest.raises(DiskError):
                ledger.checkpoint()()
        ledger.record(outcome(request(1)))
        calls: list[int] = []
        fsync = os.fsync

        def watch(fd: int) -> None:
            calls.append(fd)
            fsync(fd)

        monkeypatch.setattr(os, "fsync", watch)
        with pytest.raises(DiskError):
            ledger.checkpoint()()
        assert fails == "index" or calls == []
        marks = index.meta()["marks"]
        assert 0 in booked(index) or not ledger.fits(marks) or marks is None
    with opened(tmp_path / "run") as ledger:
        assert replayed(ledger) == {0: ANSWERED, 1: ANSWERED}


def test_a_directory_that_is_gone_is_noticed_by_the_checkpoint(ledger: Ledger) -> None:
    """Deleted under the run: an error, not answers into nothing."""
    ledger.record(outcome(request(0)))
    (ledger.directory / "results.jsonl").unlink()
    with pytest.raises(DiskError, match=r"results\.jsonl"):
        ledger.checkpoint()()


def test_totals_and_settings_that_cannot_be_written_are_errors(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the old files stand."""
    ledger.write_usage({})
    before = (ledger.directory / "usage.jsonl").read_bytes()
    ledger.record(outcome(request(0)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(28, "No space left on device"))
        with pytest.raises(DiskError, match="No space"):
            ledger.write_usage({})
    assert (ledger.directory / "usage.jsonl").read_bytes() == before


def test_marks_fit_only_the_log_they_were_taken_from(tmp_path: Path) -> None:
    """Grown: yes. Shorter, or of the same length with other rows: no."""
    with opened(tmp_path / "run") as ledger:
        for ended in rows(6):
            ledger.record(ended)
        marks = ledger.marks()
        assert ledger.fits(marks)
        assert not ledger.fits(None)
        ledger.record(outcome(request(10)))
        assert ledger.fits(marks)
    path = tmp_path / "run/results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with opened(tmp_path / "run") as ledger:
        assert not ledger.fits(marks)
    path.write_bytes(whole.replace(b"answer 0", b"ANSWER 0"))
    with opened(tmp_path / "run") as ledger:
        assert not ledger.fits(marks)


# --- rows taken out ----------------------------------------------------------------------------------------------


def test_lines_are_moved_whole(tmp_path: Path) -> None:
    """Taken out of the log into superseded.jsonl; the others stay in their order, and what was paid stays counted."""
    rng = random.Random(4)
    with opened(tmp_path / "run") as ledger:
        for ended in rows(12):
            ledger.record(ended)
        starts = [logged.at for logged in ledger.replay(None) if logged.state == ANSWERED]
        tokens = ledger.totals.of_model("m").total_tokens
        chosen = sorted(rng.sample(starts, 3))
        before = (tmp_path / "run/results.jsonl").read_bytes()
        assert ledger.take_out("results.jsonl", chosen) == 3
        after = (tmp_path / "run/results.jsonl").read_bytes()
        moved = (tmp_path / "run/superseded.jsonl").read_bytes()
        assert sorted(before.splitlines()) == sorted(after.splitlines() + moved.splitlines())
        assert len(list(ledger.replay(None))) == 9
        total = ledger.totals.of_model("m")
        assert (total.succeeded, total.failed, total.total_tokens) == (5, 4, tokens)
        ledger.record(outcome(request(40)))
        assert len(list(ledger.replay(None))) == 10
