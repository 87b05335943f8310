"""Subnet leases as coordination.k8s.io/v1 Lease objects.

The object is named after the subnet, so that creating it is the mutual exclusion: the API server lets one node win.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import msgspec
from msgspec import Raw, Struct

from netagent.core.addresses import parse_address, parse_network
from netagent.kube.wire import DecodeError, Int32, Meta
from netagent.records import Key, SubnetLease

MANAGED_BY = {"app.kubernetes.io/managed-by": "netagent"}
"""Labels of our leases; the watch selects by them."""
SELECTOR = "app.kubernetes.io/managed-by=netagent"
SUBNET = "netagent.io/subnet"
BACKEND = "netagent.io/backend"
VTEP_MAC = "netagent.io/vtep-mac"
PUBLIC_IP = "netagent.io/public-ip"
PUBLISHED = (BACKEND, VTEP_MAC, PUBLIC_IP)
API_VERSION = "coordination.k8s.io/v1"


class _Spec(Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: Int32 | None = None
    renew_time: str | None = None
    lease_transitions: Int32 | None = None


class _Lease(Struct):
    metadata: Meta
    spec: _Spec | None = None


_lease = msgspec.json.Decoder(_Lease)


def collection(namespace: str) -> str:
    """Path of the leases of a namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/leases"


def name(subnet: str) -> str:
    """Object name for a subnet: 10.244.3.0/24 -> netagent-10.244.3.0-24, fd00::/64 -> netagent-fd00-0000-...-0000-64.

    IPv6 is fully exploded: one spelling per subnet, and within a DNS-1123 subdomain.
    """
    network = ip_network(subnet)
    address = network.network_address.exploded.replace(":", "-")
    return f"netagent-{address}-{network.prefixlen}"


def subnet_named(text: str) -> str:
    """The subnet that an object of this name stands for; "" where it is no name of ours."""
    *groups, length = text.removeprefix("netagent-").split("-")
    try:
        subnet = str(parse_network(f"{':'.join(groups)}/{length}"))
    except ValueError:
        return ""
    return subnet if name(subnet) == text else ""


def read(raw: bytes | Raw) -> SubnetLease:
    """A SubnetLease from a Lease object of ours. Raises DecodeError or msgspec.DecodeError."""
    wire = _lease.decode(raw)
    meta, spec, notes = wire.metadata, wire.spec or _Spec(), wire.metadata.annotations or {}
    return SubnetLease(
        key=meta.key(),
        uid=meta.uid,
        resource_version=meta.resource_version,
        subnet=_subnet(meta),
        holder=spec.holder_identity or "",
        duration_s=spec.lease_duration_seconds,
        renewed_s=None if spec.renew_time is None else seconds(spec.renew_time),
        backend=notes.get(BACKEND, ""),
        vtep_mac=notes.get(VTEP_MAC, "").lower(),
        public_ip=_public_ip(notes.get(PUBLIC_IP, "")),
        transitions=spec.lease_transitions or 0,
    )


class Tenant(Struct, frozen=True):
    """The node that takes or renews a lease."""

    node: str
    uid: str
    """metadata.uid of its Node object."""
    duration_s: int


def body(
    subnet: str, namespace: str, tenant: Tenant, now_s: float, notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A new Lease object: this subnet is held by this node from now on."""
    stamp = micro_time(now_s)
    return {
        "apiVersion": API_VERSION,
        "kind": "Lease",
        "metadata": {
            "name": name(subnet),
            "namespace": namespace,
            "labels": dict(MANAGED_BY),
            "annotations": {**(notes or {}), SUBNET: subnet},
            "ownerReferences": [owner(tenant)],
        },
        "spec": {
            "holderIdentity": tenant.node,
            "leaseDurationSeconds": tenant.duration_s,
            "acquireTime": stamp,
            "renewTime": stamp,
            "leaseTransitions": 0,
        },
    }


def renewed(
    current: Mapping[str, Any], subnet: str, tenant: Tenant, now_s: float, notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The subnet's object as it is on the server, renewed (or taken over) by this node; all else in it is kept.

    `notes` replace what was published; None leaves it, unless another node published it. A reservation (no duration)
    stays one: it gets no duration and no owner that could take it along.
    """
    meta, spec = dict(current["metadata"]), dict(current.get("spec") or {})
    stamp = micro_time(now_s)
    meta["labels"] = {**(meta.get("labels") or {}), **MANAGED_BY}
    annotations = {**(meta.get("annotations") or {}), SUBNET: subnet}
    changes_hands = spec.get("holderIdentity") != tenant.node
    if notes is not None or changes_hands:
        annotations = {key: text for key, text in annotations.items() if key not in PUBLISHED} | dict(notes or {})
    meta["annotations"] = annotations
    if changes_hands:
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec["acquireTime"] = stamp
    spec["holderIdentity"] = tenant.node
    spec["renewTime"] = stamp
    if spec.get("leaseDurationSeconds") is not None:
        spec["leaseDurationSeconds"] = tenant.duration_s
        others = [item for item in meta.get("ownerReferences") or () if item.get("kind") != "Node"]
        meta["ownerReferences"] = [*others, owner(tenant)]
    return {**current, "metadata": meta, "spec": spec}


def owner(tenant: Tenant) -> dict[str, str]:
    """ownerReference to the Node: the lease is collected with it."""
    return {"apiVersion": "v1", "kind": "Node", "name": tenant.node, "uid": tenant.uid}


def notes(backend: str, vtep_mac: str, public_ip: str) -> dict[str, str]:
    """Annotations that tell peers how to reach the holder; what is not known yet is left out."""
    found = {BACKEND: backend, VTEP_MAC: vtep_mac.lower(), PUBLIC_IP: _public_ip(public_ip)}
    return {key: value for key, value in found.items() if value}


def micro_time(now_s: float) -> str:
    """Seconds since the epoch as meta/v1 MicroTime."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(text: str) -> float:
    """meta/v1 MicroTime as seconds since the epoch. Raises DecodeError."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise DecodeError(f"spec.renewTime: {text[:64]!r} is no RFC 3339 time") from None


def key(subnet: str, namespace: str) -> Key:
    """Key of the Lease object for a subnet."""
    return Key(namespace, name(subnet))


def _subnet(meta: Meta) -> str:
    """The annotation, which must agree with the name: only the name is unique."""
    text = (meta.annotations or {}).get(SUBNET, "")
    try:
        subnet = str(parse_network(text))
    except ValueError:
        raise DecodeError(f"annotation {SUBNET}: {text[:64]!r} is no CIDR without host bits") from None
    if name(subnet) != meta.name:
        raise DecodeError(f"annotation {SUBNET}: {subnet} belongs to a Lease named {name(subnet)}")
    return subnet


def _public_ip(text: str) -> str:
    try:
        return str(parse_address(text)) if text else ""
    except ValueError:
        raise DecodeError(f"annotation {PUBLIC_IP}: {text[:64]!r} is no IP address") from None
