"""Requests to the API server over one aiohttp session: JSON in, msgspec types out.

Nothing here retries: callers know what a failure means to them. No error text and no log line holds a token.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from netagent.config import ApiConfig
from netagent.kube.auth import Credentials
from netagent.kube.clock import ServerClock
from netagent.kube.wire import MALFORMED
from netagent.ports import NetagentError

CONNECT_TIMEOUT_S = 5.0
"""For TCP; twice that for TCP and TLS together."""
MAX_ANSWER_BYTES = 64 << 20
"""A longer answer is refused while it comes in: a page of 500 pods has some megabytes, and the agent 512 MiB for the
answers about all kinds."""
MAX_REFUSAL_BYTES = 64 << 10
"""As much is read of an answer that is no success."""
MAX_LINE_BYTES = 16 << 20
"""A longer watch frame is refused: etcd holds no object above 1.5 MiB, JSON text may be a few times larger."""
UNAUTHORIZED = 401

log = logging.getLogger(__name__)

T = TypeVar("T")
PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


class Status(Struct, rename="camel"):
    """meta/v1 Status: what the server says about a failure."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None


class ApiError(NetagentError):
    """The API server refused a request; nothing was changed by it."""

    def __init__(
        self, request: str, status: int, reason: str = "", message: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{request}: the API server answered {status} {reason}: {message or 'no message'}".rstrip())
        self.request = request
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        """Retry-After of the answer; 0: the server asked for no pause."""

    @property
    def gone(self) -> bool:
        """The resourceVersion or the continue token is older than what the server remembers."""
        return self.status == 410 or self.reason in ("Expired", "Gone")

    @property
    def already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Somebody changed the object since we read it."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def not_found(self) -> bool:
        return self.status == 404


class Unreachable(NetagentError):
    """No answer, or an answer cut off: whether the request took effect is unknown."""

    retry_after_s = 0.0
    """As ApiError has it."""


class TimedOut(Unreachable):
    """The answer was not complete within the time for it."""


class Silent(Unreachable):
    """A stream was open and nothing came for too long."""


class TooLarge(ApiError):
    """The answer, or a line of a stream, is longer than what is taken into memory."""


class ApiClient:
    """One API server. Every method raises ApiError or Unreachable."""

    def __init__(
        self, session: aiohttp.ClientSession, credentials: Credentials, request_timeout_s: float = 30.0
    ) -> None:
        self._session = session
        self._credentials = credentials
        self._timeout = _timeout(total=request_timeout_s)
        self.clock = ServerClock()
        self.answers: Counter[tuple[str, str]] = Counter()
        """Requests so far by verb (list, watch, get, create ...) and outcome: a status code, or `unreachable`."""
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

    @property
    def server(self) -> str:
        """Base URL."""
        return self._credentials.server

    async def get_json(self, path: str, into: type[T], **params: str | int) -> T:
        """GET path?params. Parameters that are empty text are left out."""
        return await self._exchange("GET", path, into, params=params)

    async def create(self, path: str, body: Any, into: type[T]) -> T:
        """POST to a collection; the object as the server stored it."""
        return await self._exchange("POST", path, into, body=body)

    async def update(self, path: str, body: Any, into: type[T]) -> T:
        """PUT. With metadata.resourceVersion in the body it changes nothing unless that is the current one."""
        return await self._exchange("PUT", path, into, body=body)

    async def patch(
        self, path: str, body: Any, into: type[T], *, patch_type: Literal["merge", "strategic"] = "merge"
    ) -> T:
        return await self._exchange("PATCH", path, into, body=body, content_type=PATCH_TYPES[patch_type])

    async def delete(self, path: str, *, uid: str = "", resource_version: str = "") -> None:
        """DELETE, only if the object still has this uid and resourceVersion where they are given."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {name: value for name, value in preconditions.items() if value},
        }
        await self._exchange("DELETE", path, msgspec.Raw, body=options)

    async def stream(self, path: str, *, silence_s: float, **params: str | int) -> AsyncGenerator[list[bytes], None]:
        """GET of newline-delimited text, as lists of whole lines that arrived together.

        The first list is empty: the server has accepted the request. A last line without its newline is dropped.
        Ends when the server ends it; raises Silent after silence_s without a byte, or without a whole line.
        """
        timeout = _timeout(sock_read=silence_s)
        request = f"GET {path}"
        async with self._open(_Call("GET", path, timeout, params)) as response:
            yield []
            rest = bytearray()
            whole_s = time.monotonic()
            while True:
                try:
                    chunk = await response.content.readany()
                except TimeoutError:
                    raise Silent(f"{request}: no byte for {silence_s:g} s.") from None
                except (aiohttp.ClientError, OSError) as error:
                    raise Unreachable(f"{request}: the stream broke: {_cause(error)}.") from None
                if not chunk:
                    return
                rest += chunk
                if b"\n" in chunk:
                    *lines, last = bytes(rest).split(b"\n")
                    rest = bytearray(last)
                    yield lines
                    whole_s = time.monotonic()
                elif time.monotonic() - whole_s > silence_s:
                    raise Silent(f"{request}: no whole line for {silence_s:g} s.")
                elif len(rest) > MAX_LINE_BYTES:
                    raise TooLarge(request, 200, "TooLarge", f"a line of more than {MAX_LINE_BYTES} bytes")

    async def _exchange(
        self,
        method: str,
        path: str,
        into: type[T],
        *,
        params: dict[str, str | int] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> T:
        data = None if body is None else msgspec.json.encode(body)
        call = _Call(method, path, self._timeout, params or {}, data, content_type)
        async with self._open(call) as response:
            content = await _read(response, call, MAX_ANSWER_BYTES)
            if content is None:
                raise TooLarge(str(call), response.status, "TooLarge", f"more than {MAX_ANSWER_BYTES} bytes")
        decoder = self._decoders.get(into)
        if decoder is None:
            decoder = self._decoders[into] = msgspec.json.Decoder(into)
        try:
            answer: T = decoder.decode(content)
        except MALFORMED as error:
            raise ApiError(str(call), response.status, "Undecodable", str(error)) from None
        return answer

    @asynccontextmanager
    async def _open(self, call: "_Call") -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of 2xx, its body not yet read."""
        response = await self._answer(call)
        self.clock.note(response.headers.get("Date"))
        try:
            if not 200 <= response.status < 300:
                raise _refusal(call, response, await _read(response, call, MAX_REFUSAL_BYTES) or b"")
            yield response
        finally:
            # One that was read to its end is back in the pool already; any other must not be used again.
            response.close()

    async def _answer(self, call: "_Call") -> aiohttp.ClientResponse:
        """The answer; that to a second attempt where credentials or address have changed meanwhile."""
        authorization = await self._credentials.header()
        try:
            response = await self._send(call, authorization)
        except Unreachable as error:
            changed = await self._credentials.unreachable()
            if not changed or not (isinstance(error, _NotConnected) or call.method == "GET"):
                raise
            return await self._send(call, await self._credentials.header())
        if response.status == UNAUTHORIZED and await self._credentials.rejected(authorization):
            response.close()
            response = await self._send(call, await self._credentials.header())
        return response

    async def _send(self, call: "_Call", authorization: str | None) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if call.data is not None:
            headers["Content-Type"] = call.content_type
        if authorization:
            headers["Authorization"] = authorization
        tls = self._credentials.tls
        try:
            response = await self._session.request(
                call.method,
                self._credentials.server + call.path,
                params={name: value for name, value in call.params.items() if value != ""},
                data=call.data,
                headers=headers,
                timeout=call.timeout,
                allow_redirects=False,
                proxy=self._credentials.proxy,
                server_hostname=self._credentials.tls_server_name,
                ssl=tls if tls is not None else True,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.answers[call.verb, "unreachable"] += 1
            text = f"{call}: no answer from the API server {self._credentials.server}: {_cause(error)}."
            raise _kind_of(error)(text) from None
        self.answers[call.verb, str(response.status)] += 1
        log.debug("%s: %d", call, response.status)
        return response


def _timeout(*, total: float | None = None, sock_read: float | None = None) -> aiohttp.ClientTimeout:
    connect_s = 2 * CONNECT_TIMEOUT_S
    return aiohttp.ClientTimeout(total, connect=connect_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=sock_read)


class _Call(Struct, frozen=True):
    method: str
    path: str
    timeout: aiohttp.ClientTimeout
    params: dict[str, str | int]
    data: bytes | None = None
    content_type: str = ""

    @property
    def verb(self) -> str:
        """As the API server's own metrics have it."""
        if self.method == "GET":
            return "watch" if "watch" in self.params else "list" if "limit" in self.params else "get"
        return {"POST": "create", "PUT": "update"}.get(self.method, self.method.lower())

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class _NotConnected(Unreachable):
    """The request was never sent."""


def _kind_of(error: Exception) -> type[Unreachable]:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return _NotConnected
    return TimedOut if isinstance(error, TimeoutError) else Unreachable


async def _read(response: aiohttp.ClientResponse, call: _Call, limit: int) -> bytes | None:
    """The body; None where it is longer than `limit` bytes."""
    content = bytearray()
    try:
        while chunk := await response.content.readany():
            content += chunk
            if len(content) > limit:
                return None
    except (aiohttp.ClientError, OSError) as error:
        text = f"{call}: the answer broke off after {len(content)} bytes: {_cause(error)}."
        raise _kind_of(error)(text) from None
    return bytes(content)


def _refusal(call: _Call, response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(content, type=Status)
    except MALFORMED:
        status = Status(message=content[:200].decode("utf-8", "replace").strip())
    reason = status.reason or response.reason or ""
    retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""), response.headers.get("Date", ""))
    return ApiError(str(call), response.status, reason, status.message or "", retry_after_s)


def _retry_after_s(text: str, date: str) -> float:
    """Seconds, or the moment itself as proxies may write it, by the answer's own Date. Source: RFC 9110, 10.2.3."""
    try:
        asked_s = float(text)
    except ValueError:
        try:
            asked_s = (parsedate_to_datetime(text) - parsedate_to_datetime(date)).total_seconds()
        except (ValueError, OverflowError, TypeError):
            return 0.0
    return asked_s if 0 < asked_s < float("inf") else 0.0


def _cause(error: Exception) -> str:
    """Why a connection failed, in one line. aiohttp's own repr would show the request's headers."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError):
        return "malformed address or header"
    return str(error) or type(error).__name__


@asynccontextmanager
async def connect(settings: ApiConfig) -> AsyncIterator[ApiClient]:
    """The API server that the settings name. Raises CredentialsError; makes no request yet."""
    credentials = Credentials(settings.kubeconfig)
    await credentials.load()
    connector = aiohttp.TCPConnector(limit=0, use_dns_cache=False, socket_factory=_Sockets(settings.peer_timeout_s))
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            yield ApiClient(session, credentials, settings.request_timeout_s)
        finally:
            await asyncio.sleep(0)


class _Sockets:
    """Makes sockets whose connection ends when the other end has acknowledged nothing for some time.

    Without it a server that lost its power keeps a watch open until `watch_silence_s`, and an answer until its timeout.
    """

    def __init__(self, peer_timeout_s: float) -> None:
        self._timeout_s = peer_timeout_s

    def __call__(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = addr_info
        made = socket.socket(family, kind, protocol)
        probe_s = max(1, round(self._timeout_s / 4))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(self._timeout_s * 1000)))
        return made
