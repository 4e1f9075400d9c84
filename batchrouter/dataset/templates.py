"""Prompts: Jinja templates, compiled once, rendered for every row in the sandbox; cells are data, never template.

Rules of this file: a name that a row does not have is an error that names the row and the columns there are; a null
renders as nothing. A template may come from somebody else, so it can neither reach the interpreter (Jinja's sandbox)
nor eat the machine: what it writes, how long its loops run and how large the values it makes grow are bounded.
"""

from __future__ import annotations

import difflib
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from batchrouter.dataset.tables import listed
from batchrouter.errors import UsageError
from batchrouter.retry import clean

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.sandbox import SandboxedEnvironment

NEEDS_JINJA: Final = "prompts need an extra: pip install 'batchrouter[dataset]'"
LONGEST_PROMPT: Final = 64 * 2**20  # characters that a row's prompt, and any text on the way to it, may have
LONGEST_RENDERING_S: Final = 10.0

_LARGEST_NUMBER: Final = 1_000_000  # for a width, a count or a repetition inside a template
_WIDE: Final = re.compile(r"\d{7,}")
_UNKNOWN: Final = re.compile(r"'([^']*)' is undefined")
_STEPS, _SIZED = "bounded steps", "bounded size"  # no filters that a template could name: names hold no blank


class TooMuch(Exception):  # noqa: N818  (a finding about a template)
    """A template made something that is out of all proportion."""


class Template:
    """One prompt. `text` is Jinja; a row's columns are its names, and `row["any name"]` reaches them all."""

    def __init__(self, text: str, label: str) -> None:
        """Compile; raises UsageError with `label` (a file's name, or `--prompt`) and the line."""
        import jinja2  # noqa: PLC0415  (an extra)

        self._label = label
        self._constant = text if "{" not in text else None
        environment = _environment()
        try:
            tree = environment.parse(text)
            _bound(tree, environment)
            code = environment.compile(tree, label, label)
            self._compiled = jinja2.Template.from_code(environment, code, environment.globals, None)
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{label}:{error.lineno}: {error.message}") from None

    def render(self, row: Mapping[str, Any], place: str) -> str:
        """The prompt of one row, which messages call `place`; raises UsageError."""
        if self._constant is not None:
            return self._constant
        import jinja2  # noqa: PLC0415  (loaded already)

        deadline_s = time.monotonic() + LONGEST_RENDERING_S
        names = {"row": row, **row, _STEPS: deadline_s}
        try:
            return _gathered(self._compiled.root_render_func(self._compiled.new_context(names)))
        except jinja2.UndefinedError as error:
            problem = clean(error.message or "")
            raise UsageError(f"{place}: {self._label}: {problem}; {_columns(row, problem)}") from None
        except (TooMuch, MemoryError, RecursionError) as error:
            raise UsageError(f"{place}: {self._label}: {error or 'it takes all memory'}; make it simpler") from None
        except Exception as error:  # noqa: BLE001  (a template runs code: what it raises is its author's to mend)
            raise UsageError(f"{place}: {self._label}: {type(error).__name__}: {clean(str(error))}") from None


def _gathered(pieces: Iterable[str]) -> str:
    """The pieces as one text; raises TooMuch."""
    found = list[str]()
    length = 0
    for piece in pieces:
        found.append(piece)
        length += len(piece)
        if length > LONGEST_PROMPT:
            raise TooMuch(f"the prompt is longer than {LONGEST_PROMPT >> 20} Mi characters")
    return "".join(found)


def _columns(row: Mapping[str, Any], problem: str) -> str:
    """The columns there are, for a message about one that is not."""
    names = [clean(str(name)) for name in row]
    unknown = _UNKNOWN.search(problem)
    near = difflib.get_close_matches(unknown[1], names, n=1) if unknown else []
    return f"the columns there are: {listed(row)}" + (f"; did you mean {near[0]}?" if near else "")


