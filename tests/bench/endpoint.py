"""The responder as a child process: started, asked what it counted, ended by its id."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from .measure import environment

_HERE = Path(__file__).parent


class Seen(NamedTuple):
    """What the responder has counted since it was last reset; `first_request_s` on the machine's monotonic clock."""

    requests: int
    peak_in_flight: int
    connections: int
    first_request_s: float | None
    last_request_s: float | None


class Endpoint:
    """A responder under way: enter it with `with`."""

    def __init__(self, *options: str) -> None:
        core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        command = [sys.executable, str(_HERE / "responder.py"), "--core", str(core), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def seen(self) -> Seen:
        """What it has counted."""
        return Seen(**json.loads(self._get("/stats")))

    def reset(self) -> None:
        """Count anew."""
        self._get("/reset")
