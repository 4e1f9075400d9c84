"""Prompts: cells are data, names are checked, and a template can do no harm."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrouter.dataset import templates
from batchrouter.dataset.templates import Template
from batchrouter.errors import UsageError

ROW = {"id": 7, "review": "fine", "stars": None, "review text": "spaced", "tags": ["a", "b"], "range": "north"}

RENDERED: list[tuple[str, str]] = [
    ("{{ review }}", "fine"),
    ("{{ id + 1 }}", "8"),
    ("[{{ stars }}]", "[]"),  # a null is nothing, never the word None
    ("{{ stars or 'none' }}", "none"),
    ('{{ row["review text"] }}', "spaced"),
    ("{{ range }}", "north"),  # a column hides what Jinja brings
    ("{% for tag in tags %}{{ loop.index }}{{ tag }}{% endfor %}", "1a2b"),
    ("{% if missing is defined %}x{% else %}y{% endif %}", "y"),
    ("{{ review | upper | truncate(3, True, '', 0) }}", "FIN"),
    ("{{ '%s!' % review }}{{ '{}?'.format(id) }}", "fine!7?"),
    ("no names, {one brace}\n\n", "no names, {one brace}\n"),
    ("plain\n", "plain\n"),
    ("<b>{{ '&' }}</b>", "<b>&</b>"),
]


@pytest.mark.parametrize(("text", "expected"), RENDERED)
def test_a_row_renders(text: str, expected: str) -> None:
    """A prompt is text, not HTML: nothing is escaped."""
    assert Template(text, "--prompt").render(ROW, "t.csv:2") == expected


HOSTILE = [
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "{#",
    "#}",
    "}}",
    "{{ ''.__class__ }}",
    "{% raw %}",
    "\\{\\{",
    "${x}",
    "=cmd()",
]


@given(st.text() | st.sampled_from(HOSTILE))
def test_a_cell_is_data_and_never_template(cell: str) -> None:
    """Whatever a cell holds stands in the prompt as it is."""
    assert Template("<{{ a }}>{{ row.a }}", "--prompt").render({"a": cell}, "t.csv:2") == f"<{cell}>{cell}"


def test_an_unknown_name_names_the_row_and_the_columns_there_are() -> None:
    """The typo is found in one reading of the message."""
    with pytest.raises(UsageError) as caught:
        Template("{{ reviw }}", "prompt.txt").render(ROW, "reviews.csv:17")
    assert str(caught.value) == (
        "reviews.csv:17: prompt.txt: 'reviw' is undefined; the columns there are: id, review, stars, review text, tags,"
        " range; did you mean review?"
    )


def test_names_of_columns_are_told_without_what_a_terminal_obeys() -> None:
    """A table's header may come from anywhere, and there may be a great many."""
    row = {"\x1b]0;owned\x07a": 1} | {f"c{n}": n for n in range(99)}
    with pytest.raises(UsageError) as caught:
        Template("{{ b }}", "--prompt").render(row, "t.csv:2")
    assert "the columns there are: ]0;owned a, c0, c1, " in str(caught.value)
    assert str(caught.value).endswith("c38 …")


BROKEN: list[tuple[str, str]] = [
    ("a\n{% if %}", "--prompt:2: Expected an expression"),
    ("{{ a", "--prompt:1: unexpected end of template"),
    ("{{ review | nofilter }}", "--prompt:1: No filter named 'nofilter'"),
    ("{{ tags.size }}", "t.csv:2: --prompt: 'list object' has no attribute 'size'; the columns there are: id"),
    ("{{ id / 0 }}", "t.csv:2: --prompt: ZeroDivisionError"),
    ("{% include 'other.txt' %}", "t.csv:2: --prompt: TypeError: no loader"),
    ("{{ '%z\x1b[31m' % id }}", "t.csv:2: --prompt: ValueError: unsupported format character 'z'"),
]


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_a_template_that_is_wrong_says_where(text: str, told: str) -> None:
    """Mistakes of syntax name the template's line, mistakes of rendering the row."""
    with pytest.raises(UsageError) as caught:
        Template(text, "--prompt").render(ROW, "t.csv:2")
    assert str(caught.value).startswith(told)


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ review.__class__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ '{0.__class__}'.format(review) }}",
    "{{ tags.append('c') }}",
    "{{ row.update(a=1) }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_the_sandbox_holds(text: str) -> None:
    """A template from somebody else reaches no interpreter, and changes no row."""
    with pytest.raises(UsageError):
        Template(text, "--prompt").render(ROW, "t.csv:2")


BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10**10**10 }}",
    "{{ 2**9999999 }}",
    "{{ 'a' | center(10**9) }}",
    "{{ ['a'] | map('center', 10**9) | list }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% set n = namespace(v='a' * 1000) %}{% for i in range(40) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "{% set n = namespace(v='a' * 1000) %}{% for i in range(40) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "{% set n = namespace(v='a' * 99) %}{% for i in range(40) %}{% set n.v %}{{ n.v ~ n.v }}{% endset %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(90000) %}{{ 'a' * 100000 }}{% endfor %}",
]


@pytest.mark.parametrize("text", BOMBS)
def test_sizes_are_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fill the memory is refused before it does, naming the row."""
    monkeypatch.setattr(templates, "LONGEST_PROMPT", 2**20)
    with pytest.raises(UsageError, match=r"t\.csv:2: --prompt: .*; make it simpler"):
        Template(text, "--prompt").render({"range2": 1}, "t.csv:2")


def test_loops_are_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop in a loop that writes nothing still ends."""
    monkeypatch.setattr(templates, "LONGEST_RENDERING_S", 0.01)
    text = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UsageError, match="its loops run for more than"):
        Template(text, "--prompt").render({}, "t.csv:2")


def test_a_prompt_of_a_large_cell_is_no_bomb() -> None:
    """A cell of 1 MB, printed, joined and filtered, is what people have."""
    row: dict[str, Any] = {"a": "x" * 1_000_000}
    assert len(Template("{{ a }}{{ a ~ a }}{{ a | trim }}", "--prompt").render(row, "t.csv:2")) == 4_000_000
