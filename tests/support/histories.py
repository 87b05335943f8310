"""Random states of a small cluster, and ways that lead from one to the other."""

from collections.abc import Iterable

from hypothesis import strategies as st
from msgspec import Struct, field

from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.store import Dirty, Store, same_pod
from netagent.records import (
    Change,
    ContainerPort,
    Endpoint,
    Key,
    Kind,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyPeer,
    PolicyRule,
    Record,
    SubnetLease,
)
from support import words
from support.words import block, namespaces, pods, port, rule, selector

IPS = ("10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.1.1", "fd00::1", "fd00::2")
NAMES = tuple(Key(namespace, name) for namespace in ("x", "y") for name in ("a", "b", "c"))


class State(Struct):
    """Objects and sandboxes of one moment. What is known of a sandbox's pod is in it too, so that it decides all."""

    records: dict[tuple[Kind, Key], Record] = field(default_factory=dict)
    sandboxes: dict[str, Endpoint] = field(default_factory=dict)


class Admitted(Struct, frozen=True):
    """CNI ADD."""

    endpoint: Endpoint


class Withdrawn(Struct, frozen=True):
    """CNI DEL."""

    endpoint: Endpoint


Step = Change | Admitted | Withdrawn

LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["1", "2"]))
SELECTORS = st.one_of(
    LABELS.map(lambda labels: selector(**labels)),
    st.sampled_from(
        [
            selector(("app", "In", ["1", "2"])),
            selector(("app", "NotIn", ["1"])),
            selector(("tier", "Exists")),
            selector(("tier", "DoesNotExist"), app="1"),
            selector(("tier", "In", [])),
        ]
    ),
)
PEERS: st.SearchStrategy[PolicyPeer] = st.one_of(
    st.builds(lambda one: PolicyPeer(pod_selector=one), SELECTORS),
    st.builds(namespaces, SELECTORS, st.one_of(st.none(), SELECTORS)),
    st.sampled_from([block("10.244.0.0/30"), block("10.244.0.0/16", "10.244.0.2/32"), block("0.0.0.0/0"), pods()]),
    st.sampled_from([block("fd00::/16"), block("::/0", "fd00::2/128"), block("172.30.0.0/24"), block("nonsense")]),
)
PORTS = st.sampled_from(
    [
        port(80),
        port(80, "UDP"),
        port(80, end=90),
        port(None),
        port("http"),
        port("dns", "UDP"),
        port(81),
        port(9, end=8),
    ]
)
RULES: st.SearchStrategy[PolicyRule] = st.builds(
    rule,
    st.one_of(st.none(), st.lists(PEERS, max_size=3)),
    st.one_of(st.none(), st.lists(PORTS, max_size=3)),
)
CONTAINER_PORTS = st.lists(
    st.sampled_from(
        [ContainerPort("http", 80, "TCP"), ContainerPort("http", 81, "TCP"), ContainerPort("dns", 53, "UDP")]
    ),
    max_size=3,
    unique=True,
).map(tuple)


@st.composite
def pod_records(draw: st.DrawFn, key: Key) -> Pod:
    """A pod in any condition."""
    return Pod(
        key=key,
        uid=draw(st.sampled_from([f"{key}#1", f"{key}#2"])),
        node="node-0",
        labels=draw(LABELS),
        ips=tuple(draw(st.lists(st.sampled_from(IPS), max_size=2, unique=True))),
        phase=draw(st.sampled_from(["Pending", "Running", "Running", "Succeeded"])),
        host_network=draw(st.sampled_from([False, False, False, True])),
        ports=draw(CONTAINER_PORTS),
        created=draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    )


@st.composite
def endpoints(draw: st.DrawFn, pod: Pod) -> Endpoint:
    """A sandbox of a pod."""
    return Endpoint(
        pod=pod.key,
        pod_uid=draw(st.sampled_from([pod.uid, pod.uid, ""])),
        container_id=f"c-{pod.uid}",
        ifname="eth0",
        host_ifname=f"nap-{pod.key.namespace}-{pod.key.name}",
        ips=tuple(draw(st.lists(st.sampled_from(IPS), min_size=1, max_size=2, unique=True))),
    )


