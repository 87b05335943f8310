"""A reverse proxy in front of an API server that notes every request and does what servers and networks do on bad days.

`fault` decides about each request; None forwards it. Faults are functions of the request, made by the functions below.
"""

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web
from msgspec import Struct

KINDS = ("pods", "namespaces", "nodes", "networkpolicies", "leases", "events")
HOP = {"transfer-encoding", "content-length", "connection", "date", "server"}
"""Headers that belong to one connection."""


class Asked(Struct, frozen=True):
    """One request."""

    at_s: float
    """time.monotonic()."""
    verb: str
    """list, watch, get, or the method."""
    kind: str
    query: dict[str, str]


Fault = Callable[["FaultyApi", web.Request, Asked], Awaitable[web.StreamResponse | None]]


class FaultyApi:
    """Listens on loopback; the port stays the same when it is stopped and started again."""

    def __init__(
        self, upstream: str, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.upstream = upstream
        self.host = host
        self.port = port
        self.tls = tls
        self.fault: Fault | None = None
        self.asked: list[Asked] = []
        self.thawed = asyncio.Event()
        """Not set: nothing is forwarded and nothing answered, though all connections stay open."""
        self.thawed.set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._open: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    async def start(self) -> None:
        """Serve; nothing if it does already."""
        if self._runner is not None:
            return
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        app = web.Application(client_max_size=1 << 23)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Connections are refused from now on; those that are open end."""
        self.break_off()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def close(self) -> None:
        await self.stop()
        if self._session is not None:
            await self._session.close()

    def break_off(self) -> None:
        """Reset every connection that has a request under way."""
        for transport in list(self._open):
            _reset(transport)

    def counts(self, since_s: float) -> Counter[tuple[str, str]]:
        """Requests since then by (verb, kind)."""
        return Counter((one.verb, one.kind) for one in self.asked if one.at_s >= since_s)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = _asked(request)
        self.asked.append(asked)
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._open.add(transport)
        try:
            await self.thawed.wait()
            if self.fault is not None and (answer := await self.fault(self, request, asked)) is not None:
                return answer
            return await self.forward(request)
        except (ConnectionError, aiohttp.ClientError):
            _reset(transport)
            return web.Response(status=502)
        finally:
            self._open.discard(transport)

    async def forward(
        self,
        request: web.Request,
        *,
        query: dict[str, str] | None = None,
        chunks: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]] | None = None,
    ) -> web.StreamResponse:
        """What the server answers, its body through `chunks`, the question with another `query` where it is given."""
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in {*HOP, "host"}}
        async with self._session.request(
            request.method,
            self.upstream + request.path,
            params=dict(request.query) if query is None else query,
            data=await request.read() or None,
            headers=headers,
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            body: AsyncIterator[bytes] = answer.content.iter_any()
            async for chunk in chunks(body) if chunks else body:
                await self.thawed.wait()
                await response.write(chunk)
            await response.write_eof()
            return response


def _reset(transport: asyncio.Transport) -> None:
    # asyncio of Python 3.11 fails so on a TLS transport that is gone already.
    with contextlib.suppress(AttributeError):
        transport.abort()


def _asked(request: web.Request) -> Asked:
    parts = request.path.strip("/").split("/")
    places = [index for index, part in enumerate(parts) if part in KINDS]
    kind = parts[places[-1]] if places else request.path
    if kind == "namespaces" and len(parts) > places[-1] + 2:
        kind = parts[-1]
    query = dict(request.query)
    named = bool(places) and places[-1] < len(parts) - 1
    verb = "watch" if query.get("watch") == "true" else "get" if named else "list"
    return Asked(time.monotonic(), verb if request.method == "GET" else request.method.lower(), kind, query)


# Faults


def only(fault: Fault, *, verb: str = "", kind: str = "") -> Fault:
    """A fault of these requests; all others are forwarded."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse | None:
        fits = (not verb or asked.verb == verb) and (not kind or asked.kind == kind)
        return await fault(api, request, asked) if fits else None

    return act


def both(first: Fault, second: Fault) -> Fault:
    """What the first forwards is the second's."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse | None:
        answer = await first(api, request, asked)
        return answer if answer is not None else await second(api, request, asked)

    return act


def refuse(status: int, reason: str = "", **headers: str) -> Fault:
    """A Status, or text where no reason is given."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        if not reason:
            return web.Response(status=status, text="upstream connect error or disconnect/reset", headers=named)
        body = {"kind": "Status", "apiVersion": "v1", "code": status, "reason": reason, "message": f"injected {reason}"}
        return web.json_response(body, status=status, headers=named)

    return act


def answer(body: bytes, content_type: str = "application/json") -> Fault:
    """The same with status 200 to whatever is asked; a stream stays open after it."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse:
        if asked.verb != "watch":
            return web.Response(body=body, content_type=content_type)
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await response.write(body)
        await asyncio.sleep(3600)
        return response

    return act


def endless(piece: bytes) -> Fault:
    """An answer that never ends and never makes sense."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(piece)
        return response

    return act


def late(seconds: float, *, piece_bytes: int = 0, pause_s: float = 0.0) -> Fault:
    """The true answer, later, and its body in small pieces with pauses."""

    async def dribble(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            for start in range(0, len(chunk), piece_bytes or len(chunk)):
                await asyncio.sleep(pause_s)
                yield chunk[start : start + (piece_bytes or len(chunk))]

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await api.forward(request, chunks=dribble)

    return act


def cut(after_bytes: int) -> Fault:
    """The true answer, broken off by a reset within a frame."""

    async def head(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        left = after_bytes
        async for chunk in body:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                await asyncio.sleep(0.02)
                raise ConnectionResetError

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse:
        return await api.forward(request, chunks=head)

    return act


def closed_after(seconds: float) -> Fault:
    """Watches end properly, but soon."""

    async def brief(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        end_s = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            while (left_s := end_s - time.monotonic()) > 0:
                yield await asyncio.wait_for(anext(body), left_s)

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse | None:
        return await api.forward(request, chunks=brief) if asked.verb == "watch" else None

    return act


def expired(*, continued: bool) -> Fault:
    """410 to every watch, or to every page but the first: history is compacted all the time."""

    async def act(api: FaultyApi, request: web.Request, asked: Asked) -> web.StreamResponse | None:
        hit = "continue" in asked.query if continued else asked.verb == "watch"
        return await refuse(410, "Expired")(api, request, asked) if hit else None

    return act


def server_context(certificate: str, key: str, client_authority: str = "") -> ssl.SSLContext:
    """TLS of a server; with an authority it wants certificates of its clients."""
    context: Any = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_authority or None)
    context.load_cert_chain(certificate, key)
    if client_authority:
        context.verify_mode = ssl.CERT_REQUIRED
    made: ssl.SSLContext = context
    return made
