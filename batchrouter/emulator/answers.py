"""A chat completion as a pure function of the request's body and a seed: a test can compute what it must get.

What only shapes the delivery (`stream`, the token budget, `stop`, `n`, `logprobs`) does not change the words: the
same question with a larger budget gets the same text, further on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from batchrouter.emulator.schema import instance
from batchrouter.emulator.words import pieces, spoken

type_of_body = Mapping[str, Any]

DELIVERY: Final = frozenset(
    {"stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "n", "logprobs", "top_logprobs"}
)
MARKER: Final = re.compile(r"\[\[fault:([^\[\]]+)\]\]")
_EPOCH: Final = 1_738_960_610
_CACHE_BLOCK: Final = 128  # prompt tokens are cached in such blocks, from 1,024 on


def answer(body: type_of_body, seed: int = 0) -> dict[str, Any]:
    """The chat completion for a checked request body. Raises SchemaError for a schema that cannot be met."""
    digest = fingerprint(body, seed)
    hidden = _reasoning_tokens(body, digest)
    budget = body.get("max_completion_tokens") or body.get("max_tokens")
    choices, spent = [], 0
    for index in range(body.get("n") or 1):
        own = digest if index == 0 else blake2b(digest, key=str(index).encode()).digest()
        choice, tokens = _choice(body, own, index, None if budget is None else max(0, budget - hidden))
        choices.append(choice)
        spent += tokens + (hidden if budget is None else min(hidden, budget))
    return {
        "id": f"chatcmpl-{digest[:12].hex()}",
        "object": "chat.completion",
        "created": _EPOCH + int.from_bytes(digest[12:15]),
        "model": body["model"],
        "choices": choices,
        "usage": _usage(prompt_tokens(body), spent, min(spent, hidden * len(choices))),
        "system_fingerprint": "fp_emulator",
    }


def fingerprint(body: type_of_body, seed: int) -> bytes:
    """64 bytes that stand for question and seed, whatever the order of keys and the delivery asked for."""
    question = body
    if not DELIVERY.isdisjoint(body):
        question = {name: value for name, value in body.items() if name not in DELIVERY}
    return blake2b(orjson.dumps(question, option=orjson.OPT_SORT_KEYS), key=str(seed).encode()).digest()


def prompt_tokens(body: type_of_body) -> int:
    """An estimate of the prompt's tokens: a quarter of its characters, and a few for each message."""
    total = 3
    for message in body.get("messages", ()):
        total += 4 + (len(said(message)) + 3) // 4
    if tools := body.get("tools"):
        total += len(orjson.dumps(tools)) // 4
    return total


def said(message: Mapping[str, Any]) -> str:
    """The text of a message, also of one made of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def _usage(prompt: int, completion: int, reasoning: int) -> dict[str, Any]:
    cached = prompt // _CACHE_BLOCK * _CACHE_BLOCK if prompt >= 8 * _CACHE_BLOCK else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _reasoning_tokens(body: type_of_body, digest: bytes) -> int:
    """What a reasoning model thinks in silence before its first word: 32 to 159 tokens."""
    return 32 + digest[15] % 128 if str(body["model"]).startswith("reasoner") else 0


def _choice(body: type_of_body, digest: bytes, index: int, budget: int | None) -> tuple[dict[str, Any], int]:
    """One choice and the visible tokens it cost."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls = _tool_calls(body, digest)
    if calls:
        message["tool_calls"] = calls
        reason, tokens = _fit_calls(calls, budget)
    else:
        text = _text(body, digest)
        message["content"], reason, tokens = _fit_text(text, budget, body.get("stop"))
    logprobs = _logprobs(body, digest, message["content"]) if body.get("logprobs") else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}, tokens


def _logprobs(body: type_of_body, digest: bytes, content: str | None) -> dict[str, Any] | None:
    """How likely each token of the content was, and which others there were; null without content."""
    if not content:
        return None
    source = random.Random(digest)
    others = ("".join(source.sample("abcdefgh", 3)) for _ in range(int(body.get("top_logprobs") or 0)))
    ranked = [(None, -source.random()), *((other, -1 - source.random()) for other in others)]
    told = []
    for token in pieces(content):
        top = [_likely(other or token, logprob) for other, logprob in ranked]
        told.append({**top[0], "top_logprobs": top[: int(body.get("top_logprobs") or 0)]})
    return {"content": told, "refusal": None}


def _likely(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": round(logprob, 6), "bytes": list(token.encode("utf-8", "surrogatepass"))}


def _fit_text(text: str, budget: int | None, stop: Any) -> tuple[str, str, int]:
    cut = min((at for at in map(text.find, [stop] if isinstance(stop, str) else stop or ()) if at >= 0), default=-1)
    text = text if cut < 0 else text[:cut]
    parts = pieces(text)
    if budget is not None and len(parts) > budget:
        return "".join(parts[:budget]), "length", budget
    return text, "stop", len(parts)


def _fit_calls(calls: list[dict[str, Any]], budget: int | None) -> tuple[str, int]:
    """Cuts the calls' arguments to the budget, as a model that runs out of tokens does."""
    spent = 0
    for call in calls:
        parts = pieces(call["function"]["arguments"])
        left = len(parts) if budget is None else max(0, budget - spent)
        call["function"]["arguments"] = "".join(parts[:left])
        spent += min(len(parts), left)
        if left < len(parts):
            return "length", spent
    return "tool_calls", spent


def _text(body: type_of_body, digest: bytes) -> str:
    shape = body.get("response_format") or {}
    match shape.get("type"):
        case "json_schema":
            schema = shape["json_schema"].get("schema") or {"type": "object"}
            return orjson.dumps(instance(schema, random.Random(digest))).decode()
        case "json_object":
            return orjson.dumps({"topic": _topic(body), "answer": spoken(digest, 8)}).decode()
        case _:
            return f'On "{_topic(body)}": {spoken(digest[16:], 8 + digest[16] % 40)}'


def _topic(body: type_of_body) -> str:
    """The beginning of the last user message on one line, so that a person sees what was answered."""
    for message in reversed(body["messages"]):
        if message.get("role") == "user":
            text = said(message)[:400]
            text = MARKER.sub("", text) if "[[" in text else text
            return " ".join(text.replace('"', "'").split())[:60].rstrip()
    return "nothing asked"


def _tool_calls(body: type_of_body, digest: bytes) -> list[dict[str, Any]]:
    """The calls the model makes. With `auto` it calls until it was given a tool's result, then it speaks."""
    tools = body.get("tools")
    wish = body.get("tool_choice", "auto")
    if not tools or wish == "none" or (wish == "auto" and body["messages"][-1].get("role") == "tool"):
        return []
    source = random.Random(digest)
    if isinstance(wish, Mapping):
        chosen = [tool for tool in tools if tool["function"]["name"] == wish["function"]["name"]]
    else:
        several = body.get("parallel_tool_calls") is not False and digest[17] % 2
        chosen = source.sample(tools, k=2 if several and len(tools) > 1 else 1)
    return [_call(tool["function"], source) for tool in chosen]


def _call(function: Mapping[str, Any], source: random.Random) -> dict[str, Any]:
    arguments = instance(function.get("parameters") or {"type": "object"}, source)
    return {
        "id": f"call_{source.getrandbits(96):024x}",
        "type": "function",
        "function": {"name": function["name"], "arguments": orjson.dumps(arguments).decode()},
    }
