"""Whom a row may be sent by: the product, the floor and the rivals, as commands that are measured alike.

Rules of this file: a client is a name and a command; whoever did not answer every row has not been measured.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from .inputs import count_lines
from .measure import Cost, Failed, Process

_HERE: Final = Path(__file__).parent
_WITHOUT_UVLOOP: Final = "import sys; sys.modules['uvloop'] = None; from batchrouter.cli import main; main()"
_TIMEOUT_S: Final = 240.0

Command = Callable[[Path, Path, str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Client:
    """`command(source, directory, url, concurrency)` sends the rows of `source` and leaves its files in `directory`."""

    name: str
    command: Command

    def send(self, source: Path, work: Path, url: str, *, concurrency: int, rows: int) -> Cost:
        """What it costs to send these rows from nothing; raises Failed unless every one was answered."""
        directory = work / "out"
        shutil.rmtree(directory, ignore_errors=True)
        process = Process(self.command(source, directory, url, concurrency), work / "client.log")
        cost = process.wait(_TIMEOUT_S)
        answered = count_lines(directory / "results.jsonl")
        shutil.rmtree(directory, ignore_errors=True)
        if cost.exit_code != 0:
            raise process.failed(f"({self.name}) ended with {cost.exit_code} after {cost.wall_s:.1f} s")
        if answered != rows:
            raise Failed(f"{self.name} answered {answered:,} of {rows:,} rows")
        return cost


def product_command(source: Path, directory: Path, url: str, concurrency: int, *, uvloop: bool = True) -> Sequence[str]:
    """`batchrouter run` as a user types it; 0 leaves the concurrency to itself. Without uvloop: as if not installed."""
    program = ["-m", "batchrouter"] if uvloop else ["-c", _WITHOUT_UVLOOP]
    wanted = ["--concurrency", str(concurrency)] if concurrency else []
    return [sys.executable, *program, "run", str(source), "-o", str(directory), "--base-url", url, *wanted]


def _without(source: Path, directory: Path, url: str, concurrency: int) -> Sequence[str]:
    return product_command(source, directory, url, concurrency, uvloop=False)


def _floor(*options: str) -> Command:
    def command(source: Path, directory: Path, url: str, concurrency: int) -> Sequence[str]:
        told = ["--base-url", url, "--concurrency", str(concurrency), *options]
        return [sys.executable, str(_HERE / "floor.py"), str(source), str(directory), *told]

    return command


def rival(name: str, python: Path) -> Client:
    """Another client, by the Python that has it."""

    def command(source: Path, directory: Path, url: str, concurrency: int) -> Sequence[str]:
        told = ["--base-url", url, "--concurrency", str(concurrency)]
        return [str(python), str(_HERE / "rival_client.py"), name, str(source), str(directory), *told]

    return Client(name, command)


HAS_UVLOOP: Final = find_spec("uvloop") is not None
PRODUCT: Final = Client("batchrouter", _without)
PRODUCT_UVLOOP: Final = Client("batchrouter + uvloop", product_command)
FLOOR: Final = Client("floor", _floor())
FLOOR_UVLOOP: Final = Client("floor + uvloop", _floor("--uvloop"))
