"""Node mode: keeps to the subnets that this Node's spec.podCIDRs names, and tells peers of it in flannel's annotations.

The same shape as the lease keeper, so that whoever stands on leases needs not know which of the two is at work. Nothing
is acquired and nothing can be lost here: kube-controller-manager gives each Node its own. A Node that goes, or cannot
be read for a while, leaves this node's subnets as they are.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Never

from msgspec import Raw

from netagent.config import NetworkConfig
from netagent.core.network import flannel, nodenet
from netagent.core.network.flannel import End
from netagent.kube import decode
from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.kube.wire import DecodeError
from netagent.ports import NetagentError
from netagent.records import Change, Kind, Listed, Node, SubnetLease, Upserted

BACKOFF_CAP_S = 30.0
"""Longest pause between attempts to publish."""

log = logging.getLogger(__name__)


class NodeNet:
    """This node's subnets and everybody's, out of Node objects.

    `emit` is given the nodes as changes of Kind.LEASE, first of all the complete list. `on_change` is called on the
    event loop with this node's records whenever a subnet comes, goes, or its published addresses change.
    """

    def __init__(
        self,
        api: ApiClient,
        network: NetworkConfig,
        node: str,
        *,
        emit: Callable[[Change], None],
        on_change: Callable[[tuple[SubnetLease, ...]], None],
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._network = network
        self._node_name = node
        self._emit = emit
        self._on_change = on_change
        self._names = flannel.names(network.annotation_prefix)
        self._leases = nodenet.NodeLeases(self._names, node)
        self._node: Node | None = None
        self._held: tuple[SubnetLease, ...] = ()
        self._backend = ""
        self._ends: dict[int, End] = {}
        self._wish_problems: tuple[str, ...] = ()
        self._problem = ""
        """Why the annotations could not be written."""
        self._last_error = ""
        self._kick = asyncio.Event()
        self._backoff = Backoff(BACKOFF_CAP_S, rng=(rng or random.Random()).random)  # noqa: S311 - spreads nodes

    @property
    def held(self) -> tuple[SubnetLease, ...]:
        """This node's subnets, IPv4 first, as records of leases."""
        return self._held

    @property
    def allocatable(self) -> tuple[str, ...]:
        """Subnets that new pods may get addresses from."""
        return tuple(lease.subnet for lease in self._held)

    @property
    def problem(self) -> str:
        """Why this node is not ready to give out addresses; empty: it is."""
        missing = nodenet.missing_families(self._network.pools, self._held)
        return nodenet.waits_for(self._node_name, self._node, missing) or self._problem

    @property
    def reason(self) -> str:
        """What kind of `problem` there is, in CamelCase; empty: none."""
        if nodenet.missing_families(self._network.pools, self._held):
            return "NoPodCIDR"
        return "NotPublished" if self._problem else ""

    def advertise(self, subnet: str, *, backend: str, vtep_mac: str, public_ip: str) -> None:
        """Publish how peers reach this node: written soon, and again when others change it."""
        end = End(vtep_mac, public_ip)
        family = nodenet.family_of(subnet)
        if (self._ends.get(family), self._backend) != (end, backend):
            self._ends[family], self._backend = end, backend
            self._kick.set()

    def observe(self, change: Change) -> None:
        """Take note of a change of a Node that the watch delivered."""
        if change.kind is not Kind.NODE:
            return
        if isinstance(change, Listed):
            self._emit(Listed(Kind.LEASE))
            return
        for news in self._leases.follow(change):
            self._emit(news)
        key = change.record.key if isinstance(change, Upserted) else change.key
        if key.name == self._node_name:
            self._see(change.record if isinstance(change, Upserted) and isinstance(change.record, Node) else None)

    async def run(self) -> Never:
        """Keep the annotations as they should be, until cancelled. No failure of the API server ends it."""
        while True:
            self._kick.clear()
            pause_s: float | None = None
            try:
                await self._publish()
            except (ApiError, Unreachable, DecodeError) as error:
                pause_s = self._failed(error)
            else:
                self._backoff.reset()
                self._problem = self._last_error = ""
            try:
                await asyncio.wait_for(self._kick.wait(), pause_s)
            except TimeoutError:
                continue

    def _see(self, node: Node | None) -> None:
        """This Node is so now; None: it is gone or cannot be read, which changes nothing of what is held."""
        self._node = node
        if node is None:
            return
        held = self._leases.of(self._node_name)
        if held and held != self._held:
            self._held = held
            log.info("this Node's pod subnets are %s.", ", ".join(lease.subnet for lease in held))
            self._on_change(held)
        if flannel.changed(self._wanted(node), node.annotations):
            self._kick.set()

    def _wanted(self, node: Node) -> dict[str, str]:
        """The annotations that this Node should have: none before a device is up."""
        ends: dict[int, End] = {}
        problems: list[str] = []
        for family, end in self._ends.items():
            wish, problem = flannel.wished_public_ip(self._names, node.annotations, family)
            ends[family] = End(end.mac, wish) if wish else end
            problems += [problem] if problem else []
        if tuple(problems) != self._wish_problems:
            self._wish_problems = tuple(problems)
            for problem in problems:
                log.warning("%s", problem)
        if not ends:
            return {}
        return flannel.annotations(self._names, backend=self._backend, vni=self._network.vni, ends=ends)

    async def _publish(self) -> None:
        """Write what differs. The view may be older than the object, so the object decides."""
        if (
            not self._ends
            or self._node is None
            or not flannel.changed(self._wanted(self._node), self._node.annotations)
        ):
            return
        path = f"/api/v1/nodes/{self._node_name}"
        node = decode.record(Kind.NODE, await self._api.get_json(path, Raw))
        if not isinstance(node, Node):
            return
        news = flannel.changed(self._wanted(node), node.annotations)
        if news:
            await self._api.patch(f"{path}/status", nodenet.patch(news), Raw, patch_type="strategic")
            log.info("published on this Node: %s.", ", ".join(sorted(news)))

    def _failed(self, error: NetagentError) -> float:
        if not isinstance(error, Unreachable):  # a server that is away takes nothing from this node
            self._problem = str(error)
        if str(error) != self._last_error:
            self._last_error = str(error)
            log.warning("Node annotations: %s Peers may not find this node yet; netagent tries again.", error)
        return self._backoff.next_s(error.retry_after_s if isinstance(error, ApiError) else 0.0)
