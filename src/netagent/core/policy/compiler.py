"""From the view of the cluster to the desired ruleset, change by change.

`update` takes what a change touched and brings the ruleset up to date; its work is proportional to that. The result
depends on the view alone, never on the way there.

A policy class is the set of policies that isolate a pod in one direction together with the numbers of the named ports
that their ingress rules use. Pods of one class share a chain; a pod changes class by one map element.
"""

import ipaddress
from collections.abc import Iterable, Mapping

from msgspec import Struct, structs

from netagent.core.policy.chains import ClassPlan, named_ports, plan_class
from netagent.core.policy.frame import (
    COUNTERS,
    CURRENT,
    CURRENT_DECL,
    DENIED,
    FIXED_SETS,
    ITSELF,
    FrameSettings,
    frame,
    told,
)
from netagent.core.policy.meaning import Direction, NamedPort, Policy, compile_policy
from netagent.core.policy.names import content_name
from netagent.core.policy.peersets import PeerSets, numbers_of, version_of
from netagent.core.policy.ruleset import GENERATION, ChainDecl, Ruleset
from netagent.core.policy.selectors import EVERYTHING, Selector, SelectorIndex
from netagent.core.policy.store import Dirty, Sandbox, Store
from netagent.records import Key, NetworkPolicy, Pod

UNKNOWN_POD = "unknown_pod"
"""Class of a sandbox whose pod the API has not shown: nothing passes, because nobody knows what may."""


class ClassKey(Struct, frozen=True, gc=False):
    """Names a policy class."""

    direction: Direction
    policies: tuple[tuple[Key, int], ...]
    """Keys with a number that changes when the policy's meaning does, in order of the keys."""
    resolved: tuple[tuple[NamedPort, tuple[int, ...]], ...]


class _Class(Struct, gc=False):
    """A class in use."""

    chain: str
    counter: str
    plan: ClassPlan
    uses: int = 0


class _Known(Struct, gc=False):
    """A policy in the view, understood."""

    policy: Policy
    revision: int


class Placement(Struct, frozen=True, gc=False):
    """What the ruleset holds for one sandbox."""

    ips: tuple[str, ...]
    """Those that no other sandbox has a better claim to."""
    host_ifname: str
    classes: tuple[ClassKey | None, ClassKey | None]
    """Ingress and egress; None: not isolated. Without meaning where the pod is unknown."""
    known: bool


