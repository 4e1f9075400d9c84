"""Tables from memory: mappings of columns to values, or the data frames of pandas and polars.

Rules of this file: no library is imported for it; what pandas calls missing (NaN, NaT, NA) is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from batchrouter.dataset.tables import Row
from batchrouter.errors import UsageError


class Frame(Protocol):
    """A data frame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""


@dataclass(frozen=True, slots=True)
class Mappings:
    """Rows from memory: any iterable of mappings (dicts, rows of `datasets`), or a data frame."""

    items: Iterable[Mapping[str, Any]] | Frame

    def rows(self) -> Iterator[Row]:
        """The rows, once if the iterable can be read once; raises UsageError for what is no mapping."""
        for number, item in enumerate(_mappings(self.items), 1):
            if not isinstance(item, Mapping):
                raise UsageError(
                    f"row {number} is a {type(item).__name__}, not a mapping of columns to values; give dicts, or a"
                    " data frame itself"
                )
            is_whole = not any(map(_is_nan, item.values()))
            values = item if is_whole else {name: None if _is_nan(cell) else cell for name, cell in item.items()}
            yield Row(number, number, values)

    def place(self, row: Row) -> str:
        """`row 17`."""
        return f"row {row.number}"


def _is_nan(cell: Any) -> bool:
    return type(cell) is float and cell != cell  # noqa: PLR0124  (NaN alone)


def _mappings(items: Any) -> Iterable[Any]:
    """The rows of a frame, whichever library's it is, or the items themselves; raises UsageError."""
    if hasattr(items, "iter_rows"):
        return cast("Iterable[Any]", items.iter_rows(named=True))
    return _pandas_rows(items) if hasattr(items, "itertuples") else cast("Iterable[Any]", items)


def _pandas_rows(frame: Any) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    if len(set(names)) != len(names):
        raise UsageError(f"the frame has columns of the same name: {', '.join(names)}; rename them")
    rows = zip(frame.itertuples(index=False, name=None), frame.notna().itertuples(index=False, name=None), strict=True)
    for cells, known in rows:
        yield {name: cell if is_known else None for name, cell, is_known in zip(names, cells, known, strict=True)}
