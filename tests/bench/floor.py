"""The floor: the least that a correct client on aiohttp can do for a row, and nothing besides.

One asyncio process, run by path: a row is read and parsed, its body sent as bytes, the answer read and parsed, its
tokens counted, a result line and a checkpoint line appended. N coroutines draw from one iterator. No identity, no plan,
no fsync, no resume, no retry, no limit, no validation: whatever a real client costs beyond this is what those cost it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import aiohttp
import orjson


class Floor:
    """What the workers share."""

    def __init__(self, rows: Iterator[bytes], url: str, results: BinaryIO, checkpoint: BinaryIO) -> None:
        self.tokens = 0
        self._rows = rows
        self._url = url
        self._results = results
        self._checkpoint = checkpoint

    async def work(self, session: aiohttp.ClientSession) -> None:
        """Rows, one after the other, until there are none."""
        for line in self._rows:
            row = orjson.loads(line)
            async with session.post(self._url, data=orjson.dumps(row["body"])) as response:
                answer = orjson.loads(await response.read())
            self.tokens += answer["usage"]["total_tokens"]
            result = {"custom_id": row["custom_id"], "status_code": response.status, "body": answer, "error": None}
            self._results.write(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
            self._checkpoint.write(row["custom_id"].encode() + b"\n")


async def _run(source: Path, directory: Path, url: str, concurrency: int) -> None:
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    with (
        source.open("rb") as rows,
        (directory / "results.jsonl").open("ab") as results,
        (directory / "checkpoint").open("ab") as checkpoint,
    ):
        floor = Floor(iter(rows), f"{url}/chat/completions", results, checkpoint)
        connector = aiohttp.TCPConnector(limit=concurrency)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            await asyncio.gather(*(floor.work(session) for _ in range(concurrency)))
    print(floor.tokens)


def main() -> None:
    """Send every row of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    options.directory.mkdir()
    factory = importlib.import_module("uvloop").new_event_loop if options.uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_run(options.source, options.directory, options.base_url, options.concurrency))


if __name__ == "__main__":
    main()
