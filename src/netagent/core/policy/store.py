"""The agent's view of the cluster: what the watches said and which pods CNI wired, indexed.

Changed only by `apply`, `admit` and `withdraw`; each returns what the change touched, so that whoever derives from the
view does work in proportion to the change. Reading never changes anything.

An address has one owner. Among the live pods that claim it, a pod that CNI wired on this node wins over what the API
says, then the younger object; finished pods and host-network pods own nothing.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

from msgspec import Struct

from netagent.core.policy.selectors import Selector
from netagent.records import (
    Change,
    Endpoint,
    Key,
    Kind,
    Listed,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Record,
    Removed,
    SubnetLease,
    Undecodable,
    Upserted,
)

B = TypeVar("B", bound=Hashable)
E = TypeVar("E", bound=Hashable)

FINISHED = ("Succeeded", "Failed")


class Dirty(Struct, gc=False):
    """What a change touched, by key."""

    pods: set[Key] = set()
    """Pods whose object, address ownership or endpoint changed."""
    namespaces: set[str] = set()
    policies: set[Key] = set()
    nodes: bool = False
    leases: bool = False

    def add(self, other: "Dirty") -> None:
        """Touched by either."""
        self.pods |= other.pods
        self.namespaces |= other.namespaces
        self.policies |= other.policies
        self.nodes |= other.nodes
        self.leases |= other.leases

    def __bool__(self) -> bool:
        return bool(self.pods or self.namespaces or self.policies or self.nodes or self.leases)


class Sandbox(Struct, gc=False):
    """An endpoint of this node and the last pod object that described it."""

    endpoint: Endpoint
    pod: Pod | None


class Store:
    """The view. Keys of the dictionaries are those of the API objects."""

    def __init__(self) -> None:
        self.listed: set[Kind] = set()
        self.namespaces: dict[str, Namespace] = {}
        self.pods: dict[Key, Pod] = {}
        self.nodes: dict[str, Node] = {}
        self.policies: dict[Key, NetworkPolicy] = {}
        self.leases: dict[Key, SubnetLease] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        """By container ID."""
        self.undecodable: dict[tuple[Kind, Key], str] = {}
        """Objects that could not be read, and why."""
        self._pods_in: dict[str, dict[Key, None]] = {}
        self._by_label: dict[tuple[str, str], dict[Key, None]] = {}
        self._claims: dict[str, tuple[Key, ...]] = {}
        """Address -> pods that claim it, sorted: nearly always one, so no dictionary of its own for each."""
        self._sandboxes_of: dict[Key, dict[str, None]] = {}
        self._sandboxes_at: dict[str, dict[str, None]] = {}

    # Changes

    def apply(self, change: Change) -> Dirty:
        """Take one change of the API into the view."""
        if isinstance(change, Listed):
            self.listed.add(change.kind)
            return Dirty()
        if isinstance(change, Upserted):
            record = change.record
            self.undecodable.pop((change.kind, record.key), None)
        elif isinstance(change, Undecodable):
            self.undecodable[change.kind, change.key] = change.error
        else:
            self.undecodable.pop((change.kind, change.key), None)
        return self._applied(change)

    def _applied(self, change: Upserted | Removed | Undecodable) -> Dirty:
        record = change.record if isinstance(change, Upserted) else None
        key = change.record.key if isinstance(change, Upserted) else change.key
        if record is not None and record == self._record(change.kind, key):
            return Dirty()
        match change.kind:
            case Kind.POD:
                return Dirty(pods=self._put_pod(key, record if isinstance(record, Pod) else None))
            case Kind.NAMESPACE:
                _put(self.namespaces, key.name, record)
                return Dirty(namespaces={key.name})
            case Kind.NETWORK_POLICY:
                if isinstance(change, Undecodable):
                    # Its pods fail closed; without a readable selector these are all of the namespace.
                    record = NetworkPolicy(
                        key=key, uid="", policy_types=("Ingress", "Egress"), problem=f"unreadable: {change.error}"
                    )
                _put(self.policies, key, record)
                return Dirty(policies={key})
            case Kind.NODE:
                _put(self.nodes, key.name, record)
                return Dirty(nodes=True)
            case Kind.LEASE:
                _put(self.leases, key, record)
                return Dirty(leases=True)

    def _record(self, kind: Kind, key: Key) -> Record | None:
        """What is known of an object."""
        match kind:
            case Kind.POD:
                return self.pods.get(key)
            case Kind.NAMESPACE:
                return self.namespaces.get(key.name)
            case Kind.NETWORK_POLICY:
                return self.policies.get(key)
            case Kind.NODE:
                return self.nodes.get(key.name)
            case Kind.LEASE:
                return self.leases.get(key)

    def admit(self, endpoint: Endpoint) -> Dirty:
        """CNI wires (or an earlier run wired) a pod on this node."""
        touched = self.withdraw(endpoint).pods
        key, container = endpoint.pod, endpoint.container_id
        pod = self.pods.get(key)
        described = pod if pod is not None and same_pod(endpoint, pod) else None
        before = set(self._claimed_ips(key))
        self.sandboxes[container] = Sandbox(endpoint, described)
        self._sandboxes_of.setdefault(key, {})[container] = None
        for ip in endpoint.ips:
            self._sandboxes_at.setdefault(ip, {})[container] = None
        now = set(self._claimed_ips(key))
        return Dirty(pods=touched | self._release(key, before - now) | self._claim(key, now))

    def withdraw(self, endpoint: Endpoint) -> Dirty:
        """The sandbox is gone."""
        sandbox = self.sandboxes.pop(endpoint.container_id, None)
        if sandbox is None:
            return Dirty()
        key = sandbox.endpoint.pod
        _discard(self._sandboxes_of, key, endpoint.container_id)
        for ip in sandbox.endpoint.ips:
            _discard(self._sandboxes_at, ip, endpoint.container_id)
        return Dirty(pods={key} | self._reclaim(key, sandbox.endpoint.ips))

    # Reading

    def pods_of(self, namespace: str) -> Iterable[Key]:
        """Pods of a namespace."""
        return self._pods_in.get(namespace, {}).keys()

    def count_of(self, namespace: str) -> int:
        """How many pods a namespace has."""
        return len(self._pods_in.get(namespace, ()))

    def pods_matching(self, selector: Selector, namespace: str = "") -> Iterator[Key]:
        """Pods (of one namespace, or of all) whose labels the selector matches."""
        for key in self._candidates(selector, namespace):
            if (not namespace or key.namespace == namespace) and selector.matches(self.pods[key].labels):
                yield key

    def _candidates(self, selector: Selector, namespace: str) -> Iterable[Key]:
        anchor = selector.anchor()
        in_namespace = self._pods_in.get(namespace, {}) if namespace else None
        if anchor is not None:
            buckets = [self._by_label.get((anchor[0], value), {}) for value in anchor[1]]
            if in_namespace is None or sum(map(len, buckets)) <= len(in_namespace):
                return [key for bucket in buckets for key in bucket]
        return list(self.pods if in_namespace is None else in_namespace)

    def owner(self, ip: str) -> Key | None:
        """The pod that an address belongs to."""
        claims = self._claims.get(ip)
        if not claims:
            return None
        if len(claims) == 1:
            (only,) = claims
            return only
        return max(claims, key=lambda key: self._rank(key, ip))

    def claimants(self, ip: str) -> tuple[Key, ...]:
        """All pods that claim an address."""
        return self._claims.get(ip, ())

    def owned_ips(self, key: Key) -> tuple[str, ...]:
        """Addresses of a pod that no other pod has a better claim to."""
        return tuple(ip for ip in self._claimed_ips(key) if self.owner(ip) == key)

    def sandboxes_of(self, key: Key) -> list[Sandbox]:
        """Sandboxes of a pod on this node; more than one while a pod is recreated."""
        return [self.sandboxes[container] for container in self._sandboxes_of.get(key, ())]

    def sandboxes_at(self, ip: str) -> Iterable[str]:
        """Container IDs of the sandboxes on this node that were given an address."""
        return self._sandboxes_at.get(ip, {}).keys()

    def holder(self, ip: str) -> str | None:
        """Container ID of the sandbox whose traffic an address is; several have it while an old object lingers."""
        return max(self._sandboxes_at.get(ip, ()), key=lambda container: self._hold(container, ip), default=None)

    # Inner workings

    def _hold(self, container: str, ip: str) -> tuple[bool, bool, str, str, str]:
        """The owner's sandbox, else one that nothing is known of (it is closed), else the youngest pod's."""
        sandbox = self.sandboxes[container]
        key, pod = sandbox.endpoint.pod, sandbox.pod
        now = self.pods.get(key)
        current = self.owner(ip) == key and (now is None or same_pod(sandbox.endpoint, now))
        return current, pod is None, pod.created if pod else "", pod.uid if pod else "", container

    def _put_pod(self, key: Key, pod: Pod | None) -> set[Key]:
        old = self.pods.get(key)
        old_ips = set(self._claimed_ips(key))
        if old is not None:
            for pair in old.labels.items():
                _discard(self._by_label, pair, key)
        if pod is None:
            if old is not None:
                del self.pods[key]
                _discard(self._pods_in, key.namespace, key)
        else:
            self.pods[key] = pod
            self._pods_in.setdefault(key.namespace, {})[key] = None
            for pair in pod.labels.items():
                self._by_label.setdefault(pair, {})[key] = None
            for sandbox in self.sandboxes_of(key):
                if same_pod(sandbox.endpoint, pod):
                    sandbox.pod = pod
        new_ips = set(self._claimed_ips(key))
        return {key} | self._release(key, old_ips - new_ips) | self._claim(key, new_ips)

    def _claimed_ips(self, key: Key) -> tuple[str, ...]:
        pod = self.pods.get(key)
        if pod is not None and (pod.host_network or pod.phase in FINISHED):
            return ()
        wired = tuple(
            ip
            for sandbox in self.sandboxes_of(key)
            if pod is None or same_pod(sandbox.endpoint, pod)
            for ip in sandbox.endpoint.ips
        )
        if wired:
            return wired
        return pod.ips if pod is not None else ()

    def _claim(self, key: Key, ips: Iterable[str]) -> set[Key]:
        touched = {key}
        for ip in ips:
            if ip not in self._claimed_ips(key):
                continue
            claims = self._claims.get(ip, ())
            if key not in claims:
                claims = self._claims[ip] = tuple(sorted((*claims, key)))
            touched.update(claims)
        return touched

    def _release(self, key: Key, ips: Iterable[str]) -> set[Key]:
        touched: set[Key] = set()
        for ip in ips:
            claims = self._claims.get(ip, ())
            touched.update(claims)
            rest = tuple(claim for claim in claims if claim != key)
            if rest:
                self._claims[ip] = rest
            else:
                self._claims.pop(ip, None)
        return touched

    def _reclaim(self, key: Key, ips: Iterable[str]) -> set[Key]:
        """After a sandbox went: the pod's object may still claim the same or other addresses."""
        still = set(self._claimed_ips(key))
        return self._release(key, set(ips) - still) | self._claim(key, still)

    def _rank(self, key: Key, ip: str) -> tuple[bool, str, str]:
        pod = self.pods.get(key)
        wired = any(ip in sandbox.endpoint.ips for sandbox in self.sandboxes_of(key))
        return wired, pod.created if pod else "", pod.uid if pod else ""


def same_pod(endpoint: Endpoint, pod: Pod) -> bool:
    """Whether a sandbox belongs to this incarnation of the pod (a runtime that passes no UID is believed)."""
    return not endpoint.pod_uid or endpoint.pod_uid in (pod.uid, pod.mirror_of)


def _put(table: dict[Any, Any], key: Key | str, record: Record | None) -> None:
    if record is None:
        table.pop(key, None)
    else:
        table[key] = record


def _discard(table: dict[B, dict[E, None]], bucket: B, entry: E) -> None:
    entries = table.get(bucket)
    if entries is not None:
        entries.pop(entry, None)
        if not entries:
            del table[bucket]
