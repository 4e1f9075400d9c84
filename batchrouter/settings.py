"""What a run may be told: one frozen tree, and all of its validation.

Rules of this file: an option, a key of batchrouter.toml and a field are the same word, spelled once, here; the
command line is generated from the fields. A value is read from text (flag, environment) or from TOML by the same
function, which raises ValueError with what was expected. The API key is not a setting: it is found by `find_key` and
printed by nobody.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from batchrouter.errors import UsageError

DEFAULT_BASE_URL: Final = "https://inference-api.worldrouter.ai/v1"
BASE_URL_VARIABLES: Final = ("WORLDROUTER_BASE_URL", "OPENAI_BASE_URL")
KEY_VARIABLES: Final = ("WORLDROUTER_API_KEY", "OPENAI_API_KEY")

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


def _positive(value: object) -> int:
    try:
        number = int(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is no whole number") from None
    if number < 1:
        raise ValueError(f"{value!r} must be at least 1")
    return number


def _auto_positive(value: object) -> int | None:
    return None if str(value).lower() == "auto" else _positive(value)


def _auto_rate(value: object) -> float | None:
    if str(value).lower() == "auto":
        return None
    try:
        rate = float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is neither a number a minute nor `auto`") from None
    if not 0 < rate < math.inf:
        raise ValueError(f"{value!r} must be above 0")
    return rate


def _ratio(value: object) -> float:
    try:
        ratio = float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None
    if not 0 <= ratio <= 1:
        raise ValueError(f"{value!r} must be between 0 and 1")
    return ratio


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def _clock(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f"{value!r} is no time of day such as 06:00")
    return text


def _amount(value: object) -> float:
    try:
        amount = float(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is no amount") from None
    if not 0 < amount < math.inf:
        raise ValueError(f"{value!r} must be above 0")
    return amount


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return parse


_RETRY_CLASSES: Final = frozenset(
    {"all", "4xx", "5xx", "timeout", "connection", "bad_response", "truncated", "schema_mismatch", "redirect"}
    | {"attempts_exhausted"}
)


def _retry_classes(value: object) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    classes = tuple(str(part).strip() for part in parts)
    for one in classes:
        if one not in _RETRY_CLASSES and not re.fullmatch(r"[1-5]\d\d", one):
            raise ValueError(f"{one!r} is no class: {', '.join(sorted(_RETRY_CLASSES))}, or a status such as 503")
    return classes


def _assignments(value: object) -> tuple[tuple[str, str], ...]:
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


Changed = Literal["refuse", "rerun", "keep"]
OnTruncated = Literal["keep", "grow", "fail"]
Assign = Literal["free", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A model's prices in USD per million tokens (`cached` of prompt tokens; None: as `prompt`)."""

    prompt: float
    completion: float
    cached: float | None = None

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """USD for so many tokens; `cached_tokens` are among `prompt_tokens`."""
        cached = self.prompt if self.cached is None else self.cached
        plain_tokens = prompt_tokens - min(cached_tokens, prompt_tokens)
        return (plain_tokens * self.prompt + cached_tokens * cached + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a config file says of a model: its price, the models (or pools) that its rows go to, in turn, when it keeps
    failing, the one for rows that are too long for it, and (field, JSON text) defaults of bodies.
    """

    price: Price | None = None
    fallback: tuple[str, ...] = ()
    context_fallback: str | None = None
    body: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place to send to. `models` maps the models it serves to the ids it knows them by (None: any, as they are);
    `weight` is its share where several are equally quick; None of a limit: it is found out.
    """

    name: str
    base_url: str
    key_env: str | None = None
    key_file: str | None = None
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    weight: float = 1.0
    headers: tuple[tuple[str, str], ...] = ()
    models: Mapping[str, str] | None = None

    @property
    def is_limited(self) -> bool:
        """Whether a limit was told: it is the endpoint's, for all models together."""
        return self.rpm is not None or self.tpm is not None or self.concurrency is not None


class Option(NamedTuple):
    """How a field is spoken of on the command line, in the environment and in TOML."""

    parse: Callable[[Any], Any]
    metavar: str
    help: str
    repeated: bool = False
    alone: str | None = None  # the value where the flag stands without one


def _option(
    default: Any,
    parse: Callable[[Any], Any],
    metavar: str,
    text: str,
    *,
    repeated: bool = False,
    alone: str | None = None,
) -> Any:
    return field(default=default, metadata={"option": Option(parse, metavar, text, repeated, alone)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a run may be told, validated; a value None of `concurrency`, `rpm`, `tpm` means `auto`."""

    base_url: str = _option(
        DEFAULT_BASE_URL,
        _text,
        "URL",
        "The endpoint, up to and with /v1 (also WORLDROUTER_BASE_URL, OPENAI_BASE_URL).",
    )
    api_key_file: str | None = _option(None, _text, "FILE", "Where the API key is, if not in the environment.")
    model: str | None = _option(None, _text, "ID", "The model of rows that name none.")
    override_model: str | None = _option(None, _text, "ID", "The model of all rows, whatever they name.")
    set: tuple[tuple[str, str], ...] = _option(
        (),
        _assignments,
        "KEY=JSON",
        "A default for a field of every body that lacks it; may be repeated.",
        repeated=True,
    )
    stream: bool | None = _option(None, _flag, "", "Ask for streamed answers (or for plain ones), whatever rows say.")
    concurrency: int | None = _option(None, _auto_positive, "N|auto", "Most requests in flight at once.")
    rpm: float | None = _option(None, _auto_rate, "N|auto", "Requests a minute that the endpoint allows.")
    tpm: float | None = _option(None, _auto_rate, "N|auto", "Tokens a minute that the endpoint allows.")
    max_attempts: int = _option(5, _positive, "N", "Attempts a row has before it counts as failed.")
    timeout: float = _option(600.0, parse_duration, "S", "Longest that one attempt may take.")
    idle_timeout: float = _option(120.0, parse_duration, "S", "Longest that an attempt may stay without a byte.")
    max_wait: float = _option(3600.0, parse_duration, "S", "Longest that a Retry-After is waited out.")
    max_outage: float = _option(900.0, parse_duration, "S", "Longest that an endpoint may be down.")
    wait_for_credits: float | None = _option(
        None, parse_duration, "MAX", "When credits are spent, probe and go on after a top-up.", alone="365d"
    )
    max_time: float | None = _option(None, parse_duration, "S", "Stop after this long, in time for what is in flight.")
    until: str | None = _option(None, _clock, "HH:MM", "Stop by this local time, in time for what is in flight.")
    max_tokens: int | None = _option(None, _positive, "N", "Stop before this start has used more tokens than this.")
    max_cost: float | None = _option(
        None, _amount, "USD", "Stop before this start has cost more (prices: config file)."
    )
    max_response: int = _option(64 * 2**20, parse_size, "SIZE", "Largest answer that is read.")
    limit: int | None = _option(None, _positive, "N", "Only the first N rows.")
    changed: Changed = _option(
        "refuse",
        _one_of("refuse", "rerun", "keep"),
        "HOW",
        "What to do with rows asked before with another body.",
    )
    retry: tuple[str, ...] = _option(
        (), _retry_classes, "CLASS,…",
        "Ask failed rows again: all, 4xx, 5xx, a status, timeout, connection, truncated, or another error code.",
    )  # fmt: skip
    dedupe: bool = _option(False, _flag, "", "Send rows with equal bodies once, and answer each of them.")  # noqa: FBT003  (a default, not an argument)
    strict: bool = _option(False, _flag, "", "Stop before sending anything when a row is invalid.")  # noqa: FBT003  (a default, not an argument)
    on_truncated: OnTruncated = _option(
        "keep", _one_of("keep", "grow", "fail"), "HOW", "What to do with answers cut off before they said anything."
    )
    max_grow: int = _option(32768, _positive, "N", "Largest token budget that --on-truncated grow asks for.")
    check_json: bool = _option(False, _flag, "", "Check answers against the response_format of their rows.")  # noqa: FBT003  (a default, not an argument)
    json_attempts: int = _option(2, _positive, "N", "Answers asked for before a row fails as schema_mismatch.")
    max_fail_ratio: float = _option(0.0, _ratio, "R", "Share of failed rows that still counts as success (exit 0).")
    grace: float = _option(30.0, parse_duration, "S", "How long requests in flight may finish after a first Ctrl-C.")
    checkpoint_every: float = _option(1.0, parse_duration, "S", "Longest between two syncs of the files to the disk.")
    allow_insecure: bool = _option(False, _flag, "", "Send the key over plain http:// to another machine.")  # noqa: FBT003  (a default, not an argument)
    proxy: str | None = _option(None, _text, "URL", "An HTTP proxy; none is taken from the environment.")
    ca_file: str | None = _option(None, _text, "FILE", "Certificates to trust, instead of the system's.")
    fallback_model: str | None = _option(None, _text, "M", "Where rows go whose model keeps failing.")
    assign: Assign = _option(
        "free", _one_of("free", "fixed"), "HOW", "A pool's rows: to who is quickest, or fixed by each row's id."
    )
    models: Mapping[str, Model] = field(default_factory=dict)
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot hold together."""
        object.__setattr__(self, "base_url", check_base_url(self.base_url, allow_insecure=self.allow_insecure))
        object.__setattr__(self, "endpoints", tuple(self._checked(endpoint) for endpoint in self.endpoints))
        for name in ("timeout", "idle_timeout", "max_wait", "max_outage", "checkpoint_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0")
        if self.proxy is not None and urlsplit(self.proxy).scheme not in {"http", "https"}:
            raise UsageError("--proxy must be an http:// or https:// URL")
        if self.ca_file is not None and not Path(self.ca_file).is_file():
            raise UsageError(f"--ca-file {self.ca_file}: there is no such file")

    def _checked(self, endpoint: Endpoint) -> Endpoint:
        try:
            url = check_base_url(endpoint.base_url, allow_insecure=self.allow_insecure)
        except UsageError as error:
            text = str(error).replace("--base-url", "base_url")
            raise UsageError(f"[[endpoint]] {endpoint.name}: {text}") from None
        return replace(endpoint, base_url=url)

    def all_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints of the config file, with the limits of this run where they have none of their own; without any
        the one at `base_url`.
        """
        if not self.endpoints:
            name = urlsplit(self.base_url).netloc
            return (
                Endpoint(name=name, base_url=self.base_url, rpm=self.rpm, tpm=self.tpm, concurrency=self.concurrency),
            )
        return tuple(
            endpoint if endpoint.is_limited else replace(endpoint, rpm=self.rpm, tpm=self.tpm)
            for endpoint in self.endpoints
        )

    @property
    def prices(self) -> dict[str, Price]:
        """Model -> its price, where it is known."""
        return {name: model.price for name, model in self.models.items() if model.price is not None}

    def shown(self) -> dict[str, Any]:
        """The settings as run.json records them (there is no secret among them)."""
        shown = {name: getattr(self, name) for name in options()}
        if self.proxy is not None:
            url = urlsplit(self.proxy)
            shown["proxy"] = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
        return shown


def options() -> dict[str, Option]:
    """Field name -> how it is spoken of, in the order of the fields."""
    return {item.name: item.metadata["option"] for item in fields(Settings) if item.metadata}


def check_base_url(text: str, *, allow_insecure: bool) -> str:
    """The base URL without a last slash; raises UsageError with the next move for one that cannot work."""
    try:
        url = urlsplit(text.strip())
        host, _ = url.hostname, url.port
    except ValueError:
        url, host = urlsplit(""), None
    if url.scheme not in {"http", "https"} or not host:
        raise UsageError("--base-url must look like https://host/v1")
    if url.username is not None or url.password is not None:
        raise UsageError(f"--base-url must hold no user or password; the key comes from {KEY_VARIABLES[0]}")
    if url.query or url.fragment:
        raise UsageError("--base-url must hold no ? or #")
    path = url.path.rstrip("/")
    if path.endswith(("/chat/completions", "/completions", "/embeddings", "/responses")):
        raise UsageError("--base-url ends where the API's paths begin: give it up to and with /v1")
    if url.scheme == "http" and not allow_insecure and not is_loopback(host):
        raise UsageError(
            f"the key would travel unencrypted to {host}; use https://, or --allow-insecure if you mean it"
        )
    return f"{url.scheme}://{url.netloc}{path}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Secret:
    """A text that no repr, log or traceback shows; `reveal()` is for the header alone."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(…)"

    def reveal(self) -> str:
        """The text itself."""
        return self._text


def key_of(endpoint: Endpoint, environ: Mapping[str, str], key_file: str | None) -> Secret:
    """An endpoint's own key; where it names none, the key of the run. Raises UsageError."""
    if endpoint.key_env is not None:
        if not environ.get(endpoint.key_env, "").strip():
            raise UsageError(f"there is no key for the endpoint {endpoint.name}: export {endpoint.key_env}=…")
        return _checked_key(environ[endpoint.key_env], endpoint.key_env)
    if endpoint.key_file is not None:
        return _key_in(endpoint.key_file, f"the key_file of the endpoint {endpoint.name}")
    return find_key(environ, key_file)


def find_key(environ: Mapping[str, str], key_file: str | None) -> Secret:
    """The API key from the environment, else from `key_file`; raises UsageError saying where to put it."""
    for name in KEY_VARIABLES:
        if environ.get(name, "").strip():
            return _checked_key(environ[name], name)
    if key_file is not None:
        return _key_in(key_file, "--api-key-file")
    raise UsageError(
        f"there is no API key: export {KEY_VARIABLES[0]}=…, or give --api-key-file FILE, or try --emulate first"
    )


def _key_in(path: str, what: str) -> Secret:
    try:
        content = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    return _checked_key(content, path)


def _checked_key(text: str, source: str) -> Secret:
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the API key in {source} is not one: a key is printable ASCII without blanks")
    return Secret(key)
