"""Which addresses the peers of rules stand for, kept up to date set by set.

One nftables set per distinct union of peers and IP version, shared by all rules that use it and active only while a
rule does. A rule with several selectors needs one look-up this way. Named egress ports get sets of address and port,
because the number behind a name is the destination pod's.

Nodes reach remote pods through the overlay from the network address of their subnet. For ipBlock such an address is its
node's: it is in the set when the block holds the node's own address.
"""

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct, field
from msgspec.json import encode

from netagent.core.policy.intervals import holds
from netagent.core.policy.meaning import BlockPeer, NamedPort, Peer, PodPeer
from netagent.core.policy.names import content_name
from netagent.core.policy.ruleset import Ruleset, SetDecl
from netagent.core.policy.selectors import EVERYTHING, SelectorIndex
from netagent.core.policy.store import Store
from netagent.records import ContainerPort, Key

ALL_PODS = PodPeer("", EVERYTHING, EVERYTHING)
ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}

Change = Callable[[str, str], None]
"""`Ruleset.put` or `Ruleset.discard`."""


class SetKey(Struct, frozen=True, gc=False):
    """What a peer set holds: addresses of the peers of one IP version, or address and number of a named port."""

    peers: frozenset[Peer]
    version: int
    port: NamedPort | None = None

    @property
    def name(self) -> str:
        """Of the nftables set. From the peers as JSON: as text, two of them can look alike."""
        peers = sorted(encode(peer).decode() for peer in self.peers)
        if self.port is None:
            return content_name(f"p{self.version}", peers, min(map(str, self.peers)))
        return content_name(f"n{self.version}", [str(self.port), *peers], self.port.name)


class _Matched(Struct, frozen=True, gc=False):
    """What a pod gives to the sets."""

    peers: frozenset[Peer]
    ips: tuple[str, ...]
    ports: tuple[ContainerPort, ...]


class _Active(Struct, gc=False):
    """A set in use."""

    name: str
    uses: int = 0


class _ActivePeer(Struct, gc=False):
    """A peer in use: the sets that hold it and the pods that match it."""

    sets: dict[SetKey, None] = field(default_factory=dict)
    pods: dict[Key, None] = field(default_factory=dict)


def version_of(ip: str) -> int:
    """4 or 6."""
    return 6 if ":" in ip else 4


