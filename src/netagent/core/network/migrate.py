"""What stands between a node of flannel and one of netagent, and what to do about it: plans, without doing anything.

Devices, routes, neighbours and forwarding entries need no plan: the agent takes them over where they are. What is left
is on disk (whose configuration list the runtime reads) and in the packet filter (flannel's chains, twice what netagent
does in its own table).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

CHAINS = ("FLANNEL-POSTRTG", "FLANNEL-FWD")
"""Of flannel in iptables mode, in table nat and filter, for IPv4 and IPv6 alike."""
IPTABLES = (("ip", "nat"), ("ip", "filter"), ("ip6", "nat"), ("ip6", "filter"))
"""nftables' names of iptables-nft's tables that flannel uses."""
TABLES = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
"""Of flannel in nftables mode."""
REPLACED = ".replaced-by-netagent"
"""End of the name under which a configuration list of flannel's waits for the way back: no runtime reads it."""
CONFIG_ENDS = (".conf", ".conflist", ".json")
"""What a runtime reads."""
PLUGIN = "flannel"

Item = Mapping[str, Any]


class _Plugin(msgspec.Struct):
    type: str = ""


class _Conflist(msgspec.Struct):
    name: str = ""
    type: str = ""
    """Of a configuration of one plugin."""
    plugins: list[_Plugin] = []


def flannel_network(content: bytes) -> str | None:
    """Name of the network in a CNI configuration (list) that goes through flannel's plugin; None for any other."""
    try:
        found = msgspec.json.decode(content, type=_Conflist)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.name if PLUGIN in (found.type, *(plugin.type for plugin in found.plugins)) else None


def rule_removals(listing: Iterable[Item]) -> list[str]:
    """nft commands that take flannel's chains out of the tables of iptables-nft, and the jumps to them.

    `listing` is what `nft -j list table` prints, of any number of tables. Nothing else in them is touched.
    """
    jumps: list[str] = []
    chains: list[str] = []
    for item in listing:
        if rule := item.get("rule"):
            targets = {part.get(verb, {}).get("target") for part in rule["expr"] for verb in ("jump", "goto")}
            if targets & set(CHAINS):
                jumps.append(f"delete rule {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}")
        elif (chain := item.get("chain")) and chain["name"] in CHAINS:
            chains.append(f"{chain['family']} {chain['table']} {chain['name']}")
    return [
        *jumps,
        *(f"flush chain {name}" for name in chains),
        *(f"delete chain {name}" for name in chains),
    ]


def legacy_removal(saved: str) -> str:
    """From what iptables-legacy-save prints, what iptables-legacy-restore --noflush needs to take flannel's chains out.

    "" where there are none. One COMMIT per table: all of it or nothing.
    """
    parts: list[str] = []
    table, found = "", []  # type: str, list[str]
    for line in saved.splitlines():
        if line.startswith("*"):
            table, found = line, []
        elif line == "COMMIT" and found:
            parts += [table, *found, "COMMIT"]
        elif name := _declared(line):
            found += [f"-F {name}", f"-X {name}"]
        elif line.startswith("-A ") and re.search(rf" -[jg] ({'|'.join(CHAINS)})$", line):
            found.insert(0, f"-D {line[3:]}")
    return "".join(f"{line}\n" for line in parts)


def _declared(line: str) -> str:
    """The chain of flannel's that a line like `:FLANNEL-FWD - [0:0]` declares; "" for other lines."""
    name = line[1:].split(" ", 1)[0] if line.startswith(":") else ""
    return name if name in CHAINS else ""
