"""Other people's forward chains that would drop pod traffic, and the accept rules that we keep in them.

A drop in any base chain of the forward hook wins over every accept elsewhere, so a chain that denies by default (Docker
sets the policy of iptables' FORWARD to DROP) needs rules of ours in itself. In nftables an accept ends one base chain
only: our own forward chain still judges the same packet. Each rule matches one pod network as source or as destination
and nothing else, in the form that iptables-nft can read: a set or a foreign expression in its table would break it.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

COMMENT = "netagent"
"""Of every rule of ours in a foreign chain: with its shape it is how we know it again."""
OWN_TABLE = ("inet", "netagent")
WORDS = {4: "ip", 6: "ip6"}
VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
"""Table family -> IP versions of the packets that its chains see."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_./-]{1,255}")
"""Names that can stand in a script unquoted."""

Item = Mapping[str, Any]


class ChainName(Struct, frozen=True, order=True, gc=False):
    """Names a chain in the whole ruleset."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain}"


class Accept(Struct, frozen=True, order=True, gc=False):
    """What an accept rule of ours matches."""

    word: str
    """ip or ip6."""
    field: str
    """saddr or daddr."""
    cidr: str


class ForwardChain(Struct, frozen=True):
    """A foreign base chain of the forward hook."""

    name: ChainName
    denies: bool
    """What no rule of it decides is dropped: by its policy, or by a last rule without condition."""
    final_handle: int | None
    """Of that last rule; None where there is none."""
    ours: Mapping[Accept, tuple[int, ...]]
    """Our rules in it, with their handles."""


def forward_chains(listing: Iterable[Item]) -> tuple[ChainName, ...]:
    """Foreign base chains of the forward hook in what `nft -j list chains` prints, in order."""
    found = []
    for item in listing:
        chain = item.get("chain") or {}
        if chain.get("hook") != "forward" or chain.get("family") not in VERSIONS:
            continue
        name = ChainName(chain["family"], chain["table"], chain["name"])
        if (name.family, name.table) != OWN_TABLE and all(map(PLAIN_NAME.fullmatch, (name.table, name.chain))):
            found.append(name)
    return tuple(sorted(found))


def read_chain(name: ChainName, listing: Iterable[Item]) -> ForwardChain | None:
    """The chain in what `nft -j list chain` prints of it; None where it is no base chain of the hook (any more)."""
    policy = None
    rules: list[Item] = []
    for item in listing:
        chain = item.get("chain") or {}
        if (chain.get("name"), chain.get("hook")) == (name.chain, "forward"):
            policy = chain.get("policy", "accept")
        elif "rule" in item:
            rules.append(item["rule"])
    if policy is None:
        return None
    ours: dict[Accept, tuple[int, ...]] = {}
    for rule in rules:
        if accept := our_accept(rule):
            ours[accept] = (*ours.get(accept, ()), rule["handle"])
    foreign = [rule for rule in rules if our_accept(rule) is None]
    final = foreign[-1]["handle"] if foreign and _drops_all(foreign[-1]) else None
    return ForwardChain(name, policy == "drop" or final is not None, final, ours)


def has_xt_comment(rule: Item) -> bool:
    """Whether the rule has a comment as an xtables match: its text must be read in another way."""
    return any((one.get("xt") or {}).get("name") == "comment" for one in rule.get("expr", ()))


def with_comments(listing: Iterable[Item], comments: Mapping[int, str]) -> list[Item]:
    """The listing with such comments (rule handle -> text) where nft's own would be."""
    return [
        {"rule": _with_comment(item["rule"], comments)} if has_xt_comment(item.get("rule") or {}) else item
        for item in listing
    ]


def _with_comment(rule: Item, comments: Mapping[int, str]) -> Item:
    rest = [one for one in rule["expr"] if (one.get("xt") or {}).get("name") != "comment"]
    return {**rule, "expr": rest, "comment": comments.get(rule["handle"], "")}


def our_accept(rule: Item) -> Accept | None:
    """What a rule of ours matches; None for everybody else's."""
    if rule.get("comment") != COMMENT:
        return None
    match [one for one in rule.get("expr", ()) if "counter" not in one]:
        case [{"match": {"op": "==", "left": {"payload": payload}, "right": right}}, {"accept": _}]:
            cidr = _cidr(right)
            word, field = payload.get("protocol"), payload.get("field")
            if cidr and word in WORDS.values() and field in ("saddr", "daddr"):
                return Accept(word, field, cidr)
    return None


def wanted_accepts(family: str, pools: Iterable[str]) -> tuple[Accept, ...]:
    """The accepts that a denying chain of a table family needs: from and to each pod network of its IP versions."""
    networks = [ipaddress.ip_network(pool) for pool in pools]
    return tuple(
        Accept(WORDS[network.version], field, str(network))
        for network in networks
        if network.version in VERSIONS[family]
        for field in ("saddr", "daddr")
    )


def corrections(chain: ForwardChain, pools: Sequence[str], *, first: bool) -> list[str]:
    """Commands that bring our rules in a chain to what they should be; none where they are.

    `first`: before all rules of others; else after them, so that another policy engine's rules in the same chain keep
    the first word.
    """
    wanted = wanted_accepts(chain.name.family, pools) if chain.denies else ()
    return [*_deletions(chain, wanted), *_additions(chain, wanted, first=first)]


def _deletions(chain: ForwardChain, wanted: Iterable[Accept]) -> Iterator[str]:
    for accept, handles in chain.ours.items():
        for handle in handles[1:] if accept in wanted else handles:
            yield f"delete rule {chain.name} handle {handle}"


def _additions(chain: ForwardChain, wanted: Iterable[Accept], *, first: bool) -> Iterator[str]:
    verb, place = ("insert", "") if first else ("add", "")
    if not first and chain.final_handle is not None:
        verb, place = "insert", f"handle {chain.final_handle} "
    for accept in wanted:
        if accept not in chain.ours:
            match = f"{accept.word} {accept.field} {accept.cidr}"
            yield f'{verb} rule {chain.name} {place}{match} counter accept comment "{COMMENT}"'


def _drops_all(rule: Item) -> bool:
    """Whether no packet passes this rule: nothing but a verdict against it."""
    match [one for one in rule.get("expr", ()) if "counter" not in one]:
        case [{"drop": _}] | [{"reject": _}] | [{"xt": {"type": "target", "name": "REJECT" | "DROP"}}]:
            return True
    return False


def _cidr(right: Any) -> str:
    """Canonical CIDR of the right side of a match; "" where it is no network."""
    match right:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            text = f"{address}/{length}"
        case str(text):
            pass
        case _:
            return ""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        return ""
