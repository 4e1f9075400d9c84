"""Open files: how many connections a process may have, and the raising of its own limit where need be."""

from __future__ import annotations

import resource
from typing import Final

from batchrouter.errors import UsageError

_SPARE: Final = 64  # for logs, inputs and the index, and for what Python opens besides


def connections_for(wanted: int | None, most: int) -> int:
    """How many connections a run may have: those wanted, else (None) `most`, or what this process's limit of open files
    leaves room for. Raises UsageError where that is too few.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = most if hard == resource.RLIM_INFINITY else max(1, hard - _SPARE)
    connections = wanted or min(most, room)
    ensure_descriptors(connections)
    return connections


def ensure_descriptors(connections: int) -> None:
    """Raise this process's own limit of open files where need be; raises UsageError when it may not."""
    needed = connections + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        who, lower = "a run needs", ""
        if connections > 1:
            who, lower = f"{connections} requests at once need", ", or lower --concurrency"
        raise UsageError(
            f"{who} {needed} open files, and this process may have {hard}: raise the limit (ulimit -n {needed}){lower}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
