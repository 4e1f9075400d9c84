"""batchrouter.toml: endpoints, models and pools, and every way to write them wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchrouter.config import load_config
from batchrouter.errors import UsageError
from batchrouter.keys import key_of
from batchrouter.settings import Endpoint, Model, Price, Settings

WHOLE = """
[run]
rpm = 600

[[endpoint]]
name = "worldrouter"
base_url = "https://inference-api.worldrouter.ai/v1/"
key_env = "WORLDROUTER_API_KEY"
rpm = 1200
weight = 2
headers = { "X-Team" = "labels" }
models = ["gpt-5.4"]

[[endpoint]]
name = "ours"
base_url = "http://127.0.0.1:8000/v1"
key_file = "vllm.key"
concurrency = 64
models = { "gpt-5.4" = "local/gpt", "small" = "small" }

[model."gpt-5.4"]
prompt = 2.5
completion = 10
cached = 1.25
fallback = ["small"]
context_fallback = "small"
body = { temperature = 0, stop = ["x"] }

[model.small]
fallback = "gpt-5.4"

[pool.any]
models = ["gpt-5.4", "small"]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "batchrouter.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    """Every table and key, as the settings hold them."""
    config = load_config(written(tmp_path, WHOLE))
    first, second = config.endpoints
    assert first == Endpoint(
        name="worldrouter", base_url="https://inference-api.worldrouter.ai/v1/", key_env="WORLDROUTER_API_KEY",
        rpm=1200.0, weight=2.0, headers=(("X-Team", "labels"),), models={"gpt-5.4": "gpt-5.4"},
    )  # fmt: skip
    assert second.models == {"gpt-5.4": "local/gpt", "small": "small"}
    assert (second.concurrency, second.key_file, second.weight) == (64, "vllm.key", 1.0)
    assert config.models["gpt-5.4"] == Model(
        price=Price(prompt=2.5, completion=10.0, cached=1.25), fallback=("small",), context_fallback="small",
        body=(("temperature", "0"), ("stop", '["x"]')),
    )  # fmt: skip
    assert config.models["small"] == Model(fallback=("gpt-5.4",))
    assert config.pools == {"any": ("gpt-5.4", "small")}


def test_a_limit_of_the_run_is_that_of_endpoints_without_one(tmp_path: Path) -> None:
    """What an endpoint says of itself stands; without endpoints in the file the base URL is the one there is."""
    config = load_config(written(tmp_path, WHOLE.replace("rpm = 1200\n", "")))
    settings = Settings(rpm=600.0, endpoints=config.endpoints)
    assert [endpoint.rpm for endpoint in settings.all_endpoints()] == [600.0, None]
    (alone,) = Settings(base_url="http://127.0.0.1:9/v1", rpm=5.0).all_endpoints()
    assert (alone.name, alone.base_url, alone.rpm, alone.models) == ("127.0.0.1:9", "http://127.0.0.1:9/v1", 5.0, None)


E = '[[endpoint]]\nname = "e"\nbase_url = "http://127.0.0.1/v1"\n'
WRONG: list[tuple[str, str]] = [
    ("[endpoint]\nname = 'e'\n", "two brackets"),
    ("endpoint = [1]\n", "two brackets"),
    ("[[endpoint]]\nname = 'e'\n", "base_url is missing"),
    ("[[endpoint]]\nbase_url = 'http://127.0.0.1/v1'\n", "name is missing"),
    (E + E, "two endpoints have the name 'e'"),
    (E + "weigth = 2\n", "unknown key 'weigth'; did you mean weight"),
    (E + "weight = 0\n", "above 0"),
    (E + "weight = true\n", "no weight"),
    (E + "rpm = -1\n", "e rpm"),
    (E + "key_env = 'A'\nkey_file = 'b'\n", "not both"),
    (E + "models = []\n", "leave it out"),
    (E + "models = [1]\n", "no text"),
    (E + "headers = { Authorization = 'Bearer x' }\n", "set by batchrouter itself"),
    (E + "headers = { X = 1 }\n", "no header"),
    (E + 'headers = { X = "a\\r\\nb" }\n', "no header"),
    ("[model.m]\nprompt = 1\n", "completion is missing"),
    ("[model.m]\nprompt = 'a'\ncompletion = 1\n", "no price"),
    ("[model.m]\nfallbck = ['a']\n", "did you mean fallback"),
    ("[model.m]\nfallback = 1\n", "no list of names"),
    ("[model.m]\nbody = { model = 'x' }\n", "a row's own"),
    ("[model.m]\nbody = { t = 2020-01-01 }\n", "no word for"),
    ("[model.m]\nbody = 1\n", "a table of fields"),
    ("[pool.p]\n", "models is missing"),
    ("[pool.p]\nmodels = ['a']\nmodel = 'b'\n", "unknown key 'model'; did you mean models"),
    ("[pool.p]\nmodels = ['q']\n[pool.q]\nmodels = ['a']\n", "a pool itself"),
    ("[pool.p]\nmodels = ['a']\n[model.p]\nprompt = 1\ncompletion = 1\n", "a pool and a model"),
    ("[[endpoints]]\nname = 'e'\n", "did you mean endpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), WRONG)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    """The file, the table, the key, and a word that is near."""
    with pytest.raises(UsageError, match=reason) as caught:
        load_config(written(tmp_path, text))
    assert "batchrouter.toml" in str(caught.value)


def test_an_endpoints_url_is_held_to_what_a_base_url_is() -> None:
    """No plain http to another machine, no query; the message names the endpoint."""
    for url in ("http://example.com/v1", "https://example.com/v1?x=1", "example.com"):
        with pytest.raises(UsageError, match=r"\[\[endpoint\]\] far"):
            Settings(endpoints=(Endpoint(name="far", base_url=url),))


def test_each_endpoint_has_its_own_key(tmp_path: Path) -> None:
    """From its variable or its file; one that names none gets the run's; a missing one is an error that names it."""
    (tmp_path / "key").write_text("sk-file-000001\n")
    environ = {"WORLDROUTER_API_KEY": "sk-run-0000001", "OTHER": "sk-other-00001"}
    url = "http://127.0.0.1/v1"
    keys = [
        key_of(endpoint, environ, None).reveal()
        for endpoint in (
            Endpoint(name="a", base_url=url, key_env="OTHER"),
            Endpoint(name="b", base_url=url, key_file=str(tmp_path / "key")),
            Endpoint(name="c", base_url=url),
        )
    ]
    assert keys == ["sk-other-00001", "sk-file-000001", "sk-run-0000001"]
    with pytest.raises(UsageError, match="endpoint d: export MISSING"):
        key_of(Endpoint(name="d", base_url=url, key_env="MISSING"), environ, None)
    with pytest.raises(UsageError, match="endpoint e"):
        key_of(Endpoint(name="e", base_url=url, key_file=str(tmp_path / "none")), environ, None)


def test_the_readmes_file_is_one(tmp_path: Path) -> None:
    """What the README shows of endpoints, pools and fallbacks reads as it stands."""
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    shown = text.split("## Several models and endpoints")[1].split("```toml\n")[1].split("```")[0]
    config = load_config(written(tmp_path, shown))
    assert [endpoint.name for endpoint in config.endpoints] == ["worldrouter", "ours"]
    assert config.pools["cheap"] == ("gpt-5.4-mini", "gpt-oss")
    assert config.models["gpt-5.4"].fallback == ("gpt-oss",)
