"""Fixtures of the drop log's tests."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.dropbed import LoggedBed
from support.words import pods, policy, rule, selector


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[LoggedBed]:
    """Three pods; x/a may only be reached by x/b, x/c may reach nobody but x/b. Denied packets are logged."""
    async with LoggedBed() as made:
        for name in ("x/a", "x/b", "x/c"):
            await made.pod(name, app=name[-1])
        await made.put(
            policy("x/in", selector(app="a"), ingress=[rule([pods(app="b")])]),
            policy("x/out", selector(app="c"), egress=[rule([pods(app="b")])], types=["Egress"]),
        )
        yield made
