"""What a run may be told: one frozen tree, and all of its validation.

Rules of this file: an option, a key of batchrouter.toml and a field are the same word, spelled once, here; the
command line is generated from the fields. How their values are read is in `values`. The API key is not a setting (see
`keys`).
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from batchrouter import values
from batchrouter.errors import UsageError

DEFAULT_BASE_URL: Final = "https://inference-api.worldrouter.ai/v1"
BASE_URL_VARIABLES: Final = ("WORLDROUTER_BASE_URL", "OPENAI_BASE_URL")


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
        values.text,
        "URL",
        "The endpoint, up to and with /v1 (also WORLDROUTER_BASE_URL, OPENAI_BASE_URL).",
    )
    api_key_file: str | None = _option(None, values.text, "FILE", "Where the API key is, if not in the environment.")
    model: str | None = _option(None, values.text, "ID", "The model of rows that name none.")
    override_model: str | None = _option(None, values.text, "ID", "The model of all rows, whatever they name.")
    set: tuple[tuple[str, str], ...] = _option(
        (),
        values.assignments,
        "KEY=JSON",
        "A default for a field of every body that lacks it; may be repeated.",
        repeated=True,
    )
    stream: bool | None = _option(
        None, values.flag, "", "Ask for streamed answers (or for plain ones), whatever rows say."
    )
    concurrency: int | None = _option(None, values.auto_positive, "N|auto", "Most requests in flight at once.")
    rpm: float | None = _option(None, values.auto_rate, "N|auto", "Requests a minute that the endpoint allows.")
    tpm: float | None = _option(None, values.auto_rate, "N|auto", "Tokens a minute that the endpoint allows.")
    max_attempts: int = _option(5, values.positive, "N", "Attempts a row has before it counts as failed.")
    timeout: float = _option(600.0, values.parse_duration, "S", "Longest that one attempt may take.")
    idle_timeout: float = _option(120.0, values.parse_duration, "S", "Longest that an attempt may stay without a byte.")
    max_wait: float = _option(3600.0, values.parse_duration, "S", "Longest that a Retry-After is waited out.")
    max_outage: float = _option(900.0, values.parse_duration, "S", "Longest that an endpoint may be down.")
    wait_for_credits: float | None = _option(
        None, values.parse_duration, "MAX", "When credits are spent, probe and go on after a top-up.", alone="365d"
    )
    max_time: float | None = _option(
        None, values.parse_duration, "S", "Stop after this long, in time for what is in flight."
    )
    until: str | None = _option(
        None, values.time_of_day, "HH:MM", "Stop by this local time, in time for what is in flight."
    )
    max_tokens: int | None = _option(
        None, values.positive, "N", "Stop before this start has used more tokens than this."
    )
    max_cost: float | None = _option(
        None, values.amount, "USD", "Stop before this start has cost more (prices: config file)."
    )
    max_response: int = _option(64 * 2**20, values.parse_size, "SIZE", "Largest answer that is read.")
    limit: int | None = _option(None, values.positive, "N", "Only the first N rows.")
    changed: Changed = _option(
        "refuse",
        values.one_of("refuse", "rerun", "keep"),
        "HOW",
        "What to do with rows asked before with another body.",
    )
    retry: tuple[str, ...] = _option(
        (), values.retry_classes, "CLASS,…",
        "Ask failed rows again: all, 4xx, 5xx, a status, timeout, connection, truncated, or another error code.",
    )  # fmt: skip
    dedupe: bool = _option(False, values.flag, "", "Send rows with equal bodies once, and answer each of them.")  # noqa: FBT003  (a default, not an argument)
    strict: bool = _option(False, values.flag, "", "Stop before sending anything when a row is invalid.")  # noqa: FBT003  (a default, not an argument)
    on_truncated: OnTruncated = _option(
        "keep",
        values.one_of("keep", "grow", "fail"),
        "HOW",
        "What to do with answers cut off before they said anything.",
    )
    max_grow: int = _option(32768, values.positive, "N", "Largest token budget that --on-truncated grow asks for.")
    check_json: bool = _option(False, values.flag, "", "Check answers against the response_format of their rows.")  # noqa: FBT003  (a default, not an argument)
    json_attempts: int = _option(2, values.positive, "N", "Answers asked for before a row fails as schema_mismatch.")
    max_fail_ratio: float = _option(
        0.0, values.ratio, "R", "Share of failed rows that still counts as success (exit 0)."
    )
    grace: float = _option(
        30.0, values.parse_duration, "S", "How long requests in flight may finish after a first Ctrl-C."
    )
    checkpoint_every: float = _option(
        1.0, values.parse_duration, "S", "Longest between two syncs of the files to the disk."
    )
    allow_insecure: bool = _option(False, values.flag, "", "Send the key over plain http:// to another machine.")  # noqa: FBT003  (a default, not an argument)
    proxy: str | None = _option(None, values.text, "URL", "An HTTP proxy; none is taken from the environment.")
    ca_file: str | None = _option(None, values.text, "FILE", "Certificates to trust, instead of the system's.")
    fallback_model: str | None = _option(None, values.text, "M", "Where rows go whose model keeps failing.")
    assign: Assign = _option(
        "free", values.one_of("free", "fixed"), "HOW", "A pool's rows: to who is quickest, or fixed by each row's id."
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
        raise UsageError("--base-url must hold no user or password; the key comes from WORLDROUTER_API_KEY")
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
