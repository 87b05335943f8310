"""A node with pods, remote pods and outside hosts around the agent's dataplane, and questions to it in words.

The agent's view is fed directly; there is no API server. What is told to the agent is kept as an oracle's cluster too.
"""

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from types import TracebackType
from typing import Self

from netagent.agent.dataplane.sync import Dataplane
from netagent.config import PolicyConfig
from netagent.core.policy.frame import FrameSettings
from netagent.kernel.nft import LibNftables
from netagent.metrics import Metrics
from netagent.ports import Nft
from netagent.records import Kind, Listed, Namespace, NetworkPolicy, Pod, Record
from support import oracle, probes, words
from support.flows import Flow
from support.places import Place, new_place, prepare_router
from support.probes import Probe
from support.servers import Servers

SERVED = ((80, "TCP"), (81, "TCP"), (80, "UDP"), (81, "UDP"), (0, "SCTP"))
KINDS = frozenset((Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY))
NODE_IPS = ("172.30.0.11", "fd00:30::b")
WORDS = re.compile(r"(?P<src>\S+) -> (?P<dst>\S+) (?:(?P<port>\d+)/)?(?P<protocol>[A-Z]+)(?P<v6> v6)?")


class Bed:
    """Use as an asynchronous context; everything is gone afterwards."""

    def __init__(
        self, *, config: PolicyConfig | None = None, wired_by_cni: bool = True, frame: FrameSettings | None = None
    ) -> None:
        self.cluster = oracle.Cluster(node="node-0", node_ips=frozenset(NODE_IPS))
        self.places: dict[str, Place] = {"node": prepare_router(NODE_IPS)}
        self.servers = Servers()
        self.nft = LibNftables()
        self.dataplane: Dataplane
        self._config = config or PolicyConfig()
        self._frame = frame
        self._wired_by_cni = wired_by_cni
        self._numbers = itertools.count(10)
        self._loop: asyncio.Task[None] | None = None
        self._flows: list[Flow] = []
        self._listening: dict[str, list[object]] = {}

    async def __aenter__(self) -> Self:
        self.servers.open(self.places["node"], SERVED)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for flow in self._flows:
            flow.close()
        await self.stop()
        with contextlib.suppress(Exception):
            await self.nft.run("add table inet netagent\ndelete table inet netagent\n")
        self.servers.close()
        for place in self.places.values():
            place.close()
        self.nft.close()

    # The agent

    async def start(self, nft: Nft | None = None) -> None:
        """A new agent, which is shown the whole cluster and the pods that are wired."""
        self.dataplane = Dataplane(
            nft or self.nft,
            self._config,
            self._frame
            or FrameSettings(
                mark_mask=self._config.mark_mask,
                drop_log_group=self._config.drop_log_group if self._config.drop_log else None,
            ),
            Metrics(),
            node_name="node-0",
            kinds=KINDS,
            pods_from_api=not self._wired_by_cni,
        )
        if self._wired_by_cni:
            self.dataplane.restore(
                tuple(
                    self.places[str(pod.key)].endpoint(pod.key, pod.uid)
                    for pod in self.cluster.pods.values()
                    if str(pod.key) in self.places and pod.node == "node-0"
                )
            )
        for table in (self.cluster.namespaces, self.cluster.pods, self.cluster.policies):
            for record in table.values():
                self.dataplane.apply(words.put(record))
        for kind in KINDS:
            self.dataplane.apply(Listed(kind))
        self._loop = asyncio.create_task(self.dataplane.run(), name="dataplane")
        await self.settled()

    async def stop(self) -> None:
        """The agent ends; the kernel keeps what it has."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
            self._loop = None

    async def settled(self) -> None:
        """Everything so far is in the kernel."""
        waiting = asyncio.ensure_future(self.dataplane.committed())
        assert self._loop is not None
        await asyncio.wait((waiting, self._loop), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if self._loop.done():
            self._loop.result()
        assert waiting.done(), self.dataplane.problem

    # The cluster

    async def put(self, *records: Record) -> int:
        """Objects come or change; the moment (ns) after the commit."""
        for record in records:
            self._table(record)[record.key.name if isinstance(record, Namespace) else record.key] = record
            self.dataplane.apply(words.put(record))
        await self.settled()
        return time.monotonic_ns()

    async def remove(self, *records: Record) -> int:
        """Objects go; the moment (ns) after the commit."""
        for record in records:
            del self._table(record)[record.key.name if isinstance(record, Namespace) else record.key]
            self.dataplane.apply(words.gone(record))
        await self.settled()
        return time.monotonic_ns()

    def _table(self, record: Record) -> dict[object, Record]:
        match record:
            case Namespace():
                return self.cluster.namespaces  # type: ignore[return-value]
            case Pod():
                return self.cluster.pods  # type: ignore[return-value]
            case NetworkPolicy():
                return self.cluster.policies  # type: ignore[return-value]
        raise TypeError(type(record).__name__)

    async def pod(
        self,
        name: str,
        *,
        ips: tuple[str, ...] = (),
        remote: bool = False,
        ports: Iterable[tuple[str, int, str]] = (),
        serves: Iterable[tuple[int, str]] = SERVED,
        **labels: str,
    ) -> Place:
        """A running pod, on this node or on another one; its namespace is made where it is missing."""
        if words.key(name).namespace not in self.cluster.namespaces:
            await self.put(words.namespace(words.key(name).namespace))
        number = next(self._numbers)
        net = 1 if remote else 0
        addresses = ips or (f"10.244.{net}.{number}", str(IPv6Address(f"fd00:10:244:{net}::{number:x}")))
        place = new_place(name, addresses, "rem" if remote else "nap" if self._wired_by_cni else "veth")
        record = words.pod(name, *addresses, labels=labels, ports=ports, node="node-1" if remote else "node-0")
        self.cluster.pods[record.key] = record
        self.dataplane.apply(words.put(record))
        if not remote and self._wired_by_cni:
            await self.dataplane.admit(place.endpoint(record.key, record.uid))
        return self._connect(place, serves)

    def outside(self, ip: str, *more: str, serves: Iterable[tuple[int, str]] = SERVED) -> Place:
        """A host of no cluster."""
        return self._connect(new_place(ip, (ip, *more), "out"), serves)

    def _connect(self, place: Place, serves: Iterable[tuple[int, str]]) -> Place:
        self.places[place.name] = place
        self._listening[place.name] = list(self.servers.open(place, serves))
        place.wire()
        return place

    async def unplug(self, name: str) -> None:
        """CNI DEL: the sandbox of a pod goes; its object stays as it is."""
        place = self.places.pop(name)
        self.servers.shut(self._listening.pop(name))  # type: ignore[arg-type]
        place.close()
        pod = self.cluster.pods[words.key(name)]
        self.dataplane.withdraw(place.endpoint(pod.key, pod.uid))
        await self.settled()

    def record(self, name: str) -> Pod:
        """A pod's object as it is now."""
        return self.cluster.pods[words.key(name)]

    # Questions

    def parse(self, text: str) -> Probe:
        """`x/a -> y/b 80/TCP`, `x/a -> 192.0.2.10 ICMP v6`: places by name, destinations also by address."""
        found = WORDS.fullmatch(text)
        assert found, text
        version = 6 if found["v6"] else 4
        place = self.places.get(found["dst"])
        dst = place.ip(version) if place is not None else found["dst"]
        return Probe(self.places[found["src"]], dst, int(found["port"] or 0), found["protocol"])

    async def expect(self, *, allowed: Sequence[str] = (), denied: Sequence[str] = ()) -> None:
        """All of this is so. Committed first, asked at once."""
        wanted = [(self.parse(text), True) for text in allowed] + [(self.parse(text), False) for text in denied]
        await self._ask(wanted)

    async def expect_oracle(self, *, versions: Sequence[int] = (4,), ports: Sequence[tuple[int, str]] = SERVED) -> int:
        """Every place to every other, on every port, as the oracle says. Returns the number of verdicts."""
        wanted = [
            self.judged(src, dst, 80 if protocol == "SCTP" else port, protocol, version)
            for version in versions
            for src, dst in itertools.permutations(self.places.values(), 2)
            for port, protocol in (*ports, (0, "ICMP"))
            if (version == 4 or protocol != "SCTP") and self._has(src, version) and self._has(dst, version)
        ]
        await self._ask(wanted)
        return len(wanted)

    def judged(self, src: Place, dst: Place, port: int, protocol: str, version: int = 4) -> tuple[Probe, bool]:
        """A probe and the oracle's verdict on it."""
        near, far = src.ip(version), dst.ip(version)
        packet = oracle.Packet(near, far, port, protocol)
        return Probe(src, far, port, protocol), oracle.allowed(self.cluster, packet)

    async def ask(self, wanted: list[tuple[Probe, bool]]) -> list[str]:
        """What differs from the wanted verdicts, in words."""
        await self.settled()
        wrong = await asyncio.to_thread(probes.differences, wanted, self.servers)
        return [
            f"{probe.src.name} -> {self._name(probe.dst)} {probe.port}/{probe.protocol}: "
            f"expected {'allowed' if want else 'denied'}, got {answer}"
            for probe, want, answer in wrong
        ]

    async def _ask(self, wanted: list[tuple[Probe, bool]]) -> None:
        wrong = await self.ask(wanted)
        assert not wrong, "\n".join(wrong[:40])

    def _name(self, ip: str) -> str:
        return next((f"{place.name} ({ip})" for place in self.places.values() if ip in place.ips), ip)

    @staticmethod
    def _has(place: Place, version: int) -> bool:
        return any((":" in ip) == (version == 6) for ip in place.ips)

    # Open flows

    def flow(self, flow: Flow) -> Flow:
        """Ends with the bed."""
        self._flows.append(flow)
        return flow

    async def until(self, what: str, condition: object, timeout_s: float = 10.0) -> None:
        """Wait until a condition (a function) holds."""
        assert callable(condition)
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
            await asyncio.sleep(0.01)

    async def flowing(self, *flows: Flow) -> None:
        """Records of each arrive from now on."""
        for flow in flows:
            count = flow.received
            await self.until("flow arrives", lambda flow=flow, count=count: flow.received > count + 5)
