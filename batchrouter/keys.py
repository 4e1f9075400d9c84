"""API keys: where they are found, and how none is ever shown.

Rules of this file: a key is not a setting; it comes from the environment or from a file, never from a flag's value, and
is printed by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from batchrouter.errors import UsageError
from batchrouter.settings import Endpoint

KEY_VARIABLES: Final = ("WORLDROUTER_API_KEY", "OPENAI_API_KEY")


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
