"""`python -m tests.bench.dataset [ROWS]`: what `prepare` and `export` cost for a table of a million rows.

Each command is a process of its own; the run between them is played into the ledger without a network: most rows
answered, one in 50 failed, one in 100 pending, in the order in which 64 at once would end.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .measure import run

_TIMEOUT_S: Final = 900.0
_AT_ONCE: Final = 64
_NO_PRICES: Final[Mapping[str, Any]] = {}
_WORDS: Final = ("parcel", "late", "box", "open", "lamp", "works", "well", "keep", "it", "thanks", "again", "broken")


def write_table(path: Path, rows: int) -> Path:
    """A CSV of about 260 bytes a row, ids in no order, some cells quoted and some empty."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        file.write("id,product,rating,review,posted\n")
        for number in range(rows):
            text = " ".join(rng.choices(_WORDS, k=36))
            quoted = f'"{text}, ""really""\n{number}"' if number % 3 else text
            known = f"R-{number * 7919 % rows:09d}"
            file.write(f"{known},Lumo desk lamp {number % 97},{number % 6 or ''},{quoted},2026-03-0{number % 9}\n")
    return path


def play(
    directory: Path,
    requests: Path,
    outcome_of: Callable[[Any], Any],
    *,
    at_once: int = _AT_ONCE,
    models: Mapping[str, Any] = _NO_PRICES,
) -> None:
    """A run of `requests` as its ledger has it: `outcome_of` gives a request's Outcome, or None to leave it pending."""
    from batchrouter import plan  # noqa: PLC0415  (the measuring process stays light)
    from batchrouter.intake import Shaping  # noqa: PLC0415
    from batchrouter.ledger import Ledger  # noqa: PLC0415
    from batchrouter.settings import Settings  # noqa: PLC0415
    from batchrouter.sources import Source  # noqa: PLC0415

    source = Source(requests.name, requests)
    settings = Settings(model="gpt-5.4")
    with Ledger.open(directory, redact=bytes) as ledger:
        made = plan.make([source], Shaping(model="gpt-5.4"), ledger)
        about = {"label": source.label, "path": str(source.path), **source.fingerprint()}
        ledger.write_run({"version": "0", "inputs": [about], "settings": settings.shown(), "models": models})
        for number, outcome in enumerate(_as_they_end(map(outcome_of, made.rows.requests()), at_once)):
            if outcome is not None:
                ledger.record(outcome)
            if number % 10_000 == 0:
                ledger.checkpoint()()
        ledger.checkpoint()()


def _as_they_end(items: Iterable[Any], at_once: int) -> Iterator[Any]:
    """The items, as some at a time are under way and any of them may end first."""
    rng = random.Random(2)
    under_way: list[Any] = []
    for item in items:
        under_way.append(item)
        if len(under_way) == at_once:
            yield under_way.pop(rng.randrange(at_once))
    rng.shuffle(under_way)
    yield from under_way


def outcome(request: Any, *, content: str | None = None, **changes: Any) -> Any:
    """An answer with `content` to a request, as a run books it; `changes` to the Outcome's own fields."""
    from batchrouter.records import Outcome, Reply, Usage  # noqa: PLC0415  (as above)

    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop" if content else "length"}
    usage = {"prompt_tokens": 90, "completion_tokens": 20, "total_tokens": 110}
    body = {"id": f"chatcmpl-{request.n}", "object": "chat.completion", "created": 1, "model": request.model}
    reply = Reply(200, {}, body | {"choices": [choice], "usage": usage}, 0.25)
    made = Outcome(request, reply, None, 1, Usage(90, 20, 110), not content, request.model, "endpoint")
    return made._replace(**changes)


def _outcome_of(request: Any) -> Any:
    if request.n % 100 == 0:
        return None
    if request.n % 50 == 1:
        return outcome(request, reply=None, error=("timeout", "nothing came within 600 s"), usage=None)
    return outcome(request, content=f'{{"label": "positive", "score": 0.{request.n % 90 + 10}}}')


def main(rows: int) -> None:
    """Measure, and print a table."""
    command = [sys.executable, "-m", "batchrouter"]
    join = ["--join", "table.csv", "--id", "id"]
    columns = ["--column", "label=label", "--column", "score=score"]
    template = "Sentiment of this review of {{ product }}: {{ review }}"
    steps = {
        "prepare": ["prepare", "table.csv", "--id", "id", "--prompt", template, "-o", "requests.jsonl"],
        "the run, played": [],
        "export, alone, .csv": ["export", "table.run", "-o", "alone.csv"],
        "export, joined, .csv": ["export", "table.run", *join, "-o", "joined.csv"],
        "export, joined, .jsonl": ["export", "table.run", *join, "-o", "joined.jsonl"],
        "export, joined, .parquet": ["export", "table.run", *join, "-o", "joined.parquet"],
        "export, joined, JMESPath, .csv": ["export", "table.run", *join, *columns, "-o", "columns.csv"],
        "prepare from Parquet": ["prepare", "joined.parquet", "--prompt", template, "-o", "again.jsonl"],
    }
    with tempfile.TemporaryDirectory(prefix="batchrouter-bench-") as folder:
        work = Path(folder)
        write_table(work / "table.csv", rows)
        sys.stdout.write(f"{rows:,} rows\n| step | wall s | CPU s | peak MB |\n|---|---|---|---|\n")
        for name, arguments in steps.items():
            here = [str(work / word) if word.partition(".")[0] in _FILES else word for word in arguments]
            ours = [sys.executable, "-m", "tests.bench.dataset", "play", str(work)]
            cost = run([*command, *here] if here else ours, work / "log", timeout_s=_TIMEOUT_S)
            sys.stdout.write(f"| {name} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_mb:.0f} |\n")
            sys.stdout.flush()


_FILES: Final = {"table", "requests", "alone", "joined", "columns", "again"}

if __name__ == "__main__":
    if sys.argv[1:2] == ["play"]:
        play(Path(sys.argv[2]) / "table.run", Path(sys.argv[2]) / "requests.jsonl", _outcome_of)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
