"""A dataplane on a real table in the test's own network namespace, filled by hand instead of by watches."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from netagent.agent.dataplane.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core.policy.frame import FrameSettings
from netagent.kernel.nft import LibNftables
from netagent.metrics import Metrics
from netagent.records import (
    ContainerPort,
    Endpoint,
    Key,
    Kind,
    LabelSelector,
    Listed,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    SubnetLease,
    Upserted,
)

NODE = "n1"


class Cluster:
    """What tests do to the view, and the table that follows it."""

    def __init__(self, nft: LibNftables) -> None:
        self.nft = nft
        frame = FrameSettings(vxlan_port=8472)
        kinds = frozenset({Kind.POD})
        self.dataplane = Dataplane(nft, PolicyConfig(), frame, Metrics(), node_name=NODE, kinds=kinds)
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.dataplane.apply(Listed(Kind.POD))
        self.task = asyncio.create_task(self.dataplane.run())
        await self.dataplane.committed()

    def namespace(self, name: str, **labels: str) -> None:
        record = Namespace(key=Key("", name), uid=name, labels=labels)
        self.dataplane.apply(Upserted(Kind.NAMESPACE, record))

    def node(self, name: str, address: str, subnet: str) -> None:
        self.dataplane.apply(Upserted(Kind.NODE, Node(key=Key("", name), uid=name, addresses=(address,))))
        lease = SubnetLease(
            key=Key("kube-system", name),
            uid=name,
            resource_version="1",
            subnet=subnet,
            holder=name,
            public_ip=address,
        )
        self.dataplane.apply(Upserted(Kind.LEASE, lease))

    def pod(
        self,
        key: Key,
        *ips: str,
        node: str = NODE,
        ports: tuple[ContainerPort, ...] = (),
        phase: str = "Running",
        host_network: bool = False,
        wired: bool = True,
        **labels: str,
    ) -> None:
        record = Pod(
            key=key,
            uid=f"uid-{key.name}",
            node=node,
            labels=labels,
            ips=ips,
            phase=phase,
            ports=ports,
            host_network=host_network,
        )
        self.dataplane.apply(Upserted(Kind.POD, record))
        if wired and node == NODE and not host_network:
            self.wire(key, *ips)

    def wire(self, key: Key, *ips: str, uid: str = "") -> None:
        endpoint = Endpoint(
            pod=key,
            pod_uid=uid or f"uid-{key.name}",
            container_id=f"sandbox-{key.name}",
            ifname="eth0",
            host_ifname="",
            ips=ips,
        )
        self.dataplane.restore((endpoint,))

    def policy(self, record: NetworkPolicy) -> None:
        self.dataplane.apply(Upserted(Kind.NETWORK_POLICY, record))

    def shop(self) -> None:
        """web and admin may be told apart by labels; db takes web on 5432/TCP only. n2 is another node."""
        self.namespace("shop", team="shop")
        self.node("n1", "192.168.0.1", "10.244.1.0/24")
        self.node("n2", "192.168.0.2", "10.244.2.0/24")
        self.pod(Key("shop", "web"), "10.244.1.2", "fd00::2", app="web")
        self.pod(Key("shop", "admin"), "10.244.1.3", app="admin")
        self.pod(Key("shop", "db"), "10.244.1.4", "fd00::4", app="db", ports=(ContainerPort("sql", 5432, "TCP"),))
        self.pod(Key("shop", "far"), "10.244.2.9", node="n2", app="far")
        self.policy(
            NetworkPolicy(
                key=Key("shop", "db"),
                uid="p1",
                pod_selector=LabelSelector(match_labels={"app": "db"}),
                policy_types=("Ingress",),
                ingress=(
                    PolicyRule(
                        peers=(PolicyPeer(pod_selector=LabelSelector(match_labels={"app": "web"})),),
                        ports=(PolicyPort(port="sql"),),
                    ),
                ),
            )
        )

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.nft.run("add table inet netagent\ndelete table inet netagent\n")


@pytest.fixture
def nft() -> Iterator[LibNftables]:
    library = LibNftables()
    yield library
    library.close()


@pytest.fixture
async def cluster(nft: LibNftables) -> AsyncIterator[Cluster]:
    """An empty view; the table is made by `start`."""
    made = Cluster(nft)
    yield made
    await made.close()
