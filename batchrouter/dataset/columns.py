"""What a row's answer puts into columns: the default facts, JSON content spread by its schema, or by expressions.

Rules of this file: pure. Every row fills every column: what it does not have is null, and why stands in `error`. Text
of a model is data, given as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from batchrouter import jsontext
from batchrouter.dataset.answers import Answer
from batchrouter.dataset.labels import Mismatch, Shape
from batchrouter.dataset.tables import Column
from batchrouter.errors import UsageError
from batchrouter.index import ANSWERED, PENDING
from batchrouter.settings import Price

PENDING_MARK: Final = "pending"
EMPTY_MARK: Final = "empty: the model answered without any text"
CUT_OFF_MARK: Final = "cut off: the token budget ran out in the middle of the answer; raise max_tokens"
TRUNCATED_MARK: Final = "truncated: the token budget ran out before any text; raise max_tokens"
NEEDS_JMESPATH: Final = "--column needs an extra: pip install 'batchrouter[dataset]'"

ERROR: Final = Column("error", blank="")  # mostly there is none, in the first rows too
FACTS: Final = (
    Column("id"),
    Column("content"),
    Column("finish_reason"),
    Column("model"),
    ERROR,
    Column("tokens", "integer"),
    Column("cost", "number"),
)


class Facts(NamedTuple):
    """What is told of every row; `error` is null for a good answer, else begins with what it is."""

    id: str
    content: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    error: str | None = PENDING_MARK
    tokens: int | None = None
    cost: float | None = None


_PLACE: Final = {name: number for number, name in enumerate(Facts._fields)}


class Expression(NamedTuple):
    """A column filled by a JMESPath expression over the JSON content: `find` gives what it finds in a value."""

    name: str
    find: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Filling:
    """Which columns a row's answer fills: facts under names of choice, then the schema's, then the expressions'.

    With `marks_all`, an answer that is empty or cut off has that as its error, as there is no other column to tell it.
    """

    facts: Mapping[str, str]
    shape: Shape | None = None
    expressions: Sequence[Expression] = ()
    marks_all: bool = False

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in order; an expression's are text (JSON, where it gives no text)."""
        known = {column.name: column for column in FACTS}
        return (
            *(known[fact]._replace(name=name) for name, fact in self.facts.items()),
            *(self.shape.columns if self.shape else ()),
            *(Column(expression.name) for expression in self.expressions),
        )

    def fill(self, answer: Answer, prices: Mapping[str, Price]) -> tuple[list[Any], str | None]:
        """The values in the order of `columns`, and the row's error."""
        facts = facts_of(answer, prices)
        if self.marks_all and facts.error is None:
            facts = facts._replace(error=_lack(facts))
        if not self.shape and not self.expressions:
            return [facts[_PLACE[fact]] for fact in self.facts.values()], facts.error
        try:
            spread = self._spread(facts)
        except Mismatch as error:
            spread = [None] * (len(self.shape.properties if self.shape else ()) + len(self.expressions))
            facts = facts._replace(error=f"schema_mismatch: {error}{_cut_off(facts)}")
        return [*[facts[_PLACE[fact]] for fact in self.facts.values()], *spread], facts.error

    def _spread(self, facts: Facts) -> list[Any]:
        """The values that the content holds, none for a row without an answer; raises Mismatch."""
        properties = self.shape.properties if self.shape else ()
        if facts.error is not None:
            return [None] * (len(properties) + len(self.expressions))
        if facts.content is None:
            raise Mismatch("the answer has no content")
        read = self.shape.read(facts.content) if self.shape else {}
        spread = [read[part.name] for part in properties]
        if self.expressions:
            value = _json(facts.content)
            spread += [_searched(expression, value) for expression in self.expressions]
        return spread


def _lack(facts: Facts) -> str | None:
    """What an answer in free text lacks, if anything."""
    if not facts.content:
        return EMPTY_MARK
    return CUT_OFF_MARK if facts.finish_reason == "length" else None


def _cut_off(facts: Facts) -> str:
    return " (it was cut off: raise max_tokens)" if facts.finish_reason == "length" else ""


def _json(content: str) -> Any:
    try:
        return jsontext.loads(content.encode("utf-8", "surrogatepass"))
    except jsontext.NotJson as error:
        raise Mismatch(f"the content is {error}") from None


