"""The wiring of one agent: which service tells which, one TaskGroup, one way to stop.

Watches feed the dataplane, the lease keeper and the pod network; the keeper's leases go to the pod network and back as
published addresses; CNI asks the pod network for addresses and the dataplane for admission. When a task dies the agent
stops with its error and Kubernetes starts it again; what is in the kernel stays either way.
"""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Coroutine, Mapping
from typing import Any

from aiohttp import web

from netagent import logs
from netagent.agent.dataplane.denials import DenialCounts
from netagent.agent.dataplane.drift import DriftWatch
from netagent.agent.dataplane.droplog import DropLog
from netagent.agent.dataplane.forward import ForwardAccepts
from netagent.agent.dataplane.sync import Dataplane
from netagent.agent.http import debug
from netagent.agent.http.apistate import ApiState
from netagent.agent.http.health import Health, Heartbeat
from netagent.agent.http.policyevents import PolicyEvents
from netagent.agent.http.server import HttpServer
from netagent.agent.network.abandoned import AbandonedLeases
from netagent.agent.network.bridges import OthersBridges
from netagent.agent.network.condition import Lack, NetworkCondition
from netagent.agent.network.lease import LOST, LeaseKeeper
from netagent.agent.network.mode import resolve_mode
from netagent.agent.network.nodenet import NodeNet
from netagent.agent.network.podnetwork import PodNetwork
from netagent.agent.pods.cni import CniServer
from netagent.agent.pods.cnisocket import AnotherAgentError, only_agent
from netagent.agent.pods.podlinks import PodLinks
from netagent.agent.pods.podmtu import PodMtu
from netagent.config import Config
from netagent.core.network.flannel import render_subnet_env
from netagent.core.network.underlay import public_ip_overrides
from netagent.core.policy.frame import frame_settings
from netagent.disk.allocations import Allocations
from netagent.disk.atomic import DiskError
from netagent.disk.hostlocal import HostLocal
from netagent.disk.state import SubnetMemory
from netagent.disk.subnetenv import SUBNET_ENV, write_subnet_env
from netagent.kernel.nft import TABLE_NAME, LibNftables
from netagent.kube.client import ApiClient, connect
from netagent.kube.events import EventWriter
from netagent.kube.reflector import Reflector, resources
from netagent.metrics import Metrics
from netagent.ports import NetagentError, NftError, PodNetState
from netagent.records import Change, Kind, Listed, SubnetLease, Upserted

log = logging.getLogger(__name__)


class StoppedError(NetagentError):
    """A part of the agent failed; the dataplane stays as it is."""


