"""Standard input, kept in the run directory: it is read once, and a run has to be able to resume.

Rules of this file: what was kept stays until another plan stands on what has come since.
"""

from __future__ import annotations

import filecmp
import os
import select
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from batchrouter.errors import DiskError

NAME: Final = "stdin.jsonl"
_LOOK_EVERY_S: Final = 0.2
_BLOCK_BYTES: Final = 2**20


def _nothing() -> None:
    """A check that lets everything pass."""


class StandardInput:
    """What was given on standard input, at `copy`."""

    def __init__(self, directory: Path) -> None:
        self.copy = directory / NAME
        self._older = directory / (NAME + ".older")

    def keep(self, stream: BinaryIO, check: Callable[[], None] = _nothing) -> None:
        """Take in all of `stream`; an empty one leaves what was kept before.

        `check` is called now and then, also while nothing comes; what it raises ends it. Raises DiskError.
        """
        fresh = self.copy.with_name(NAME + ".tmp")
        self.put_back()
        try:
            with fresh.open("wb") as file:
                while block := _read(stream.fileno(), check):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if self.copy.exists():
                if not fresh.stat().st_size or filecmp.cmp(fresh, self.copy, shallow=False):
                    fresh.unlink()
                    return
                self.copy.replace(self._older)
            fresh.replace(self.copy)
        except OSError as error:
            raise DiskError(f"{self.copy}: {error.strerror}") from None
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)

    def put_back(self) -> None:
        """Have what was kept before, as no plan stands on what has come since; raises DiskError."""
        try:
            if self._older.exists():
                self._older.replace(self.copy)
        except OSError as error:
            raise DiskError(f"{self._older}: {error.strerror}") from None

    def settle(self) -> None:
        """A plan stands on what is kept now; raises DiskError."""
        try:
            self._older.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"{self._older}: {error.strerror}") from None


def _read(fd: int, check: Callable[[], None]) -> bytes:
    check()
    while not select.select([fd], [], [], _LOOK_EVERY_S)[0]:
        check()
    return os.read(fd, _BLOCK_BYTES)
