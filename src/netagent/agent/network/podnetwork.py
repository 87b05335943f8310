"""The pod network of this node: own and peers' leases in, links, neighbours, forwarding entries and routes out.

One task waits for a kick (leases changed, the kernel told of something, the audit is due), works out what should be
there and changes what is not. While nothing is in doubt only the changed peers are compared; after a failure, a lost
notification or somebody else's change everything is read back. A family without a lease or an address of this node is
left as it is: pods that have a way keep it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from msgspec import Struct

from netagent.agent.network.notices import Ours, describe, matters, name_of, refused
from netagent.agent.network.offer import Offer, OnVtep, of_family
from netagent.config import NetworkConfig
from netagent.core.network.nodeplan import (
    NodePlan,
    device_prefix,
    families_of,
    family_of,
    plan_node,
    takes_over_flannel,
)
from netagent.core.network.peers import PeerTable, Self, is_unicast_mac
from netagent.core.network.podnet import (
    AddressKey,
    Entries,
    FdbKey,
    Key,
    LinkKey,
    NeighbourKey,
    RouteKey,
    Step,
    SysctlKey,
    Verb,
    Vxlan,
    device_name,
    diff,
    node_entries,
    sysctls,
)
from netagent.core.network.underlay import Neighbourhood, Wish
from netagent.kernel.entries import AnyNotice
from netagent.kernel.podnet import Failure, PodNetKernel, leading_links
from netagent.kernel.rtnetlink import RtnetlinkError
from netagent.ports import NetagentError, PodNetState
from netagent.records import SubnetLease

log = logging.getLogger(__name__)

AUDIT_S = 60.0
"""Everything is read back this often, in case a notification never came."""
SETTLE_S = 0.02
"""What one foreign command does (a link down, a flush) arrives within this time; then it is read back once."""
READ_BACK_SPACING_S = 0.25
"""Between two read-backs: somebody who fights with us costs a few per second, and drift is repaired in a second."""
RETRY_FIRST_S, RETRY_CAP_S = 0.2, 30.0
"""Pause after a failure; doubles up to the cap."""
WINDOW_CAP_S = 0.1
"""Under churn changes wait for company this long at most."""
READY_FAILURES = 3
"""After so many failures in a row, of what is not one peer's, the pod network is not ready any more."""
RETIRE_S = 30.0
"""A tunnel's device that this node needs no more stays for so long after its leases say so: peers still send there."""
OF_PEERS = NeighbourKey | FdbKey | RouteKey


class PodNetStatus(Struct, frozen=True, kw_only=True):
    """For health and debug."""

    ready: bool
    problem: str
    """The first of `problems` that keeps a family of this node from working; "" where there is none."""
    problems: tuple[str, ...]
    peers: int
    """Subnets of other nodes that have a route."""
    interface: str
    """Underlay link."""
    public_ips: tuple[str, ...]
    mtu: int
    entries: int
    read_backs: int
    repairs: int
    """Entries that others had removed or changed and that were put right."""
    failures: int
    """In a row."""
    last_error: str


class _Wanted(Struct, frozen=True):
    own: tuple[SubnetLease, ...]
    peers: tuple[SubnetLease, ...]
    node_addresses: tuple[str, ...]
    overrides: Mapping[int, str]

    @property
    def frame(self) -> tuple[object, ...]:
        """What everything hangs on, as opposed to one peer."""
        return tuple((lease.subnet, lease.backend) for lease in self.own), self.node_addresses, self.overrides


