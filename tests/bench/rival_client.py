"""Other clients, each given the same rows and the same number in flight: run by path, by the Python that has them.

Rules of this file: one function a client, written as its own documentation does it, its limits set out of the way;
nothing is retried; every client gets its answers onto the disk. What is printed at the end is how many rows were
answered. The clients are imported by name, as none of them need be there.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Bodies = list[dict[str, Any]]
_NO_LIMIT = 10**9


async def ask_openai(bodies: Bodies, url: str, concurrency: int, results: Path) -> int:
    """The official SDK behind a semaphore, a task a row: what most people write first."""
    client = importlib.import_module("openai").AsyncOpenAI(base_url=url, api_key="bench", max_retries=0)
    gate = asyncio.Semaphore(concurrency)
    with results.open("a") as file:

        async def ask(body: dict[str, Any]) -> int:
            async with gate:
                completion = await client.chat.completions.create(**body)
            file.write(completion.model_dump_json() + "\n")
            return int(bool(completion.choices[0].message.content))

        return sum(await asyncio.gather(*(ask(body) for body in bodies)))


async def ask_lm_deluge(bodies: Bodies, url: str, concurrency: int, results: Path) -> int:
    """lm-deluge: a list of prompts in, a list of answers out."""
    os.environ["BENCH_API_KEY"] = "bench"
    models = importlib.import_module("lm_deluge.models")
    models.register_model(id="bench-1", name="bench-1", api_base=url, api_key_env_var="BENCH_API_KEY")
    client = importlib.import_module("lm_deluge").LLMClient(
        "bench-1",
        max_requests_per_minute=_NO_LIMIT,
        max_tokens_per_minute=1000 * _NO_LIMIT,
        max_concurrent_requests=concurrency,
        max_attempts=1,
    )
    prompts = [body["messages"][-1]["content"] for body in bodies]
    answers = await client.process_prompts_async(prompts, show_progress=False)
    with results.open("w") as file:
        file.writelines(json.dumps({"answer": answer.completion}) + "\n" for answer in answers)
    return sum(bool(answer.completion) for answer in answers)


async def ask_flexllm(bodies: Bodies, url: str, concurrency: int, results: Path) -> int:
    """flexllm: a list of messages in, answers out and into a file that it resumes from."""
    client = importlib.import_module("flexllm").LLMClient(
        base_url=url,
        api_key="bench",
        model="bench-1",
        concurrency_limit=concurrency,
        max_qps=_NO_LIMIT,
        retry_times=0,
    )
    messages = [body["messages"] for body in bodies]
    answers = await client.chat_batch(messages, show_progress=False, output_jsonl=str(results))
    return sum(bool(answer.content) for answer in answers)


CLIENTS: dict[str, Callable[[Bodies, str, int, Path], Awaitable[int]]] = {
    "openai": ask_openai,
    "lm-deluge": ask_lm_deluge,
    "flexllm": ask_flexllm,
}


async def _run(name: str, source: Path, directory: Path, url: str, concurrency: int) -> int:
    with source.open("rb") as file:
        bodies = [json.loads(line)["body"] for line in file]
    return await CLIENTS[name](bodies, url, concurrency, directory / "results.jsonl")


def main() -> None:
    """Send every row of a file by one client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=sorted(CLIENTS))
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    options.directory.mkdir()
    answered = asyncio.run(
        _run(options.client, options.source, options.directory, options.base_url, options.concurrency)
    )
    sys.stdout.write(f"answered {answered}\n")


if __name__ == "__main__":
    main()
