"""What changed in the view and is not compiled yet, handed out in portions, so that little never waits for much.

A small backlog is one portion. A large one is served from both ends: each portion has the newest changes, which most
likely stand alone, and some of the oldest, so that none waits for ever. A pod that starts goes before all of it.

Where the order of changes must hold, a portion holds it:
- All pending policies of a namespace come together, so a pod meets one state of the policies that can select it, a
  state that the API server had. That of a pod that starts is the newest, and so is that of a pod of this node that
  changes: with new labels and older policies it could be open though it never was.
- A namespace's labels count for all its pods at once, up to RELABELLED_AT_ONCE of them.
- Who had an address before leaves the peer sets no later than its next owner enters them.

Nothing else has an order: policies of two namespaces, or objects of two kinds, judge the two ends of a flow, which may
be on two nodes.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from msgspec import Struct, field

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.store import Dirty
from netagent.records import Key, Kind

PORTION = 100
"""Pods in one portion, about: compiling takes one to two milliseconds, more where all of them matter here."""
POLICY_WEIGHT = 4
"""Pods that a policy counts for."""
NEWEST = 16
"""Pods of a portion that are from the newest end."""
READ_AT_ONCE = 24
"""Policies whose meaning is worked out in one go."""
RELABELLED_AT_ONCE = 500
"""Pods of a relabelled namespace in one portion."""


class Arrival(Struct, frozen=True, gc=False):
    """An event of the API that is compiled now."""

    kind: Kind
    received_s: float


class Portion(Struct):
    """What to compile next."""

    dirty: Dirty = field(default_factory=Dirty)
    unread: list[Key] = field(default_factory=list)
    """Policies to read ahead of a portion that needs them; then nothing is dirty."""
    arrivals: list[Arrival] = field(default_factory=list)


class Backlog:
    """What `compiler` has still to be told."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._store = compiler.store
        self._pods: OrderedDict[Key, float] = OrderedDict()
        """Oldest first -> when the event arrived; 0: touched by something else."""
        self._policies: OrderedDict[str, dict[Key, float]] = OrderedDict()
        """By namespace."""
        self._policy_count = 0
        self._namespaces: OrderedDict[str, float] = OrderedDict()
        self._rest: dict[str, list[Key]] = {}
        """Pods of a relabelled namespace that are not compiled yet, where they are too many for one portion."""
        self._nodes = Dirty()
        self._node_arrivals: list[Arrival] = []
        self._urgent = Dirty()
        self._left: dict[str, set[Key]] = {}
        """Address -> pods that are in peer sets with it and own it no more."""
        self._turn = 0

    def __bool__(self) -> bool:
        return bool(self._pods or self._policies or self._namespaces or self._nodes)

    @property
    def large(self) -> bool:
        """Whether it is more than one portion."""
        return self._weight() > PORTION

    def add(self, dirty: Dirty, received_s: float = 0.0) -> None:
        """Something was touched, by an event of the API that arrived then (0: by something else)."""
        for key in dirty.pods:
            self._pods[key] = self._pods.pop(key, 0.0) or received_s
            self._note_left(key)
        for key in dirty.policies:
            self._add_policy(key, received_s)
        for name in dirty.namespaces:
            self._namespaces[name] = self._namespaces.pop(name, 0.0) or received_s
            self._rest.pop(name, None)
        if dirty.nodes or dirty.leases:
            self._nodes.add(Dirty(nodes=dirty.nodes, leases=dirty.leases))
            if received_s:
                self._node_arrivals.append(Arrival(Kind.NODE if dirty.nodes else Kind.LEASE, received_s))

    def hasten(self, dirty: Dirty, namespace: str) -> None:
        """A pod of a namespace starts: it and the policies of its namespace go first."""
        self.add(dirty)
        self._urgent.add(Dirty(pods=dirty.pods, namespaces={namespace}))

    def take(self) -> Portion:
        """The next portion; empty where nothing is left."""
        if self._urgent:
            return self._hastened()
        return self._some() if self.large else self.take_all()

    def take_all(self) -> Portion:
        """All that is left."""
        portion = Portion()
        for name in list(self._policies):
            self._take_policies(portion, name)
        for name in list(self._namespaces):
            if name in self._rest:
                portion.dirty.pods.update(self._rest[name])
            else:
                portion.dirty.namespaces.add(name)
            self._take_namespace(portion, name)
        self._take_pods(portion, list(self._pods))
        self._take_nodes(portion)
        self._urgent = Dirty()
        return portion

    def unread(self) -> list[Key]:
        """All policies that have still to be read."""
        return [key for keys in self._policies.values() for key in self._compiler.unread(keys)]

    # Portions

    def _hastened(self) -> Portion:
        names = self._urgent.namespaces | self._judging(self._urgent.pods)
        for name in names:
            if unread := self._too_many_unread(name):
                return Portion(unread=unread)
        urgent, self._urgent = self._urgent, Dirty()
        portion = Portion()
        for name in names:
            self._take_policies(portion, name)
        self._take_pods(portion, urgent.pods)
        return portion

    def _some(self) -> Portion:
        """The newest of everything, and the oldest of one kind by turns."""
        portion = Portion()
        self._turn += 1
        lanes = [lane for lane in (self._pods, self._policies, self._namespaces) if lane]
        lane = lanes[self._turn % len(lanes)] if lanes else None
        pods = list(islice(reversed(self._pods), NEWEST))
        if lane is self._pods:
            pods += islice(self._pods, PORTION)
        relabelled = ""
        if self._namespaces:
            relabelled = next(iter(self._namespaces) if lane is self._namespaces else reversed(self._namespaces))
        chosen = self._judging(pods) | self._judging(self._unlike(relabelled))
        if self._policies:
            chosen.add(next(reversed(self._policies)))
        if lane is self._policies:
            chosen.add(next(iter(self._policies)))
        for name in chosen:
            if unread := self._too_many_unread(name):
                return Portion(unread=unread)
        for name in chosen:
            self._take_policies(portion, name)
        self._take_pods(portion, pods)
        if relabelled:
            self._relabel(portion, relabelled)
        self._take_nodes(portion)
        return portion

    def _judging(self, pods: Iterable[Key]) -> set[str]:
        """Namespaces whose pending policies come with these pods."""
        local = (key for key in pods if key.namespace in self._policies and self._store.sandboxes_of(key))
        return {key.namespace for key in local}

    def _unlike(self, relabelled: str) -> Iterable[Key]:
        """Pods of a relabelled namespace that have changed themselves too."""
        if relabelled not in self._policies:
            return ()
        return (key for key in self._store.pods_of(relabelled) if key in self._pods)

    def _too_many_unread(self, namespace: str) -> list[Key]:
        unread = self._compiler.unread(self._policies.get(namespace, ()))
        return unread[:READ_AT_ONCE] if len(unread) > READ_AT_ONCE else []

    def _relabel(self, portion: Portion, name: str) -> None:
        rest = self._rest.pop(name, None)
        if rest is None:
            rest = list(self._store.pods_of(name))
        self._take_pods(portion, rest[:RELABELLED_AT_ONCE])
        if len(rest) > RELABELLED_AT_ONCE:
            self._rest[name] = rest[RELABELLED_AT_ONCE:]
        else:
            self._take_namespace(portion, name)

    # Taking out

    def _take_policies(self, portion: Portion, namespace: str) -> None:
        keys = self._policies.pop(namespace, {})
        self._policy_count -= len(keys)
        portion.dirty.policies.update(keys)
        self._arrived(portion, Kind.NETWORK_POLICY, keys.values())

    def _take_namespace(self, portion: Portion, name: str) -> None:
        self._rest.pop(name, None)
        self._arrived(portion, Kind.NAMESPACE, (self._namespaces.pop(name, 0.0),))

    def _take_pods(self, portion: Portion, keys: Iterable[Key]) -> None:
        """Pods, and with them those that had their addresses before."""
        due = list(keys)
        while due:
            key = due.pop()
            self._arrived(portion, Kind.POD, (self._pods.pop(key, 0.0),))
            portion.dirty.pods.add(key)
            for ip in self._compiler.peer_ips(key):
                self._forget_left(ip, key)
            for ip in self._store.owned_ips(key):
                due += self._left.pop(ip, ())

    def _take_nodes(self, portion: Portion) -> None:
        portion.dirty.add(self._nodes)
        portion.arrivals += self._node_arrivals
        self._nodes, self._node_arrivals = Dirty(), []

    # Inner workings

    def _add_policy(self, key: Key, received_s: float) -> None:
        keys = self._policies.pop(key.namespace, {})
        self._policy_count += key not in keys
        keys[key] = keys.pop(key, 0.0) or received_s
        self._policies[key.namespace] = keys

    def _note_left(self, key: Key) -> None:
        for ip in self._compiler.peer_ips(key):
            if self._store.owner(ip) != key:
                self._left.setdefault(ip, set()).add(key)

    def _forget_left(self, ip: str, key: Key) -> None:
        keys = self._left.get(ip)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._left[ip]

    def _weight(self) -> int:
        weight = len(self._pods) + POLICY_WEIGHT * self._policy_count
        for name in self._namespaces:
            if weight > PORTION:
                break
            weight += len(self._rest[name]) if name in self._rest else self._store.count_of(name)
        return weight

    @staticmethod
    def _arrived(portion: Portion, kind: Kind, received: Iterable[float]) -> None:
        portion.arrivals += [Arrival(kind, received_s) for received_s in received if received_s]
