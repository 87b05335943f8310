"""How many rules a packet is held against: work, not time.

Every rule of the agent's own table gets a counter in front, so that rules which do not match are counted too. Where a
count gets smaller, write the smaller one here.
"""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from netagent.core.policy.frame import FrameSettings
from support import words
from support.places import Place
from support.podbed import Bed
from support.words import pods, policy, port, rule, selector

pytestmark = pytest.mark.kernel

PORT = 4444
LENGTH_BYTES = 1234
"""Of the packets of the test, by which they are known: no protocol speaks for itself here in packets so long."""
IP_UDP_BYTES = {4: 20 + 8, 6: 40 + 8}
FRAME = FrameSettings(masquerade=True, pools=("10.244.0.0/16", "fd00:10:244::/48"))
PURPOSE = {"prerouting": "spoofing", "from_pod": "spoofing", "postrouting": "masquerading"}
"""Of chains; of all others it is policy."""
TIMEOUT_S = 10.0


class Met(Struct, frozen=True):
    """Rules that one packet was held against."""

    spoofing: int
    policy: int
    masquerading: int


def counting(listing: str) -> str:
    """The table as nft lists it, each rule with a counter for packets of the test."""
    lines = []
    in_chain = False
    for line in listing.splitlines():
        text = line.strip()
        in_chain = (in_chain or text.startswith("chain ")) and text != "}"
        is_rule = in_chain and text and not text.startswith(("chain ", "type "))
        lines.append(f"meta length {LENGTH_BYTES} counter {text}" if is_rule else line)
    return "\n".join(lines) + "\n"


class Conversation:
    """Packets between a client and a server, and what they meet."""

    def __init__(self, bed: Bed, client: Place, server: Place, version: int) -> None:
        self._nft = bed.nft
        self._text = bytes(LENGTH_BYTES - IP_UDP_BYTES[version])
        self._ends = [self._bound(client, version, 0), self._bound(server, version, PORT)]

    @staticmethod
    def _bound(place: Place, version: int, number: int) -> socket.socket:
        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((place.ip(version), number))
            sock.settimeout(TIMEOUT_S)
            return sock

        return place.inside(bound)

    async def forth(self) -> Met:
        """A packet of the client, which arrives."""
        return await self._send(*self._ends)

    async def back(self) -> Met:
        """One of the server."""
        return await self._send(*reversed(self._ends))

    async def _send(self, source: socket.socket, target: socket.socket) -> Met:
        before = await self._counted()
        source.sendto(self._text, target.getsockname())
        await asyncio.to_thread(target.recv, LENGTH_BYTES)
        after = await self._counted()
        met = dict.fromkeys(("spoofing", "policy", "masquerading"), 0)
        for (chain, handle), packets in after.items():
            met[PURPOSE.get(chain, "policy")] += packets - before[chain, handle]
        return Met(**met)

    async def _counted(self) -> dict[tuple[str, int], int]:
        """Packets by chain and rule."""
        rules = [one["rule"] for one in await self._nft.listing() if "rule" in one]
        return {(one["chain"], one["handle"]): one["expr"][1]["counter"]["packets"] for one in rules}

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture(params=[1, 1000])
async def town(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    """Two pods here that some policies isolate both ways, one that none does, one elsewhere; each admits the others."""
    async with Bed(frame=FRAME) as bed:
        for name in ("client", "server", "free"):
            await bed.pod(f"x/{name}", app=name)
        await bed.pod("x/far", remote=True)
        doors = [port(PORT, "UDP")]
        for number in range(request.param):
            allowed = [rule([pods(role=f"r{number}"), pods()], doors)]
            isolated = selector(("app", "In", ["client", "server", f"s{number}"]))
            bed.dataplane.apply(words.put(policy(f"x/p{number}", isolated, ingress=allowed, egress=allowed)))
        await bed.settled()
        await bed.nft.run(f"delete table inet netagent\n{counting(await bed.nft.text())}")
        yield bed


@pytest.mark.parametrize(
    ("client", "server", "version", "first"),
    [
        # Of the ten: five of forward, judge and judge_ingress, one of each class, three that admit.
        ("client", "server", 4, Met(spoofing=2, policy=10, masquerading=2)),
        ("client", "server", 6, Met(spoofing=3, policy=13, masquerading=6)),
        ("client", "free", 4, Met(spoofing=2, policy=12, masquerading=2)),
        ("client", "far", 4, Met(spoofing=2, policy=12, masquerading=2)),
        ("free", "server", 4, Met(spoofing=2, policy=9, masquerading=2)),
        ("far", "server", 4, Met(spoofing=1, policy=9, masquerading=2)),
        ("far", "server", 6, Met(spoofing=1, policy=10, masquerading=6)),
        ("free", "far", 4, Met(spoofing=2, policy=9, masquerading=2)),
    ],
)
async def test_first_packets_meet_few_rules_and_others_one(
    town: Bed, client: str, server: str, version: int, first: Met
) -> None:
    """The same with any number of policies."""
    conversation = Conversation(town, town.places[f"x/{client}"], town.places[f"x/{server}"], version)
    here, elsewhere = Met(first.spoofing, 1, 0), Met(1, 1, 0)
    try:
        assert await conversation.forth() == first
        for _ in range(2):
            assert await conversation.back() == (elsewhere if server == "far" else Met(2 if version == 4 else 3, 1, 0))
            assert await conversation.forth() == here
    finally:
        conversation.close()
