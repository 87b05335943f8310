"""A living pod whose state file is lost or damaged: after a restart nobody gets in or out whom no policy lets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.pods.cni import CniServer
from netagent.config import PolicyConfig
from netagent.core.cni import host_ifname
from netagent.core.policy.frame import FrameSettings
from netagent.kernel import wiring
from netagent.kernel.nft import LibNftables
from netagent.metrics import Metrics
from netagent.records import Kind, Listed, Pod, Record
from support import words
from support.cnibed import Bed, Netns, addresses, has_link, udp_socket

pytestmark = pytest.mark.kernel

KINDS = (Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY)
SILENCE_S = 0.3
"""Nothing arrives within this time: a packet that passes takes microseconds."""
POLICY = words.policy(
    "default/web",
    words.selector(app="web"),
    ingress=[words.rule([words.pods(app="friend")])],
    egress=[words.rule([words.pods(app="friend")])],
    types=["Ingress", "Egress"],
)
NAMES = ("web", "friend", "stranger")


class Node(Bed):
    """The bed with the real dataplane behind the plugin."""

    def __init__(self, root: Path) -> None:
        self.nft = LibNftables()
        super().__init__(root)
        self.cluster: dict[str, Record] = {"": words.namespace("default"), "policy": POLICY}
        self.ips: dict[str, list[str]] = {}
        self.loop: asyncio.Task[None] | None = None

    def new_server(self) -> CniServer:
        self.dataplane = Dataplane(
            self.nft,
            PolicyConfig(),
            FrameSettings(mark_mask=PolicyConfig().mark_mask),
            Metrics(),
            node_name="node-0",
            kinds=frozenset(KINDS),
        )
        return CniServer(self.config, pod_net=self.net, policy=self.dataplane, store=self.store)

    async def start(self) -> None:
        await super().start()
        self.loop = asyncio.create_task(self.dataplane.run())
        for record in self.cluster.values():
            self.dataplane.apply(words.put(record))
        for kind in KINDS:
            self.dataplane.apply(Listed(kind))
        await self.dataplane.committed()

    async def stop(self) -> None:
        await super().stop()
        if self.loop is not None:
            self.loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.loop

    async def show(self, *pods: Pod) -> None:
        """The API server has these pods, in this state."""
        for pod in pods:
            self.cluster[pod.key.name] = pod
            self.dataplane.apply(words.put(pod))
        await self.dataplane.committed()

    async def hide(self, name: str) -> None:
        """The object goes."""
        pod = self.cluster.pop(name)
        self.dataplane.apply(words.gone(pod))
        await self.dataplane.committed()

    async def populate(self, pod_netns: Netns) -> None:
        """web, which only friend may talk with; friend and stranger, whom no policy isolates."""
        for name in NAMES:
            pod_netns(name)
            await self.show(words.pod(f"default/{name}", labels={"app": name}))
            self.ips[name] = addresses(await self.add(name))
        await self.show(*(self.as_running(name) for name in NAMES))

    def as_running(self, name: str, **more: str) -> Pod:
        """The pod's object with the addresses it was given."""
        return words.pod(f"default/{name}", *self.ips[name], labels={"app": name}, **more)  # type: ignore[arg-type]

    def claim(self, name: str) -> Path:
        """The pod's state file."""
        (path,) = (self.root / "state" / "endpoints").glob(f"{host_ifname(name, 'eth0')}+*")
        return path

    async def passes(self, near: str, far: str) -> list[bool]:
        """Whether a datagram arrives, IPv4 and IPv6."""
        return [await asyncio.to_thread(self._arrives, near, far, number) for number in (0, 1)]

    def _arrives(self, near: str, far: str, number: int) -> bool:
        here, there = self.ips[near][number], self.ips[far][number]
        with udp_socket(f"/run/netns/{near}", here) as client, udp_socket(f"/run/netns/{far}", there) as server:
            server.settimeout(SILENCE_S)
            client.sendto(b"x", (there, server.getsockname()[1]))
            try:
                return server.recvfrom(16)[0] == b"x"
            except TimeoutError:
                return False

    async def verdicts(self) -> dict[str, bool]:
        """Of web's four ways; both families must agree."""
        found = {}
        for near, far in (("friend", "web"), ("stranger", "web"), ("web", "friend"), ("web", "stranger")):
            v4, v6 = await self.passes(near, far)
            assert v4 == v6, (near, far)
            found[f"{near} -> {far}"] = v4
        return found


BY_POLICY = {"friend -> web": True, "stranger -> web": False, "web -> friend": True, "web -> stranger": False}
CLOSED = dict.fromkeys(BY_POLICY, False)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.start()
    yield node
    await node.stop()
    for name in wiring.links():
        wiring.unwire(name)
    await node.nft.run("add table inet netagent\ndelete table inet netagent\n")
    node.nft.close()


def damage(claim: Path) -> None:
    claim.write_bytes(b'{"version":1,')


def lose(claim: Path) -> None:
    claim.unlink()


@pytest.mark.parametrize("harm", [damage, lose])
async def test_it_keeps_its_policy_where_the_api_shows_it(node: Node, pod_netns: Netns, harm: object) -> None:
    assert callable(harm)
    await node.populate(pod_netns)
    assert await node.verdicts() == BY_POLICY
    await node.stop()
    harm(node.claim("web"))
    await node.start()
    assert await node.verdicts() == BY_POLICY
    await node.delete("web")
    await node.dataplane.committed()
    assert not has_link(host_ifname("web", "eth0"))
    assert node.ips["web"][0] not in await node.nft.text()
    assert not list((node.root / "state" / "endpoints").glob(f"{host_ifname('web', 'eth0')}+*"))


@pytest.mark.parametrize("harm", [damage, lose])
async def test_it_is_closed_while_the_api_shows_no_pod_at_its_address(
    node: Node, pod_netns: Netns, harm: object
) -> None:
    assert callable(harm)
    await node.populate(pod_netns)
    await node.stop()
    harm(node.claim("web"))
    web = node.cluster.pop("web")
    await node.start()
    assert await node.verdicts() == CLOSED
    assert await node.passes("friend", "stranger") == [True, True]
    assert isinstance(web, Pod)
    await node.show(web)
    assert await node.verdicts() == BY_POLICY
    await node.hide("web")
    assert await node.verdicts() == BY_POLICY, "the pod's sandbox lives on, as that of any other pod"
    await node.delete("web")
    await node.show(words.pod("default/web", labels={"app": "web"}))
    node.ips["web"] = addresses(await node.add("web"))
    await node.show(node.as_running("web"))
    assert await node.verdicts() == BY_POLICY
