"""A running lab's door for other processes: HTTP on a unix socket in its directory, 0600.

GET /state, GET /place?name=, POST /probe {from, to, port, protocol, family}, POST /external {ip, serves}, POST /down.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson
from aiohttp import web

from netagent.lab.cluster import Lab
from netagent.lab.directory import base_directory
from netagent.lab.pods import parse_servings
from netagent.lab.processes import LabError

SOCKET = "control"
CALL_TIMEOUT_S = 60.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """Serves one lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._path = lab.directory / SOCKET
        self._runner: web.AppRunner | None = None
        self.down = asyncio.Event()
        """Somebody asked the lab to end."""

    async def start(self) -> None:
        """Listen. The lab's directory is 0700, so nobody else comes in before the socket's own mode is set."""
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/state", self._state)
        app.router.add_get("/place", self._place)
        app.router.add_post("/probe", self._probe)
        app.router.add_post("/external", self._external)
        app.router.add_post("/down", self._down)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._path)).start()
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _state(self, _: web.Request) -> web.Response:
        return _json(self._lab.state())

    async def _place(self, request: web.Request) -> web.Response:
        return _json(msgspec.to_builtins(await self._lab.place(request.query.get("name", ""))))

    async def _probe(self, request: web.Request) -> web.Response:
        ask = await request.json(loads=orjson.loads)
        verdict = await self._lab.probe(
            ask["from"], ask["to"], int(ask["port"]), ask.get("protocol", "TCP"), family=int(ask.get("family", 4))
        )
        return _json(msgspec.to_builtins(verdict))

    async def _external(self, request: web.Request) -> web.Response:
        ask = await request.json(loads=orjson.loads)
        place = await self._lab.add_external(ask["ip"], parse_servings(ask.get("serves", "")))
        return _json(msgspec.to_builtins(place))

    async def _down(self, _: web.Request) -> web.Response:
        self.down.set()
        return _json({})


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (LabError, KeyError, ValueError, OSError) as error:
        return _json({"error": str(error)}, 400)


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


async def call(lab: str, method: str, path: str, body: Any = None, **query: str) -> Any:
    """Ask the lab of that name; its decoded answer. Raises LabError, also where it does not run."""
    door = base_directory() / lab / SOCKET
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession("http://lab", connector=aiohttp.UnixConnector(str(door)), timeout=timeout) as session,
            session.request(method, path, json=body, params=query) as response,
        ):
            answer = orjson.loads(await response.read())
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise LabError(
            f"lab {lab!r} does not answer ({error}). Is it up? `netagent lab up --name {lab}`; "
            f"labs here: {', '.join(labs()) or 'none'}."
        ) from None
    if response.status >= 400:
        raise LabError(answer["error"])
    return answer


def labs() -> list[str]:
    """Names of the labs that have a directory."""
    base = base_directory()
    return sorted(entry.name for entry in base.iterdir() if Path(entry, SOCKET).exists()) if base.is_dir() else []
