"""Health, metrics and debug over HTTP.

Health and metrics are for the kubelet and Prometheus and listen where the configuration says; debug shows names, labels
and addresses of the whole cluster and listens on loopback unless configured otherwise. Everything here only reads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from netagent.config import HttpConfig
from netagent.ports import NetagentError

log = logging.getLogger(__name__)

Problem = Callable[[], str]
"""Why a part is not ready; "" when it is."""
View = Callable[[], Any]
"""Plain data for a debug page."""


class HttpError(NetagentError):
    """A listener could not be opened."""


class HttpServer:
    """The listeners of one agent."""

    def __init__(
        self,
        config: HttpConfig,
        *,
        parts: Mapping[str, Problem],
        registry: CollectorRegistry,
        before_scrape: Callable[[], Awaitable[None]],
        views: Mapping[str, View],
        debug: web.Application,
    ) -> None:
        """`parts` decide readiness; `views` are the sections of /debug/state; `debug` has further debug routes."""
        self._config = config
        self._parts = parts
        self._registry = registry
        self._before_scrape = before_scrape
        self._views = views
        self._public = web.Application()
        self._public.router.add_get("/healthz", self._healthz)
        self._public.router.add_get("/livez", self._healthz)
        self._public.router.add_get("/readyz", self._readyz)
        self._public.router.add_get("/metrics", self._metrics)
        self._debug = debug
        self._debug.router.add_get("/debug/state", self._state)
        self._debug.router.add_get("/debug/state/{section}", self._state)

    async def run(self) -> None:
        """Serve until cancelled. Raises HttpError where an address cannot be bound."""
        runners = [web.AppRunner(app, access_log=None) for app in (self._public, self._debug)]
        places = (
            (self._config.address, self._config.port, "http.address, http.port"),
            (self._config.debug_address, self._config.debug_port, "http.debug_address, http.debug_port"),
        )
        try:
            for runner, (address, port, options) in zip(runners, places, strict=True):
                await runner.setup()
                await _listen(runner, address, port, options)
            await asyncio.Event().wait()
        finally:
            for runner in runners:
                await runner.cleanup()

    def problems(self) -> dict[str, str]:
        """Part -> why it is not ready, of those that are not."""
        return {name: text for name, problem in self._parts.items() if (text := problem())}

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        problems = self.problems()
        status = 503 if problems else 200
        if "application/json" in request.headers.get("Accept", ""):
            parts = {name: problems.get(name, "") for name in self._parts}
            return _json({"ready": not problems, "parts": parts}, status)
        lines = [f"[-] {name}: {problems[name]}" if name in problems else f"[+] {name}" for name in self._parts]
        return web.Response(text="\n".join(lines) + "\n", status=status)

    async def _metrics(self, _: web.Request) -> web.Response:
        await self._before_scrape()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _state(self, request: web.Request) -> web.Response:
        section = request.match_info.get("section")
        if section is None:
            return _json({name: view() for name, view in self._views.items()})
        if section not in self._views:
            return _json({"error": f"no section {section!r}", "sections": sorted(self._views)}, 404)
        return _json(self._views[section]())


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


def _json(data: Any, status: int = 200) -> web.Response:
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    return web.Response(
        body=orjson.dumps(data, default=str, option=options), status=status, content_type="application/json"
    )
