"""A node whose status page is served over real HTTP, on the loopback of the test's network namespace."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from netagent.agent.http import questions
from netagent.agent.http.guard import guard
from netagent.agent.http.health import Health
from netagent.agent.http.page import StatusPage
from netagent.config import Config
from support.podbed import Bed


class PageBed(Bed):
    """`url` leads to the debug listener."""

    url = ""
    page: StatusPage

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The page and explain, of the dataplane that runs now."""
        app = web.Application(middlewares=[guard(Config().http)])
        view = questions.add_routes(app, self.dataplane, self.nft, node_name="node-0", overlay=True)
        ready = Health({"dataplane": lambda: self.dataplane.problem})
        self.page = StatusPage(self.dataplane, view, node_name="node-0", ready=ready, network=None, drop_log=None)
        self.page.add_routes(app)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    async def json(self, path: str) -> Any:
        """An answer that must be there."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()
