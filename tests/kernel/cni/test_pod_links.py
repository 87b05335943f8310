"""Whatever others do to the node's end of a pod's link is put right: asked with packets, within a second."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from netagent.agent.pods.podlinks import PodLinks
from netagent.core.cni import HOST_MAC, host_ifname
from netagent.kernel.netns import open_netns, run_in_netns
from netagent.records import Endpoint
from support.cnibed import Bed, addresses, has_link, sh, udp_socket
from support.waiting import until

pytestmark = pytest.mark.kernel

DEADLINE_S = 20.0
NODE = ("192.0.2.7", "fd99::7")
POD = ("10.77.0.1", "fd77::1")
LINK = host_ifname("web", "eth0")
MEDDLING = {
    "link down": ["link", "set", LINK, "down"],
    "link deleted": ["link", "del", LINK],
    "link renamed": ["link", "set", LINK, "name", "mine"],
    "link renamed to a name that begins as ours do": ["link", "set", LINK, "name", "napold"],
    "MAC changed": ["link", "set", LINK, "address", "02:00:00:00:00:01"],
    "IPv4 route deleted": ["route", "del", POD[0]],
    "IPv4 route replaced": ["route", "replace", POD[0], "dev", "lo"],
    "IPv6 route deleted": ["-6", "route", "del", POD[1]],
    "IPv6 route replaced": ["-6", "route", "replace", POD[1], "dev", "lo"],
    "IPv4 neighbour deleted": ["neigh", "del", POD[0], "dev", LINK],
    "IPv4 neighbour changed": ["neigh", "replace", POD[0], "lladdr", "02:00:00:00:00:02", "dev", LINK],
    "IPv6 neighbour deleted": ["neigh", "del", POD[1], "dev", LINK],
    "IPv6 neighbour changed": ["neigh", "replace", POD[1], "lladdr", "02:00:00:00:00:02", "dev", LINK],
    "all routes flushed": ["route", "flush", "proto", "78"],
    "all neighbours flushed": ["neigh", "flush", "nud", "permanent"],
}


@pytest.fixture
async def links(bed: Bed, pod_netns: Callable[[str], str]) -> AsyncIterator[PodLinks]:
    for address in NODE:
        sh("ip", "address", "replace", address, "dev", "lo")
    pod_netns("web")
    await bed.add("web")
    service = PodLinks(bed.server)
    task = asyncio.create_task(service.run())
    await until(lambda: service.rounds, "the first audit is over: from now on it must be told")
    yield service
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def answers() -> bool:
    """The pod takes packets of the node and its answers arrive, in both families."""
    for node, pod in zip(NODE, POD, strict=True):
        with udp_socket("/run/netns/web", "::") as server, udp_socket(None, node) as client:
            for each in (server, client):
                each.settimeout(0.3)
            with contextlib.suppress(OSError):
                client.sendto(b"x", (pod, server.getsockname()[1]))
                _, seen = server.recvfrom(8)
                server.sendto(b"y", seen)
                client.recvfrom(8)
                continue
            return False
    return True


async def is_right(bed: Bed) -> bool:
    (endpoint,) = bed.server.endpoints()
    return not await bed.server._wiring.check(endpoint)


@pytest.mark.parametrize("meddling", MEDDLING)
async def test_meddling_is_put_right(bed: Bed, links: PodLinks, meddling: str) -> None:
    assert answers()
    before = links.repairs
    sh("ip", *MEDDLING[meddling])
    await until(lambda: links.repairs > before, f"{meddling} is noticed")
    deadline_s = time.monotonic() + DEADLINE_S
    while not await is_right(bed):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    assert await asyncio.to_thread(answers)


async def test_a_link_that_has_its_name_as_an_alternative_only_is_made_anew(bed: Bed, links: PodLinks) -> None:
    """The rules against spoofing do not know it by that."""
    commands = f"link set {LINK} name mine\nlink property add dev mine altname {LINK}\n"
    sh("sh", "-c", f"printf '{commands}' | ip -batch -")
    await until(lambda: links.repairs, "noticed")
    deadline_s = time.monotonic() + DEADLINE_S
    while not await is_right(bed):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    assert await asyncio.to_thread(answers)
    assert LINK in names()
    assert "mine" not in names()


async def test_links_that_are_renamed_at_once_are_all_put_right(
    bed: Bed, links: PodLinks, pod_netns: Callable[[str], str]
) -> None:
    pod_netns("other")
    await bed.add("other")
    wanted = {LINK, host_ifname("other", "eth0")}
    assert wanted <= names()
    commands = "".join(f"link set {name} name mine{number}\n" for number, name in enumerate(sorted(wanted)))
    sh("sh", "-c", f"printf '{commands}' | ip -batch -")
    await until(lambda: wanted <= names(), "both have their names again")


def names() -> set[str]:
    """Of the links, as the kernel has them now."""
    return {name for _, name in socket.if_nameindex()}


async def test_sysctls_are_put_right(bed: Bed, links: PodLinks) -> None:
    path = f"/proc/sys/net/ipv4/conf/{LINK}/rp_filter"
    sh("sh", "-c", f"echo 1 > {path}")
    await until(lambda: sh("cat", path) == b"2\n", "rp_filter is 2 again")


async def test_a_connection_outlives_the_loss_of_the_link(bed: Bed, links: PodLinks) -> None:
    """The pod has the same addresses and MAC on the new link; TCP sends again what was lost."""
    listener = await asyncio.to_thread(lambda: server_in_pod(POD[0]))
    client = socket.create_connection((POD[0], listener.getsockname()[1]), timeout=DEADLINE_S)
    with listener, client:
        server, _ = listener.accept()
        with server:
            server.settimeout(DEADLINE_S)
            sh("ip", "link", "del", LINK)
            await until(lambda: links.repairs, "noticed")
            client.sendall(b"still here")
            assert await asyncio.to_thread(server.recv, 32) == b"still here"


def server_in_pod(ip: str) -> socket.socket:
    with open_netns("/run/netns/web") as descriptor:
        return run_in_netns(descriptor, lambda: socket.create_server((ip, 0)))


async def test_pods_that_come_and_go_are_no_drift(bed: Bed, links: PodLinks, pod_netns: Callable[[str], str]) -> None:
    for number in range(4):
        pod_netns(f"p{number}")
    await asyncio.gather(*(bed.add(f"p{number}") for number in range(4)))
    await asyncio.sleep(0.3)
    await asyncio.gather(*(bed.delete(f"p{number}") for number in range(4)))
    await asyncio.sleep(0.3)
    assert links.repairs == 0
    assert [endpoint.container_id for endpoint in bed.server.endpoints()] == ["web"]


async def test_a_pod_that_is_wired_is_not_compared_with_itself(
    bed: Bed, links: PodLinks, pod_netns: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells each step of an ADD, when it is done; on a full node comparing costs as much as wiring."""
    compared: list[str] = []
    check = bed.server._wiring.check_host_side

    async def counted(endpoint: Endpoint) -> tuple[str, ...]:
        compared.append(endpoint.container_id)
        return await check(endpoint)

    monkeypatch.setattr(bed.server._wiring, "check_host_side", counted)
    for number in range(4):
        pod_netns(f"p{number}")
    await asyncio.gather(*(bed.add(f"p{number}") for number in range(4)))
    rounds = links.rounds
    sh("ip", "link", "add", "other", "type", "veth", "peer", "name", "other1")
    await until(lambda: links.rounds > rounds, "what was told until now is read")
    sh("ip", "link", "del", "other")
    assert compared == []
    sh("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/conf/{LINK}/rp_filter")
    await until(lambda: compared, "what others do is compared")
    assert set(compared) == {"web"}


