"""What can go wrong between us and the endpoint, as data, in words of our own.

Rules of this file: what an exception says is never repeated, as it may hold the request's headers.
"""

from __future__ import annotations

import ssl
import zlib
from typing import Final

import aiohttp

from batchrouter.records import Fault
from batchrouter.retry import clean

# All that a request may end in beside an answer. Whatever else is raised is a bug of ours.
MISHAPS: Final = (aiohttp.ClientError, OSError, ValueError, zlib.error, EOFError)

# Handshakes that end so end so again: something that speaks no TLS, or none that we would.
_HOPELESS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL", "UNKNOWN_PROTOCOL"})


def fault_of(error: Exception, latency_s: float, *, answered: bool) -> Fault:
    """The fault that one of `MISHAPS` means; `answered`: an answer had begun."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        inner = getattr(error, "certificate_error", error)
        reason = getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or "it does not fit the host"
        return Fault("tls", f"the endpoint's TLS certificate is not trusted: {_words(reason)}", latency_s)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = str(getattr(getattr(error, "os_error", None), "reason", "") or "no reason given")
        message = f"no TLS connection with {error.host}:{error.port}: {_words(reason)}"
        return Fault("tls" if reason in _HOPELESS else "connection", message, latency_s, reached=False)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Fault("connection", f"the name {error.host} cannot be resolved", latency_s, reached=False)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        message = f"cannot connect to the proxy {error.host}:{error.port}: {_reason(error)}"
        return Fault("connection", message, latency_s, reached=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        message = f"cannot connect to {error.host}:{error.port}: {_reason(error)}"
        return Fault("connection", message, latency_s, reached=False)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Fault("connection", f"the proxy refused: {error.status}", latency_s, reached=False)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return Fault("connection", "the endpoint closed the connection without an answer", latency_s)
    if isinstance(error, aiohttp.ClientPayloadError | zlib.error | EOFError):
        return Fault("bad_response", "the answer was cut short or broken", latency_s)
    if isinstance(error, OSError):
        when = "in the middle of the answer" if answered else "before the answer"
        return Fault("connection", f"the connection broke {when}: {_reason(error)}", latency_s)
    what = "no proper HTTP, or packed as nobody asked for"
    return Fault("bad_response", f"the answer is {what} ({type(error).__name__})", latency_s)


def _reason(error: OSError) -> str:
    return error.strerror or "no reason given"


def _words(reason: object) -> str:
    """`SELF_SIGNED` as a person says it."""
    text = clean(str(reason))
    return text.replace("_", " ").lower() if text.isupper() else text
