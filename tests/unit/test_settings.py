"""What a run may be told, and how it is told that it was told wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.config import load_config
from batchrouter.errors import UsageError
from batchrouter.keys import Secret, find_key
from batchrouter.settings import DEFAULT_BASE_URL, Settings, check_base_url, is_loopback, options
from batchrouter.values import parse_duration, parse_size

DURATIONS: list[tuple[Any, float]] = [
    ("90", 90), ("0.2s", 0.2), ("90s", 90), ("15m", 900), ("15min", 900), ("6h", 21600), ("1h30m", 5400),
    ("2d", 172800), ("250ms", 0.25), (".5s", 0.5), ("1.", 1), (" 5 ", 5), ("1H", 3600), (90, 90), (1.5, 1.5), ("0", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_durations(text: Any, seconds: float) -> None:
    """Seconds, or with a unit, or several of them."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "1x", "1 h", "h1", "1e3", "inf", "nan", "1h30", True, None, [], "1,5s"]
)
def test_no_durations(text: Any) -> None:
    """Anything else is refused with what was expected."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """No rounding, no surprises."""
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * factor)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 * 2**20), ("2MB", 2_000_000), ("100", 100), ("1.5KiB", 1536), ("1 gb", 10**9), (5, 5), ("3B", 3)],
)
def test_sizes(text: Any, size: int) -> None:
    """Bytes, or with a unit of tens or of twos."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1TB5", "x", "1.2.3MB", None])
