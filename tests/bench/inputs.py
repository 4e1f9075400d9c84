"""Input files of any number and size of rows, written in passing: nothing of them stays in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 2**20
_SENTENCE: Final = (
    "Classify the sentiment of the following review as positive, negative or neutral, and say why in one sentence. "
)
_HEAD: Final = (
    '{"custom_id":"row-%08d","method":"POST","url":"/v1/chat/completions","body":{"model":"bench-1",%s'
    '"messages":[{"role":"system","content":"You are terse."},{"role":"user","content":"#%d '
)
_TAIL: Final = '"}],"max_tokens":64}}\n'
ROW_BYTES: Final = 580


def write_rows(path: Path, rows: int, *, row_bytes: int = ROW_BYTES, streamed: bool = False) -> Path:
    """A batch file of `rows` rows of about `row_bytes`, asking for a stream or for a plain answer."""
    stream = '"stream":true,' if streamed else ""
    left = max(1, row_bytes - len(_HEAD % (0, stream, 0)) - len(_TAIL))
    piece = (_SENTENCE * (_BLOCK_BYTES // len(_SENTENCE)))[:left]
    whole, rest = divmod(left, len(piece))
    with path.open("w", buffering=_BLOCK_BYTES) as file:
        for number in range(rows):
            file.write(_HEAD % (number, stream, number))
            for _ in range(whole):
                file.write(piece)
            file.write(piece[:rest] + _TAIL)
    return path


def count_lines(path: Path) -> int:
    """Lines of a file, 0 when there is none."""
    if not path.exists():
        return 0
    lines = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            lines += block.count(b"\n")
    return lines
