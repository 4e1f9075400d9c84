"""The key is taken out of whatever is kept or shown, however a peer spelt it.

Rules of this file: pure; text is redacted before it is cut to a length, as half a key is a leak too.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any, Final
from urllib.parse import quote

from batchrouter import jsontext
from batchrouter.keys import Secret

_REDACTED: Final = b"[the key]"
_SHORTEST_SECRET: Final = 6
_LONGEST_WORD: Final = 12
_BACKSLASH: Final = ord("\\")
_ESCAPE: Final = re.compile(rb"\\u00([2-7][0-9a-fA-F])")


class Redactor:
    """Takes keys out of bytes, texts and JSON. What local servers are given in place of a key (`test`, `EMPTY`,
    `123456`) is a word or a number like any other: it is no secret, and taking it out would spoil answers that hold it.
    """

    def __init__(self, *keys: Secret) -> None:
        secrets = [text for text in (key.reveal() for key in keys) if _is_secret(text)]
        forms = {form for text in secrets for form in _spellings(text)}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, content: bytes) -> bytes:
        """The content without any key in it; the very same object where there is none."""
        for form in self._forms:
            if content.find(form) >= 0:  # `in` takes the form for a number first, and fails
                content = content.replace(form, _REDACTED)
        return content

    def text(self, content: str) -> str:
        """The same for a text."""
        return self(content.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def shown(self, raw: bytes) -> str:
        """A body that is no JSON, or was cut off, as a text without any key in it, be it spelt in JSON's escapes."""
        plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw).replace(b"\\/", b"/")
        return self(plain).decode("utf-8", "replace")

    def loads(self, raw: bytes) -> Any:
        """The value of a JSON text, without any key in it; raises NotJson."""
        value = jsontext.loads(raw)
        # Any sign may be spelt \u00…, and a slash \/: such a key shows only when it has been read.
        is_spelt = _BACKSLASH in raw and (b"\\u00" in raw or b"\\/" in raw)
        return self.value(value) if is_spelt or self._is_in(raw) else value

    def value(self, value: Any) -> Any:
        """The same for a JSON value, which may be changed in place."""
        return self._cleaned(value) if self._is_in(jsontext.dumps(value)) else value

    def _is_in(self, content: bytes) -> bool:
        for form in self._forms:  # noqa: SIM110  (a generator costs as much as the search)
            if content.find(form) >= 0:
                return True
        return False

    def _cleaned(self, value: Any) -> Any:
        """Each string by itself, names too: what spans two of them, or a number, is no key. It has no recursion to
        run out of.
        """
        whole = [value]
        left: list[Any] = [whole]
        while left:
            container = left.pop()
            if type(container) is dict:
                members = [(self.text(name), member) for name, member in container.items()]
                container.clear()
                container.update(members)
            for at in list(container) if type(container) is dict else range(len(container)):
                inner = container[at]
                if type(inner) is str:
                    container[at] = self.text(inner)
                elif type(inner) in (dict, list):
                    left.append(inner)
        return whole[0]


def _is_secret(text: str) -> bool:
    is_word = text.isdigit() or (text.isalpha() and len(text) <= _LONGEST_WORD)
    return len(text) >= _SHORTEST_SECRET and not is_word


def _spellings(text: str) -> set[bytes]:
    """A key as it stands, and as JSON, an address and HTML write it."""
    forms = {text, escape(text), quote(text, safe=""), quote(text)}
    return {form for spelt in forms for form in (spelt.encode(), jsontext.dumps(spelt)[1:-1])}
