"""Run-level errors: what stops a whole run, each class with the exit code that tells it to a script.

A row's own failure is never an exception; it is data (`records.Fault`, `records.Outcome`).
"""

from __future__ import annotations


class BatchrouterError(Exception):
    """The root: something a person or a script must act on. `str()` says what, where and the next move."""

    exit_code = 1


class UsageError(BatchrouterError):
    """The command, the config or the input is wrong, or there is no key; nothing was sent."""

    exit_code = 2


class DiskError(BatchrouterError):
    """A local fault: disk full, I/O error, run directory gone. The files are whole; nothing more was admitted."""

    exit_code = 7


class BusyError(BatchrouterError):
    """Another process holds this run directory."""

    exit_code = 75
