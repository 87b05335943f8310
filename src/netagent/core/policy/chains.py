"""The rules of one policy class: what its policies together admit in one direction.

Rules judge by the conntrack tuple, not by the packet: `ct original saddr` is the client, `ct reply saddr` and
`ct reply proto-src` are the server's address and port behind any Service. So one chain judges packets of both
directions of a flow, and a stream that only flows back is judged as what it is: a reply.

All rules of the class with the same ports become one rule per IP version over the union of their peers, so the length
of a chain is the number of distinct port lists, not of policies.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from netagent.core.policy.intervals import block_ranges, range_text, united
from netagent.core.policy.meaning import BlockPeer, Direction, NamedPort, Peer, PodPeer, Policy, PortRange
from netagent.core.policy.names import content_name
from netagent.core.policy.peersets import ADDRESS_TYPE, ALL_PODS, SetKey
from netagent.core.policy.ruleset import ChainDecl, SetDecl

Ports = frozenset[PortRange] | NamedPort | None
"""What rules are merged by: numeric ports, one named port of the destination, or every port and protocol."""

PEER_ADDRESS = {
    (Direction.INGRESS, 4): "ct original ip saddr",
    (Direction.INGRESS, 6): "ct original ip6 saddr",
    (Direction.EGRESS, 4): "ct reply ip saddr",
    (Direction.EGRESS, 6): "ct reply ip6 saddr",
}
EVERY_ADDRESS = {4: (0, 2**32 - 1), 6: (0, 2**128 - 1)}
ADMITTED = {Direction.EGRESS: "goto judge_ingress", Direction.INGRESS: "goto admitted"}
"""On to what comes after. A class never returns: who comes out at its end met a chain without rules."""


class ConstantSet(Struct, frozen=True, gc=False):
    """A set whose elements never change, named by them."""

    name: str
    decl: SetDecl
    elements: tuple[str, ...]


class ClassPlan(Struct, frozen=True, gc=False):
    """A chain and the sets that its rules name."""

    chain: ChainDecl
    peer_sets: tuple[SetKey, ...]
    constants: tuple[ConstantSet, ...]


class _Group(Struct, gc=False):
    """Rules with the same ports: the union of their peers, or everybody."""

    everybody: bool = False
    peers: frozenset[Peer] = frozenset()


def plan_class(
    direction: Direction,
    policies: Iterable[Policy],
    resolved: Mapping[NamedPort, tuple[int, ...]],
    last: tuple[str, ...],
) -> ClassPlan:
    """The chain of the pods that exactly these policies isolate in this direction.

    `resolved` gives the numbers that these pods declare for the named ports of ingress rules; `last` are the rules
    for what none of theirs admits.
    """
    builder = _Builder(direction)
    groups = _groups(direction, policies, resolved)
    for ports in sorted(groups, key=_group_order):
        builder.add(ports, groups[ports])
        if ports is None and groups[ports].everybody:
            return ClassPlan(ChainDecl((ADMITTED[direction],)), (), ())
    return ClassPlan(ChainDecl((*builder.rules, *last)), tuple(builder.peer_sets), tuple(builder.constants))


def named_ports(direction: Direction, policies: Iterable[Policy]) -> frozenset[NamedPort]:
    """Named ports in the rules of a direction."""
    return frozenset(
        port
        for policy in policies
        for rule in policy.rules.get(direction, ())
        for port in rule.ports or ()
        if isinstance(port, NamedPort)
    )


def _groups(
    direction: Direction, policies: Iterable[Policy], resolved: Mapping[NamedPort, tuple[int, ...]]
) -> dict[Ports, _Group]:
    groups: dict[Ports, _Group] = {}
    for policy in policies:
        for rule in policy.rules.get(direction, ()):
            for ports in _port_groups(direction, rule.ports, resolved):
                group = groups.setdefault(ports, _Group())
                group.everybody = group.everybody or rule.peers is None
                group.peers |= rule.peers or frozenset()
    return {ports: group for ports, group in groups.items() if group.everybody or group.peers}


def _port_groups(
    direction: Direction,
    ports: frozenset[PortRange | NamedPort] | None,
    resolved: Mapping[NamedPort, tuple[int, ...]],
) -> Iterator[Ports]:
    if ports is None:
        yield None
        return
    numeric = {port for port in ports if isinstance(port, PortRange)}
    for port in ports:
        if isinstance(port, NamedPort):
            if direction is Direction.EGRESS:
                yield port
            else:
                numeric.update(PortRange(port.protocol, number, number) for number in resolved.get(port, ()))
    if numeric:
        yield frozenset(numeric)


def _group_order(ports: Ports) -> tuple[int, str]:
    if ports is None:
        return 0, ""
    if isinstance(ports, NamedPort):
        return 2, str(ports)
    return 1, ",".join(sorted(map(str, ports)))


class _Builder:
    """Collects the rules of a chain and the sets they need."""

    def __init__(self, direction: Direction) -> None:
        self.rules: list[str] = []
        self.peer_sets: dict[SetKey, None] = {}
        self.constants: dict[ConstantSet, None] = {}
        self._direction = direction
        self._admitted = ADMITTED[direction]

    def add(self, ports: Ports, group: _Group) -> None:
        if isinstance(ports, NamedPort):
            peers = frozenset((ALL_PODS,)) if group.everybody else group.peers
            self.rules += (self._named(ports, peers, version) for version in (4, 6))
            return
        addresses = [""] if group.everybody else list(self._addresses(group.peers))
        for before, after in self._ports(ports):
            for address in addresses:
                self.rules.append(" ".join(part for part in (before, address, after, self._admitted) if part))

    def _named(self, port: NamedPort, peers: frozenset[Peer], version: int) -> str:
        name = self._peer_set(SetKey(peers, version, port))
        address = PEER_ADDRESS[self._direction, version]
        return f"meta l4proto {port.protocol.lower()} {address} . ct reply proto-src @{name} {self._admitted}"

    def _addresses(self, peers: frozenset[Peer]) -> Iterator[str]:
        blocks = [peer for peer in peers if isinstance(peer, BlockPeer)]
        for version in (4, 6):
            address = PEER_ADDRESS[self._direction, version]
            ranges = block_ranges(blocks, version)
            if ranges == [EVERY_ADDRESS[version]]:
                yield f"meta nfproto ipv{version}"
                continue
            if ranges or any(isinstance(peer, PodPeer) for peer in peers):
                yield f"{address} @{self._peer_set(SetKey(peers, version))}"
            if ranges:
                elements = tuple(range_text(part, version) for part in ranges)
                name = self._constant(f"b{version}", ADDRESS_TYPE[version], elements)
                yield f"{address} @{name} {address} != @overlay{version}"

    def _ports(self, ports: frozenset[PortRange] | None) -> Iterator[tuple[str, str]]:
        """For each protocol, what to ask before the peers and what after them: a look into a set costs most."""
        if ports is None:
            yield "", ""
            return
        for protocol in sorted({port.protocol for port in ports}):
            ranges = united_ports(port for port in ports if port.protocol == protocol)
            match = f"meta l4proto {protocol.lower()}"
            if ranges == ["0-65535"]:
                yield match, ""
            elif len(ranges) == 1:
                yield f"{match} ct reply proto-src {ranges[0]}", ""
            else:
                yield match, f"ct reply proto-src @{self._constant('t', 'inet_service', tuple(ranges))}"

    def _peer_set(self, key: SetKey) -> str:
        self.peer_sets[key] = None
        return key.name

    def _constant(self, kind: str, type_: str, elements: tuple[str, ...]) -> str:
        flags = "interval" if any("-" in element for element in elements) else ""
        name = content_name(kind, elements, elements[0])
        self.constants[ConstantSet(name, SetDecl(type_, flags), elements)] = None
        return name


def united_ports(ports: Iterable[PortRange]) -> list[str]:
    """The ports as disjoint, ascending `n` or `n-m`."""
    ranges = united((port.first, port.last) for port in ports)
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
