"""This node's ends of the tunnels, from its links, its leases and the configuration."""

import ipaddress
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from netagent.config import NetworkConfig
from netagent.core.podnet import DEVICE_PREFIX, FLANNEL_PREFIX, OVERHEAD_BYTES, Vtep, Vxlan, device_name, vtep_mac
from netagent.core.underlay import Interface, Underlay, choose_underlay, pod_mtu


class NodePlan(Struct, frozen=True):
    """What this node can be in the pod network now."""

    vteps: dict[int, Vtep]
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
    config: NetworkConfig,
    node_name: str,
    *,
    interfaces: Iterable[Interface],
    default_index: int | None,
    subnets: Collection[str],
    node_addresses: Collection[str],
    macs: Mapping[int, str] | None = None,
) -> NodePlan:
    """A tunnel end for each family of the pools that has a subnet of this node and an address on the underlay.

    `macs`: of families whose MAC is settled; the others' follows from the node's name.
    """
    underlay = choose_underlay(
        interfaces, wanted=config.interface, node_addresses=node_addresses, default_index=default_index
    )
    if isinstance(underlay, str):
        return NodePlan({}, None, 0, (underlay,))
    families = families_of(config.pools)
    mtu, problem = pod_mtu(underlay.interface.mtu, families, config.mtu)
    problems = [problem] if problem else []
    vteps: dict[int, Vtep] = {}
    leased = families_of(subnets)
    for family in families:
        if family not in leased:
            problems.append(
                f"no IPv{family} subnet is leased to this node. Its IPv{family} pod network stays as it is."
            )
        elif not underlay.public_ip(family):
            problems.append(
                f"{underlay.interface.name} has no IPv{family} address. This node's IPv{family} pod network stays as "
                f"it is; add an address, or take the IPv{family} pool out of network.pools."
            )
        else:
            mac = (macs or {}).get(family) or vtep_mac(node_name, family)
            vteps[family] = _vtep(config, mac, underlay, family, mtu)
    return NodePlan(vteps, underlay, mtu, tuple(problems))


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
        local=underlay.public_ip(family),
        underlay=underlay.interface.index,
        mac=mac,
        mtu=mtu,
    )
    return Vtep(family=family, device=device_name(family, config.vni, device_prefix(config)), link=link)
