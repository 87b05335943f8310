"""The state of one agent on one page: out of what its HTTP answers, into text.

The structs hold what is shown of /readyz, /debug/state and /metrics; whatever else is there is not read, so that agents
of other versions can be asked too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from netagent.printable import one_line

SHOWN = 20
"""Rows of one kind in text; JSON has all."""


class AgentState(Struct, frozen=True, kw_only=True):
    """Section `agent`."""

    version: str = ""
    node: str = ""
    started_s: float = 0.0
    now_s: float = 0.0
    not_ready: dict[str, str] = {}
    generation: int | None = None
    """None: nothing is in the kernel yet."""
    objects: dict[str, int] = {}


class Watch(Struct, frozen=True, kw_only=True):
    """Section `watches`: one kind of object."""

    kind: str
    listed: bool = False
    connected: bool = False
    objects: int = 0
    unreadable: int = 0
    last_error: str = ""


class Lease(Struct, frozen=True, kw_only=True):
    """Sections `leases` and `peers`: a subnet of a node."""

    subnet: str
    holder: str = ""
    backend: str = ""
    public_ip: str = ""
    vtep_mac: str = ""


class Network(Struct, frozen=True, kw_only=True):
    """Section `pod_network`."""

    interface: str = ""
    public_ips: tuple[str, ...] = ()
    mtu: int = 0
    peers: int = 0
    repairs: int = 0
    problems: tuple[str, ...] = ()


class Pod(Struct, frozen=True, kw_only=True):
    """Section `endpoints`: a pod of this node."""

    pod: str
    ips: tuple[str, ...] = ()
    host_ifname: str = ""
    known: bool = False
    """The API shows it; one that it does not show is closed in both directions."""
    chains: tuple[str, ...] = ()


class Policies(Struct, frozen=True, kw_only=True):
    """Section `policies`."""

    problems: dict[str, tuple[str, ...]] = {}
    undecodable: dict[str, str] = {}


class Transaction(Struct, frozen=True, kw_only=True):
    """Section `transactions`."""

    at_s: float = 0.0
    duration_s: float = 0.0
    commands: int = 0
    whole: bool = False
    elements_only: bool = False
    error: str = ""
    cause: str = ""
    causes: tuple[str, ...] = ()
    latency_s: float | None = None


class State(Struct, frozen=True, kw_only=True):
    """What is read of /debug/state."""

    agent: AgentState = AgentState()
    watches: list[Watch] = []
    leases: list[Lease] = []
    peers: list[Lease] = []
    pod_network: Network = Network()
    endpoints: list[Pod] = []
    policies: Policies = Policies()
    transactions: list[Transaction] = []


class Status(Struct, frozen=True, kw_only=True):
    """One agent."""

    node: str
    version: str
    ready: bool
    parts: dict[str, str]
    """Part -> why it is not ready; "" where it is."""
    remarks: dict[str, str]
    """Subject -> what is wrong with it though the agent does its work."""
    uptime_s: float | None
    generation: int | None
    objects: dict[str, int]
    watches: list[Watch]
    leases: list[Lease]
    network: Network | None
    peers: list[Lease]
    pods: list[Pod]
    policies: Policies
    last_transaction: Transaction | None
    drops: dict[str, int] | None
    """Reason -> packets since the table was made; None: not known."""
    not_answered: dict[str, str]
    """What was asked in vain -> why. What it would have told is empty."""


def status(
    state: State | None,
    *,
    parts: Mapping[str, str] | None,
    remarks: Mapping[str, str],
    drops: Mapping[str, int] | None,
    not_answered: Mapping[str, str],
) -> Status:
    """Of what was answered; None: it was not."""
    known = state or State()
    agent = known.agent
    if parts is None:
        parts = agent.not_ready
    return Status(
        node=agent.node,
        version=agent.version,
        ready=not any(parts.values()),
        parts=dict(parts),
        remarks=dict(remarks),
        uptime_s=max(0.0, agent.now_s - agent.started_s) if agent.started_s and agent.now_s else None,
        generation=agent.generation,
        objects=agent.objects,
        watches=known.watches,
        leases=known.leases,
        network=known.pod_network if known.pod_network.interface or known.pod_network.problems else None,
        peers=[lease for lease in known.peers if lease.holder and lease.holder != agent.node],
        pods=known.endpoints,
        policies=known.policies,
        last_transaction=known.transactions[-1] if known.transactions else None,
        drops=dict(drops) if drops is not None else None,
        not_answered=dict(not_answered),
    )


def text(one: Status) -> str:
    """For people."""
    return "".join(f"{one_line(line)}\n" for line in _lines(one))


def _lines(one: Status) -> Iterator[str]:
    up = f", up {duration(one.uptime_s)}" if one.uptime_s is not None else ""
    yield f"node {one.node or 'unknown'}: {'ready' if one.ready else 'NOT READY'}, netagent {one.version}{up}"
    for name, problem in one.parts.items():
        yield f"  {'-' if problem else '+'} {name}{f': {problem}' if problem else ''}"
    for name, remark in one.remarks.items():
        yield f"  ! {name}: {remark}"
    for name, reason in one.not_answered.items():
        yield f"  ? {name}: {reason}"
    yield from _network(one)
    if one.objects:
        yield "known     " + ", ".join(f"{number} {kind}" for kind, number in one.objects.items())
    for watch in one.watches:
        if not watch.connected or watch.unreadable:
            yield f"  ! watch of {watch.kind}: {_watch(watch)}"
    yield from _policy(one)
    yield from _rows(f"pods      {len(one.pods)} on this node", map(_pod, one.pods))


def _network(one: Status) -> Iterator[str]:
    if one.network is not None:
        network = one.network
        yield f"network   {network.interface} {', '.join(network.public_ips)}, MTU {network.mtu}"
        yield from (f"  ! {problem}" for problem in network.problems)
    if one.leases:
        yield "subnets   " + ", ".join(f"{lease.subnet} ({lease.backend})" for lease in one.leases)
    if one.network is not None:
        reached = f"{one.network.peers} of {len(one.peers)} subnets of other nodes are reachable"
        yield from _rows(f"peers     {reached}", map(_peer, one.peers))


def _policy(one: Status) -> Iterator[str]:
    if one.generation is not None:
        yield f"policy    generation {one.generation}, {_transaction(one.last_transaction)}"
    for name, problems in one.policies.problems.items():
        yield f"  ! {name}: {'; '.join(problems)}"
    for name, problem in one.policies.undecodable.items():
        yield f"  ! {name} cannot be read: {problem}"
    if one.drops is not None:
        found = [f"{packets} {reason}" for reason, packets in one.drops.items() if packets]
        yield "dropped   " + (", ".join(found) or "nothing") + " (packets since the table was made)"


def _watch(watch: Watch) -> str:
    parts = [] if watch.connected else [f"not connected{f': {watch.last_error}' if watch.last_error else ''}"]
    return ", ".join([*parts, *([f"{watch.unreadable} unreadable"] if watch.unreadable else [])])


def _transaction(last: Transaction | None) -> str:
    if last is None:
        return "no transaction yet"
    when = datetime.fromtimestamp(last.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    what = "whole table" if last.whole else "elements" if last.elements_only else "change"
    why = last.cause or ", ".join(last.causes[:2])
    outcome = f"FAILED: {last.error}" if last.error else f"{last.duration_s * 1000:.1f} ms"
    return f"last transaction {when}: {what}, {outcome}{f' ({why})' if why else ''}"


def _peer(lease: Lease) -> Sequence[str]:
    return lease.holder, lease.subnet, lease.backend, lease.public_ip or "no address yet"


def _pod(pod: Pod) -> Sequence[str]:
    policy = ", ".join(pod.chains) or "not isolated" if pod.known else "closed: the API does not show it"
    return pod.pod, ", ".join(pod.ips), pod.host_ifname, policy


def _rows(title: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A title and aligned columns; the first rows of many."""
    found = list(rows)
    yield title
    shown = found[:SHOWN]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  " + "  ".join(map(str.ljust, row, widths)).rstrip()
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more (--output json has all)"


def duration(seconds: float) -> str:
    """3725 -> 1h2m."""
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m{int(seconds) % 60}s" if minutes else f"{int(seconds)}s"
