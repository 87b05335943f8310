"""How much work a change makes, counted, not timed: selector evaluations, commands, elements, messages and bytes for
the kernel, and how much of bulk work is done in one go.

Every count is taken in two clusters, one three times the size of the other, and must be the same in both: work follows
the change, not the cluster. Where a count gets smaller, write the smaller one here.
"""

import re
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest
from msgspec import Struct, structs

from netagent.core.policy import backlog, peersets
from netagent.core.policy.backlog import Backlog
from netagent.core.policy.generation import Stamp
from netagent.core.policy.peersets import PeerSets
from netagent.core.policy.render import render, small
from netagent.core.policy.ruleset import Delta, Ruleset
from netagent.core.policy.selectors import Selector
from netagent.core.policy.store import Store
from netagent.kernel.nfnetlink import messages
from netagent.kernel.nfparts import batch
from netagent.kernel.nftransaction import parts
from netagent.ports import StampChange
from netagent.records import Endpoint, Key, LabelSelector, NetworkPolicy, Pod, PolicyPeer, Record
from support import words
from support.histories import Admitted, Step, new_compiler, replay
from support.words import block, namespaces, pods, policy, port, rule, selector

PER_NAMESPACE = 12
"""Pods of a namespace, without the namespace `big`."""
GENERATION = 4
"""Commands that put a new generation in force, one element among them."""
SELECTORS = 20
TIERS = ("web", "app", "db")


class Work(Struct):
    """What one change cost."""

    evaluations: int = 0
    """Selectors asked about a set of labels."""
    touches: int = 0
    """Elements put into the ruleset or taken out of it, whether or not that changes anything."""
    commands: int = 0
    added: int = 0
    """Elements."""
    removed: int = 0
    rules: int = 0
    size_bytes: int = 0
    looked_at: int = 0
    """Pods of the view that could match a new peer or were tried on it, or whose membership was worked out."""
    messages: int = 0
    """Netlink messages where no script is needed: begin and end of the batch, one for each set and direction, four for
    a new generation."""
    batch_bytes: int = 0


class Bed:
    """A compiler over a cluster with `scale` times 10 namespaces, and a count of what it does."""

    def __init__(self, scale: int) -> None:
        self.compiler = new_compiler()
        self.work = Work()
        self._names = [f"n{number}" for number in range(10 * scale)]
        self.put(*(words.namespace(name, team="red" if name == "n1" else "blue") for name in self._names))
        for index, name in enumerate(self._names):
            self.put(*(self.pod(index, number) for number in range(PER_NAMESPACE)))
            self.put(
                policy(f"{name}/tier", selector(app="a0"), ingress=[rule([pods(tier="web")], [port(80)])]),
                policy(
                    f"{name}/team", selector(app="a1"), ingress=[rule([namespaces(selector(team="red"))], [port(443)])]
                ),
                policy(f"{name}/net", selector(app="a2"), ingress=[rule([block("192.0.2.0/24")], [port(53, "UDP")])]),
            )
        # Many selectors in use here, so that asking all of them would show.
        for number in range(SELECTORS):
            peer = namespaces(selector(), selector(zone=f"z{number}"))
            self.put(policy(f"n0/zone-{number}", selector(app="a3"), ingress=[rule([peer], [port(1000 + number)])]))
        for number in range(PER_NAMESPACE):
            self.steps(Admitted(endpoint(self.pod(0, number))))
        self.compiler.ruleset.take()

    def pod(self, namespace: int, number: int, **labels: str) -> Pod:
        """A pod; those of namespace 0 are local."""
        address = f"10.{namespace >> 8}.{namespace & 255}.{number + 1}"
        tier, app = TIERS[number % len(TIERS)], f"a{number // len(TIERS)}"
        node = "node-0" if namespace == 0 else "node-1"
        found = {"app": app, "tier": tier, **labels}
        return words.pod(f"{self._names[namespace]}/p{number}", address, labels=found, node=node)

    def put(self, *records: Record) -> None:
        """Objects come or change."""
        self.steps(*map(words.put, records))

    def steps(self, *steps: Step) -> None:
        """Anything happens."""
        replay(self.compiler, steps)

    def costs(self, *steps: Step) -> Work:
        """What these cost, all the way to the script."""
        self.work = Work()
        replay(self.compiler, steps, at_once=True)
        delta = self.compiler.ruleset.take()
        if delta:
            stamp = Stamp(0xFFFF0000, 2)
            chains = self.compiler.ruleset.chains
            measure(self.work, render(delta, chains, stamp.mark, new_mark=delta.revokes))
            measure_batch(self.work, delta, stamp)
        return copy(self.work)