async def test_a_pod_whose_namespace_is_gone_gets_no_link(
    bed: Bed, links: PodLinks, pod_netns: Callable[[str], str]
) -> None:
    pod_netns("gone")
    await bed.add("gone")
    sh("ip", "netns", "del", "gone")
    await until(lambda: not has_link(host_ifname("gone", "eth0")), "its link went with it")
    await asyncio.sleep(0.5)
    assert not has_link(host_ifname("gone", "eth0"))
    sh("ip", "route", "del", POD[0])
    await until(lambda: links.repairs == 1, "the others are looked after")


async def test_foreign_routes_and_links_are_left_alone(bed: Bed, links: PodLinks) -> None:
    sh("ip", "link", "add", "other", "type", "veth", "peer", "name", "other1")
    sh("ip", "route", "add", "10.99.0.0/24", "dev", "lo")
    sh("ip", "route", "add", "10.77.0.200", "dev", "lo")
    sh("ip", "route", "flush", "proto", "78")
    await until(lambda: links.repairs, "ours is put right")
    routes = {route["dst"] for route in json.loads(sh("ip", "-j", "route"))}
    assert {"10.99.0.0/24", "10.77.0.200", POD[0]} <= routes
    assert has_link("other")
    sh("ip", "link", "del", "other")
    for route in ("10.99.0.0/24", "10.77.0.200"):
        sh("ip", "route", "del", route)


async def test_the_pods_mac_and_the_nodes_are_the_same_after_every_repair(bed: Bed, links: PodLinks) -> None:
    def macs() -> tuple[str, str]:
        inside = json.loads(sh("ip", "-n", "web", "-j", "link", "show", "eth0"))[0]["address"]
        return inside, json.loads(sh("ip", "-j", "link", "show", LINK))[0]["address"]

    before = macs()
    assert before[1] == HOST_MAC
    sh("ip", "link", "del", LINK)
    await until(lambda: links.repairs and has_link(LINK), "made anew")
    await until(lambda: macs() == before, "the same MACs")
    assert addresses(await bed.add("web")) == list(POD)
