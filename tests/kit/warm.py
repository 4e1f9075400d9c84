"""Commands without their start-up time: each is a process of its own, forked from one that has its modules already.

What a command does is what it does anywhere: its arguments, environment, folder, standard streams and exit code are its
own. Only the half second in which a fresh interpreter imports is saved, which is most of the time of a small run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.world import environment

TESTS = Path(__file__).resolve().parents[1]


class Warm:
    """Runs commands in children of one warm process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(
        self, *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end: `kit.world.run`, but sooner."""
        files = [self._folder / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin)
        argv = ["batchrouter", *map(str, arguments)]
        call = {"argv": argv, "cwd": str(cwd), "env": environment(env)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**call, "files": [str(path) for path in files]}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        stdout, stderr = (path.read_bytes().decode() for path in files[1:])
        return subprocess.CompletedProcess(argv, code, stdout, stderr)


@contextlib.contextmanager
def warm() -> Iterator[Warm]:
    """A warm process, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "kit.warm"], env=environment({"PYTHONPATH": _path()}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        with process:
            yield Warm(process, Path(folder))
            assert process.stdin is not None
            process.stdin.close()


def _path() -> str:
    return os.pathsep.join(part for part in (str(TESTS), os.environ.get("PYTHONPATH", "")) if part)


def _become(call: Mapping[str, Any]) -> None:
    """Turn this process, a child, into the command."""
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, (path, mode) in enumerate(zip(call["files"], modes, strict=True)):
        opened = os.open(path, mode, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(call["env"])
    os.chdir(call["cwd"])
    sys.argv = call["argv"]


def main() -> None:
    """Wait for calls; become each of them in a child."""
    importlib.import_module("batchrouter.cli.run")  # what takes its time: in the parent, once
    command = importlib.import_module("batchrouter.cli").main
    while line := os.read(0, 2**20):
        while not line.endswith(b"\n"):
            line += os.read(0, 2**20)
        child = os.fork()
        if not child:
            _become(json.loads(line))
            command()
        _, status = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
