"""Who shows a run: a bar on a terminal, a plain line now and then elsewhere, JSON lines for programs, or nobody.

Rules of this file: an observer is called a few times a second with figures, never for a row; text that came from a peer
is cleaned before it gets here; a terminal or pipe that is gone ends the showing, not the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from batchrouter import jsontext
from batchrouter.health import Bound, limits_in_words, lost_in_words, short_time
from batchrouter.records import Tally

if TYPE_CHECKING:
    from tqdm import tqdm

_LOG_EVERY_S: Final = 30.0
_VERBOSE_EVERY_S: Final = 5.0
_JSON_EVERY_S: Final = 1.0
_ORDINARY: Final = {"start", "stop", "health"}  # what people need not be told
_IN_WORDS: Final = {
    "circuit_open": "the endpoint seems to be down ({reason}); probing until it is back",
    "circuit_closed": "the endpoint is back",
    "cooldown": "rate limited: everybody pauses for {seconds:g} s",
    "credits": "credits are spent: everybody waits for {seconds:g} s",
    "notice": "{text}",
}


class Door(Protocol):
    """What is shown of a lane's throttle; `lost_s` is the time lost so far, by reason."""

    lost_s: dict[str, float]

    def state(self) -> str:
        """What holds it up, in a few words."""
        ...

    def bound(self) -> Bound:
        """The same in a word."""
        ...

    def limits(self) -> dict[str, float]:
        """Its limits, told or learned, by name."""
        ...


class Shown(Protocol):
    """What is shown of a lane."""

    @property
    def name(self) -> str:
        """The model that is asked there."""
        ...

    @property
    def throttle(self) -> Door:
        """Its door."""
        ...


class Observer(Protocol):
    """Who shows a run."""

    def planned(self, rows: int, pending: int) -> None:
        """The plan stands; nothing has been sent."""

    def tick(self, tally: Tally, lanes: Sequence[Shown]) -> None:
        """How it stands now: called a few times a second."""

    def told(self, event: str, about: Mapping[str, Any]) -> None:
        """Something happened, as events.jsonl records it."""

    def close(self) -> None:
        """The run has ended."""


class Silence:
    """Shows nothing."""

    def planned(self, rows: int, pending: int) -> None:
        """See Observer."""

    def tick(self, tally: Tally, lanes: Sequence[Shown]) -> None:
        """See Observer."""

    def told(self, event: str, about: Mapping[str, Any]) -> None:
        """See Observer."""

    def close(self) -> None:
        """See Observer."""


class _Showing(Silence):
    """What the others share: a stream, which may be gone some day, and a clock."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began_s = self._shown_s = clock()
        self._gone = False

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """A stream that is closed or full is left alone from then on: nobody is looking any more."""
        try:
            yield
        except (OSError, ValueError):
            self._gone = True

    def _line(self, text: str) -> None:
        if not self._gone:
            with self._while_there():
                self._stream.write(text + "\n")
                self._stream.flush()

    def _is_time(self, every_s: float) -> bool:
        now = self._clock()
        if now - self._shown_s < every_s:
            return False
        self._shown_s = now
        return True


class LogLines(_Showing):
    """One plain line now and then, and one for what happens."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, every_s: float = _LOG_EVERY_S
    ) -> None:
        super().__init__(stream, clock)
        self._every_s = every_s

    def tick(self, tally: Tally, lanes: Sequence[Shown]) -> None:
        """See Observer."""
        if self._is_time(self._every_s):
            self._line(describe(tally, lanes, self._clock() - self._began_s))

    def told(self, event: str, about: Mapping[str, Any]) -> None:
        """See Observer."""
        if event not in _ORDINARY:
            self._line(tell(event, about))


class JsonLines(_Showing):
    """One JSON object a second, and one for what happens."""

    def tick(self, tally: Tally, lanes: Sequence[Shown]) -> None:
        """See Observer."""
        if self._is_time(_JSON_EVERY_S):
            self._line(jsontext.dumps({"event": "progress", **figures(tally, lanes)}).decode())

    def told(self, event: str, about: Mapping[str, Any]) -> None:
        """See Observer."""
        self._line(jsontext.dumps({"event": event, **about}).decode())


