"""Who counts as a local pod when the outside comes in: known pods, and every address of a subnet of ours."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netagent.core.policy.frame import FrameSettings
from support.podbed import NODE_IPS, Bed
from support.sources import seen

pytestmark = pytest.mark.kernel

POOLS = ("10.244.0.0/16", "10.99.0.0/16", "fd00:10:244::/48")
OUTSIDE = {4: "192.0.2.10", 6: "2001:db8::10"}
NODE = {4: NODE_IPS[0], 6: NODE_IPS[1]}


@pytest_asyncio.fixture
async def bed(clean_tables: None) -> AsyncIterator[Bed]:
    """A node that masquerades and holds no subnet."""
    async with Bed(frame=FrameSettings(masquerade=True, pools=POOLS)) as made:
        made.outside(*OUTSIDE.values(), serves=())
        yield made


def source(bed: Bed, src: str, dst: str, version: int) -> str:
    begin, end = bed.places[src], bed.places[dst]
    assert begin.netns is not None
    assert end.netns is not None
    answer = seen(begin.netns, end.netns, end.ip(version))
    assert answer is not None
    assert answer.answered
    return answer.source


@pytest.mark.parametrize("version", [4, 6])
async def test_pods_of_a_lost_subnet_still_see_who_calls(bed: Bed, version: int) -> None:
    await bed.pod("x/lives", serves=())
    await bed.pod("x/remote", remote=True, serves=())
    assert source(bed, OUTSIDE[4], "x/lives", version) == OUTSIDE[version]
    assert source(bed, "x/lives", OUTSIDE[4], version) == NODE[version]
    assert source(bed, "x/lives", "x/remote", version) == bed.places["x/lives"].ip(version)
    assert source(bed, OUTSIDE[4], "x/remote", version) == NODE[version]


@pytest.mark.parametrize("version", [4, 6])
async def test_every_subnet_of_the_node_counts(bed: Bed, version: int) -> None:
    """Pods that are not known (another plugin wires them) in subnets that are ours."""
    await bed.pod("x/one", remote=True, serves=())
    await bed.pod("x/two", remote=True, serves=(), ips=("10.99.7.5", "fd00:10:244:9::5"))
    for name in ("x/one", "x/two"):
        assert source(bed, OUTSIDE[4], name, version) == NODE[version]
    bed.dataplane.set_own_subnets(("10.244.1.0/24", "10.99.7.0/24", "fd00:10:244:1::/64", "fd00:10:244:9::/64"))
    await bed.settled()
    for name in ("x/one", "x/two"):
        assert source(bed, OUTSIDE[4], name, version) == OUTSIDE[version]
