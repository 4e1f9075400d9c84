"""The key is taken out of whatever is kept or shown, however a peer spelt it.

Rules of this file: pure; text is redacted before it is cut to a length, as half a key is a leak too.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final
from urllib.parse import quote

from batchrouter import jsontext
from batchrouter.settings import Secret

_REDACTED: Final = b"[the key]"
_SHORTEST_SECRET: Final = 6
_LONGEST_WORD: Final = 12


class Redactor:
    """Takes keys out of bytes, texts and JSON. What local servers are given in place of a key (`test`, `EMPTY`,
    `ollama`) is a word like any other: it is no secret, and taking it out would spoil answers that hold it.
    """

    def __init__(self, *keys: Secret) -> None:
        secrets = [text for text in (key.reveal() for key in keys) if _is_secret(text)]
        forms = {form for text in secrets for form in _spellings(text)}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, content: bytes) -> bytes:
        """The content without any key in it; the very same object where there is none."""
        for form in self._forms:
            if form in content:
                content = content.replace(form, _REDACTED)
        return content

    def text(self, content: str) -> str:
        """The same for a text."""
        return self(content.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def loads(self, raw: bytes) -> Any:
        """The value of a JSON text, without any key in it; raises NotJson."""
        value = jsontext.loads(self(raw))
        # Any sign may be spelt \u00…, and a slash \/: such a key shows only when it has been read.
        return self.value(value) if b"\\u00" in raw or b"\\/" in raw else value

    def value(self, value: Any) -> Any:
        """The same for a JSON value that was put together here."""
        text = jsontext.dumps(value)
        without = self(text)
        return value if without is text else jsontext.loads(without)


def _is_secret(text: str) -> bool:
    return len(text) >= _SHORTEST_SECRET and not (text.isalpha() and len(text) <= _LONGEST_WORD)


def _spellings(text: str) -> set[bytes]:
    """A key as it stands, and as JSON, an address and HTML write it."""
    forms = {text, escape(text), quote(text, safe=""), quote(text)}
    return {form for spelt in forms for form in (spelt.encode(), jsontext.dumps(spelt)[1:-1])}
