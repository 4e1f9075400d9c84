"""Standard input kept in the run directory: whole or not at all, and what was kept before stays until a plan stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batchrouter.errors import DiskError
from batchrouter.standard_input import StandardInput


@pytest.fixture
def stdin(tmp_path: Path) -> StandardInput:
    return StandardInput(tmp_path)


def give(stdin: StandardInput, content: bytes) -> None:
    path = stdin.copy.parent / "given"
    path.write_bytes(content)
    with path.open("rb") as stream:
        stdin.keep(stream)
    path.unlink()


def names(stdin: StandardInput) -> list[str]:
    return sorted(path.name for path in stdin.copy.parent.iterdir())


def test_it_is_kept_and_stays(stdin: StandardInput) -> None:
    """Given once, the same again, or nothing: what was kept first is the very file that it was."""
    give(stdin, b"one\n")
    stdin.settle()
    inode = stdin.copy.stat().st_ino
    for content in (b"one\n", b""):
        give(stdin, content)
        stdin.settle()
        assert stdin.copy.read_bytes() == b"one\n"
        assert stdin.copy.stat().st_ino == inode
    assert names(stdin) == ["stdin.jsonl"]


def test_something_else_takes_its_place_when_a_plan_stands_on_it(stdin: StandardInput) -> None:
    """Until then what was kept before can be had back, also by the next start, if this one died."""
    give(stdin, b"one\n")
    stdin.settle()
    give(stdin, b"two\n")
    assert stdin.copy.read_bytes() == b"two\n"
    stdin.put_back()
    assert stdin.copy.read_bytes() == b"one\n"
    give(stdin, b"two\n")  # and now it is killed
    give(stdin, b"")
    assert stdin.copy.read_bytes() == b"one\n"
    give(stdin, b"two\n")
    stdin.settle()
    stdin.put_back()
    assert stdin.copy.read_bytes() == b"two\n"
    assert names(stdin) == ["stdin.jsonl"]


def test_a_wait_for_it_can_be_ended(stdin: StandardInput) -> None:
    """What `check` raises ends it though nothing comes, and nothing is kept of what came so far."""
    looked = 0

    def check() -> None:
        nonlocal looked
        looked += 1
        if looked == 4:
            raise KeyboardInterrupt

    reader, writer = os.pipe()
    os.write(writer, b"half a row")
    with os.fdopen(reader, "rb") as stream, pytest.raises(KeyboardInterrupt):
        stdin.keep(stream, check)
    os.close(writer)
    assert names(stdin) == []


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_disk(tmp_path: Path) -> None:
    """With the place in its words."""
    (tmp_path / "given").write_bytes(b"x")
    with (tmp_path / "given").open("rb") as stream, pytest.raises(DiskError, match=r"stdin\.jsonl"):
        StandardInput(tmp_path / "nowhere").keep(stream)
