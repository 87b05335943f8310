"""What the API's text says about one packet, read literally and slowly: the yardstick that the engine is compared with.

Nothing here is shared with the engine but the records. Sources: the field documentation of networking.k8s.io/v1 and the
concept page "Network Policies". Decisions where they leave room: host-network pods are their node; a pod and its own
node always reach each other; a pod always reaches itself; an address that several live pods claim is the youngest's;
what the API would refuse admits nothing.
"""

import ipaddress
from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from netagent.records import (
    IPBlock,
    Key,
    LabelSelector,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
)


class Cluster(Struct, kw_only=True):
    """Everything that decides verdicts, as the API server has it."""

    namespaces: dict[str, Namespace] = field(default_factory=dict)
    pods: dict[Key, Pod] = field(default_factory=dict)
    policies: dict[Key, NetworkPolicy] = field(default_factory=dict)
    node: str = ""
    """Only the agent of this node enforces; empty: those of all nodes do."""
    node_ips: frozenset[str] = frozenset()
    """Addresses of this node."""


class Packet(Struct, frozen=True):
    """The first of a flow; what it asks for."""

    src: str
    dst: str
    port: int
    protocol: str
    """TCP, UDP, SCTP or ICMP, which has no port."""


def allowed(cluster: Cluster, packet: Packet) -> bool:
    """Whether a new flow between two addresses is let through."""
    src, dst = packet.src, packet.dst
    if src == dst:
        return True
    source, destination = owner(cluster, src), owner(cluster, dst)
    if src in cluster.node_ips or dst in cluster.node_ips:
        return True
    if source is not None and enforced(cluster, source):
        policies = isolating(cluster, source, "Egress")
        if policies and not any(admits(cluster, policy, "Egress", dst, packet) for policy in policies):
            return False
    if destination is not None and enforced(cluster, destination):
        policies = isolating(cluster, destination, "Ingress")
        if policies and not any(admits(cluster, policy, "Ingress", src, packet) for policy in policies):
            return False
    return True


def owner(cluster: Cluster, ip: str) -> Pod | None:
    """The pod behind an address."""
    claims = [
        pod
        for pod in cluster.pods.values()
        if ip in pod.ips and not pod.host_network and pod.phase not in ("Succeeded", "Failed")
    ]
    return max(claims, key=lambda pod: (pod.created, pod.uid), default=None)


def enforced(cluster: Cluster, pod: Pod) -> bool:
    return cluster.node in ("", pod.node)


def isolating(cluster: Cluster, pod: Pod, direction: str) -> list[NetworkPolicy]:
    """Policies that isolate a pod in a direction."""
    return [
        policy
        for policy in cluster.policies.values()
        if policy.key.namespace == pod.key.namespace
        and direction in policy_types(policy)
        and selects(policy.pod_selector, pod.labels, broken=True)
    ]


def policy_types(policy: NetworkPolicy) -> tuple[str, ...]:
    """By default "Ingress will always be set and Egress will be set if the NetworkPolicy has any egress rules".

    A type that does not exist could mean anything: both.
    """
    if not policy.policy_types:
        return ("Ingress", "Egress") if policy.egress else ("Ingress",)
    known = all(one in ("Ingress", "Egress") for one in policy.policy_types)
    return policy.policy_types if known else ("Ingress", "Egress")


def admits(cluster: Cluster, policy: NetworkPolicy, direction: str, peer_ip: str, packet: Packet) -> bool:
    """Whether any rule of the policy matches, with `peer_ip` at the other end."""
    if policy.problem or not well_formed(policy.pod_selector):
        return False
    rules = policy.ingress if direction == "Ingress" else policy.egress
    return any(rule_has_peer(cluster, policy, rule, peer_ip) and rule_has_port(cluster, rule, packet) for rule in rules)


def rule_has_peer(cluster: Cluster, policy: NetworkPolicy, rule: PolicyRule, ip: str) -> bool:
    """ "If this field is empty or missing, this rule matches all sources"."""
    if not rule.peers:
        return True
    return any(peer_matches(cluster, policy.key.namespace, peer, ip) for peer in rule.peers)


def peer_matches(cluster: Cluster, namespace: str, peer: PolicyPeer, ip: str) -> bool:
    selectors = [one for one in (peer.pod_selector, peer.namespace_selector) if one is not None]
    if peer.unknown_fields or not all(well_formed(one) for one in selectors):
        return False
    if peer.ip_block is not None:
        return not selectors and block_matches(peer.ip_block, ip)
    pod = owner(cluster, ip)
    if not selectors or pod is None:
        return False
    if peer.namespace_selector is None:
        in_namespace = pod.key.namespace == namespace
    else:
        its = cluster.namespaces.get(pod.key.namespace)
        in_namespace = its is not None and selects(peer.namespace_selector, its.labels)
    return in_namespace and (peer.pod_selector is None or selects(peer.pod_selector, pod.labels))


def block_matches(block: IPBlock, ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    try:
        network = ipaddress.ip_network(block.cidr, strict=False)
        holes = [ipaddress.ip_network(text, strict=False) for text in block.excepts]
    except ValueError:
        return False
    return address in network and not any(address in hole for hole in holes)


def rule_has_port(cluster: Cluster, rule: PolicyRule, packet: Packet) -> bool:
    """ "If this field is empty or missing, this rule matches all ports"."""
    if not rule.ports:
        return True
    return any(port_matches(cluster, one, packet) for one in rule.ports)


def port_matches(cluster: Cluster, one: PolicyPort, packet: Packet) -> bool:
    port, protocol = packet.port, packet.protocol
    if one.protocol != protocol or protocol not in ("TCP", "UDP", "SCTP"):
        return False
    if one.port is None:
        return one.end_port is None
    if isinstance(one.port, str):
        pod = owner(cluster, packet.dst)
        named = (one.port, port, protocol)
        return (
            one.port != ""
            and one.end_port is None
            and pod is not None
            and any((its.name, its.number, its.protocol) == named for its in pod.ports)
        )
    last = one.port if one.end_port is None else one.end_port
    return 1 <= one.port <= port <= last <= 65535


def selects(selector: LabelSelector, labels: Mapping[str, str], *, broken: bool = False) -> bool:
    """Whether all requirements hold; with `broken`, all of those that mean something."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    return all(requirement_holds(one, labels) for one in _requirements(selector, broken))


def _requirements(selector: LabelSelector, broken: bool) -> Iterator[Requirement]:
    for one in selector.match_expressions:
        if not broken or meaningful(one):
            yield one


def requirement_holds(one: Requirement, labels: Mapping[str, str]) -> bool:
    if one.operator == "In":
        return one.key in labels and labels[one.key] in one.values
    if one.operator == "NotIn":
        return one.key not in labels or labels[one.key] not in one.values
    if one.operator == "Exists":
        return one.key in labels
    return one.key not in labels


def meaningful(one: Requirement) -> bool:
    """ "If the operator is In or NotIn, the values array must be non-empty. If the operator is Exists or DoesNotExist,
    the values array must be empty."
    """
    if one.operator in ("In", "NotIn"):
        return len(one.values) > 0
    return one.operator in ("Exists", "DoesNotExist") and not one.values


def well_formed(selector: LabelSelector) -> bool:
    return all(meaningful(one) for one in selector.match_expressions)