class Compiler:
    """Keeps `ruleset` true to `store`. The store is changed first, then `update` is told what was touched."""

    def __init__(self, store: Store, settings: FrameSettings, node_name: str) -> None:
        self.ruleset = Ruleset()
        self.store = store
        self._node_name = node_name
        self._settings = settings
        self._peers = PeerSets(store, self.ruleset)
        self._policies: dict[Key, _Known] = {}
        self._read: dict[Key, tuple[NetworkPolicy, Policy]] = {}
        """Policies whose meaning was worked out ahead."""
        self._policy_index: dict[str, SelectorIndex[Key]] = {}
        self._classes: dict[ClassKey, _Class] = {}
        self._constants: dict[str, int] = {}
        self._chain_uses: dict[str, int] = {}
        self.placements: dict[str, Placement] = {}
        """By container ID."""
        self.problems: dict[Key, tuple[str, ...]] = {}
        """Policies that could not be honoured wholly, and why."""
        self._vteps: frozenset[str] = frozenset()
        self._overlay: frozenset[str] = frozenset()
        self._revisions = 0
        for name in COUNTERS:
            self.ruleset.use_counter(name)
        for name, decl in FIXED_SETS.items():
            self.ruleset.declare(name, decl)
        if settings.policy:
            self.ruleset.declare(CURRENT, CURRENT_DECL, (GENERATION,))
            last = self._last_rules(UNKNOWN_POD, "drop")
            self.ruleset.put_chain(UNKNOWN_POD, ChainDecl(last))
        self._put_frame()

    def update(self, dirty: Dirty) -> None:
        """Bring the ruleset up to date."""
        if dirty.leases or dirty.nodes:
            self._update_nodes()
        if not self._settings.policy:
            self._place(self._sandboxes(dirty.pods))
            return
        pods = dirty.pods.union(*map(self.store.pods_of, dirty.namespaces))
        for key in pods:
            self._peers.pod_changed(key)
        self._place(self._sandboxes(dirty.pods | self._update_policies(dirty.policies)))

    def read(self, keys: Iterable[Key]) -> None:
        """Work out the meaning of policies ahead of the update that is told of them; changes nothing yet."""
        for key in keys:
            source = self.store.policies.get(key)
            if source is not None:
                self._read[key] = source, compile_policy(source)

    def unread(self, keys: Iterable[Key]) -> list[Key]:
        """Those whose meaning an update would have to work out."""
        found = []
        for key in keys:
            source = self.store.policies.get(key)
            if source is not None and (key not in self._read or self._read[key][0] is not source):
                found.append(key)
        return found

    def peer_ips(self, key: Key) -> tuple[str, ...]:
        """Addresses with which a pod is in peer sets now."""
        return self._peers.ips_of(key)

    def set_own_subnets(self, subnets: tuple[str, ...]) -> None:
        """This node's subnets, for masquerading."""
        if subnets != self._settings.own_subnets:
            self._settings = structs.replace(self._settings, own_subnets=subnets)
            self._put_frame()

    def policy(self, key: Key) -> Policy | None:
        """The policy as understood."""
        known = self._policies.get(key)
        return known.policy if known else None

    def chain_of(self, key: ClassKey) -> str:
        """The chain of a class in use."""
        return self._classes[key].chain

    def classes(self) -> dict[str, ClassKey]:
        """Chain name -> class, of those in use."""
        return {one.chain: key for key, one in self._classes.items()}

    def counted(self) -> dict[str, ClassKey]:
        """Name of the counter of denied packets -> class, of those in use."""
        return {one.counter: key for key, one in self._classes.items()}

    # Frame

    def _put_frame(self) -> None:
        for name, chain in frame(self._settings).items():
            self.ruleset.put_chain(name, chain)

    def _update_nodes(self) -> None:
        vteps, overlay = set(), {}
        for lease in self.store.leases.values():
            if lease.holder and lease.public_ip and lease.holder != self._node_name:
                vteps |= {lease.public_ip, *lease.sources}
                if self._settings.vxlan_port is not None:
                    network = ipaddress.ip_network(lease.subnet)
                    overlay[str(network.network_address)] = lease.public_ip
        self._swap("vtep", self._vteps, frozenset(vteps))
        self._vteps = frozenset(vteps)
        self._peers.overlay_changed(overlay)
        self._swap("overlay", self._overlay, frozenset(overlay))
        self._overlay = frozenset(overlay)

    def _swap(self, name: str, before: frozenset[str], after: frozenset[str]) -> None:
        for ip in before - after:
            self.ruleset.discard(f"{name}{version_of(ip)}", ip)
        for ip in after - before:
            self.ruleset.put(f"{name}{version_of(ip)}", ip)

    # Policies

    def _update_policies(self, keys: set[Key]) -> set[Key]:
        """File the policies' new meanings; the local pods that they selected or select."""
        local: dict[str, list[Pod]] = {}
        if keys:
            for sandbox in self.store.sandboxes.values():
                if sandbox.pod is not None:
                    local.setdefault(sandbox.endpoint.pod.namespace, []).append(sandbox.pod)
        touched: set[Key] = set()
        for key in keys:
            for selector in self._file(key):
                candidates = (pod for pod in local.get(key.namespace, ()) if pod.key not in touched)
                touched.update(pod.key for pod in candidates if selector == EVERYTHING or selector.matches(pod.labels))
        return touched

    def _file(self, key: Key) -> set[Selector]:
        """The policy's new meaning; what selects the pods that this is about."""
        index = self._policy_index.setdefault(key.namespace, SelectorIndex())
        old, source = self._policies.pop(key, None), self.store.policies.get(key)
        policy = self._meaning(key, source)
        self.problems.pop(key, None)
        if policy is not None and policy.problems:
            self.problems[key] = policy.problems
        selectors = {one.selects for one in (old.policy if old else None, policy) if one is not None}
        if old is not None and old.policy != policy:
            index.discard(old.policy.selects, key)
        if policy is None:
            if not index:
                del self._policy_index[key.namespace]
            return selectors
        if old is not None and old.policy == policy:
            self._policies[key] = old
            return set()
        self._revisions += 1
        self._policies[key] = _Known(policy, self._revisions)
        index.add(policy.selects, key)
        return selectors

    def _meaning(self, key: Key, source: NetworkPolicy | None) -> Policy | None:
        read = self._read.pop(key, None)
        if source is None:
            return None
        return read[1] if read is not None and read[0] is source else compile_policy(source)

    def _class_of(self, sandbox: Sandbox, direction: Direction) -> ClassKey | None:
        pod = sandbox.pod
        assert pod is not None  # noqa: S101 - the caller knows
        index = self._policy_index.get(pod.key.namespace)
        if index is None:
            return None
        selecting = []
        for key in sorted(index.candidates(pod.labels)):
            known = self._policies[key]
            if direction in known.policy.rules and known.policy.selects.matches(pod.labels):
                selecting.append((key, known.revision))
        if not selecting:
            return None
        resolved: dict[NamedPort, tuple[int, ...]] = {}
        if direction is Direction.INGRESS:
            names = named_ports(direction, (self._policies[key].policy for key, _ in selecting))
            resolved = {name: numbers_of(name, pod.ports) for name in names}
        return ClassKey(direction, tuple(selecting), tuple(sorted(resolved.items())))

    def _acquire_class(self, key: ClassKey) -> None:
        one = self._classes.get(key)
        if one is None:
            policies = [self._policies[policy].policy for policy, _ in key.policies]
            counter = counter_name(key)
            last = self._last_rules(counter, f"goto {DENIED[key.direction]}")
            plan = plan_class(key.direction, policies, dict(key.resolved), last)
            one = self._classes[key] = _Class(_chain_name(key, plan), counter, plan)
            self._enter_plan(one)
        one.uses += 1

    def _release_class(self, key: ClassKey) -> None:
        one = self._classes[key]
        one.uses -= 1
        if one.uses == 0:
            del self._classes[key]
            self._leave_plan(one)

    def _last_rules(self, counter: str, verdict: str) -> tuple[str, ...]:
        """For what no rule admits: told to userspace where that is wanted, counted, dropped."""
        return (f"jump {ITSELF}", *told(counter, self._settings.drop_log_group), f"counter name {counter} {verdict}")

    def _enter_plan(self, one: _Class) -> None:
        self.ruleset.use_counter(one.counter)
        for set_key in one.plan.peer_sets:
            self._peers.acquire(set_key)
        for constant in one.plan.constants:
            self._constants[constant.name] = self._constants.get(constant.name, 0) + 1
            self.ruleset.declare(constant.name, constant.decl, constant.elements)
        self._chain_uses[one.chain] = self._chain_uses.get(one.chain, 0) + 1
        self.ruleset.put_chain(one.chain, one.plan.chain)

    def _leave_plan(self, one: _Class) -> None:
        # A policy edited without effect on this chain gives a new class with the same chain for a moment.
        self._chain_uses[one.chain] -= 1
        if not self._chain_uses[one.chain]:
            del self._chain_uses[one.chain]
            self.ruleset.drop_chain(one.chain)
        for constant in one.plan.constants:
            self._constants[constant.name] -= 1
            if not self._constants[constant.name]:
                del self._constants[constant.name]
                self.ruleset.drop_set(constant.name)
        for set_key in one.plan.peer_sets:
            self._peers.release(set_key)
        self.ruleset.release_counter(one.counter)

    # Sandboxes

    def _sandboxes(self, pods: Iterable[Key]) -> dict[str, Sandbox | None]:
        """Sandboxes to place again, and those to take out, of some pods; with them, those that share an address."""
        wanted: dict[str, Sandbox | None] = {}
        ips: set[str] = set()
        for key in pods:
            for sandbox in self.store.sandboxes_of(key):
                wanted[sandbox.endpoint.container_id] = sandbox
                ips.update(sandbox.endpoint.ips)
        for container in self.placements.keys() - self.store.sandboxes.keys():
            wanted[container] = None
        for container in wanted.keys() & self.placements.keys():
            ips.update(self.placements[container].ips)
        for ip in ips:
            for container in self.store.sandboxes_at(ip):
                wanted[container] = self.store.sandboxes[container]
        return wanted

    def _place(self, sandboxes: Mapping[str, Sandbox | None]) -> None:
        """Enter all new classes and elements before any old one leaves, so that what is shared stays."""
        changes = []
        for container, sandbox in sandboxes.items():
            old = self.placements.get(container)
            new = self._placement(sandbox) if sandbox is not None else None
            if new != old:
                changes.append((container, old, new))
        for _, _, new in changes:
            for key in _classes(new):
                self._acquire_class(key)
        for _, old, _ in changes:
            if old is not None:
                self._elements(old, put=False)
        for container, _, new in changes:
            if new is not None:
                self._elements(new, put=True)
                self.placements[container] = new
            else:
                self.placements.pop(container, None)
        for _, old, _ in changes:
            for key in _classes(old):
                self._release_class(key)

    def _placement(self, sandbox: Sandbox) -> Placement:
        known = sandbox.pod is not None
        policy = known and self._settings.policy
        classes = (
            self._class_of(sandbox, Direction.INGRESS) if policy else None,
            self._class_of(sandbox, Direction.EGRESS) if policy else None,
        )
        endpoint = sandbox.endpoint
        held = tuple(ip for ip in endpoint.ips if self.store.holder(ip) == endpoint.container_id)
        return Placement(held, endpoint.host_ifname, classes, known)

    def _elements(self, placement: Placement, *, put: bool) -> None:
        change = self.ruleset.put if put else self.ruleset.discard
        for ip in placement.ips:
            version = version_of(ip)
            change(f"local{version}", ip)
            change(f"self{version}", f"{ip} . {ip}")
            if placement.host_ifname:
                change(f"source{version}", f'"{placement.host_ifname}" . {ip}')
            for direction, key in zip((Direction.INGRESS, Direction.EGRESS), placement.classes, strict=True):
                name = f"{direction}{version}"
                if key is not None or (not placement.known and self._settings.policy):
                    if put:
                        chain = self._classes[key].chain if key is not None else UNKNOWN_POD
                        self.ruleset.put(name, ip, f"goto {chain}")
                    else:
                        self.ruleset.discard(name, ip)


def _classes(placement: Placement | None) -> list[ClassKey]:
    return [key for key in placement.classes if key is not None] if placement else []


def counter_name(key: ClassKey) -> str:
    """Of the packets that a class denies: named by its policies alone, so that it outlives their changes."""
    first = key.policies[0][0]
    return content_name("k", [key.direction, *_names(key)], f"{first.namespace}_{first.name}")


def _chain_name(key: ClassKey, plan: ClassPlan) -> str:
    policies = _names(key)
    first = key.policies[0][0]
    kind = "in" if key.direction is Direction.INGRESS else "eg"
    return content_name(
        kind, [key.direction, str(len(policies)), *policies, *plan.chain.rules], f"{first.namespace}_{first.name}"
    )


def _names(key: ClassKey) -> list[str]:
    """Namespace and name of each policy, apart: joined, different ones could read the same."""
    return [part for policy, _ in key.policies for part in (policy.namespace, policy.name)]