@functools.cache
def _environment() -> SandboxedEnvironment:
    """The sandbox that all prompts share; raises UsageError without the extra."""
    try:
        from jinja2 import StrictUndefined, pass_context  # noqa: PLC0415  (an extra)
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
    except ImportError:
        raise UsageError(NEEDS_JINJA) from None

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's own, and sizes bounded: `"x" * 10**12` would be a legal way to stop the machine."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
            _check_arguments(*args, *kwargs.values())
            return super().call(context, called, *args, **kwargs)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            wrapped = super().wrap_str_format(value)
            if wrapped is not None:
                _check_operation("%", value.__self__, None)
            return wrapped

    environment = Sandbox(undefined=StrictUndefined, finalize=_nothing_for_null, cache_size=0)
    environment.filters = {name: _bounded(function) for name, function in environment.filters.items()}
    environment.filters[_STEPS] = pass_context(_steps)
    environment.filters[_SIZED] = _sized
    return environment


def _nothing_for_null(value: Any) -> Any:
    return "" if value is None else value


def _check_arguments(*values: Any) -> None:
    """Raises TooMuch for a number that no width, count or repetition needs, and for a text beyond all proportion."""
    for value in values:
        if type(value) is int and abs(value) > _LARGEST_NUMBER:
            raise TooMuch(f"a call with {value:.3g} as an argument")
        _sized(value)


def _sized(value: Any) -> Any:
    """The value; raises TooMuch for a text beyond all proportion."""
    if isinstance(value, str) and len(value) > LONGEST_PROMPT:
        raise TooMuch(f"a text longer than {LONGEST_PROMPT >> 20} Mi characters")
    return value


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raises TooMuch for a product, power or formatted text beyond all proportion."""
    if operator == "%":
        if isinstance(left, str) and _WIDE.search(left):
            raise TooMuch("a text formatted to an enormous width")
        return
    if operator == "+":
        _sized(left)
        _sized(right)
        return
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if operator == "**" and any(abs(value) > _LARGEST_NUMBER for value in numbers):
        raise TooMuch("an enormous power")
    if operator == "**" and len(numbers) == 2 and numbers[1] * numbers[0].bit_length() > _LARGEST_NUMBER:
        raise TooMuch("an enormous power")
    if operator == "*" and len(numbers) < 2:
        sized = left if isinstance(right, int) else right
        if hasattr(sized, "__len__") and numbers and len(sized) * numbers[0] > LONGEST_PROMPT:
            raise TooMuch("an enormous repetition")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its numeric arguments bounded; a filter's context or environment comes before its value."""

    @functools.wraps(function)  # with the marks that tell Jinja what to pass
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(*args[1:], *kwargs.values())
        if function.__name__ == "do_format":
            _check_operation("%", args[0], None)
        return _sized(function(*args, **kwargs))

    return checked


def _steps(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, for as long as the row's time lasts."""
    deadline_s = context.parent[_STEPS]
    for number, item in enumerate(items):
        if number % 64 == 0 and time.monotonic() > deadline_s:
            raise TooMuch(f"its loops run for more than {LONGEST_RENDERING_S:g} s")
        yield item


def _bound(tree: nodes.Template, environment: SandboxedEnvironment) -> None:
    """Let a template's loops draw their items through `_steps`, and the texts that it builds pass `_sized`."""
    from jinja2 import nodes  # noqa: PLC0415  (an extra, loaded by now)
    from jinja2.visitor import NodeTransformer  # noqa: PLC0415

    def through(name: str, node: Any) -> Any:
        return nodes.Filter(node, name, [], [], None, None)

    class Bounds(NodeTransformer):
        """Wraps what repeats and what grows."""

        def visit_For(self, node: Any) -> Any:  # noqa: N802  (the visitor's naming)
            node.iter = through(_STEPS, node.iter)
            return self.generic_visit(node)

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            return through(_SIZED, self.generic_visit(node))

        def visit_AssignBlock(self, node: Any) -> Any:  # noqa: N802
            node.filter = through(_SIZED, node.filter)
            return self.generic_visit(node)

    Bounds().visit(tree)
    tree.set_environment(environment)
