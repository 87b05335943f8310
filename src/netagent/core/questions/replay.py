"""One agent's view as values that can be written down, and the view and compiler made of them again.

The result depends on the view alone, so what is compiled here is what that agent wanted in its kernel.
"""

from collections.abc import Iterable

from msgspec import Struct

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.store import Dirty, Store
from netagent.core.questions.parties import Cluster, cluster_of
from netagent.records import (
    Endpoint,
    Key,
    Kind,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Record,
    SubnetLease,
    Undecodable,
    Upserted,
)

FORMAT = 1
"""Of a dump; a file with another one is refused."""
TOP = "netagent-dump"
"""Directory in the archive."""


class About(Struct, frozen=True, kw_only=True):
    """What a dump says of itself."""

    format: int
    version: str
    node: str
    at_s: float
    notes: tuple[str, ...] = ()


class Situation(Struct, frozen=True, kw_only=True):
    """What the compiler needs beside the view."""

    node: str
    frame: FrameSettings
    own_subnets: tuple[str, ...]
    mark: str
    """Current generation as it stands in the conntrack mark; empty before the first commit."""
    overlay: bool
    """Whether nodes reach remote pods through VXLAN of ours."""


class Unreadable(Struct, frozen=True, gc=False):
    """An object that could not be decoded, and why."""

    kind: Kind
    key: Key
    error: str


class Wired(Struct, frozen=True):
    """A sandbox of this node and the last pod object that described it."""

    endpoint: Endpoint
    pod: Pod | None


class View(Struct, frozen=True, kw_only=True):
    """Everything that the store was told. The records are those of the store, not copies."""

    namespaces: list[Namespace]
    pods: list[Pod]
    nodes: list[Node]
    policies: list[NetworkPolicy]
    leases: list[SubnetLease]
    unreadable: list[Unreadable]
    wired: list[Wired]


class Replayed(Struct, frozen=True):
    """A view that lives again."""

    store: Store
    compiler: Compiler

    def cluster(self, situation: Situation) -> Cluster:
        """For questions."""
        found = (self.compiler.policy(key) for key in self.store.policies)
        policies = [policy for policy in found if policy is not None]
        return cluster_of(self.store, policies, situation.node, overlay=situation.overlay)


def view_of(store: Store) -> View:
    """What is in the store now; takes a millisecond for 100,000 pods."""
    return View(
        namespaces=list(store.namespaces.values()),
        pods=list(store.pods.values()),
        nodes=list(store.nodes.values()),
        policies=[one for key, one in store.policies.items() if (Kind.NETWORK_POLICY, key) not in store.undecodable],
        leases=list(store.leases.values()),
        unreadable=[Unreadable(kind, key, error) for (kind, key), error in store.undecodable.items()],
        wired=[Wired(sandbox.endpoint, sandbox.pod) for sandbox in store.sandboxes.values()],
    )


def replay(view: View, situation: Situation) -> Replayed:
    """The store and the compiler as they were."""
    store = Store()
    for kind, records in _by_kind(view):
        store.listed.add(kind)
        for record in records:
            store.apply(Upserted(kind, record))
    for one in view.unreadable:
        store.apply(Undecodable(one.kind, one.key, one.error))
    for wired in view.wired:
        store.admit(wired.endpoint)
        store.sandboxes[wired.endpoint.container_id].pod = wired.pod
    compiler = Compiler(store, situation.frame, situation.node)
    compiler.set_own_subnets(situation.own_subnets)
    pods = {*store.pods, *(wired.endpoint.pod for wired in view.wired)}
    every = Dirty(pods=pods, namespaces=set(store.namespaces), policies=set(store.policies), nodes=True, leases=True)
    compiler.update(every)
    return Replayed(store, compiler)


def _by_kind(view: View) -> Iterable[tuple[Kind, Iterable[Record]]]:
    yield Kind.NAMESPACE, view.namespaces
    yield Kind.NODE, view.nodes
    yield Kind.LEASE, view.leases
    yield Kind.NETWORK_POLICY, view.policies
    yield Kind.POD, view.pods
