"""Fixtures of the tests of debug pages."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.debugbed import DebugBed
from support.words import block, pods, policy, port, rule, selector


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[DebugBed]:
    """Three pods; x/a may only be reached by x/b on a few ports and by a block."""
    async with DebugBed() as made:
        for name in ("x/a", "x/b", "x/c"):
            await made.pod(name, app=name[-1], ports=[("web", 80, "TCP")])
        some = [
            rule([pods(app="b")], [port("web"), port(8000, end=8010)]),
            rule([block("192.0.2.0/24", "192.0.2.9/32")]),
        ]
        await made.put(policy("x/p", selector(app="a"), ingress=some))
        async with made.serving():
            yield made
