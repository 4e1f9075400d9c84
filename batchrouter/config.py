"""batchrouter.toml: read, checked to the last key, and given as what `Settings` are made of.

    [run]                     every option of `run`, by its name
    [[endpoint]]              name, base_url, key_env or key_file, rpm, tpm, concurrency, weight, headers, models
    [model."ID"]              prompt, completion, cached (USD per million tokens), fallback, context_fallback, body
    [pool.NAME]               models: those that may stand in for each other; a row or --model names the pool

Rules of this file: what is not known is an error that names the nearest known key; every error names its place.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchrouter.errors import UsageError
from batchrouter.settings import Endpoint, Model, Price, options

_PRICES: Final = ("prompt", "completion", "cached")
_LIMITS: Final = ("rpm", "tpm", "concurrency")
_NOT_OURS: Final = frozenset({"authorization", "content-type", "content-length", "host", "accept-encoding"})


class Config(NamedTuple):
    """A batchrouter.toml: [run] by field name, what is known of models, pools and endpoints, and other tables as they
    are.
    """

    run: dict[str, Any]
    models: dict[str, Model]
    pools: dict[str, tuple[str, ...]]
    endpoints: tuple[Endpoint, ...]
    others: dict[str, dict[str, Any]]


def load_config(path: Path, *, others: Collection[str] = ()) -> Config:
    """Read a batchrouter.toml; raises UsageError with the place and, for an unknown key, the nearest known one.

    `others` are the tables that it may have beside those above.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    _refuse_unknown(document, {"run", "model", "pool", "endpoint", *others}, f"{path}")
    models = _table(document, "model", f"{path}")
    pools = _table(document, "pool", f"{path}")
    config = Config(
        _run_table(_table(document, "run", f"{path}"), f"{path}: [run]"),
        {name: _model(_table(models, name, f"{path}"), f'{path}: [model."{name}"]') for name in models},
        {name: _pool(_table(pools, name, f"{path}"), f"{path}: [pool.{name}]") for name in pools},
        _endpoints(document.get("endpoint", []), f"{path}: [[endpoint]]"),
        {name: _table(document, name, f"{path}") for name in others},
    )
    _check_names(config, f"{path}")
    return config


def _table(document: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {name} must be a table: [{name}]")
    return table


def _run_table(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = options()
    table = {str(key).replace("-", "_"): value for key, value in table.items()}
    _refuse_unknown(table, set(known), where)
    return {name: _read(known[name].parse, value, f"{where} {name}") for name, value in table.items()}


def _model(table: Mapping[str, Any], where: str) -> Model:
    _refuse_unknown(table, {*_PRICES, "fallback", "context_fallback", "body"}, where)
    prices = {name: _read(_price, table[name], f"{where} {name}") for name in _PRICES if name in table}
    for name in ("prompt", "completion"):
        if prices and name not in prices:
            raise UsageError(f"{where}: {name} is missing: its price in USD per million tokens")
    return Model(
        price=Price(**prices) if prices else None,
        fallback=_read(_names, table.get("fallback", []), f"{where} fallback"),
        context_fallback=None
        if "context_fallback" not in table
        else _read(_name, table["context_fallback"], f"{where} context_fallback"),
        body=_read(_body, table.get("body", {}), f"{where} body"),
    )


def _pool(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    _refuse_unknown(table, {"models"}, where)
    models: tuple[str, ...] = _read(_names, table.get("models", []), f"{where} models")
    if not models:
        raise UsageError(f'{where}: models is missing: those that may stand in for each other, as ["a", "b"]')
    return models


def _endpoints(tables: Any, where: str) -> tuple[Endpoint, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where} must be written with two brackets, once for each")
    found = tuple(_endpoint(table, where) for table in tables)
    names = [endpoint.name for endpoint in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where}: two endpoints have the name {name!r}")
    return found


def _endpoint(table: Mapping[str, Any], where: str) -> Endpoint:
    _refuse_unknown(table, {item.name for item in fields(Endpoint)}, where)
    for name in ("name", "base_url"):
        if name not in table:
            raise UsageError(f"{where}: {name} is missing")
    name = _read(_name, table["name"], f"{where} name")
    where = f"{where} {name}"
    if "key_env" in table and "key_file" in table:
        raise UsageError(f"{where}: give key_env or key_file, not both")
    known = options()
    return Endpoint(
        name=name,
        base_url=_read(_name, table["base_url"], f"{where} base_url"),
        weight=_read(_weight, table.get("weight", 1.0), f"{where} weight"),
        headers=_read(_headers, table.get("headers", {}), f"{where} headers"),
        models=_read(_served, table.get("models"), f"{where} models"),
        **{key: _read(_name, table[key], f"{where} {key}") for key in ("key_env", "key_file") if key in table},
        **{key: _read(known[key].parse, table[key], f"{where} {key}") for key in _LIMITS if key in table},
    )


def _check_names(config: Config, where: str) -> None:
    """Refuse names that mean two things, and pools of pools."""
    for name, models in config.pools.items():
        if name in config.models:
            raise UsageError(f"{where}: {name!r} is a pool and a model")
        for model in models:
            if model in config.pools:
                raise UsageError(f"{where}: [pool.{name}]: {model!r} is a pool itself; name its models")


# --- values: each function reads one, or raises ValueError with what was expected ------------------------------------


def _read(parse: Callable[[Any], Any], value: Any, where: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f'{value!r} is no list of names, as ["a", "b"]')  # noqa: TRY004  (a finding about a text)
    return tuple(dict.fromkeys(_name(item) for item in value))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no {what}")
    return float(value)


def _price(value: Any) -> float:
    return _number(value, "price in USD per million tokens")


def _weight(value: Any) -> float:
    weight = _number(value, "weight, as 2 for twice the share of 1")
    if not weight:
        raise ValueError("a weight must be above 0")
    return weight


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError("it must be a table of names and values")  # noqa: TRY004  (a finding about a text)
    for name, text in value.items():
        if name.lower() in _NOT_OURS:
            raise ValueError(f"{name} is set by batchrouter itself; the key comes from key_env or key_file")
        if not isinstance(text, str) or not text.isprintable() or not name.isascii() or not name.isprintable():
            raise ValueError(f"{name!r} is no header with a text for its value")
    return tuple(value.items())


def _served(value: Any) -> dict[str, str] | None:
    """A list of models, or a table of models and the ids that the endpoint knows them by."""
    if value is None:
        return None
    served = value if isinstance(value, dict) else {name: name for name in _names(value)}
    if not served:
        raise ValueError("it is empty: leave it out where every model is served")
    return {_name(name): _name(known_as) for name, known_as in served.items()}


def _body(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError("it must be a table of fields and values")  # noqa: TRY004  (a finding about a text)
    for name in ("model", "messages", "stream"):
        if name in value:
            raise ValueError(f"{name} is a row's own, not a default")
    try:
        return tuple((name, json.dumps(inner, allow_nan=False)) for name, inner in value.items())
    except (TypeError, ValueError):
        raise ValueError("it holds something that JSON has no word for") from None


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown key {key!r}{hint}")
