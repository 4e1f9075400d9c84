"""Every fault that a server can play, over real sockets: what becomes of its row, and of the rows beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from kit.world import Served, read_jsonl, request_row, run, serving, write_jsonl

from batchrouter.emulator import FAULTS

QUICK = ("--timeout", "5s", "--idle-timeout", "2s", "--max-response", "3MB", "--concurrency", "12")

# The row's own failure: its status and body under `response`, `error` null, one request.
REFUSED = {f"status_{code}": code for code in (
    400, 403, 404, 405, 406, 410, 411, 412, 413, 414, 415, 418, 422, 424, 426, 428, 431, 451
)} | {"context_length": 400, "content_policy": 400, "moderation": 403, "should_retry_false": 500}  # fmt: skip

# Tried again, then `attempts_exhausted` with the last answer.
EXHAUSTED = {f"status_{code}": code for code in (
    201, 202, 204, 408, 409, 421, 423, 425, 500, 501, 502, 503, 504, 505, 507, 508, 509, 511, 520, 521, 522, 523, 524,
    525, 526, 527, 529, 530, 598, 599,
)} | {"html_502": 502, "empty_500": 500, "huge_500": 500, "broken_json_500": 500, "unavailable_retry_after": 503,
      "should_retry_true": 400, "error_in_200": 502, "error_string_in_200": 502}  # fmt: skip

# Tried again, then failed without an HTTP answer.
FAILED = {
    **dict.fromkeys(
        ["choices_empty", "choices_missing", "choices_null", "finish_error", "choice_error", "invalid_json", "empty_200",
         "array_200", "string_200", "number_200", "null_200", "object_200", "html_200", "invalid_utf8", "trailing_garbage",
         "deep_nesting", "gzip_corrupt", "gzip_cut", "gzip_mislabelled", "gzip_bomb", "huge_body", "endless_body",
         "short_body", "chunked_without_end", "chunk_cut", "reset_mid_body", "malformed_status_line", "malformed_header",
         "negative_length", "two_lengths", "malformed_chunk_size", "huge_header", "many_headers"],
        "bad_response",
    ),
    **dict.fromkeys(
        ["reset_before_headers", "reset_mid_headers", "close_before_headers", "close_mid_headers"], "connection"
    ),
    **dict.fromkeys(["stall_before_headers", "stall_mid_headers", "stall_mid_body", "slow_drip"], "timeout"),
    **dict.fromkeys([f"redirect_{code}" for code in (301, 302, 303, 307, 308)], "redirect"),
    **dict.fromkeys(["redirect_other_host", "redirect_loop", "status_304"], "redirect"),
}  # fmt: skip

STREAMS_FAILED = {
    **dict.fromkeys(
        ["sse_cut", "sse_cut_done", "sse_only_done", "sse_empty", "sse_bad_json", "sse_bad_utf8", "sse_abort", "sse_html", "sse_reset"],
        "bad_response",
    ),
    "sse_stall": "timeout",
    "sse_pings_for_ever": "timeout",
}  # fmt: skip
STREAMS_EXHAUSTED = {"sse_error_event": None, "sse_error_named": None, "sse_finish_error": None}
STREAMS_ANSWERED = [
    "sse_comments", "sse_cr", "sse_crlf", "sse_cr_split", "sse_multi_line", "sse_no_space", "sse_fields", "sse_bom",
    "sse_split", "sse_one_write", "sse_gzip", "sse_wrong_type", "sse_big_event", "sse_usage_each", "sse_usage_none",
    "sse_usage_null_choices", "sse_null_deltas", "sse_role_each", "sse_empty_choices", "sse_turned", "sse_no_done",
    "sse_done_no_newline", "sse_done_no_space", "sse_after_done", "sse_json",
]  # fmt: skip

# Answered, and rightly: the content is the answer to the question, or what the fault puts in its place.
ANSWERED = [
    "text_plain", "no_content_type", "latin1_label", "odd_charset", "gzip", "deflate", "deflate_raw", "gzip_members",
    "pretty", "crlf", "bom", "duplicate_keys", "continue_100", "early_hints_103", "processing_102", "connection_close",
    "http_10", "split_headers", "stale_keepalive", "stale_keepalive_reset", "idle_close", "garbage_after_body",
    "usage_missing", "usage_null", "usage_negative", "usage_float", "usage_string", "usage_list", "usage_digits",
    "other_model", "finish_null", "second_answer", "half_open_keepalive", "sse_json_as_stream",
]  # fmt: skip
KEPT = [
    "content_null", "content_empty", "refusal", "content_parts", "reasoning_fields", "tool_arguments_broken",
    "line_separators", "nul_content", "ansi_content", "html_content", "formula_content", "wide_content", "nan",
    "infinity", "huge_float", "lone_surrogate", "finish_length", "finish_filter", "empty_length", "echo_key",
]  # fmt: skip
# Of the run, not of a row: in tests of their own below.
OF_THE_RUN = {
    "status_401", "status_402", "status_429", "key_in_401", "payment_retry_after", "insufficient_quota", "retry_after",
    "retry_after_ms", "retry_after_provider", "reset_requests", "reset_tokens", "retry_after_date", "rate_limit_bare",
    "rate_limit_garbage",
}  # fmt: skip
ELSEWHERE = {"sse_one_choice_cut"}  # needs n > 1


def test_no_fault_of_the_emulator_is_left_out() -> None:
    """Every fault that it can play is named by exactly one of the tables above."""
    tables: list[Iterable[str]] = [
        REFUSED,
        EXHAUSTED,
        FAILED,
        STREAMS_FAILED,
        STREAMS_EXHAUSTED,
        STREAMS_ANSWERED,
        ANSWERED,
        KEPT,
        OF_THE_RUN,
        ELSEWHERE,
    ]
    named = [name for table in tables for name in table]
    assert len(named) == len(set(named))
    assert set(named) == set(FAULTS)


def faulty_rows(names: list[str], suffix: str = "", **body: Any) -> list[dict[str, Any]]:
    """A row for each fault, with good rows between them: so it is the row that fails, not the endpoint."""
    rows = []
    for number, name in enumerate(names):
        rows.append({**request_row(number, f"[[fault:{name}{suffix}]] question {number}", **body), "custom_id": name})
        rows += [{**request_row(1000 + 6 * number + i), "custom_id": f"good-{number}-{i}"} for i in range(6)]
    return rows


def outcomes(tmp_path: Path, rows: list[dict[str, Any]], *options: str) -> tuple[dict[str, Any], Served, str]:
    """Custom id -> result, checked for what holds always: no row is lost, doubled or pending, no key, no warning."""
    write_jsonl(tmp_path / "in.jsonl", rows)
    with serving() as served:
        done = run("run", "in.jsonl", *QUICK, *options, cwd=tmp_path, env=served.environment, dev_mode=True)
        assert done.returncode in {0, 1}, done.stderr
        for word in ("Traceback", "Warning", served.emulator.key):
            assert word not in done.stderr
        directory = tmp_path / "in.run"
        found = read_jsonl(directory / "results.jsonl") + read_jsonl(directory / "errors.jsonl")
        for path in directory.iterdir():
            assert served.emulator.key.encode() not in path.read_bytes(), path
        by_id = {result["custom_id"]: result for result in found}
        assert len(found) == len(by_id) == len(rows)
        good = [result for name, result in by_id.items() if name.startswith("good-")]
        assert all(result["error"] is None and result["response"]["status_code"] == 200 for result in good)
        return by_id, served, done.stderr


def content_of(result: dict[str, Any]) -> Any:
    return result["response"]["body"]["choices"][0]["message"]["content"]


def test_what_fails_fails_as_the_contract_says(tmp_path: Path) -> None:
    """Statuses, broken answers, the network: each row has its own status or code, and its neighbours are answered."""
    rows = faulty_rows([*REFUSED, *EXHAUSTED, *FAILED])
    found, _, _ = outcomes(tmp_path, rows, "--max-attempts", "2")
    told, attempts = {}, {}
    for name in [*REFUSED, *EXHAUSTED, *FAILED]:
        response, error = found[name]["response"], found[name]["error"]
        told[name] = (response and response["status_code"], error and error["code"])
        attempts[name] = found[name]["batchrouter"]["attempts"]
    expected: dict[str, Any] = {name: (code, None) for name, code in REFUSED.items()}
    expected |= {name: (code, "attempts_exhausted") for name, code in EXHAUSTED.items()}
    expected |= {name: (None, code) for name, code in FAILED.items()}
    assert told == expected
    final = [*REFUSED, *(name for name, code in FAILED.items() if code == "redirect")]
    assert {name for name, count in attempts.items() if count == 1} == set(final)
    for name in EXHAUSTED:
        assert len(json.dumps(found[name])) < 6000, name


@pytest.mark.parametrize("streamed", [False, True])
def test_what_passes_is_tried_again_and_answered(tmp_path: Path, streamed: bool) -> None:  # noqa: FBT001
    """Each transient fault once, then an answer: every row is answered, by the answer to its own question."""
    once = [*STREAMS_FAILED, *STREAMS_EXHAUSTED] if streamed else [*EXHAUSTED, *FAILED]
    names = [name for name in once if FAILED.get(name) != "redirect"]
    rows = faulty_rows(names, "*1", **({"stream": True} if streamed else {}))
    found, served, _ = outcomes(tmp_path, rows)
    for row in rows:
        expected = served.emulator.answer({**row["body"], "stream": False})
        assert content_of(found[row["custom_id"]]) == expected["choices"][0]["message"]["content"], row["custom_id"]
        if row["custom_id"] in names and "_headers" not in row["custom_id"]:  # that may look like a stale connection
            assert found[row["custom_id"]]["batchrouter"]["attempts"] > 1, row


def test_sloppy_answers_are_read_right(tmp_path: Path) -> None:
    """Wrong labels, odd encodings, connection oddities, nonsense in `usage`: answered, with the right content."""
    rows = faulty_rows(ANSWERED)
    found, served, _ = outcomes(tmp_path, rows)
    for row in rows:
        result = found[row["custom_id"]]
        assert result["error"] is None, result
        expected = served.emulator.answer(row["body"])
        assert content_of(result) == expected["choices"][0]["message"]["content"], row["custom_id"]
    for name in ("usage_missing", "usage_null", "usage_negative", "usage_float", "usage_string", "usage_list"):
        assert "usage" not in found[name]["batchrouter"], name


def test_what_a_model_says_is_kept_as_it_is(tmp_path: Path) -> None:
    """Nulls, refusals, parts, control characters, markup: in the results verbatim, one strict JSON line each."""
    found, _, stderr = outcomes(tmp_path, faulty_rows(KEPT))
    assert all(found[name]["error"] is None for name in KEPT)
    assert content_of(found["content_null"]) is None
    assert content_of(found["refusal"]) is None
    assert type(content_of(found["content_parts"])) is list
    assert "\u2028" in content_of(found["line_separators"])
    assert "\0" in content_of(found["nul_content"])
    assert "<script" in content_of(found["html_content"])
    assert "\ud83d" in content_of(found["lone_surrogate"])
    assert found["empty_length"]["batchrouter"]["truncated"] is True
    assert found["finish_length"]["batchrouter"]["truncated"] is False
    assert "1 truncated" in stderr
    assert "\x1b" not in stderr


def test_streams_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """Every way to write a stream is read; every way to cut one is a failure, never half an answer."""
    names = [*STREAMS_ANSWERED, *STREAMS_FAILED, *STREAMS_EXHAUSTED]
    rows = faulty_rows(names, stream=True)
    found, served, _ = outcomes(tmp_path, rows, "--max-attempts", "2")
    by_name = {row["custom_id"]: row for row in rows}
    for name in STREAMS_ANSWERED:
        assert found[name]["error"] is None, (name, found[name])
        expected = served.emulator.answer({**by_name[name]["body"], "stream": False})
        message = found[name]["response"]["body"]["choices"][0]["message"]
        if name != "sse_big_event":
            assert message["content"] == expected["choices"][0]["message"]["content"], name
    told = {name: found[name]["error"]["code"] for name in [*STREAMS_FAILED, *STREAMS_EXHAUSTED]}
    assert told == STREAMS_FAILED | dict.fromkeys(STREAMS_EXHAUSTED, "attempts_exhausted")


def test_a_stream_that_lacks_one_choice_is_no_answer(tmp_path: Path) -> None:
    """Of two choices one never ends: a retry, never a result."""
    rows = faulty_rows(["sse_one_choice_cut"], stream=True, n=2)
    found, _, _ = outcomes(tmp_path, rows, "--max-attempts", "2")
    assert found["sse_one_choice_cut"]["error"]["code"] == "bad_response"


@pytest.mark.parametrize("name", sorted(OF_THE_RUN - {"status_401", "status_402", "key_in_401", "insufficient_quota"}))
def test_a_limit_is_waited_out_and_uses_up_no_attempt(tmp_path: Path, name: str) -> None:
    """Twice limited with a single attempt allowed: answered all the same."""
    waits = {"retry_after": "retry_after=0.3", "retry_after_provider": "retry_after_provider=0.3",
             "payment_retry_after": "payment_retry_after=0.3"}  # fmt: skip
    rows = [request_row(n) for n in range(8)]
    rows.append({**request_row(99, f"[[fault:{waits.get(name, name)}*2]] limited"), "custom_id": name})
    found, _, _ = outcomes(tmp_path, rows, "--max-attempts", "1")
    assert found[name]["error"] is None
    assert found[name]["batchrouter"]["attempts"] == 3


@pytest.mark.parametrize(
    ("name", "code"), [("status_401", 3), ("key_in_401", 3), ("status_402", 4), ("insufficient_quota", 4)]
)
def test_what_concerns_the_account_stops_the_run_and_blames_no_row(tmp_path: Path, name: str, code: int) -> None:
    """Exit 3 or 4 with nothing in errors.jsonl, and the key nowhere, however often the server repeats it."""
    write_jsonl(tmp_path / "in.jsonl", [request_row(n, f"[[fault:{name}]] {n}") for n in range(40)])
    with serving() as served:
        done = run("run", "in.jsonl", *QUICK, cwd=tmp_path, env=served.environment)
        assert done.returncode == code, done.stderr
        assert read_jsonl(tmp_path / "in.run/errors.jsonl") == []
        assert served.asked <= 12
        assert served.emulator.key not in done.stderr
        for path in (tmp_path / "in.run").iterdir():
            assert served.emulator.key.encode() not in path.read_bytes(), path
