"""What a lab looks like, as plain values and text: addresses, `ip` scripts, configuration files."""

import ipaddress
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

API_PORT = 6443
UNDERLAY = "172.30.0.0/24"
UNDERLAY_V6 = "fd00:172:30::/64"
OUTSIDE_IPS = ("172.30.0.1", "fd00:172:30::1")
POD_POOLS = ("10.244.0.0/16", "fd00:10:244::/48")
OUTSIDE_CIDRS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
"""Documentation networks: where externals live, and what agents do not masquerade towards."""


class Serving(Struct, frozen=True, order=True):
    """A port that somebody listens on."""

    port: int
    protocol: str
    """TCP, UDP or SCTP."""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


class NodePlan(Struct, frozen=True, kw_only=True):
    """One node."""

    index: int
    name: str
    ips: tuple[str, ...]
    """InternalIP addresses on the underlay, one per family."""
    subnets: tuple[str, ...]
    """Its pod subnets, one per family."""
    labels: Mapping[str, str] = {}


class Settings(Struct, frozen=True, kw_only=True):
    """What is asked of a lab."""

    name: str = ""
    """Names its directory; empty: one is made up."""
    nodes: int = 2
    families: tuple[int, ...] = (4,)
    """(4,) or (4, 6)."""
    node_labels: Mapping[int, Mapping[str, str]] = {}
    """Labels of the Node objects besides the usual ones, by index."""
    agent: Mapping[str, Any] = {}
    """Laid over the agents' configuration, section by section."""
    agents: bool = True
    """False: nodes without a running agent; `Lab.start_agent` starts one."""
    plugins: Mapping[str, str] = msgspec.field(default_factory=lambda: {"portmap": "/usr/lib/cni/portmap"})
    """CNI plugins besides ours in the nodes' /opt/cni/bin."""


def node_plan(settings: Settings, index: int) -> NodePlan:
    """Node K: 172.30.0.(11+K) and 10.244.K.0/24, the same with IPv6 where that is on."""
    ips = (f"172.30.0.{11 + index}", f"fd00:172:30::{11 + index:x}")
    subnets = (f"10.244.{index}.0/24", str(ipaddress.ip_network(f"fd00:10:244:{index:x}::/64")))
    usual = {"kubernetes.io/hostname": f"node-{index}", "kubernetes.io/os": "linux"}
    return NodePlan(
        index=index,
        name=f"node-{index}",
        ips=tuple(ip for ip, family in zip(ips, (4, 6), strict=True) if family in settings.families),
        subnets=tuple(net for net, family in zip(subnets, (4, 6), strict=True) if family in settings.families),
        labels={**usual, **settings.node_labels.get(index, {})},
    )


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


def outside_script(settings: Settings) -> list[str]:
    """`ip` commands that make the underlay bridge in the outside namespace."""
    lines = ["link add br0 type bridge mcast_snooping 0", "link set br0 up"]
    for ip, net in zip(OUTSIDE_IPS, (UNDERLAY, UNDERLAY_V6), strict=True):
        if family_of(ip) in settings.families:
            length = net.split("/")[1]
            lines.append(f"addr add {ip}/{length} dev br0" + (" nodad" if ":" in ip else ""))
    return lines


def plug_script(port: str, netns: str) -> list[str]:
    """`ip` commands for the outside: a cable from the bridge into `netns` (a PID or a path), where it is eth0.

    The MAC of eth0 follows from the port's name: who comes back is not taken for somebody else by cached neighbours.
    """
    mac = zlib.crc32(port.encode()).to_bytes(4, "big").hex(":")
    return [
        f"link add {port} type veth peer name eth0 address 02:1a:{mac} netns {netns}",
        f"link set {port} master br0 up",
    ]


def node_script(node: NodePlan, externals: Sequence[str]) -> list[str]:
    """`ip` commands for a node's namespace."""
    lines = ["link set eth0 up"]
    for ip in node.ips:
        length, gateway = ("24", OUTSIDE_IPS[0]) if family_of(ip) == 4 else ("64", OUTSIDE_IPS[1])
        lines.append(f"addr add {ip}/{length} dev eth0" + (" nodad" if ":" in ip else ""))
        lines.append(f"route add default via {gateway} dev eth0")
    return lines + [line for external in externals for line in to_external_script(node, external)]


def to_external_script(node: NodePlan, external: str) -> list[str]:
    """`ip` commands for a node's namespace: the way to one external."""
    has = any(family_of(ip) == family_of(external) for ip in node.ips)
    return [f"route replace {external} dev eth0"] if has else []


def external_script(address: str, nodes: Sequence[NodePlan]) -> list[str]:
    """`ip` commands for an external's namespace: its address, and pods by way of their nodes."""
    family = family_of(address)
    lines = ["link set eth0 up", f"addr add {address} dev eth0" + (" nodad" if family == 6 else "")]
    lines.append(f"route add {UNDERLAY if family == 4 else UNDERLAY_V6} dev eth0 src {address}")
    for node in nodes:
        via = next((ip for ip in node.ips if family_of(ip) == family), None)
        lines += [
            f"route add {net} via {via} dev eth0 onlink" for net in node.subnets if via and family_of(net) == family
        ]
    return lines


def pools(settings: Settings) -> tuple[str, ...]:
    """The pod ranges, one per family."""
    return tuple(pool for pool in POD_POOLS if family_of(pool) in settings.families)


def agent_config(settings: Settings, node: NodePlan, kubeconfig: str) -> dict[str, Any]:
    """Configuration file of one node's agent."""
    config: dict[str, Any] = {
        "node_name": node.name,
        "api": {"kubeconfig": kubeconfig},
        "network": {"pools": list(pools(settings)), "non_masquerade_cidrs": list(OUTSIDE_CIDRS)},
    }
    for section, options in settings.agent.items():
        if isinstance(options, Mapping):
            config.setdefault(section, {}).update(options)
        else:
            config[section] = options
    return config


def kubeconfig(url: str) -> dict[str, Any]:
    """A kubeconfig file."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": url}}],
        "users": [{"name": "lab", "user": {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }


def node_object(node: NodePlan) -> dict[str, Any]:
    """The Node object as a kubelet registers it, not ready yet."""
    addresses = [{"type": "InternalIP", "address": ip} for ip in node.ips]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": dict(node.labels)},
        "spec": {},
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": {"pods": "110"},
            "allocatable": {"pods": "110"},
            "conditions": [ready_condition(False)],
            "nodeInfo": {"kubeletVersion": "lab", "operatingSystem": "linux", "architecture": "amd64"},
        },
    }


def ready_condition(ready: bool) -> dict[str, str]:
    """The Ready condition of a node: ready once its network is."""
    if ready:
        return {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the stand-in is ready"}
    text = "container runtime network not ready: no CNI configuration in /etc/cni/net.d"
    return {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": text}
