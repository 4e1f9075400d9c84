"""Command line options for the fields of `Settings`, spelled once, there; and what a config file says of options.

Rules of this file: an option's parameter is named as its flag is, so that the flag, BATCHROUTER_<COMMAND>_<OPTION> and
the key in the config file are one word.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from batchrouter.cli import COMMANDS
from batchrouter.config import load_config
from batchrouter.errors import UsageError
from batchrouter.settings import BASE_URL_VARIABLES, Option, Settings, options

DEFAULT_CONFIG: Final = "batchrouter.toml"
OTHER_TABLES: Final = frozenset({*COMMANDS, "question"} - {"run"})  # of a config file, beside its own

_CONFIG: Final = "batchrouter.config"
_QUESTIONS: Final = "batchrouter.questions"


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A value read by a setting's own parse function."""

    envvar_list_splitter = "\n"

    def __init__(self, option: Option) -> None:
        self.name = option.metavar or "value"
        self._parse = option.parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, or click's usage error with what was expected."""
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Assigned(_Parsed):
    """One KEY=JSON of several, kept as it is: they are read together."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text itself, once it reads; a config file's come as pairs."""
        if isinstance(value, tuple):
            value = "=".join(value)
        super().convert(value, param, ctx)
        return value


class Texts(click.ParamType):  # type: ignore[type-arg]  # as above
    """Several texts in one: `a,b,"c, d"`, or a list in a config file."""

    name = "texts"

    def __init__(self, split: Callable[[str], tuple[str, ...]]) -> None:
        self._split = split

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002  (click's signature)
        """The texts."""
        return self._split(value) if isinstance(value, str) else tuple(map(str, value))


class _OwnFirst(click.Option):
    """An option whose own variable comes before those that other programs read too."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The text of BATCHROUTER_<COMMAND>_<OPTION>, else of the others."""
        own = f"{ctx.auto_envvar_prefix}_{str(self.name).upper()}"
        return os.environ.get(own) or super().resolve_envvar_value(ctx)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting, and --config."""
    for name, option in reversed(options().items()):
        command = _decorator(name, option)(command)
    return config_option(command)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --config: its own table of that file and, where it takes the settings, [run] below it."""
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help=f"Settings to start from; {DEFAULT_CONFIG} in the current folder is read by itself.",
    )(command)


def _decorator(name: str, option: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + name.replace("_", "-")
    if not option.metavar:
        spelled = f"{flag}/--no-{flag[2:]}"
        return click.option(spelled, name, default=None, help=option.help)
    if option.repeated:
        return click.option(flag, name, type=Assigned(option), multiple=True, metavar=option.metavar, help=option.help)
    text = option.help + _default_text(name)
    extra: dict[str, Any] = {} if option.alone is None else {"is_flag": False, "flag_value": option.alone}
    if name == "base_url":
        extra |= {"envvar": ["BATCHROUTER_RUN_BASE_URL", *BASE_URL_VARIABLES], "cls": _OwnFirst}
    return click.option(flag, name, type=_Parsed(option), metavar=option.metavar, default=None, help=text, **extra)


def _default_text(name: str) -> str:
    default = Settings.__dataclass_fields__[name].default
    if default is None:
        return " [auto]" if name in {"concurrency", "rpm", "tpm"} else ""
    if name == "max_response":
        default = "64MiB"
    return f" [{default:g}]" if isinstance(default, float) else f" [{default}]"


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is None:
        path = Path(DEFAULT_CONFIG)
        if not path.exists():
            return
    config = load_config(path, others=OTHER_TABLES)
    name = str(ctx.command.name)
    takes_settings = options().keys() <= {param.name for param in ctx.command.params}
    own = {} if name == "run" else _own_table(ctx.command, config.others[name], f"{path}: [{name}]")
    ctx.default_map = {**(ctx.default_map or {}), **(config.run if takes_settings else {}), **own}
    ctx.meta[_CONFIG] = config
    ctx.meta[_QUESTIONS] = path if config.others["question"] else None


def questions_of_config(ctx: click.Context) -> Path | None:
    """The config file, where it has [question.NAME] tables."""
    found = ctx.meta.get(_QUESTIONS)
    return found if isinstance(found, Path) else None


def _own_table(command: click.Command, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A command's own table by parameter name; raises UsageError, with the place, for what is no option of it."""
    known = {str(param.name): param for param in command.params if isinstance(param, click.Option)}
    del known["config"]
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
        try:
            found[name] = _value(known[name], value)
        except ValueError as error:
            raise UsageError(f"{where} {key}: {error}") from None
    return found


def _value(param: click.Option, value: Any) -> Any:
    """A TOML value as click takes it for an option; raises ValueError."""
    setting = options().get(str(param.name))
    if setting is not None:
        return setting.parse(value)
    if param.multiple:
        return value if isinstance(value, list) else [value]
    if isinstance(value, str | int | float) or (isinstance(value, list) and isinstance(param.type, Texts)):
        return value
    raise ValueError(f"{value!r} is no single value")


def settings_from(values: Mapping[str, Any]) -> Settings:
    """The settings that a command was given; raises UsageError."""
    given: dict[str, Any] = {}
    for name, option in options().items():
        value = values.get(name)
        if option.repeated:
            if value:
                try:
                    given[name] = option.parse(value)
                except ValueError as error:
                    raise UsageError(f"--{name}: {error}") from None
        elif value is not None:
            given[name] = value
    for name in ("concurrency", "rpm", "tpm"):
        given.setdefault(name, None)
    ctx = click.get_current_context()
    config = ctx.meta.get(_CONFIG)
    if config is None:
        return Settings(**given)
    is_told = ctx.get_parameter_source("base_url") is ParameterSource.COMMANDLINE
    endpoints = () if is_told else config.endpoints  # a --base-url stands for itself
    return Settings(**given, models=config.models, pools=config.pools, endpoints=endpoints)