@st.composite
def policy_records(draw: st.DrawFn, key: Key) -> NetworkPolicy:
    """A policy of any kind."""
    return NetworkPolicy(
        key=key,
        uid="p",
        pod_selector=draw(SELECTORS),
        policy_types=draw(st.sampled_from([(), ("Ingress",), ("Egress",), ("Ingress", "Egress")])),
        ingress=tuple(draw(st.lists(RULES, max_size=2))),
        egress=tuple(draw(st.lists(RULES, max_size=2))),
    )


@st.composite
def lease_records(draw: st.DrawFn, key: Key) -> SubnetLease:
    """Subnet and underlay address of another node, or of this one."""
    return SubnetLease(
        key=key,
        uid="l",
        resource_version="1",
        subnet="10.244.1.0/24" if key.name == "1" else "fd00::/64",
        holder=draw(st.sampled_from(["node-1", "node-0", ""])),
        public_ip=draw(st.sampled_from(["172.30.0.12", "172.30.0.13"])),
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    """A cluster."""
    state = State()
    found: list[Record] = [
        Namespace(key=Key("", name), uid=name, labels=draw(LABELS))
        for name in draw(st.sets(st.sampled_from(["x", "y"])))
    ]
    for key in sorted(draw(st.sets(st.sampled_from(NAMES)))):
        pod = draw(pod_records(key))
        found.append(pod)
        if not pod.host_network and draw(st.booleans()):
            endpoint = draw(endpoints(pod))
            state.sandboxes[endpoint.container_id] = endpoint
    found += [draw(policy_records(key)) for key in sorted(draw(st.sets(st.sampled_from(NAMES), max_size=3)))]
    found += [draw(lease_records(Key("kube-system", name))) for name in draw(st.sets(st.sampled_from(["1", "6"])))]
    state.records = {(words.kind_of(record), record.key): record for record in found}
    return state


def decided(state: State) -> State:
    """Without sandboxes of pods that the state does not describe: what is known of those depends on the past."""
    described = {
        container: one
        for container, one in state.sandboxes.items()
        if same_pod(one, state.records[Kind.POD, one.pod])  # type: ignore[arg-type]
    }
    return State(state.records, described)


def steps(before: State, after: State) -> list[Step]:
    """What happened between two moments, in no particular order."""
    made: list[Step] = []
    for name in before.records.keys() | after.records.keys():
        old, new = before.records.get(name), after.records.get(name)
        if new is not None and new != old:
            made.append(words.put(new))
        elif new is None and old is not None:
            made.append(words.gone(old))
    for container in before.sandboxes.keys() | after.sandboxes.keys():
        was, now = before.sandboxes.get(container), after.sandboxes.get(container)
        if now is not None and now != was:
            made.append(Admitted(now))
        elif now is None and was is not None:
            made.append(Withdrawn(was))
    return sorted(made, key=repr)


def take(store: Store, step: Step) -> Dirty:
    """One step into a view."""
    if isinstance(step, Admitted):
        return store.admit(step.endpoint)
    if isinstance(step, Withdrawn):
        return store.withdraw(step.endpoint)
    return store.apply(step)


def new_compiler() -> Compiler:
    """Over an empty view."""
    return Compiler(Store(), FrameSettings(vxlan_port=8472), "node-0")


def replay(compiler: Compiler, some: Iterable[Step], *, at_once: bool = False) -> None:
    """Take steps one by one, or all of them before the compiler hears of any."""
    together = Dirty()
    for step in some:
        dirty = take(compiler.store, step)
        if not at_once:
            compiler.update(dirty)
            continue
        together.add(dirty)
    if at_once:
        compiler.update(together)
