"""Everything that can go wrong on purpose: `FAULTS`, by name, and how a fault is called.

A call is `NAME` or `NAME=PARAMETER`; in a message it is `[[fault:CALL]]` (each time) or `[[fault:CALL*2]]`
(on the first two attempts of that question; several markers in one message follow one another).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Final, NamedTuple

from batchrouter.emulator.faults.bodies import bodies
from batchrouter.emulator.faults.connections import connections
from batchrouter.emulator.faults.contents import contents
from batchrouter.emulator.faults.fault import Fault, Scene, honest
from batchrouter.emulator.faults.statuses import status_fault, statuses
from batchrouter.emulator.faults.streams import streams

__all__ = ["FAULTS", "Call", "Fault", "Scene", "call", "chosen", "honest"]

_STATUS: Final = re.compile(r"status_([2-5]\d\d)")
_COUNTED: Final = re.compile(r"(.*)\*(\d+)")

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {fault.name: fault for fault in chain(statuses(), contents(), bodies(), connections(), streams())}
)


class Call(NamedTuple):
    """A fault, the parameter it is called with, and on how many attempts it is played (null: on each)."""

    fault: Fault
    argument: str = ""
    times: int | None = None


def call(text: str) -> Call:
    """What `NAME`, `NAME=PARAMETER`, either with `*COUNT`, call. ValueError: there is no such fault."""
    counted = _COUNTED.fullmatch(text)
    named, times = (counted[1], int(counted[2])) if counted else (text, None)
    name, _, argument = named.partition("=")
    if fault := FAULTS.get(name):
        return Call(fault, argument, times)
    if status := _STATUS.fullmatch(name):
        return Call(status_fault(int(status[1])), argument, times)
    raise ValueError(f"no fault {name!r}; `batchrouter emulate --list-faults` names them all")


def chosen(calls: Iterable[Call], attempt: int) -> Call | None:
    """Which of the calls is played on that attempt (from 0), if any: each has its count, then the next."""
    for one in calls:
        if one.times is None or attempt < one.times:
            return one
        attempt -= one.times
    return None
