"""NetworkPolicy objects given their meaning: who is isolated in which direction, and what each rule admits.

Source: the field documentation of networking.k8s.io/v1. What cannot be honoured admits nothing and is returned as a
problem, so that a broken policy fails closed and costs only its own pods.

The model carries tiers and actions from the start; NetworkPolicy fills the middle tier with Allow rules.
"""

import re
from enum import IntEnum, StrEnum

from msgspec import Struct

from netagent.core.addresses import parse_network
from netagent.core.policy.selectors import EVERYTHING, Selector, compile_selector
from netagent.records import IPBlock, Key, NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule

PROTOCOLS = ("TCP", "UDP", "SCTP")
LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


class Direction(StrEnum):
    """Seen from the pod that the policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


POLICY_TYPES = {"Ingress": (Direction.INGRESS,), "Egress": (Direction.EGRESS,)}


class Tier(IntEnum):
    """Ascending order of evaluation."""

    ADMIN = 0
    NETWORK = 1
    BASELINE = 2


class Action(StrEnum):
    """What a rule does to the traffic it matches. Only the Admin and Baseline tiers have others than Allow."""

    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"  # noqa: S105


class PodPeer(Struct, frozen=True, gc=False, order=True):
    """Pods by label: in one namespace by name (`namespace`), or in all that `namespaces` selects."""

    namespace: str
    """"" where `namespaces` decides."""
    namespaces: Selector
    pods: Selector

    def __str__(self) -> str:
        where = f"ns {self.namespace}" if self.namespace else f"ns [{self.namespaces}]"
        return f"pods [{self.pods}] in {where}"


class BlockPeer(Struct, frozen=True, gc=False, order=True):
    """Addresses of a network without those of the excepts; canonical CIDRs of one family."""

    cidr: str
    excepts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.cidr} except {', '.join(self.excepts)}" if self.excepts else self.cidr


Peer = PodPeer | BlockPeer


class PortRange(Struct, frozen=True, gc=False, order=True):
    """Ports first to last, both included, of a protocol."""

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        if (self.first, self.last) == (0, 65535):
            return self.protocol
        return f"{self.first if self.first == self.last else f'{self.first}-{self.last}'}/{self.protocol}"


class NamedPort(Struct, frozen=True, gc=False, order=True):
    """A port by the name that the destination pod declares for it."""

    protocol: str
    name: str

    def __str__(self) -> str:
        return f"{self.name}/{self.protocol}"


class Rule(Struct, frozen=True, gc=False):
    """Traffic with one of the peers on one of the ports. None: all of them; an empty set: none."""

    peers: frozenset[Peer] | None
    ports: frozenset[PortRange | NamedPort] | None
    action: Action = Action.ALLOW


class Policy(Struct, frozen=True, gc=False, kw_only=True):
    """One policy, understood."""

    key: Key
    tier: Tier = Tier.NETWORK
    selects: Selector
    """Pods of the policy's namespace."""
    rules: dict[Direction, tuple[Rule, ...]]
    """For each direction in which the policy isolates; a direction that is missing is not touched."""
    problems: tuple[str, ...] = ()


def compile_policy(source: NetworkPolicy) -> Policy:
    """The meaning of one NetworkPolicy."""
    selects, found = compile_selector(source.pod_selector)
    problems = [f"spec.podSelector: {text}; this policy admits nothing" for text in found]
    if source.problem:
        problems.append(source.problem)
    admits = not problems  # whom its rules were meant for is not known otherwise
    unknown = [text for text in source.policy_types if text not in POLICY_TYPES]
    if unknown:
        accepted = ", ".join(POLICY_TYPES)
        problems.append(f"spec.policyTypes: {', '.join(unknown)}: accepted are {accepted}; both are isolated")
    rules = {}
    for direction, section, peers_field in (
        (Direction.INGRESS, source.ingress, "from"),
        (Direction.EGRESS, source.egress, "to"),
    ):
        if direction in _directions(source):
            where = f"spec.{direction}"
            rules[direction] = tuple(
                _rule(source.key.namespace, rule, f"{where}[{index}]", peers_field, problems)
                for index, rule in enumerate(section if admits else ())
            )
    return Policy(key=source.key, selects=selects, rules=rules, problems=tuple(problems))


