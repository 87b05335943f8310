"""JSON of the API server -> the flat records of `netagent.records`.

The wire Structs name only the fields that netagent reads; msgspec skips the rest without making objects of it. A null
means the same as an absent field wherever Kubernetes' own types cannot tell them apart.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from sys import intern
from typing import Any

import msgspec
from msgspec import Raw, Struct

from netagent.core.addresses import parse_address, parse_network
from netagent.kube import leases
from netagent.kube.wire import MALFORMED, DecodeError, Int32, Meta
from netagent.records import (
    ContainerPort,
    IPBlock,
    Key,
    Kind,
    LabelSelector,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Record,
    Requirement,
)

NULL = Raw(b"null")
BOTH_WAYS = ("Ingress", "Egress")
"""Of a policy whose types cannot be read, or follow from rules that cannot."""
SHARED = 1024
"""Maps of labels and lists of ports that are remembered, so that equal ones are one object: lists come in order of
names, so a replica's siblings are next to it."""
SHARED_LENGTH = 64
"""Longer ones are not remembered: a thousand of a megabyte would stay when their pods are gone."""
MAX_PORT = 65535
"""A declared port that is none could not stand in a set; the others of its pod do."""
MIRROR, STATIC_POD_UID = "kubernetes.io/config.mirror", "kubernetes.io/config.hash"
"""Annotations of the object that stands for a static pod. Source: pkg/kubelet/types of Kubernetes."""
ANNOTATIONS_KEPT = ("flannel.", "netagent.")
FLANNEL_NAMES = (
    "kube-subnet-manager",
    "backend-type",
    "backend-data",
    "backend-v6-data",
    "public-ip",
    "public-ipv6",
    "public-ip-overwrite",
    "public-ipv6-overwrite",
)
"""Ends of annotations that are kept too: flannel's, whose prefix is configurable."""


class _Head(Struct):
    metadata: Meta


class _ContainerPort(Struct, rename="camel"):
    container_port: int
    name: str | None = None
    protocol: str | None = None


class _Container(Struct, rename="camel"):
    ports: list[_ContainerPort] | None = None
    restart_policy: str | None = None


class _PodSpec(Struct, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None


class _PodIP(Struct):
    ip: str | None = None


class _PodStatus(Struct):
    phase: str | None = None
    pod_ips: list[_PodIP] | None = msgspec.field(default=None, name="podIPs")
    pod_ip: str | None = msgspec.field(default=None, name="podIP")


class _Pod(Struct):
    metadata: Meta
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _NodeSpec(Struct):
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")


class _NodeAddress(Struct):
    type: str = ""
    address: str = ""


class _NodeStatus(Struct):
    addresses: list[_NodeAddress] | None = None


class _Node(Struct):
    metadata: Meta
    spec: _NodeSpec | None = None
    status: _NodeStatus | None = None


# An unknown field in one of these would narrow what the policy allows: refused, so that the policy fails closed.


class _Requirement(Struct, forbid_unknown_fields=True):
    key: str
    operator: str
    values: list[str] | None = None


class _Selector(Struct, rename="camel", forbid_unknown_fields=True):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Requirement] | None = None


class _IPBlock(Struct, forbid_unknown_fields=True):
    cidr: str
    excepts: list[str] | None = msgspec.field(default=None, name="except")


class _Port(Struct, rename="camel", forbid_unknown_fields=True):
    protocol: str | None = None
    port: Int32 | str | None = None
    end_port: Int32 | None = None


class _IngressRule(Struct, forbid_unknown_fields=True):
    peers: list[dict[str, Raw]] | None = msgspec.field(default=None, name="from")
    ports: list[_Port] | None = None


class _EgressRule(Struct, forbid_unknown_fields=True):
    peers: list[dict[str, Raw]] | None = msgspec.field(default=None, name="to")
    ports: list[_Port] | None = None


class _PolicySpec(Struct, rename="camel"):
    pod_selector: _Selector | None = None
    policy_types: list[str] | None = None
    ingress: list[_IngressRule] | None = None
    egress: list[_EgressRule] | None = None


class _PolicySpecHead(Struct, rename="camel"):
    pod_selector: _Selector | None = None


class _PolicySpecTypes(Struct, rename="camel"):
    policy_types: list[str] | None = None


class _Policy(Struct):
    metadata: Meta
    spec: Raw = NULL


