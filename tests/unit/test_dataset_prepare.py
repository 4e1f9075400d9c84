"""Rows to request rows: one prompt rendered for each, ids that are unique, pictures, samples; and forms of answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.dataset.labels import Mismatch, read_schema, shape_of_labels, shape_of_schema, split_labels
from batchrouter.dataset.prepare import Question, prepare, write_requests
from batchrouter.dataset.questions import read_questions
from batchrouter.errors import UsageError
from batchrouter.intake import Shaping, read_row
from batchrouter.jsonl import read_lines
from batchrouter.records import Request

ASK = Question(prompt="Sum up: {{ review }}")
ROWS = [{"id": "a", "review": "good"}, {"id": "b", "review": "bad"}]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


def content_of(request: Mapping[str, Any]) -> Any:
    return request["body"]["messages"][-1]["content"]


def test_a_row_becomes_a_request(tmp_path: Path) -> None:
    """Model, system message, form and defaults stand in the body; the run takes the row as it is."""
    question = Question(
        prompt="{{ review }}", system="You speak {{ id }}.", model="gpt-5.4", defaults=(("temperature", "0"),),
        response_format={"type": "json_object"},
    )  # fmt: skip
    assert write_requests(prepare(ROWS, question, id_column="id"), str(tmp_path / "r.jsonl")) == 2
    with (tmp_path / "r.jsonl").open("rb") as file:
        read = [read_row(line, 0, "r.jsonl", Shaping()) for line in read_lines(file)]
    assert isinstance(read[0], Request)
    assert read[0].custom_id == "a"
    assert json.loads(read[0].body) == {
        "model": "gpt-5.4",
        "messages": [{"role": "system", "content": "You speak a."}, {"role": "user", "content": "good"}],
        "temperature": 0,
        "response_format": {"type": "json_object"},
    }


def test_a_prompt_may_be_asked_as_it_is() -> None:
    """A question that is nothing but its prompt needs no Question."""
    assert [content_of(row) for row in prepare(ROWS, "Sum up: {{ review }}")] == ["Sum up: good", "Sum up: bad"]


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    """The number is the row's, whatever lines it takes in the file, so that a renamed or grown table keeps its ids."""
    (tmp_path / "t.csv").write_text('review\n"two\nlines"\nb\n')
    assert [row["custom_id"] for row in prepare(tmp_path / "t.csv", ASK)] == ["row-1", "row-2"]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        iter(ROWS),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS).to_dict("records"),
        pd.DataFrame(ROWS).convert_dtypes(),
        pl.DataFrame(ROWS),
        pl.DataFrame(ROWS).iter_rows(named=True),
        pl.DataFrame(ROWS).to_arrow().to_pylist(),
    ],
    ids=["dicts", "iterator", "pandas", "records", "pandas dtypes", "polars", "polars rows", "arrow"],
)
def test_any_mappings_will_do(rows: Any) -> None:
    """Lists and iterators of dicts, the frames of pandas and polars, and what these give as rows."""
    assert [content_of(row) for row in prepare(rows, ASK, id_column="id")] == ["Sum up: good", "Sum up: bad"]


MISSING = {
    "text": ["a", None],
    "number": [1.5, None],
    "when": pd.to_datetime(["2026-01-02", None]),
    "list": [[1], None],
}


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame(MISSING),
        pd.DataFrame(MISSING).convert_dtypes(),
        pd.DataFrame(MISSING).drop(columns="when").to_dict("records"),
        pl.DataFrame({**MISSING, "when": [None, None]}),
    ],
    ids=["pandas", "pandas dtypes", "records", "polars"],
)
def test_what_pandas_calls_missing_is_null(rows: Any) -> None:
    """NaN, NaT and NA are nothing in a prompt, never the words."""
    question = Question(prompt="[{{ text }}{{ number or 'none' }}{{ row.when }}{{ list or '' }}]")
    with_column = [{"when": None, **row} for row in rows] if isinstance(rows, list) else rows
    assert content_of(list(prepare(with_column, question))[1]) == "[none]"


def test_a_frame_with_twin_columns_is_refused() -> None:
    """Which of two columns of one name is meant would be a guess."""
    with pytest.raises(UsageError, match="columns of the same name: review, review"):
        list(prepare(pd.DataFrame([["a", "b"]], columns=["review", "review"]), ASK))


WRONG_IDS: list[tuple[str, str]] = [
    ('id,review\na,x\nb,"y\nz"\na,w\n', "t.csv:5: its 'id' is that of t.csv:2; ids must be unique"),
    ("id,review\na,x\n,y\n", "t.csv:3: its 'id' is empty"),
    ("name,review\na,x\n", "t.csv:2 has no column 'id'; there are: name, review"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "told"), WRONG_IDS)
