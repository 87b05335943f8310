"""Holds this node's subnet leases: one per family, acquired, renewed, defended, given up when lost.

The lease is the object on the API server and nothing else. While the API server is away the node keeps what it holds; a
lease that is gone is made again; one that another node holds now is lost, which is reported and then made good by
acquiring another. The kernel is other people's work: they are told by `on_change`.

Nobody may think that a subnet is his while another one has it. So addresses are given out only while no other node can
have taken the subnet (`allocatable`): half a grace before it may, by the API server's clock and by a clock that runs on
however this node's is set; and not while the watch says that the lease is gone or another's. See docs/leases.md.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Never

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.network import lease as rules
from netagent.kube import leases
from netagent.kube.backoff import Backoff
from netagent.kube.client import ApiClient, ApiError, Unreachable
from netagent.kube.clock import since_boot_s
from netagent.kube.leases import Tenant
from netagent.kube.leasestore import LeaseStore, Seen, Stored
from netagent.kube.wire import DecodeError
from netagent.ports import NetagentError
from netagent.records import Change, Key, Kind, Node, Removed, SubnetLease, Undecodable, Upserted

BACKOFF_CAP_S = 30.0
"""Longest pause between attempts; a sixth of the lease duration where that is shorter."""
LOOK_S = 60.0
"""The longest sleep: a clock that is set forward must not let a lease expire unnoticed."""
ATTEMPTS = 8
"""Lost races against other nodes before the leases are listed again."""

EXPIRED, EXHAUSTED, LOST, NONE_YET = "SubnetLeaseExpired", "SubnetPoolExhausted", "SubnetLeaseLost", "NoSubnetLease"
"""Reasons why a node has no subnet to give addresses from."""

log = logging.getLogger(__name__)


class _Waiting(NetagentError):
    """Nothing can be done now; what it waits for is in the text."""


class _Exhausted(_Waiting):
    """No subnet is free."""


class _Held(Struct, frozen=True):
    lease: SubnetLease
    stored: Stored
    until_s: float
    """By `elapsed`: nothing is given out after that, whatever the clocks say by then."""


class LeaseKeeper:
    """Keeps one subnet of each configured family for this node.

    `previous` are the subnets that the node held before, best first. `on_change` is called on the event loop with all
    held leases whenever a subnet comes, goes, or its published addresses change (not at mere renewals). `on_loss` is
    called with what the operator should know when another node has taken a lease. `clock` gives seconds since the
    epoch, by default the API server's; `elapsed` seconds that nobody sets.
    """

    def __init__(
        self,
        api: ApiClient,
        network: NetworkConfig,
        node: str,
        previous: tuple[str, ...] = (),
        *,
        on_change: Callable[[tuple[SubnetLease, ...]], None],
        on_loss: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] | None = None,
        elapsed: Callable[[], float] = since_boot_s,
        rng: random.Random | None = None,
    ) -> None:
        self._store = LeaseStore(api, network.lease_namespace)
        self._network = network
        self._node = node
        self._previous = tuple(text for text in previous if _is_network(text))
        self._on_change = on_change
        self._on_loss = on_loss
        self._clock = clock or api.clock.now_s
        self._elapsed = elapsed
        self._rng = rng or random.Random()  # noqa: S311 - spreads nodes, guards nothing
        self._pools = rules.pools_by_family(network)
        self._held: dict[int, _Held] = {}
        self._doubted: set[int] = set()
        """Families whose lease must be read again before anything else is done with it."""
        self._missing: set[int] = set()
        """Of these, where the lease was seen gone, or with another holder."""
        self._notes: dict[str, Mapping[str, str]] = {}
        self._told: tuple[tuple[str, ...], ...] = ()
        self._problem = "no subnet lease was acquired yet"
        self._exhausted = False
        self._lost = False
        self._kick = asyncio.Event()
        cap_s = min(BACKOFF_CAP_S, network.lease_duration_s / 6)
        self._backoff = Backoff(cap_s, rng=self._rng.random)

    @property
    def held(self) -> tuple[SubnetLease, ...]:
        """The leases that this node holds, IPv4 first."""
        return tuple(self._held[family].lease for family in sorted(self._held))

    @property
    def allocatable(self) -> tuple[str, ...]:
        """Subnets that new pods may get addresses from: nobody else can have taken them over by now."""
        now_s, elapsed_s, grace_s = self._clock(), self._elapsed(), self._network.takeover_grace_s
        return tuple(
            held.lease.subnet
            for family, held in sorted(self._held.items())
            if family not in self._missing
            and elapsed_s < held.until_s
            and rules.may_allocate(held.lease, now_s, grace_s)
        )

    @property
    def problem(self) -> str:
        """Why this node is not ready to give out addresses; empty: it is."""
        missing = [f"IPv{family}" for family in sorted(self._pools) if family not in self._held]
        if missing:
            return f"no subnet lease for {' and '.join(missing)}: {self._problem}"
        allocatable = self.allocatable
        stale = [lease.subnet for lease in self.held if lease.subnet not in allocatable]
        if not stale:
            return ""
        why = "is gone or another's" if self._missing else "has expired"
        return f"lease of {', '.join(stale)} {why}: {self._problem or 'it is being read again'}"

    @property
    def reason(self) -> str:
        """What kind of `problem` there is, in CamelCase; empty: none."""
        if not self.problem:
            return ""
        if len(self._held) == len(self._pools):
            return EXPIRED
        return EXHAUSTED if self._exhausted else LOST if self._lost else NONE_YET

    def advertise(self, subnet: str, *, backend: str, vtep_mac: str, public_ip: str) -> None:
        """Publish on the subnet's lease how peers reach this node: written soon, and again when others change it."""
        notes = leases.notes(backend, vtep_mac, public_ip)
        if self._notes.get(subnet) != notes:
            self._notes[subnet] = notes
            self._kick.set()

    def observe(self, change: Change) -> None:
        """Take note of a change that the watch delivered. A lease in doubt is read again before anything follows."""
        match change:
            case Upserted(Kind.LEASE, SubnetLease() as lease):
                if self._is_contested(lease):
                    self._doubt(lease.key, missing=lease.holder != self._node)
                if not lease.holder:
                    self._seek()
            case Removed(Kind.LEASE, key) | Undecodable(Kind.LEASE, key):
                self._doubt(key, missing=True)
                self._seek()
            case Upserted(Kind.NODE, Node(key=key)) if key.name == self._node and self._problem:
                self._kick.set()

    async def run(self) -> Never:
        """Acquire what is missing and keep it until cancelled. No failure of the API server ends it."""
        while True:
            self._kick.clear()
            try:
                await self._settle()
            except (ApiError, Unreachable, DecodeError, _Waiting) as error:
                pause_s = self._failed(error)
            else:
                self._settled()
                pause_s = self._until_due_s()
            try:
                await asyncio.wait_for(self._kick.wait(), pause_s)
            except TimeoutError:
                continue

    def _is_contested(self, lease: SubnetLease) -> bool:
        """The watch shows another holder on a lease of ours, or other addresses than we published."""
        mine = next((held.lease for held in self._held.values() if held.lease.key == lease.key), None)
        if mine is None or lease.resource_version == mine.resource_version:
            return False
        return lease.holder != self._node or _published(lease) != _published(mine)

    def _doubt(self, key: Key, *, missing: bool) -> None:
        for family, held in self._held.items():
            if held.lease.key == key:
                self._doubted.add(family)
                if missing:
                    self._missing.add(family)
                self._kick.set()

    def _seek(self) -> None:
        """A subnet may have come free."""
        if len(self._held) < len(self._pools):
            self._kick.set()

    def _failed(self, error: NetagentError) -> float:
        pause_s = self._backoff.next_s(error.retry_after_s if isinstance(error, ApiError) else 0.0)
        self._exhausted = isinstance(error, _Exhausted)
        if str(error) != self._problem:
            self._problem = str(error)
            kept = ", ".join(lease.subnet for lease in self.held) or "no subnet"
            log.warning("subnet lease: %s This node holds %s; netagent tries again.", error, kept)
        return pause_s

    def _settled(self) -> None:
        self._backoff.reset()
        if self._problem:
            log.info("subnet lease: this node holds %s.", ", ".join(lease.subnet for lease in self.held))
            self._problem = ""
        self._exhausted = self._lost = False

    def _until_due_s(self) -> float:
        now_s = self._clock()
        due = [rules.next_renewal_s(held.lease) - now_s for held in self._held.values()]
        return max(0.01, min([LOOK_S, *due]))

    async def _settle(self) -> None:
        """Bring every family in order. One family's failure does not keep the others from their turn."""
        failure: NetagentError | None = None
        for family in sorted(self._pools):
            try:
                if family in self._held:
                    await self._tend(family)
                if family not in self._held:
                    await self._acquire(family)
            except (ApiError, Unreachable, DecodeError, _Waiting) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _tend(self, family: int) -> None:
        """Renew and publish the lease where that is due; find out what became of it where that is in doubt."""
        for _ in range(ATTEMPTS):
            try:
                if family in self._doubted and not await self._confirm(family):
                    return
                held = self._held[family]
                if not self._write_is_due(held.lease):
                    return
                await self._write(family, held.lease.subnet, held.stored)
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                self._doubted.add(family)
                self._missing.add(family)
        raise _Waiting(f"the lease of {self._held[family].lease.subnet} is being changed by others all the time.")

    async def _confirm(self, family: int) -> bool:
        """Read the lease again and mend it. False: another node holds it and ours is lost."""
        subnet = self._held[family].lease.subnet
        stored = await self._store.get(subnet)
        if stored is None:
            log.warning("lease of %s was deleted; netagent creates it again.", subnet)
            if other := await self._create(family, subnet):
                self._lose(family, other.holder)
                return False
        elif stored.holder != self._node and (stored.holder or stored.reservation):
            self._lose(family, stored.holder)
            return False
        elif stored.holder == self._node and stored.lease is not None:
            self._hold(family, stored.lease, stored)
        else:
            await self._write(family, subnet, stored)
        return True

    def _lose(self, family: int, holder: str) -> None:
        subnet, holder = self._held.pop(family).lease.subnet, holder or "nobody (it is reserved)"
        self._doubted.discard(family)
        self._missing.discard(family)
        self._previous = tuple(text for text in self._previous if text != subnet)
        self._lost = True
        self._problem = f"the lease of {subnet} was lost to {holder}"
        text = (
            f"The lease of {subnet} is held by {holder} now. Pods here with addresses of it keep them: they go on "
            "within this node and to the outside, but other nodes send to the new holder. New pods get addresses of "
            "another subnet. Delete the old pods, or drain this node."
        )
        log.error("%s", text)
        self._tell()
        self._on_loss(text)

    async def _acquire(self, family: int) -> None:
        """Hold a subnet of the family when this returns. Raises _Waiting when there is none to be had now."""
        seen = await self._store.all()
        plan = rules.Plan(
            node=self._node,
            pools=self._pools[family],
            previous=self._previous,
            reserved=(*self._network.reserved, *(lease.subnet for lease in seen.unreadable)),
            grace_s=self._network.takeover_grace_s,
        )
        refused: set[str] = set()
        for _ in range(ATTEMPTS):
            action = rules.choose(plan, seen.leases, self._clock(), refused=refused, pick=self._rng.randrange)
            match action:
                case rules.Exhausted(problem):
                    raise _Exhausted(
                        f"{problem}. No pod starts here until a lease is given up. Add a pool to network.pools of all "
                        f"nodes, or delete leases of nodes that are gone."
                    )
                case rules.Create(subnet):
                    if await self._try_create(family, subnet):
                        return
                    refused.add(subnet)
                case rules.Keep(lease):
                    if not await self._gives_way(lease, seen) and await self._try_replace(family, lease):
                        return
                    seen = await self._store.all()
                case rules.TakeOver(lease):
                    if await self._try_replace(family, lease):
                        log.warning("lease of %s was left by %s and is taken over.", lease.subnet, lease.holder)
                        return
                    refused.add(lease.subnet)
        raise _Waiting("other nodes were faster every time.")

    async def _try_create(self, family: int, subnet: str) -> bool:
        try:
            return await self._create(family, subnet) is None
        except ApiError as error:
            if error.already_exists:
                return False
            raise

    async def _try_replace(self, family: int, lease: SubnetLease) -> bool:
        """Compare and swap: only what was judged is replaced."""
        stored = await self._store.get(lease.subnet)
        if stored is None or stored.lease is None or stored.lease.resource_version != lease.resource_version:
            return False
        try:
            await self._write(family, lease.subnet, stored)
        except ApiError as error:
            if error.conflict or error.not_found:
                return False
            raise
        return True

    async def _create(self, family: int, subnet: str) -> SubnetLease | None:
        """Hold the subnet, unless a lease of another length shares addresses with it: then that lease.

        Whoever lists after having created sees the other one, or is seen by it: never do both go on.
        """
        tenant = await self._tenant()
        body = leases.body(subnet, self._store.namespace, tenant, self._clock(), self._notes.get(subnet))
        stored = await self._store.create(body)
        seen = await self._store.all()
        if stored.lease is not None and await self._gives_way(stored.lease, seen):
            return rules.overlapped(subnet, self._node, _all(seen))
        self._adopt(family, stored)
        return None

    async def _gives_way(self, lease: SubnetLease, seen: Seen) -> bool:
        """Delete a lease of ours that shares addresses with another node's."""
        other = rules.overlapped(lease.subnet, self._node, _all(seen))
        if other is not None:
            log.warning("lease of %s overlaps %s of %s and is deleted again.", lease.subnet, other.subnet, other.holder)
            await self._store.delete(lease)
        return other is not None

    async def _write(self, family: int, subnet: str, current: Stored) -> None:
        tenant = await self._tenant()
        body = leases.renewed(current.body, subnet, tenant, self._clock(), self._notes.get(subnet))
        self._adopt(family, await self._store.replace(body))

    async def _tenant(self) -> Tenant:
        """Who we are, with the uid that the Node has now: a lease owned by an earlier Node would be collected."""
        uid = await self._store.node_uid(self._node)
        if uid is None:
            raise _Waiting(f"Node {self._node} does not exist yet; the lease must belong to it.")
        return Tenant(self._node, uid, self._network.lease_duration_s)

    def _adopt(self, family: int, stored: Stored) -> None:
        if stored.lease is None:
            raise _Waiting(f"the API server stored {stored.body['metadata']['name']} in a way that cannot be read.")
        self._hold(family, stored.lease, stored)

    def _hold(self, family: int, lease: SubnetLease, stored: Stored) -> None:
        left_s = rules.allocatable_until_s(lease, self._network.takeover_grace_s) - self._clock()
        self._held[family] = _Held(lease, stored, self._elapsed() + left_s)
        self._doubted.discard(family)
        self._missing.discard(family)
        self._previous = (lease.subnet, *(text for text in self._previous if text != lease.subnet))
        self._tell()

    def _tell(self) -> None:
        now = tuple((lease.subnet, *_published(lease)) for lease in self.held)
        if now != self._told:
            self._told = now
            self._on_change(self.held)

    def _write_is_due(self, lease: SubnetLease) -> bool:
        wanted = self._notes.get(lease.subnet)
        there = leases.notes(*_published(lease))
        return rules.renewal_due(lease, self._clock()) or wanted not in (None, there)


def _all(seen: Seen) -> Iterable[SubnetLease]:
    return (*seen.leases, *seen.unreadable)


def _published(lease: SubnetLease) -> tuple[str, str, str]:
    return lease.backend, lease.vtep_mac, lease.public_ip


def _is_network(text: str) -> bool:
    try:
        return str(rules.parse(text)) == text
    except ValueError:
        return False
