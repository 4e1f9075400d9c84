"""Images of a row as content parts: a URL is passed on, a file or bytes go along as a data URL.

Rules of this file: a cell is data: whatever path it names, only what begins like an image leaves this machine.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from batchrouter.errors import UsageError

LARGEST_IMAGE_BYTES: Final = 20 * 2**20

_URLS: Final = ("http://", "https://", "data:image/")
_KINDS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


def image_parts(value: Any, folder: Path, place: str) -> Iterator[dict[str, Any]]:
    """The content parts for a cell: a path (relative to `folder`), a URL, bytes, `{"bytes", "path"}` as data sets have
    it, or a list of these; none for an empty cell. Raises UsageError, naming the row by `place`.
    """
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from image_parts(inner, folder, place)
        return
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("url") or value.get("path")
    if value is None or value in ("", b""):
        return
    if isinstance(value, str) and value.startswith(_URLS):
        yield _part(value)
        return
    content = value if isinstance(value, (bytes, bytearray)) else _read(value, folder, place)
    kind = _kind(content)
    if kind is None:
        raise UsageError(f"{place}: {_named(value)} is no PNG, JPEG, GIF or WebP image, and is not sent")
    yield _part(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _read(value: Any, folder: Path, place: str) -> bytes:
    if not isinstance(value, str):
        raise UsageError(f"{place}: an image is a path, a URL or bytes, not a {type(value).__name__}")
    try:
        with (folder / value).open("rb") as file:
            content = file.read(LARGEST_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or "no path"
        raise UsageError(f"{place}: image {_named(value)}: {reason} (paths begin at {folder})") from None
    if len(content) > LARGEST_IMAGE_BYTES:
        raise UsageError(
            f"{place}: image {_named(value)} is larger than {LARGEST_IMAGE_BYTES >> 20} MiB; scale it down"
        )
    return content


def _kind(content: bytes | bytearray) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)


def _named(value: Any) -> str:
    return repr(value)[:200] if isinstance(value, str) else "the cell's content"
