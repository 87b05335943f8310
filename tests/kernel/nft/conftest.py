"""Fixtures of the tests of nftables transactions."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from netagent.kernel.nft import LibNftables
from support.driftbed import WatchedBed


@pytest.fixture
def nft() -> Iterator[LibNftables]:
    """No table is there, before and after."""
    made = LibNftables()
    yield made
    made.close()


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[WatchedBed]:
    """A watched node without pods."""
    async with WatchedBed() as made:
        await made.watch()
        yield made
        await made.unwatch()
