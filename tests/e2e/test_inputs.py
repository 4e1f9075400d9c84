"""Inputs as they come: standard input, compressed files, odd bytes and hostile ids. Bodies arrive as they were written."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from kit.promises import books, check_questions
from kit.warm import Warm, warm
from kit.world import request_row, serving, write_jsonl

from batchrouter.emulator import Behaviour
from batchrouter.emulator.behaviour import Turn
from batchrouter.emulator.plays import Asked


class Listening(Behaviour):
    """An endpoint that remembers the bodies it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []

    def receive(self, asked: Asked, now: float, wall: float) -> Turn:
        if asked.method == "POST":
            self.bodies.append(asked.body)
        return super().receive(asked, now, wall)


@pytest.fixture(scope="module")
def shell() -> Iterator[Warm]:
    with warm() as shell:
        yield shell


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


# What bodies may look like; each has a `%s` of its own in its message. JSON of any make, sent as it stands.
BODIES = [
    '{"model":"gpt-5.4","messages":[{"role":"user","content":"%s"}]}',
    '{ "messages" : [ {"content":"%s","role":"user"} ] ,\t"model":"gpt-5.4"  }',
    '{"model":"gpt-5.4","messages":[{"role":"user","content":"%s \\u00e9 é \\/ \\" 😀 \\ud83d\\ude00"}]}',
    '{"model":"gpt-5.4","messages":[{"role":"user","content":"%s \u2028 \u2029 \u0085 \\u0000 \\r\\n \x7f"}]}',
    '{"model":"gpt-5.4","temperature":1.0,"z":123456789012345678901234,"x":1E+2,"y":-0,"messages":[{"role":"user","content":"%s"}]}',
    '{"model":"other","model":"gpt-5.4","messages":[{"role":"user","content":"%s"}],"custom":{"body":{"messages":[]}}}',
    '{"model":"gpt-5.4","messages":[{"role":"user","content":"%s lone \\ud83d end"}]}',
    '{"model":"gpt-5.4","stream":false,"n":1,"max_tokens":9,"unknown":[null,{}],"messages":[{"role":"user","content":"%s"}]}',
]  # fmt: skip
HOSTILE_IDS = [
    "", " ", "../../etc/passwd", "a\nb", "\u0000", "=cmd()", "row\u2028", "é😀", "\ud83d", '"', "\\", "x" * 5000, "null",
    "in.jsonl:1", "\x1b[2J", "{}", "A", "a", "a ", "\ufeff",
]  # fmt: skip


def test_bodies_arrive_byte_for_byte(shell: Warm, tmp_path: Path) -> None:
    """Whitespace, escapes, order, duplicate keys, large numbers, line separators, lone surrogates: nothing of a body is
    changed on its way, whether it is a batch row's or stands bare; BOM, CRLF, blank lines and a missing last newline
    are nobody's. Each row has one end, under the place or id that is its own, and a second start asks nothing.
    """
    sent, written = [], []
    for n, body in enumerate(BODIES):
        sent += [body % f"batch {n}", body % f"bare {n}"]
        written += [f'{{"custom_id":"b{n}" , "body": {sent[-2]}, "more":1}}', sent[-1], "", "  "]
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(written).rstrip().encode())
    endpoint = Listening()
    with serving(endpoint) as served:
        done = shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert done.returncode == 1  # the emulator refuses the lone surrogate
        assert sorted(endpoint.bodies) == sorted(body.encode() for body in sent)
        found = books(tmp_path / "in.run")
        assert found.answered | found.failed == {f"b{n}" for n in range(len(BODIES))} | {
            f"in.jsonl:{4 * n + 2}" for n in range(len(BODIES))
        }
        assert found.failed == {"b6", "in.jsonl:26"}
        assert [row["batchrouter"]["extra"] for row in found.results if row["custom_id"] == "b0"] == [{"more": 1}]
        assert shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 1
        assert len(endpoint.bodies) == len(sent)
        assert shell.run("verify", "in.run", cwd=tmp_path).returncode == 0


