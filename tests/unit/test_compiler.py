"""From objects to sets, maps and chains: what is shared, what a change costs, what is refused."""

from typing import Any

import pytest

from netagent.core.policy.compiler import UNKNOWN_POD, Compiler
from netagent.core.policy.frame import POD_LINKS
from netagent.core.policy.ruleset import Delta
from netagent.records import Endpoint, Key, Kind, Pod, Record, Undecodable
from support import words
from support.histories import Admitted, Withdrawn, new_compiler, replay
from support.words import block, namespaces, pods, policy, port, rule, selector


def endpoint(pod: Pod, *ips: str) -> Endpoint:
    link = f"{POD_LINKS}{pod.key.name}"
    return Endpoint(pod=pod.key, pod_uid=pod.uid, container_id=pod.uid, ifname="eth0", host_ifname=link, ips=ips)


def put(compiler: Compiler, *records: Record) -> Delta:
    replay(compiler, map(words.put, records))
    return compiler.ruleset.take()


def local(name: str, *ips: str, **more: Any) -> tuple[Pod, Endpoint]:
    pod = words.pod(name, *ips, **more)
    return pod, endpoint(pod, *ips)


@pytest.fixture
def node() -> Compiler:
    """Two local pods web and db of namespace x, one remote pod in y."""
    compiler = new_compiler()
    put(compiler, words.namespace("x", team="one"), words.namespace("y", team="two"))
    for name, ip in (("web", "10.244.0.1"), ("db", "10.244.0.2")):
        pod, sandbox = local(f"x/{name}", ip, labels={"app": name})
        put(compiler, pod)
        replay(compiler, [Admitted(sandbox)])
    put(compiler, words.pod("y/far", "10.244.1.1", labels={"app": "web"}, node="node-1"))
    compiler.ruleset.take()
    return compiler


def elements(compiler: Compiler, name: str) -> dict[str, str]:
    return compiler.ruleset.sets[name].values


DENIES = 2
"""Rules that a class which denies anything ends with."""


def chain_for(compiler: Compiler, ip: str, direction: str = "ingress") -> tuple[str, ...]:
    """Rules of the chain that judges an address."""
    verb, name = elements(compiler, f"{direction}4")[ip].split()
    assert verb == "goto"
    return compiler.ruleset.chains[name].rules


def peer_set(compiler: Compiler, rule_text: str) -> set[str]:
    name = next(word[1:] for word in rule_text.split() if word.startswith("@"))
    return set(elements(compiler, name))


def test_only_isolated_local_pods_are_dispatched(node: Compiler) -> None:
    assert elements(node, "ingress4") == elements(node, "egress4") == {}
    put(node, policy("x/p", selector(app="db"), ingress=[rule([pods(app="web")])]), policy("y/p", egress=[]))
    assert set(elements(node, "ingress4")) == {"10.244.0.2"}
    assert elements(node, "egress4") == {}
    first, _, itself, last = chain_for(node, "10.244.0.2")
    assert itself == "jump itself"
    assert first.startswith("ct original ip saddr @")
    assert peer_set(node, first) == {"10.244.0.1"}
    assert last.endswith("goto denied_ingress")


def test_pods_of_one_class_share_a_chain_and_equal_peers_a_set(node: Compiler) -> None:
    put(node, policy("x/p", ingress=[rule([namespaces(selector(team="two"))], [port(80)])]))
    assert chain_for(node, "10.244.0.1") == chain_for(node, "10.244.0.2")
    before = set(node.ruleset.sets)
    delta = put(node, policy("x/q", selector(app="db"), ingress=[rule([namespaces(selector(team="two"))], [port(81)])]))
    assert set(node.ruleset.sets) - before == {name for name in delta.new_sets if name.startswith("t_")}
    rules = chain_for(node, "10.244.0.2")
    assert {"10.244.1.1"} == peer_set(node, rules[0])


