"""What other people's packet filters on the node mean for pods: tables and chains in, findings out."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from netagent.core.doctor.findings import Finding
from netagent.core.foreign import OWN_TABLE, ForwardChain, wanted_accepts

Item = Mapping[str, Any]
ENGINE_TABLES = {
    "calico": "Calico",
    "cilium": "Cilium",
    "kube-router": "kube-router",
    "kube-network-policies": "kube-network-policies",
    "kindnet": "kindnet",
}
"""Beginnings of nftables tables' names."""
ENGINE_CHAINS = {
    "cali-": "Calico",
    "CILIUM_": "Cilium",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "WEAVE-NPC": "Weave Net",
    "ANTREA-": "Antrea",
}
"""Beginnings of chains' names in iptables."""


def policy_engines(chains: Iterable[Item], *, policy: bool) -> Finding:
    """Other programs that enforce NetworkPolicy here; `chains`: what `nft -j list chains` prints."""
    found: dict[str, str] = {}
    for item in chains:
        chain = item.get("chain") or {}
        place = f"{chain.get('family')} {chain.get('table')}"
        owner = _owner(str(chain.get("table")), ENGINE_TABLES) or _owner(str(chain.get("name")), ENGINE_CHAINS)
        if owner:
            found.setdefault(owner, place)
    text = ", ".join(f"{owner} (table {place})" for owner, place in sorted(found.items()))
    if found and policy:
        return Finding(
            "firewall.engines",
            "warning",
            f"rules of {text}",
            "A packet must be allowed by both engines; old rules of one that is gone still deny.",
            "uninstall the other one, or set policy.enabled to false; rules that stayed go with "
            "`nft delete table FAMILY NAME`, of iptables with a reboot",
        )
    if found:
        return Finding("firewall.engines", "info", f"rules of {text}", "As it should be with policy.enabled = false.")
    return Finding("firewall.engines", "ok", "no other policy engine's rules")


def _owner(name: str, known: Mapping[str, str]) -> str:
    return next((who for prefix, who in known.items() if name.startswith(prefix)), "")


def forward_chains(
    chains: Sequence[ForwardChain], pools: Sequence[str], *, accept: bool, running: bool
) -> Iterable[Finding]:
    """Others' chains of the forward hook that drop what they do not know."""
    denying = [chain for chain in chains if chain.denies and wanted_accepts(chain.name.family, pools)]
    if not denying:
        yield Finding("firewall.forward", "ok", "no chain of others drops forwarded packets by default")
    for chain in denying:
        open_for_us = set(wanted_accepts(chain.name.family, pools)) <= chain.ours.keys()
        text = f"chain {chain.name} drops forwarded packets by default"
        if open_for_us:
            yield Finding("firewall.forward", "ok", f"{text}; the pod network is accepted in it")
        elif accept and not running:
            yield Finding("firewall.forward", "info", f"{text}; the agent adds accept rules for the pod network")
        else:
            yield Finding(
                "firewall.forward",
                "error",
                f"{text}, and the pod network is not accepted in it"
                + ("" if accept else " (network.forward_accept is false)"),
                "It drops what pods send to other nodes and outside, whatever netagent's rules say.",
                "see the agent's log why it could not add its rules"
                if accept
                else "set network.forward_accept to true, or accept the pools in that chain by hand",
            )


def denying_inputs(chains: Iterable[Item]) -> list[tuple[str, str, str]]:
    """Family, table and name of others' base chains of the input hook with policy drop."""
    found = []
    for item in chains:
        chain = item.get("chain") or {}
        if chain.get("hook") == "input" and chain.get("policy") == "drop":
            name = (str(chain["family"]), str(chain["table"]), str(chain["name"]))
            if name[:2] != OWN_TABLE and name[0] in ("ip", "ip6", "inet"):
                found.append(name)
    return found


def input_chains(listings: Mapping[str, Iterable[Item]], port: int | None) -> Iterable[Finding]:
    """`listings`: chain -> what nft prints of its table; `port`: of VXLAN, None where there is none.

    Only whether the table names the port is looked at: what its rules come to only its owner knows.
    """
    silent = [name for name, listing in listings.items() if port is not None and not _names_port(listing, port)]
    if silent:
        yield Finding(
            "firewall.input",
            "warning",
            f"chain {', '.join(sorted(silent))} drops incoming packets by default and no rule there names UDP {port}",
            "Unless another of its rules lets the other nodes in, their pods' packets are dropped.",
            f"accept udp dport {port} from the nodes there (and tcp 9099 from Prometheus)",
        )
    else:
        yield Finding("firewall.input", "ok", "no chain of others is known to drop the tunnels' packets")


def _names_port(listing: Iterable[Item], port: int) -> bool:
    """Also in sets, ranges and in what iptables-nft wrote."""
    return any(re.search(rf"\b{port}\b", str(item)) for item in listing if "rule" in item or "set" in item)


def legacy_tables(policies: Mapping[str, str], *, tables: Collection[str], with_nft: bool) -> Iterable[Finding]:
    """Tables of the old iptables.

    `policies`: `IPv4` or `IPv6` -> policy of its FORWARD chain, "" where it could not be read; `tables`: names of all
    of them; `with_nft`: iptables' tables exist in nftables as well.
    """
    if not tables:
        yield Finding("firewall.legacy", "ok", "no tables of legacy iptables")
        return
    dropping = sorted(family for family, policy in policies.items() if policy == "DROP")
    if dropping:
        yield Finding(
            "firewall.legacy",
            "warning",
            f"FORWARD of legacy iptables drops by default ({', '.join(dropping)})",
            "netagent sees only nftables and cannot accept the pod network there: unless a rule of that chain does, "
            "pods reach nothing off the node.",
            "iptables-legacy -P FORWARD ACCEPT, or change what made it to iptables-nft "
            "(update-alternatives --set iptables /usr/sbin/iptables-nft)",
        )
    if with_nft:
        yield Finding(
            "firewall.legacy_and_nft",
            "warning",
            f"iptables both in legacy ({', '.join(sorted(tables))}) and in nftables",
            "kube-proxy and other programs write into different ones: rules of one program are not seen by another.",
            "let all use one of them; clear the other with its own iptables-save, -F and -X, or reboot",
        )
    elif not dropping:
        yield Finding(
            "firewall.legacy",
            "info",
            f"tables of legacy iptables: {', '.join(sorted(tables))}",
            "They work beside nftables, but netagent cannot look into them.",
        )
