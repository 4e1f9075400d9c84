"""The key is found in whatever spelling; a word is left alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchrouter import jsontext
from batchrouter.keys import Secret
from batchrouter.redaction import Redactor

KEY = 'sk-a/b+c=d&e<f>"g\\h'
ESCAPED = "".join(f"\\u{ord(sign):04X}" for sign in KEY)


@pytest.mark.parametrize(
    "spelt",
    [KEY, json.dumps(KEY)[1:-1], "sk-a%2Fb%2Bc%3Dd%26e%3Cf%3E%22g%5Ch", "sk-a/b+c=d&amp;e&lt;f&gt;&quot;g\\h"],
)
def test_spellings(spelt: str) -> None:
    """As it stands, and as JSON, an address and HTML write it."""
    assert Redactor(Secret(KEY)).text(f"({spelt})({spelt})") == "([the key])([the key])"


@pytest.mark.parametrize("spelt", [ESCAPED, json.dumps(KEY)[1:-1].replace("/", "\\/"), "sk" + ESCAPED[12:]])
def test_spellings_that_show_only_when_read(spelt: str) -> None:
    """Any sign of a JSON text may be an escape: as a value, as a name, however deep."""
    redact = Redactor(Secret(KEY))
    raw = f'{{"a": ["{spelt}"], "{spelt}": {{"b": "x{spelt}x"}}}}'.encode()
    assert redact.loads(raw) == {"a": ["[the key]"], "[the key]": {"b": "x[the key]x"}}


@pytest.mark.parametrize("spelt", [KEY, ESCAPED, "sk" + ESCAPED[12:], json.dumps(KEY)[1:-1].replace("/", "\\/")])
def test_a_body_that_is_no_json_is_shown_without_it(spelt: str) -> None:
    """Cut off, or no JSON at all: escapes are read all the same."""
    assert Redactor(Secret(KEY)).shown(f'{{"a": "{spelt} \xe9'.encode()) == '{"a": "[the key] \xe9'


def test_content_without_a_key_is_the_very_same() -> None:
    """Nothing is copied where there is nothing to take out."""
    content = b"nothing here" * 10
    assert Redactor(Secret(KEY))(content) is content


@pytest.mark.parametrize("word", ["x", "test", "EMPTY", "ollama", "none", "nokeyneeded", "12345", "1234567890"])
def test_words_are_no_secrets(word: str) -> None:
    """What stands in place of a key is not taken out of answers that hold it by chance."""
    assert Redactor(Secret(word)).text(f"a {word} b") == f"a {word} b"


@pytest.mark.parametrize("secret", ["sk-1234", "a1b2c3", "abcdefghijklm", "sk-test"])
def test_short_secrets_are_secrets(secret: str) -> None:
    """Whatever is no plain word is one."""
    assert Redactor(Secret(secret)).text(f"a {secret} b") == "a [the key] b"


def test_values_as_deep_as_can_be_read() -> None:
    """A thousand levels down, where no recursion would come."""
    raw = b'{"a":[' * 500 + json.dumps(KEY).encode() + b"]}" * 500
    assert b"sk-a" not in jsontext.dumps(Redactor(Secret(KEY)).loads(raw))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=13), st.text(), st.text())
@example("0000000000000", "\u00d0", "")  # an escape that ends as the key begins
def test_any_key_is_taken_out_of_any_text(key: str, before: str, after: str) -> None:
    """Whatever the key is made of, no text that holds it shows it, nor does its JSON, which stays JSON."""
    redact = Redactor(Secret(key))
    hidden = key not in {"", "[the key]"} and not key.isdigit()
    told = redact.text(before + key + after)
    read = redact.loads(json.dumps({before + key + after: [before + key + after]}).encode())
    assert read == {told: [told]}
    assert not hidden or key not in told.replace("[the key]", "")
