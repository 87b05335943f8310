"""What a NetworkPolicy means: every null, absent and empty, every default, and what cannot be meant."""

from typing import TypeVar

import pytest

from netagent.core.policy.meaning import (
    BlockPeer,
    Direction,
    NamedPort,
    PodPeer,
    Policy,
    PortRange,
    Rule,
    compile_policy,
)
from netagent.core.policy.selectors import EVERYTHING, Selector, compile_selector
from netagent.records import LabelSelector, NetworkPolicy, PolicyPeer, PolicyPort
from support.words import Expression, block, namespaces, pods, policy, port, rule, selector

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
BROKEN = selector(("k", "In", []))


T = TypeVar("T")


def sel(*expressions: Expression, **labels: str) -> Selector:
    return compile_selector(selector(*expressions, **labels))[0]


def understood(source: NetworkPolicy) -> Policy:
    found = compile_policy(source)
    assert found.problems == ()
    return found


def the_rule(source: NetworkPolicy, direction: Direction = INGRESS) -> Rule:
    (found,) = understood(source).rules[direction]
    return found


def some(found: frozenset[T] | None) -> set[T]:
    """Not all of them."""
    assert found is not None
    return set(found)


class TestDirections:
    def test_without_types_ingress_always_and_egress_with_an_egress_rule(self) -> None:
        assert set(understood(policy("x/p")).rules) == {INGRESS}
        assert set(understood(policy("x/p", ingress=[rule()])).rules) == {INGRESS}
        assert set(understood(policy("x/p", egress=[rule()])).rules) == {INGRESS, EGRESS}

    def test_types_decide_where_they_are_given(self) -> None:
        both = understood(policy("x/p", types=["Ingress", "Egress"]))
        assert both.rules == {INGRESS: (), EGRESS: ()}
        only = understood(policy("x/p", ingress=[rule()], egress=[rule()], types=["Egress"]))
        assert set(only.rules) == {EGRESS}
        assert understood(policy("x/p", types=["Egress"])).rules == {EGRESS: ()}

    def test_an_unknown_type_closes_both_directions(self) -> None:
        for types in (["Foo"], ["Ingress", "egress"]):
            found = compile_policy(policy("x/p", types=types))
            assert set(found.rules) == {INGRESS, EGRESS}
            assert len(found.problems) == 1
            assert types[-1] in found.problems[0]


class TestPeers:
    @pytest.mark.parametrize("peers", [None, ()])
    def test_missing_or_empty_list_is_everybody(self, peers: tuple[PolicyPeer, ...] | None) -> None:
        assert the_rule(policy("x/p", ingress=[rule(peers)])).peers is None

    def test_pod_selector_alone_is_the_own_namespace(self) -> None:
        expected = PodPeer("x", EVERYTHING, sel(app="a"))
        assert some(the_rule(policy("x/p", ingress=[rule([pods(app="a")])])).peers) == {expected}
        assert some(the_rule(policy("x/p", ingress=[rule([pods()])])).peers) == {PodPeer("x", EVERYTHING, EVERYTHING)}

    def test_namespace_selector_alone_is_all_pods_there(self) -> None:
        found = the_rule(policy("x/p", egress=[rule([namespaces(selector(team="t"))])]), EGRESS)
        assert some(found.peers) == {PodPeer("", sel(team="t"), EVERYTHING)}
        everywhere = the_rule(policy("x/p", ingress=[rule([namespaces(LabelSelector())])]))
        assert some(everywhere.peers) == {PodPeer("", EVERYTHING, EVERYTHING)}

    def test_both_selectors_in_one_peer_and_in_two(self) -> None:
        one = the_rule(policy("x/p", ingress=[rule([namespaces(selector(team="t"), selector(app="a"))])]))
        assert some(one.peers) == {PodPeer("", sel(team="t"), sel(app="a"))}
        two = the_rule(policy("x/p", ingress=[rule([namespaces(selector(team="t")), pods(app="a")])]))
        assert some(two.peers) == {PodPeer("", sel(team="t"), EVERYTHING), PodPeer("x", EVERYTHING, sel(app="a"))}

    def test_block_keeps_excepts_of_its_own_version_and_loses_host_bits(self) -> None:
        found = the_rule(
            policy("x/p", ingress=[rule([block("10.1.2.3/8", "10.1.2.9/24", "fd00::/64", "10.1.2.0/24")])])
        )
        assert some(found.peers) == {BlockPeer("10.0.0.0/8", ("10.1.2.0/24",))}

    def test_peer_with_a_field_of_the_future_costs_its_rule(self) -> None:
        """It narrows something, and nobody here knows what."""
        future = PolicyPeer(pod_selector=LabelSelector(), unknown_fields=("zoneSelector",))
        found = compile_policy(policy("x/p", ingress=[rule([future, pods(app="a")]), rule([pods(app="a")])]))
        first, second = found.rules[INGRESS]
        assert first.peers == frozenset()
        assert some(second.peers) == {PodPeer("x", EVERYTHING, sel(app="a"))}
        assert found.problems == ("spec.ingress[0].from[0]: unknown fields zoneSelector; this rule matches nothing",)

    def test_block_is_read_in_decimal_whatever_its_zeros(self) -> None:
        found = the_rule(policy("x/p", ingress=[rule([block("010.000.0.0/08", "10.001.00.0/16")])]))
        assert some(found.peers) == {BlockPeer("10.0.0.0/8", ("10.1.0.0/16",))}

    @pytest.mark.parametrize(
        "peer",
        [
            PolicyPeer(),
            PolicyPeer(pod_selector=BROKEN),
            PolicyPeer(namespace_selector=BROKEN, pod_selector=LabelSelector()),
            PolicyPeer(pod_selector=LabelSelector(), ip_block=block("10.0.0.0/8").ip_block),
            PolicyPeer(namespace_selector=LabelSelector(), ip_block=block("10.0.0.0/8").ip_block),
            block("10.0.0.0/33"),
            block("10.0.0.0/8", "ten/8"),
            block(""),
        ],
    )
    def test_impossible_peer_matches_nothing_and_costs_only_itself(self, peer: PolicyPeer) -> None:
        found = compile_policy(policy("x/p", ingress=[rule([peer]), rule([peer, pods(app="a")])]))
        alone, beside = found.rules[INGRESS]
        assert alone.peers == frozenset()
        assert some(beside.peers) == {PodPeer("x", EVERYTHING, sel(app="a"))}
        assert len(found.problems) == 2
        assert found.problems[0].startswith("spec.ingress[0].from[0]")
        assert found.problems[1].startswith("spec.ingress[1].from[0]")


