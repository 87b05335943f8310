"""The view of the cluster: who owns an address, what a change touches, and indexes that never drift."""

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.core.policy.selectors import compile_selector
from netagent.core.policy.store import Store
from netagent.records import Endpoint, Key, Kind, LabelSelector, Listed, Pod, Removed, Undecodable
from support import words
from support.histories import IPS, SELECTORS, State, states, steps, take

IP = "10.244.0.1"
OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def endpoint(pod: Pod, *ips: str, container: str = "", uid: str | None = None) -> Endpoint:
    return Endpoint(
        pod=pod.key,
        pod_uid=pod.uid if uid is None else uid,
        container_id=container or f"c-{pod.uid}",
        ifname="eth0",
        host_ifname=f"nap-{pod.uid}",
        ips=ips,
    )


def store_of(*pods: Pod) -> Store:
    store = Store()
    for pod in pods:
        store.apply(words.put(pod))
    return store


class TestOwnership:
    def test_of_the_pod_that_has_it(self) -> None:
        store = store_of(words.pod("x/a", IP))
        assert store.owner(IP) == Key("x", "a")
        assert store.owned_ips(Key("x", "a")) == (IP,)
        assert store.owner("10.244.0.2") is None

    def test_finished_and_host_network_pods_own_nothing(self) -> None:
        for phase in ("Succeeded", "Failed"):
            assert store_of(words.pod("x/a", IP, phase=phase)).owner(IP) is None
        assert store_of(words.pod("x/a", IP, host_network=True)).owner(IP) is None
        for phase in ("Pending", "Running", "Unknown"):
            assert store_of(words.pod("x/a", IP, phase=phase)).owner(IP) == Key("x", "a")

    def test_reuse_while_the_old_object_exists(self) -> None:
        old, young = words.pod("x/old", IP, created=OLD, uid="2"), words.pod("y/young", IP, created=YOUNG, uid="1")
        for order in ((old, young), (young, old)):
            store = store_of(*order)
            assert store.owner(IP) == young.key
            assert store.owned_ips(old.key) == ()
        dirty = store.apply(words.gone(young))
        assert store.owner(IP) == old.key
        assert dirty.pods == {old.key, young.key}

    def test_reuse_after_the_old_pod_finished(self) -> None:
        old, young = words.pod("x/old", IP, created=YOUNG), words.pod("y/young", IP, created=OLD)
        store = store_of(old, young)
        dirty = store.apply(words.put(words.pod("x/old", IP, created=YOUNG, phase="Succeeded")))
        assert store.owner(IP) == young.key
        assert young.key in dirty.pods

    def test_a_sandbox_here_wins_over_what_the_api_says(self) -> None:
        elsewhere, here = words.pod("x/elsewhere", IP, created=YOUNG), words.pod("y/here", created=OLD)
        store = store_of(elsewhere, here)
        dirty = store.admit(endpoint(here, IP))
        assert store.owner(IP) == here.key
        assert dirty.pods == {elsewhere.key, here.key}
        dirty = store.withdraw(endpoint(here, IP))
        assert store.owner(IP) == elsewhere.key
        assert dirty.pods == {elsewhere.key, here.key}

    def test_a_new_sandbox_of_the_same_pod_gives_up_the_old_address(self) -> None:
        pod, other = words.pod("x/a", IP), words.pod("y/b", IP, created=OLD)
        store = store_of(other, pod)
        dirty = store.admit(endpoint(pod, "10.244.0.2"))
        assert store.owner(IP) == other.key
        assert other.key in dirty.pods
        dirty = store.admit(endpoint(pod, IP))
        assert store.owner(IP) == pod.key
        assert store.owner("10.244.0.2") is None
        assert other.key in dirty.pods

    def test_readmitting_a_sandbox_with_another_address_tells_who_gets_the_first(self) -> None:
        pod, other = words.pod("x/a"), words.pod("y/b", IP)
        store = store_of(pod, other)
        store.admit(endpoint(pod, IP))
        dirty = store.admit(endpoint(pod, "10.244.0.3"))
        assert store.owner(IP) == other.key
        assert other.key in dirty.pods


class TestSandboxes:
    def test_described_by_its_own_incarnation_only(self) -> None:
        first, second = words.pod("x/a", uid="1"), words.pod("x/a", uid="2")
        store = store_of(first)
        store.admit(endpoint(first, IP))
        store.apply(words.put(second))
        (sandbox,) = store.sandboxes_of(first.key)
        assert sandbox.pod == first
        assert store.owner(IP) is None
        store.admit(endpoint(second, "10.244.0.2"))
        assert {one.endpoint.pod_uid: one.pod for one in store.sandboxes_of(first.key)} == {"1": first, "2": second}
        assert store.owned_ips(first.key) == ("10.244.0.2",)

    def test_unknown_until_the_pod_is_shown_and_kept_when_it_goes(self) -> None:
        pod = words.pod("x/a")
        store = Store()
        store.admit(endpoint(pod, IP))
        assert store.sandboxes_of(pod.key)[0].pod is None
        assert store.apply(words.put(pod)).pods == {pod.key}
        assert store.sandboxes_of(pod.key)[0].pod == pod
        store.apply(words.gone(pod))
        assert store.sandboxes_of(pod.key)[0].pod == pod

    def test_a_runtime_without_uids_is_believed_and_static_pods_have_two(self) -> None:
        pod = words.pod("x/a", uid="api")
        store = store_of(pod)
        store.admit(endpoint(pod, IP, uid=""))
        assert store.sandboxes_of(pod.key)[0].pod == pod
        static = Pod(key=Key("x", "s"), uid="api", mirror_of="kubelet")
        store = store_of(static)
        store.admit(endpoint(static, IP, uid="kubelet"))
        assert store.sandboxes_of(static.key)[0].pod == static

    def test_one_address_in_two_sandboxes_is_the_live_pods(self) -> None:
        old, young = words.pod("x/old", created=OLD), words.pod("y/young", created=YOUNG)
        store = store_of(old, young)
        store.admit(endpoint(young, IP))
        store.admit(endpoint(old, IP))
        assert store.holder(IP) == "c-uid-y/young"
        store.apply(words.put(words.pod("y/young", created=YOUNG, phase="Failed")))
        assert store.holder(IP) == "c-uid-x/old"
        store.withdraw(endpoint(old, IP))
        assert store.holder(IP) == "c-uid-y/young"
        store.withdraw(endpoint(young, IP))
        assert store.holder(IP) is None


