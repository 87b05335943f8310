"""Health, metrics and debug over HTTP.

Health and metrics are for the kubelet and Prometheus and listen where the configuration says; debug shows names, labels
and addresses of the whole cluster and listens on loopback unless configured otherwise.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from netagent.agent.http.health import Health
from netagent.agent.http.pages import as_json
from netagent.config import HttpConfig
from netagent.ports import NetagentError
from netagent.printable import one_line

log = logging.getLogger(__name__)


class HttpError(NetagentError):
    """A listener could not be opened."""


class HttpServer:
    """The listeners of one agent."""

    def __init__(
        self,
        config: HttpConfig,
        *,
        alive: Health,
        ready: Health,
        registry: CollectorRegistry,
        before_scrape: Callable[[], Awaitable[None]],
        debug: Callable[[], web.Application] | None,
    ) -> None:
        """`debug` makes the application of the debug listener; None: there is none."""
        self._config = config
        self._alive = alive
        self._ready = ready
        self._registry = registry
        self._before_scrape = before_scrape
        self._public = web.Application()
        self._public.router.add_get("/healthz", self._livez)
        self._public.router.add_get("/livez", self._livez)
        self._public.router.add_get("/readyz", self._readyz)
        self._public.router.add_get("/metrics", self._metrics)
        self._debug = debug

    async def run(self) -> None:
        """Serve until cancelled. Raises HttpError where an address cannot be bound."""
        config = self._config
        places = [(self._public, config.address, config.port, "http.address, http.port")]
        if self._debug is not None:
            options = "http.debug_address, http.debug_port"
            places.append((self._debug(), config.debug_address, config.debug_port, options))
        runners = []
        try:
            for app, address, port, options in places:
                runners.append(runner := web.AppRunner(app, access_log=None))
                await runner.setup()
                await _listen(runner, address, port, options)
            await asyncio.Event().wait()
        finally:
            for runner in runners:
                await runner.cleanup()

    async def metrics(self) -> bytes:
        """As Prometheus reads them."""
        await self._before_scrape()
        return generate_latest(self._registry)

    async def _livez(self, request: web.Request) -> web.Response:
        return _health(request, self._alive, "alive")

    async def _readyz(self, request: web.Request) -> web.Response:
        return _health(request, self._ready, "ready")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self.metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _health(request: web.Request, health: Health, word: str) -> web.Response:
    """200 where no part has a problem, else 503; part by part, as text or as JSON where the client asks for it."""
    problems, remarks = health.problems(), health.remarks()
    status = 503 if problems else 200
    if "application/json" in request.headers.get("Accept", ""):
        parts = {name: problems.get(name, "") for name in health.parts}
        return as_json({word: not problems, "parts": parts, "remarks": remarks}, status)
    lines = [f"[-] {name}: {one_line(problems[name])}" if name in problems else f"[+] {name}" for name in health.parts]
    lines += (one_line(f"[!] {subject}: {text}") for subject, text in remarks.items())
    return web.Response(text="\n".join(lines) + "\n", status=status)


async def _listen(runner: web.AppRunner, address: str, port: int, options: str) -> None:
    try:
        site = web.TCPSite(runner, address, port, reuse_address=True)
        await site.start()
    except OSError as error:
        raise HttpError(
            f"cannot listen on {address}:{port}: {error.strerror}. The agent does not start; "
            f"free the port or change {options}."
        ) from None
    log.info("listening on %s:%d", address, port)
