"""Where rows come from: files, globs, compressed or not, and standard input.

Rules of this file: what cannot be read raises UsageError before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from batchrouter.compressed import damage_told, decompressed
from batchrouter.errors import UsageError
from batchrouter.jsonl import BOM

_TABLES: Final = frozenset({".csv", ".tsv", ".tab", ".parquet", ".pq"})
_COMPRESSED: Final = frozenset({".gz", ".zst"})
_LEAD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """One input file: `label` is how rows name it, `path` where it is."""

    label: str
    path: Path

    def open(self) -> BinaryIO:
        """The file's lines, decompressed (by content, not by name); raises UsageError where that cannot be."""
        try:
            return decompressed(self.path.open("rb", buffering=2**20), self.path)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from None

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """The file, open; what keeps it from being read on is raised as UsageError or DiskError, with its name."""
        with self.open() as file, damage_told(self.path):
            yield file

    def fingerprint(self) -> dict[str, int]:
        """What tells, without reading it, that the file is the one that was read before; raises UsageError."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}") from None
        return {
            "size": stat.st_size,
            "modified_ns": stat.st_mtime_ns,
            "changed_ns": stat.st_ctime_ns,
            "inode": stat.st_ino,
        }


def find_sources(inputs: tuple[str, ...], stdin_copy: Path) -> tuple[Source, ...]:
    """Input arguments -> sources in order: globs opened, `-` meaning `stdin_copy`; raises UsageError."""
    paths: list[Path] = []
    for text in inputs:
        if text == "-":
            paths.append(stdin_copy)
        elif Path(text).exists() or not any(sign in text for sign in "*?["):
            paths.append(Path(text))
        else:
            matches = sorted(Path().glob(text)) if not Path(text).is_absolute() else _absolute_glob(text)
            if not matches:
                raise UsageError(f"{text}: no file fits this pattern")
            paths.extend(matches)
    for path in paths:
        if path != stdin_copy and not path.exists():
            raise UsageError(f"{path}: there is no such file")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name its files, as in {path}/*.jsonl")
        if path.is_fifo():
            raise UsageError(f"{path} is a pipe, and can be read only once; give it on standard input, as -")
        _refuse_table(path)
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("the same input is named twice")
    return tuple(Source(label, path) for label, path in zip(_labels(paths, stdin_copy), paths, strict=True))


def _refuse_table(path: Path) -> None:
    """Raise UsageError where name and content say that there are no requests in a file, but the rows of a table."""
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    if name.suffix.lower() not in _TABLES:
        return
    with Source(path.name, path).reading() as file:
        if file.read(_LEAD_BYTES).removeprefix(BOM).lstrip().startswith(b"{"):
            return
    raise UsageError(
        f"{path} looks like a table; `run` takes request rows (JSONL). To ask something of every row:"
        f" batchrouter label {path} --prompt TEXT -o FILE; to make request rows first:"
        f" batchrouter prepare {path} --prompt TEXT -o requests.jsonl"
    )


def _absolute_glob(text: str) -> list[Path]:
    path = Path(text)
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _labels(paths: list[Path], stdin_copy: Path) -> list[str]:
    """File names; where two inputs share one, as much of their paths as tells them apart."""
    labels = ["stdin" if path == stdin_copy else path.name for path in paths]
    depth = 1
    while len(set(labels)) != len(labels) and depth <= max(len(path.parts) for path in paths):
        depth += 1
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [
            "/".join(path.parts[-depth:]) if label in twice else label
            for label, path in zip(labels, paths, strict=True)
        ]
    if len(set(labels)) != len(labels):
        labels = [path.as_posix() for path in paths]
    return labels
