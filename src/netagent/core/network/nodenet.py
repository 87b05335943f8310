"""Node mode: subnets are the Nodes' spec.podCIDRs, handed out by kube-controller-manager; peers speak flannel's words.

Each Node becomes the same records that Lease objects would give, one per family, so that whatever stands on leases (the
pod network, the filter on tunnelled packets, /debug) needs to know nothing of node mode. A record is made anew only
where it differs: who compares by identity sees what changed.
"""

import ipaddress
from collections.abc import Iterable, Mapping

from netagent.core.network import flannel
from netagent.core.network.flannel import Names
from netagent.records import Change, Key, Kind, Node, Removed, SubnetLease, Undecodable, Upserted


def family_of(cidr: str) -> int:
    """4 or 6."""
    return 6 if ":" in cidr else 4


def is_peer(node: Node, known: Names) -> bool:
    """The node takes part in the pod network, by flannel or by netagent."""
    return node.annotations.get(known.managed) == flannel.MANAGED and bool(node.pod_cidrs)


def leases_of(node: Node, known: Names) -> tuple[SubnetLease, ...]:
    """The node's first podCIDR of each family, IPv4 first, with what the node's annotations say of reaching it."""
    found: dict[int, SubnetLease] = {}
    for cidr in node.pod_cidrs:
        family = family_of(cidr)
        if family in found:
            continue
        found[family] = SubnetLease(
            key=Key("", f"{node.key.name}.ipv{family}"),
            uid=node.uid,
            resource_version="",
            subnet=cidr,
            holder=node.key.name,
            backend=node.annotations.get(known.backend_type, ""),
            vtep_mac=flannel.read_backend_data(node.annotations.get(known.backend_data(family), "")),
            public_ip=_address(node.annotations.get(known.public_ip(family), ""), family),
            sources=tuple(address for address in node.addresses if family_of(address) == family),
        )
    return tuple(found[family] for family in sorted(found))


def _address(text: str, family: int) -> str:
    """Canonical text; "" for what is no address of the family (a zone would not do in the kernel's sets either)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(address) if address.version == family and "%" not in text else ""


class NodeLeases:
    """The records of all nodes, kept up to date node by node."""

    def __init__(self, known: Names, own: str) -> None:
        """`own` is this node's name: it counts before it has published anything."""
        self._names = known
        self._own = own
        self._of: dict[str, tuple[SubnetLease, ...]] = {}

    def of(self, node: str) -> tuple[SubnetLease, ...]:
        """One node's records."""
        return self._of.get(node, ())

    def follow(self, change: Upserted | Removed | Undecodable) -> list[Change]:
        """Take a change of a Node; the changes of its records."""
        node = change.record if isinstance(change, Upserted) and isinstance(change.record, Node) else None
        key = change.record.key if isinstance(change, Upserted) else change.key
        if isinstance(change, Undecodable):
            return []  # what is known of it still carries its pods' traffic
        counts = node is not None and (key.name == self._own or is_peer(node, self._names))
        before = {lease.key: lease for lease in self._of.get(key.name, ())}
        after = leases_of(node, self._names) if node is not None and counts else ()
        kept = tuple(before[lease.key] if before.get(lease.key) == lease else lease for lease in after)
        if kept:
            self._of[key.name] = kept
        else:
            self._of.pop(key.name, None)
        news: list[Change] = [
            Upserted(Kind.LEASE, lease, change.received_s) for lease in kept if before.get(lease.key) is not lease
        ]
        gone = before.keys() - {lease.key for lease in kept}
        return news + [Removed(Kind.LEASE, key, change.received_s) for key in sorted(gone)]


def missing_families(pools: Iterable[str], held: Iterable[SubnetLease]) -> tuple[int, ...]:
    """Families of the pools that this node has no subnet of."""
    have = {family_of(lease.subnet) for lease in held}
    return tuple(sorted({family_of(pool) for pool in pools} - have))


def waits_for(node_name: str, node: Node | None, missing: Iterable[int]) -> str:
    """Why this node has no subnet; "": it has all it needs."""
    families = " and ".join(f"IPv{family}" for family in missing)
    if not families:
        return ""
    if node is None:
        return f"Node {node_name} does not exist yet. No pod starts here until the kubelet has registered it."
    there = ", ".join(node.pod_cidrs) or "empty"
    return (
        f"spec.podCIDRs of Node {node_name} is {there}: no {families} subnet. No pod gets an address here until "
        "kube-controller-manager sets it (--allocate-node-cidrs and --cluster-cidr, one CIDR for each family of "
        "network.pools), or use network.mode lease."
    )


def patch(wanted: Mapping[str, str]) -> dict[str, object]:
    """Body of the strategic merge patch."""
    return {"metadata": {"annotations": dict(wanted)}}
