"""Compressed files as plain ones: read forward, sought in, and never shorter than they were written.

Rules of this file: what is cut short or damaged raises EOFError, BadGzipFile or zlib.error, however the library in use
would have it.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from batchrouter.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES: Final = 2**20
_BLOCK_BYTES: Final = 2**14  # decompressed at one go: small, as it may become a thousand times as much
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def decompressed(file: BinaryIO, path: Path) -> BinaryIO:
    """`file`, open at its start, or what is compressed in it, as its content tells. Raises UsageError."""
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        file.close()
        return cast("BinaryIO", io.BufferedReader(gzip.GzipFile(path), _BUFFER_BYTES))
    if head == _ZSTD:
        return io.BufferedReader(_Zstd(file), _BUFFER_BYTES)
    return file


class _Zstd(io.RawIOBase):
    """What is in a file of Zstandard frames. The library's own reader cannot seek, nor tell that a frame was cut."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import zstandard  # noqa: PLC0415  (an extra)
        except ImportError:
            file.close()
            raise UsageError(".zst input needs an extra: pip install 'batchrouter[zstd]'") from None
        self._library = zstandard
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._at = 0
        self._frame: Any = None
        self._read = self._ready = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, though going back means to begin anew."""
        return True

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; from the start or from here."""
        target = offset + self._at if whence == io.SEEK_CUR else offset
        if target < self._at:
            self._begin()
        skipped = bytearray(_BUFFER_BYTES)
        while self._at < target and self.readinto(memoryview(skipped)[: target - self._at]):
            pass
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer` as far as may be; 0 at the end. Raises EOFError for a frame that is cut short or damaged."""
        while not self._ready and self._advance():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._at += count
        return count

    def _advance(self) -> bool:
        """Decompress a block more; false at the end."""
        self._read = self._read or self._file.read(_BLOCK_BYTES)
        if not self._read:
            if self._frame is not None:
                raise EOFError("it ends in the middle")
            return False
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(self._read)
        except self._library.ZstdError as error:
            raise EOFError(str(error)) from None
        self._read = b""
        if self._frame.eof:
            self._read, self._frame = self._frame.unused_data, None
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        super().close()