def test_rules_with_the_same_ports_become_one(node: Compiler) -> None:
    for number in range(20):
        put(node, policy(f"x/p{number}", ingress=[rule([pods(app=f"app-{number}")], [port(80)])]))
    four, six, *last = chain_for(node, "10.244.0.1")
    assert len(last) == DENIES
    assert four.startswith("meta l4proto tcp ct reply proto-src 80 ct original ip saddr @p4_")
    assert six.startswith("meta l4proto tcp ct reply proto-src 80 ct original ip6 saddr @p6_")


def test_everybody_on_every_port_is_one_rule(node: Compiler) -> None:
    put(node, policy("x/p", ingress=[rule(), rule([pods(app="web")], [port(80)])]))
    assert chain_for(node, "10.244.0.1") == ("goto admitted",)


def test_named_ports_are_the_destinations(node: Compiler) -> None:
    put(node, words.pod("x/db", "10.244.0.2", labels={"app": "db"}, ports=[("sql", 5432, "TCP"), ("sql", 53, "UDP")]))
    put(node, words.pod("y/far", "10.244.1.1", ports=[("sql", 6432, "TCP"), ("sql", 6433, "TCP")], node="node-1"))
    put(node, policy("x/p", ingress=[rule(None, [port("sql")])], egress=[rule(None, [port("sql")])]))
    assert chain_for(node, "10.244.0.2")[0] == "meta l4proto tcp ct reply proto-src 5432 goto admitted"
    assert len(chain_for(node, "10.244.0.1")) == DENIES
    four = chain_for(node, "10.244.0.1", "egress")[0]
    assert peer_set(node, four) == {"10.244.0.2 . 5432", "10.244.1.1 . 6432", "10.244.1.1 . 6433"}
    put(node, words.pod("x/db", "10.244.0.2", labels={"app": "db"}, ports=[("sql", 99, "TCP")]))
    assert peer_set(node, four) == {"10.244.0.2 . 99", "10.244.1.1 . 6432", "10.244.1.1 . 6433"}
    assert chain_for(node, "10.244.0.2")[0] == "meta l4proto tcp ct reply proto-src 99 goto admitted"


def test_blocks_become_disjoint_constant_intervals(node: Compiler) -> None:
    blocks = [block("10.0.0.0/8", "10.1.0.0/16"), block("10.0.0.0/9"), block("192.0.2.7/32"), block("fd00::/64")]
    put(node, policy("x/p", ingress=[rule(blocks)]))
    intervals = [one for name, one in node.ruleset.sets.items() if name.startswith("b4_")]
    assert [set(one.values) for one in intervals] == [{"10.0.0.0-10.255.255.255", "192.0.2.7"}]
    assert intervals[0].decl.flags == "interval"


def test_an_unknown_pod_is_closed_until_it_is_shown(node: Compiler) -> None:
    pod, sandbox = local("x/new", "10.244.0.9")
    replay(node, [Admitted(sandbox)])
    for direction in ("ingress4", "egress4"):
        assert elements(node, direction) == {"10.244.0.9": f"goto {UNKNOWN_POD}"}
    put(node, pod)
    assert elements(node, "ingress4") == {}
    assert '"napnew" . 10.244.0.9' in elements(node, "source4")
    replay(node, [Withdrawn(sandbox)])
    assert '"napnew" . 10.244.0.9' not in elements(node, "source4")


def test_an_address_in_two_sandboxes_is_judged_as_the_live_pods(node: Compiler) -> None:
    put(node, policy("x/p", selector(app="young"), ingress=[]))
    old, lingering = local("x/old", "10.244.0.9", created="2026-01-01T00:00:00Z")
    young, fresh = local("x/young", "10.244.0.9", created="2026-01-02T00:00:00Z", labels={"app": "young"})
    put(node, old, young)
    replay(node, [Admitted(fresh), Admitted(lingering)])
    assert set(elements(node, "ingress4")) == {"10.244.0.9"}
    assert '"napold" . 10.244.0.9' not in elements(node, "source4")
    replay(node, [Withdrawn(lingering)])
    assert set(elements(node, "ingress4")) == {"10.244.0.9"}
    assert {"10.244.0.9"} <= set(elements(node, "local4"))


