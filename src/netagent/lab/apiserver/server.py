"""The API server as one object to start and stop."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from msgspec import Struct

from netagent.lab.apiserver.controllers import Controllers
from netagent.lab.apiserver.discovery import Discovery
from netagent.lab.apiserver.http import MAX_BODY_BYTES, Frontend
from netagent.lab.apiserver.reading import WatchSettings
from netagent.lab.apiserver.registry import Options, Registry
from netagent.lab.apiserver.resources import Catalogue
from netagent.lab.apiserver.store import Store

FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
STOP_S = 2.0
"""How long open requests may take to end when the server stops."""


class Settings(Struct, frozen=True, kw_only=True):
    """How the server behaves."""

    token: str = ""
    """Bearer token that every request must carry; empty: nobody is asked."""
    history_events: int = 10_000
    """Writes that a watch can resume from or a page can be cut from; older ones are answered with 410."""
    bookmark_s: float = 10.0
    """Pause between bookmarks of a watch."""
    watch_queue_events: int = 100_000
    """A watch whose client is this many events behind is ended with 410."""
    schedule: bool = True
    """Bind pods to Ready nodes."""


class ApiServer:
    """An in-memory Kubernetes API server, with the controllers that a lab needs."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.store = Store(settings.history_events)
        self.registry = Registry(self.store, Catalogue(), clock)
        watches = WatchSettings(settings.bookmark_s, settings.watch_queue_events)
        self._frontend = Frontend(self.registry, Discovery(self.registry.catalogue), watches, settings.token)
        self._controllers = Controllers(self.registry, schedule=settings.schedule)
        self._runner: web.ServerRunner | None = None
        self._controlling: asyncio.Task[None] | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on sockets that are bound already, in whatever network namespace; they are closed by `stop`."""
        namespaces = self.registry.catalogue.find("", "v1", "namespaces")
        for name in FIRST_NAMESPACES:
            if namespaces is not None and self.store.get("namespaces", ("", name)) is None:
                self.registry.create(namespaces, "", {"metadata": {"name": name}}, Options(manager="netagent-lab"))
        self._controlling = asyncio.create_task(self._controllers.run(), name="apiserver-controllers")
        server = web.Server(self._frontend.handle, request_factory=_request, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=STOP_S)
        await self._runner.setup()
        for listener in sockets:
            await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """End the watches, close the sockets."""
        self.store.close_watches()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._controlling is not None:
            self._controlling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._controlling


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    """A request whose body may be as large as the API allows; aiohttp's own limit is a third of it."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)
