"""A page bed whose page is served."""

from collections.abc import AsyncIterator

import pytest

from support.pagebed import PageBed


@pytest.fixture
async def bed() -> AsyncIterator[PageBed]:
    async with PageBed() as made, made.serving():
        yield made