class PeerSets:
    """The active peer sets of a ruleset."""

    def __init__(self, store: Store, ruleset: Ruleset) -> None:
        self._store = store
        self._ruleset = ruleset
        self._sets: dict[SetKey, _Active] = {}
        self._peers: dict[Peer, _ActivePeer] = {}
        self._index_in: dict[str, SelectorIndex[Peer]] = {}
        self._index: SelectorIndex[Peer] = SelectorIndex()
        self._pods: dict[Key, _Matched] = {}
        self._overlay: dict[str, str] = {}

    def acquire(self, key: SetKey) -> None:
        """The set exists and is filled until as many releases."""
        active = self._sets.get(key)
        if active is None:
            active = self._sets[key] = _Active(key.name)
            port = " . inet_service" if key.port else ""
            self._ruleset.declare(active.name, SetDecl(ADDRESS_TYPE[key.version] + port))
            for peer in key.peers:
                self._activate(peer, key)
            for address, node_ip in self._overlay.items():
                self._overlay_member(key, address, node_ip, self._ruleset.put)
        active.uses += 1

    def release(self, key: SetKey) -> None:
        """One use less; the last one drops the set."""
        active = self._sets[key]
        active.uses -= 1
        if active.uses == 0:
            del self._sets[key]
            self._ruleset.drop_set(active.name)
            for peer in key.peers:
                self._deactivate(peer, key)

    def pod_changed(self, key: Key) -> None:
        """The pod, its namespace's labels or the owner of its addresses changed."""
        old, new = self._pods.get(key), self._match(key)
        if old == new:
            return
        if old is not None and new is not None and (old.ips, old.ports) == (new.ips, new.ports):
            gone, come = old.peers - new.peers, new.peers - old.peers
        else:
            gone = old.peers if old else frozenset()
            come = new.peers if new else frozenset()
        for peer in gone:
            del self._peers[peer].pods[key]
            self._contribute(peer, old, self._ruleset.discard)
        for peer in come:
            self._peers[peer].pods[key] = None
            self._contribute(peer, new, self._ruleset.put)
        if new is None:
            self._pods.pop(key, None)
        else:
            self._pods[key] = new

    def ips_of(self, key: Key) -> tuple[str, ...]:
        """Addresses with which a pod is in sets now."""
        matched = self._pods.get(key)
        return matched.ips if matched is not None else ()

    def overlay_changed(self, overlay: Mapping[str, str]) -> None:
        """Overlay address -> node address, for every other node."""
        for address, node_ip in self._overlay.items():
            if overlay.get(address) != node_ip:
                for key in self._sets:
                    self._overlay_member(key, address, node_ip, self._ruleset.discard)
        for address, node_ip in overlay.items():
            if self._overlay.get(address) != node_ip:
                for key in self._sets:
                    self._overlay_member(key, address, node_ip, self._ruleset.put)
        self._overlay = dict(overlay)

    # Peers in use

    def _activate(self, peer: Peer, key: SetKey) -> None:
        if isinstance(peer, BlockPeer) and key.port is None:
            return  # plain blocks are interval sets of their own
        active = self._peers.get(peer)
        if active is not None:
            active.sets[key] = None
            for pod in active.pods:
                self._give(key, peer, self._pods[pod], self._ruleset.put)
            return
        active = self._peers[peer] = _ActivePeer({key: None})
        self._file(peer, add=True)
        for pod in self._pods_for(peer):
            before = self._pods.get(pod)
            peers = before.peers | {peer} if before else frozenset((peer,))
            matched = _Matched(peers, self._store.owned_ips(pod), self._store.pods[pod].ports)
            if before is not None and (before.ips, before.ports) != (matched.ips, matched.ports):
                continue  # it changed and comes later: `pod_changed` must know what it gave to the sets until then
            if matched.ips:
                self._pods[pod] = matched
                active.pods[pod] = None
                self._give(key, peer, matched, self._ruleset.put)

    def _deactivate(self, peer: Peer, key: SetKey) -> None:
        if isinstance(peer, BlockPeer) and key.port is None:
            return
        active = self._peers[peer]
        del active.sets[key]
        if active.sets:
            return
        del self._peers[peer]
        self._file(peer, add=False)
        for pod in active.pods:
            matched = self._pods[pod]
            rest = matched.peers - {peer}
            if rest:
                self._pods[pod] = _Matched(rest, matched.ips, matched.ports)
            else:
                del self._pods[pod]

    def _file(self, peer: Peer, *, add: bool) -> None:
        selector = peer.pods if isinstance(peer, PodPeer) else EVERYTHING
        index = self._index
        if isinstance(peer, PodPeer) and peer.namespace:
            index = self._index_in.setdefault(peer.namespace, SelectorIndex())
        (index.add if add else index.discard)(selector, peer)
        if isinstance(peer, PodPeer) and peer.namespace and not index:
            del self._index_in[peer.namespace]

    def _pods_for(self, peer: Peer) -> list[Key]:
        store = self._store
        if isinstance(peer, BlockPeer):
            return list(store.pods)
        if peer.namespace or peer.namespaces == EVERYTHING or peer.pods.anchor() is not None:
            found = store.pods_matching(peer.pods, peer.namespace)
            return [key for key in found if peer_matches(peer, key, store)]
        chosen = (name for name, one in store.namespaces.items() if peer.namespaces.matches(one.labels))
        return [key for name in chosen for key in store.pods_matching(peer.pods, name)]

    # Pods

    def _match(self, key: Key) -> _Matched | None:
        pod = self._store.pods.get(key)
        if pod is None:
            return None
        candidates = list(self._index.candidates(pod.labels))
        if key.namespace in self._index_in:
            candidates += self._index_in[key.namespace].candidates(pod.labels)
        peers = frozenset(
            peer for peer in candidates if isinstance(peer, BlockPeer) or peer_matches(peer, key, self._store)
        )
        ips = self._store.owned_ips(key) if peers else ()
        return _Matched(peers, ips, pod.ports) if ips else None

    def _contribute(self, peer: Peer, matched: _Matched | None, change: Change) -> None:
        if matched is not None:
            for key in self._peers[peer].sets:
                self._give(key, peer, matched, change)

    def _give(self, key: SetKey, peer: Peer, matched: _Matched, change: Change) -> None:
        name = self._sets[key].name
        for ip in matched.ips:
            if version_of(ip) != key.version or (isinstance(peer, BlockPeer) and not holds(peer, ip)):
                continue
            if key.port is None:
                change(name, ip)
                continue
            for number in numbers_of(key.port, matched.ports):
                change(name, f"{ip} . {number}")

    def _overlay_member(self, key: SetKey, address: str, node_ip: str, change: Change) -> None:
        if key.port is None and version_of(address) == key.version:
            for peer in key.peers:
                if isinstance(peer, BlockPeer) and holds(peer, node_ip):
                    change(self._sets[key].name, address)


def peer_matches(peer: PodPeer, key: Key, store: Store) -> bool:
    """Whether a pod of the view is one of the peer's, by its labels and its namespace's."""
    pod = store.pods[key]
    if not peer.pods.matches(pod.labels):
        return False
    if peer.namespace:
        return key.namespace == peer.namespace
    namespace = store.namespaces.get(key.namespace)
    return namespace is not None and peer.namespaces.matches(namespace.labels)


def numbers_of(port: NamedPort, declared: Iterable[ContainerPort]) -> tuple[int, ...]:
    """The numbers that a pod declares for a named port, without repeats."""
    found = {one.number for one in declared if (one.name, one.protocol) == (port.name, port.protocol)}
    return tuple(sorted(found))
