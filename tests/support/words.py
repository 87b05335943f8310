"""Short ways to write records in tests: `pod("x/a", app="web")`, `policy("x/p", ingress=[rule(...)])`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count

from netagent.records import (
    ContainerPort,
    IPBlock,
    Key,
    Kind,
    LabelSelector,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Record,
    Removed,
    Requirement,
    Upserted,
)

_uids = count(1)

Expression = tuple[str, str] | tuple[str, str, Sequence[str]]


def key(text: str) -> Key:
    """`ns/name`, or a bare name for cluster-scoped kinds."""
    namespace, _, name = text.rpartition("/")
    return Key(namespace, name)


def namespace(name: str, /, **labels: str) -> Namespace:
    """As the API server shows it, with the label that it adds."""
    return Namespace(key=Key("", name), uid=f"ns-{name}", labels={"kubernetes.io/metadata.name": name, **labels})


def pod(
    name: str,
    /,
    *ips: str,
    labels: Mapping[str, str] | None = None,
    ports: Iterable[tuple[str, int, str]] = (),
    uid: str = "",
    node: str = "node-0",
    phase: str = "Running",
    host_network: bool = False,
    created: str = "2026-01-01T00:00:00Z",
) -> Pod:
    """A pod; its UID is its name unless one is given."""
    return Pod(
        key=key(name),
        uid=uid or f"uid-{name}",
        node=node,
        labels=dict(labels or {}),
        ips=ips,
        phase=phase,
        host_network=host_network,
        ports=tuple(ContainerPort(*one) for one in ports),
        created=created,
    )


def selector(*expressions: Expression, **labels: str) -> LabelSelector:
    """`selector(("tier", "In", ["a", "b"]), app="web")`."""
    found = tuple(Requirement(one[0], one[1], tuple(one[2]) if len(one) == 3 else ()) for one in expressions)
    return LabelSelector(match_labels=labels, match_expressions=found)


def pods(*expressions: Expression, **labels: str) -> PolicyPeer:
    """Pods of the policy's own namespace."""
    return PolicyPeer(pod_selector=selector(*expressions, **labels))


def namespaces(of: LabelSelector, pods_in: LabelSelector | None = None) -> PolicyPeer:
    """Pods of other namespaces."""
    return PolicyPeer(namespace_selector=of, pod_selector=pods_in)


def block(cidr: str, *excepts: str) -> PolicyPeer:
    """An ipBlock."""
    return PolicyPeer(ip_block=IPBlock(cidr=cidr, excepts=excepts))


def port(number: int | str | None, protocol: str = "TCP", end: int | None = None) -> PolicyPort:
    """One element of `ports`."""
    return PolicyPort(protocol=protocol, port=number, end_port=end)


def rule(peers: Iterable[PolicyPeer] | None = None, ports: Iterable[PolicyPort] | None = None) -> PolicyRule:
    """A rule; None stays None."""
    return PolicyRule(
        peers=None if peers is None else tuple(peers),
        ports=None if ports is None else tuple(ports),
    )


def policy(
    name: str,
    /,
    selects: LabelSelector | None = None,
    *,
    ingress: Iterable[PolicyRule] = (),
    egress: Iterable[PolicyRule] = (),
    types: Iterable[str] = (),
    problem: str = "",
) -> NetworkPolicy:
    """A policy that selects the whole namespace unless told otherwise."""
    return NetworkPolicy(
        key=key(name),
        uid=f"np-{next(_uids)}",
        pod_selector=selects or LabelSelector(),
        ingress=tuple(ingress),
        egress=tuple(egress),
        policy_types=tuple(types),
        problem=problem,
    )


def kind_of(record: Record) -> Kind:
    """The kind of a record is the name of its type."""
    return Kind.LEASE if type(record).__name__ == "SubnetLease" else Kind(type(record).__name__)


def put(record: Record) -> Upserted:
    """The object exists in this state."""
    return Upserted(kind_of(record), record)


def gone(record: Record) -> Removed:
    """The object does not exist any more."""
    return Removed(kind_of(record), record.key)
