"""The audit of a run directory: each kind of damage is found, is mended, and costs no row but its own."""

from __future__ import annotations

import asyncio
import io
import shutil
from pathlib import Path

import pytest
from kit.damage import DAMAGES, UNASKED, Damage
from kit.promises import books
from kit.world import request_row, write_jsonl

from batchrouter.audit import audit, repair
from batchrouter.batch import run_batch
from batchrouter.emulator import Emulator
from batchrouter.jsonl import read_lines
from batchrouter.keys import Secret
from batchrouter.settings import Settings

ROWS = [*(request_row(n) for n in range(8)), {**request_row(8, "[[fault:status_400]] x"), "custom_id": "bad"}]


def start(folder: Path, limit: int | None = None) -> int:
    """Run the batch; how many requests that took."""

    async def run() -> int:
        async with Emulator() as emulator:
            settings = Settings(base_url=emulator.base_url, limit=limit)
            await run_batch([str(folder / "in.jsonl")], folder / "in.run", settings, Secret(emulator.key))
            return emulator.stats.by_path["/v1/chat/completions"]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two starts; `older.sqlite` is the index between the two."""
    folder = tmp_path_factory.mktemp("finished")
    write_jsonl(folder / "in.jsonl", ROWS)
    start(folder, limit=3)
    shutil.copy(folder / "in.run/checkpoint.sqlite", folder / "older.sqlite")
    start(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "folder")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_finished_run_is_in_order(folder: Path) -> None:
    """And the audit changes nothing of it."""
    before = contents(folder / "in.run")
    found = audit(folder / "in.run")
    assert (found.rows, found.answered, found.failed, found.pending, found.problems) == (9, 8, 1, 0, [])
    assert contents(folder / "in.run") == before


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.do.__name__)
def test_damage_is_found_and_mended_and_costs_no_other_row(folder: Path, damage: Damage) -> None:
    """Found, with nothing changed; mended by `repair`, so that nothing is found any more; the next start asks the rows
    that it cost, and those alone, and the books are right.
    """
    directory = folder / "in.run"
    damage.do(directory)
    before = contents(directory)
    assert bool(audit(directory).problems) == damage.is_wrong
    assert contents(directory) == before
    repair(directory)
    mended = audit(directory)
    assert mended.problems == []
    assert (mended.rows, mended.pending) == (9, damage.cost)
    assert start(folder) == damage.cost
    found = books(directory)
    assert (found.answered, found.failed) == ({f"row-{n}" for n in range(8)}, {"bad"})


@pytest.mark.parametrize(
    "damage", [damage for damage in DAMAGES if damage.do in UNASKED], ids=lambda damage: damage.do.__name__
)
def test_a_start_asks_what_damage_cost_and_no_more(folder: Path, damage: Damage) -> None:
    """Without anybody having looked or repaired."""
    damage.do(folder / "in.run")
    assert start(folder) == damage.cost
    found = audit(folder / "in.run")
    assert (found.rows, found.pending) == (9, 0)


class Growing(io.BytesIO):
    """A file that somebody writes to whenever its end was reached."""

    def __init__(self, begun: bytes, rest: bytes) -> None:
        super().__init__(begun)
        self._rest = rest

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n") and self._rest:
            at = self.tell()
            self.seek(0, io.SEEK_END)
            self.write(self._rest)
            self.seek(at)
            self._rest = b""
        return line


def test_a_line_that_is_being_written_is_torn_and_not_damaged() -> None:
    """Read beside a run: what is there of the last line is told as that, though the rest of it comes meanwhile."""
    lines = list(read_lines(Growing(b'{"a":1}\n{"b"', b':2}\n{"c":3}\n')))
    assert [(line.raw, line.length) for line in lines] == [(b'{"a":1}', 8), (b'{"b"', 4)]
