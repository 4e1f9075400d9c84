"""What a fault is: a name, a line about it, and how it is played in one scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchrouter.emulator.delivery import delivered
from batchrouter.emulator.plays import Play, type_of_headers


class Scene(NamedTuple):
    """What a fault knows: the request, the answer it spoils, and the parameter it was called with.

    `headers` belong on any HTTP answer; `wall` is the time of day in seconds; `origin` is this server's own.
    """

    body: Mapping[str, Any]
    completion: dict[str, Any]
    headers: type_of_headers
    argument: str
    key: str
    wall: float
    origin: str

    @property
    def streamed(self) -> bool:
        """Whether the client asked for a stream."""
        return bool(self.body.get("stream"))

    def number(self, default: float) -> float:
        """The parameter as a number; the default when there is none or it is no number."""
        try:
            return float(self.argument)
        except ValueError:
            return default

    def text(self, default: str) -> str:
        """The parameter, else the default."""
        return self.argument or default


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong. `usable` faults still carry the right answer, for a client that copes.

    `streams_only` faults are played on streamed requests alone; a plain request gets its answer.
    """

    name: str
    description: str
    play: Callable[[Scene], Play]
    usable: bool = False
    streams_only: bool = False


def honest(scene: Scene) -> Play:
    """The right answer, in the form that was asked for."""
    return delivered(scene.body, scene.completion, scene.headers)