def test_a_broken_policy_costs_only_its_own_pods(node: Compiler) -> None:
    put(node, policy("x/good", selector(app="db"), ingress=[rule([pods(app="web")])]))
    good = chain_for(node, "10.244.0.2")
    put(node, policy("y/broken", selector(("k", "Like", ["v"])), ingress=[rule()]))
    replay(node, [Undecodable(Kind.NETWORK_POLICY, Key("y", "worse"), "no JSON")])
    assert chain_for(node, "10.244.0.2") == good
    assert set(node.problems) == {Key("y", "broken"), Key("y", "worse")}
    replay(node, [Undecodable(Kind.NETWORK_POLICY, Key("x", "worse"), "no JSON")])
    assert set(elements(node, "ingress4")) == set(elements(node, "egress4")) == {"10.244.0.1", "10.244.0.2"}
    assert len(chain_for(node, "10.244.0.1")) == DENIES


def test_long_names_stay_within_what_the_kernel_takes(node: Compiler) -> None:
    name = "x/" + "n" * 253
    peer = namespaces(selector(**{"k" * 63: "v" * 63}), selector(app="w" * 63))
    put(node, policy(name, ingress=[rule([peer], [port("http")])], egress=[rule([peer], [port("http"), port(80)])]))
    for found in (*node.ruleset.sets, *node.ruleset.chains, *node.ruleset.counters):
        assert len(found) < 128
        assert found.replace("_", "").isalnum()


class TestWork:
    """What a change costs is what it changes."""

    @pytest.fixture(autouse=True)
    def isolate(self, node: Compiler) -> None:
        put(
            node,
            policy("x/p", selector(app="db"), ingress=[rule([namespaces(selector(team="two"), selector(app="web"))])]),
        )

    def test_a_pod_that_matches_no_peer_touches_nothing(self, node: Compiler) -> None:
        replay(node, [words.put(words.pod("y/other", "10.244.1.2", labels={"app": "db"}, node="node-1"))])
        replay(node, [words.put(words.pod("z/other", "10.244.1.3", labels={"app": "web"}, node="node-1"))])
        assert not node.ruleset.changed

    def test_a_pod_that_matches_is_one_element(self, node: Compiler) -> None:
        delta = put(node, words.pod("y/more", "10.244.1.2", labels={"app": "web"}, node="node-1"))
        assert not delta.revokes
        (change,) = delta.changed_sets.values()
        assert change.removed == []
        assert change.added == {"10.244.1.2": ""}
        assert not any((delta.new_sets, delta.new_chains, delta.changed_chains, delta.old_chains))

    def test_an_unrelated_field_touches_nothing(self, node: Compiler) -> None:
        far = words.pod("y/far", "10.244.1.1", labels={"app": "web", "more": "yes"}, node="node-1")
        replay(node, [words.put(far), words.put(words.namespace("y", team="two", other="label"))])
        assert not node.ruleset.take()

    def test_a_relabelled_namespace_moves_its_pods(self, node: Compiler) -> None:
        delta = put(node, words.namespace("y", team="three"))
        assert delta.revokes
        (change,) = delta.changed_sets.values()
        assert (change.removed, change.added) == (["10.244.1.1"], {})

    def test_a_policy_that_changes_nothing_touches_nothing(self, node: Compiler) -> None:
        peer = namespaces(selector(("team", "In", ["two"])), selector(app="web"))
        assert not put(node, policy("x/p", selector(app="db"), ingress=[rule([peer, peer])]))

    def test_a_policy_of_no_local_pod_makes_no_sets(self, node: Compiler) -> None:
        replay(node, [words.put(policy("y/p", ingress=[rule([block("10.0.0.0/8"), pods(app="web")])]))])
        assert not node.ruleset.changed

    def test_a_relabelled_local_pod_changes_class_by_one_element(self, node: Compiler) -> None:
        web = words.pod("x/web", "10.244.0.1", labels={"app": "db"})
        delta = put(node, web)
        assert set(delta.changed_sets) == {"ingress4"}
        assert not delta.new_chains
        assert delta.revokes
        assert chain_for(node, "10.244.0.1") == chain_for(node, "10.244.0.2")
