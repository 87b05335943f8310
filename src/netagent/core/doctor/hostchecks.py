"""What the node's kernel settings and links mean for the pod network: facts in, findings out."""

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from netagent.config import Config
from netagent.core.doctor.findings import Finding
from netagent.core.network.nodeplan import device_prefix, families_of
from netagent.core.network.podnet import FLANNEL_PREFIX, device_name
from netagent.core.network.underlay import POD_LINK, Underlay, pod_mtu

FULL_SHARE, NEARLY_FULL_SHARE = 0.95, 0.8
"""Of the conntrack table. At its end the kernel drops every new connection."""
BAD_OFFLOAD_DRIVERS = ("vmxnet3",)
"""Network cards of virtual machines that are known to write wrong checksums into tunnelled packets (VMware)."""
OTHERS_DEVICES = {
    "flannel.": "flannel",
    "flannel-v6.": "flannel",
    "cni0": "the bridge plugin (flannel)",
    "cali": "Calico",
    "vxlan.calico": "Calico",
    "vxlan-v6.calico": "Calico",
    "tunl0": "Calico",
    "wireguard.cali": "Calico",
    "cilium_": "Cilium",
    "lxc_health": "Cilium",
    "weave": "Weave Net",
    "kube-bridge": "kube-router",
    "antrea-gw": "Antrea",
    "ovn-k8s-": "OVN-Kubernetes",
}
"""What the names of other pod networks' devices begin with."""
IPVS_DEVICE = "kube-ipvs0"
OPTIONAL_DEVICES = ("tunl0",)
"""Every namespace has it where the module is loaded: it says nothing unless it is up."""


class Device(Struct, frozen=True, gc=False, kw_only=True):
    """A link, as far as it matters."""

    name: str
    kind: str = ""
    mtu: int = 0
    up: bool = False
    vni: int = 0
    port: int = 0
    """Of VXLAN; 0 for other links."""
    external: bool = False
    """A vxlan device that takes every VNI of its port (collect metadata)."""
    bridge: str = ""
    """The bridge that it is a port of."""
    offload: str = ""
    """Transmit checksums are left to the card: on or off; "" where nobody says."""


def feature(name: str, purpose: str, reason: str, *, needed: bool) -> Finding:
    """What trying a kernel feature gave; `reason` is empty where it can be had."""
    if not reason:
        return Finding(f"kernel.{name}", "ok", f"{purpose}: works")
    if not needed:
        return Finding(f"kernel.{name}", "info", f"{purpose}: {reason}", "This configuration does without it.")
    return Finding(
        f"kernel.{name}",
        "error",
        f"{purpose}: {reason}",
        "The agent needs it with this configuration.",
        "use a kernel that has it (a distribution's own has), or load the module if the image leaves it out",
    )


def forwarding(values: Mapping[int, str], *, running: bool) -> Iterable[Finding]:
    """`values`: family -> net.ipv4.ip_forward and net.ipv6.conf.all.forwarding, "" where there is no such thing."""
    for family, value in values.items():
        name = "net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding"
        if value == "1":
            yield Finding(f"sysctl.forwarding{family}", "ok", f"{name} = 1")
        elif not value:
            yield Finding(
                f"sysctl.forwarding{family}",
                "error",
                f"{name}: there is no such sysctl",
                f"This kernel has no IPv{family}; pods cannot have it.",
                f"take the IPv{family} pool out of network.pools, or boot with IPv{family}",
            )
        elif running:
            yield Finding(
                f"sysctl.forwarding{family}",
                "error",
                f"{name} = {value} although the agent sets it to 1",
                f"No IPv{family} packet passes between pods and other nodes.",
                "find out who sets it back (sysctl.d, a firewall, cloud-init), and write 1 there",
            )
        else:
            yield Finding(f"sysctl.forwarding{family}", "info", f"{name} = {value}; the agent sets it to 1")


def reverse_path(value: int, underlay: str, uplinks: Collection[str], *, direct: bool) -> Finding:
    """`value`: rp_filter in force on the underlay; `uplinks`: links with addresses over which others are reached."""
    found = f"rp_filter of {underlay} is {value}"
    if value == 1 and direct and len(uplinks) > 1:
        return Finding(
            "sysctl.rp_filter",
            "warning",
            f"{found} (strict) and there are several uplinks: {', '.join(sorted(uplinks))}",
            "Pod packets of nodes on the same network come without a tunnel; where the way back would be another "
            "uplink they are dropped without a trace.",
            f"sysctl -w net.ipv4.conf.{underlay}.rp_filter=2",
        )
    return Finding("sysctl.rp_filter", "ok", found)


