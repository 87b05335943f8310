"""Node mode against API servers: what the Node objects say is what counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from netagent.agent.network.condition import Lack, NetworkCondition
from netagent.agent.network.mode import choose_mode
from netagent.agent.network.nodenet import NodeNet
from netagent.config import ApiConfig, NetworkConfig
from netagent.disk.state import ModeMemory
from netagent.kube.client import ApiClient, connect
from netagent.kube.events import EventWriter
from netagent.kube.reflector import Reflector, resources
from netagent.records import Change, Key, Kind, Listed, Removed, SubnetLease, Upserted
from support.waiting import running, until

DEADLINE_S = 40.0
POOLS = ("10.244.0.0/16", "fd44::/48")
MAC = "12:c6:65:89:b4:e3"
STRATEGIC = "application/strategic-merge-patch+json"


class Counted(ApiClient):
    """An API client that remembers what it patched."""

    def __init__(self, api: ApiClient) -> None:
        self.__dict__.update(api.__dict__)
        self.patched: list[tuple[str, Any, str]] = []

    async def patch(self, path: str, body: Any, into: Any, *, patch_type: Any = "merge") -> Any:
        self.patched.append((path, body, patch_type))
        return await super().patch(path, body, into, patch_type=patch_type)


class Bed:
    """The Nodes of one test, told apart by their names and by an annotation prefix of their own."""

    def __init__(self, client: Any, api: ApiClient, settings: ApiConfig, namespace: str, stack: AsyncExitStack) -> None:
        self.client, self.api, self.settings, self.namespace, self.stack = client, api, settings, namespace, stack
        self.prefix = f"{namespace}.example.com"
        self.names: set[str] = set()
        self.changes: list[Change] = []
        self.told: list[tuple[SubnetLease, ...]] = []
        self.requests = Counted(api)

    def name(self, node: str) -> str:
        return f"{self.namespace}-{node}"

    def keys(self, **values: str) -> dict[str, str]:
        return {f"{self.prefix}/{name.replace('_', '-')}": text for name, text in values.items()}

    async def add(self, node: str, *cidrs: str, **annotations: str) -> None:
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
        body = {"metadata": {"name": self.name(node), "annotations": self.keys(**annotations)}, "spec": spec}
        answer = await self.client.post("/api/v1/nodes", body)
        assert answer.status == 201, answer
        self.names.add(self.name(node))

    async def node(self, node: str) -> Any:
        return (await self.client.get(f"/api/v1/nodes/{self.name(node)}")).tree

    async def annotations(self, node: str) -> dict[str, str]:
        found = (await self.node(node))["metadata"].get("annotations", {})
        return {name: text for name, text in found.items() if name.startswith(self.prefix)}

    async def annotate(self, node: str, **values: str) -> None:
        patch = {"metadata": {"annotations": self.keys(**values)}}
        assert (await self.client.patch(f"/api/v1/nodes/{self.name(node)}", patch)).status == 200

    async def run(self, node: str = "n1") -> NodeNet:
        """A NodeNet that is fed by a watch."""
        network = NetworkConfig(mode="node", pools=POOLS, annotation_prefix=self.prefix)
        made = NodeNet(self.requests, network, self.name(node), emit=self.changes.append, on_change=self.told.append)
        reflector = Reflector(self.api, resources("kube-system")[Kind.NODE], made.observe, self.settings)
        await self.stack.enter_async_context(running(made.run()))
        await self.stack.enter_async_context(running(reflector.run()))
        await until(lambda: Listed(Kind.LEASE) in self.changes, "the nodes are listed")
        return made

    def peers(self) -> dict[str, SubnetLease]:
        """By subnet, as the changes leave it."""
        found: dict[Key, SubnetLease] = {}
        for change in self.changes:
            if isinstance(change, Upserted) and isinstance(change.record, SubnetLease):
                found[change.record.key] = change.record
            elif isinstance(change, Removed):
                found.pop(change.key, None)
        return {lease.subnet: lease for lease in found.values() if lease.holder.startswith(self.namespace)}

    async def clean(self) -> None:
        for name in self.names:
            await self.client.delete(f"/api/v1/nodes/{name}")


@pytest.fixture
async def bed(api: Any, client: Any, namespace: str) -> AsyncIterator[Bed]:
    settings = ApiConfig(kubeconfig=str(api.kubeconfig), backoff_cap_s=0.5)
    async with connect(settings) as access:
        async with AsyncExitStack() as stack:
            made = Bed(client, access, settings, namespace, stack)
            yield made
        await made.clean()


async def test_own_subnets_are_the_nodes_pod_cidrs(bed: Bed) -> None:
    await bed.add("n1", "10.244.3.0/24", "fd44:0:0:3::/64")
    net = await bed.run()
    await until(lambda: net.allocatable == ("10.244.3.0/24", "fd44:0:0:3::/64"), "both subnets")
    assert net.problem == ""
    assert [lease.holder for lease in net.held] == [bed.name("n1")] * 2


async def test_pod_cidrs_are_waited_for_and_followed(bed: Bed) -> None:
    await bed.add("n1")
    net = await bed.run()
    await until(lambda: "spec.podCIDRs of Node" in net.problem, "it says what it waits for")
    assert not net.held
    spec = {"podCIDR": "10.244.4.0/24", "podCIDRs": ["10.244.4.0/24", "fd44:0:0:4::/64"]}
    assert (await bed.client.patch(f"/api/v1/nodes/{bed.name('n1')}", {"spec": spec})).status == 200
    await until(lambda: not net.problem, "the subnets")
    assert net.allocatable == ("10.244.4.0/24", "fd44:0:0:4::/64")
    assert [lease.subnet for lease in bed.told[-1]] == ["10.244.4.0/24", "fd44:0:0:4::/64"]


async def test_what_is_published_is_flannels_and_written_once(bed: Bed) -> None:
    await bed.add("n1", "10.244.3.0/24", "fd44:0:0:3::/64", unrelated="kept")
    net = await bed.run()
    net.advertise("10.244.3.0/24", backend="vxlan", vtep_mac=MAC, public_ip="192.0.2.1")
    net.advertise("fd44:0:0:3::/64", backend="vxlan", vtep_mac=MAC, public_ip="fd77::1")
    await until(lambda: bed.peers()["fd44:0:0:3::/64"].public_ip == "fd77::1", "the watch shows it")
    assert await bed.annotations("n1") == bed.keys(
        kube_subnet_manager="true",
        backend_type="vxlan",
        backend_data=f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
        backend_v6_data=f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
        public_ip="192.0.2.1",
        public_ipv6="fd77::1",
        unrelated="kept",
    )
    before = len(bed.requests.patched)
    assert {(path, kind) for path, _, kind in bed.requests.patched} == {
        (f"/api/v1/nodes/{bed.name('n1')}/status", "strategic")
    }
    net.advertise("10.244.3.0/24", backend="vxlan", vtep_mac=MAC, public_ip="192.0.2.1")
    await bed.annotate("n1", unrelated="changed")
    await asyncio.sleep(0.5)
    assert len(bed.requests.patched) == before


async def test_what_others_change_is_put_right_family_by_family(bed: Bed) -> None:
    await bed.add("n1", "10.244.3.0/24", "fd44:0:0:3::/64")
    net = await bed.run()
    net.advertise("10.244.3.0/24", backend="vxlan", vtep_mac=MAC, public_ip="192.0.2.1")
    net.advertise("fd44:0:0:3::/64", backend="vxlan", vtep_mac=MAC, public_ip="fd77::1")
    await until(lambda: bed.peers()["fd44:0:0:3::/64"].vtep_mac == MAC, "published")
    await bed.annotate("n1", backend_v6_data='{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}')
    await until(lambda: len(bed.requests.patched) > 0 and _last(bed) == ["backend-v6-data"], "only that one is written")
    await until(lambda: bed.peers()["fd44:0:0:3::/64"].vtep_mac == MAC, "it is right again")


def _last(bed: Bed) -> list[str]:
    return [name.removeprefix(f"{bed.prefix}/") for name in bed.requests.patched[-1][1]["metadata"]["annotations"]]


async def test_operators_public_ip_goes_out_instead(bed: Bed) -> None:
    await bed.add("n1", "10.244.3.0/24", "fd44:0:0:3::/64", public_ip_overwrite="203.0.113.7")
    net = await bed.run()
    net.advertise("10.244.3.0/24", backend="vxlan", vtep_mac=MAC, public_ip="192.0.2.1")
    await until(lambda: bed.peers()["10.244.3.0/24"].public_ip == "203.0.113.7", "the overwrite is published")
    await bed.annotate("n1", public_ip_overwrite="203.0.113.8")
    await until(lambda: bed.peers()["10.244.3.0/24"].public_ip == "203.0.113.8", "and followed")


async def test_peers_come_change_and_go(bed: Bed) -> None:
    await bed.add("n1", "10.244.3.0/24", "fd44:0:0:3::/64")
    await bed.add("n2", "10.244.5.0/24", backend_type="vxlan", public_ip="192.0.2.5")
    await bed.run()
    assert "10.244.5.0/24" not in bed.peers()
    await bed.annotate("n2", kube_subnet_manager="true", backend_data=f'{{"VtepMAC":"{MAC}"}}')
    await until(lambda: "10.244.5.0/24" in bed.peers(), "the peer takes part")
    found = bed.peers()["10.244.5.0/24"]
    assert (found.vtep_mac, found.public_ip, found.backend) == (MAC, "192.0.2.5", "vxlan")
    await bed.client.delete(f"/api/v1/nodes/{bed.name('n2')}")
    await until(lambda: "10.244.5.0/24" not in bed.peers(), "the peer went")


async def test_auto_takes_what_it_finds_first_and_stays_with_it(bed: Bed, tmp_path: Path) -> None:
    await bed.add("n1", "10.244.3.0/24")
    assert await choose_mode(bed.api, bed.name("n1"), ModeMemory(tmp_path / "one"), wait_s=0.2) == "node"
    memory = ModeMemory(tmp_path / "two")
    asked = asyncio.create_task(choose_mode(bed.api, bed.name("n2"), memory, wait_s=0.2))
    await asyncio.sleep(0.6)
    assert not asked.done()  # no Node, no decision
    await bed.add("n2")
    assert await asyncio.wait_for(asked, DEADLINE_S) == "lease"
    spec = {"podCIDR": "10.244.4.0/24", "podCIDRs": ["10.244.4.0/24"]}
    await bed.client.patch(f"/api/v1/nodes/{bed.name('n2')}", {"spec": spec})
    assert await choose_mode(bed.api, bed.name("n2"), memory, wait_s=0.2) == "lease"


async def test_the_condition_follows_the_network(bed: Bed) -> None:
    await bed.add("n1")
    lack: Lack | None = Lack("no subnet")
    events = EventWriter(bed.api, bed.name("n1"))
    condition = NetworkCondition(bed.api, events, bed.name("n1"), lambda: lack, patience_s=0.1)
    reflector = Reflector(bed.api, resources("kube-system")[Kind.NODE], condition.observe, bed.settings)
    for work in (events.run(), condition.run(), reflector.run()):
        await bed.stack.enter_async_context(running(work))
    seen: dict[str, Any] = {}

    async def reached(status: str, reason: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                conditions = (await bed.node("n1"))["status"].get("conditions", [])
                found = [one for one in conditions if one["type"] == "NetworkUnavailable"]
                if found and (found[0]["status"], found[0]["reason"]) == (status, reason):
                    seen.update(found[0])
                    return
                await asyncio.sleep(0.05)

    await reached("True", "NetagentHasNoNetwork")
    assert seen["message"] == "no subnet"
    lack = None
    await reached("False", "NetagentIsUp")
    answer = await bed.client.get("/api/v1/namespaces/default/events")
    mine = [one for one in answer.tree["items"] if one.get("involvedObject", {}).get("name") == bed.name("n1")]
    assert [(one["reason"], one["message"]) for one in mine] == [("NetagentHasNoNetwork", "no subnet")]
