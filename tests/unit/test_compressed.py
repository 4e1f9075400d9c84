"""Compressed files read as plain ones: every byte, from any place, or an error; never an early end."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.compressed import damage_told, decompressed
from batchrouter.errors import UsageError

PLAIN = b"".join(b'{"n":%d,"x":"%s"}\n' % (n, b"abc" * (n % 7)) for n in range(3000))


def frames(content: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    """Two frames, one of them empty, and the rest."""
    return compress(content[:5000]) + compress(b"") + compress(content[5000:])


BARE = {int(zstd.CompressionParameter.content_size_flag): 0, int(zstd.CompressionParameter.checksum_flag): 1}
MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": lambda content: frames(content, gzip.compress),
    "zstd": lambda content: frames(content, zstd.compress),
    "zstd without sizes": lambda content: frames(content, partial(zstd.compress, options=BARE)),
}


@pytest.fixture(scope="module", params=MAKERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(MAKERS[request.param](PLAIN))
    return path


def opened(path: Path) -> io.BufferedIOBase:
    file = decompressed(path.open("rb"), path)
    assert isinstance(file, io.BufferedIOBase)
    return file


def test_all_is_read(path: Path) -> None:
    """To the last byte, line by line, whatever the name says."""
    with opened(path) as file:
        assert list(file) == PLAIN.splitlines(keepends=True)


@given(st.lists(st.tuples(st.integers(0, len(PLAIN) + 10), st.integers(0, 9000)), max_size=6))
def test_any_place_can_be_gone_to(path: Path, reads: list[tuple[int, int]]) -> None:
    """Forward, back, beyond the end: what is read there is what stands there."""
    with opened(path) as file:
        for at, count in reads:
            file.seek(at)
            assert file.read(count) == PLAIN[at : at + count]


@pytest.mark.parametrize("maker", ["gzip", "zstd", "zstd without sizes"])
def test_a_file_cut_anywhere_is_no_shorter_file(tmp_path: Path, maker: str) -> None:
    """Cut in the middle of a frame it is an error; only between two is it a whole file."""
    content = b"".join(b"line %d\n" % n for n in range(12))
    whole = MAKERS[maker](content)
    path = tmp_path / "file"
    fine = 0
    for size in range(5, len(whole)):
        path.write_bytes(whole[:size])
        try:
            with damage_told(path), opened(path) as file:
                found = file.read()
        except UsageError:
            continue
        fine += 1
        assert found == content
    assert fine <= 2  # behind the first frame and the second, as what follows is empty here


@pytest.mark.parametrize("maker", ["gzip", "zstd"])
def test_garbage_behind_the_head_is_an_error(tmp_path: Path, maker: str) -> None:
    """Not text, and not an end."""
    path = tmp_path / "file"
    path.write_bytes(MAKERS[maker](PLAIN)[:12] + b"\xa5" * 300)
    with opened(path) as file, pytest.raises(UsageError, match="file is damaged"), damage_told(path):
        file.read()
