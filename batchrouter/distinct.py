"""Are any two of very many keys equal? Told in bounded memory, and sooner than by sorting them all.

Rules of this file: only the first eight bytes of a key are kept, so that a yes means perhaps and a no is certain. Keys
come in sorted runs; of all runs, those in one range of values are looked at together.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Final

_KEPT_BYTES: Final = 8
_HELD_BYTES: Final = 2**20  # beyond it the runs wait in a file
_AT_ONCE: Final = 2**16  # keys that are looked at together


def sorted_run(keys: Iterable[bytes]) -> bytes:
    """What is kept of some keys, in order."""
    return array("Q", sorted(array("Q", b"".join([key[:_KEPT_BYTES] for key in keys])))).tobytes()


class Distinct:
    """Runs of keys; `folder` is where they wait when they are many."""

    def __init__(self, folder: Path) -> None:
        self._file = SpooledTemporaryFile(max_size=_HELD_BYTES, dir=str(folder))  # noqa: SIM115  (closed by `close`)
        self._counts: list[int] = []

    def add(self, run: bytes) -> None:
        """Take in what `sorted_run` gave; raises OSError."""
        self._file.write(run)
        self._counts.append(len(run) // _KEPT_BYTES)

    def may_repeat(self) -> bool:
        """Whether two keys may be equal; raises OSError."""
        ranges = sum(self._counts) // _AT_ONCE + 1
        ends = [2 ** (8 * _KEPT_BYTES) * number // ranges for number in range(1, ranges)]
        pieces: list[array[int]] = []  # of each run, where the ranges end in the file
        start = 0
        self._file.seek(0)
        for count in self._counts:
            run = self._run(count)
            pieces.append(array("Q", [start, *(start + bisect_left(run, end) for end in ends), start + count]))
            start += count
        return any(self._repeats(pieces, number) for number in range(ranges))

    def _repeats(self, pieces: list[array[int]], number: int) -> bool:
        values: set[int] = set()
        count = 0
        for piece in pieces:
            self._file.seek(piece[number] * _KEPT_BYTES)
            run = self._run(piece[number + 1] - piece[number])
            values.update(run)
            count += len(run)
        return len(values) != count

    def _run(self, count: int) -> array[int]:
        return array("Q", self._file.read(count * _KEPT_BYTES))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
