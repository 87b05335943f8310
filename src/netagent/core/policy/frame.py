"""The fixed part of the table: hooks, the judge, anti-spoofing, the VXLAN source filter, masquerading.

A forwarded packet takes this way. Flows stamped with the current generation pass on the first rule. Everything else is
judged by its flow: the client's egress class and the server's ingress class each send it on or drop it, but a pod to
itself is free. A flow of a local pod that came through is stamped; traffic of no local pod keeps its mark. A packet
without a conntrack entry matches nothing of that and comes to `stray`.

What most packets need comes first, for every rule that is looked at costs them. A class is asked about local pods only,
so who comes from one is stamped without a look at `local`; rare cases (no conntrack entry, a pod to itself) are asked
about where nothing else has matched.

The way on is all gotos, and what comes back from it is dropped. A packet that is on it while a transaction takes effect
goes on by the old rules but finds the new elements; the class chain that these name has no rules yet for that packet.

A new generation is one element of the set `current` and the one rule of the chain `stamp`, both without a verdict that
may lead somewhere: otherwise the kernel would look for loops from every base chain on. The stamp must be in a rule: as
an element, a packet under way would get the new one by the old rules.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from netagent.config import Config
from netagent.core.policy.meaning import Direction
from netagent.core.policy.ruleset import GENERATION, ChainDecl, SetDecl

POD_LINKS = "nap"
"""Names of the host ends of pod links start with it."""
CURRENT = "current"
"""Set of the mark value that passes without judgement."""
CURRENT_DECL = SetDecl("mark", size=16)
STAMP = "stamp"
"""Chain that writes it."""
ITSELF = "itself"
"""Chain that lets a pod's flow to itself pass; others come back from it."""
DENIED = {Direction.INGRESS: "denied_ingress", Direction.EGRESS: "denied_egress"}
COUNTERS = ("denied_ingress", "denied_egress", "unknown_pod", "spoofed", "unknown_vtep")
"""Named counters: packets and bytes dropped, by reason. They survive every change of the rules."""
KUBE_PROXY_MARK = "0x4000"
LOGGED_PER_S = 100
"""Packets of one class or reason that the kernel tells userspace about, at most."""
LOGGED_BYTES = 128
"""Of each: enough for the IPv6 and transport headers."""

FIXED_SETS = {
    **{
        f"{direction}{version}": SetDecl(f"{kind} : verdict", narrows=True)
        for direction in Direction
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    },
    **{
        f"{name}{version}": SetDecl(kind)
        for name in ("local", "vtep")
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    },
    **{f"overlay{version}": SetDecl(kind, narrows=True) for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))},
    **{f"self{version}": SetDecl(f"{kind} . {kind}") for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))},
    **{f"source{version}": SetDecl(f"ifname . {kind}") for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))},
}
"""egress, ingress: local isolated pods -> chain of their class. local: local pods. self: local pod . the same.
source: host link . address that its pod may send from. vtep: where VXLAN packets may come from. overlay: addresses that
other nodes use inside the overlay."""

_NEIGHBOUR_DISCOVERY = "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }"
_MULTICAST_LISTENER = "{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }"

_WITHOUT_ENTRY = "ct state invalid,untracked"


class FrameSettings(Struct, frozen=True, kw_only=True):
    """What the frame depends on."""

    policy: bool = True
    mark_mask: int = 0xFFFF0000
    drop_log_group: int | None = None
    """NFLOG group that denied packets go to; None: nobody wants to know."""
    vxlan_port: int | None = None
    """None: no VXLAN of ours, no filter on it."""
    masquerade: bool = False
    pools: tuple[str, ...] = ()
    """The cluster's pod networks."""
    own_subnets: tuple[str, ...] = ()
    """This node's."""
    non_masquerade_cidrs: tuple[str, ...] = ()


def frame_settings(config: Config) -> FrameSettings:
    """As the configuration has them; this node's subnets are not known yet."""
    network, policy = config.network, config.policy
    joins = network.mode != "off"
    return FrameSettings(
        policy=policy.enabled,
        mark_mask=policy.mark_mask,
        drop_log_group=policy.drop_log_group if policy.drop_log else None,
        vxlan_port=network.vxlan_port if joins else None,
        masquerade=joins and network.masquerade,
        pools=network.pools,
        non_masquerade_cidrs=network.non_masquerade_cidrs,
    )


def frame(settings: FrameSettings) -> dict[str, ChainDecl]:
    """The fixed chains."""
    chains = {}
    if settings.policy:
        chains.update(_forward(settings.mark_mask))
    chains.update(_antispoof(settings.drop_log_group))
    if settings.vxlan_port is not None:
        chains.update(_vxlan_filter(settings.vxlan_port, settings.drop_log_group))
    if settings.masquerade:
        chains["postrouting"] = _masquerade(settings)
    return chains


def told(prefix: str, group: int | None) -> tuple[str, ...]:
    """The statement that tells userspace about a packet; none where nobody wants to know."""
    if group is None:
        return ()
    limit = f"limit rate {LOGGED_PER_S}/second burst {LOGGED_PER_S} packets"
    return (f'{limit} log prefix "{prefix}" group {group} snaplen {LOGGED_BYTES}',)