class PodNetwork:
    """Service; `run` is its one task. Also `ports.PodNet`."""

    def __init__(
        self, config: NetworkConfig, node_name: str, *, on_vtep: OnVtep, on_state: Callable[[], None] | None = None
    ) -> None:
        """`on_vtep(subnet, mac, public_ip)`: this node receives the subnet's packets there, publish it.

        `on_state()`: what `state` returns has changed.
        """
        self._config = config
        self._node_name = node_name
        self._families = families_of(config.pools)
        self._devices = {family: device_name(family, config.vni, device_prefix(config)) for family in self._families}
        self._macs: dict[int, str] = {}
        """MACs taken over with devices, or from what was published before."""
        self._wake = asyncio.Event()
        self._wanted: _Wanted | None = None
        self._followed: _Wanted | None = None
        self._plan = NodePlan({}, None, 0, ())
        self._table: PeerTable | None = None
        self._scope: Self | None = None
        self._expected: Entries = {}
        self._doubt = "start"
        """Why everything must be read back; "" while `_expected` is what the kernel has."""
        self._due_s = 0.0
        self._audit_s = 0.0
        self._read_s = 0.0
        self._neighbourhood = Neighbourhood()
        self._retire_s: float | None = None
        """When devices that are not needed any more go; None: not before the leases name our backend."""
        self._offer = Offer(self._families, on_vtep, on_state)
        self._failures = 0
        self._broken = False
        self._last_error = ""
        self._read_backs = 0
        self._repairs = 0
        self.rounds = 0
        """Times that a change was taken to the kernel, with success or not."""

    def update(
        self,
        own: tuple[SubnetLease, ...],
        peers: tuple[SubnetLease, ...],
        node_addresses: tuple[str, ...],
        overrides: Mapping[int, str] | None = None,
    ) -> None:
        """Leases that this node holds, all others, the Node object's InternalIPs, and the public addresses that it is
        to have instead, by family (text of unknown validity). Unchanged leases should be the same objects as last
        time: they are compared by identity."""
        self._wanted = _Wanted(own, peers, node_addresses, overrides or {})
        self._wake.set()

    def state(self) -> PodNetState | None:
        """None until every family of the pools has its lease here and is joined. See ports.PodNet."""
        return self._offer.state

    @property
    def status(self) -> PodNetStatus:
        """As of the last round."""
        plan = self._plan
        peer_problems = self._table.problems.values() if self._table else ()
        return PodNetStatus(
            ready=self._offer.state is not None and not (self._broken and self._failures >= READY_FAILURES),
            problem=self._last_error or next(iter(plan.problems), ""),
            problems=(*plan.problems, *peer_problems),
            peers=self._table.count if self._table else 0,
            interface=plan.underlay.interface.name if plan.underlay else "",
            public_ips=tuple(end.public_ip for end in plan.ends.values()),
            mtu=plan.mtu,
            entries=len(self._expected),
            read_backs=self._read_backs,
            repairs=self._repairs,
            failures=self._failures,
            last_error=self._last_error,
        )

    def way(self, subnet: str) -> str:
        """How packets for another node's subnet go: vxlan or direct; "" where there is no way."""
        return self._table.way(subnet) if self._table else ""

    @property
    def peer_problems(self) -> dict[str, str]:
        """Why there is no way to a subnet, by subnet."""
        return self._table.problems if self._table else {}

    async def run(self) -> None:
        """Until cancelled; what is in the kernel then stays."""
        with PodNetKernel(self._wake.set, flannel=takes_over_flannel(self._config)) as kernel:
            while True:
                await self._wait()
                started = _now()
                try:
                    await self._round(kernel)
                except RtnetlinkError as error:
                    self._broken = True
                    self._fail(str(error))
                except NetagentError as error:
                    self._fail(str(error))
                self.rounds += 1
                await asyncio.sleep(min(WINDOW_CAP_S, 2 * (_now() - started)))

    async def _wait(self) -> None:
        until = min(self._audit_s, self._due_s) if self._doubt else self._audit_s
        if self._wanted is None:
            until = float("inf")
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if until == float("inf") else max(until, _now())):
                await self._wake.wait()
        self._wake.clear()

    async def _round(self, kernel: PodNetKernel) -> None:
        notices, lost = kernel.notices()
        wanted = self._wanted
        if wanted is None:
            return
        if self._followed is None or wanted.frame != self._followed.frame:
            self._suspect("own lease or node address changed", _now())
        elif lost:
            self._suspect("notifications were lost", _now() + SETTLE_S)
        elif notice := self._contrary(notices, wanted):
            self._suspect(
                f"changed by others: {name_of(notice)}", max(_now() + SETTLE_S, self._read_s + READ_BACK_SPACING_S)
            )
        if _now() >= self._audit_s and not self._doubt:
            self._suspect("audit", _now())
        try:
            if self._doubt and _now() >= self._due_s:
                await self._resync(kernel, wanted)
            elif self._followed is not None and wanted.peers is not self._followed.peers:
                await self._follow(kernel, wanted)
        finally:
            self._offer.tell(
                wanted.own, self._plan
            )  # one peer's refused route keeps nobody from learning that the rest works

    def _suspect(self, why: str, due_s: float) -> None:
        """Read everything back, not before due_s; what is already due stays due."""
        if not self._doubt or due_s < self._due_s:
            self._doubt, self._due_s = why, due_s

    def _fail(self, error: str) -> None:
        self._failures += 1
        pause_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2 ** min(self._failures - 1, 10))
        if error != self._last_error:
            log.warning("pod network: %s Next attempt in %.1f s.", error, pause_s)
        self._last_error = error
        self._doubt, self._due_s = "failure", _now() + pause_s

    async def _follow(self, kernel: PodNetKernel, wanted: _Wanted) -> None:
        """Peers changed, and nothing is in doubt: only they are compared."""
        if self._table is None:
            return
        dirty = self._table.update(wanted.peers)
        self._followed = wanted
        steps = diff(self._table.entries, self._expected, keys=dirty)
        for step in steps:
            if step.verb is Verb.DELETE:
                self._expected.pop(step.key, None)
            else:
                self._expected[step.key] = step.value
        self._forget(failures := await kernel.apply(steps))
        if failures:
            raise NetagentError(refused(failures))

    async def _resync(self, kernel: PodNetKernel, wanted: _Wanted) -> None:
        """Read back, compare everything, change what differs."""
        why = self._doubt
        self._audit_s = _now() + AUDIT_S
        self._read_backs += 1
        snapshot = await kernel.read(self._sysctl_keys(), reach=self._config.can_reach)
        self._read_s = _now()
        self._plan = plan = plan_node(
            Wish(config=self._config, node_addresses=wanted.node_addresses, overrides=wanted.overrides),
            self._node_name,
            interfaces=snapshot.interfaces,
            subnets=[lease.subnet for lease in wanted.own],
            default=snapshot.default,
            reach=snapshot.reach,
            macs=self._settled_macs(snapshot.entries, wanted),
        )
        routes = await kernel.link_routes(plan.underlay.interface.index) if plan.underlay else ()
        self._neighbourhood = Neighbourhood(routes)
        self._enter_peers(wanted)
        frozen = set(self._families) - plan.ends.keys()
        retiring = self._retiring(wanted, snapshot.entries)
        left = {key: value for key, value in snapshot.entries.items() if key.family in frozen or key in retiring}
        actual = {key: value for key, value in snapshot.entries.items() if key not in left}
        desired = self._desired(wanted)
        steps = diff(desired, actual, held=self._expected.keys())
        self._note_repairs(why, steps)
        self._expected = {**desired, **left}
        self._followed, self._doubt = wanted, ""
        self._forget(failures := await self._apply(kernel, steps))
        unlike = await self._join(kernel, wanted, failures)
        self._broken = bool(unlike) or any(not isinstance(failure.step.key, OF_PEERS) for failure in failures)
        if failures or unlike:
            raise NetagentError(refused(failures) if failures else unlike)
        self._failures, self._last_error = 0, ""

    async def _apply(self, kernel: PodNetKernel, steps: Sequence[Step]) -> list[Failure]:
        on_links = leading_links(steps)
        failures = await kernel.apply(on_links) if on_links else []
        if on_links:
            kernel.discard_device_notices()  # devices are read once more when all is done
        return failures + await kernel.apply(steps[len(on_links) :])

    def _forget(self, failures: list[Failure]) -> None:
        """What was refused is not there."""
        for failure in failures:
            self._expected.pop(failure.step.key, None)

    def _sysctl_keys(self) -> list[SysctlKey]:
        return [key for family, device in self._devices.items() for key in sysctls(family, device)]

    # What this node is

    def _settled_macs(self, entries: Entries, wanted: _Wanted) -> dict[int, str]:
        """Node mode: peers know this node by the MAC of the device that is there, or by what it published before."""
        if takes_over_flannel(self._config):
            for lease in wanted.own:
                family = family_of(lease.subnet)
                have = entries.get(LinkKey(family, self._devices.get(family, "")))
                found = have.mac if isinstance(have, Vxlan) and have.kind == "vxlan" else lease.vtep_mac
                if family not in self._macs and is_unicast_mac(found):
                    self._macs[family] = found
        return self._macs

    def _enter_peers(self, wanted: _Wanted) -> None:
        """Bring the table of peers up to date; a new one where what this node is has changed."""
        plan = self._plan
        ends = plan.ends.values()
        scope = Self(
            node_name=self._node_name,
            devices={end.family: end.vtep.device if end.vtep else "" for end in ends},
            pools=self._config.pools,
            subnets=tuple(lease.subnet for lease in wanted.own),
            macs=tuple(end.mac for end in ends),
            public_ips=tuple({address: None for end in ends for address in (end.public_ip, end.local)}),
            direct_routing=self._config.direct_routing,
            underlay=plan.underlay.interface.index if plan.underlay else 0,
            neighbourhood=self._neighbourhood,
        )
        if self._table is None or scope != self._scope:
            self._scope, self._table = scope, PeerTable(scope)
        self._table.update(wanted.peers)

    def _desired(self, wanted: _Wanted) -> Entries:
        desired: Entries = {}
        for family, end in self._plan.ends.items():
            desired.update(node_entries(end, of_family(wanted.own, family)))
        if self._table:
            desired.update(self._table.entries)
        return desired

    def _retiring(self, wanted: _Wanted, found: Entries) -> set[Key]:
        """What stays of an earlier backend for now: the devices to which peers send until they have read our leases."""
        if self._config.backend == "vxlan" or not wanted.own:
            return set()
        now_s = _now()
        if self._retire_s is None and all(lease.backend == self._config.backend for lease in wanted.own):
            self._retire_s = now_s + RETIRE_S
        if self._retire_s is not None and now_s >= self._retire_s:
            return set()
        devices = set(self._devices.values())
        staying: set[Key] = {
            key for key in found if not isinstance(key, RouteKey | SysctlKey) and key.device in devices
        }
        if staying and self._retire_s is not None:
            self._audit_s = min(self._audit_s, self._retire_s)
        return staying

    # What others are told

    async def _join(self, kernel: PodNetKernel, wanted: _Wanted, failures: list[Failure]) -> str:
        """Which families work, by the devices as they are now. Returns what is not as it was made."""
        broken = {failure.step.key.family for failure in failures if isinstance(failure.step.key, LinkKey | AddressKey)}
        unlike = ""
        for family, end in self._plan.ends.items():
            vtep = end.vtep
            if vtep is None:
                self._offer.joined[family] = tuple(of_family(wanted.own, family))
                continue
            have = await kernel.read_device(vtep.device)
            if have and have.up and have.mac == vtep.link.mac and family not in broken:
                self._offer.joined[family] = tuple(of_family(wanted.own, family))
            if have != vtep.link:
                self._expected.pop(LinkKey(family, vtep.device), None)
                unlike = f"{vtep.device} was made as {vtep.link} but is {have}: somebody else sets it, stop that."
        return unlike

    def _contrary(self, notices: Iterable[AnyNotice], wanted: _Wanted) -> AnyNotice | None:
        """The first of what others did that matters here."""
        named = (*wanted.node_addresses, *wanted.overrides.values())
        ours = Ours(self._config, self._families, self._plan, self._expected, self._neighbourhood, named)
        return next((notice for notice in notices if matters(notice, ours)), None)

    def _note_repairs(self, why: str, steps: tuple[Step, ...]) -> None:
        if not steps or self._followed is None or not why.startswith(("changed", "notifications", "audit")):
            return
        self._repairs += len(steps)
        log.warning(
            "pod network: %s; put %d entries right, the first: %s",
            why,
            len(steps),
            describe(steps[0].key),
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