def router_advertisements(underlay: str, value: str, *, learnt: bool) -> Finding:
    """`value`: accept_ra of the underlay; `learnt`: the IPv6 default route came from a router's advertisement."""
    found = f"accept_ra of {underlay} is {value or 'not there'}"
    if learnt and value == "1":
        return Finding(
            "sysctl.accept_ra",
            "warning",
            f"{found}, and the IPv6 default route comes from a router's advertisement",
            "A node that forwards, as the agent makes it, takes no advertisements then: IPv6 to outside ends when the "
            "route expires.",
            f"sysctl -w net.ipv6.conf.{underlay}.accept_ra=2, or set the route by hand",
        )
    return Finding("sysctl.accept_ra", "ok", found)


def bridge_filter(bridges: Collection[str], value: str, *, policy: bool, ours: bool) -> Finding:
    """`bridges` that pods of other plugins hang on; `value` of bridge-nf-call-iptables, "" without br_netfilter."""
    if not bridges or not policy or value == "1":
        return Finding("sysctl.bridge_nf", "ok", "no pods on a bridge, or its packets are filtered")
    found = f"pods on {', '.join(sorted(bridges))}, and bridge-nf-call-iptables " + (
        f"is {value}" if value else "is not there (module br_netfilter)"
    )
    return Finding(
        "sysctl.bridge_nf",
        "info" if ours else "error",
        found,
        "Packets between two pods on one bridge of this node pass no forward chain: NetworkPolicy does not hold there.",
        "restart those pods, so that netagent wires them"
        if ours
        else "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 (and -ip6tables for IPv6)",
    )


def conntrack_table(count: int, limit: int) -> Finding:
    """How full the table of open flows is."""
    found = f"{count} of {limit} entries in use"
    share = count / limit if limit else 0.0
    if share < NEARLY_FULL_SHARE:
        return Finding("conntrack.table", "ok", found)
    full = share >= FULL_SHARE
    return Finding(
        "conntrack.table",
        "error" if full else "warning",
        found,
        "New connections of all pods are dropped." if full else "When it is full, new connections are dropped.",
        f"sysctl -w net.netfilter.nf_conntrack_max={limit * 2}, and look who opens so many (conntrack -L)",
    )


def foreign_vxlan(devices: Collection[Device], config: Config, udp_ports: Collection[int] = ()) -> Finding:
    """Whether somebody else's vxlan device, or a program's socket on one of these ports, takes what ours needs."""
    network = config.network
    prefixes = [device_prefix(network)] + [FLANNEL_PREFIX] * (network.mode == "auto")
    own = {device_name(family, network.vni, prefix) for family in (4, 6) for prefix in prefixes}
    others = [one for one in devices if one.port == network.vxlan_port and one.name not in own]
    taken = [one for one in others if one.external or one.vni == network.vni]
    if taken:
        names = ", ".join(f"{one.name} ({'every VNI' if one.external else f'VNI {one.vni}'})" for one in taken)
        return Finding(
            "links.vxlan",
            "error",
            f"UDP port {network.vxlan_port} has a vxlan device of somebody else's: {names}",
            f"The kernel refuses another one with VNI {network.vni} and this port: nodes are not joined.",
            "remove it if its owner is gone (ip link del NAME), else change network.vni or network.vxlan_port on all "
            "nodes",
        )
    if network.vxlan_port in udp_ports and not any(one.port == network.vxlan_port for one in devices):
        return Finding(
            "links.vxlan",
            "error",
            f"a program has UDP port {network.vxlan_port}, and no vxlan device does",
            "The kernel cannot open the port for ours: nodes are not joined.",
            f"end it (ss -ulpn sport = {network.vxlan_port}), or change network.vxlan_port on all nodes",
        )
    return Finding("links.vxlan", "ok", f"VNI {network.vni} on UDP port {network.vxlan_port} is free or ours")


def other_networks(devices: Iterable[Device], config: Config) -> Iterable[Finding]:
    """Devices of other pod networks."""
    found: dict[str, list[str]] = {}
    for device in devices:
        owner = next((who for prefix, who in OTHERS_DEVICES.items() if device.name.startswith(prefix)), "")
        if owner and (device.up or device.name not in OPTIONAL_DEVICES):
            found.setdefault(owner, []).append(device.name)
    if not found:
        yield Finding("links.others", "ok", "no devices of other pod networks")
    for owner, names in found.items():
        text = f"devices of {owner}: {', '.join(sorted(names)[:5])}"
        if config.network.mode == "off" or (config.network.mode in ("node", "auto") and "flannel" in owner):
            yield Finding("links.others", "info", text, "As it should be with this network.mode.")
        else:
            yield Finding(
                "links.others",
                "warning",
                text,
                "Two pod networks on one node fight for routes and for the CNI configuration; or these are leftovers.",
                "uninstall the other one from this node; leftovers go with `ip link del NAME` or a reboot",
            )


