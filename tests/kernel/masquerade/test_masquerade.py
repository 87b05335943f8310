"""Who sees which source address: {pod, host, external} to {local pod, remote pod, external, multicast}, two nodes."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings
from support.sources import GROUPS, Seen, multicast_route, route_device, run_in, seen

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.lab,
    pytest.mark.asyncio(loop_scope="module"),
]

VERSIONS = (4, 6)
EXTERNAL = {4: "192.0.2.10", 6: "2001:db8::10"}
OTHER = {4: "192.0.2.20", 6: "2001:db8::20"}
DIRECT = {4: "203.0.113.10", 6: "2001:db8:d::10"}
"""In a CIDR that is not masqueraded towards."""
OVERLAY = {4: "10.244.0.0", 6: "fd00:10:244::"}
"""node-0's own address in the pod network."""
SETTINGS = Settings(
    nodes=2,
    families=VERSIONS,
    agent={"network": {"non_masquerade_cidrs": ["203.0.113.0/24", "203.0.113.0/25", "2001:db8:d::/48"]}},
)


class World:
    """The lab, with every place's namespace open and addresses by name."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.net: dict[str, int] = {}
        self.ips: dict[str, dict[int, str]] = {}

    async def open(self) -> None:
        for name, place in (await self.lab.places()).items():
            self.net[name] = place.open()
            self.ips[name] = {6 if ":" in ip else 4: ip for ip in place.ips}

    def close(self) -> None:
        for netns in self.net.values():
            os.close(netns)

    def ip(self, name: str, version: int) -> str:
        if name.startswith("external:"):
            return name.removeprefix("external:")
        return self.ips[name][version]

    def named(self, name: str, version: int) -> str:
        """`external`, `other`, `direct` are one host per IP version."""
        hosts = {"external": EXTERNAL, "other": OTHER, "direct": DIRECT}
        return f"external:{hosts[name][version]}" if name in hosts else name

    def seen(self, src: str, dst: str, version: int, *, bind: str = "", port: int = 0) -> Seen | None:
        src, dst = self.named(src, version), self.named(dst, version)
        return seen(self.net[src], self.net[dst], self.ip(dst, version), bind=bind, port=port)

    @contextlib.contextmanager
    def routed(self, host: str, to: str, version: int, via: str = "node:0") -> Iterator[None]:
        """While it lasts, an external sends what is for a place through a node."""
        netns, target = self.net[self.named(host, version)], self.ip(self.named(to, version), version)
        run_in(netns, "ip", "route", "replace", target, "via", self.ip(via, version), "dev", "eth0", "onlink")
        try:
            yield
        finally:
            run_in(netns, "ip", "route", "del", target)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(lab_directory: None) -> AsyncIterator[World]:
    async with Lab(SETTINGS) as lab:
        for name, node in (("here", 0), ("beside", 0), ("there", 1)):
            container = {"name": "main", "image": "test"}
            spec = {"nodeName": f"node-{node}", "containers": [container]}
            meta = {"namespace": "default", "name": name}
            await lab.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        for host in (EXTERNAL, OTHER, DIRECT):
            for version in VERSIONS:
                await lab.add_external(host[version])
        await lab.pods_ready()
        made = World(lab)
        await made.open()
        yield made
        made.close()


def expected(world: World, who: str, version: int) -> str:
    return OVERLAY[version] if who == "overlay" else world.ip(world.named(who, version), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("src", "dst", "sees"),
    [
        ("default/here", "default/beside", "default/here"),
        ("default/here", "default/there", "default/here"),
        ("default/here", "external", "node:0"),
        ("default/here", "direct", "default/here"),
        ("default/here", "node:1", "node:0"),
        ("default/here", "node:0", "default/here"),
        ("node:0", "default/here", "node:0"),
        ("node:0", "default/there", "overlay"),
        ("node:0", "external", "node:0"),
        ("node:0", "direct", "node:0"),
        ("external", "default/here", "external"),
        ("external", "default/there", "overlay"),
        ("direct", "default/there", "overlay"),
        ("external", "other", "external"),
    ],
)
async def test_source_seen(world: World, version: int, src: str, dst: str, sees: str) -> None:
    """Externals go through node-0, whatever they want to reach."""
    bind = world.ip(src, version) if src.startswith("node:") else ""
    if src in ("external", "direct"):
        with contextlib.ExitStack() as routes:
            routes.enter_context(world.routed(src, dst, version))
            if dst == "other":
                routes.enter_context(world.routed(dst, src, version))
            answer = world.seen(src, dst, version)
    else:
        answer = world.seen(src, dst, version, bind=bind)
    assert answer is not None, "nothing arrived"
    assert answer.source == expected(world, sees, version)
    assert answer.answered


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_host_that_chooses_no_address_reaches_remote_pods_from_the_overlay(world: World, version: int) -> None:
    answer = world.seen("node:0", "default/there", version)
    assert answer is not None
    assert (answer.source, answer.answered) == (OVERLAY[version], True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("src", ["default/here", "other"])
async def test_multicast_keeps_its_source(world: World, version: int, src: str) -> None:
    """Of a pod, and of an external (which comes in on the same link that it leaves by, so to a pod)."""
    origin, node = world.ip(world.named(src, version), version), world.net["node:0"]
    pod_link = route_device(node, world.ip("default/here", version))
    links = (pod_link, "eth0") if src == "default/here" else ("eth0", pod_link)
    dst = "external" if src == "default/here" else "default/here"
    with multicast_route(node, version, origin, *links):
        receiver = world.net[world.named(dst, version)]
        answer = seen(world.net[world.named(src, version)], receiver, GROUPS[version], bind=origin, group_if="eth0")
    assert answer is not None, "nothing arrived"
    assert answer.source == origin


@pytest.mark.parametrize("version", VERSIONS)
async def test_multicast_of_a_host_keeps_its_source(world: World, version: int) -> None:
    """Even from the address that counts as a pod's."""
    receiver = world.net[world.named("external", version)]
    for origin in (world.ip("node:0", version), OVERLAY[version]):
        answer = seen(world.net["node:0"], receiver, GROUPS[version], bind=origin, group_if="eth0")
        assert answer is not None, "nothing arrived"
        assert answer.source == origin


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("mark", "sees"), [(0x4000, "default/here"), (0x4001, "default/here"), (0x8000, "node:0")])
async def test_the_mark_of_kube_proxy_is_respected(world: World, version: int, mark: int, sees: str) -> None:
    """What carries it is theirs to translate, whatever other bits are set."""
    node = world.net["node:0"]
    run_in(node, "nft", "add table inet proxy; add chain inet proxy c { type filter hook forward priority -5; }")
    try:
        run_in(node, "nft", f"add rule inet proxy c udp dport 7777 meta mark set meta mark or {mark:#x}")
        answer = world.seen("default/here", "external", version)
    finally:
        run_in(node, "nft", "delete table inet proxy")
    assert answer is not None
    assert answer.source == expected(world, sees, version)


@pytest.mark.parametrize("version", VERSIONS)
async def test_source_ports_are_random(world: World, version: int) -> None:
    """Pods that choose ports in a row, or the same, give nobody a hint of the next one."""
    ports = []
    for number in range(24):
        answer = world.seen("default/here", "external", version, port=30000 + number)
        assert answer is not None
        ports.append(answer.port)
    assert sum(port == 30000 + number for number, port in enumerate(ports)) <= 2
    steps = [after - before for before, after in itertools.pairwise(ports)]
    assert sum(abs(step) < 64 for step in steps) <= 5
    assert len(set(ports)) >= 20
