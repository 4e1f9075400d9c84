"""The samples, each run against the embedded emulator, and read by the official SDK's types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.world import read_jsonl, run
from openai.types.chat import ChatCompletion

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def test_the_samples_are_what_the_cases_below_name() -> None:
    """No sample is left without a test."""
    assert {path.stem for path in SAMPLES.glob("*.jsonl")} == {"classify", "summarise", "tickets", "streamed"}


@pytest.mark.parametrize("name", ["classify", "summarise", "tickets", "streamed"])
def test_each_sample_is_answered_in_the_shape_it_asks_for(tmp_path: Path, name: str) -> None:
    """Every row is answered, `ChatCompletion` validates every body, and the content is of the kind asked for."""
    done = run("run", SAMPLES / f"{name}.jsonl", "--emulate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(SAMPLES / f"{name}.jsonl")
    results = read_jsonl(tmp_path / f"{name}.run/results.jsonl")
    assert len(results) == len(rows)
    for result in results:
        completion = ChatCompletion.model_validate(result["response"]["body"], strict=True)
        message = completion.choices[0].message
        assert completion.usage is not None
        if name == "classify":
            label = json.loads(message.content or "")
            assert label["sentiment"] in {"positive", "negative", "neutral"}
        elif name == "tickets":
            assert message.tool_calls
            assert message.tool_calls[0].type == "function"
            assert isinstance(json.loads(message.tool_calls[0].function.arguments)["order_id"], int)
        elif name == "streamed":
            assert result["batchrouter"]["ttft_s"] <= result["batchrouter"]["latency_s"]
            assert message.content
        else:
            assert message.content
