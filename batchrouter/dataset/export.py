"""`export`: a run's answers as a table in input order, alone or beside the source rows that asked.

Rules of this file: every row of the run is a row of the table, failed and pending ones too, with the reason in
`error`; the table appears when it is whole; memory does not grow with the run. A filled column that would hide a source
column is renamed, and said so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter.dataset.answers import Answer, open_answers
from batchrouter.dataset.columns import FACTS, Filling, compile_expressions
from batchrouter.dataset.joins import Join
from batchrouter.dataset.labels import Shape, read_schema
from batchrouter.dataset.tables import Column, Format, Table, listed, open_table
from batchrouter.dataset.writers import STDOUT, open_output, open_writer, output_format
from batchrouter.errors import UsageError
from batchrouter.index import ANSWERED, PENDING
from batchrouter.settings import Price
from batchrouter.sources import Source

_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(slots=True)
class Exported:
    """What was written. `marked` rows have something in `error`: the failed, the pending, and answers that do not do.

    `renamed` maps names of filled columns to what they are called instead, beside a source column of that name.
    """

    output: str
    rows: int = 0
    answered: int = 0
    failed: int = 0
    pending: int = 0
    marked: int = 0
    unmatched: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Filled(NamedTuple):
    """One row's answers, ready to be written: the id of its source row, its values, its error, and their states."""

    row: str
    values: Sequence[Any]
    error: str | None
    states: Sequence[int]


def export(
    directory: str | Path,
    output: str | Path,
    *,
    join: str | Path | None = None,
    id_column: str | None = None,
    schema: str | Path | Shape | None = None,
    columns: Mapping[str, str] | None = None,
    spreadsheet_safe: bool = False,
) -> Exported:
    """Write the rows of the run in `directory` to `output` (.csv, .tsv, .jsonl, .parquet; `-`: JSONL to stdout).

    `join` puts the columns of that table first, its rows known by `id_column` (default: by their number, as `prepare`
    numbers them). JSON content is spread into columns by `schema` and by `columns` (name -> JMESPath). Works while
    the run goes on. Raises UsageError, DiskError; what was at `output` before stays until the new table is whole.
    """
    shape = read_schema(schema) if isinstance(schema, (str, Path)) else schema
    # The id column is among the source's own.
    facts = {fact.name: fact.name for fact in FACTS if not (join and id_column and fact.name == "id")}
    filling = Filling(facts, shape, compile_expressions(columns or {}))
    source = None if join is None else open_table(join)
    with open_answers(directory) as answers:
        filled = (_filled(filling, answer, answers.prices) for answer in answers)
        exported = write_table(
            filled, str(output), filling.columns,
            source=source, id_column=id_column, spreadsheet_safe=spreadsheet_safe,
        )  # fmt: skip
        exported.notes[:0] = answers.notes
        if source is not None and id_column is None:
            exported.notes += _is_newer(source, answers.inputs)
        return exported


def _is_newer(table: Table, inputs: Sequence[Source]) -> Iterator[str]:
    """A note, where rows are told by their numbers alone and may have moved since they were asked."""
    asked = [source.path for source in inputs if source.path.exists()]
    if asked and table.path.stat().st_mtime_ns > max(path.stat().st_mtime_ns for path in asked):
        yield (
            f"{table.label} was changed after its requests were prepared, and answers are joined by row number: if rows"
            " were inserted, removed or sorted since, they stand beside other rows (prepare with --id to be safe)"
        )


def _filled(filling: Filling, answer: Answer, prices: Mapping[str, Price]) -> Filled:
    values, error = filling.fill(answer, prices)
    return Filled(answer.custom_id, values, error, (answer.state,))


def write_table(
    filled: Iterable[Filled],
    output: str,
    columns: Sequence[Column],
    *,
    source: Table | None,
    id_column: str | None,
    spreadsheet_safe: bool,
) -> Exported:
    """Write rows, beside those of `source` if there is one; the columns filled come after the source's own."""
    kind = check_output(output, source, spreadsheet_safe=spreadsheet_safe)
    theirs = source.columns() if source is not None else ()
    if source is not None and id_column is not None and id_column not in {column.name for column in theirs}:
        names = listed(column.name for column in theirs)
        raise UsageError(f"{source.label} has no column {id_column!r} for --id; there are: {names}")
    ours, renamed = without_clashes(columns, [column.name for column in theirs])
    exported = Exported(output, renamed=renamed)
    join = None if source is None else Join[Filled](source, id_column)
    pairs = _alone(filled) if join is None else join.pairs((row.row, row) for row in filled)
    with open_output(output) as file, open_writer(
        file, kind, theirs, ours, spreadsheet_safe=spreadsheet_safe
    ) as writer:  # fmt: skip
        for values, row in pairs:
            writer.write(values or _NOTHING, row.values)
            _count(exported, row)
        if source is not None and join is not None:
            _judge(join, source, exported)
    return exported


def _alone(filled: Iterable[Filled]) -> Iterator[tuple[Mapping[str, Any] | None, Filled]]:
    return ((None, row) for row in filled)


def _count(exported: Exported, row: Filled) -> None:
    exported.rows += 1
    exported.marked += row.error is not None
    states = row.states
    if PENDING in states:
        exported.pending += 1
    elif states.count(ANSWERED) == len(states):
        exported.answered += 1
    else:
        exported.failed += 1


def _judge(join: Join[Filled], source: Table, exported: Exported) -> None:
    """Say what found no source row; raises UsageError when nothing did, as that is another table."""
    if not exported.rows or not join.unmatched:
        return
    known = f"the rows of the {join.id_column!r} column" if join.id_column else "row numbers (row-1, row-2, …)"
    if not join.matched:
        raise UsageError(
            f"{source.label}: no answer belongs to {known}; name the column that holds the requests' ids with --id"
            + (", or join the table that was prepared" if join.id_column else "")
        )
    exported.unmatched = join.unmatched
    exported.notes.append(
        f"{join.unmatched:,} rows of the run are not in {source.label}: their source columns are empty"
    )


def check_output(output: str, source: Table | None, *, spreadsheet_safe: bool) -> Format:
    """The format that `output` is written in; raises UsageError where that cannot be, and for the source."""
    if source is not None and output != STDOUT and Path(output).exists() and Path(output).samefile(source.path):
        raise UsageError(f"{output} is the source itself: write to another file")
    return output_format(output, spreadsheet_safe=spreadsheet_safe)


def without_clashes(ours: Sequence[Column], theirs: Sequence[str]) -> tuple[tuple[Column, ...], dict[str, str]]:
    """Our columns, `answer` as `answer_2` (`_3`, …) where there is one of that name; and what was renamed."""
    taken = {*theirs, *(column.name for column in ours if column.name not in theirs)}
    given: list[Column] = []
    renamed: dict[str, str] = {}
    seen: set[str] = set(theirs)
    for column in ours:
        name = column.name
        if name in seen:
            number = 2
            while f"{name}_{number}" in taken:
                number += 1
            renamed[column.name] = name = f"{name}_{number}"
        seen.add(name)
        taken.add(name)
        given.append(column._replace(name=name))
    return tuple(given), renamed
