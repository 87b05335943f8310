"""Who may ask the debug listener: programs of this node, and people whose browser means it.

It listens on loopback, but every web page in a browser on this machine (or behind a port-forward) can send requests
there. Such a page cannot read answers unless a name of its own leads to this address (DNS rebinding), so only
addresses, localhost and configured names are answered; what a page of another origin makes the browser send is refused.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from netagent.config import HttpConfig

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(config: HttpConfig) -> Middleware:
    """Refuses requests of web pages of others with 403."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, config.debug_hosts)
        return problem(refusal, 403) if refusal else await handler(request)

    return guarded


def may_write(request: web.Request, config: HttpConfig) -> str:
    """Why this request must not change anything; "" where it may."""
    if config.debug_write == "always":
        return ""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if config.debug_write == "loopback" and peer and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        return ""
    return f"http.debug_write is {config.debug_write}. Nothing was changed; ask over loopback, on the node itself."


def problem(error: str, status: int = 400) -> web.Response:
    """A refusal, as commands of netagent read it."""
    return web.Response(body=orjson.dumps({"error": error}) + b"\n", status=status, content_type="application/json")


def _refusal(request: web.Request, names: tuple[str, ...]) -> str:
    if not _is_own(request.host, names):
        return f"Host = {request.host!r}. Accepted: an address, localhost, or a name in http.debug_hosts."
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        return f"the request comes from a web page of {origin!r}, which has no business here."
    followed = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest", "document")
    navigation = request.method == "GET" and followed == ("navigate", "document")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not navigation:
        return "the request comes from a web page of another site, which has no business here."
    return ""


def _is_own(host: str, names: tuple[str, ...]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
