"""Compressed files as plain ones: read forward, sought in, and never shorter than they were written."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Final, cast

from batchrouter.errors import DiskError, UsageError

_BUFFER_BYTES: Final = 2**20
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
        file.close()
        return _open_zstd(path)
    return file


def _open_zstd(path: Path) -> BinaryIO:
    """By the standard library's module, or its backport: unlike others, they tell that a frame was cut short."""
    try:
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise UsageError(".zst input needs an extra: pip install 'batchrouter[zstd]'") from None
    return cast("BinaryIO", io.BufferedReader(zstd.ZstdFile(path), _BUFFER_BYTES))


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """While inside: what keeps a file from being read on is raised as UsageError or DiskError, with its name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # a class that cannot be named without the extra
            raise
        raise UsageError(f"{path} is damaged: {error}") from None
