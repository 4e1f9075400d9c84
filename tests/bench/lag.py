"""How late the event loop is while the product works at full speed: a child process, run by path.

A coroutine asks to be woken every millisecond and notes by how much it was woken too late; the run around it is the
library's own `run_batch`, with ledger, index and syncs. Prints p50, p99 and the highest, in milliseconds, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from array import array
from pathlib import Path

from batchrouter import Secret, Settings, run_batch

_EVERY_S = 0.001


async def _tick(late_s: array[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        late_s.append(loop.time() - due)


async def _run(source: str, directory: Path, settings: Settings) -> tuple[int, list[float]]:
    late_s: array[float] = array("d")
    ticker = asyncio.create_task(_tick(late_s))
    summary = await run_batch([source], directory, settings, Secret("sk-0123456789abcdefghij"))
    ticker.cancel()
    return summary.tally.answered, sorted(late_s)


def main() -> None:
    """Run a file of rows, tell how late the loop was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--concurrency", type=int, default=0)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    settings = Settings(base_url=options.base_url, concurrency=options.concurrency or None, rpm=None, tpm=None)
    factory = importlib.import_module("uvloop").new_event_loop if options.uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        answered, late_s = runner.run(_run(options.source, options.directory, settings))
    told = {
        "answered": answered,
        "p50_ms": late_s[len(late_s) // 2] * 1000,
        "p99_ms": late_s[len(late_s) * 99 // 100] * 1000,
        "max_ms": late_s[-1] * 1000,
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