def _forward(mask: int) -> dict[str, ChainDecl]:
    keep = ~mask & 0xFFFFFFFF
    # A denied flow that goes on trying would pass when its generation's value returns.
    forget = f"ct mark set ct mark and {keep:#010x}"
    return {
        "forward": ChainDecl(
            (
                f"ct mark and {mask:#010x} == @{CURRENT} accept",
                "jump judge",
                "drop",
            ),
            hook="type filter hook forward priority filter; policy accept;",
        ),
        STAMP: ChainDecl((f"ct mark set ct mark and {keep:#010x} or {GENERATION}",)),
        "judge": ChainDecl(("meta nfproto ipv6 goto judge6", *_judge("ip", 4))),
        "judge6": ChainDecl(_judge("ip6", 6)),
        # The client is a local pod, its class has let the flow on.
        "judge_ingress": ChainDecl(
            (
                "ct reply ip saddr vmap @ingress4",
                "ct reply ip6 saddr vmap @ingress6",
                f"{_WITHOUT_ENTRY} goto stray_ingress",
                "goto admitted",
            )
        ),
        # Asked last, by those who are about to be denied: it is rare, and a look at both ends costs much.
        ITSELF: ChainDecl(
            (
                "ct original ip saddr . ct reply ip saddr @self4 goto admitted",
                "ct original ip6 saddr . ct reply ip6 saddr @self6 goto admitted",
            )
        ),
        # One end at least is a local pod.
        "admitted": ChainDecl((f"jump {STAMP}", "accept")),
        # Without a conntrack entry the rules of a class cannot match: only a class that admits everything lets it on.
        "stray": ChainDecl(
            (
                f"icmpv6 type {_NEIGHBOUR_DISCOVERY} accept",
                "ip saddr . ip daddr @self4 accept",
                "ip6 saddr . ip6 daddr @self6 accept",
                "ip saddr vmap @egress4",
                "ip6 saddr vmap @egress6",
                "goto stray_ingress",
            )
        ),
        "stray_ingress": ChainDecl(("ip daddr vmap @ingress4", "ip6 daddr vmap @ingress6", "accept")),
        DENIED[Direction.INGRESS]: ChainDecl((forget, "counter name denied_ingress drop")),
        DENIED[Direction.EGRESS]: ChainDecl((forget, "counter name denied_egress drop")),
    }


def _judge(word: str, version: int) -> tuple[str, ...]:
    """Of one IP version. What reads the tuple matches no packet without an entry: such a one comes out at the end."""
    client, server = f"ct original {word} saddr", f"ct reply {word} saddr"
    return (
        f"{client} vmap @egress{version}",
        f"{server} vmap @ingress{version}",
        f"{client} @local{version} goto admitted",
        f"{server} @local{version} goto admitted",
        f"{_WITHOUT_ENTRY} goto stray",
        "accept",
    )


def _antispoof(group: int | None) -> dict[str, ChainDecl]:
    return {
        "prerouting": ChainDecl(
            (f'iifname "{POD_LINKS}*" goto from_pod',), hook="type filter hook prerouting priority raw; policy accept;"
        ),
        "from_pod": ChainDecl(
            (
                "iifname . ip saddr @source4 accept",
                "iifname . ip6 saddr @source6 accept",
                f"ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {_NEIGHBOUR_DISCOVERY} accept",
                f"ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {_MULTICAST_LISTENER} accept",
                *told("spoofed", group),
                "counter name spoofed drop",
            )
        ),
    }


def _vxlan_filter(port: int, group: int | None) -> dict[str, ChainDecl]:
    return {
        "input": ChainDecl(
            (f"udp dport {port} goto from_node",), hook="type filter hook input priority filter; policy accept;"
        ),
        "from_node": ChainDecl(
            (
                "ip saddr @vtep4 accept",
                "ip6 saddr @vtep6 accept",
                *told("unknown_vtep", group),
                "counter name unknown_vtep drop",
            )
        ),
    }


def _masquerade(settings: FrameSettings) -> ChainDecl:
    """flannel's order: what keeps its source first, then pods to outside, then outside to pods of other nodes.

    Outside to a pod of another node is rewritten so that the answer comes back through this node, which knows the
    connection. A pod is here if it is a known one or its address is in a subnet of ours: pods of a subnet that this
    node has lost live on, and pods that another plugin wires are not known at once.
    """
    rules = [f"meta mark and {KUBE_PROXY_MARK} == {KUBE_PROXY_MARK} return"]
    for word, version, multicast in (("ip", 4, "224.0.0.0/4"), ("ip6", 6, "ff00::/8")):
        cluster = _of_version(settings.pools, version)
        own = _of_version(settings.own_subnets, version)
        direct = _of_version(settings.non_masquerade_cidrs, version)
        if not cluster:
            continue
        from_pods = f"{word} saddr {_anonymous(cluster)}"
        rules.append(f"{from_pods} {word} daddr {_anonymous(cluster)} return")
        rules.append(f"{word} daddr @local{version} return")
        if own:
            rules.append(f"{word} daddr {_anonymous(own)} return")
        if direct:
            rules.append(f"{from_pods} {word} daddr {_anonymous(direct)} return")
        rules.append(f"{from_pods} {word} daddr != {multicast} masquerade random,fully-random")
        rules.append(
            f"{word} saddr != {_anonymous(cluster)} {word} daddr {_anonymous(cluster)} masquerade random,fully-random"
        )
    return ChainDecl(tuple(rules), hook="type nat hook postrouting priority srcnat; policy accept;")


def _of_version(cidrs: Iterable[str], version: int) -> list[str]:
    return [cidr for cidr in cidrs if (":" in cidr) == (version == 6)]


def _anonymous(cidrs: Sequence[str]) -> str:
    """A single network is compared, which costs less than a look into a set."""
    if len(cidrs) == 1:
        return cidrs[0]
    return "{ " + ", ".join(cidrs) + " }"