def test_no_sizes(text: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


# --- the endpoint ------------------------------------------------------------------------------------------------

URLS: list[tuple[str, str]] = [
    ("https://api.example/v1", "https://api.example/v1"),
    (" https://api.example/v1// ", "https://api.example/v1"),
    ("https://api.example:8443/v1", "https://api.example:8443/v1"),
    ("https://api.example", "https://api.example"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    ("http://127.0.0.1/v1", "http://127.0.0.1/v1"),
    ("http://[::1]:1/v1", "http://[::1]:1/v1"),
    ("http://127.9.9.9", "http://127.9.9.9"),
    ("http://x.localhost/v1", "http://x.localhost/v1"),
    ("http://LOCALHOST/v1", "http://LOCALHOST/v1"),
]


@pytest.mark.parametrize(("text", "url"), URLS)
def test_base_urls(text: str, url: str) -> None:
    """Up to and with /v1; plain http only to this very machine."""
    assert check_base_url(text, allow_insecure=False) == url


BAD_URLS: list[tuple[str, str]] = [
    ("", "https://host/v1"),
    ("api.example/v1", "https://host/v1"),
    ("ftp://api.example", "https://host/v1"),
    ("https://", "https://host/v1"),
    ("https://h:99999/v1", "https://host/v1"),
    ("https://[::1/v1", "https://host/v1"),
    ("https://me:secret@api.example/v1", "user or password"),
    ("https://me@api.example/v1", "user or password"),
    ("https://api.example/v1?x=1", r"\?"),
    ("https://api.example/v1#x", "#"),
    ("https://api.example/v1/chat/completions", "up to and with /v1"),
    ("https://api.example/v1/chat/completions/", "up to and with /v1"),
    ("http://api.example/v1", "unencrypted"),
    ("http://0.0.0.0/v1", "unencrypted"),
    ("http://localhost.evil.example/v1", "unencrypted"),
    ("http://127.0.0.1.nip.io/v1", "unencrypted"),
    ("http://192.168.1.5/v1", "unencrypted"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_URLS)
def test_base_urls_that_cannot_be_meant(text: str, reason: str) -> None:
    """Refused with the next move, and without repeating a password."""
    with pytest.raises(UsageError, match=reason) as caught:
        check_base_url(text, allow_insecure=False)
    assert "secret" not in str(caught.value)


def test_plain_http_elsewhere_is_for_those_who_mean_it() -> None:
    """--allow-insecure, and nothing less."""
    assert Settings(base_url="http://api.example/v1", allow_insecure=True).base_url == "http://api.example/v1"
    with pytest.raises(UsageError, match="--allow-insecure"):
        Settings(base_url="http://api.example/v1")
    assert not is_loopback("example")


# --- the key -----------------------------------------------------------------------------------------------------


def test_where_the_key_comes_from(tmp_path: Path) -> None:
    """WORLDROUTER_API_KEY, else OPENAI_API_KEY, else the file; empty variables are none."""
    path = tmp_path / "key"
    path.write_text(" sk-file \n")
    both = {"WORLDROUTER_API_KEY": "sk-world", "OPENAI_API_KEY": "sk-open"}
    assert find_key(both, str(path)).reveal() == "sk-world"
    assert find_key({**both, "WORLDROUTER_API_KEY": " "}, str(path)).reveal() == "sk-open"
    assert find_key({}, str(path)).reveal() == "sk-file"
    with pytest.raises(UsageError, match="WORLDROUTER_API_KEY"):
        find_key({}, None)


@pytest.mark.parametrize("content", [b"", b"two words", b"two\nsk-second", b"\xff\xfe", "schlüssel".encode(), b"a\0b"])
def test_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    """A file of something else: said so with its name, without its content."""
    path = tmp_path / "keyfile"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="keyfile") as caught:
        find_key({}, str(path))
    assert "sk-second" not in str(caught.value)
    with pytest.raises(UsageError, match="missing"):
        find_key({}, str(tmp_path / "missing"))


def test_a_secret_shows_itself_to_nobody() -> None:
    """In no repr, text, format or container."""
    secret = Secret("sk-secret")
    shown = f"{secret} {secret!r} {[secret]} {secret:}"
    assert "sk-secret" not in shown
    assert secret.reveal() == "sk-secret"


# --- the tree ----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_contracts() -> None:
    """CONTRACT 2."""
    made = Settings()
    assert made.base_url == DEFAULT_BASE_URL == "https://inference-api.worldrouter.ai/v1"
    assert (made.timeout, made.idle_timeout, made.max_attempts) == (600, 120, 5)
    assert (made.concurrency, made.rpm, made.tpm) == (None, None, None)
    assert (made.max_wait, made.max_outage, made.grace, made.checkpoint_every) == (3600, 900, 30, 1)
    assert made.max_response == 64 * 2**20
    assert made.changed == "refuse"
    assert made.on_truncated == "keep"
    assert not made.strict


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "max_wait", "max_outage", "checkpoint_every"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_times_that_cannot_hold(name: str, value: float) -> None:
    """None of them may be nothing or endless; the option is named."""
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_what_is_recorded_holds_no_secret(tmp_path: Path) -> None:
    """run.json shows the settings; the password of a proxy is none of its business."""
    made = Settings(proxy="http://me:hunter2@proxy.example:3128", api_key_file=str(tmp_path))
    assert "hunter2" not in json.dumps(made.shown())
    assert json.loads(json.dumps(Settings().shown()))["max_attempts"] == 5


@pytest.mark.parametrize("proxy", ["socks5://h:1", "proxy.example:3128", "x"])
def test_proxies_are_http(proxy: str) -> None:
    """Anything else is refused."""
    with pytest.raises(UsageError, match="--proxy"):
        Settings(proxy=proxy)


def test_a_missing_ca_file_is_told(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match="--ca-file"):
        Settings(ca_file=str(tmp_path / "missing.pem"))


VALUES: list[tuple[str, Any, Any]] = [
    ("concurrency", "auto", None), ("concurrency", "AUTO", None), ("concurrency", "8", 8), ("concurrency", 8, 8),
    ("rpm", "auto", None), ("rpm", "600", 600.0), ("rpm", 0.5, 0.5), ("tpm", "2e6", 2e6),
    ("max_attempts", "1", 1), ("limit", 5, 5), ("strict", "yes", True), ("strict", "off", False),
    ("strict", True, True),
    ("stream", "0", False), ("max_fail_ratio", "0.05", 0.05), ("max_fail_ratio", 1, 1.0), ("timeout", "5m", 300.0),
    ("max_response", "1MiB", 2**20), ("changed", "rerun", "rerun"), ("retry", "5xx,timeout", ("5xx", "timeout")),
    ("retry", ["503"], ("503",)), ("model", "gpt-5.4", "gpt-5.4"),
    ("set", "temperature=0", (("temperature", "0"),)),
    ("set", ["a=1", 'b={"c": [1]}', "a=2"], (("a", "2"), ("b", '{"c": [1]}'))),
    ("set", {"temperature": 0, "stop": ["x"]}, (("temperature", "0"), ("stop", '["x"]'))),
    ("set", "x=a=b", None), ("set", 'x="a=b"', (("x", '"a=b"'),)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_values_are_read(name: str, value: Any, expected: Any) -> None:
    """From text and from TOML by the same function."""
    parse = options()[name].parse
    if name == "set" and expected is None:
        with pytest.raises(ValueError, match="not JSON"):
            parse(value)
    else:
        assert parse(value) == expected


WRONG: list[tuple[str, Any]] = [
    ("concurrency", "0"), ("concurrency", "-1"), ("concurrency", "many"), ("concurrency", "1.5"), ("concurrency", True),
    ("rpm", "0"), ("rpm", "-1"), ("rpm", "inf"), ("rpm", "nan"), ("rpm", "x"), ("max_attempts", "0"), ("limit", "0"),
    ("strict", "perhaps"), ("strict", 2), ("max_fail_ratio", "1.1"), ("max_fail_ratio", "-0.1"),
    ("max_fail_ratio", "nan"), ("changed", "maybe"), ("retry", "6xx"), ("retry", "4xx,what"), ("model", ""),
    ("model", " "), ("model", ["m"]), ("model", {"a": 1}), ("set", "temperature"), ("set", "=1"), ("set", "x=nope"),
    ("set", "x=NaN"), ("set", "messages=[]"), ("set", {"messages": []}), ("set", {"x": float("nan")}), ("set", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_values_that_are_wrong(name: str, value: Any) -> None:
    """Refused with what was expected, never with another kind of error."""
    with pytest.raises(ValueError, match=r".+"):
        options()[name].parse(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(options())), JSON_VALUES)
def test_any_value_of_a_config_file_is_read_or_refused(name: str, value: Any) -> None:
    """Whatever TOML can hold, dates too: a value, or a ValueError that becomes exit 2 with the place."""
    try:
        options()[name].parse(value)
    except ValueError as error:
        assert str(error)  # noqa: PT017  (either end is right)


# --- the config file ---------------------------------------------------------------------------------------------


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "batchrouter.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_config_file_speaks_the_options_words(tmp_path: Path) -> None:
    """With dashes or underscores, typed or as text; `auto` is none."""
    text = '[run]\nmodel = "m"\nmax-attempts = 3\ntimeout = "5m"\nrpm = "auto"\nstrict = true\n[run.set]\ntop_p = 0.5\n'
    assert load_config(config(tmp_path, text)).run == {
        "model": "m", "max_attempts": 3, "timeout": 300.0, "rpm": None, "strict": True, "set": (("top_p", "0.5"),),
    }  # fmt: skip
    assert load_config(config(tmp_path, "")).run == {}


BAD_CONFIGS: list[tuple[str, str]] = [
    ("[run", "TOML"),
    ("[runn]\n", "runn"),
    ("run = 5\n", "table"),
    ("[run]\nmax_atempts = 3\n", "max_attempts"),
    ("[run]\nmax_attempts = 0\n", "max_attempts"),
    ("[run]\ntimeout = '5 parsecs'\n", "timeout"),
    ("[run.set]\nwhen = 2020-01-01\n", "set"),
    ("[run]\nset = [2020-01-01]\n", "set"),
    ("[run]\napi_key = 'sk-x'\n", "api_key"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_CONFIGS)
def test_a_config_file_that_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    """Exit 2 with the file, the key, and a word that is near."""
    with pytest.raises(UsageError, match=reason) as caught:
        load_config(config(tmp_path, text))
    assert "batchrouter.toml" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Not there, or not text."""
    with pytest.raises(UsageError, match="missing"):
        load_config(tmp_path / "missing.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml"):
        load_config(path)


def test_every_option_says_what_it_is_for() -> None:
    """Each field of the tree has its words, and no two say the same."""
    helps = [option.help for option in options().values()]
    assert all(text.endswith((".", ")")) for text in helps)
    assert len(set(helps)) == len(helps)
