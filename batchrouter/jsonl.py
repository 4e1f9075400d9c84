r"""Bytes <-> lines: read with offsets, append whole lines, cut a torn tail, replace a small file atomically.

Rules of this file: a line ends at `\\n` and nowhere else (not at U+2028 and its kin); every write is whole or undone;
an OSError is the caller's to name. New files are private (0600) and never reached through a symbolic link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

BOM: Final = b"\xef\xbb\xbf"  # may stand before the first line
LONGEST_LINE_BYTES: Final = 256 * 2**20
_BLOCK_BYTES: Final = 2**20


class Line(NamedTuple):
    r"""One line: its number from 1, where it starts, and its bytes without the `\\n` (null: longer than the bound)."""

    number: int
    start: int
    raw: bytes | None
    length: int


class Stretch(NamedTuple):
    r"""Lines that stand one after another, each ended by `\n`: the first one's number and start, and their bytes."""

    first: int
    start: int
    raws: list[bytes]


def read_lines(file: BinaryIO, *, start: int = 0, first: int = 1, longest: int = LONGEST_LINE_BYTES) -> Iterator[Line]:
    """The lines from byte `start` on, blank ones too: a line must begin there, which is numbered `first`."""
    for stretch in read_stretches(file, start=start, first=first, longest=longest):
        if isinstance(stretch, Line):
            yield stretch
            continue
        at = stretch.start
        for number, raw in enumerate(stretch.raws, stretch.first):
            length = len(raw) + 1
            yield Line(number, at, raw, length)
            at += length


def read_stretches(
    file: BinaryIO, *, start: int = 0, first: int = 1, longest: int = LONGEST_LINE_BYTES
) -> Iterator[Stretch | Line]:
    """The same lines, many at a time; a line that is too long, or has no end, comes by itself."""
    if start or first != 1:
        file.seek(start)
    number = first
    while block := file.read(_BLOCK_BYTES):
        if not block.endswith(b"\n"):
            block += file.readline(longest + 1)
        lines = block.split(b"\n")
        rest = lines.pop()  # nothing, or the file's last line, or the beginning of one that is too long
        if lines and max(map(len, lines)) <= longest:
            yield Stretch(number, start, lines)
        else:
            at = start
            for place, raw in enumerate(lines, number):
                yield Line(place, at, raw if len(raw) <= longest else None, len(raw) + 1)
                at += len(raw) + 1
        number += len(lines)
        start += len(block) - len(rest)
        if rest:
            length = len(rest)
            if length <= longest:  # the last line; a file that grows meanwhile has no end of it to offer
                yield Line(number, start, rest, length)
                return
            while not block.endswith(b"\n") and (block := file.readline(_BLOCK_BYTES)):
                length += len(block)
            yield Line(number, start, None, length)
            start += length
            number += 1


class Appender:
    """An append-only file of whole lines.

    `size` is where the last whole line ends. A failed or short write is undone by cutting back to it, so that
    nothing is ever appended after a torn line.
    """

    __slots__ = ("_fd", "path", "size", "synced")

    def __init__(self, path: Path) -> None:
        """Open or create; raises OSError, also where `path` is a symbolic link."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)
        self.path = path
        self.size = os.fstat(self._fd).st_size
        self.synced = self.size

    def append(self, lines: bytes) -> int:
        r"""Write whole lines (ending in `\\n`), return the offset where they start; raises OSError, file whole."""
        start = self.size
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:] if written else lines)
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        self.size = start + written
        return start

    def cut(self, size: int) -> None:
        """Drop everything from byte `size` on, durably."""
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
        self.size = self.synced = size

    def sync(self) -> None:
        """Make what was appended survive a power cut. Raises OSError; a failed fsync must not be tried again."""
        size = self.size
        if size != self.synced:
            os.fsync(self._fd)
            self.synced = size

    def is_in_place(self) -> bool:
        """Whether `path` still names this very file (false: it was deleted, moved or replaced)."""
        ours = os.fstat(self._fd)
        try:
            there = self.path.lstat()
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def close(self) -> None:
        """Let go of the file; what is not synced is left to the system."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def end_of_last_line(path: Path, size: int) -> int:
    """Where the last whole line of the first `size` bytes ends: a torn line begins there (0 when there is none)."""
    with path.open("rb") as file:
        end = size
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
    return 0


def line_number_at(path: Path, start: int) -> int:
    """The number, from 1, of the line that starts at byte `start`."""
    number = 1
    with path.open("rb") as file:
        while start > 0 and (block := file.read(min(start, _BLOCK_BYTES))):
            number += block.count(b"\n")
            start -= len(block)
    return number


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, a kill or a power cut sees the old file or the new one, whole."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make created, renamed and deleted names in `path` survive a power cut."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what was written to `path`, by whomever, survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
