"""What a simulation asks: ports and outside addresses that stand for all that the policies can tell apart."""

import ipaddress
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from netagent.core.policy.meaning import BlockPeer, Policy, PortRange, Rule
from netagent.core.questions.parties import ICMP, Cluster, Party, party_at

MAX_PORTS = 32
"""Ports asked per destination."""
MAX_SAMPLES = 32
"""Addresses outside the cluster that stand for ipBlocks."""
OUTSIDE = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses (RFC 5737, RFC 3849): somebody in the internet."""
OTHER_PORTS = range(65535, 65435, -1)
"""Where a port that nobody names is looked for."""


class Asked(Struct, frozen=True, gc=False):
    """A protocol and port, and their name for people."""

    protocol: str
    port: int | None
    label: str


def ports_of(target: Party, touched: Iterable[Policy], other: int | None) -> list[Asked]:
    """Ports of a destination: declared, named by the policies, `other` for all the rest, and ICMP."""
    pod = target.subject or target.owner
    declared = {(one.protocol, one.number) for one in (pod.ports if pod is not None else ())}
    numbers = sorted(declared) + sorted(_mentioned(touched) - declared)
    asked = [Asked(protocol, number, f"{number}/{protocol}") for protocol, number in numbers[:MAX_PORTS]]
    if other is not None:
        asked += (Asked(protocol, other, f"any other {protocol} port") for protocol in ("TCP", "UDP"))
    return [*asked, Asked(ICMP, None, ICMP)]


def _mentioned(policies: Iterable[Policy]) -> set[tuple[str, int]]:
    """First and last port of every range that the policies' rules name."""
    return {(port.protocol, number) for port in _ranges(_rules(policies)) for number in (port.first, port.last)}


def _ranges(rules: Iterable[Rule]) -> Iterator[PortRange]:
    for rule in rules:
        for port in rule.ports or ():
            if isinstance(port, PortRange) and port.first > 0:
                yield port


def other_port(touched: Iterable[Policy], rules: Iterable[Rule], subject: Party) -> int | None:
    """A port that no rule in question names and the subject does not declare."""
    pod = subject.subject
    declared = {port.number for port in (pod.ports if pod is not None else ())}
    ranges = list(_ranges([*_rules(touched), *rules]))
    for number in OTHER_PORTS:
        if number not in declared and not any(port.first <= number <= port.last for port in ranges):
            return number
    return None


def outside(cluster: Cluster, touched: Iterable[Policy]) -> list[Party]:
    """Addresses outside the cluster: one of the internet, and the first of each block and except."""
    blocks = sorted(
        {
            text
            for rule in _rules(touched)
            for peer in rule.peers or ()
            if isinstance(peer, BlockPeer)
            for text in (peer.cidr, *peer.excepts)
            if text not in ("0.0.0.0/0", "::/0")
        }
    )
    first = dict.fromkeys([*OUTSIDE, *blocks])
    parties = (party_at(cluster, str(ipaddress.ip_network(text).network_address)) for text in first)
    outsiders = (party for party in parties if party.subject is None and not party.unknown and not party.node)
    distinct = {party.ip: party for party in islice(outsiders, MAX_SAMPLES)}
    return list(distinct.values())


def _rules(policies: Iterable[Policy]) -> Iterator[Rule]:
    return (rule for policy in policies for rules in policy.rules.values() for rule in rules)