def measure(work: Work, script: str) -> None:
    """Count the script."""
    work.size_bytes = len(script)
    for line in script.splitlines():
        work.commands += 1
        work.rules += line.startswith("add rule")
        found = re.match(r"(add|delete) element .*?\{ (.*) \}", line)
        if found:
            count = found[2].count(", ") + 1
            work.added += count if found[1] == "add" else 0
            work.removed += count if found[1] == "delete" else 0


def measure_batch(work: Work, delta: Delta, stamp: Stamp) -> None:
    """Count the datagram that goes to the kernel instead of the script; all changes here need no script."""
    few = small(delta, StampChange(stamp.mask, stamp.bits) if delta.revokes else None)
    assert few is not None
    datagram = batch(parts("netagent", few), 1)
    work.messages, work.batch_bytes = len(list(messages(datagram))), len(datagram)


def endpoint(pod: Pod) -> Endpoint:
    """The sandbox of a local pod."""
    return Endpoint(
        pod=pod.key, pod_uid=pod.uid, container_id=pod.uid, ifname="eth0", host_ifname=f"nap{pod.key.name}", ips=pod.ips
    )


Pair = tuple[Bed, Bed]


@pytest.fixture
def beds(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """The same cluster small and large; selector evaluations are counted into the work of both."""
    made = (Bed(1), Bed(3))
    matches = Selector.matches

    def counting(self: Selector, labels: dict[str, str]) -> bool:
        for bed in made:
            bed.work.evaluations += 1
        return matches(self, labels)

    monkeypatch.setattr(Selector, "matches", counting)
    matches_peer, match = peersets.peer_matches, PeerSets._match

    def looking(*arguments: Any) -> Any:
        for bed in made:
            bed.work.looked_at += 1
        return matches_peer(*arguments)

    def matching(self: PeerSets, key: Key) -> Any:
        for bed in made:
            bed.work.looked_at += 1
        return match(self, key)

    candidates = Store._candidates

    def gathering(*arguments: Any) -> Any:
        found = list(candidates(*arguments))
        for bed in made:
            bed.work.looked_at += len(found)
        return found

    monkeypatch.setattr(Store, "_candidates", gathering)
    monkeypatch.setattr(peersets, "peer_matches", looking)
    monkeypatch.setattr(PeerSets, "_match", matching)
    for name in ("put", "discard"):
        monkeypatch.setattr(Ruleset, name, touching(made, getattr(Ruleset, name)))
    return made


def touching(made: Pair, change: Callable[..., None]) -> Callable[..., None]:
    """Counts the calls of `Ruleset.put` or `discard`."""

    def touch(self: Ruleset, *arguments: str) -> None:
        for bed in made:
            bed.work.touches += 1
        change(self, *arguments)

    return touch


def both(beds: Pair, *steps: Step) -> Work:
    """What the steps cost, which must not depend on the size of the cluster."""
    small, large = (bed.costs(*steps) for bed in beds)
    assert small == large
    return small


def at_most(work: Work, **bounds: int) -> None:
    """No more than that of each."""
    exceeded = {name: getattr(work, name) for name, bound in bounds.items() if getattr(work, name) > bound}
    assert not exceeded, f"{exceeded}, of {bounds}"


def exactly(work: Work, **counts: int) -> None:
    """Just that of each."""
    assert {name: getattr(work, name) for name in counts} == counts


def test_a_pod_event_that_changes_nothing_costs_no_command(beds: Pair) -> None:
    work = both(beds, words.put(beds[0].pod(1, 4)))
    exactly(work, commands=0, size_bytes=0, touches=0)
    at_most(work, evaluations=2)


def test_a_pod_that_nobody_asks_for_costs_no_command(beds: Pair) -> None:
    exactly(both(beds, words.put(beds[0].pod(2, 4, tier="none"))), commands=0)


def test_a_pod_that_becomes_a_peer_is_one_element(beds: Pair) -> None:
    other = words.namespace("n2", team="green")
    for bed in beds:
        bed.put(other)
        bed.compiler.ruleset.take()
    added = words.pod("n1/new", "10.9.9.9", labels={"app": "x", "tier": "y"}, node="node-1")
    work = both(beds, words.put(added))
    exactly(work, commands=1, added=1, removed=0, rules=0, touches=1)
    at_most(work, evaluations=3, size_bytes=90)


def test_a_pod_that_stops_to_be_a_peer_is_one_element_and_a_generation(beds: Pair) -> None:
    work = both(beds, words.gone(beds[0].pod(1, 4)))
    exactly(work, removed=1, evaluations=0)
    at_most(work, commands=1 + GENERATION, added=1, rules=1, size_bytes=320)


def test_a_relabelled_namespace_costs_its_pods(beds: Pair) -> None:
    work = both(beds, words.put(words.namespace("n3", team="red")))
    exactly(work, commands=1, added=PER_NAMESPACE, removed=0, rules=0)
    at_most(work, evaluations=3 * PER_NAMESPACE, size_bytes=300)


def test_a_policy_that_gets_a_port_rewrites_one_chain_and_no_peer(beds: Pair) -> None:
    edited = policy("n0/tier", selector(app="a0"), ingress=[rule([pods(tier="web")], [port(80), port(81)])])
    work = both(beds, words.put(edited))
    # Three pods of app a0 move to the new chain: one map element out and in for each.
    exactly(work, removed=3, messages=14, batch_bytes=2176)
    at_most(work, commands=9 + GENERATION, added=3 + 1, rules=5, size_bytes=1200)
    at_most(work, evaluations=6 * PER_NAMESPACE)


def test_a_policy_of_pods_elsewhere_costs_no_command(beds: Pair) -> None:
    made = policy("n2/more", ingress=[rule([pods(tier="db")])])
    work = both(beds, words.put(made))
    exactly(work, commands=0)
    at_most(work, evaluations=0)


@pytest.mark.parametrize(
    ("selects", "sent", "size_bytes"),
    [(selector(app="a3"), 59, 19_648), (selector(tier="web"), 81, 26_316), (LabelSelector(), 89, 27_604)],
)
def test_a_new_policy_evaluates_its_selectors_against_local_pods_and_candidates_only(
    beds: Pair, selects: LabelSelector, sent: int, size_bytes: int
) -> None:
    made: NetworkPolicy = policy("n0/new", selects, ingress=[rule([pods(app="a1")], [port(9)])])
    work = both(beds, words.put(made))
    at_most(work, evaluations=8 * PER_NAMESPACE, commands=87 + GENERATION, size_bytes=12800)
    exactly(work, messages=sent, batch_bytes=size_bytes)


def test_a_pod_that_starts_here_is_a_handful_of_elements(beds: Pair) -> None:
    pod = words.pod("n0/fresh", "10.0.0.200", labels={"app": "a0", "tier": "db"})
    work = both(beds, words.put(pod), Admitted(endpoint(pod)))
    # local, self, source, its class; the sets of peers that it belongs to are none.
    exactly(work, removed=0, messages=10, batch_bytes=736)
    # An element in a map of isolated pods narrows what is allowed: a new generation.
    at_most(work, commands=4 + GENERATION, added=4 + 1, rules=1, evaluations=6, size_bytes=480)


def test_many_changes_at_once_cost_their_sum_and_not_more(beds: Pair) -> None:
    moved = [words.put(beds[0].pod(1, number, extra="yes")) for number in range(PER_NAMESPACE)]
    exactly(both(beds, *moved), commands=0)
    gone = [words.gone(beds[0].pod(1, number)) for number in range(PER_NAMESPACE)]
    back = [words.put(beds[0].pod(1, number)) for number in range(PER_NAMESPACE)]
    exactly(both(beds, *gone, *back), commands=0)


def test_an_event_of_a_local_pod_that_changes_nothing_touches_nothing(beds: Pair) -> None:
    exactly(both(beds, words.put(beds[0].pod(0, 1))), commands=0, touches=0)


def test_a_peer_that_few_pods_match_is_looked_up_not_searched_for(beds: Pair) -> None:
    rare = words.pod("n4/rare", "10.9.9.8", labels={"app": "rare"}, node="node-1")
    for bed in beds:
        bed.put(rare)
    made = policy("n0/rare", selector(app="a1"), ingress=[rule([namespaces(selector(), selector(app="rare"))])])
    work = both(beds, words.put(made))
    # Once to choose the pod, once with its namespace; the rest are the new policy and the local pods' others.
    at_most(work, evaluations=7 * PER_NAMESPACE, touches=25)


IN_ONE_NAMESPACE = [pods(), pods(app="a1"), pods(app="rare"), PolicyPeer(pod_selector=selector(("tier", "Exists")))]


@pytest.mark.parametrize("peer", IN_ONE_NAMESPACE, ids=["all", "some", "none", "loose"])
def test_a_peer_of_one_namespace_looks_at_no_other(beds: Pair, peer: PolicyPeer) -> None:
    made = policy("n0/new", selector(app="a1"), ingress=[rule([peer], [port(9)])])
    at_most(both(beds, words.put(made)), looked_at=2 * PER_NAMESPACE, evaluations=8 * PER_NAMESPACE)


@pytest.mark.parametrize("chosen", [selector(), selector(("tier", "Exists")), selector(("app", "NotIn", ["a1"]))])
def test_a_peer_of_chosen_namespaces_looks_at_their_pods_only(beds: Pair, chosen: LabelSelector) -> None:
    peer = namespaces(selector(("team", "In", ["red", "pink"])), chosen)
    made = policy("n0/new", selector(app="a1"), ingress=[rule([peer], [port(9)])])
    small, large = (bed.costs(words.put(made)) for bed in beds)
    # Each namespace is asked, there are twenty more of them; the pods are those of one in both.
    assert large.evaluations - small.evaluations == 20
    assert small.looked_at == large.looked_at <= 2 * PER_NAMESPACE
    assert small.added == large.added > 0


def test_what_needs_no_script_is_a_few_messages_and_bytes(beds: Pair) -> None:
    """One element: 2 messages around it, and 4 more where an allow goes: the generation's set and rule."""
    added = words.pod("n1/new", "10.9.9.9", labels={"app": "x", "tier": "y"}, node="node-1")
    exactly(both(beds, words.put(added)), messages=3, batch_bytes=148)
    exactly(both(beds, words.gone(added)), messages=7, batch_bytes=496)
    moved = (words.put(beds[0].pod(0, number, tier="db")) for number in range(0, PER_NAMESPACE, 3))
    exactly(both(beds, *moved), messages=7, batch_bytes=544)


def test_no_portion_of_bulk_work_is_large_and_none_grows_with_the_cluster(beds: Pair) -> None:
    largest = [in_portions(bed) for bed in beds]
    for work, pods_at_once in largest:
        assert pods_at_once <= backlog.PORTION + backlog.NEWEST
        at_most(work, evaluations=1000, touches=600, looked_at=600, messages=80, batch_bytes=12_000)


def in_portions(bed: Bed) -> tuple[Work, int]:
    """The most of each that one portion costs while every pod and policy changes, and the pods of the largest."""
    compiler, most, pods_at_once = bed.compiler, Work(), 0
    waiting = Backlog(compiler)
    for key in list(compiler.store.pods):
        pod = compiler.store.pods[key]
        turned = {"web": "app", "app": "web"}.get(pod.labels["tier"], pod.labels["tier"])
        change = words.put(structs.replace(pod, labels={**pod.labels, "tier": turned}))
        waiting.add(compiler.store.apply(change))
    for source in list(compiler.store.policies.values()):
        ingress = tuple(structs.replace(one, ports=(port(1234),)) for one in source.ingress)
        waiting.add(compiler.store.apply(words.put(structs.replace(source, ingress=ingress))))
    while waiting:
        bed.work = Work()
        portion = waiting.take()
        assert len(portion.unread) <= backlog.READ_AT_ONCE
        compiler.read(portion.unread)
        compiler.update(portion.dirty)
        measure_batch(bed.work, compiler.ruleset.take(), Stamp(0xFFFF0000, 2))
        pods_at_once = max(pods_at_once, len(portion.dirty.pods))
        most = Work(*map(max, structs.astuple(most), structs.astuple(bed.work)))
    return most, pods_at_once
