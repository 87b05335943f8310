"""Requests to the API server over one aiohttp session: JSON in, msgspec types out.

Nothing here retries: callers know what a failure means to them. No error text and no log line holds a token.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from netagent.config import ApiConfig
from netagent.kube.auth import Credentials
from netagent.kube.clock import ServerClock
from netagent.ports import NetagentError

REQUEST_TIMEOUT_S = 30.0
"""For everything but watches: a page of 500 pods takes a loaded server some seconds."""
CONNECT_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 16 << 20
"""A longer watch frame is refused: etcd holds no object above 1.5 MiB, JSON text may be a few times larger."""
UNAUTHORIZED = 401

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


class Silent(Unreachable):
    """A stream was open and nothing came for too long."""


class ApiClient:
    """One API server. Every method raises ApiError or Unreachable."""

    def __init__(self, session: aiohttp.ClientSession, credentials: Credentials) -> None:
        self._session = session
        self._credentials = credentials
        self.clock = ServerClock()
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
        Ends when the server ends it; raises Silent after silence_s without a byte.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        request = f"GET {path}"
        async with self._open(_Call("GET", path, timeout, params)) as response:
            yield []
            parts: list[bytes] = []
            while True:
                try:
                    chunk = await response.content.readany()
                except TimeoutError:
                    raise Silent(f"{request}: no byte for {silence_s:g} s.") from None
                except (aiohttp.ClientError, OSError) as error:
                    raise Unreachable(f"{request}: the stream broke: {_cause(error)}.") from None
                if not chunk:
                    return
                parts.append(chunk)
                if b"\n" in chunk:
                    *lines, rest = b"".join(parts).split(b"\n")
                    parts = [rest]
                    yield lines
                elif sum(map(len, parts)) > MAX_LINE_BYTES:
                    raise ApiError(request, 200, "TooLong", f"a line of more than {MAX_LINE_BYTES} bytes")

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
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        call = _Call(method, path, timeout, params or {}, data, content_type)
        async with self._open(call) as response:
            content = await _read(response, call)
        decoder = self._decoders.get(into)
        if decoder is None:
            decoder = self._decoders[into] = msgspec.json.Decoder(into)
        try:
            answer: T = decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError(str(call), response.status, "Undecodable", str(error)) from None
        return answer

    @asynccontextmanager
    async def _open(self, call: "_Call") -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of 2xx, its body not yet read. Credentials are loaded again and tried once more after a 401."""
        response = await self._send(call)
        if response.status == UNAUTHORIZED and await self._credentials.rejected():
            response.close()
            response = await self._send(call)
        self.clock.note(response.headers.get("Date"))
        try:
            if not 200 <= response.status < 300:
                raise _refusal(call, response, await _read(response, call))
            yield response
        finally:
            # One that was read to its end is back in the pool already; any other must not be used again.
            response.close()

    async def _send(self, call: "_Call") -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if call.data is not None:
            headers["Content-Type"] = call.content_type
        authorization = await self._credentials.header()
        if authorization:
            headers["Authorization"] = authorization
        try:
            return await self._session.request(
                call.method,
                self._credentials.server + call.path,
                params={name: value for name, value in call.params.items() if value != ""},
                data=call.data,
                headers=headers,
                timeout=call.timeout,
                allow_redirects=False,
                proxy=self._credentials.proxy,
                server_hostname=self._credentials.tls_server_name,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(
                f"{call}: no answer from the API server {self._credentials.server}: {_cause(error)}."
            ) from None


class _Call(Struct, frozen=True):
    method: str
    path: str
    timeout: aiohttp.ClientTimeout
    params: dict[str, str | int]
    data: bytes | None = None
    content_type: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


async def _read(response: aiohttp.ClientResponse, call: _Call) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientError, OSError) as error:
        raise Unreachable(f"{call}: the answer broke off: {_cause(error)}.") from None


def _refusal(call: _Call, response: aiohttp.ClientResponse, content: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(content, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = Status(message=content[:200].decode("utf-8", "replace").strip())
    try:
        retry_after_s = float(response.headers.get("Retry-After", "0"))
    except ValueError:
        retry_after_s = 0.0
    reason = status.reason or response.reason or ""
    return ApiError(str(call), response.status, reason, status.message or "", retry_after_s)


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
    connector = aiohttp.TCPConnector(ssl=credentials.tls if credentials.tls is not None else True, limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            yield ApiClient(session, credentials)
        finally:
            await asyncio.sleep(0)