async def run(config: Config, origins: Mapping[str, str] | None = None) -> int:
    """Run the agent until SIGTERM or SIGINT; the exit status. Raises NetagentError where it cannot go on.

    `origins`: option -> where its value comes from.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _toggle_debug, config)
    async with connect(config.api) as api:
        resolved = await resolve_mode(config, api, stop)
        if resolved is None:
            return 0
        agent = Agent(resolved, api, origins or {})
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(work, name=name) for name, work in agent.tasks().items()]
                await stop.wait()
                log.info("stopping; what is in the kernel stays in force")
                for task in running:
                    task.cancel()
        except* NetagentError as group:
            raise StoppedError(_reasons(group)) from group
        finally:
            agent.close()
    return 0


def _toggle_debug(config: Config) -> None:
    log.warning("SIGUSR1: the log level is %s now", logs.toggle_debug(config.log))


def _reasons(group: BaseExceptionGroup[NetagentError]) -> str:
    return "; ".join(str(one) if not isinstance(one, BaseExceptionGroup) else _reasons(one) for one in group.exceptions)


class Agent:
    """All services of one node."""

    def __init__(self, config: Config, api: ApiClient, origins: Mapping[str, str]) -> None:
        self.config = config
        self._origins = origins
        self.node_name = config.node_name or socket.gethostname()
        self.metrics = Metrics()
        self._network_on = config.network.mode != "off"
        self._host_local = self._others()
        self._nft = LibNftables()
        self._reader = LibNftables()
        """For debug: reading a large table takes long, and no commit is to wait for it."""
        self._memory = SubnetMemory(config.state_dir)
        self._own: tuple[SubnetLease, ...] = ()
        self._network_due = False
        kinds = self._kinds()
        self.dataplane = Dataplane(
            self._nft,
            config.policy,
            frame_settings(config),
            self.metrics,
            node_name=self.node_name,
            kinds=frozenset(kinds),
            pods_from_api=not config.cni.enabled,
            wired_by_others=self._host_local.holds if self._host_local else None,
            admit_timeout_s=config.cni.admit_timeout_s,
        )
        self.drift = DriftWatch(self.dataplane, self._nft, self.metrics, table=TABLE_NAME)
        self.denials = DenialCounts(self.dataplane, self._nft, self.metrics, config.policy.counter_cap)
        self.drop_log = DropLog(config.policy, self.dataplane, self.metrics) if config.policy.drop_log else None
        accepted = config.network.pools if self._network_on and config.network.forward_accept else ()
        self.forward = ForwardAccepts(accepted, first=config.policy.enabled)
        self.pod_network = PodNetwork(config.network, self.node_name, on_vtep=self._publish, on_state=self._joined)
        previous, problems = self._memory.load()
        for problem in problems:
            log.warning("%s", problem)
        self.keeper = self._keeper(api, previous)
        self.events = EventWriter(api, self.node_name)
        self.condition = NetworkCondition(api, self.events, self.node_name, self._lacks)
        self.policy_events = PolicyEvents(self.dataplane, self.events.post, self.node_name)
        self.abandoned = AbandonedLeases(api, config.network, self.dataplane.store)
        catalogue = resources(config.network.lease_namespace)
        watched = [kind for kind in kinds if kind is not Kind.LEASE or config.network.mode == "lease"]
        self.reflectors = {kind: Reflector(api, catalogue[kind], self._emit, config.api) for kind in watched}
        self.api_state = ApiState(api, self.reflectors, config.api, self.metrics)
        self.cni = CniServer(
            config.cni,
            pod_net=self,
            policy=self.dataplane,
            store=Allocations(config.state_dir),
            ready=self._can_serve,
            observe=self._observe_cni,
            host_local=self._host_local,
            elsewhere=self._is_elsewhere,
        )
        self.pod_mtu = PodMtu(self.pod_network, self.cni.endpoints)
        self.pod_links = PodLinks(self.cni)
        self.bridges = OthersBridges(lambda: tuple(lease.subnet for lease in self._own), self.cni.endpoints)
        self.heartbeat = Heartbeat(self.metrics.loop_lag)
        self.ready = Health(self._parts(), self.api_state.remarks)
        self.http = HttpServer(
            config.http,
            alive=Health({"event loop": self.heartbeat.problem, "dataplane": lambda: self.dataplane.stuck}),
            ready=self.ready,
            registry=self.metrics.registry,
            before_scrape=self._before_scrape,
            debug=self._debug,
        )

    def _debug(self) -> web.Application:
        return debug.application(
            debug.Services(
                config=self.config,
                origins=self._origins,
                node_name=self.node_name,
                ready=self.ready,
                metrics=self.http.metrics,
                dataplane=self.dataplane,
                nft=self._reader,
                reflectors=self.reflectors,
                keeper=self.keeper,
                pod_network=self.pod_network,
                forward=self.forward,
                cni=self.cni,
                drop_log=self.drop_log,
            )
        )

    def tasks(self) -> dict[str, Coroutine[Any, Any, Any]]:
        """What runs, by name."""
        work: dict[str, Coroutine[Any, Any, Any]] = {"dataplane": self.dataplane.run(), "http": self.http.run()}
        work |= {"heartbeat": self.heartbeat.run(), "spare the collector": self._spare_collector()}
        work |= {"events": self.events.run(), "policy events": self.policy_events.run()}
        work |= {"drift": self.drift.run(), "denials": self.denials.run(), "forward accepts": self.forward.run()}
        if self.drop_log is not None:
            work["drop log"] = self.drop_log.run()
        work |= {f"watch {kind}": reflector.run() for kind, reflector in self.reflectors.items()}
        if self._network_on:
            work |= {"lease": self.keeper.run(), "pod network": self.pod_network.run()}
            work["condition"] = self.condition.run()
        if self.config.network.mode == "lease":
            work["abandoned leases"] = self.abandoned.run()
        if self.config.cni.enabled:
            work |= {"cni": self.cni.run(), "pod links": self.pod_links.run()}
        else:
            work["lock"] = self._hold_node()
        if self._network_on and self.config.cni.enabled:
            work["pod mtu"] = self.pod_mtu.run()
        if self._host_local is not None:
            work["bridges"] = self.bridges.run()
        return work

    def close(self) -> None:
        """After all tasks have ended."""
        self._reader.close()
        self._nft.close()

    def state(self) -> PodNetState | None:
        """ports.PodNet: nothing is given out of a subnet that another node may have taken over by now."""
        state = self.pod_network.state()
        if state is None or not set(state.subnets) <= set(self.keeper.allocatable):
            return None
        return state

    async def _hold_node(self) -> None:
        """Without a socket of ours: keep a second agent, and `netagent cleanup`, off this node all the same."""
        try:
            with only_agent(self.config.cni.socket):
                await asyncio.Event().wait()
        except AnotherAgentError:
            raise
        except NetagentError as error:
            log.warning("%s Nothing keeps a second agent, or netagent cleanup, from running beside this one.", error)

    async def _spare_collector(self) -> None:
        """Keep the garbage collector off what was built until now, most of which lives as long as the agent.

        A full collection stops everything for 0.12 s at 50,000 pods and 10,000 policies, and relists bring it on.
        """
        await self.dataplane.enforced()
        gc.freeze()

    # Wiring

    def _keeper(self, api: ApiClient, previous: tuple[str, ...]) -> LeaseKeeper | NodeNet:
        network = self.config.network
        if network.mode == "node":
            return NodeNet(api, network, self.node_name, emit=self._emit, on_change=self._leases_changed)
        return LeaseKeeper(
            api, network, self.node_name, previous, on_change=self._leases_changed, on_loss=self._lease_lost
        )

    def _others(self) -> HostLocal | None:
        """The plugin whose pods run beside ours: flannel's, in subnets that were its own before."""
        network = self.config.network
        if not (network.mode == "node" and self.config.cni.enabled and network.host_local_dir):
            return None
        return HostLocal(network.host_local_dir)

    def _kinds(self) -> list[Kind]:
        """Those that somebody here has a use for."""
        kinds = []
        if self.config.policy.enabled:
            kinds += [Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY]
        elif not self.config.cni.enabled or self._host_local is not None:
            kinds.append(Kind.POD)
        if self._network_on:
            kinds += [Kind.NODE, Kind.LEASE]
        return kinds

    def _emit(self, change: Change) -> None:
        self.dataplane.apply(change)
        kind = change.kind
        if kind in (Kind.NODE, Kind.LEASE):
            self.keeper.observe(change)
            self.condition.observe(change)
            if kind is Kind.LEASE or isinstance(change, Listed) or self._is_own_node(change):
                self._network_soon()

    def _is_own_node(self, change: Change) -> bool:
        return isinstance(change, Upserted) and change.record.key.name == self.node_name

    def _leases_changed(self, held: tuple[SubnetLease, ...]) -> None:
        self._own = held
        subnets = tuple(lease.subnet for lease in held)
        self.dataplane.set_own_subnets(subnets)
        if subnets:
            try:
                self._memory.save(subnets)
            except DiskError as error:
                log.warning("%s After a restart this node may ask for another subnet.", error)
        self._network_soon()

    def _network_soon(self) -> None:
        """Once for all changes of this turn of the event loop."""
        if not self._network_due:
            self._network_due = True
            asyncio.get_running_loop().call_soon(self._update_network)

    def _update_network(self) -> None:
        self._network_due = False
        store = self.dataplane.store
        if not {Kind.NODE, Kind.LEASE} <= store.listed:
            return  # a peer that is not listed yet would lose its way
        peers = tuple(lease for lease in store.leases.values() if lease.holder != self.node_name)
        node = store.nodes.get(self.node_name)
        overrides = public_ip_overrides(node.annotations) if node else {}
        self.pod_network.update(self._own, peers, node.addresses if node else (), overrides)

    def _publish(self, subnet: str, mac: str, public_ip: str) -> None:
        self.keeper.advertise(subnet, backend=self.config.network.backend, vtep_mac=mac, public_ip=public_ip)

    def _joined(self) -> None:
        """What new pods are offered has changed: tell those who read it as flannel's, and change running pods' MTU."""
        self.pod_mtu.kick()
        network, state = self.config.network, self.pod_network.state()
        by_default = SUBNET_ENV if network.mode == "node" else ""
        path = by_default if network.subnet_env is None else network.subnet_env
        if not path or state is None:
            return
        content = render_subnet_env(
            pools=network.pools, subnets=state.subnets, mtu=state.mtu, masquerade=network.masquerade
        )
        try:
            write_subnet_env(path, content)
        except DiskError as error:
            log.warning("%s Programs that read it have an old one or none.", error)

    def _lacks(self) -> Lack | None:
        """Why no pod can start here for want of a network."""
        if problem := self.keeper.problem:
            return Lack(problem, self.keeper.reason)
        return Lack(problem) if (problem := self._network_problem()) else None

    def _lease_lost(self, message: str) -> None:
        self.condition.tell(Lack(message, LOST))

    def _can_serve(self) -> bool:
        return self.state() is not None and self.dataplane.ready

    def _is_elsewhere(self, ip: str) -> bool:
        """A living pod of another node has the address: it got it before this node held the subnet."""
        store = self.dataplane.store
        pod = store.pods.get(key) if (key := store.owner(ip)) else None
        return pod is not None and pod.node != self.node_name

    def _observe_cni(self, command: str, duration_s: float, code: int) -> None:
        self.metrics.cni.labels(command, "error" if code else "ok").observe(duration_s)

    # Health and debug

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"dataplane": lambda: self.dataplane.problem}
        if self._network_on:
            parts["lease"] = lambda: self.keeper.problem
            parts["pod network"] = self._network_problem
        if self.config.cni.enabled:
            parts["cni"] = self._cni_problem
        return parts

    def _network_problem(self) -> str:
        status = self.pod_network.status
        return "" if status.ready else status.problem or "not joined yet"

    def _cni_problem(self) -> str:
        status = self.cni.status
        if not status.serving:
            return "; ".join(status.problems) or "the socket does not serve yet"
        return "" if status.published else "; ".join(status.problems) or "waits for the other parts"

    async def _before_scrape(self) -> None:
        metrics = self.metrics
        self.api_state.sample()
        problems = self.ready.problems()
        for part in self.ready.parts:
            metrics.ready.labels(part).set(part not in problems)
        metrics.peers.set(self.pod_network.status.peers)
        try:
            counters = await self.denials.sample()
        except NftError as error:
            log.warning("%s The counters of dropped packets are as of the last scrape.", error)
            return
        for name, value in counters.items():
            if not name.startswith("k_"):
                metrics.dropped.labels(name).set(value.packets)