def test_any_text_is_an_id(shell: Warm, tmp_path: Path) -> None:
    """Empty, with control characters, a lone surrogate, another row's place, 5,000 letters: each gets its own answer, and
    is found again by the next start, a rebuilt index and `verify`.
    """
    rows = [{**request_row(n), "custom_id": custom_id} for n, custom_id in enumerate(HOSTILE_IDS)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving() as served:
        assert shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 0
        found = books(tmp_path / "in.run")
        assert found.answered == set(HOSTILE_IDS)
        check_questions(found, rows, served)
        (tmp_path / "in.run/checkpoint.sqlite").unlink()
        assert shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 0
        assert served.asked == len(HOSTILE_IDS)
        assert books(tmp_path / "in.run") == found
        assert shell.run("verify", "in.run", cwd=tmp_path).returncode == 0
        assert "\x1b" not in shell.run("status", "in.run", cwd=tmp_path).stdout


def test_an_id_that_another_row_has_by_its_place_is_a_duplicate(shell: Warm, tmp_path: Path) -> None:
    """`in.jsonl:2` given to line 1: the first stands, the other is named; neither gets the other's answer."""
    bare = request_row(2)["body"]
    write_jsonl(tmp_path / "in.jsonl", [{**request_row(1), "custom_id": "in.jsonl:2"}, bare])
    with serving() as served:
        assert shell.run("run", "in.jsonl", cwd=tmp_path, env=served.environment).returncode == 1
        found = books(tmp_path / "in.run")
        assert found.failure("in.jsonl:2") == "duplicate_custom_id"
        check_questions(found, [{**request_row(1), "custom_id": "in.jsonl:2"}], served)


def test_compressed_files_are_read_by_their_content(shell: Warm, tmp_path: Path) -> None:
    """Several gzip members, several Zstandard frames, whatever they are called, beside a plain file: one run, which
    resumes in any of them. One cut short is the input's fault: exit 2, with nothing sent.
    """
    rows = [request_row(n) for n in range(40)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(rows[:5])) + gzip.compress(lines(rows[5:10])))
    compress = zstd.compress
    (tmp_path / "b.jsonl.zst").write_bytes(compress(lines(rows[10:15])) + compress(lines(rows[15:20])))
    (tmp_path / "c.jsonl").write_bytes(compress(lines(rows[20:30])))
    (tmp_path / "d.gz").write_bytes(lines(rows[30:]))
    names = ("a.jsonl.gz", "b.jsonl.zst", "c.jsonl", "d.gz", "-o", "out")
    with serving() as served:
        for limit in (7, 13, 26, 40):
            done = shell.run("run", *names, "--limit", str(limit), cwd=tmp_path, env=served.environment)
            assert done.returncode == 0, done.stderr
            assert served.asked == limit
        found = books(tmp_path / "out")
        check_questions(found, rows, served)
        assert found.answered == {f"row-{n}" for n in range(40)}
        places = {(row["batchrouter"]["file"], row["batchrouter"]["line"]) for row in found.results}
        assert {("a.jsonl.gz", 10), ("b.jsonl.zst", 6), ("c.jsonl", 1), ("d.gz", 10)} <= places
        for name in names[:3]:
            content = (tmp_path / name).read_bytes()
            (tmp_path / f"cut-{name}").write_bytes(content[:-9])
            for command in ("run", "plan"):
                done = shell.run(command, f"cut-{name}", cwd=tmp_path, env=served.environment)
                assert done.returncode == 2, (name, done.stdout, done.stderr)
                assert f"cut-{name}" in done.stderr
        assert served.asked == 40


def test_standard_input_is_kept_and_resumed(shell: Warm, tmp_path: Path) -> None:
    """`-`: the first start keeps what it was given; a start with the same again, or with nothing, goes on where that one
    ended; with more, it asks what is new; with other questions, it refuses and keeps what it had.
    """
    rows = [request_row(n)["body"] for n in range(6)]
    named = [{"custom_id": f"stdin:{n + 1}", "body": body} for n, body in enumerate(rows)]
    directory = tmp_path / "stdin.run"
    with serving() as served:

        def start(content: list[dict[str, Any]], *options: str, command: str = "run") -> tuple[int, str]:
            done = shell.run(command, "-", *options, cwd=tmp_path, env=served.environment, stdin=lines(content))
            return done.returncode, done.stdout + done.stderr

        assert "4 rows: 4 to ask" in start(rows[:4], command="plan")[1]
        assert not directory.exists()
        assert start(rows[:4], "--limit", "2")[0] == 0
        assert served.asked == 2
        assert start([])[0] == 0
        assert served.asked == 4
        assert start(rows[:4])[0] == 0
        assert served.asked == 4
        assert "5 rows: 1 to ask" in start(rows[:5], command="plan")[1]
        assert start(rows[:5])[0] == 0
        assert served.asked == 5
        code, told = start(list(reversed(rows)))
        assert code == 2
        assert "stdin:1" in told
        assert shell.run("verify", "stdin.run", cwd=tmp_path).returncode == 0
        assert start([])[0] == 0
        assert served.asked == 5
        found = books(directory)
        assert found.answered == {f"stdin:{n}" for n in range(1, 6)}
        check_questions(found, named, served)
        assert shell.run("verify", "stdin.run", cwd=tmp_path).returncode == 0
        directory.rename(tmp_path / "elsewhere.run")
        assert shell.run("verify", "elsewhere.run", cwd=tmp_path).returncode == 0
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        assert shell.run("verify", "../elsewhere.run", cwd=elsewhere).returncode == 0