def test_ids_must_be_there_and_unique(tmp_path: Path, table: str, told: str) -> None:
    """Both places of a doubled id are named; nothing is left at the output."""
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UsageError) as caught:
        write_requests(prepare(tmp_path / "t.csv", ASK, id_column="id"), str(tmp_path / "r.jsonl"))
    assert told in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@given(st.lists(st.text(min_size=1, max_size=3), max_size=30))
def test_ids_pass_exactly_when_they_are_unique(ids: list[str]) -> None:
    """The check in bounded memory finds what a set would."""
    rows = ({"id": known, "review": ""} for known in ids)
    try:
        found = [row["custom_id"] for row in prepare(rows, ASK, id_column="id")]
    except UsageError:
        assert len(set(ids)) < len(ids)
    else:
        assert found == ids
        assert len(set(ids)) == len(ids)


@given(size=st.integers(0, 40), wanted=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_sample_keeps_the_order(size: int, wanted: int, seed: int) -> None:
    """As many as asked for, or all; the same by the same seed; known by their own numbers."""
    rows = [{"review": str(number)} for number in range(1, size + 1)]
    drawn = [row["custom_id"] for row in prepare(rows, ASK, sample=wanted, seed=seed)]
    numbers = [int(known.removeprefix("row-")) for known in drawn]
    assert len(numbers) == min(size, wanted)
    assert numbers == sorted(set(numbers))
    assert drawn == [row["custom_id"] for row in prepare(rows, ASK, sample=wanted, seed=seed)]


def test_a_sample_is_fair() -> None:
    """Over many seeds the first and the last row are drawn about as often as any: 1 in 4."""
    rows = [{"review": ""} for _ in range(20)]
    drawn = [row["custom_id"] for seed in range(800) for row in prepare(rows, ASK, sample=5, seed=seed)]
    for number in (1, 5, 6, 20):
        assert 150 <= drawn.count(f"row-{number}") <= 250


def test_several_questions_make_several_requests() -> None:
    """A row's questions stand one after the other, under the row's id and the question's name."""
    questions = {"tone": Question(prompt="Tone? {{ review }}"), "topic": Question(prompt="Topic? {{ review }}")}
    found = list(prepare(ROWS, questions, id_column="id"))
    assert [row["custom_id"] for row in found] == ["a/tone", "a/topic", "b/tone", "b/topic"]
    assert content_of(found[3]) == "Topic? bad"


IMAGES: list[tuple[Any, list[str]]] = [
    ("https://example.com/a.png", ["https://example.com/a.png"]),
    ("data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
    ("pic.png", ["data:image/png;base64," + base64.b64encode(PNG).decode()]),
    (PNG, ["data:image/png;base64," + base64.b64encode(PNG).decode()]),
    ({"bytes": PNG, "path": "x"}, ["data:image/png;base64," + base64.b64encode(PNG).decode()]),
    (b"RIFF1234WEBPxx", ["data:image/webp;base64," + base64.b64encode(b"RIFF1234WEBPxx").decode()]),
    (["https://a/1", "https://a/2"], ["https://a/1", "https://a/2"]),
    ("", []),
    (None, []),
]


@pytest.mark.parametrize(("cell", "urls"), IMAGES)
def test_pictures_go_along_as_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: Any, urls: list[str]
) -> None:
    """URLs are passed on, files and bytes become data URLs; an empty cell leaves a plain text message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pic.png").write_bytes(PNG)
    [row] = prepare([{"review": "x", "pic": cell}], Question(prompt="What?", images=("pic",)))
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    assert content_of(row) == ([{"type": "text", "text": "What?"}, *parts] if parts else "What?")


NO_IMAGES: list[tuple[Any, str]] = [
    ("secret.txt", "'secret.txt' is no PNG, JPEG, GIF or WebP image, and is not sent"),
    ("missing.png", "No such file"),
    ("a\0b", "no path"),
    (7, "not a int"),
]


@pytest.mark.parametrize(("cell", "told"), NO_IMAGES)
def test_only_pictures_leave_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: Any, told: str) -> None:
    """A hostile cell that names another file gets it nowhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("password")
    with pytest.raises(UsageError, match="row 1: ") as caught:
        list(prepare([{"pic": cell}], Question(prompt="What?", images=("pic",))))
    assert told in str(caught.value)


def test_labels_ask_for_one_of_them() -> None:
    """The form is a strict schema with an enum; what is read is one of the labels or a finding."""
    shape = shape_of_labels(split_labels('positive, "a, b",neutral'))
    assert shape.form == {
        "type": "json_schema",
        "json_schema": {
            "name": "label",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"label": {"type": "string", "enum": ["positive", "a, b", "neutral"]}},
                "required": ["label"],
                "additionalProperties": False,
            },
        },
    }
    assert shape.read('{"label": "a, b"}') == {"label": "a, b"}
    with pytest.raises(Mismatch, match='label is "Positive", none of positive'):
        shape.read('{"label": "Positive"}')
    for wrong in ("", "a,,b", "a,b,a"):
        with pytest.raises(UsageError, match="--labels"):
            shape_of_labels(split_labels(wrong))


