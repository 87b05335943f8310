"""Fixtures of the policy tests with packets."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.podbed import Bed


@pytest_asyncio.fixture
async def bed() -> AsyncIterator[Bed]:
    """A node with an agent and without pods."""
    async with Bed() as made:
        yield made
