"""The emulator's reader of requests: the same requests, however the bytes are cut."""

from __future__ import annotations

import pytest

from batchrouter.emulator.http1 import BadRequestError, Reader
from batchrouter.emulator.plays import Asked

PLAIN = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2;a=b\r\ndy\r\n0\r\n\r\n"
EMPTY = b"GET /v1/models HTTP/1.0\r\n\r\n"


def read(data: bytes, size: int) -> list[Asked]:
    reader, found = Reader(), []
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
        while (asked := reader.next()) is not None:
            found.append(asked)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_requests_are_read_however_they_are_cut(size: int) -> None:
    """Three requests on one connection, whole and byte by byte."""
    found = read(PLAIN + b"\r\n" + CHUNKED + EMPTY, size)
    assert [(one.method, one.path, one.body) for one in found] == [
        ("POST", "/v1/x", b"body"),
        ("POST", "/v1/x", b"body"),
        ("GET", "/v1/models", b""),
    ]
    assert found[0].headers == {"host": "h", "content-length": "4"}
    assert found[2].headers["connection"] == "close"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"p" * 300_000, 431),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    """Each with the status that says why."""
    reader = Reader()
    reader.feed(data)
    with pytest.raises(BadRequestError) as caught:
        reader.next()
    assert caught.value.status == status


def test_a_client_that_waits_for_leave_is_noticed() -> None:
    """`Expect: 100-continue` is seen before the body, and gone once the body is there."""
    reader = Reader()
    reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert reader.next() is None
    assert reader.expects_continue
    reader.feed(b"ok")
    assert reader.next() is not None
    assert not reader.expects_continue
