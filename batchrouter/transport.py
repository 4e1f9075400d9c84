"""The one door to the network: a request goes out, a Reply or a Fault comes back.

Rules of this file: nothing that a peer does raises; a body is read to its end, or to its bound, before it counts; what
was read is seen by nobody before the key was taken out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Self

import aiohttp
from aiohttp.connector import Connection
from multidict import CIMultiDict

from batchrouter import __version__, jsontext
from batchrouter.catalogue import Catalogue
from batchrouter.descriptors import ensure_descriptors
from batchrouter.errors import UsageError
from batchrouter.keys import Secret
from batchrouter.mishaps import MISHAPS, fault_of
from batchrouter.records import OK, Fault, Reply, Request
from batchrouter.redaction import Redactor
from batchrouter.retry import clean
from batchrouter.sse import Assembly, Incomplete
from batchrouter.watch import Attempt, Watch
from batchrouter.wire import MOST_BYTES, Answer, Trust, Wire, is_plain, silent

_ERROR_BODY_BYTES: Final = 2**20
_ERROR_TEXT_CHARACTERS: Final = 2000
_SHOWN_BYTES: Final = 2**16  # of a body that is no JSON: far more than is shown, so that no key is cut in two
_BEGINNING_CHARACTERS: Final = 60
_CATALOGUE_BYTES: Final = 16 * 2**20
_STREAM_END_S: Final = 1.0
_PACKINGS: Final = frozenset({"", "identity", "gzip", "deflate"})
_STREAM: Final = "text/event-stream"

_Response = aiohttp.ClientResponse | Answer


class _Connector(aiohttp.TCPConnector):
    """Tells when an attempt opens a connection, and when it has one: made for it, or kept from another."""

    on_connected: Callable[..., None]
    trust: Trust

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        connection = await super().connect(*args, **kwargs)
        self.on_connected("kept", connection.transport)
        return connection

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        self.on_connected("opening")
        made = await super()._create_connection(*args, **kwargs)
        self.on_connected("fresh")
        return made

    async def _get(self, *args: Any, **kwargs: Any) -> Connection | None:
        """A kept connection, but none on which the peer has spoken unasked: it would be taken for the answer."""
        while (connection := await super()._get(*args, **kwargs)) is not None:
            if not silent([connection]):
                await self.trust.look_at(connection)
            elif not self.trust.is_lost:
                return connection
            connection.close()
        return None


class Transport:
    """A pool of at most `concurrency` connections to one endpoint. Enter it with `async with`."""

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        concurrency: int,
        timeout_s: float,
        idle_timeout_s: float,
        max_response_bytes: int,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        """Raises UsageError when the process may not open that many connections."""
        ensure_descriptors(concurrency)
        self._base_url = base_url
        self._urls = {
            path: base_url + path for path in ("/chat/completions", "/completions", "/embeddings", "/responses")
        }
        self.concurrency = concurrency
        self._max_bytes = max_response_bytes
        self._proxy = proxy
        self._tls = _tls_context(ca_file) if base_url.startswith("https") else None
        self._redact = Redactor(key)
        # Given with each request and not to the session, which would tell them to a proxy as well.
        self._headers = CIMultiDict(
            {
                **(headers or {}),
                "Authorization": f"Bearer {key.reveal()}",
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                "Accept-Encoding": "gzip, deflate",
                "User-Agent": f"batchrouter/{__version__}",
            }
        )
        self._watch = Watch(timeout_s, idle_timeout_s)
        self._trust = Trust()

    def heard_s(self) -> float:
        """When an answer under way last went on, by the loop's clock, as far as was looked."""
        return self._watch.heard_s

    async def __aenter__(self) -> Self:
        self._session = self._new_session(keep_alive=True)
        self._fresh = self._new_session(keep_alive=False)
        self._wire: Wire | None = None
        if self._proxy is None and self._session.connector is not None and is_plain(self._headers):
            on_kept = partial(self._watch.connected, "kept")
            self._wire = Wire(self._session.connector, self._urls, self._headers, on_kept, trust=self._trust)
        self._loop = asyncio.get_running_loop()
        self._watch.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.stop()
        if self._wire is not None:
            self._wire.close()
        await self._session.close()
        await self._fresh.close()
        await asyncio.sleep(0)  # let closed transports say so before the loop ends

    def _new_session(self, *, keep_alive: bool) -> aiohttp.ClientSession:
        connector = _Connector(
            limit=self.concurrency,
            force_close=not keep_alive,
            ssl=self._tls if self._tls is not None else True,
            ttl_dns_cache=30,
        )
        connector.on_connected = self._watch.connected
        connector.trust = self._trust
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None, connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=False,
            trust_env=False,
        )

    # --- the catalogue ---------------------------------------------------------------------------------------------

    async def catalogue(self, within_s: float) -> Catalogue:
        """What `GET /models` lists; raises nothing."""
        try:
            async with (
                asyncio.timeout(within_s),
                self._session.get(
                    self._base_url + "/models",
                    headers=self._headers,
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as response,
            ):
                status = response.status
                raw = await _read(response, _CATALOGUE_BYTES if status == OK else _ERROR_BODY_BYTES)
        except TimeoutError:
            return Catalogue(Fault("timeout", f"no answer within {within_s:g} s", within_s), None)
        except MISHAPS as error:
            return Catalogue(fault_of(error, 0.0, answered=False), None)
        if status != OK:
            return Catalogue(Reply(status, {}, self._error_body(raw), 0.0), None)
        try:
            listed = self._redact.loads(raw)
        except jsontext.NotJson:
            listed = None
        models = listed.get("data") if type(listed) is dict else None
        if type(models) is not list:
            return Catalogue(None, None)
        return Catalogue(None, [model for model in models if type(model) is dict and type(model.get("id")) is str])

    # --- one attempt -----------------------------------------------------------------------------------------------

    async def send(self, request: Request) -> Reply | Fault:
        """Send one request and read its answer; a connection that had gone stale is replaced at once."""
        attempt = self._watch.begin()
        started = attempt.started_s
        try:
            try:
                return await self._exchange(request, attempt)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.was_stale(self._loop.time()):
                    raise
                attempt.connection = "none"
                return await self._exchange(request, attempt, self._fresh)
        except asyncio.CancelledError:
            if not attempt.outlived():
                raise
            latency_s = self._loop.time() - started
            if attempt.connection == "opening":
                return Fault("connection", f"no connection: {attempt.expired}", latency_s, reached=False)
            return Fault("timeout", attempt.expired, latency_s)
        except MISHAPS as error:
            return fault_of(error, self._loop.time() - started, answered=attempt.response is not None)
        finally:
            self._watch.end(attempt)

    async def _exchange(
        self, request: Request, attempt: Attempt, session: aiohttp.ClientSession | None = None
    ) -> Reply | Fault:
        started = self._loop.time()
        if session is None and self._wire is not None and len(request.body) <= MOST_BYTES:
            response: _Response = await self._wire.post(request.path, request.body)
        else:
            response = await self._post(session or self._session, request, attempt)
        attempt.response = response
        try:
            status = response.status
            if status == OK and (request.streamed or _is_stream(response)):
                return await self._read_stream(response, attempt, started, Assembly(_choices_wanted(request.body)))
            bound = self._max_bytes if status == OK else min(_ERROR_BODY_BYTES, self._max_bytes)
            raw = await _read(response, bound)
            latency_s = self._loop.time() - started
            if status == OK:
                return self._answer(response, raw, latency_s)
            if 300 <= status < 400:
                target = clean(self._redact.text(response.headers.get("Location", "nowhere")))[:200]
                return Fault("redirect", f"the endpoint redirects ({status}) to {target}", latency_s)
            return Reply(status, response.headers, self._error_body(raw), latency_s)
        finally:
            response.release()

    async def _post(self, session: aiohttp.ClientSession, request: Request, attempt: Attempt) -> aiohttp.ClientResponse:
        """Send what does not go by the wire; a large body piece by piece, so that it shows how far it is."""
        body: bytes | io.BytesIO = request.body
        if len(request.body) > MOST_BYTES:
            body = attempt.upload = io.BytesIO(request.body)
        with contextlib.nullcontext() if self._wire is None else self._wire.leaving_room():
            return await session.post(
                self._urls[request.path],
                data=body,
                headers=self._headers,
                allow_redirects=False,
                proxy=self._proxy,
            )

    def _answer(self, response: _Response, raw: bytes, latency_s: float) -> Reply | Fault:
        if len(raw) > self._max_bytes:
            return Fault("bad_response", _too_large(self._max_bytes), latency_s)
        try:
            body = self._redact.loads(raw)
        except jsontext.NotJson as error:
            packed = clean(response.headers.get("Content-Encoding", "").lower())[:20]
            if packed not in _PACKINGS:
                return Fault("bad_response", f"the answer is packed as {packed}, which was not asked for", latency_s)
            return Fault("bad_response", f"the answer is {error}{self._beginning_of(raw)}", latency_s)
        if type(body) is not dict:
            return Fault("bad_response", "the answer is JSON, but no object", latency_s)
        return Reply(OK, response.headers, body, latency_s)

    async def _read_stream(
        self, response: _Response, attempt: Attempt, started: float, assembly: Assembly
    ) -> Reply | Fault:
        attempt.assembly = assembly
        ttft_s = None
        left = self._max_bytes
        content = response.content
        try:
            while not assembly.finished and (chunk := await content.readany()):
                left -= len(chunk)
                if left < 0:
                    return Fault("bad_response", _too_large(self._max_bytes), self._loop.time() - started)
                assembly.feed(chunk)
                if ttft_s is None and assembly.started:
                    ttft_s = self._loop.time() - started
        except (*MISHAPS, asyncio.CancelledError) as error:
            # What is whole has been paid for, however the connection ends.
            if not assembly.is_whole or (isinstance(error, asyncio.CancelledError) and not attempt.outlived()):
                raise
            response.close()
        latency_s = self._loop.time() - started
        body = assembly.result()
        if isinstance(body, Incomplete):
            return Fault("bad_response", body.message + self._beginning_of(body.beginning), latency_s)
        if not response.closed and not content.at_eof():  # the end that follows [DONE] keeps the connection usable
            try:
                async with asyncio.timeout(_STREAM_END_S):
                    await content.readany()
            except MISHAPS:
                response.close()
        return Reply(OK, response.headers, self._redact.value(body), latency_s, ttft_s)

    def _beginning_of(self, raw: bytes) -> str:
        """What something that is no answer looks like, in a few words."""
        beginning = clean(self._redact.shown(raw[:_SHOWN_BYTES]))[:_BEGINNING_CHARACTERS]
        return f"; it begins {beginning!r}" if beginning else ""

    def _error_body(self, raw: bytes) -> dict[str, Any]:
        """An error's body as a JSON object; one that is none is kept as a cleaned, short text."""
        try:
            body = self._redact.loads(raw)
        except jsontext.NotJson:
            body = None
        if type(body) is dict:
            return body
        text = clean(self._redact.shown(raw[:_SHOWN_BYTES]))[:_ERROR_TEXT_CHARACTERS]
        return {"error": {"message": text, "type": "non_json_body"}}


def _choices_wanted(body: bytes) -> int:
    """How many choices a row asks for at least."""
    wanted = jsontext.loads(body).get("n") if b'"n"' in body else 1
    return wanted if type(wanted) is int and wanted > 1 else 1


def _too_large(bound: int) -> str:
    return f"the answer is larger than {bound} bytes (--max-response)"


def _is_stream(response: _Response) -> bool:
    """Whether events come, one by one."""
    kind = response.headers.get("Content-Type", "")
    return kind != "application/json" and kind.partition(";")[0].strip().lower() == _STREAM


async def _read(response: _Response, bound: int) -> bytes:
    """The body, decompressed; of one that is larger than `bound` bytes a little more than those, and the connection is
    closed.
    """
    content = response.content
    chunks = []
    left = bound
    while chunk := await content.readany():
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0:
            response.close()
            break
        if content.at_eof():
            break
    return b"".join(chunks)


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, OSError):
        raise UsageError(f"--ca-file {ca_file} holds no certificate in PEM form") from None
