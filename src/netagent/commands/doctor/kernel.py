"""What the kernel can do for this configuration."""

import asyncio
from collections.abc import Iterable

from netagent.config import Config
from netagent.core.doctor import hostchecks
from netagent.core.doctor.findings import Finding, unknown
from netagent.core.network.nodeplan import families_of
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import frame_settings
from netagent.core.policy.render import replacement
from netagent.core.policy.store import Store
from netagent.kernel import features
from netagent.kernel.features import TABLE, Feature, NoNamespaceError, script
from netagent.ports import TableInventory

ANY_MARK = "0x00010000"
CHAIN = f"add chain {TABLE} c {{ type filter hook forward priority filter; policy accept; }}"
SELF_HELP = "run it as root on the node, or in the agent's pod: kubectl -n kube-system exec POD -- netagent doctor"


async def examine(config: Config) -> Iterable[Finding]:
    """One finding per feature."""
    wanted = _features(config)
    try:
        reasons = await asyncio.to_thread(features.probe, [feature for feature, _ in wanted])
    except NoNamespaceError as error:
        return [unknown("kernel.features", str(error), SELF_HELP)]
    return [
        hostchecks.feature(feature.name, feature.purpose, reasons[feature.name], needed=needed)
        for feature, needed in wanted
    ]


def _features(config: Config) -> list[tuple[Feature, bool]]:
    """Each with whether this configuration needs it."""
    network, policy = config.network, config.policy.enabled
    joins = network.mode != "off"
    tunnels = joins and network.backend == "vxlan"
    families = families_of(network.pools) if joins else ()
    return [
        (Feature("nf_tables", "nftables, family inet, all hooks", script(*_hooks())), True),
        (Feature("nf_tables_sets", "sets, verdict maps and concatenations of nftables", script(*_sets())), True),
        (Feature("conntrack_mark", "conntrack marks and tuples in nftables", script(CHAIN, *_marks())), policy),
        (Feature("nat", "masquerading in nftables", script(*_nat())), joins and network.masquerade),
        (Feature("nflog_rules", "NFLOG in nftables", script(CHAIN, _rule("log group 78"))), config.policy.drop_log),
        (Feature("nflog", "NFLOG to a socket", features.bind_nflog), config.policy.drop_log),
        (Feature("ctnetlink", "open flows over ctnetlink", features.read_flows), policy),
        (Feature("veth", "veth links", features.link("veth")), config.cni.enabled),
        (Feature("vxlan4", "VXLAN over IPv4", _vxlan(config, "127.0.0.1")), tunnels and 4 in families),
        (Feature("vxlan6", "VXLAN over IPv6", _vxlan(config, "::1")), tunnels and 6 in families),
        (Feature("ipv6", "IPv6", features.ipv6_socket), 6 in families),
        (Feature("table", "the agent's whole nftables table", features.whole_script(_table(config))), True),
    ]


def _vxlan(config: Config, local: str) -> features.Trial:
    return features.vxlan(config.network.vni, config.network.vxlan_port, local)


def _rule(text: str) -> str:
    return f"add rule {TABLE} c {text}"


def _hooks() -> list[str]:
    hooks = (("prerouting", "raw"), ("input", "filter"), ("forward", "filter"))
    return [
        f"add chain {TABLE} {hook} {{ type filter hook {hook} priority {priority}; policy accept; }}"
        for hook, priority in hooks
    ]


def _sets() -> list[str]:
    return [
        f"add set {TABLE} intervals {{ type ipv4_addr; flags interval; }}",
        f"add element {TABLE} intervals {{ 192.0.2.0/24, 198.51.100.1-198.51.100.9 }}",
        f"add set {TABLE} sources {{ type ifname . ipv4_addr; }}",
        f'add element {TABLE} sources {{ "probe" . 192.0.2.1 }}',
        f"add chain {TABLE} target",
        f"add map {TABLE} verdicts {{ type ipv6_addr : verdict; }}",
        f"add element {TABLE} verdicts {{ 2001:db8::1 : goto target }}",
        f"add counter {TABLE} probed",
        f"{CHAIN}",
        _rule("ip6 daddr vmap @verdicts"),
        _rule("meta l4proto . th dport { tcp . 80, udp . 53 } counter name probed accept"),
    ]


def _marks() -> list[str]:
    return [
        _rule("ct mark and 0xffff0000 == 0x00010000 accept"),
        _rule("ct mark set ct mark and 0x0000ffff or 0x00020000"),
        _rule("meta l4proto tcp ct original ip saddr 192.0.2.1 ct reply proto-src 80 accept"),
    ]


def _nat() -> list[str]:
    return [
        f"add chain {TABLE} c {{ type nat hook postrouting priority srcnat; policy accept; }}",
        _rule("ip saddr 192.0.2.0/24 masquerade random,fully-random"),
        _rule("ip6 saddr 2001:db8::/64 masquerade random,fully-random"),
    ]


def _table(config: Config) -> str:
    """What the agent writes first, with no pods and policies."""
    compiler = Compiler(Store(), frame_settings(config), "doctor")
    return replacement(compiler.ruleset.whole(), ANY_MARK, TableInventory(exists=False))
