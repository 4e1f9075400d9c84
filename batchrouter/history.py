"""What a line of results.jsonl or errors.jsonl says of its row: the log read back.

Rules of this file: only lines that this program can have written are believed; anything else is `Damaged`, and whose
row it was is not guessed at.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter import jsontext
from batchrouter.index import ANSWERED, FAILED, PENDING, Logged
from batchrouter.intake import key_of, key_of_duplicate
from batchrouter.records import OK, Usage

_PREFIX: Final = "batch_req_"
_KEY_AT: Final = len(_PREFIX)
_DIGEST_AT: Final = _KEY_AT + 24
_LENGTH: Final = _DIGEST_AT + 24
_TAIL_BYTES: Final = 4096
_DUPLICATE: Final = "duplicate_custom_id"
_REFUSED: Final = frozenset({"invalid_row", _DUPLICATE})


class Damaged(ValueError):  # noqa: N818  (a finding about a line)
    """A line of a log that cannot be what was written there."""


class Entry(NamedTuple):
    """A line of a log: whose it is, what the totals count (`where` is its model and endpoint), and the row itself."""

    logged: Logged
    where: tuple[str, str]
    usage: Usage | None
    attempts: int
    row: dict[str, Any]


def read_entry(raw: bytes | None, start: int, state: int) -> Entry:
    """The log line at byte `start` of the file that holds rows of `state` (PENDING: of either); raises Damaged."""
    try:
        row = jsontext.loads(raw or b"", strict=True)
        row_id, about, error = row["id"], row["batchrouter"], row["error"]
        if len(row_id) != _LENGTH or not row_id.startswith(_PREFIX):
            raise Damaged("its id is none of ours")
        key, digest = bytes.fromhex(row_id[_KEY_AT:_DIGEST_AT]), bytes.fromhex(row_id[_DIGEST_AT:])
        usage = about.get("usage")
        counted = None if usage is None else Usage(*(int(usage[name]) for name in Usage._fields))
        code = None if error is None else error["code"]
        refused = code in _REFUSED
        named = key_of(row["custom_id"])
        if key != (key_of_duplicate(named, about["file"], about["line"]) if code == _DUPLICATE else named):
            raise Damaged("its id does not belong to its custom_id")
        if state not in {PENDING, ANSWERED if _is_answer(row) else FAILED}:
            raise Damaged("it stands in the wrong file")
        place = f"{about['file']}:{about['line']}".encode(errors="backslashreplace").decode()
        logged = Logged(key, digest, state, start, refused, place)
        where = (about.get("model", ""), about.get("endpoint", ""))
        return Entry(logged, where, counted, int(about["attempts"]), row)
    except (jsontext.NotJson, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(str(error)) from None


def _is_answer(row: dict[str, Any]) -> bool:
    response = row["response"]
    return row["error"] is None and response["status_code"] == OK and type(response["body"]) is dict


def tail_digest(path: Path, size: int) -> str:
    """A digest of the bytes just before `size`: tells another file of the same length."""
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES))
        return hashlib.blake2b(file.read(min(size, _TAIL_BYTES)), digest_size=12).hexdigest()


def is_of_class(row: dict[str, Any], wanted: str) -> bool:
    """Whether a failed row (or a truncated answer) is of a class that `--retry` names: `all`, `4xx`, `5xx`, a status,
    `truncated`, or an error code.
    """
    error, response = row["error"], row["response"]
    code = error["code"] if error is not None else ""
    status = response["status_code"] if response is not None else 0
    if wanted == "truncated":
        return bool(row["batchrouter"]["truncated"]) or code == "truncated"
    if code in _REFUSED or (code == "" and status == 200):
        return False
    if wanted == "all":
        return True
    if wanted in {"4xx", "5xx"}:
        return status // 100 == int(wanted[0])
    return wanted in {code, str(status)}