class TestPorts:
    @pytest.mark.parametrize("ports", [None, ()])
    def test_missing_or_empty_list_is_every_port(self, ports: tuple[PolicyPort, ...] | None) -> None:
        assert the_rule(policy("x/p", ingress=[rule(None, ports)])).ports is None

    @pytest.mark.parametrize(
        ("one", "expected"),
        [
            (port(80), PortRange("TCP", 80, 80)),
            (port(80, "UDP"), PortRange("UDP", 80, 80)),
            (port(80, "SCTP"), PortRange("SCTP", 80, 80)),
            (port(80, end=80), PortRange("TCP", 80, 80)),
            (port(80, end=90), PortRange("TCP", 80, 90)),
            (port(1, end=65535), PortRange("TCP", 1, 65535)),
            (port(None), PortRange("TCP", 0, 65535)),
            (port(None, "UDP"), PortRange("UDP", 0, 65535)),
            (port("http"), NamedPort("TCP", "http")),
            (port("dns", "UDP"), NamedPort("UDP", "dns")),
        ],
    )
    def test_port(self, one: PolicyPort, expected: PortRange | NamedPort) -> None:
        assert some(the_rule(policy("x/p", egress=[rule(None, [one])]), EGRESS).ports) == {expected}

    @pytest.mark.parametrize(
        "one",
        [
            port(80, "ICMP"),
            port(80, "tcp"),
            port(0),
            port(65536),
            port(-1),
            port(90, end=80),
            port(80, end=70000),
            port(80, end=0),
            port("http", end=90),
            port(None, end=90),
            port(""),
        ],
    )
    def test_impossible_port_matches_nothing_and_costs_only_itself(self, one: PolicyPort) -> None:
        found = compile_policy(policy("x/p", egress=[rule(None, [one]), rule(None, [one, port(53, "UDP")])]))
        alone, beside = found.rules[EGRESS]
        assert alone.ports == frozenset()
        assert some(beside.ports) == {PortRange("UDP", 53, 53)}
        assert len(found.problems) == 2
        assert found.problems[0].startswith("spec.egress[0].ports[0]")


class TestBrokenSelection:
    def test_a_broken_pod_selector_isolates_what_the_rest_selects_and_admits_nothing(self) -> None:
        found = compile_policy(policy("x/p", selector(("k", "In", []), app="a"), ingress=[rule()], egress=[rule()]))
        assert found.selects == sel(app="a")
        assert found.rules == {INGRESS: (), EGRESS: ()}
        assert len(found.problems) == 1
        assert found.problems[0].startswith("spec.podSelector")

    def test_an_unreadable_policy_admits_nothing(self) -> None:
        found = compile_policy(policy("x/p", ingress=[rule()], types=["Ingress", "Egress"], problem="spec: no object"))
        assert found.rules == {INGRESS: (), EGRESS: ()}
        assert found.problems == ("spec: no object",)
