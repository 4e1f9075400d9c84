"""The one door to the network: a request goes out, a Reply or a Fault comes back.

Rules of this file: nothing that a peer does raises; a body is read to its end, or to its bound, before it counts; what
an exception says is never repeated, as it may hold the request's headers. Deadlines are kept by one sweep over all
attempts twice a second instead of a timer for each, which costs a tenth of a whole request.
"""

from __future__ import annotations

import asyncio
import io
import resource
import ssl
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

import aiohttp
from multidict import CIMultiDict

from batchrouter import __version__, jsontext
from batchrouter.errors import UsageError
from batchrouter.records import OK, Fault, FaultCode, Reply, Request
from batchrouter.retry import clean
from batchrouter.settings import Secret
from batchrouter.sse import Assembly, Incomplete

_SWEEP_S: Final = 0.5
_BODY_AT_ONCE_BYTES: Final = 2**20
_ERROR_BODY_BYTES: Final = 2**20
_ERROR_TEXT_CHARACTERS: Final = 2000
_SPARE_DESCRIPTORS: Final = 64
_REDACTED: Final = b"[the key]"
_CATALOGUE_S: Final = 3.0
_CATALOGUE_BYTES: Final = 16 * 2**20
_STREAM_END_S: Final = 1.0


class Redactor:
    """Takes the keys out of anything that is to be kept or shown."""

    def __init__(self, *keys: Secret) -> None:
        plain = [key.reveal() for key in keys]
        self._forms = [form for text in plain for form in {text.encode(), jsontext.dumps(text)[1:-1]}]

    def __call__(self, content: bytes) -> bytes:
        """The content without any key in it."""
        for form in self._forms:
            if form in content:
                content = content.replace(form, _REDACTED)
        return content

    def text(self, content: str) -> str:
        """The same for a text."""
        return self(content.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


class _Attempt:
    """One request under way, as the sweep sees it."""

    __slots__ = ("assembly", "expired", "is_fresh", "response", "seen", "seen_s", "started_s", "task")

    def __init__(self, task: asyncio.Task[Any], now: float) -> None:
        self.task = task
        self.started_s = now
        self.seen_s = now
        self.seen = -1
        self.response: aiohttp.ClientResponse | None = None
        self.assembly: Assembly | None = None
        self.expired = ""
        self.is_fresh = False

    def progress(self) -> int:
        """A figure that grows with what arrives: bytes, or of a stream its events (not what only keeps it alive)."""
        if self.assembly is not None:
            return self.assembly.events
        return -1 if self.response is None else self.response.content.total_bytes


class Catalogue(NamedTuple):
    """An endpoint's answer to `GET /models`: its status (0: none came), and the models, each with an `id` (None: it
    has no catalogue).
    """

    status: int
    models: list[dict[str, Any]] | None

    def lacks(self, wanted: Iterable[str]) -> list[str]:
        """Those models that are not listed; none where nothing is."""
        known = {model["id"] for model in self.models or ()}
        return [model for model in wanted if model not in known] if known else []


class _Connector(aiohttp.TCPConnector):
    """Tells which attempts had to open a connection of their own (all others were given a kept one)."""

    on_created: Callable[[], None]

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        made = await super()._create_connection(*args, **kwargs)
        self.on_created()
        return made


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
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_bytes = max_response_bytes
        self._proxy = proxy
        self._tls = _tls_context(ca_file) if base_url.startswith("https") else None
        self._redact = Redactor(key)
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
        self._by_task: dict[asyncio.Task[Any] | None, _Attempt] = {}

    async def __aenter__(self) -> Self:
        self._session = self._new_session(keep_alive=True)
        self._fresh = self._new_session(keep_alive=False)
        self._loop = asyncio.get_running_loop()
        self._period_s = min(_SWEEP_S, self._timeout_s / 8, self._idle_timeout_s / 8)
        self._set_timer()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        await self._session.close()
        await self._fresh.close()
        await asyncio.sleep(0)  # let closed transports say so before the loop ends

    def _new_session(self, *, keep_alive: bool) -> aiohttp.ClientSession:
        connector = _Connector(
            limit=self._concurrency,
            force_close=not keep_alive,
            ssl=self._tls if self._tls is not None else True,
            ttl_dns_cache=30,
        )
        connector.on_created = self._connected
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None, connect=None),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            raise_for_status=False,
            trust_env=False,
        )

    def _connected(self) -> None:
        """An attempt's clock starts when it has a connection."""
        attempt = self._by_task.get(asyncio.current_task())
        if attempt is not None:
            attempt.is_fresh = True
            attempt.started_s = attempt.seen_s = self._loop.time()

    # --- the catalogue ---------------------------------------------------------------------------------------------

    async def catalogue(self) -> Catalogue:
        """What `GET /models` lists; raises nothing."""
        status = 0
        try:
            async with (
                asyncio.timeout(_CATALOGUE_S),
                self._session.get(self._base_url + "/models", allow_redirects=False, proxy=self._proxy) as response,
            ):
                status = response.status
                raw = await _read(response, _CATALOGUE_BYTES) if status == OK else None
            listed = jsontext.loads(self._redact(raw or b"null"))
        except (aiohttp.ClientError, OSError, ValueError, zlib.error):
            listed = None
        models = listed.get("data") if type(listed) is dict else None
        if type(models) is not list:
            return Catalogue(status, None)
        return Catalogue(status, [model for model in models if type(model) is dict and type(model.get("id")) is str])

    # --- deadlines -------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """End what is past its deadline, or had no byte for too long."""
        now = self._loop.time()
        late_s = now - self._sweep_due_s
        if (
            late_s > self._period_s
        ):  # we were held up (a huge body, a suspended process): that is not the peer's silence
            for attempt in self._by_task.values():
                attempt.started_s += late_s
                attempt.seen_s += late_s
        for attempt in self._by_task.values():
            progress = attempt.progress()
            if progress != attempt.seen:
                attempt.seen, attempt.seen_s = progress, now
            if attempt.expired:
                continue
            if now - attempt.started_s >= self._timeout_s:
                attempt.expired = f"not finished after {self._timeout_s:g} s"
            elif now - attempt.seen_s >= self._idle_timeout_s:
                attempt.expired = f"not a byte for {self._idle_timeout_s:g} s"
            else:
                continue
            attempt.task.cancel()
        self._set_timer()

    def _set_timer(self) -> None:
        self._sweep_due_s = self._loop.time() + self._period_s
        self._timer = self._loop.call_at(self._sweep_due_s, self._sweep)

    # --- one attempt -----------------------------------------------------------------------------------------------

    async def send(self, request: Request) -> Reply | Fault:
        """Send one request and read its answer; a connection that had gone stale is replaced at once."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a coroutine runs in a task)
        started = self._loop.time()
        attempt = _Attempt(task, started)
        self._by_task[task] = attempt
        try:
            try:
                return await self._exchange(self._session, request, attempt)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if attempt.is_fresh or attempt.response is not None:
                    raise  # not a kept connection that had gone stale
                return await self._exchange(self._fresh, request, attempt)
        except asyncio.CancelledError:
            if attempt.expired and task.uncancel() == 0:
                return Fault("timeout", attempt.expired, self._loop.time() - started)
            raise
        except (aiohttp.ClientError, OSError, ValueError, zlib.error, EOFError) as error:
            code, message = _describe(error, answered=attempt.response is not None)
            reached = not isinstance(error, aiohttp.ClientConnectorError)
            return Fault(code, message, self._loop.time() - started, reached)
        finally:
            del self._by_task[task]

    async def _exchange(self, session: aiohttp.ClientSession, request: Request, attempt: _Attempt) -> Reply | Fault:
        started = self._loop.time()
        body = request.body if len(request.body) <= _BODY_AT_ONCE_BYTES else io.BytesIO(request.body)
        response = await session.post(self._urls[request.path], data=body, allow_redirects=False, proxy=self._proxy)
        attempt.response = response
        try:
            status = response.status
            if status == OK and (request.streamed or response.content_type == "text/event-stream"):
                return await self._read_stream(response, attempt, started)
            bound = self._max_bytes if status == OK else min(_ERROR_BODY_BYTES, self._max_bytes)
            raw = await _read(response, bound)
            latency_s = self._loop.time() - started
            if status == OK:
                return self._answer(response, raw, bound, latency_s)
            if 300 <= status < 400:
                target = clean(response.headers.get("Location", "nowhere"))[:200]
                return Fault("redirect", f"the endpoint redirects ({status}) to {self._redact.text(target)}", latency_s)
            return Reply(status, response.headers, self._error_body(raw), latency_s)
        finally:
            response.release()

    def _answer(
        self, response: aiohttp.ClientResponse, raw: bytes | None, bound: int, latency_s: float
    ) -> Reply | Fault:
        if raw is None:
            return Fault("bad_response", f"the answer is larger than {bound} bytes (--max-response)", latency_s)
        try:
            body = jsontext.loads(self._redact(raw))
        except jsontext.NotJson as error:
            return Fault("bad_response", f"the answer is not JSON: {error}", latency_s)
        if type(body) is not dict:
            return Fault("bad_response", "the answer is JSON, but no object", latency_s)
        return Reply(OK, response.headers, body, latency_s)

    async def _read_stream(self, response: aiohttp.ClientResponse, attempt: _Attempt, started: float) -> Reply | Fault:
        assembly = attempt.assembly = Assembly()
        ttft_s = None
        left = self._max_bytes
        content = response.content
        while not assembly.finished and (chunk := await content.readany()):
            left -= len(chunk)
            if left < 0:
                message = f"the answer is larger than {self._max_bytes} bytes (--max-response)"
                return Fault("bad_response", message, self._loop.time() - started)
            assembly.feed(chunk)
            if ttft_s is None and assembly.started:
                ttft_s = self._loop.time() - started
        latency_s = self._loop.time() - started
        body = assembly.result()
        if isinstance(body, Incomplete):
            return Fault("bad_response", self._redact.text(body.message), latency_s)
        if not content.at_eof():  # the end that follows [DONE] keeps the connection usable
            try:
                async with asyncio.timeout(_STREAM_END_S):
                    await content.readany()
            except (TimeoutError, aiohttp.ClientError):
                response.close()
        text = jsontext.dumps(body)
        clean_text = self._redact(text)
        return Reply(
            OK,
            response.headers,
            body if clean_text is text else jsontext.loads(clean_text),
            latency_s,
            ttft_s,
        )

    def _error_body(self, raw: bytes | None) -> dict[str, Any]:
        """An error's body as a JSON object; one that is none is kept as a cleaned, short text."""
        if raw is not None:
            raw = self._redact(raw)
            try:
                body = jsontext.loads(raw)
            except jsontext.NotJson:
                body = None
            if type(body) is dict:
                return body
        text = (raw or b"")[: 4 * _ERROR_TEXT_CHARACTERS].decode("utf-8", "replace")
        return {"error": {"message": clean(text)[:_ERROR_TEXT_CHARACTERS], "type": "non_json_body"}}


