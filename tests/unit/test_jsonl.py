"""Bytes and lines: read with offsets, appended whole or not at all, cut, replaced."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.jsonl import Appender, end_of_last_line, line_number_at, read_lines, replace_file, sync_directory

CONTENTS = st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bc", b"\0", "\u2028".encode(), b"\x85", b"\x0b"])).map(
    b"".join
)


@given(CONTENTS, st.integers(1, 6))
def test_lines_are_the_content_between_newlines(content: bytes, longest: int) -> None:
    r"""Split at `\n` alone; starts and lengths slice the content back; too long a line is known by its place only."""
    found = list(read_lines(io.BytesIO(content), longest=longest))
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    assert b"".join(content[line.start : line.start + line.length] for line in found) == content
    for line, raw in zip(found, expected, strict=True):
        assert line.raw == (raw if len(raw) <= longest else None)
        assert content[line.start : line.start + line.length].removesuffix(b"\n") == raw


@given(CONTENTS, st.data())
def test_reading_may_begin_at_any_line(content: bytes, data: st.DataObject) -> None:
    """From the start of a line on: the same lines, counted from there."""
    lines = list(read_lines(io.BytesIO(content)))
    first = data.draw(st.integers(0, len(lines)))
    start = lines[first].start if first < len(lines) else len(content)
    again = list(read_lines(io.BytesIO(content), start=start))
    assert [(line.start, line.raw) for line in again] == [(line.start, line.raw) for line in lines[first:]]
    assert [line.number for line in again] == list(range(1, len(again) + 1))


def test_a_line_of_many_blocks_is_skipped_whole() -> None:
    """Longer than any buffer: the line after it is where it is."""
    content = b"x" * 3_000_000 + b"\nafter\n"
    assert [(line.start, line.raw) for line in read_lines(io.BytesIO(content), longest=10)] == [
        (0, None),
        (3_000_001, b"after"),
    ]


@given(CONTENTS, st.integers(0, 40))
def test_the_last_whole_line_ends_where_it_ends(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int
) -> None:
    """Of the first `size` bytes: just behind their last newline, or 0."""
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(content)
    size = min(size, len(content))
    assert end_of_last_line(path, size) == content[:size].rfind(b"\n") + 1


def test_the_last_line_is_found_across_blocks(tmp_path: Path) -> None:
    """A torn tail of several megabytes."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n" + b"\0" * 5_000_000)
    assert end_of_last_line(path, 5_000_004) == 4
    path.write_bytes(b"\0" * 3_000_000)
    assert end_of_last_line(path, 3_000_000) == 0


def test_line_numbers_are_found_again(tmp_path: Path) -> None:
    """The number of the line that starts at a byte, for messages that name a place."""
    path = tmp_path / "log"
    path.write_bytes(b"a\n\nbb\n" + b"c" * 2_000_000 + b"\nd\n")
    with path.open("rb") as file:
        for line in read_lines(file):
            assert line_number_at(path, line.start) == line.number


# --- appending ---------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Appender]:
    appender = Appender(tmp_path / "log.jsonl")
    yield appender
    appender.close()


def test_append_gives_where_the_lines_start(log: Appender) -> None:
    """Offsets into the file, and `size` at its end; a second opening goes on behind it."""
    assert [log.append(text) for text in (b"one\n", b"two\nthree\n", b"", b"four\n")] == [0, 4, 14, 14]
    assert log.path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    again = Appender(log.path)
    assert again.size == 19
    assert again.append(b"five\n") == 19
    again.close()


def test_new_files_are_private(log: Appender) -> None:
    """Nobody else reads them, whatever the umask."""
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_cut_and_go_on(log: Appender) -> None:
    """What is cut is gone, and the next line starts there."""
    log.append(b"one\ntwo\n")
    log.cut(4)
    assert log.append(b"three\n") == 4
    assert log.path.read_bytes() == b"one\nthree\n"


