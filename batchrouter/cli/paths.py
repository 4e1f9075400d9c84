"""Names that commands agree on."""

from __future__ import annotations

from pathlib import Path


def default_directory(first: str) -> str:
    """The run directory where none is named: `<first input's stem>.run`, in the current folder."""
    if first == "-":
        return "stdin.run"
    path = Path(first)
    while path.suffix in {".gz", ".zst", ".jsonl", ".json", ".ndjson"}:
        path = path.with_suffix("")
    return f"{path.name}.run"