def _directions(source: NetworkPolicy) -> frozenset[Direction]:
    """policyTypes; without them, Ingress always and Egress where there is an egress rule.

    One that does not exist could mean any direction.
    """
    if not source.policy_types:
        return frozenset(Direction) if source.egress else frozenset((Direction.INGRESS,))
    return frozenset(direction for text in source.policy_types for direction in POLICY_TYPES.get(text, Direction))


def _rule(namespace: str, rule: PolicyRule, where: str, peers_field: str, problems: list[str]) -> Rule:
    peers: frozenset[Peer] | None = None
    if rule.peers:
        understood = (
            _peer(namespace, peer, f"{where}.{peers_field}[{index}]", problems) for index, peer in enumerate(rule.peers)
        )
        peers = frozenset(peer for peer in understood if peer is not None)
        if any(peer.unknown_fields for peer in rule.peers):
            peers = frozenset()  # what such a peer was meant to narrow is not known
    ports: frozenset[PortRange | NamedPort] | None = None
    if rule.ports:
        readable = (_port(port, f"{where}.ports[{index}]", problems) for index, port in enumerate(rule.ports))
        ports = frozenset(port for port in readable if port is not None)
    return Rule(peers, ports)


def _peer(namespace: str, peer: PolicyPeer, where: str, problems: list[str]) -> Peer | None:
    if peer.unknown_fields:
        problems.append(f"{where}: unknown fields {', '.join(peer.unknown_fields)}; this rule matches nothing")
        return None
    if peer.ip_block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            problems.append(f"{where}: ipBlock beside a selector; this peer matches nothing")
            return None
        return _block(peer.ip_block, where, problems)
    if peer.pod_selector is None and peer.namespace_selector is None:
        problems.append(f"{where}: empty; this peer matches nothing")
        return None
    everything: tuple[Selector, tuple[str, ...]] = (EVERYTHING, ())
    pods, bad_pods = compile_selector(peer.pod_selector) if peer.pod_selector is not None else everything

    namespaces, bad_namespaces = (
        compile_selector(peer.namespace_selector) if peer.namespace_selector is not None else everything
    )
    for problem in (*bad_pods, *bad_namespaces):
        problems.append(f"{where}: {problem}; this peer matches nothing")
    if bad_pods or bad_namespaces:
        return None
    return PodPeer("" if peer.namespace_selector is not None else namespace, namespaces, pods)


def _block(block: IPBlock, where: str, problems: list[str]) -> BlockPeer | None:
    try:
        network = parse_network(_decimal(block.cidr), strict=False)
        excepts = [parse_network(_decimal(text), strict=False) for text in block.excepts]
    except ValueError as error:
        problems.append(f"{where}.ipBlock: {error}; this peer matches nothing")
        return None
    same_family = sorted(str(item) for item in set(excepts) if item.version == network.version)
    return BlockPeer(str(network), tuple(same_family))


def _decimal(cidr: str) -> str:
    """Without leading zeros in an IPv4 network, as the API server reads it: `010.0.0.0/8` is 10.0.0.0/8."""
    return cidr if ":" in cidr else LEADING_ZEROS.sub("", cidr)


def _port(port: PolicyPort, where: str, problems: list[str]) -> PortRange | NamedPort | None:
    problem = ""
    if port.protocol not in PROTOCOLS:
        problem = f"protocol {port.protocol!r}: accepted are {', '.join(PROTOCOLS)}"
    elif port.end_port is not None and not isinstance(port.port, int):
        problem = f"endPort {port.end_port} needs a numeric port"
    elif isinstance(port.port, int):
        last = port.port if port.end_port is None else port.end_port
        if 1 <= port.port <= last <= 65535:
            return PortRange(port.protocol, port.port, last)
        problem = f"ports {port.port} to {last}: accepted are 1 to 65535, ascending"
    elif port.port is None:
        return PortRange(port.protocol, 0, 65535)
    elif port.port:
        return NamedPort(port.protocol, port.port)
    else:
        problem = "empty port name"
    problems.append(f"{where}: {problem}; this port matches nothing")
    return None
