"""What options may be told: text of a flag or a variable, or a value of TOML, read by the same function.

Rules of this file: pure; what is wrong raises ValueError, saying what was expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_duration(value: object) -> float:
    """Seconds from a number or a text such as `90`, `0.2s`, `15m`, `1h30m`; raises ValueError."""
    text = str(value).strip().lower()
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        seconds = float(text)
    elif re.fullmatch(r"((\d+(\.\d*)?|\.\d+)(ms|min|s|m|h|d))+", text):
        parts = re.findall(r"([\d.]+)([a-z]+)", text)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    else:
        raise ValueError(f"{value!r} is no duration: give seconds, or a unit as in 0.2s, 90s, 15m, 6h")
    return seconds


def parse_size(value: object) -> int:
    """Bytes from a number or a text such as `64MiB`, `2MB`; raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2].upper() not in _SIZES:
        raise ValueError(f"{value!r} is no size: give bytes, or a unit as in 64MiB, 2MB")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def positive(value: object) -> int:
    """A whole number of at least 1."""
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is no whole number") from None
    if number < 1:
        raise ValueError(f"{value!r} must be at least 1")
    return number


def auto_positive(value: object) -> int | None:
    """The same, or None for `auto`."""
    return None if str(value).lower() == "auto" else positive(value)


def auto_rate(value: object) -> float | None:
    """A number a minute above 0, or None for `auto`."""
    return None if str(value).lower() == "auto" else _above_0(value, "neither a number a minute nor `auto`")


def amount(value: object) -> float:
    """A number above 0."""
    return _above_0(value, "no amount")


def _above_0(value: object, problem: str) -> float:
    number = _number(value, problem)
    if not 0 < number < math.inf:
        raise ValueError(f"{value!r} must be above 0")
    return number


def ratio(value: object) -> float:
    """A number from 0 to 1."""
    number = _number(value, "no number")
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} must be between 0 and 1")
    return number


def _number(value: object, problem: str) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is {problem}") from None


def text(value: object) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def time_of_day(value: object) -> str:
    """`HH:MM`, as it was given."""
    text = str(value)
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f"{value!r} is no time of day such as 06:00")
    return text


def flag(value: object) -> bool:
    """True or false, in the words of flags, variables and TOML."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def one_of(*choices: str) -> Callable[[object], str]:
    """A reader of one of these words."""

    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return parse


_RETRY_CLASSES: Final = frozenset(
    {"all", "4xx", "5xx", "timeout", "connection", "bad_response", "truncated", "schema_mismatch", "redirect"}
    | {"attempts_exhausted"}
)


def retry_classes(value: object) -> tuple[str, ...]:
    """`CLASS,CLASS`, each known, or a status."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    classes = tuple(str(part).strip() for part in parts)
    for one in classes:
        if one not in _RETRY_CLASSES and not re.fullmatch(r"[1-5]\d\d", one):
            raise ValueError(f"{one!r} is no class: {', '.join(sorted(_RETRY_CLASSES))}, or a status such as 503")
    return classes


def assignments(value: object) -> tuple[tuple[str, str], ...]:
    """`KEY=JSON` texts, or a TOML table -> (key, JSON text) pairs; the last one of a key stands."""
    found: dict[str, str] = {}
    if isinstance(value, Mapping):
        try:
            found = {str(key): json.dumps(inner, allow_nan=False) for key, inner in value.items()}
        except TypeError:
            raise ValueError("it holds something that JSON has no word for") from None
    else:
        texts = [value] if isinstance(value, str) else value
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            key, equals, content = str(text).partition("=")
            if not equals or not key.strip():
                raise ValueError(f"{text!r} is no KEY=JSON, as in temperature=0")
            try:
                json.loads(content, parse_constant=_no_constant)
            except ValueError:
                raise ValueError(f"{content!r} is not JSON; a text needs its quotes: {key}='\"text\"'") from None
            found[key.strip()] = content
    if "messages" in found:
        raise ValueError("messages are a row's own, not a default")
    return tuple(found.items())


def _no_constant(name: str) -> None:
    raise ValueError(name)
