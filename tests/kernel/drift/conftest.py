"""Fixtures of the drift tests."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.driftbed import WatchedBed
from support.words import pods, policy, rule, selector


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[WatchedBed]:
    """Three pods; x/a may only be reached by x/b. Watched."""
    async with WatchedBed() as made:
        for name in ("x/a", "x/b", "x/c"):
            await made.pod(name, app=name[-1])
        await made.put(policy("x/p", selector(app="a"), ingress=[rule([pods(app="b")])]))
        await made.watch()
        yield made
        await made.unwatch()