SCHEMA = {
    "title": "My review!",
    "type": "object",
    "properties": {
        "tone": {"$ref": "#/$defs/Tone"},
        "score": {"type": "number"},
        "count": {"type": "integer"},
        "sure": {"type": ["boolean", "null"]},
        "parts": {"type": "array", "items": {"type": "string"}},
        "lang": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["tone", "count"],
    "$defs": {"Tone": {"enum": ["good", "bad"]}},
}
READ: list[tuple[str, Any]] = [
    ('{"tone": "good", "count": 2}', ["good", None, 2, None, None, None]),
    ('{"tone": "bad", "count": 2.0, "score": 1, "sure": null}', ["bad", 1.0, 2, None, None, None]),
    ('{"tone": "bad", "count": 1, "parts": [{}], "lang": null, "more": 1}', ["bad", None, 1, None, [{}], None]),
    ('{"tone": "so so", "count": 1}', 'tone is "so so", none of good, bad'),
    ('{"tone": "good"}', "the content has no count"),
    ('{"tone": "good", "count": true}', "count is true, not of type integer"),
    ('{"tone": "good", "count": 1.5}', "count is 1.5, not of type integer"),
    ('{"tone": "good", "count": 99999999999999999999}', "not of type integer"),
    ('{"tone": null, "count": 1}', "tone is null, none of good, bad"),
    ("[1]", "the content is [1], not an object"),
    ("Sure! Here it is: {}", "the content is not JSON"),
    ('{"tone": "go', "the content is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), READ)
def test_content_is_read_by_its_schema(content: str, expected: Any) -> None:
    """References and nullable types are followed; a value that its column could not hold is a finding."""
    shape = shape_of_schema(SCHEMA, "file", source="s.json")
    assert [column.kind for column in shape.columns] == ["text", "number", "integer", "boolean", "text", "text"]
    if isinstance(expected, list):
        assert list(shape.read(content).values()) == expected
    else:
        with pytest.raises(Mismatch) as caught:
            shape.read(content)
        assert expected in str(caught.value)


def test_a_schema_file_may_be_the_whole_form(tmp_path: Path) -> None:
    """A response_format is asked for as it stands; a bare schema is wrapped, strict only if it keeps strict's rules."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": False, "schema": SCHEMA}}
    (tmp_path / "form.json").write_text(json.dumps(form))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert read_schema(tmp_path / "form.json").form == form
    wrapped = read_schema(tmp_path / "schema.json").form["json_schema"]
    assert (wrapped["name"], wrapped.get("strict"), wrapped["schema"]) == ("My_review_", None, SCHEMA)
    for wrong in ("{", "[]", '{"type": "array"}', '{"properties": {}}'):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UsageError, match=r"wrong\.json"):
            read_schema(tmp_path / "wrong.json")


def test_several_questions_come_from_a_file(tmp_path: Path) -> None:
    """Each table is a question; files are looked for beside it, and mistakes are named with the nearest key."""
    (tmp_path / "topic.txt").write_text("Topic of {{ review }}?\n")
    (tmp_path / "q.toml").write_text(
        '[question.tone]\nprompt = "Tone?"\nsystem = "Be brief."\nlabels = ["good", "bad"]\n'
        '[question.topic]\nprompt_file = "topic.txt"\n'
    )
    found = read_questions(tmp_path / "q.toml")
    assert list(found) == ["tone", "topic"]
    assert found["tone"].shape is not None
    assert [column.name for column in found["tone"].shape.columns] == ["tone"]
    assert found["topic"].prompt == "Topic of {{ review }}?\n"
    for text, told in [
        ('[question.a]\npromt = "x"', r"\[question\.a\]: unknown key 'promt'; did you mean prompt\?"),
        ("[question.a]", "needs either prompt or prompt_file"),
        ('[question."a/b"]\nprompt = "x"', "has no slash"),
        ("", "has no questions"),
        ("[question", "is not TOML"),
        ('[question.a]\nprompt = "x"\nlabels = "a,b"', "must be a list of texts"),
    ]:
        (tmp_path / "q.toml").write_text(text)
        with pytest.raises(UsageError, match=told):
            read_questions(tmp_path / "q.toml")
