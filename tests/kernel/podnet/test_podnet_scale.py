"""Bursts of thousands of changed leases: what the kernel is asked for is what changed, and memory does not grow."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from msgspec.structs import replace

from netagent.agent.network.podnetwork import PodNetwork
from netagent.config import NetworkConfig
from netagent.kernel.rtnetlink import Refusal, Request, Rtnetlink
from netagent.records import Key, SubnetLease
from support.podnetbed import sh
from support.waiting import until

pytestmark = pytest.mark.kernel

PEERS = 5000
TURNS = 50
"""A burst arrives in so many turns of the event loop."""
GROWTH_BLOCKS = PEERS // 5
"""Of memory, over three bursts: one record kept per event would be 15,000. (Bytes jump when a dict is resized.)"""


class Peers:
    """The leases of all other nodes, as the watch would hand them over."""

    def __init__(self) -> None:
        self.leases = {number: self._lease(number, 0) for number in range(1, PEERS + 1)}
        self._version = 0

    def _lease(self, number: int, version: int) -> SubnetLease:
        subnet = f"10.{number >> 8}.{number & 255}.0/24"
        return SubnetLease(
            key=Key("kube-system", subnet.replace("/", "-")),
            uid=str(number),
            resource_version=str(version),
            subnet=subnet,
            holder=f"node-{number}",
            duration_s=3600,
            renewed_s=float(version),
            backend="vxlan",
            vtep_mac=f"02:00:{version & 255:02x}:00:{number >> 8:02x}:{number & 255:02x}",
            public_ip=f"192.168.{100 + (number >> 8)}.{number & 255}",
        )

    def turns(self, *, renewal: bool) -> list[tuple[SubnetLease, ...]]:
        """Every lease changes once, a few per turn: only its renewal time, or the MAC too."""
        self._version += 1
        states = []
        for turn in range(TURNS):
            for number in range(1 + turn, PEERS + 1, TURNS):
                new = self._lease(number, self._version)
                self.leases[number] = replace(new, vtep_mac=self.leases[number].vtep_mac) if renewal else new
            states.append(tuple(self.leases.values()))
        return states


class Asked:
    """Counts the requests to the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = Rtnetlink.batch

        async def batch(netlink: Rtnetlink, requests: Sequence[Request]) -> dict[int, Refusal]:
            self.count += len(requests)
            return await real(netlink, requests)

        monkeypatch.setattr(Rtnetlink, "batch", batch)


@pytest.fixture
def traced() -> Iterator[None]:
    """Every allocation is recorded, from before the first peer."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture
async def network(traced: None) -> AsyncIterator[PodNetwork]:
    """An agent's pod network in this test's namespace."""
    for command in ("link add under0 type bridge", "link set under0 up", "address add 192.168.0.1/16 dev under0"):
        sh(f"ip {command}")
    made = PodNetwork(NetworkConfig(pools=("10.0.0.0/8",)), "node-0", on_vtep=lambda *_: None)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for device in ("netagent.1", "under0"):
        sh(f"ip link delete {device}", check=False)
    sh("ip route flush proto 78", check=False)


async def burst(network: PodNetwork, own: tuple[SubnetLease, ...], states: list[tuple[SubnetLease, ...]]) -> None:
    for peers in states:
        network.update(own, peers, ("192.168.0.1",))
        await asyncio.sleep(0)


async def idle(network: PodNetwork) -> None:
    """Until no round was made for a while."""
    rounds = -1
    while network.rounds != rounds:
        rounds = network.rounds
        await asyncio.sleep(0.3)


async def test_bursts_cost_what_changed_and_leave_nothing(network: PodNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, asked = Peers(), Asked(monkeypatch)
    first = peers.leases[1]
    own = (replace(first, key=Key("kube-system", "own"), subnet="10.255.0.0/24", holder="node-0"),)
    network.update(own, tuple(peers.leases.values()), ("192.168.0.1",))
    await until(lambda: network.status.peers == PEERS and not network.status.last_error, "all peers are joined")
    await idle(network)

    asked.count = 0
    await burst(network, own, peers.turns(renewal=True))
    await idle(network)
    assert asked.count == 0

    entries = network.status.entries
    blocks = []
    for _ in range(6):
        asked.count = 0
        await burst(network, own, peers.turns(renewal=False))
        await until(lambda: asked.count >= 3 * PEERS, "three rounds over all peers")
        await idle(network)
        assert asked.count == 3 * PEERS  # neighbour changed, forwarding entry added and removed
        gc.collect()
        blocks.append(sum(one.count for one in tracemalloc.take_snapshot().statistics("filename")))
    assert blocks[-1] - blocks[2] < GROWTH_BLOCKS, blocks  # the first rounds fill caches
    assert network.status.entries == entries
    assert network.status.peers == PEERS
    assert len(sh("ip neighbour show dev netagent.1 nud permanent").splitlines()) == PEERS
