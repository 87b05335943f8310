"""Portions of what is to compile: nothing is lost, little waits for little, and what belongs together stays so."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.core.policy import backlog as module
from netagent.core.policy.backlog import PORTION, READ_AT_ONCE, RELABELLED_AT_ONCE, Backlog
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.store import Dirty
from netagent.records import Key, Kind, NetworkPolicy, Record
from support import words
from support.histories import Admitted, State, Step, decided, new_compiler, states, steps, take
from support.words import namespaces, pods, policy, rule, selector
from unit.test_compiler import elements, local
from unit.test_compiler_histories import facts

MANY = 5 * PORTION
STATES = st.lists(states().map(decided), min_size=1, max_size=4)


def filled(compiler: Compiler, *some: Step) -> Backlog:
    """A backlog of steps that the view knows."""
    backlog = Backlog(compiler)
    for number, step in enumerate(some):
        backlog.add(take(compiler.store, step), received_s=number + 1.0)
    return backlog


def drained(compiler: Compiler, backlog: Backlog) -> int:
    """Compile everything; the number of portions that changed something."""
    count = 0
    while backlog:
        portion = backlog.take()
        compiler.read(portion.unread)
        compiler.update(portion.dirty)
        count += not portion.unread
    return count


def crowd(count: int, namespace: str = "crowd") -> list[Step]:
    """Pods of a namespace."""
    made = (f"10.{1 + (number >> 8)}.{number & 255}.1" for number in range(count))
    return [words.put(words.pod(f"{namespace}/p{number}", ip, node="node-1")) for number, ip in enumerate(made)]


@given(STATES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_portions_end_where_one_update_ends(history: list[State], rng: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PORTION", 2)
        patch.setattr(module, "NEWEST", 1)
        patch.setattr(module, "READ_AT_ONCE", 1)
        patch.setattr(module, "RELABELLED_AT_ONCE", 1)
        compiler = new_compiler()
        backlog = Backlog(compiler)
        before = State()
        for state in history:
            for step in steps(before, state):
                dirty = take(compiler.store, step)
                if isinstance(step, Admitted) and rng.random() < 0.5:
                    backlog.hasten(dirty, step.endpoint.pod.namespace)
                else:
                    backlog.add(dirty)
                if rng.random() < 0.3:
                    portion = backlog.take()
                    compiler.read(portion.unread)
                    compiler.update(portion.dirty)
            before = state
        drained(compiler, backlog)
        squashed = new_compiler()
        together = Dirty()
        for step in steps(State(), history[-1]):
            together.add(take(squashed.store, step))
        squashed.update(together)
        assert facts(compiler) == facts(squashed)


def test_little_is_one_portion() -> None:
    compiler = new_compiler()
    backlog = filled(compiler, *crowd(PORTION // 2), words.put(policy("x/p")), words.put(words.namespace("x")))
    assert not backlog.large
    portion = backlog.take()
    assert not backlog
    assert (len(portion.dirty.pods), portion.dirty.policies, portion.dirty.namespaces) == (
        PORTION // 2,
        {Key("x", "p")},
        {"x"},
    )
    assert len(portion.arrivals) == PORTION // 2 + 2
    assert max(arrival.received_s for arrival in portion.arrivals) == PORTION // 2 + 2


def test_much_comes_in_bounded_portions_and_every_event_once() -> None:
    compiler = new_compiler()
    backlog = filled(compiler, *crowd(MANY))
    seen: list[float] = []
    while backlog:
        portion = backlog.take()
        assert len(portion.dirty.pods) <= PORTION + module.NEWEST
        seen += [arrival.received_s for arrival in portion.arrivals]
    assert sorted(seen) == [number + 1.0 for number in range(MANY)]


@pytest.mark.parametrize("alone", [policy("x/alone"), words.pod("x/alone", "10.9.9.9"), words.namespace("x")])
def test_what_is_new_comes_with_the_next_portion_and_what_is_old_too(alone: Any) -> None:
    compiler = new_compiler()
    bulk = [words.put(policy(f"ns{number % 10}/p{number}")) for number in range(MANY)]
    backlog = filled(compiler, *crowd(MANY), *bulk)
    backlog.take()
    backlog.add(take(compiler.store, words.put(alone)), received_s=9999.0)
    portion = backlog.take()
    while portion.unread:
        compiler.read(portion.unread)
        portion = backlog.take()
    assert 9999.0 in [arrival.received_s for arrival in portion.arrivals]
    seen: set[Kind] = set()
    for _ in range(8):
        portion = backlog.take()
        compiler.read(portion.unread)
        seen |= {arrival.kind for arrival in portion.arrivals if arrival.received_s < MANY / 2 + MANY}
    assert seen == {Kind.POD, Kind.NETWORK_POLICY}


def test_a_pod_that_starts_goes_first_with_all_policies_of_its_namespace() -> None:
    compiler = new_compiler()
    bulk = [words.put(policy(f"ns{number % 3}/p{number}", selector(app="a"), ingress=[])) for number in range(MANY)]
    pod, endpoint = local("ns1/start", "10.0.0.9", labels={"app": "a"})
    backlog = filled(compiler, *crowd(MANY), *bulk, words.put(pod))
    backlog.hasten(compiler.store.admit(endpoint), "ns1")
    reads = 0
    while (portion := backlog.take()).unread:
        assert len(portion.unread) <= READ_AT_ONCE
        assert all(key.namespace == "ns1" for key in portion.unread)
        compiler.read(portion.unread)
        reads += 1
    assert reads > 1
    assert portion.dirty.policies == {key for key in compiler.store.policies if key.namespace == "ns1"}
    assert portion.dirty.pods == {pod.key}
    compiler.update(portion.dirty)
    assert set(elements(compiler, "ingress4")) == {"10.0.0.9"}
    assert backlog.large


def test_policies_of_one_namespace_are_never_apart() -> None:
    compiler = new_compiler()
    made: list[NetworkPolicy] = [policy(f"ns{number % 7}/p{number}") for number in range(MANY)]
    backlog = filled(compiler, *map(words.put, made))
    found: list[str] = []
    while backlog:
        portion = backlog.take()
        compiler.read(portion.unread)
        names = {key.namespace for key in portion.dirty.policies}
        for name in names:
            assert {key for key in portion.dirty.policies if key.namespace == name} == {
                one.key for one in made if one.key.namespace == name
            }
        found += names
    assert sorted(found) == sorted({one.key.namespace for one in made})


def test_a_large_namespace_is_relabelled_bit_by_bit_and_a_small_one_at_once() -> None:
    compiler = new_compiler()
    large, small = crowd(2 * RELABELLED_AT_ONCE + 1, "large"), crowd(RELABELLED_AT_ONCE, "small")
    for step in (*large, *small):
        take(compiler.store, step)
    backlog = filled(compiler, words.put(words.namespace("small", a="1")))
    assert set(backlog.take().dirty.pods) == set(compiler.store.pods_of("small"))
    assert not backlog
    backlog = filled(compiler, words.put(words.namespace("large", a="1")))
    sizes, seen = [], set()
    while backlog:
        portion = backlog.take()
        sizes.append(len(portion.dirty.pods))
        seen |= portion.dirty.pods
        assert bool(portion.arrivals) == (not backlog)
    assert sizes == [RELABELLED_AT_ONCE, RELABELLED_AT_ONCE, 1]
    assert seen == set(compiler.store.pods_of("large"))


def test_who_had_an_address_leaves_the_peers_no_later_than_its_next_owner_enters_or_starts() -> None:
    compiler = new_compiler()
    before = words.pod("x/before", "10.0.0.9", labels={"app": "web"}, node="node-1")
    server, sandbox = local("x/db", "10.0.0.1", labels={"app": "db"})
    backlog = filled(
        compiler,
        words.put(before),
        words.put(server),
        Admitted(sandbox),
        words.put(policy("x/p", selector(app="db"), ingress=[rule([pods(app="web")])])),
    )
    drained(compiler, backlog)
    (peers,) = (name for name in compiler.ruleset.sets if name.startswith("p4_"))
    assert set(elements(compiler, peers)) == {"10.0.0.9"}
    after, endpoint = local("x/after", "10.0.0.9")
    backlog.add(take(compiler.store, words.gone(before)))
    for step in (*crowd(MANY), words.put(after)):
        backlog.add(take(compiler.store, step))
    backlog.hasten(compiler.store.admit(endpoint), "x")
    compiler.update(backlog.take().dirty)
    assert '"napafter" . 10.0.0.9' in elements(compiler, "source4")
    assert set(elements(compiler, peers)) == set()


def watched(*before: Record) -> tuple[Compiler, str]:
    """A local pod x/db that admits app=web of its namespace, and the peer set for that."""
    compiler = new_compiler()
    server, sandbox = local("x/db", "10.0.0.1", labels={"app": "db"})
    admits = policy("x/p", selector(app="db"), ingress=[rule([pods(app="web")])])
    drained(
        compiler, filled(compiler, words.put(server), Admitted(sandbox), words.put(admits), *map(words.put, before))
    )
    (peers,) = (name for name in compiler.ruleset.sets if name.startswith("p4_"))
    return compiler, peers


@pytest.mark.parametrize("becomes", ["moved", "declares other ports"])
def test_a_policy_that_overtakes_a_change_of_its_peer_leaves_nothing_of_what_the_peer_was(becomes: str) -> None:
    ip, number = ("10.0.0.8", 80) if becomes == "moved" else ("10.0.0.9", 81)
    web = words.pod("x/web", "10.0.0.9", labels={"app": "web"}, ports=[("http", 80, "TCP")], node="node-1")
    after = words.pod("x/web", ip, labels={"app": "web"}, ports=[("http", number, "TCP")], node="node-1", uid="other")
    compiler, peers = watched(web, words.namespace("x"))
    api, sandbox = local("y/api", "10.0.0.2")
    named = policy("x/q", selector(app="db"), egress=[rule([pods(app="web")], [words.port("http")])])
    drained(compiler, filled(compiler, words.put(named), words.put(api), Admitted(sandbox)))
    anywhere = namespaces(selector(), selector(app="web"))
    overtakes = policy("y/r", ingress=[rule([anywhere])], egress=[rule([anywhere], [words.port("http")])])
    drained(compiler, filled(compiler, words.put(after), *crowd(MANY), words.put(overtakes)))
    fresh = new_compiler()
    drained(fresh, filled(fresh, *every_step(compiler)))
    assert set(elements(compiler, peers)) == {ip}
    assert facts(compiler)["sets"] == facts(fresh)["sets"]


def every_step(compiler: Compiler) -> list[Step]:
    """What leads to a compiler's view."""
    store = compiler.store
    records: list[Record] = [*store.namespaces.values(), *store.pods.values(), *store.policies.values()]
    return [*map(words.put, records), *(Admitted(one.endpoint) for one in store.sandboxes.values())]


