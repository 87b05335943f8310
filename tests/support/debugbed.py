"""A node whose debug pages are served, over real HTTP, as the agent serves them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from netagent.agent.http import questions, views
from netagent.agent.http.dump import DumpPage
from netagent.agent.http.guard import guard
from netagent.agent.http.pages import Pages
from netagent.agent.http.reading import PatientReader, RulesetPage
from netagent.config import Config
from netagent.core.policy.frame import FrameSettings
from netagent.core.questions.replay import Situation
from netagent.kernel.nft import LibNftables
from support.podbed import Bed

FRAME = FrameSettings(vxlan_port=8472)


class DebugBed(Bed):
    """`url` leads to its pages."""

    def __init__(self, frame: FrameSettings = FRAME) -> None:
        super().__init__(frame=frame)
        self.frame = frame
        self.url = ""

    def situation(self) -> Situation:
        return Situation(node="node-0", frame=self.frame, own_subnets=(), mark=self.dataplane.mark, overlay=True)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Pages of the dataplane that runs now."""
        app, nft = web.Application(middlewares=[guard(Config().http)]), LibNftables()
        reader = PatientReader(self.dataplane, nft)
        sections = {
            "endpoints": lambda: views.endpoints(self.dataplane),
            "policies": lambda: views.policies(self.dataplane),
            "transactions": lambda: views.plain(self.dataplane.transactions),
            "slow_events": lambda: views.plain(self.dataplane.slow_events),
        }
        pages = Pages(Config(), {}, sections, lambda: views.sizes(self.dataplane))
        pages.add_routes(app)
        RulesetPage(self.dataplane, reader).add_routes(app)
        DumpPage(self.dataplane, reader, pages, situation=self.situation, metrics=_no_metrics).add_routes(app)
        questions.add_routes(app, self.dataplane, reader, node_name="node-0", overlay=True)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield
        finally:
            await runner.cleanup()
            nft.close()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text of an answer."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path, headers=headers) as response:
            return response.status, await response.text()

    async def json(self, path: str) -> Any:
        """A page that must be there."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def dump(self, file: Path) -> Path:
        """Fetch /debug/dump."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/debug/dump") as response:
            assert response.status == 200
            await asyncio.to_thread(file.write_bytes, await response.read())
        return file


async def _no_metrics() -> bytes:
    return b""
