"""Which ends of flows no policy tells apart, so that one of them may be judged for all.

Behind two addresses that are alike are pods of the same namespace, with the same values of the labels that any
selector names and the same declared ports (where a rule names one), or nobody; and they lie on the same side of every
boundary of an ipBlock. Nodes other than those of this node's pods are alike.
"""

import ipaddress
from bisect import bisect_right
from collections.abc import Hashable, Iterator

from netagent.core.policy.meaning import BlockPeer, NamedPort, Peer, PodPeer, Policy
from netagent.core.policy.peersets import version_of
from netagent.core.policy.selectors import Selector
from netagent.core.questions.parties import Party
from netagent.records import Pod

ELSEWHERE = -1
"""Aspect of pods of other namespaces to a peer of one namespace."""


class Likeness:
    """First `learn` all policies and `settle`, then ask for the `number` of each party, those of this node first."""

    def __init__(self) -> None:
        self.parties: list[Party] = []
        """By number: the first party of each likeness."""
        self._labels: set[str] = set()
        self._named_ports = False
        self._networks: set[str] = set()
        self._cuts: dict[int, list[int]] = {}
        self._hosts: set[str] = set()
        self._numbers: dict[Hashable, int] = {}
        self._aspects: dict[Hashable, int] = {}
        self._owners: list[int] = []
        self._places: list[int] = []

    def learn(self, policy: Policy) -> None:
        """Note what the policy tells apart."""
        self._note(policy.selects)
        for rules in policy.rules.values():
            for rule in rules:
                self._named_ports |= any(isinstance(port, NamedPort) for port in rule.ports or ())
                for peer in rule.peers or ():
                    if isinstance(peer, PodPeer):
                        self._note(peer.pods)
                    else:
                        self._networks.update(_networks(peer))

    def _note(self, selector: Selector) -> None:
        self._labels.update(requirement.key for requirement in selector.requirements)

    def settle(self) -> Iterator[None]:
        """All policies are known; yields between small steps."""
        cuts: dict[int, set[int]] = {4: set(), 6: set()}
        for text in self._networks:
            network = ipaddress.ip_network(text)
            cuts[network.version] |= {int(network.network_address), int(network.broadcast_address) + 1}
            yield
        self._cuts = {version: sorted(found) for version, found in cuts.items()}

    def number(self, party: Party) -> int:
        """Equal for parties that are alike."""
        if party.local:
            self._hosts.add(party.host)
        owner, place = self._pod(party.owner), (self._place(party.counts_as or party.ip), version_of(party.ip))
        likeness = (
            owner,
            place,
            bool(party.counts_as),
            party.unknown,
            None if party.owner is party.subject else self._pod(party.subject) or (),
            party.local and party.host,
            party.node if party.node in self._hosts else bool(party.node),
        )
        number = self._numbers.setdefault(likeness, len(self.parties))
        if number == len(self.parties):
            self.parties.append(party)
            self._owners.append(self._aspects.setdefault(owner, len(self._aspects)))
            self._places.append(self._aspects.setdefault(place, len(self._aspects)))
        return number

    def aspect(self, peer: Peer, number: int) -> int:
        """What of a likeness a peer looks at: equal where it must hold both or neither."""
        if isinstance(peer, BlockPeer):
            return self._places[number]
        owner = self.parties[number].owner
        if owner is not None and peer.namespace and owner.key.namespace != peer.namespace:
            return ELSEWHERE
        return self._owners[number]

    def _pod(self, pod: Pod | None) -> Hashable:
        if pod is None:
            return None
        labels = tuple(sorted((key, value) for key, value in pod.labels.items() if key in self._labels))
        return pod.key.namespace, labels, pod.ports if self._named_ports else ()

    def _place(self, ip: str) -> tuple[int, int]:
        """Between which two boundaries an address lies."""
        address = ipaddress.ip_address(ip)
        return address.version, bisect_right(self._cuts[address.version], int(address))


def _networks(peer: BlockPeer) -> tuple[str, ...]:
    return peer.cidr, *peer.excepts
