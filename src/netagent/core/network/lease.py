"""Which subnet a node should hold: decisions about leases, without doing anything about them.

A family (4 or 6) gets one subnet. The order: a lease that is ours already, the subnet used before, a free subnet at
random (so that nodes that start together spread), a lease that expired long ago. Times are seconds since the epoch: a
lease is judged by its own renewTime, and the grace covers clocks that disagree.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Set
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.records import SubnetLease

Network = IPv4Network | IPv6Network

RENEWALS_PER_DURATION = 3
"""A lease is renewed at a third of its duration: two more attempts fit before it expires."""


class Pool(Struct, frozen=True):
    """Where subnets of one family are cut from."""

    network: Network
    subnet_len: int


class Plan(Struct, frozen=True):
    """What one node goes by when it chooses for one family."""

    node: str
    pools: tuple[Pool, ...]
    """In order of preference."""
    previous: tuple[str, ...] = ()
    """Subnets that the node used before, best first."""
    reserved: tuple[str, ...] = ()
    """Networks that no node may take anew."""
    grace_s: float = 0.0
    """An expired lease is left alone for this long."""


class Keep(Struct, frozen=True):
    """The lease is ours: go on with it."""

    lease: SubnetLease


class Create(Struct, frozen=True):
    """Nobody holds this subnet: create its lease."""

    subnet: str


class TakeOver(Struct, frozen=True):
    """The lease is nobody's any more: replace it as it is now, and only so."""

    lease: SubnetLease


class Exhausted(Struct, frozen=True):
    """There is nothing to take."""

    problem: str


Action = Keep | Create | TakeOver | Exhausted


def pools_by_family(config: NetworkConfig) -> dict[int, tuple[Pool, ...]]:
    """The configured pools of each family that has any."""
    found: dict[int, tuple[Pool, ...]] = {}
    for text in config.pools:
        network = parse(text)
        subnet_len = config.subnet_len if network.version == 4 else config.subnet_len_v6
        found[network.version] = (*found.get(network.version, ()), Pool(network, subnet_len))
    return found


def choose(
    plan: Plan,
    leases: Iterable[SubnetLease],
    now_s: float,
    *,
    refused: Set[str] = frozenset(),
    pick: Callable[[int], int],
) -> Action:
    """What to do for one family.

    `refused` are subnets that turned out to be taken although `leases` does not say so; `pick(n)` gives a number from
    0 to n - 1.
    """
    seen = [lease for lease in leases if any(_within(lease.subnet, pool) for pool in plan.pools)]
    mine = [lease for lease in seen if lease.holder == plan.node and lease.subnet not in refused]
    if mine:
        return Keep(min(mine, key=lambda lease: (_rank(lease.subnet, plan.previous), lease.subnet)))
    blocked = [parse(text) for text in (*(lease.subnet for lease in seen), *refused, *plan.reserved)]
    subnet = _previous(plan, blocked) or _free(plan, blocked, pick)
    if subnet is not None:
        return Create(subnet)
    left = [
        lease
        for lease in seen
        if available(lease, now_s, plan.grace_s) and lease.subnet not in refused and _takeable(lease.subnet, plan)
    ]
    if left:
        return TakeOver(left[pick(len(left))])
    return Exhausted(f"no free subnet in {', '.join(f'{p.network} (/{p.subnet_len} each)' for p in plan.pools)}")


def renewal_due(lease: SubnetLease, now_s: float) -> bool:
    """A third of the duration has passed since the last renewal. Never for a reservation."""
    return now_s >= next_renewal_s(lease)


def next_renewal_s(lease: SubnetLease) -> float:
    """When the lease should be renewed; infinite for a reservation."""
    if lease.duration_s is None:
        return float("inf")
    return (lease.renewed_s or 0.0) + lease.duration_s / RENEWALS_PER_DURATION


def expired(lease: SubnetLease, now_s: float) -> bool:
    """Its holder has not renewed it in time. A reservation, and a lease without renewTime, never expires."""
    return lease.duration_s is not None and lease.renewed_s is not None and now_s >= lease.renewed_s + lease.duration_s


def available(lease: SubnetLease, now_s: float, grace_s: float) -> bool:
    """Another node may take it: given up by its holder, or expired for longer than the grace. Never a reservation."""
    if lease.duration_s is None:
        return False
    return not lease.holder or expired(lease, now_s - grace_s)