_head = msgspec.json.Decoder(_Head)
_pod = msgspec.json.Decoder(_Pod)
_node = msgspec.json.Decoder(_Node)
_policy = msgspec.json.Decoder(_Policy)
_policy_spec = msgspec.json.Decoder(_PolicySpec)
_policy_spec_head = msgspec.json.Decoder(_PolicySpecHead)
_policy_spec_types = msgspec.json.Decoder(_PolicySpecTypes)
_selector = msgspec.json.Decoder(_Selector | None)
_ip_block = msgspec.json.Decoder(_IPBlock | None)
_tree = msgspec.json.Decoder(dict[str, Any])


def head(raw: bytes | Raw) -> tuple[Key, str]:
    """Name and resourceVersion of any object. Raises DecodeError."""
    try:
        meta = _head.decode(raw).metadata
    except MALFORMED as error:
        raise DecodeError(str(error)) from None
    if not meta.name:
        raise DecodeError("metadata.name is empty")
    return meta.key(), meta.resource_version


def record(kind: Kind, raw: bytes | Raw) -> Record:
    """One object as a record. Raises DecodeError, whose text says what could not be read.

    A NetworkPolicy fails only where its metadata does: otherwise it comes back with `problem` set, allowing nothing.
    """
    try:
        return _READERS[kind](raw)
    except MALFORMED as error:
        raise DecodeError(str(error)) from None


def tree(raw: bytes | Raw) -> dict[str, Any]:
    """One object as plain data, for changing it. Raises DecodeError."""
    try:
        return _tree.decode(raw)
    except MALFORMED as error:
        raise DecodeError(str(error)) from None


def labels(found: Mapping[str, str] | None) -> Mapping[str, str]:
    """Labels with interned text, the same object for equal ones of late: replicas differ in nothing here."""
    if not found:
        return {}
    read = _shared_labels if len(found) <= SHARED_LENGTH else _shared_labels.__wrapped__
    return read(tuple(found.items()))


@lru_cache(SHARED)
def _shared_labels(found: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {intern(name): intern(value) for name, value in found}


def _read_namespace(raw: bytes | Raw) -> Namespace:
    meta = _head.decode(raw).metadata
    return Namespace(key=meta.key(), uid=meta.uid, labels=labels(meta.labels))


def _read_pod(raw: bytes | Raw) -> Pod:
    wire = _pod.decode(raw)
    meta, spec, status = wire.metadata, wire.spec or _PodSpec(), wire.status or _PodStatus()
    sidecars = [container for container in spec.init_containers or () if container.restart_policy == "Always"]
    return Pod(
        key=meta.key(),
        uid=meta.uid,
        node=intern(spec.node_name or ""),
        labels=labels(meta.labels),
        ips=_pod_ips(status),
        phase=intern(status.phase or "Pending"),
        host_network=bool(spec.host_network),
        ports=_container_ports([*sidecars, *(spec.containers or ())]),
        created=intern(meta.creation_timestamp or ""),
        terminating=meta.deletion_timestamp is not None,
        mirror_of=_mirror_of(meta.annotations or {}),
    )


def _mirror_of(annotations: Mapping[str, str]) -> str:
    """Of a static pod's object, which the kubelet makes after the pod: the UID that the runtime was given."""
    return annotations.get(STATIC_POD_UID, "") if MIRROR in annotations else ""


def _pod_ips(status: _PodStatus) -> tuple[str, ...]:
    found = [entry.ip for entry in status.pod_ips or () if entry.ip]
    if not found and status.pod_ip:
        found = [status.pod_ip]
    return tuple(dict.fromkeys(_address("status.podIPs", text) for text in found))


def _container_ports(containers: list[_Container]) -> tuple[ContainerPort, ...]:
    found = tuple(
        ContainerPort(intern(port.name or ""), port.container_port, intern(port.protocol or "TCP"))
        for container in containers
        for port in container.ports or ()
        if 0 < port.container_port <= MAX_PORT
    )
    return _shared_ports(found) if len(found) <= SHARED_LENGTH else found


@lru_cache(SHARED)
def _shared_ports(found: tuple[ContainerPort, ...]) -> tuple[ContainerPort, ...]:
    return found


def _read_node(raw: bytes | Raw) -> Node:
    wire = _node.decode(raw)
    meta, spec, status = wire.metadata, wire.spec or _NodeSpec(), wire.status or _NodeStatus()
    cidrs = spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])
    annotations = {
        name: value
        for name, value in (meta.annotations or {}).items()
        if name.endswith(FLANNEL_NAMES) or any(part in name for part in ANNOTATIONS_KEPT)
    }
    return Node(
        key=meta.key(),
        uid=meta.uid,
        labels=labels(meta.labels),
        annotations=annotations,
        addresses=_internal_ips(status),
        pod_cidrs=tuple(_network("spec.podCIDRs", text) for text in cidrs),
    )


