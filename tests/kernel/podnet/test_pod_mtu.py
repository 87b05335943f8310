"""Running pods follow the pod network's MTU."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from netagent.agent.pods.podmtu import PodMtu
from netagent.kernel import wiring
from netagent.ports import PodNetState
from netagent.records import Endpoint, Key
from support.podnetbed import in_netns, sh

pytestmark = pytest.mark.kernel
POD = Endpoint(
    pod=Key("default", "web"),
    pod_uid="",
    container_id="c1",
    ifname="eth0",
    host_ifname="nap0123456789ab",
    ips=("10.244.1.10", "fd44:0:0:1::10"),
    netns="/run/netns/web",
    mac="0a:00:00:00:00:01",
)


@dataclass
class Network:
    """ports.PodNet."""

    mtu: int

    def state(self) -> PodNetState:
        return PodNetState(subnets=("10.244.1.0/24",), mtu=self.mtu)


@asynccontextmanager
async def following(network: Network, *pods: Endpoint) -> AsyncIterator[PodMtu]:
    service = PodMtu(network, lambda: pods)
    task = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def pod() -> Endpoint:
    sh("ip netns add web")
    wiring.wire(POD, 1450)
    return POD


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    wiring.unwire(POD.host_ifname)
    sh("ip netns delete web", check=False)


def mtus() -> tuple[int, int]:
    """Of the node's end and the pod's."""
    here = json.loads(sh(f"ip -j link show {POD.host_ifname}"))[0]["mtu"]
    there = json.loads(sh("ip -n web -j link show eth0"))[0]["mtu"]
    return here, there


async def become(mtu: int) -> None:
    async with asyncio.timeout(10):
        while mtus() != (mtu, mtu):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def path_mtu(family: int, address: str) -> int:
    """What the pod's kernel sends to an address at most."""

    def ask() -> int:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))
            if family == socket.AF_INET:
                return sock.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU
            return sock.getsockopt(socket.IPPROTO_IPV6, 24)  # IPV6_MTU

    return in_netns("web", ask)


@pytest.mark.parametrize("mtu", [1330, 8930])
async def test_both_ends_and_the_pods_routes_follow(pod: Endpoint, mtu: int) -> None:
    network = Network(1450)
    async with following(network, pod) as service:
        await asyncio.sleep(0.1)
        network.mtu = mtu
        service.kick()
        await become(mtu)
    assert path_mtu(socket.AF_INET, "10.244.2.10") == mtu
    assert path_mtu(socket.AF_INET6, "fd44:0:0:2::10") == mtu
    assert not await asyncio.to_thread(wiring.check, pod)


async def test_pod_wired_while_it_changed_is_found(pod: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netagent.agent.pods.podmtu.AUDIT_S", 0.1)
    async with following(Network(1400), pod):
        await become(1400)


async def test_pods_that_are_gone_do_not_matter(pod: Endpoint) -> None:
    gone = Endpoint(
        pod=Key("default", "gone"),
        pod_uid="",
        container_id="c2",
        ifname="eth0",
        host_ifname="napffffffffffff",
        ips=("10.244.1.11",),
        netns="/run/netns/gone",
    )
    async with following(Network(1400), gone, pod) as service:
        service.kick()
        await become(1400)


async def test_what_a_chained_plugin_set_at_the_pods_end_stays(pod: Endpoint) -> None:
    sh("ip -n web link set eth0 mtu 1300")
    async with following(Network(1450), pod) as service:
        service.kick()
        await asyncio.sleep(0.3)
    assert mtus() == (1450, 1300)