def may_allocate(lease: SubnetLease, now_s: float, grace_s: float) -> bool:
    """The holder may give out addresses: nobody has taken the lease over yet, even with clocks half a grace apart."""
    return now_s < allocatable_until_s(lease, grace_s)


def allocatable_until_s(lease: SubnetLease, grace_s: float) -> float:
    """When the holder stops to give out addresses, half a grace before `available`; infinite for a reservation."""
    if lease.duration_s is None or lease.renewed_s is None:
        return float("inf")
    return lease.renewed_s + lease.duration_s + grace_s / 2


def overlapped(subnet: str, node: str, leases: Iterable[SubnetLease]) -> SubnetLease | None:
    """Another node's lease that shares addresses with this node's subnet.

    Names keep equal subnets apart, not those of different lengths, which nodes ask for while the configured length is
    being changed. Reservations do not count: the operator may put them into a subnet that is in use.
    """
    network = parse(subnet)
    others = (one for one in leases if one.subnet != subnet and one.holder != node and one.duration_s is not None)
    return next((one for one in others if _overlaps(network, (parse(one.subnet),))), None)


def abandoned(leases: Iterable[SubnetLease], nodes: Container[str]) -> list[SubnetLease]:
    """Leases whose holder has no Node. Reservations are the operator's and never among them."""
    return [lease for lease in leases if lease.holder and lease.duration_s is not None and lease.holder not in nodes]


@lru_cache(maxsize=1 << 14)
def parse(text: str) -> Network:
    """A canonical CIDR as a network; a view of thousands of leases is read again and again."""
    return ip_network(text)


def _within(subnet: str, pool: Pool) -> bool:
    network = parse(subnet)
    return network.version == pool.network.version and network.subnet_of(pool.network)  # type: ignore[arg-type]


def _takeable(subnet: str, plan: Plan) -> bool:
    """As the configuration would cut it today, and not reserved."""
    network = parse(subnet)
    fits = any(_within(subnet, pool) and network.prefixlen == pool.subnet_len for pool in plan.pools)
    return fits and not _overlaps(network, map(parse, plan.reserved))


def _rank(subnet: str, previous: tuple[str, ...]) -> int:
    return previous.index(subnet) if subnet in previous else len(previous)


def _previous(plan: Plan, blocked: list[Network]) -> str | None:
    usable = (text for text in plan.previous if _takeable(text, plan) and not _overlaps(parse(text), blocked))
    return next(usable, None)


def _overlaps(network: Network, others: Iterable[Network]) -> bool:
    return any(network.version == other.version and network.overlaps(other) for other in others)


def _free(plan: Plan, blocked: list[Network], pick: Callable[[int], int]) -> str | None:
    for pool in plan.pools:
        subnet = free_subnet(pool, blocked, pick)
        if subnet is not None:
            return subnet
    return None


def free_subnet(pool: Pool, blocked: Iterable[Network], pick: Callable[[int], int]) -> str | None:
    """A subnet of the pool that overlaps nothing blocked, each with the same chance; None: there is none.

    Counts in subnets, not in addresses, and never enumerates the pool: an IPv6 pool holds billions.
    """
    spans = list(_merged(sorted(_span(pool, network) for network in blocked if _overlaps(pool.network, (network,)))))
    free = (1 << pool.subnet_len - pool.network.prefixlen) - sum(last - first + 1 for first, last in spans)
    if free <= 0:
        return None
    index = pick(free)
    for first, last in spans:
        if index < first:
            break
        index += last - first + 1
    base = int(pool.network.network_address) + (index << pool.network.max_prefixlen - pool.subnet_len)
    return str(type(pool.network)((base, pool.subnet_len)))


def _span(pool: Pool, network: Network) -> tuple[int, int]:
    """First and last subnet of the pool, by number, that the network touches."""
    shift = network.max_prefixlen - pool.subnet_len
    base = int(pool.network.network_address)
    first = max(int(network.network_address), base)
    last = min(int(network.broadcast_address), int(pool.network.broadcast_address))
    return first - base >> shift, last - base >> shift


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted spans, those that overlap or touch made one."""
    current: tuple[int, int] | None = None
    for first, last in spans:
        if current is not None and first <= current[1] + 1:
            current = current[0], max(current[1], last)
            continue
        if current is not None:
            yield current
        current = first, last
    if current is not None:
        yield current
