"""Fixtures of the tests of address translation and of other people's forward chains."""

import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from support.podbed import Bed


def _forget_tables() -> None:
    for family, table in (("ip", "filter"), ("ip6", "filter"), ("ip", "nat"), ("ip6", "nat"), ("inet", "firewall")):
        subprocess.run(["nft", f"add table {family} {table}; delete table {family} {table}"], check=True)


@pytest.fixture
def clean_tables() -> Iterator[None]:
    """No firewall of others before and after."""
    _forget_tables()
    yield
    _forget_tables()


@pytest_asyncio.fixture
async def bed(clean_tables: None) -> AsyncIterator[Bed]:
    """Two pods and an outside host around a router."""
    async with Bed() as made:
        await made.pod("x/a", app="a")
        await made.pod("x/b", app="b")
        made.outside("192.0.2.10", "2001:db8::10")
        yield made


@pytest.fixture(scope="session")
def lab_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Labs of these tests are nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETAGENT_LAB_DIR", str(tmp_path_factory.mktemp("labs")))
        yield
