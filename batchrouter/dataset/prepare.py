"""`prepare`: rows of a table, or any mappings, to request rows: one prompt rendered for each.

Rules of this file: rows stream through, in their order; nothing is guessed: a row that cannot be asked stops the
preparing, and is named. A request's custom_id is the row's own id, or its number as `row-17`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from batchrouter import jsontext
from batchrouter.dataset.frames import Frame, Mappings
from batchrouter.dataset.images import image_parts
from batchrouter.dataset.joins import UniqueIds, row_id
from batchrouter.dataset.labels import Shape
from batchrouter.dataset.tables import Row, Rows, Table, listed, open_table
from batchrouter.dataset.templates import Template
from batchrouter.dataset.writers import open_output
from batchrouter.errors import UsageError

_URL: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every row. `prompt` and `system` are templates; `name` is how messages call the prompt.

    `images` are columns whose cells go along as pictures; `shape`, or else `response_format`, is the form of the
    answer; `model` and `defaults` (field -> JSON text) stand in every body.
    """

    prompt: str
    name: str = "--prompt"
    system: str | None = None
    images: tuple[str, ...] = ()
    shape: Shape | None = None
    response_format: Mapping[str, Any] | None = None
    model: str | None = None
    defaults: tuple[tuple[str, str], ...] = ()


class _Asker:
    """A question made ready: compiled once, asked of row after row."""

    def __init__(self, question: Question, folder: Path) -> None:
        self._prompt = Template(question.prompt, question.name)
        self._system = None if question.system is None else Template(question.system, "--system")
        self._images = question.images
        self._folder = folder
        self._head: dict[str, Any] = {} if question.model is None else {"model": question.model}
        self._tail = {key: orjson.loads(text) for key, text in question.defaults}
        form = question.shape.form if question.shape else question.response_format
        if form is not None:
            self._tail.setdefault("response_format", form)

    def body(self, values: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The request's body for one row; raises UsageError, naming the row by `place`."""
        messages = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system.render(values, place)})
        content: Any = self._prompt.render(values, place)
        if self._images:
            parts = [part for column in self._images for part in self._parts(values, column, place)]
            if parts:
                content = [{"type": "text", "text": content}, *parts]
        messages.append({"role": "user", "content": content})
        return {**self._head, "messages": messages, **self._tail}

    def _parts(self, values: Mapping[str, Any], column: str, place: str) -> Iterator[dict[str, Any]]:
        if column not in values:
            raise UsageError(f"{place} has no column {column!r} for --image; there are: {listed(values)}")
        return image_parts(values[column], self._folder, place)


def prepare(
    data: str | Path | Iterable[Mapping[str, Any]] | Frame,
    question: Question | str | Mapping[str, Question],
    *,
    id_column: str | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The request rows of `data`: the path of a table (.csv, .tsv, .jsonl, .parquet), any iterable of mappings of
    columns to values, or a data frame of pandas or polars.

    A question may be the prompt's text alone. With several questions, by name, each row has a request for each, known
    as `<row id>/<name>`. `sample` draws so many rows at random, by `seed`, and keeps their order. Raises UsageError,
    with the place, where it meets a row that cannot be asked, and at the end for ids that are not unique: the rows
    before are good only once it has ended.
    """
    source: Rows = open_table(data) if isinstance(data, (str, Path)) else Mappings(data)
    folder = source.path.parent if isinstance(source, Table) else Path()
    if isinstance(question, str):
        question = Question(prompt=question)
    questions = {"": question} if isinstance(question, Question) else question
    askers = {f"/{name}" if name else "": _Asker(asked, folder) for name, asked in questions.items()}
    rows = source.rows() if sample is None else iter(_sampled(source.rows(), sample, seed))
    return _requests(source, rows, askers, id_column)


def _requests(
    source: Rows, rows: Iterator[Row], askers: Mapping[str, _Asker], id_column: str | None
) -> Iterator[dict[str, Any]]:
    ids = UniqueIds(source, id_column) if id_column is not None else None
    with closing(ids) if ids is not None else closing(_Numbers()) as names:
        for row in rows:
            known = names.add(row)
            for suffix, asker in askers.items():
                body = asker.body(row.values, source.place(row))
                yield {"custom_id": f"{known}{suffix}", "method": "POST", "url": _URL, "body": body}
        names.finish()


class _Numbers:
    """Ids by number: unique by nature."""

    def add(self, row: Row) -> str:
        return row_id(row, None) or ""

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def _sampled(rows: Iterable[Row], size: int, seed: int) -> list[Row]:
    """`size` rows, each as likely as any, in their order (all, if there are fewer); only they are held."""
    rng = random.Random(seed)
    kept: list[Row] = []
    for row in rows:
        if len(kept) < size:
            kept.append(row)
            continue
        place = rng.randrange(row.number)
        if place < size:
            kept[place] = row
    return sorted(kept, key=lambda row: row.number)


def write_requests(requests: Iterable[Mapping[str, Any]], output: str, *, mode: int = 0o666) -> int:
    """Write request rows as JSONL to a file that appears when it is whole (`-`: standard output); how many.

    Raises what `requests` raises, UsageError and DiskError.
    """
    if Path(output).suffix.lower() in {".gz", ".zst"}:
        raise UsageError(f"{output}: request rows are written uncompressed: name it .jsonl")
    count = 0
    with open_output(output, mode=mode) as file:
        for request in requests:
            file.write(jsontext.dumps(request) + b"\n")
            count += 1
    return count
