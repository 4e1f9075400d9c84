"""The catalogue: shown by `models`, and asked by `plan` and `run` whether it holds what the rows ask for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.hostile import KEY, Heard, Step, hostile, http, right
from kit.world import request_row, run, serving, write_jsonl

from batchrouter.catalogue import Catalogue
from batchrouter.cli.models import command
from batchrouter.errors import UsageError


def models(base_url: str, *options: str) -> Result:
    """The command in this process, against a server of this process."""
    environ = {"WORLDROUTER_BASE_URL": base_url, "WORLDROUTER_API_KEY": KEY}
    return CliRunner().invoke(command, options, env=environ)


def answering(heard: Heard) -> Iterable[Step]:
    return [http(200, right(heard))]


def test_the_catalogue_as_a_table_and_as_json(tmp_path: Path) -> None:
    """A line a model, sorted, with its owner; or the endpoint's own entries, unchanged."""
    with serving() as served:
        table = run("models", cwd=tmp_path, env=served.environment)
        listed = run("models", "--json", cwd=tmp_path, env=served.environment)
    assert (table.returncode, table.stderr) == (0, "")
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["MODEL", "OWNER"]
    assert lines[1:] == sorted(lines[1:])
    assert ["gpt-5.4", "openai"] in lines
    models = json.loads(listed.stdout)
    assert {model["id"] for model in models} == {line[0] for line in lines[1:]}
    assert {model["object"] for model in models} == {"model"}


def test_odd_entries_harm_nobody() -> None:
    """Entries that are no models are left out; what is shown is safe for a terminal."""
    entries = [{"id": "b\u001b[31m"}, {"id": "a", "owned_by": ["x\n"]}, {"id": 7}, "c", None, {}]
    with hostile(answering, catalogue=http(200, {"data": entries})) as server:
        done = models(server.base_url)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == ["MODEL   OWNER", "a       ['x\\n']", "b [31m"]


def test_several_endpoints_are_listed_together(tmp_path: Path) -> None:
    """Each with its own key: whose catalogue a model stands in; one that has none is told beside the others."""
    config = tmp_path / "two.toml"
    with (
        hostile(answering, catalogue=http(200, {"data": [{"id": "b", "owned_by": "o"}, {"id": "a"}]})) as first,
        hostile(answering, catalogue=http(200, {"data": [{"id": "a"}]})) as second,
        hostile(answering) as third,
    ):
        places = {"one": first, "two": second, "three": third}
        config.write_text(
            "".join(
                f'[[endpoint]]\nname = "{n}"\nbase_url = "{each.base_url}"\nkey_env = "KEY_{n}"\n'
                for n, each in places.items()
            ),
            "utf-8",
        )
        keys = {f"KEY_{name}": f"sk-{name}-0123456789" for name in places}
        done = CliRunner().invoke(command, ["--config", str(config)], env=keys)
        listed = CliRunner().invoke(command, ["--config", str(config), "--json"], env=keys)
    assert done.exit_code == listed.exit_code == 2
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["MODEL", "OWNER", "ENDPOINT"], ["a", "one"], ["a", "two"], ["b", "o", "one"],
    ]  # fmt: skip
    assert done.stderr.startswith(f"batchrouter: {third.base_url}/models: 404")
    assert {each["endpoint"]: len(each["models"]) for each in json.loads(listed.stdout)} == {"one": 2, "two": 1}


TROUBLE: dict[str, tuple[bytes, int, str]] = {
    "no such route": (http(404, {"detail": "Not Found"}), 2, "/models: 404, Not Found; is the base URL right"),
    "a page": (http(200, b"<html>", "content-type: text/html"), 2, "/models is no catalogue; is the base URL right"),
    "another shape": (http(200, {"models": []}), 2, "/models is no catalogue"),
    "a redirect": (http(302, b"", "location: /login"), 2, "/models: 302"),
    "the key": (http(401, {"error": {"message": "bad key"}}), 3, "/models: 401, bad key; check that the key is set"),
    "credits": (http(402, {"error": {"message": "empty"}}), 4, "/models: 402, empty; top up"),
    "a failure": (http(503, {"error": "later"}), 5, "/models: 503, later"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_why_there_is_no_catalogue(name: str) -> None:
    """One line that says what came and what to do, and the exit code that `run` would have."""
    answer, code, message = TROUBLE[name]
    with hostile(answering, catalogue=answer) as server:
        done = models(server.base_url)
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_nobody_is_there() -> None:
    """Unreachable is 5, no key is 2."""
    done = models("http://127.0.0.1:1/v1")
    assert done.exit_code == 5
    assert "cannot connect to 127.0.0.1:1" in done.stderr
    without = CliRunner().invoke(command, env={"WORLDROUTER_API_KEY": "", "OPENAI_API_KEY": ""})
    assert isinstance(without.exception, UsageError)


def test_models_that_are_not_listed_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    """By `plan` and by `run`, each once with their names; without a catalogue: silence."""
    rows = [request_row(n, model=model) for n, model in enumerate(["gpt-5.4", "GPT-5.4", "gpt-6"])]
    write_jsonl(tmp_path / "in.jsonl", rows)
    warning = "not in the endpoint's catalogue: GPT-5.4, gpt-6 (`batchrouter models` lists it"
    with serving() as served:
        planned = run("plan", "in.jsonl", "--json", cwd=tmp_path, env=served.environment)
        assert planned.returncode == 0
        assert planned.stderr.count(warning) == 1
        assert json.loads(planned.stdout)["new"] == 3
        assert served.asked == 0
        started = run("run", "in.jsonl", cwd=tmp_path, env=served.environment)
        assert started.stderr.startswith(f"batchrouter: {warning}")
    with hostile(answering) as server:
        silent = run("run", "in.jsonl", "-o", "x", "-q", cwd=tmp_path, env=server.environment)
        assert (silent.returncode, silent.stderr) == (0, "")


@pytest.mark.parametrize(
    ("listed", "wanted", "told"),
    [
        (["a", "b"], ["a"], ""),
        (["a", "b"], [], ""),
        (["a"], ["c", "A"], "not in the endpoint's catalogue: A, c (`batchrouter models` lists it; case matters)"),
        ([], ["a"], ""),
        (None, ["a"], ""),
    ],
)
def test_what_is_told_of_models_that_are_not_listed(listed: list[str] | None, wanted: list[str], told: str) -> None:
    """Their names; of an endpoint without a catalogue, or with an empty one, nothing."""
    models = None if listed is None else [{"id": name} for name in listed]
    assert Catalogue(None, models).warning(wanted) == told


def test_of_many_models_that_are_not_listed_a_few_are_named() -> None:
    """Ten, and how many more there are."""
    told = Catalogue(None, [{"id": "a"}]).warning(f"m{n:02}" for n in range(25))
    assert "m08, m09 and 15 others (" in told
