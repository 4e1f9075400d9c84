"""Thousands of rows, a fifth of them in trouble: what each of them ends in, and what is said meanwhile."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from kit.world import check_answers, read_jsonl, request_row, run, serving, write_jsonl

from batchrouter.emulator import Behaviour, Latency

ROWS = int(os.environ.get("TEST_ROWS", "2000"))

ROW_S_OWN = {"status_400": 400, "status_413": 413, "status_422": 422, "context_length": 400, "content_policy": 400,
             "moderation": 403, "should_retry_false": 500}  # fmt: skip
OF_ANY = [
    "status_408", "status_409", "status_500", "status_502", "status_503", "status_504", "status_529",
    "html_502", "empty_500", "broken_json_500", "unavailable_retry_after=0.1", "error_in_200",
    "error_string_in_200", "choices_empty", "choices_missing", "choices_null", "finish_error", "choice_error",
    "invalid_json", "empty_200", "array_200", "null_200", "html_200", "invalid_utf8", "trailing_garbage",
    "gzip_corrupt", "gzip_cut", "gzip_mislabelled", "short_body", "chunked_without_end", "chunk_cut",
    "reset_before_headers", "reset_mid_headers", "reset_mid_body", "close_before_headers", "close_mid_headers",
    "malformed_status_line", "malformed_header", "negative_length", "two_lengths", "malformed_chunk_size",
    "stall_before_headers", "stall_mid_body", "stale_keepalive", "stale_keepalive_reset", "idle_close",
    "garbage_after_body", "second_answer", "connection_close", "http_10",
]  # fmt: skip
OF_STREAMS = [
    "sse_cut", "sse_cut_done", "sse_only_done", "sse_empty", "sse_bad_json", "sse_bad_utf8", "sse_abort",
    "sse_html", "sse_reset", "sse_stall", "sse_error_event", "sse_error_named", "sse_finish_error",
    "sse_comments", "sse_cr_split", "sse_split", "sse_gzip", "sse_json",
]  # fmt: skip
FEW = {"stall_before_headers", "stall_mid_body", "sse_stall"}  # each of them takes seconds


def asked(dice: random.Random) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows, and the status that those are to fail with which are to fail."""
    rows, failing, few = [], dict[str, int](), set[str]()
    for n in range(ROWS):
        streamed: dict[str, Any] = {"stream": True} if dice.random() < 0.3 else {}
        row = request_row(n, **streamed)
        if dice.random() < 0.2:
            fault = dice.choice([*ROW_S_OWN, *OF_ANY, *(OF_STREAMS * 3 if streamed else [])])
            fault = dice.choice(OF_ANY[:20]) if fault in few else fault
            few |= {fault} & FEW
            if fault in ROW_S_OWN:
                failing[row["custom_id"]] = ROW_S_OWN[fault]
            mark = f"[[fault:{fault}]]" if fault in ROW_S_OWN else f"[[fault:{fault}*{dice.choice([1, 1, 2])}]]"
            row = request_row(n, f"{mark} question {n}", **streamed)
        rows.append(row)
    return rows, failing


@pytest.mark.timeout(600)
def test_every_row_is_right_or_rightly_failed(tmp_path: Path) -> None:
    """Answered by the answer to its own question, or failed by its own status; nothing burned, nothing pending; and on
    stderr, where every warning is an error and asyncio watches, nothing but our own lines.
    """
    rows, failing = asked(random.Random(20))
    write_jsonl(tmp_path / "in.jsonl", rows)
    options = ("--idle-timeout", "2s", "--timeout", "9s", "--concurrency", "32", "--progress", "none")
    with serving(Behaviour(latency=Latency(0.005, 0.5), journal=True)) as served:
        environment = {**served.environment, "PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "1"}
        done = run("run", "in.jsonl", *options, cwd=tmp_path, env=environment, dev_mode=True, patience_s=500)
        assert done.returncode == 1, done.stderr
        check_answers(tmp_path / "in.run", [row for row in rows if row["custom_id"] not in failing], served)
        errors = read_jsonl(tmp_path / "in.run/errors.jsonl")
        assert {row["custom_id"]: row["response"]["status_code"] for row in errors} == failing
        assert all(row["error"] is None for row in errors)
        total = read_jsonl(tmp_path / "in.run/usage.jsonl")[-1]
    assert f"{ROWS:,} rows: {ROWS - len(failing):,} answered, {len(failing):,} failed, 0 pending" in done.stderr
    assert (total["requests"], total["failed"]) == (ROWS, len(failing))
    spoken = [line for line in done.stderr.splitlines() if not line.startswith("Executing ")]  # a busy machine's
    assert len(spoken) <= 4 + 2 * (len(ROW_S_OWN) + 1), done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Warning", "never awaited", "Unclosed", "unclosed"))