def _searched(expression: Expression, value: Any) -> Any:
    """What an expression finds; raises Mismatch where it cannot be applied to this value."""
    try:
        return expression.find(value)
    except ValueError as error:  # JMESPathError is one; naming it here would import it for every row
        raise Mismatch(f"{expression.name}: {str(error).splitlines()[0]}") from None


def compile_expressions(texts: Mapping[str, str]) -> tuple[Expression, ...]:
    """Column name -> JMESPath text, compiled; raises UsageError."""
    if not texts:
        return ()
    try:
        import jmespath  # noqa: PLC0415  (an extra)
        from jmespath.exceptions import JMESPathError  # noqa: PLC0415
        from jmespath.visitor import TreeInterpreter  # noqa: PLC0415
    except ImportError:
        raise UsageError(NEEDS_JMESPATH) from None
    found = []
    visit = TreeInterpreter().visit  # one for all rows: `search` would make one for each, in four times the time
    for name, text in texts.items():
        try:
            found.append(Expression(name, partial(visit, jmespath.compile(text).parsed)))
        except JMESPathError as error:
            raise UsageError(f"--column {name}={text}: {str(error).splitlines()[0]} (https://jmespath.org)") from None
    return tuple(found)


def facts_of(answer: Answer, prices: Mapping[str, Price]) -> Facts:
    """The facts of one row; `prices` are by the model that was asked."""
    line = answer.line
    if answer.state == PENDING or line is None:
        return Facts(answer.custom_id)
    about = line["batchrouter"]
    response = line["response"]
    body = response["body"] if response is not None else {}
    usage = about.get("usage")
    tokens = usage["total_tokens"] if usage is not None else None
    model = about.get("model") or None
    cost = _cost(usage, prices.get(model or ""), body)
    if answer.state != ANSWERED:
        return Facts(answer.custom_id, None, None, model, _failure(line["error"], response), tokens, cost)
    content, finish_reason, refusal = _said(body)
    error = None
    if about.get("truncated"):
        error = TRUNCATED_MARK
    elif refusal:
        error = f"refusal: {refusal}"
    answered_by = body.get("model")
    model = answered_by if type(answered_by) is str else model
    return Facts(answer.custom_id, content, finish_reason, model, error, tokens, cost)


def _cost(used: Mapping[str, Any] | None, price: Price | None, body: Mapping[str, Any]) -> float | None:
    """USD for all attempts of a row: by the price the run knew, else as the endpoint's own usage says, else unknown."""
    if used is not None and price is not None:
        return round(price.cost(used["prompt_tokens"], used["cached_tokens"], used["completion_tokens"]), 9)
    usage = body.get("usage")
    cost = usage.get("cost") if type(usage) is dict else None
    return float(cost) if isinstance(cost, (int, float)) else None


def _failure(error: Mapping[str, Any] | None, response: Mapping[str, Any] | None) -> str:
    """`timeout: nothing came within 600 s`, `400: unknown model`."""
    if error is not None:
        return f"{error['code']}: {error['message']}"
    if response is None:
        return "failed"
    inner = response["body"].get("error")
    message = inner.get("message") if isinstance(inner, dict) else inner
    return f"{response['status_code']}: {message}" if message else str(response["status_code"])


def _said(body: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """(content, finish reason, refusal) of an answer's first choice, by the shape of any endpoint of the kin."""
    choices = body.get("choices")
    if type(choices) is list and choices and type(choices[0]) is dict:
        choice = choices[0]
        message = choice.get("message")
        reason = _text(choice.get("finish_reason"))
        if type(message) is not dict:
            return _text(choice.get("text")), reason, None  # /completions
        return _joined(message.get("content")), reason, _text(message.get("refusal"))
    if type(body.get("output")) is list:  # /responses
        parts = [part for item in body["output"] if type(item) is dict for part in item.get("content") or ()]
        return _joined(parts), _text(body.get("status")), None
    data = body.get("data")
    if type(data) is list and data and type(data[0]) is dict and "embedding" in data[0]:
        return jsontext.dumps(data[0]["embedding"]).decode(), None, None
    return None, None, None


def _joined(content: Any) -> str | None:
    """A content's text: it is a text, or a list of parts with texts."""
    if type(content) is not list:
        return _text(content)
    texts = [part["text"] for part in content if type(part) is dict and type(part.get("text")) is str]
    return "".join(texts) if texts else None


def _text(value: Any) -> str | None:
    return value if type(value) is str else None
