"""`label`: a table in, the same table with the answers' columns out: prepare, run and export in one.

Rules of this file: it adds nothing to what the three do but the order. The requests are kept in the run directory and
made anew only when table, prompts or options changed; what then becomes of rows that were asked already is the run's
`--changed` rule. Started again, it asks the rows that are pending, failed or truncated, and no other.
"""

from __future__ import annotations

import filecmp
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from batchrouter import jsontext
from batchrouter.dataset.answers import Answer, open_answers
from batchrouter.dataset.columns import ERROR, Filling
from batchrouter.dataset.export import Exported, Filled, check_output, write_table
from batchrouter.dataset.prepare import Question, prepare, write_requests
from batchrouter.dataset.tables import Table, open_table
from batchrouter.errors import DiskError, UsageError
from batchrouter.jsonl import replace_file
from batchrouter.ledger import Ledger
from batchrouter.preview import Preview, preview_apart
from batchrouter.records import Summary
from batchrouter.settings import Price, Settings
from batchrouter.sources import Source

REQUESTS: Final = "requests.jsonl"
_KEPT: Final = "label.json"
_LIKELY_TOKENS: Final = 256  # of an answer in free text

Run = Callable[[Sequence[str], Path, Settings], Summary]


@dataclass(frozen=True, slots=True)
class Labelled:
    """How the run ended, and what was written; null when it was stopped before its rows were known."""

    summary: Summary
    exported: Exported | None


def label(
    data: str | Path,
    output: str | Path,
    question: Question | Mapping[str, Question],
    *,
    directory: str | Path,
    settings: Settings,
    run: Run,
    id_column: str | None = None,
    spreadsheet_safe: bool = False,
) -> Labelled:
    """Ask `question` of every row of the table `data`, and write the table with the answers beside to `output`.

    `run` carries out the batch: (inputs, run directory, settings) -> Summary, as `asyncio.run(run_batch(...))` does. A
    question's answer fills `answer`, or its shape's columns; several questions, by name, fill columns that begin with
    their names. The table is written however the run ended. Raises UsageError (nothing was sent, or `data` was changed
    meanwhile), BusyError, DiskError.
    """
    table = open_table(data)
    check_output(str(output), table, spreadsheet_safe=spreadsheet_safe)
    before = _state(table)
    directory = Path(directory)
    questions = {"": question} if isinstance(question, Question) else question
    _refuse_without_model(settings, questions.values())
    notes = _prepare(table, questions, id_column, directory)
    summary = run([str(directory / REQUESTS)], directory, _settings(settings, questions.values()))
    if summary.halt is not None and not (directory / "run.json").exists():
        return Labelled(summary, None)
    if _state(table) != before:
        raise UsageError(
            f"{table.label} was changed while its rows were asked: nothing was written, and the answers are kept;"
            " start it again"
        )
    exported = _export(directory, str(output), table, questions, id_column, spreadsheet_safe=spreadsheet_safe)
    exported.notes[:0] = notes
    return Labelled(summary, exported)


def plan(
    data: str | Path,
    question: Question | Mapping[str, Question],
    *,
    directory: str | Path,
    settings: Settings,
    id_column: str | None = None,
) -> Preview:
    """What `label` with the same arguments would ask, and what it would take. Nothing is sent, and nothing is written
    in `directory`, which need not exist. Raises UsageError, DiskError.
    """
    questions = {"": question} if isinstance(question, Question) else question
    _refuse_without_model(settings, questions.values())
    with tempfile.TemporaryDirectory(prefix="batchrouter-") as folder:
        requests = Path(folder) / REQUESTS
        write_requests(prepare(data, questions, id_column=id_column), str(requests))
        wanted = _settings(settings, questions.values())
        likely = [question.shape.likely_tokens if question.shape else _LIKELY_TOKENS for question in questions.values()]
        return preview_apart(
            [Source(REQUESTS, requests)], Path(directory), wanted, likely_answer_tokens=sum(likely) // len(likely)
        )


def _refuse_without_model(settings: Settings, questions: Iterable[Question]) -> None:
    """Raise UsageError when no row could have a model: the table has none, unlike rows of a batch file."""
    named = settings.model or settings.override_model or any(key == "model" for key, _ in settings.set)
    if not named and not all(question.model for question in questions):
        raise UsageError("no model is named that could answer: name a model with --model ID")