class Bar(_Showing):
    """A tqdm bar: rows, speed, time left, and what holds the run up."""

    _bar: tqdm[Any] | None = None

    def planned(self, rows: int, pending: int) -> None:
        """See Observer."""
        from tqdm import tqdm  # noqa: PLC0415  (only where a bar is shown)

        with self._while_there():
            sizeless = _has_no_width(self._stream)
            self._bar = tqdm(
                total=rows,
                initial=rows - pending,
                unit=" rows",
                file=self._stream,
                ncols=80 if sizeless else None,
                nrows=24 if sizeless else None,
                dynamic_ncols=not sizeless,
                smoothing=0.1,
            )

    def tick(self, tally: Tally, lanes: Sequence[Shown]) -> None:
        """See Observer."""
        if self._bar is not None and not self._gone:
            with self._while_there():
                self._bar.set_postfix_str(_postfix(tally, lanes), refresh=False)
                self._bar.update(tally.rows - tally.pending - self._bar.n)
                self._bar.refresh()

    def told(self, event: str, about: Mapping[str, Any]) -> None:
        """See Observer."""
        if self._bar is not None and not self._gone and event not in _ORDINARY:
            with self._while_there():
                self._bar.write(tell(event, about), file=self._stream)

    def close(self) -> None:
        """See Observer."""
        if self._bar is not None:
            with self._while_there():
                self._bar.close()


def _has_no_width(stream: TextIO) -> bool:
    """Whether it is a terminal that nobody told its size, as those of containers and scripts are: no bar fits it."""
    try:
        return os.get_terminal_size(stream.fileno()).columns == 0
    except (OSError, ValueError):
        return False


def choose(name: str, stream: TextIO | None = None) -> Observer:
    """The observer called `auto`, `bar`, `log`, `verbose`, `json` or `none`."""
    out = stream or sys.stderr
    if name == "auto":
        name = "bar" if out.isatty() else "log"
    table: Mapping[str, Callable[[], Observer]] = {
        "bar": lambda: Bar(out),
        "log": lambda: LogLines(out),
        "verbose": lambda: LogLines(out, every_s=_VERBOSE_EVERY_S),
        "json": lambda: JsonLines(stream or sys.stdout),
        "none": Silence,
    }
    return table[name]()


def figures(tally: Tally, lanes: Sequence[Shown]) -> dict[str, Any]:
    """A run's figures, by the names that `--progress json` and `status` use."""
    return {
        "rows": tally.rows,
        "answered": tally.answered_before + tally.answered,
        "failed": tally.failed_before + tally.failed,
        "pending": tally.pending,
        "in_flight": tally.in_flight,
        "attempts": tally.attempts,
        "retries": tally.retries,
        "limited": tally.limited,
        "tokens": tally.usage.total_tokens,
        "state": state_of(lanes),
        "health": health_of(lanes),
    }


def health_of(lanes: Sequence[Shown]) -> dict[str, dict[str, Any]]:
    """By lane: what bounds it now (empty: nothing), its limits, and the seconds lost to each reason."""
    return {
        lane.name: {
            "bound": lane.throttle.bound(),
            **lane.throttle.limits(),
            "lost_s": {reason: round(seconds, 1) for reason, seconds in lane.throttle.lost_s.items()},
        }
        for lane in lanes
    }


def lost_to(lanes: Sequence[Shown]) -> dict[str, float]:
    """The seconds lost to each reason, on all lanes together."""
    lost_s: dict[str, float] = {}
    for lane in lanes:
        for reason, seconds in lane.throttle.lost_s.items():
            lost_s[reason] = lost_s.get(reason, 0.0) + seconds
    return lost_s


def state_of(lanes: Sequence[Shown]) -> str:
    """What holds each lane up, in a few words; empty when nothing does."""
    states = [(lane.name, lane.throttle.state()) for lane in lanes]
    if len(states) == 1:
        return states[0][1]
    return "; ".join(f"{name}: {state}" for name, state in states if state)


def describe(tally: Tally, lanes: Sequence[Shown], elapsed_s: float) -> str:
    """One line that tells how a run stands."""
    done = tally.rows - tally.pending
    now_done = tally.answered + tally.failed
    speed = now_done / elapsed_s if elapsed_s > 0 else 0.0
    left = f", about {short_time(tally.pending / speed)} left" if speed > 0 and tally.pending else ""
    lost = lost_in_words(lost_to(lanes))
    held_up = f"; held up so far by {lost}" if lost else ""
    return f"{done:,} of {tally.rows:,} rows, {speed:,.1f} rows/s{left}; {_postfix(tally, lanes)}{held_up}"


def _postfix(tally: Tally, lanes: Sequence[Shown]) -> str:
    parts = [f"{tally.in_flight} in flight", f"{tally.usage.total_tokens:,} tokens"]
    failed = tally.failed + tally.failed_before
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{tally.retries:,} retries"] if tally.retries else []
    state = state_of(lanes)
    parts += [state] if state else []
    return ", ".join(parts)


def tell(event: str, about: Mapping[str, Any]) -> str:
    """An event as a line for people."""
    if event == "limit":
        limits = {name: limit for name, limit in about.items() if name != "lane"}
        return f"batchrouter: limit of {about['lane']}: {limits_in_words(limits)}"
    if event in _IN_WORDS:
        return f"batchrouter: {_IN_WORDS[event].format_map(about)}"
    details = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    return f"batchrouter: {event.replace('_', ' ')}" + (f" ({details})" if details else "")
