"""What is compiled and what nft prints of it are the same text, for every kind of rule that netagent writes."""

import asyncio
import io

import pytest
from hypothesis import given, settings
from msgspec import structs

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.generation import Stamp
from netagent.core.policy.render import replacement
from netagent.core.policy.store import Store
from netagent.core.questions import tabletext
from netagent.kernel.nft import LibNftables
from support.histories import State, replay, states, steps

pytestmark = pytest.mark.kernel

FULL = FrameSettings(
    drop_log_group=78,
    vxlan_port=8472,
    masquerade=True,
    pools=("10.244.0.0/16", "fd00:10::/48"),
    own_subnets=("10.244.0.0/24", "fd00:10::/64"),
    non_masquerade_cidrs=("192.0.2.0/24", "192.0.3.0/24", "198.51.100.7/32", "2001:db8::/32"),
)
FRAMES = (
    FULL,
    FrameSettings(),
    FrameSettings(policy=False),
    structs.replace(FULL, mark_mask=0xF, own_subnets=()),
    structs.replace(FULL, mark_mask=0xF0000000, pools=("10.244.0.0/16",), non_masquerade_cidrs=()),
    structs.replace(FULL, pools=("10.0.0.0/24", "10.0.1.0/24", "10.7.0.0/32", "fd00::/64", "fd01::1/128")),
)


async def differences(compiler: Compiler, stamp: Stamp) -> list[str]:
    """Write the whole table, read it, compare."""
    nft = LibNftables()
    try:
        wanted = tabletext.desired(tabletext.snapshot(compiler.ruleset, stamp.mark))
        await nft.run(replacement(compiler.ruleset.whole(), stamp.mark, await nft.inventory(), anew=False))
        found = tabletext.listed(io.StringIO(await nft.text()))
        assert found.sizes() == wanted.sizes()
        return [str(one) for one in tabletext.compare(wanted, found).mismatches]
    finally:
        await nft.run("add table inet netagent\ndelete table inet netagent\n")
        nft.close()


@pytest.mark.parametrize("frame", FRAMES, ids=range(len(FRAMES)))
async def test_every_frame(frame: FrameSettings) -> None:
    assert await differences(Compiler(Store(), frame, "node-0"), Stamp(frame.mark_mask, 5)) == []


@given(state=states())
@settings(max_examples=60, deadline=None)
def test_every_class(state: State) -> None:
    compiler = Compiler(Store(), FULL, "node-0")
    replay(compiler, steps(State(), state), at_once=True)
    assert asyncio.run(differences(compiler, Stamp(FULL.mark_mask, 0x1234))) == []