def service_proxy(devices: Iterable[Device], *, policy: bool) -> Finding:
    """kube-proxy's IPVS mode, which has a device for the Services' addresses."""
    if not any(device.name == IPVS_DEVICE for device in devices):
        return Finding("links.ipvs", "ok", "kube-proxy does not use IPVS here")
    text = f"{IPVS_DEVICE}: kube-proxy forwards to Services by IPVS"
    if not policy:
        return Finding("links.ipvs", "info", text, "policy.enabled is false, so it does not matter to netagent.")
    return Finding(
        "links.ipvs",
        "error",
        text,
        "What pods send to a Service passes no forward chain then: policies do not hold for it.",
        "run kube-proxy with --proxy-mode=iptables or nftables",
    )


def sizes(underlay: Underlay, devices: Iterable[Device], config: Config) -> Iterable[Finding]:
    """MTU of the underlay, of our tunnels and of pods' links."""
    network = config.network
    tunnels = network.backend == "vxlan"
    families = families_of(network.pools)
    mtu, problem = pod_mtu(underlay.interface.mtu, families, network.mtu, tunnels=tunnels)
    base = f"{underlay.interface.name} has MTU {underlay.interface.mtu}, pods get {mtu}"
    if problem:
        yield Finding(
            "mtu.option", "warning", problem, "Pods do not get the MTU that was asked for.", "change network.mtu"
        )
    largest = underlay.interface.mtu - (min(50 if f == 4 else 70 for f in families) if tunnels else 0)
    large = sorted(
        f"{one.name} ({one.mtu})" for one in devices if one.mtu > largest and (_is_tunnel(one, config) or _is_pod(one))
    )
    if large:
        yield Finding(
            "mtu.links",
            "warning",
            f"{base}, but larger are: {', '.join(large[:5])}" + (f" and {len(large) - 5} more" * (len(large) > 5)),
            "Large packets between nodes are lost or cut up; connections hang once they carry data.",
            "is the agent running and ready? It corrects this; a pod that keeps it must be restarted",
        )
    else:
        yield Finding("mtu.links", "ok", base)


def _is_tunnel(device: Device, config: Config) -> bool:
    return device.kind == "vxlan" and device.name.startswith(tuple(device_prefix(config.network).values()))


def _is_pod(device: Device) -> bool:
    return POD_LINK.fullmatch(device.name) is not None


def checksums(devices: Iterable[Device], driver: str, config: Config) -> Iterable[Finding]:
    """Who computes checksums of tunnelled packets; `driver` is the underlay's."""
    wanted = "on" if config.network.vxlan_tx_checksum else "off"
    tunnels = [one for one in devices if _is_tunnel(one, config) and one.offload]
    wrong = [one.name for one in tunnels if one.offload != wanted]
    if wrong:
        yield Finding(
            "checksum.device",
            "warning",
            f"transmit checksum offload of {', '.join(wrong)} is not {wanted} as network.vxlan_tx_checksum has it",
            "The agent keeps it so while it runs; somebody changes it, or no agent runs.",
            f"start the agent, or ethtool -K {wrong[0]} tx {wanted}",
        )
    if wanted == "on" and driver in BAD_OFFLOAD_DRIVERS:
        yield Finding(
            "checksum.driver",
            "warning",
            f"the underlay's driver is {driver}, which is known for wrong checksums in tunnelled packets",
            "Connections between nodes, above all through Services, may hang for a minute.",
            "set network.vxlan_tx_checksum to false on all nodes",
        )
    elif not wrong:
        yield Finding("checksum.device", "ok", f"driver {driver or 'unknown'}, transmit checksum offload {wanted}")


def overlaps(pools: Sequence[str], others: Mapping[str, str]) -> Iterable[Finding]:
    """Networks and addresses of others (CIDR -> what it is) that lie in a pool."""
    clashes = [f"{what} {cidr} and pool {pool}" for cidr, what in others.items() for pool in pools if _meet(cidr, pool)]
    if clashes:
        yield Finding(
            "network.overlap",
            "error",
            "; ".join(clashes[:5]),
            "Packets to one of them go to the other: pods and nodes, or Services, do not reach each other.",
            "choose network.pools that nobody else uses; with pods running that means to drain all nodes",
        )
    else:
        yield Finding("network.overlap", "ok", f"{len(others)} networks and addresses are outside the pools")


def _meet(cidr: str, pool: str) -> bool:
    one, other = ipaddress.ip_network(cidr, strict=False), ipaddress.ip_network(pool)
    return one.version == other.version and one.prefixlen > 0 and one.overlaps(other)
