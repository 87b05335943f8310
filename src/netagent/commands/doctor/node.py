"""Settings, links and packet filters of this node."""

from collections.abc import Iterable
from typing import Any

from netagent.config import Config
from netagent.core.doctor import firewallchecks, hostchecks, placechecks
from netagent.core.doctor.findings import Finding, unknown
from netagent.core.doctor.hostchecks import OTHERS_DEVICES
from netagent.core.network.nodeplan import device_prefix, families_of
from netagent.core.network.podnet import FLANNEL_PREFIX
from netagent.core.network.underlay import POD_LINK, Wish, choose_underlay
from netagent.kernel import host, legacy, links
from netagent.kernel.forward import ForeignNft
from netagent.kernel.host import Host
from netagent.kernel.podnet import PodNetKernel, Snapshot
from netagent.ports import NetagentError, NftError
from netagent.records import Node

SYSCTL = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
BRIDGE_FILTER = "net/bridge/bridge-nf-call-iptables"
IPTABLES = {("ip", "filter"), ("ip", "nat"), ("ip6", "filter"), ("ip6", "nat")}
"""nftables' names of the tables of iptables-nft."""
LISTING = "NET_ADMIN"
"""The capability that listing nftables takes."""
NEEDS_ROOT = "run it as root, or in the agent's pod"


async def settings(config: Config, *, running: bool) -> Iterable[Finding]:
    """Sysctls and the conntrack table."""
    families = families_of(config.network.pools) if config.network.mode != "off" else (4,)
    values = {family: links.read_sysctl(SYSCTL[family]) for family in families}
    found = list(hostchecks.forwarding(values, running=running))
    use = host.conntrack_use()
    if use is None:
        found.append(Finding("conntrack.table", "info", "no connection tracking in this network namespace yet"))
    else:
        found.append(hostchecks.conntrack_table(*use))
    return found


async def network(config: Config, node: Node | None) -> Iterable[Finding]:
    """Links, MTU, checksums, who else has our addresses."""
    seen = await host.read_host()
    ports = [device for device in seen.devices if device.bridge and not POD_LINK.fullmatch(device.name)]
    found = [
        hostchecks.bridge_filter(
            {device.bridge for device in ports if device.bridge.startswith(tuple(OTHERS_DEVICES))},
            links.read_sysctl(BRIDGE_FILTER),
            policy=config.policy.enabled,
            ours=config.cni.enabled,
        ),
        *hostchecks.other_networks(seen.devices, config),
        hostchecks.service_proxy(seen.devices, policy=config.policy.enabled),
    ]
    if config.network.mode == "off":
        return found
    if config.network.backend == "vxlan":
        found.append(hostchecks.foreign_vxlan(seen.devices, config, host.udp_ports()))
    return [*found, *await _underlay(config, node, seen)]


async def _underlay(config: Config, node: Node | None, seen: Host) -> Iterable[Finding]:
    with PodNetKernel(lambda: None, flannel=config.network.mode == "node") as kernel:
        snapshot: Snapshot = await kernel.read(reach=config.network.can_reach)
    wish = Wish(config=config.network, node_addresses=node.addresses if node else ())
    chosen = choose_underlay(snapshot.interfaces, wish, default=snapshot.default, reach=snapshot.reach)
    if isinstance(chosen, str):
        return [Finding("links.underlay", "error", chosen, "This node is not joined to the others.", "see there")]
    name = chosen.interface.name
    uplinks = {link.name for link in snapshot.interfaces if link.addresses and link.up and not _is_inner(link.name)}
    direct = config.network.direct_routing or config.network.backend == "host-gw"
    return [
        Finding("links.underlay", "ok", f"{name}: {', '.join(address for _, address in chosen.addresses)}"),
        hostchecks.reverse_path(host.reverse_path(name), name, uplinks, direct=direct),
        *(await _router_advertisements(name) if 6 in families_of(config.network.pools) else ()),
        *hostchecks.sizes(chosen, seen.devices, config),
        *(hostchecks.checksums(seen.devices, host.driver(name), config) if config.network.backend == "vxlan" else ()),
    ]


async def _router_advertisements(underlay: str) -> Iterable[Finding]:
    value = links.read_sysctl(f"net/ipv6/conf/{underlay}/accept_ra")
    return [hostchecks.router_advertisements(underlay, value, learnt=await host.has_learnt_default())]


def _is_inner(name: str) -> bool:
    """A link that leads to pods or is a tunnel, not an uplink."""
    prefixes = (*OTHERS_DEVICES, *FLANNEL_PREFIX.values(), "netagent", "docker", "br-", "veth", "lo")
    return name.startswith(prefixes) or POD_LINK.fullmatch(name) is not None


async def others_networks(config: Config) -> dict[str, str]:
    """Networks of this node's links (CIDR -> what it is) that are neither ours nor another pod network's."""
    ours = (*device_prefix(config.network).values(), *OTHERS_DEVICES)
    seen = await host.read_host()
    return {
        cidr: f"{name}'s network"
        for cidr, name in seen.networks.items()
        if not name.startswith(ours) and not POD_LINK.fullmatch(name)
    }


async def filters(config: Config, *, running: bool, may_list: bool = True) -> Iterable[Finding]:
    """nftables and legacy iptables of others, and the library."""
    if not may_list:  # libnftables complains on stderr by itself
        lacking = unknown("firewall.nftables", f"without {LISTING} nobody may list nftables", NEEDS_ROOT)
        return [lacking, *_legacy(with_nft=False)]
    nft = ForeignNft()
    try:
        return await _filters(nft, config, running=running)
    except NftError as error:
        return [unknown("firewall.nftables", str(error), NEEDS_ROOT), *_legacy(with_nft=False)]
    finally:
        nft.close()


async def _filters(nft: ForeignNft, config: Config, *, running: bool) -> Iterable[Finding]:
    chains = await nft.query("list chains")
    joins = config.network.mode != "off"
    listings: dict[str, list[dict[str, Any]]] = {}
    for family, table, name in firewallchecks.denying_inputs(chains):
        listings[f"{family} {table} {name}"] = await nft.query(f"list table {family} {table}")
    port = config.network.vxlan_port if joins and config.network.backend == "vxlan" else None
    iptables = {(one["chain"]["family"], one["chain"]["table"]) for one in chains if "chain" in one} & IPTABLES
    return [
        placechecks.libnftables(next((one["metainfo"]["version"] for one in chains if "metainfo" in one), "0")),
        firewallchecks.policy_engines(chains, policy=config.policy.enabled),
        *firewallchecks.forward_chains(
            await nft.forward_chains(),
            config.network.pools if joins else (),
            accept=config.network.forward_accept,
            running=running,
        ),
        *firewallchecks.input_chains(listings, port),
        *_legacy(with_nft=bool(iptables)),
    ]


def _legacy(*, with_nft: bool) -> Iterable[Finding]:
    tables = legacy.tables(4) | legacy.tables(6)
    policies = {f"IPv{version}": legacy.forward_policy(version) for version in (4, 6)}
    return firewallchecks.legacy_tables(policies, tables=tables, with_nft=with_nft)


async def has_table() -> bool:
    """Whether our table is in the kernel; False where that cannot be seen."""
    nft = ForeignNft()
    try:
        return (await nft.inventory()).exists
    except NetagentError:
        return False
    finally:
        nft.close()