async def _read(response: aiohttp.ClientResponse, bound: int) -> bytes | None:
    """The whole body, decompressed; None (and the connection closed) when it is larger than `bound` bytes."""
    announced = response.content_length
    if announced is not None and announced <= bound and "Content-Encoding" not in response.headers:
        return await response.read()
    chunks = []
    left = bound
    while chunk := await response.content.readany():
        left -= len(chunk)
        if left < 0:
            response.close()
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _describe(error: Exception, *, answered: bool) -> tuple[FaultCode, str]:
    """What went wrong between us and the endpoint, in words of our own."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError | ssl.SSLError):
        inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        reason = getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or "handshake failed"
        return "tls", f"the endpoint's TLS certificate is not trusted: {clean(str(reason))}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "connection", f"the name {error.host} cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return (
            "connection",
            f"cannot connect to {error.host}:{error.port}: {error.strerror or 'no reason given'}",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return "connection", f"the proxy refused: {error.status}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "connection", "the endpoint closed the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError | zlib.error | EOFError):
        return "bad_response", "the answer was cut short or broken"
    if isinstance(error, aiohttp.ClientOSError | OSError):
        when = "in the middle of the answer" if answered else "before the answer"
        return "connection", f"the connection broke {when}: {error.strerror or type(error).__name__}"
    return "bad_response", f"the answer is no proper HTTP ({type(error).__name__})"


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, OSError):
        raise UsageError(f"--ca-file {ca_file} holds no certificate in PEM form") from None


def ensure_descriptors(connections: int) -> None:
    """Raise this process's own limit of open files where need be; raises UsageError when it may not."""
    needed = connections + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(
            f"--concurrency {connections} needs {needed} open files and this process may have {hard};"
            f" raise it (ulimit -n {needed}), or lower --concurrency"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
