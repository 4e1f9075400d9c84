"""However a run is stopped, or looked at: what is in flight is recorded or pending, nobody is blamed, and the words and
exit codes are those of the contract.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import pty
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from kit.promises import books, strict_lines
from kit.warm import Warm, warm
from kit.world import (
    PATIENCE_S,
    Served,
    check_answers,
    command,
    environment,
    lines_in,
    request_row,
    run,
    serving,
    wait_until,
    write_jsonl,
)

from batchrouter.cli.run import to_end
from batchrouter.emulator import Behaviour, Latency

FOR_EVER = Latency(60.0)
AT_ONCE = Latency(0.0)


@pytest.fixture(scope="module")
def shell() -> Iterator[Warm]:
    with warm() as shell:
        yield shell


@contextlib.contextmanager
def started(*arguments: str, cwd: Path, served: Served, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command with standard streams of its own; killed with the block if it still runs."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(served.environment),
        **streams,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE_S)


def set_latency(served: Served, latency: Latency) -> None:
    served.call(lambda emulator: setattr(emulator, "latency", latency))


def check_finishes(shell: Warm, folder: Path, served: Served, count: int) -> None:
    """The same command again asks what is left: every row is answered once, by its own answer."""
    set_latency(served, AT_ONCE)
    done = shell.run("run", "in.jsonl", cwd=folder, env=served.environment)
    assert done.returncode == 0, done.stderr
    check_answers(folder / "in.run", [request_row(n) for n in range(count)], served)
    books(folder / "in.run")


def test_a_run_may_be_looked_at_while_it_runs(shell: Warm, tmp_path: Path) -> None:
    """`status`, `verify` and `plan` beside a running process tell what is so and disturb nothing; a second `run` and a
    repair are turned away by name; `status --watch` follows to the end. Suspended for longer than the time limits and
    woken again, the run goes on and no row has failed.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(60)])
    with serving(Behaviour(latency=Latency(0.1))) as served:
        options = ("--concurrency", "4", "--timeout", "0.6s", "--idle-timeout", "0.6s")
        with contextlib.ExitStack() as held:
            here = partial(started, cwd=tmp_path, served=served)
            process = held.enter_context(here("run", "in.jsonl", *options, stderr=subprocess.PIPE))
            wait_until(lambda: lines_in(tmp_path / "in.run/results.jsonl") >= 5)
            watch = held.enter_context(here("status", "in.run", "--watch", "--json", stdout=subprocess.PIPE))
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.8)  # as a laptop's lid does, but for longer than --timeout
            seen = json.loads(shell.run("status", "in.run", "--json", cwd=tmp_path).stdout)
            written = lines_in(tmp_path / "in.run/results.jsonl")
            assert (seen["running"], seen["rows"], seen["answered"]) == (process.pid, 60, written)
            assert seen["pending"] == 60 - written
            assert f"running as process {process.pid}" in shell.run("status", "in.run", cwd=tmp_path).stdout
            checked = shell.run("verify", "in.run", cwd=tmp_path)
            assert checked.returncode == 0, checked.stdout
            assert f"{written} answered, 0 failed, {60 - written} pending" in checked.stdout
            planned = json.loads(shell.run("plan", "in.jsonl", "--json", cwd=tmp_path).stdout)
            assert (planned["new"], planned["answered"]) == (60 - written, written)
            for arguments in (("run", "in.jsonl"), ("verify", "in.run", "--repair")):
                turned_away = shell.run(*arguments, cwd=tmp_path, env=served.environment)
                assert turned_away.returncode == 75
                assert f"process {process.pid} since 20" in turned_away.stderr
            process.send_signal(signal.SIGCONT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, stderr
            watched, _ = watch.communicate(timeout=PATIENCE_S)
            assert watch.returncode == 0
        told = [json.loads(line) for line in watched.splitlines()]
        assert told[-1]["running"] is None
        assert told[-1]["answered"] == 60
        assert served.asked == 60  # what was in flight when it was suspended is not asked again
        check_answers(tmp_path / "in.run", [request_row(n) for n in range(60)], served)
        books(tmp_path / "in.run")


def test_a_closed_terminal_stops_a_run_cleanly(shell: Warm, tmp_path: Path) -> None:
    """The window is closed: what is in flight is recorded, exit 129, nothing fails; a bar is shown, though
    the terminal has no width, and one on a terminal that is gone breaks nothing.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(40)])
    with serving(Behaviour(latency=Latency(0.3))) as served:
        master, slave = pty.openpty()
        with started(
            "run", "in.jsonl", "--concurrency", "4", cwd=tmp_path, served=served, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as process:  # fmt: skip
            os.close(slave)
            shown = os.read(master, 10_000)
            wait_until(lambda: lines_in(tmp_path / "in.run/results.jsonl") >= 4)
            while b"rows" not in shown:
                shown += os.read(master, 10_000)
            os.close(master)
            assert process.wait(PATIENCE_S) == 129
        found = books(tmp_path / "in.run")
        assert found.errors == []
        assert served.asked == len(found.results) < 40
        assert strict_lines(tmp_path / "in.run/events.jsonl")[-1]["reason"].startswith("stopped by the terminal")
        check_finishes(shell, tmp_path, served, 40)


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    """Who starts it with SIGHUP ignored wants it to go on: it does."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(40)])
    with serving(Behaviour(latency=Latency(0.1))) as served:
        with started(
            "run", "in.jsonl", "--concurrency", "8", cwd=tmp_path, served=served, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        ) as process:  # fmt: skip
            wait_until(lambda: lines_in(tmp_path / "in.run/results.jsonl") >= 8)
            process.send_signal(signal.SIGHUP)
            assert process.wait(PATIENCE_S) == 0
        check_answers(tmp_path / "in.run", [request_row(n) for n in range(40)], served)


def test_a_second_signal_leaves_at_once(shell: Warm, tmp_path: Path) -> None:
    """Whatever the first was: within about a second, though no answer comes, with the code of the first; all rows are
    pending, and no cancelled request is a failed row.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(30)])
    with serving(Behaviour(latency=FOR_EVER)) as served:
        with started(
            "run", "in.jsonl", "--concurrency", "30", cwd=tmp_path, served=served, stderr=subprocess.PIPE
        ) as process:
            wait_until(lambda: served.asked == 30)
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)  # a person's second Ctrl-C
            asked_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=PATIENCE_S)
            assert time.monotonic() - asked_s < 1.5
        assert process.returncode == 129
        assert b"stopped by" in stderr
        assert b"to go on: " in stderr
        assert b"30 pending" in stderr
        for word in (b"Traceback", b"Cancelled", b"Exception"):
            assert word not in stderr
        found = books(tmp_path / "in.run")
        assert (found.results, found.errors) == ([], [])
        check_finishes(shell, tmp_path, served, 30)


def test_ctrl_c_raises_nothing_in_what_is_being_loaded(tmp_path: Path) -> None:
    """A compiled module may crash on it: the process ends there and then, with 130 and no word."""
    module = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nfinally:\n    print('raised')\n"
    (tmp_path / "orjson.py").write_text(module)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = run("plan", "in.jsonl", cwd=tmp_path, env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_ends_the_wait_for_standard_input(tmp_path: Path) -> None:
    """`run -` whose other end says nothing for ever: a first Ctrl-C is enough, exit 130; nothing is kept of it."""
    with (
        serving() as served,
        started("run", "-", cwd=tmp_path, served=served, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(json.dumps(request_row(0)).encode() + b"\n")
        process.stdin.flush()
        wait_until((tmp_path / "stdin.run/lock").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert served.asked == 0
        assert not (tmp_path / "stdin.run/stdin.jsonl").exists()


def test_a_reader_that_leaves_ends_the_showing_and_not_the_run(tmp_path: Path) -> None:
    """`run --progress json | head -1`: the run goes on to its end, exit 0, and complains of nothing."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(40)])
    with serving(Behaviour(latency=Latency(0.3))) as served:
        with started(
            "run", "in.jsonl", "--progress", "json", "--concurrency", "8", cwd=tmp_path, served=served,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["event"]
            process.stdout.close()
            stderr = process.stderr.read()
            assert process.wait(PATIENCE_S) == 0, stderr
        assert b"40 rows: 40 answered" in stderr
        for word in (b"Traceback", b"Broken", b"Exception"):
            assert word not in stderr
        check_answers(tmp_path / "in.run", [request_row(n) for n in range(40)], served)


def test_closed_streams_are_no_reason_to_fail(tmp_path: Path) -> None:
    """Started with all standard streams closed, as some daemons do: the rows are answered, and nothing else is written
    into the files of the run.
    """
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(3)])
    with serving() as served:
        words = " ".join(command("run", "in.jsonl", "--progress", "json"))
        done = subprocess.run(
            ["sh", "-c", f"{words} <&- >&- 2>&-"], cwd=tmp_path, env=environment(served.environment), capture_output=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check_answers(tmp_path / "in.run", [request_row(n) for n in range(3)], served)
        books(tmp_path / "in.run")


def test_a_run_directory_that_goes_ends_the_run(tmp_path: Path) -> None:
    """Deleted under it: exit 7 within seconds, rather than paying for answers that nobody will find."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n) for n in range(2000)])
    with serving(Behaviour(latency=Latency(0.2))) as served:
        with started(
            "run", "in.jsonl", "--concurrency", "4", cwd=tmp_path, served=served, stderr=subprocess.PIPE
        ) as process:
            wait_until(lambda: lines_in(tmp_path / "in.run/results.jsonl") >= 4)
            shutil.rmtree(tmp_path / "in.run")
            gone_s = time.monotonic()
            _, stderr = process.communicate(timeout=PATIENCE_S)
            assert time.monotonic() - gone_s < 5
        assert process.returncode == 7
        assert b"results.jsonl" in stderr
        assert b"Traceback" not in stderr
        assert not (tmp_path / "in.run").exists()


def test_no_collection_looks_at_what_is_loaded() -> None:
    """A full one would hold up the loop for 25 ms, for nothing: modules and their classes stay to the end."""

    async def frozen() -> int:
        return gc.get_freeze_count()

    try:
        assert to_end(frozen()) > 10_000
    finally:
        gc.unfreeze()