def _internal_ips(status: _NodeStatus) -> tuple[str, ...]:
    """An InternalIP that is no address (the API server accepts any text) is left out: the others still serve."""
    found = []
    for entry in status.addresses or ():
        if entry.type == "InternalIP":
            try:
                found.append(_address("status.addresses", entry.address))
            except DecodeError:
                continue
    return tuple(dict.fromkeys(found))


def _read_policy(raw: bytes | Raw) -> NetworkPolicy:
    wire = _policy.decode(raw)
    meta = wire.metadata
    if bytes(wire.spec) == b"null":
        return NetworkPolicy(key=meta.key(), uid=meta.uid)
    try:
        spec = _policy_spec.decode(wire.spec)
        return NetworkPolicy(
            key=meta.key(),
            uid=meta.uid,
            pod_selector=_label_selector(spec.pod_selector),
            policy_types=tuple(spec.policy_types or ()),
            ingress=tuple(_rule(rule) for rule in spec.ingress or ()),
            egress=tuple(_rule(rule) for rule in spec.egress or ()),
        )
    except MALFORMED as error:
        return _closed_policy(meta, wire.spec, f"spec: {error}")


def _closed_policy(meta: Meta, spec: Raw, problem: str) -> NetworkPolicy:
    """Isolates what the selector selects, where it says so; the whole namespace both ways where that cannot be read."""
    try:
        selector = _label_selector(_policy_spec_head.decode(spec).pod_selector)
    except MALFORMED:
        selector = LabelSelector()
    try:
        types = tuple(_policy_spec_types.decode(spec).policy_types or BOTH_WAYS)
    except MALFORMED:
        types = BOTH_WAYS
    return NetworkPolicy(key=meta.key(), uid=meta.uid, pod_selector=selector, policy_types=types, problem=problem)


def _rule(rule: _IngressRule | _EgressRule) -> PolicyRule:
    return PolicyRule(
        peers=None if rule.peers is None else tuple(_peer(peer) for peer in rule.peers),
        ports=None if rule.ports is None else tuple(_port(port) for port in rule.ports),
    )


def _port(port: _Port) -> PolicyPort:
    return PolicyPort(protocol=port.protocol or "TCP", port=port.port, end_port=port.end_port)


def _peer(fields: dict[str, Raw]) -> PolicyPeer:
    known: dict[str, Any] = {"podSelector": None, "namespaceSelector": None, "ipBlock": None}
    unknown = []
    for name, raw in fields.items():
        if name in known:
            known[name] = (_ip_block if name == "ipBlock" else _selector).decode(raw)
        else:
            unknown.append(name)
    block = known["ipBlock"]
    return PolicyPeer(
        pod_selector=None if known["podSelector"] is None else _label_selector(known["podSelector"]),
        namespace_selector=None if known["namespaceSelector"] is None else _label_selector(known["namespaceSelector"]),
        ip_block=None if block is None else IPBlock(cidr=block.cidr, excepts=tuple(block.excepts or ())),
        unknown_fields=tuple(sorted(unknown)),
    )


def _label_selector(selector: _Selector | None) -> LabelSelector:
    if selector is None:
        return LabelSelector()
    return LabelSelector(
        match_labels=labels(selector.match_labels),
        match_expressions=tuple(
            Requirement(intern(item.key), intern(item.operator), tuple(map(intern, item.values or ())))
            for item in selector.match_expressions or ()
        ),
    )


def _address(field: str, text: str) -> str:
    try:
        return str(parse_address(text))
    except ValueError as error:
        raise DecodeError(f"{field}: no IP address: {error}") from None


def _network(field: str, text: str) -> str:
    try:
        return str(parse_network(text, strict=False))
    except ValueError as error:
        raise DecodeError(f"{field}: no CIDR: {error}") from None


_READERS: Mapping[Kind, Callable[[bytes | Raw], Record]] = {
    Kind.NAMESPACE: _read_namespace,
    Kind.POD: _read_pod,
    Kind.NODE: _read_node,
    Kind.NETWORK_POLICY: _read_policy,
    Kind.LEASE: leases.read,
}