def test_verify_finds_the_inputs_from_any_folder(shell: Warm, tmp_path: Path) -> None:
    """A run whose inputs were named relatively is verified from elsewhere, also once folder and all were moved."""
    (tmp_path / "job").mkdir()
    write_jsonl(tmp_path / "job/in.jsonl", [request_row(n) for n in range(3)])
    with serving() as served:
        assert shell.run("run", "in.jsonl", cwd=tmp_path / "job", env=served.environment).returncode == 0
        assert shell.run("verify", "job/in.run", cwd=tmp_path).returncode == 0
        assert shell.run("verify", "job/in.run", "--repair", cwd=tmp_path).returncode == 0
        (tmp_path / "job").rename(tmp_path / "moved")
        assert shell.run("verify", "moved/in.run", cwd=tmp_path).returncode == 0
        (tmp_path / "moved/in.jsonl").unlink()
        done = shell.run("verify", "moved/in.run", cwd=tmp_path)
        assert done.returncode == 2
        assert "in.jsonl" in done.stderr


def test_names_that_are_no_text_are_names(shell: Warm, tmp_path: Path) -> None:
    """A file whose name is no UTF-8, a model with a lone surrogate: the rows have their ends, the totals are written, a
    rebuilt index knows them again, and every command finds words for them, on a terminal of ASCII too.
    """
    name = os.fsdecode(b"in\xff.jsonl")
    odd = {"model": "odd-\ud83d", "messages": [{"role": "user", "content": "x"}]}
    rows = [request_row(0), request_row(1)["body"], {"custom_id": "odd", "body": odd}, {"custom_id": "none"}]
    write_jsonl(tmp_path / name, rows)
    directory = tmp_path / os.fsdecode(b"in\xff.run")
    with serving() as served:
        for again in (False, True):
            env = {**served.environment, "PYTHONIOENCODING": "ascii"}
            done = shell.run("run", name, "--progress", "json", cwd=tmp_path, env=env)
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stderr
            texts: list[tuple[str | Path, ...]] = [("plan", name), ("verify", directory)]
            for command in texts if again else [*texts, ("plan", name, "--json"), ("status", directory, "--json")]:
                found = shell.run(*command, cwd=tmp_path, env=env)
                assert (found.returncode, found.stderr) == (0, ""), command
                assert "--json" not in command or json.loads(found.stdout)
            for path in directory.glob("checkpoint.sqlite*"):
                path.unlink()
            assert served.asked == 3
        books(directory)


def test_an_input_that_cannot_be_read_again_is_refused(shell: Warm, tmp_path: Path) -> None:
    """A pipe can be read once, and a run reads its input twice: exit 2, and how to give it instead."""
    os.mkfifo(tmp_path / "in.jsonl")
    for command in ("run", "plan"):
        done = shell.run(command, "in.jsonl", cwd=tmp_path, env={"WORLDROUTER_API_KEY": "sk-0123456789"})
        assert done.returncode == 2
        assert "standard input" in done.stderr


def test_an_empty_input_is_all_done(shell: Warm, tmp_path: Path) -> None:
    """No rows, or blank lines alone: exit 0 with a note, by `run`, `plan`, `verify` and `status`."""
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf\r\n\n  \r\n")
    with serving() as served:
        for command in (("plan", "in.jsonl"), ("run", "in.jsonl"), ("verify", "in.run"), ("status", "in.run")):
            done = shell.run(*command, cwd=tmp_path, env=served.environment)
            assert done.returncode == 0, done.stderr
            assert "0 rows" in done.stdout + done.stderr
        assert served.asked == 0
