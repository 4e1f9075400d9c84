"""Options made from the fields of `Settings`: spelled once, there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from batchrouter.errors import UsageError
from batchrouter.settings import BASE_URL_VARIABLES, Option, Settings, load_config, options

DEFAULT_CONFIG: Final = "batchrouter.toml"
_MODELS: Final = "batchrouter.models"


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


class _Assigned(_Parsed):
    """One KEY=JSON of several, kept as it is: they are read together."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text itself, once it reads."""
        super().convert(value, param, ctx)
        return value


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for every setting, and --config."""
    for name, option in reversed(options().items()):
        command = _decorator(name, option)(command)
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
        return click.option(flag, name, type=_Assigned(option), multiple=True, metavar=option.metavar, help=option.help)
    text = option.help + _default_text(name)
    extra: dict[str, Any] = {} if option.alone is None else {"is_flag": False, "flag_value": option.alone}
    if name == "base_url":
        extra["envvar"] = ["BATCHROUTER_RUN_BASE_URL", *BASE_URL_VARIABLES]
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
    config = load_config(path)
    ctx.default_map = {**(ctx.default_map or {}), **config.run}
    ctx.meta[_MODELS] = config.models


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
    return Settings(**given, models=click.get_current_context().meta.get(_MODELS, {}))
