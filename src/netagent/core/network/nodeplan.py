"""Where this node takes in its peers' packets, from its links, its leases and the configuration."""

import ipaddress
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.network.podnet import (
    DEVICE_PREFIX,
    FLANNEL_PREFIX,
    OVERHEAD_BYTES,
    End,
    Vtep,
    Vxlan,
    device_name,
    vtep_mac,
)
from netagent.core.network.underlay import Interface, Underlay, Way, Wish, check_overrides, choose_underlay, pod_mtu


class NodePlan(Struct, frozen=True):
    """What this node can be in the pod network now."""

    ends: dict[int, End]
    """By family; what is there of the other families is left as it is."""
    underlay: Underlay | None
    mtu: int
    """Bytes, of pods and tunnels; 0: not known."""
    problems: tuple[str, ...]


def family_of(subnet: str) -> int:
    """4 or 6."""
    return 6 if ":" in subnet else 4


def families_of(cidrs: Iterable[str]) -> tuple[int, ...]:
    """The families that occur, IPv4 first."""
    return tuple(sorted({int(ipaddress.ip_network(cidr).version) for cidr in cidrs}))


def plan_node(
    wish: Wish,
    node_name: str,
    *,
    interfaces: Iterable[Interface],
    subnets: Collection[str],
    default: Way | None = None,
    reach: Way | None = None,
    macs: Mapping[int, str] | None = None,
) -> NodePlan:
    """An end for each family of the pools that has a subnet of this node and an address on the underlay.

    `macs`: of families whose MAC is settled; the others' follows from the node's name.
    """
    config = wish.config
    overrides, problems = check_overrides(wish.overrides)
    underlay = choose_underlay(interfaces, wish, default=default, reach=reach)
    if isinstance(underlay, str):
        return NodePlan({}, None, 0, (underlay, *problems))
    families = families_of(config.pools)
    tunnels = config.backend == "vxlan"
    mtu, problem = pod_mtu(underlay.interface.mtu, families, config.mtu, tunnels=tunnels)
    problems += [problem] if problem else []
    ends: dict[int, End] = {}
    leased = families_of(subnets)
    for family in families:
        if missing := _missing(underlay, family, leased=family in leased, tunnels=tunnels):
            problems.append(missing)
            continue
        mac = (macs or {}).get(family) or vtep_mac(node_name, family)
        vtep = _vtep(config, mac, underlay, family, mtu) if tunnels else None
        local = underlay.address(family)
        ends[family] = End(
            family=family,
            public_ip=overrides.get(family, local),
            local=local,
            underlay=underlay.interface.index,
            vtep=vtep,
        )
    return NodePlan(ends, underlay, mtu, tuple(problems))


def _missing(underlay: Underlay, family: int, *, leased: bool, tunnels: bool) -> str:
    """Why the family has no end here; "" where it has one."""
    name = underlay.interface.name
    if not leased:
        return f"no IPv{family} subnet is leased to this node. Its IPv{family} pod network stays as it is."
    if not underlay.address(family):
        return (
            f"{name} has no IPv{family} address. This node's IPv{family} pod network stays as it is; add an address, "
            f"or take the IPv{family} pool out of network.pools."
        )
    if not tunnels and not underlay.interface.up:
        return f"{name} is down and takes no routes. They come when it is up: ip link set {name} up."
    return ""


def takes_over_flannel(config: NetworkConfig) -> bool:
    """Whether this node's devices are flannel's."""
    return config.mode == "node"


def device_prefix(config: NetworkConfig) -> Mapping[int, str]:
    """By family: what the names of this node's devices begin with."""
    return FLANNEL_PREFIX if takes_over_flannel(config) else DEVICE_PREFIX


def _vtep(config: NetworkConfig, mac: str, underlay: Underlay, family: int, mtu: int) -> Vtep:
    if takes_over_flannel(config) and not config.mtu:
        # Each device its family's own, as with flannel: pods that it wired keep their packets' size.
        mtu = underlay.interface.mtu - OVERHEAD_BYTES[family]
    link = Vxlan(
        vni=config.vni,
        port=config.vxlan_port,
        local=underlay.address(family),
        underlay=underlay.interface.index,
        mac=mac,
        mtu=mtu,
    )
    device = device_name(family, config.vni, device_prefix(config))
    return Vtep(family=family, device=device, link=link, offload=config.vxlan_tx_checksum)
