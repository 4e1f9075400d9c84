"""What to do about a failure: the endpoint's own advice where its reference has one, ours where it has none.

Rules of this file: pure; a failure is known by its kind, as failures are counted: `404 model_not_found`, `timeout`.
"""

from __future__ import annotations

from typing import Final

_BY_KIND: Final = {
    "400": "check the fields of the body, and the model's id: case matters, `batchrouter models` lists them",
    "401": "check that the key is set correctly and has not been revoked in the dashboard",
    "402": "top up on the Credits page",
    "403": "check that the key may use this model, and what the rows say",
    "404": "check --base-url, and the model's id: case matters, `batchrouter models` lists them",
    "429": "back off: come later, or spread the load across models",
    "500": "run them again with --retry 5xx; if it persists, try a different model or contact support",
    "timeout": "run them again with --retry timeout, and a longer --timeout or --stream",
    "connection": "run them again with --retry connection",
    "bad_response": "run them again with --retry bad_response; if it persists, try a different model",
    "redirect": "point --base-url to where the endpoint has moved",
    "truncated": "raise max_tokens, or run them again with --retry truncated --on-truncated grow",
    "schema_mismatch": "run them again with --retry schema_mismatch, or try a different model",
    "invalid_row": "mend these lines, then start the same command again",
    "duplicate_custom_id": "give each row a custom_id of its own",
}


def remedy_for(kind: str) -> str:
    """The next move after failures of this kind; empty where there is nothing to say."""
    what = kind.partition(" ")[0]
    if len(what) == 3 and what.isdigit() and what >= "500":
        what = "500"
    return _BY_KIND.get(what, "")
