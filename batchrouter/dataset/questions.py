"""Several questions asked of every row in one pass, from a TOML file with a table for each.

    [question.tone]
    prompt = "What is the tone of this review? {{ review }}"
    labels = ["positive", "negative", "neutral"]

    [question.details]
    prompt_file = "details.txt"
    schema = "details.json"

It may be batchrouter.toml itself. Rules of this file: an unknown key is an error that names the nearest known one;
prompts and schemas are looked for beside the TOML file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from batchrouter.dataset.labels import Shape, read_schema, shape_of_labels
from batchrouter.dataset.prepare import Question
from batchrouter.errors import UsageError

_KEYS: Final = ("prompt", "prompt_file", "system", "labels", "schema", "images")


def read_questions(path: str | Path, *, beside: Collection[str] = ()) -> dict[str, Question]:
    """The questions of a file by name, in its order; raises UsageError with the place. `beside` are tables of other
    meaning that the file may have.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    _refuse_unknown(document, ("question", *beside), str(path))
    tables = document.get("question")
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{path} has no questions: give each a table, as in [question.tone]")
    return {name: _question(path, name, table) for name, table in tables.items()}


def _question(path: Path, name: str, table: Any) -> Question:
    where = f"{path}: [question.{name}]"
    if not isinstance(table, dict):
        raise UsageError(f"{where} must be a table")
    if not name or "/" in name:
        raise UsageError(f"{where}: a question's name is not empty and has no slash")
    _refuse_unknown(table, _KEYS, where)
    return Question(
        prompt=_prompt(path, table, where),
        name=f"{path.name} [question.{name}]",
        system=_text(table, "system", where),
        images=tuple(_texts(table, "images", where)),
        shape=_shape(path, name, table, where),
    )


def _prompt(path: Path, table: Mapping[str, Any], where: str) -> str:
    text, file = _text(table, "prompt", where), _text(table, "prompt_file", where)
    if (text is None) == (file is None):
        raise UsageError(f"{where} needs either prompt or prompt_file")
    return text if file is None else read_prompt(path.parent / file)  # type: ignore[return-value]  # one of them is there


def _shape(path: Path, name: str, table: Mapping[str, Any], where: str) -> Shape | None:
    labels, schema = _texts(table, "labels", where), _text(table, "schema", where)
    if labels and schema is not None:
        raise UsageError(f"{where} has labels and schema: give one")
    if schema is not None:
        return read_schema(path.parent / schema)
    return shape_of_labels(labels, name=name) if labels else None


def read_prompt(path: str | Path) -> str:
    """The text of a prompt's file; raises UsageError."""
    try:
        return Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8") from None


def _text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: {key} must be a text")
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(f'{where}: {key} must be a list of texts, as in ["a", "b"]')
    return value


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