def test_a_short_write_goes_on_where_it_ended(log: Appender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes three bytes at a time gets all of them, once."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, bytes(content)[:3]))
    assert log.append(b"a line of some length\n") == 0
    assert log.append(b"more\n") == 22
    assert log.path.read_bytes() == b"a line of some length\nmore\n"


def test_a_disk_that_fills_in_the_middle_leaves_whole_lines(log: Appender, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every number of bytes that still fit: the error is raised, and the file ends with the line before."""
    log.append(b"whole\n")
    write = os.write
    for room in range(12):
        left = [room]

        def fill(fd: int, content: bytes, left: list[int] = left) -> int:
            if not left[0]:
                raise OSError(28, "No space left on device")
            taken = write(fd, bytes(content)[: left[0]])
            left[0] -= taken
            return taken

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fill)
            with pytest.raises(OSError, match="No space"):
                log.append(b"another line\n")
        assert log.path.read_bytes() == b"whole\n"
        assert log.size == 6
    assert log.append(b"after\n") == 6


def test_a_real_limit_of_the_system_leaves_whole_lines(tmp_path: Path) -> None:
    """A file size limit hit in the middle of a line, in a process of its own: EFBIG, and only whole lines stay."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from batchrouter.jsonl import Appender\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = Appender(Path(sys.argv[1]))\n"
        "count = 0\n"
        "try:\n"
        "    while True:\n"
        "        log.append(b'x' * 299 + b'\\n')\n"
        "        count += 1\n"
        "except OSError as error:\n"
        "    print(count, error.errno, log.size)\n"
    )
    path = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "27", "900"]
    assert path.read_bytes() == (b"x" * 299 + b"\n") * 3


def test_a_full_device_is_an_error() -> None:
    """/dev/full takes nothing and cannot be cut: an OSError all the same."""
    if Path("/dev/full").exists():
        log = Appender(Path("/dev/full"))
        with pytest.raises(OSError, match=r".+"):
            log.append(b"x\n")
        log.close()


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    """Whoever put one there does not get us to write somewhere else, whether its target exists or not."""
    target = tmp_path / "elsewhere"
    link = tmp_path / "log.jsonl"
    link.symlink_to(target)
    for _ in range(2):
        with pytest.raises(OSError, match=r".+"):
            Appender(link)
        target.write_bytes(b"mine\n")
    assert target.read_bytes() == b"mine\n"


def test_it_knows_when_its_file_is_gone(log: Appender) -> None:
    """Deleted, moved away, replaced by another or by a link: no longer in place."""
    assert log.is_in_place()
    moved = log.path.with_name("moved")
    log.path.rename(moved)
    assert not log.is_in_place()
    log.path.write_bytes(b"")
    assert not log.is_in_place()
    log.path.unlink()
    log.path.symlink_to(moved)
    assert not log.is_in_place()
    log.path.unlink()
    moved.rename(log.path)
    assert log.is_in_place()


def test_sync_happens_when_there_is_something_to_sync(log: Appender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once after an append, not again without one; a failure is raised."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log.sync()
    log.append(b"x\n")
    log.sync()
    log.sync()
    assert len(synced) == 1

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    log.append(b"y\n")
    with pytest.raises(OSError, match="Input/output"):
        log.sync()


def test_closing_twice_is_closing_once(log: Appender) -> None:
    """No other file's descriptor is closed by mistake."""
    log.close()
    log.close()


# --- replacing ---------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """New, then changed: private, with nothing left beside it."""
    path = tmp_path / "usage.jsonl"
    for content in (b"one\n", b"", b"x" * 300_000):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["usage.jsonl"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, or a sync that fails: the old content stands; the next replacement works."""
    path = tmp_path / "usage.jsonl"
    replace_file(path, b"old\n")

    def broken(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for name in ("write", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(OSError, match="No space"):
                replace_file(path, b"new content\n")
        assert path.read_bytes() == b"old\n"
    replace_file(path, b"new\n")
    assert path.read_bytes() == b"new\n"


def test_the_new_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content first, then the name, then the folder: a power cut shows the old file or the new one."""
    path = tmp_path / "usage.jsonl"
    replace_file(path, b"old\n")
    seen: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _fd: seen.append(path.read_bytes()))
    replace_file(path, b"new\n")
    assert seen == [b"old\n", b"new\n"]


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    """A link at the place, or at the place of the temporary file, points to nothing of ours afterwards."""
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    path = tmp_path / "usage.jsonl"
    path.symlink_to(target)
    path.with_name("usage.jsonl.tmp").symlink_to(target)
    replace_file(path, b"new\n")
    assert target.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert path.read_bytes() == b"new\n"


def test_a_folder_can_be_synced(tmp_path: Path) -> None:
    """And one that is not there is an error."""
    sync_directory(tmp_path)
    with pytest.raises(OSError, match=r".+"):
        sync_directory(tmp_path / "missing")
