"""One direction of a flow judged by the policies, and in words why a rule does not match.

The same model as the compiler's, asked for one flow instead of rendered for all. Whether a rule admits is by definition
that nothing is missing, so the words cannot differ from the verdict.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from netagent.core.policy.intervals import Range, holds
from netagent.core.policy.meaning import BlockPeer, Direction, NamedPort, Peer, PodPeer, Policy, PortRange, Rule
from netagent.core.policy.peersets import numbers_of, version_of
from netagent.core.policy.selectors import Selector, describe
from netagent.core.questions.parties import ICMP, Cluster, Party
from netagent.records import Pod

PORTS_NAMED = 6
"""Longest list of ports in one sentence."""


class Flow(Struct, frozen=True, gc=False, kw_only=True):
    """A connection from its first packet on, behind any Service."""

    source: Party
    destination: Party
    protocol: str
    port: int | None

    def subject(self, direction: Direction) -> Party:
        """The end whose policies judge the direction."""
        return self.source if direction is Direction.EGRESS else self.destination

    def peer(self, direction: Direction) -> Party:
        """The other end."""
        return self.destination if direction is Direction.EGRESS else self.source

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" if self.port is not None else self.protocol


def exempt(cluster: Cluster, flow: Flow) -> str:
    """Why no policy judges the flow at all; "" where policies do."""
    source, destination = flow.source, flow.destination
    if source.ip == destination.ip:
        return "a pod always reaches itself"
    for end, other in ((source, destination), (destination, source)):
        hosted = other.subject is not None and end.node == other.subject.node
        if end.node and (hosted or (other.local and end.node == cluster.node_name)):
            return f"traffic between node {end.node} and its own pods is always allowed"
    return ""


def isolating(cluster: Cluster, pod: Pod, direction: Direction) -> list[Policy]:
    """The policies that isolate the pod in the direction."""
    return [
        policy
        for policy in cluster.policies.get(pod.key.namespace, ())
        if direction in policy.rules and policy.selects.matches(pod.labels)
    ]


def permits(cluster: Cluster, flow: Flow, direction: Direction) -> bool:
    """Whether the direction lets the flow through; `exempt` was asked before."""
    subject = flow.subject(direction)
    if subject.unknown:
        return False
    if subject.subject is None:
        return True
    policies = isolating(cluster, subject.subject, direction)
    return not policies or any(
        admits(cluster, rule, flow, direction) for policy in policies for rule in policy.rules[direction]
    )


def admits(cluster: Cluster, rule: Rule, flow: Flow, direction: Direction) -> bool:
    """Whether one rule admits the flow."""
    if next(port_missing(cluster, rule, flow, direction), None) is not None:
        return False
    return admits_peer(cluster, rule, flow.peer(direction))


def admits_peer(cluster: Cluster, rule: Rule, party: Party) -> bool:
    """Whether the rule is for the party, on whichever ports."""
    if rule.peers is None:
        return True
    return any(peer_holds(cluster, peer, party) for peer in rule.peers)


def peer_holds(cluster: Cluster, peer: Peer, party: Party) -> bool:
    """Whether the peer holds the party."""
    return next(peer_missing(cluster, peer, party), None) is None


def missing(cluster: Cluster, rule: Rule, flow: Flow, direction: Direction) -> tuple[str, ...]:
    """What keeps the rule from admitting the flow, by its closest peer; empty: it admits."""
    found: tuple[str, ...] = ()
    if rule.peers is not None:
        party = flow.peer(direction)
        by_peer = [tuple(peer_missing(cluster, peer, party)) for peer in sorted(rule.peers, key=str)]
        found = min(by_peer, key=len, default=("none of its peers could be understood",))
    return (*found, *port_missing(cluster, rule, flow, direction))


# Peers


def peer_missing(cluster: Cluster, peer: Peer, party: Party) -> Iterator[str]:
    """What keeps the peer from holding the party."""
    if isinstance(peer, BlockPeer):
        yield from _block_missing(peer, party)
    else:
        yield from _pod_missing(cluster, peer, party)


def _pod_missing(cluster: Cluster, peer: PodPeer, party: Party) -> Iterator[str]:
    pod = party.owner
    if pod is None:
        yield f"{party.words or party.ip}, and the rule takes {peer}"
        return
    yield from _namespace_missing(cluster, peer, pod)
    yield from _labels_missing(peer.pods, pod.labels, f"pod {pod.key}")


def _namespace_missing(cluster: Cluster, peer: PodPeer, pod: Pod) -> Iterator[str]:
    name = pod.key.namespace
    if peer.namespace:
        if name != peer.namespace:
            yield f"pod {pod.key} is in ns {name}, the rule takes ns {peer.namespace}"
        return
    namespace = cluster.namespaces.get(name)
    if namespace is None:
        yield f"ns {name} is not in this agent's view"
    else:
        yield from _labels_missing(peer.namespaces, namespace.labels, f"ns {name}")


def _labels_missing(selector: Selector, labels: Mapping[str, str], where: str) -> Iterator[str]:
    for requirement in selector.unmet(labels):
        value = labels.get(requirement.key)
        if requirement.operator in ("In", "Exists") and value is None:
            yield f"label {describe(requirement)} missing on {where}"
        else:
            yield f"label {describe(requirement)} wanted, {where} has {requirement.key}={value}"


def _block_missing(peer: BlockPeer, party: Party) -> Iterator[str]:
    address = party.counts_as or party.ip
    shown = f"{party.ip} (node {party.node}'s in the overlay, counts as {address})" if party.counts_as else address
    version = version_of(peer.cidr)
    if peer.cidr in ("0.0.0.0/0", "::/0") and not peer.excepts and version == version_of(party.ip):
        return
    if holds(peer, address):
        return
    if version != version_of(address):
        yield f"{shown} is IPv{version_of(address)}, {peer.cidr} is IPv{version}"
        return
    within = [text for text in peer.excepts if holds(BlockPeer(text, ()), address)]
    if within and holds(BlockPeer(peer.cidr, ()), address):
        yield f"{shown} is in except {', '.join(within)} of {peer.cidr}"
    else:
        yield f"{shown} is not in {peer.cidr}"


# Ports


def port_missing(cluster: Cluster, rule: Rule, flow: Flow, direction: Direction) -> Iterator[str]:
    """What keeps the rule's ports from holding the flow's: nothing, or one sentence."""
    if rule.ports is None:
        return
    target = named_target(cluster, flow.destination, direction)
    if flow.protocol != ICMP and any(_port_holds(port, flow, target) for port in rule.ports):
        return
    if not rule.ports:
        yield "none of its ports could be understood"
    elif flow.protocol == ICMP:
        yield f"ICMP has no port, and the rule is for {_listed(rule.ports)}"
    else:
        named = [port for port in rule.ports if isinstance(port, NamedPort) and port.protocol == flow.protocol]
        reasons = [_name_missing(port, flow, target) for port in sorted(named)]
        ranges = [port for port in rule.ports if isinstance(port, PortRange)]
        if ranges or not reasons:
            reasons.insert(0, f"port {flow} not in {_listed(rule.ports)}")
        yield "; ".join(reasons)


def named_target(cluster: Cluster, destination: Party, direction: Direction) -> Pod | None:
    """The pod whose declarations resolve the named ports of a rule."""
    if direction is Direction.INGRESS:
        return destination.subject
    pod = destination.owner
    return pod if pod is not None and pod.key.namespace in cluster.namespaces else None


def port_ranges(port: PortRange | NamedPort, target: Pod | None) -> tuple[Range, ...]:
    """The numbers of its protocol that a port of a rule stands for; both ends included."""
    if isinstance(port, PortRange):
        return ((port.first, port.last),)
    return tuple((number, number) for number in numbers_of(port, target.ports)) if target is not None else ()


def _port_holds(port: PortRange | NamedPort, flow: Flow, target: Pod | None) -> bool:
    if port.protocol != flow.protocol or flow.port is None:
        return False
    return any(first <= flow.port <= last for first, last in port_ranges(port, target))


def _name_missing(port: NamedPort, flow: Flow, target: Pod | None) -> str:
    if target is None:
        return f"named port {port} needs a pod as destination, {flow.destination.ip} is none"
    numbers = numbers_of(port, target.ports)
    if not numbers:
        return f"named port {port} is not declared by pod {target.key}"
    return f"named port {port} is {', '.join(map(str, numbers))} on pod {target.key}, not {flow.port}"


def _listed(ports: frozenset[PortRange | NamedPort]) -> str:
    texts = sorted(map(str, ports))
    more = len(texts) - PORTS_NAMED
    return ", ".join(texts[:PORTS_NAMED]) + (f" and {more} more" if more > 0 else "")