def _settings(settings: Settings, questions: Iterable[Question]) -> Settings:
    """The run's settings as labelling wants them: rows without a usable answer are asked again at every start, and an
    answer that is to have a form is checked against it while it can still be asked for again.
    """
    if not settings.retry:
        settings = replace(settings, retry=("all", "truncated"))
    return replace(settings, check_json=settings.check_json or any(question.shape for question in questions))


def _prepare(table: Table, questions: Mapping[str, Question], id_column: str | None, directory: Path) -> list[str]:
    """Have the requests stand in the run directory; gives what there is to tell of its files."""
    # Holding the run directory keeps a second `label` from changing the requests under a first one's run.
    with Ledger.open(directory, redact=bytes) as ledger:
        wanted = _fingerprint(table, questions, id_column)
        try:
            if not _is_kept(directory, wanted):
                _write(prepare(table.path, questions, id_column=id_column), directory / REQUESTS)
                kept = {"wanted": wanted, "requests": Source(REQUESTS, directory / REQUESTS).fingerprint()}
                replace_file(directory / _KEPT, jsontext.dumps(kept) + b"\n")
        except OSError as error:
            raise DiskError(f"{error.filename or directory}: {error.strerror}; nothing was sent") from None
        return ledger.notes


def _write(requests: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Have `requests` stand at `path`; a file that says the same is left alone, and the run's index of it holds."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        write_requests(requests, str(fresh), mode=0o600)
        if not path.exists() or not filecmp.cmp(fresh, path, shallow=False):
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _is_kept(directory: Path, wanted: str | None) -> bool:
    """Whether the requests that stand there are those wanted, of this very table."""
    try:
        kept = orjson.loads((directory / _KEPT).read_bytes())
        there = Source(REQUESTS, directory / REQUESTS).fingerprint()
        return wanted is not None and kept["wanted"] == wanted and kept["requests"] == there
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, UsageError):
        return False


def _state(table: Table) -> dict[str, int]:
    """What tells, without reading it, that the table is the one it was."""
    return Source(table.label, table.path).fingerprint()


def _fingerprint(table: Table, questions: Mapping[str, Question], id_column: str | None) -> str | None:
    """What the requests are made of, the table by its file's times and size; None where that is not all: images."""
    if any(question.images for question in questions.values()):
        return None
    made_of = {
        "table": [str(table.path.resolve()), _state(table)],
        "questions": repr(questions),
        "id": id_column,
    }
    return hashlib.blake2b(jsontext.dumps(made_of), digest_size=16).hexdigest()


def _export(
    directory: Path,
    output: str,
    table: Table,
    questions: Mapping[str, Question],
    id_column: str | None,
    *,
    spreadsheet_safe: bool,
) -> Exported:
    fillings = {name: _filling(question) for name, question in questions.items()}
    columns = [
        column._replace(name=_column_name(name, column.name))
        for name, filling in fillings.items()
        for column in filling.columns
    ]
    with open_answers(directory) as answers:
        exported = write_table(
            _filled(answers, answers.prices, fillings),
            output,
            [*columns, ERROR],
            source=table,
            id_column=id_column,
            spreadsheet_safe=spreadsheet_safe,
        )
        exported.notes[:0] = answers.notes
        return exported


def _filling(question: Question) -> Filling:
    return Filling({}, question.shape) if question.shape else Filling({"answer": "content"}, marks_all=True)


def _column_name(question: str, column: str) -> str:
    """`answer` of the one question; of several, `tone` for the question's only column, else `tone_score`."""
    if not question:
        return column
    return question if column in {"answer", question} else f"{question}_{column}"


def _filled(
    answers: Iterable[Answer], prices: Mapping[str, Price], fillings: Mapping[str, Filling]
) -> Iterator[Filled]:
    """The answers of each row together: its questions stand one after the other in the requests."""
    left = iter(answers)
    while group := list(islice(left, len(fillings))):
        values: list[Any] = []
        errors = []
        rows = set()
        for answer, (name, filling) in zip(group, fillings.items(), strict=True):
            found, error = filling.fill(answer, prices)
            values += found
            if error is not None:
                errors.append(f"{name}: {error}" if name else error)
            rows.add(answer.custom_id.removesuffix(f"/{name}") if name else answer.custom_id)
        if len(rows) > 1:
            raise UsageError(f"{', '.join(sorted(rows))}: answers to other questions; use another run directory")
        error = "; ".join(errors) or None
        yield Filled(rows.pop(), [*values, error], error, [answer.state for answer in group])
