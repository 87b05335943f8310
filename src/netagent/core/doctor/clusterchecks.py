"""What the API server says to this node, and what it means: facts in, findings out."""

import ipaddress
from collections.abc import Collection, Iterable

from msgspec import Struct

from netagent.config import Config
from netagent.core.doctor.findings import Finding
from netagent.records import Node

SKEW_S, LARGE_SKEW_S = 2.0, 60.0
"""The first is what a Date header can tell (whole seconds, and the answer's way); with the second certificates and
tokens that were just made are refused."""


class Right(Struct, frozen=True, order=True, gc=False):
    """Something that one may ask the API server for."""

    verb: str
    group: str
    """"" is the core group."""
    resource: str
    """With its subresource, `nodes/status`."""
    namespace: str = ""
    """Empty: in all of them, or the resource has none."""

    def __str__(self) -> str:
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {name}" + (f" in {self.namespace}" if self.namespace else "")


def rights(config: Config) -> tuple[Right, ...]:
    """What an agent with this configuration asks for; the roles in manifests/ grant this and no more."""
    found = _each(("create", "patch"), "", "events")
    network, joins = config.network, config.network.mode != "off"
    pods_known = config.policy.enabled or not config.cni.enabled or (network.mode == "node" and network.host_local_dir)
    if pods_known:
        found |= _each(("list", "watch"), "", "pods")
    if config.policy.enabled:
        found |= _each(("list", "watch"), "", "namespaces")
        found |= _each(("list", "watch"), "networking.k8s.io", "networkpolicies")
    if joins:
        found |= _each(("get", "list", "watch"), "", "nodes") | _each(("patch",), "", "nodes/status")
    if network.mode in ("lease", "auto"):
        verbs = ("get", "list", "watch", "create", "update", "delete")
        found |= _each(verbs, "coordination.k8s.io", "leases", network.lease_namespace)
    return tuple(sorted(found))


def _each(verbs: Iterable[str], group: str, resource: str, namespace: str = "") -> set[Right]:
    return {Right(verb, group, resource, namespace) for verb in verbs}


def permissions(refused: Collection[Right], asked: int) -> Finding:
    """Of the rights that were asked about."""
    if not refused:
        return Finding("api.rights", "ok", f"all {asked} rights are granted")
    names = ", ".join(map(str, sorted(refused)))
    return Finding(
        "api.rights",
        "error",
        f"{len(refused)} of {asked} rights are missing: {names}",
        "The agent cannot do what it needs them for, and is not ready.",
        "apply the roles of the overlay in manifests/ that fits this configuration; run by hand, this command asks for "
        "the user of its kubeconfig, not for the agent's service account",
    )


def clock(ahead_s: float) -> Finding:
    """How far this node's clock is ahead of the API server's, to the second."""
    found = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the API server"
    if abs(ahead_s) <= SKEW_S:
        return Finding("clock.skew", "ok", "as the API server's, to 2 s")
    return Finding(
        "clock.skew",
        "error" if abs(ahead_s) >= LARGE_SKEW_S else "warning",
        found,
        "netagent counts leases by the API server's clock, but certificates and tokens are judged by this one, and "
        "logs of nodes cannot be compared.",
        "set up time synchronisation (chrony, systemd-timesyncd) on this node",
    )


def node_object(node: Node | None, name: str, config: Config) -> Iterable[Finding]:
    """The Node object; None where there is none."""
    if node is None:
        yield Finding(
            "node.object",
            "error",
            f"there is no Node {name}",
            "The agent waits for it: it gets no subnet.",
            "set node_name (NETAGENT_NODE_NAME) to this node's name as in kubectl get nodes",
        )
        return
    if config.network.mode == "node":
        yield pod_cidrs(node, config.network.pools)
    if node.addresses:
        yield Finding("node.object", "ok", f"Node {name} has the addresses {', '.join(node.addresses)}")
    else:
        yield Finding(
            "node.object",
            "warning",
            f"Node {name} has no InternalIP yet",
            "The link between nodes is the default route's until it has one.",
            "is the kubelet running? A cloud's controller may have to set it",
        )


def pod_cidrs(node: Node, pools: Iterable[str]) -> Finding:
    """spec.podCIDRs, which node mode lives on."""
    if not node.pod_cidrs:
        return Finding(
            "node.pod_cidrs",
            "error",
            "spec.podCIDRs of the Node is empty, and network.mode is node",
            "This node has no subnet, so no pod can start.",
            "run kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr, or set network.mode to "
            "lease",
        )
    outside = [cidr for cidr in node.pod_cidrs if not any(_within(cidr, pool) for pool in pools)]
    if outside:
        return Finding(
            "node.pod_cidrs",
            "error",
            f"spec.podCIDRs {', '.join(outside)} is in none of network.pools {', '.join(pools)}",
            "Its pods' traffic is taken for traffic from outside: masqueraded, and not forwarded where others deny.",
            "set network.pools to kube-controller-manager's --cluster-cidr",
        )
    return Finding("node.pod_cidrs", "ok", f"spec.podCIDRs {', '.join(node.pod_cidrs)}")


def _within(cidr: str, pool: str) -> bool:
    try:
        inner, outer = ipaddress.ip_network(cidr), ipaddress.ip_network(pool)
    except ValueError:
        return False
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