def test_a_relabelled_namespace_does_not_bring_in_an_address_before_its_last_owner_leaves() -> None:
    web = words.pod("x/web", "10.0.0.9", labels={"app": "web"}, node="node-1")
    compiler, peers = watched(web)
    take(compiler.store, words.put(words.namespace("small")))
    backlog = filled(compiler, words.gone(web), *crowd(MANY))
    backlog.add(take(compiler.store, words.put(words.pod("small/heir", "10.0.0.9", node="node-1"))))
    for step in crowd(module.NEWEST + 1, "later"):
        backlog.add(take(compiler.store, step))
    backlog.add(take(compiler.store, words.put(words.namespace("small", a="1"))))
    entered = False
    while backlog and not entered:
        portion = backlog.take()
        compiler.update(portion.dirty)
        entered = Key("small", "heir") in portion.dirty.pods
    assert entered
    assert set(elements(compiler, peers)) == set()


def test_addresses_that_nobody_owns_are_not_remembered() -> None:
    web = [words.pod(f"x/web{number}", f"10.0.9.{number}", labels={"app": "web"}) for number in range(9)]
    compiler, _ = watched(*web)
    backlog = filled(compiler, *map(words.gone, web))
    drained(compiler, backlog)
    assert not backlog._left


@pytest.mark.parametrize("also", ["nothing", "a relabelled namespace"])
def test_a_local_pod_never_has_new_labels_under_older_policies_than_the_api_had(also: str) -> None:
    compiler = new_compiler()
    before, sandbox = local("x/db", "10.0.0.1", labels={"app": "a"})
    closed = policy("x/a", selector(app="a"), ingress=[])
    drained(compiler, filled(compiler, words.put(before), Admitted(sandbox), words.put(closed)))
    assert set(elements(compiler, "ingress4")) == {"10.0.0.1"}
    bulk = [words.put(policy(f"ns{number % 50}/p{number}")) for number in range(MANY)]
    closes_b = [words.put(policy(f"x/b{number}", selector(app="b"), ingress=[])) for number in range(READ_AT_ONCE + 1)]
    backlog = filled(compiler, *bulk[: MANY // 2], *closes_b, *bulk[MANY // 2 :])
    relabelled, _ = local("x/db", "10.0.0.1", labels={"app": "b"})
    backlog.add(take(compiler.store, words.put(relabelled)), received_s=1.0)
    if also == "a relabelled namespace":
        for step in crowd(module.NEWEST, "later"):
            backlog.add(take(compiler.store, step))
        backlog.add(take(compiler.store, words.put(words.namespace("x", a="1"))))
    while backlog:
        portion = backlog.take()
        assert len(portion.unread) <= READ_AT_ONCE
        compiler.read(portion.unread)
        compiler.update(portion.dirty)
        assert set(elements(compiler, "ingress4")) == {"10.0.0.1"}