class TestBadInput:
    def test_an_unreadable_policy_isolates_its_namespace_until_it_is_read(self) -> None:
        store, key = Store(), Key("x", "p")
        store.apply(words.put(words.policy("x/p", ingress=[words.rule()])))
        assert store.apply(Undecodable(Kind.NETWORK_POLICY, key, "no JSON")).policies == {key}
        closed = store.policies[key]
        assert set(closed.policy_types) == {"Ingress", "Egress"}
        assert closed.ingress == ()
        assert "no JSON" in closed.problem
        assert store.undecodable == {(Kind.NETWORK_POLICY, key): "no JSON"}
        store.apply(words.put(words.policy("x/p")))
        assert store.undecodable == {}

    def test_an_unreadable_pod_or_namespace_is_no_peer(self) -> None:
        store = store_of(words.pod("x/a", IP))
        store.apply(words.put(words.namespace("x")))
        assert store.apply(Undecodable(Kind.POD, Key("x", "a"), "?")).pods == {Key("x", "a")}
        assert store.owner(IP) is None
        store.apply(Undecodable(Kind.NAMESPACE, Key("", "x"), "?"))
        assert store.namespaces == {}
        assert len(store.undecodable) == 2
        store.apply(Removed(Kind.POD, Key("x", "a")))
        store.apply(Removed(Kind.NAMESPACE, Key("", "x")))
        assert store.undecodable == {}

    def test_removing_what_is_not_there_changes_nothing(self) -> None:
        store = Store()
        for kind in (Kind.POD, Kind.NAMESPACE, Kind.NODE, Kind.NETWORK_POLICY, Kind.LEASE):
            store.apply(Removed(kind, Key("x", "a")))
        assert not store.withdraw(endpoint(words.pod("x/a"), IP))
        assert facts(store) == facts(Store())


def facts(store: Store) -> Mapping[str, Any]:
    """Everything in a store, in plain data."""
    return {name: value for name, value in vars(store).items() if name != "listed"}


@given(st.lists(states(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_indexes_equal_those_of_a_store_built_anew(history: list[State]) -> None:
    store, before = Store(), State()
    for state in history:
        for step in steps(before, state):
            take(store, step)
        before = state
    anew = Store()
    for sandbox in store.sandboxes.values():
        if sandbox.pod is not None:
            anew.apply(words.put(sandbox.pod))
        anew.admit(sandbox.endpoint)
        if sandbox.pod is not None:
            anew.apply(words.gone(sandbox.pod))
    for step in steps(State(), State(records=before.records)):
        take(anew, step)
    assert facts(store) == facts(anew)
    assert [store.owner(ip) for ip in IPS] == [anew.owner(ip) for ip in IPS]
    for step in steps(before, State()):
        take(store, step)
    assert facts(store) == facts(Store())


@given(states(), states())
@settings(max_examples=40, deadline=None)
def test_whoever_gains_or_loses_an_address_is_touched(before: State, after: State) -> None:
    store = Store()
    for step in steps(State(), before):
        take(store, step)
    for step in steps(before, after):
        owned = {key: set(store.owned_ips(key)) for key in store.pods}
        held = {ip: store.holder(ip) for ip in IPS}
        near = {ip: {store.sandboxes[one].endpoint.pod for one in store.sandboxes_at(ip)} for ip in IPS}
        dirty = take(store, step)
        for key in store.pods.keys() | owned.keys():
            if set(store.owned_ips(key)) != owned.get(key, set()):
                assert key in dirty.pods, (key, step)
        for ip in IPS:
            if store.holder(ip) != held[ip]:
                there = {store.sandboxes[container].endpoint.pod for container in store.sandboxes_at(ip)}
                assert dirty.pods & (there | near[ip]), (ip, step)


@given(states(), SELECTORS, st.sampled_from(["", "x", "y", "z"]))
@settings(max_examples=40, deadline=None)
def test_pods_matching_finds_exactly_what_matches(state: State, source: LabelSelector, namespace: str) -> None:
    store = Store()
    for step in steps(State(), state):
        take(store, step)
    selector, _ = compile_selector(source)
    found = list(store.pods_matching(selector, namespace))
    assert len(found) == len(set(found))
    assert set(found) == {
        key
        for key, pod in store.pods.items()
        if selector.matches(pod.labels) and (not namespace or key.namespace == namespace)
    }


def test_listed() -> None:
    store = Store()
    assert not store.apply(Listed(Kind.POD))
    assert store.listed == {Kind.POD}
