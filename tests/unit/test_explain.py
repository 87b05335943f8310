"""Explain, without a kernel: every near miss says what is missing, every special case is put into words."""

from typing import Any

import pytest

from netagent.core.policy.meaning import Direction, compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions import explain
from netagent.core.questions.explain import Answer, DirectionAnswer, Explanation
from netagent.core.questions.parties import Cluster, QuestionError, cluster_of, parse_question
from netagent.records import (
    ContainerPort,
    Endpoint,
    IPBlock,
    Key,
    Kind,
    LabelSelector,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
    SubnetLease,
    Upserted,
)

DB, WEB = Key("shop", "db"), Key("shop", "web")


def selector(*expressions: Requirement, **labels: str) -> LabelSelector:
    return LabelSelector(match_labels=labels, match_expressions=expressions)


def pods(namespace: LabelSelector | None = None, **labels: str) -> PolicyPeer:
    return PolicyPeer(pod_selector=selector(**labels), namespace_selector=namespace)


def block(cidr: str, *excepts: str) -> PolicyPeer:
    return PolicyPeer(ip_block=IPBlock(cidr=cidr, excepts=excepts))


def rule(*peers: PolicyPeer, ports: tuple[PolicyPort, ...] = ()) -> PolicyRule:
    return PolicyRule(peers=peers or None, ports=ports or None)


def ingress(*rules: PolicyRule, name: str = "db", **selects: str) -> NetworkPolicy:
    return NetworkPolicy(
        key=Key("shop", name),
        uid=name,
        pod_selector=selector(**(selects or {"app": "db"})),
        policy_types=("Ingress",),
        ingress=rules,
    )


def egress(*rules: PolicyRule) -> NetworkPolicy:
    return NetworkPolicy(
        key=Key("shop", "web-out"),
        uid="web-out",
        pod_selector=selector(app="web"),
        policy_types=("Egress",),
        egress=rules,
    )


def pod(key: Key, *ips: str, node: str = "n1", **fields: Any) -> Pod:
    labels = fields.pop("labels", {"app": key.name})
    return Pod(key=key, uid=f"uid-{key.name}", node=node, labels=labels, ips=ips, **{"phase": "Running", **fields})


def view(*policies: NetworkPolicy, more: tuple[Pod, ...] = ()) -> Cluster:
    """web and db on this node, far and a host-network pod on n2, guest in another namespace."""
    store = Store()
    records: list[tuple[Kind, Any]] = [
        (Kind.NAMESPACE, Namespace(key=Key("", "shop"), uid="s", labels={"team": "shop"})),
        (Kind.NAMESPACE, Namespace(key=Key("", "guest"), uid="g", labels={})),
        (Kind.NODE, Node(key=Key("", "n1"), uid="n1", addresses=("192.168.0.1",))),
        (Kind.NODE, Node(key=Key("", "n2"), uid="n2", addresses=("192.168.0.2",))),
    ]
    lease = SubnetLease(
        key=Key("", "l"), uid="l", resource_version="1", subnet="10.244.2.0/24", holder="n2", public_ip="192.168.0.2"
    )
    records.append((Kind.LEASE, lease))
    ports = (ContainerPort("sql", 5432, "TCP"), ContainerPort("sql", 5353, "UDP"))
    everyone = (
        pod(DB, "10.244.1.4", "fd00::4", ports=ports),
        pod(WEB, "10.244.1.2", "fd00::2"),
        pod(Key("shop", "far"), "10.244.2.9", node="n2"),
        pod(Key("guest", "guest"), "10.244.2.8", node="n2"),
        pod(Key("shop", "host"), "192.168.0.2", node="n2", host_network=True, labels={"app": "web"}),
        *more,
    )
    records += [(Kind.POD, one) for one in everyone]
    records += [(Kind.NETWORK_POLICY, policy) for policy in policies]
    for kind, record in records:
        store.apply(Upserted(kind, record))
    for one in everyone:
        if one.node == "n1" and one.phase == "Running":
            store.admit(
                Endpoint(
                    pod=one.key,
                    pod_uid=one.uid,
                    container_id=one.uid,
                    ifname="eth0",
                    host_ifname="",
                    ips=one.ips,
                )
            )
    return cluster_of(store, map(compile_policy, store.policies.values()), "n1", overlay=True)


def ask(cluster: Cluster, source: str, destination: str, port: str = "5432", protocol: str = "TCP") -> Explanation:
    return explain.explain(cluster, parse_question(source, destination, port, protocol))


def first(explanation: Explanation) -> Answer:
    return explanation.answers[0]


def side(explanation: Explanation, direction: Direction = Direction.INGRESS) -> DirectionAnswer:
    return next(one for one in first(explanation).directions if one.direction is direction)


def misses(explanation: Explanation, direction: Direction = Direction.INGRESS) -> list[tuple[str, ...]]:
    return [miss.missing for miss in side(explanation, direction).near_misses]


SQL = (PolicyPort(port=5432),)


@pytest.mark.parametrize(
    ("peer", "source", "words"),
    [
        (pods(role="web"), "shop/web", "label role=web missing on pod shop/web"),
        (pods(app="admin"), "shop/web", "label app=admin wanted, pod shop/web has app=web"),
        (pods(selector(team="ops")), "shop/web", "label team=ops wanted, ns shop has team=shop"),
        (pods(selector(team="ops")), "guest/guest", "label team=ops missing on ns guest"),
        (pods(), "guest/guest", "pod guest/guest is in ns guest, the rule takes ns shop"),
        (
            pods(app="web"),
            "10.9.9.9",
            "10.9.9.9: no pod of the view owns it, and the rule takes pods [app=web] in ns shop",
        ),
        (pods(app="web"), "shop/host", "its labels do not count"),
        (block("10.1.0.0/16"), "10.9.9.9", "10.9.9.9 is not in 10.1.0.0/16"),
        (block("10.0.0.0/8", "10.1.0.0/16"), "10.1.2.3", "10.1.2.3 is in except 10.1.0.0/16 of 10.0.0.0/8"),
        (block("fd00::/8"), "10.1.2.3", "10.1.2.3 is IPv4, fd00::/8 is IPv6"),
        (
            block("10.244.0.0/16"),
            "10.244.2.0",
            "10.244.2.0 (node n2's in the overlay, counts as 192.168.0.2) is not in 10.244.0.0/16",
        ),
    ],
)
def test_near_miss_of_a_peer(peer: PolicyPeer, source: str, words: str) -> None:
    found = misses(ask(view(ingress(rule(peer, ports=SQL))), source, "shop/db"))
    assert len(found) == 1
    assert len(found[0]) == 1
    assert words in found[0][0]


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        (Requirement("app", "NotIn", ("web",)), "label app notin (web) wanted, pod shop/web has app=web"),
        (Requirement("app", "DoesNotExist"), "label !app wanted, pod shop/web has app=web"),
        (Requirement("role", "Exists"), "label role missing on pod shop/web"),
        (Requirement("role", "In", ("a", "b")), "label role in (a,b) missing on pod shop/web"),
    ],
)
def test_near_miss_of_every_operator(requirement: Requirement, words: str) -> None:
    peer = PolicyPeer(pod_selector=selector(requirement))
    assert misses(ask(view(ingress(rule(peer))), "shop/web", "shop/db")) == [(words,)]


@pytest.mark.parametrize(
    ("ports", "asked", "words"),
    [
        ((PolicyPort(port=80), PolicyPort(port=443)), ("81", "TCP"), "port 81/TCP not in 443/TCP, 80/TCP"),
        ((PolicyPort(port=80, end_port=90),), ("91", "TCP"), "port 91/TCP not in 80-90/TCP"),
        ((PolicyPort(port=80),), ("80", "UDP"), "port 80/UDP not in 80/TCP"),
        ((PolicyPort(port="sql"),), ("81", "TCP"), "named port sql/TCP is 5432 on pod shop/db, not 81"),
        ((PolicyPort(port="http"),), ("81", "TCP"), "named port http/TCP is not declared by pod shop/db"),
        ((PolicyPort(port=80),), ("", "ICMP"), "ICMP has no port, and the rule is for 80/TCP"),
        ((PolicyPort(protocol="UDP"),), ("80", "SCTP"), "port 80/SCTP not in UDP"),
    ],
)
def test_near_miss_of_a_port(ports: tuple[PolicyPort, ...], asked: tuple[str, str], words: str) -> None:
    found = misses(ask(view(ingress(rule(pods(app="web"), ports=ports))), "shop/web", "shop/db", *asked))
    assert found == [(words,)]


def test_named_port_of_egress_needs_a_pod() -> None:
    cluster = view(egress(rule(ports=(PolicyPort(port="sql"),))))
    assert ask(cluster, "shop/web", "shop/db").verdict == "allow"
    assert ask(cluster, "shop/web", "shop/db", "5353", "UDP").verdict == "deny"
    outside = ask(cluster, "shop/web", "10.9.9.9")
    assert misses(outside, Direction.EGRESS) == [("named port sql/TCP needs a pod as destination, 10.9.9.9 is none",)]


def test_closest_peer_of_a_rule_and_closest_rule_first() -> None:
    far_off = rule(pods(selector(team="ops"), app="x", role="y"), ports=(PolicyPort(port=1),))
    close = rule(pods(app="x", role="y"), pods(app="web", role="y"), ports=SQL)
    found = side(ask(view(ingress(far_off, close)), "shop/web", "shop/db")).near_misses
    assert [miss.rule.index for miss in found] == [1, 0]
    assert found[0].missing == ("label role=y missing on pod shop/web",)
    assert len(found[1].missing) == 4


def test_only_the_closest_are_listed_and_the_rest_counted() -> None:
    rules = [rule(pods(app=f"x{number}")) for number in range(25)]
    answer = side(ask(view(ingress(*rules)), "shop/web", "shop/db"))
    assert (len(answer.near_misses), answer.near_misses_left_out) == (10, 15)


def test_policies_add_up_and_every_admitting_rule_is_named() -> None:
    cluster = view(ingress(rule(pods(app="web"))), ingress(rule(), name="open"), ingress(name="deny"))
    answer = side(ask(cluster, "shop/web", "shop/db"))
    assert answer.isolated_by == ("shop/db", "shop/deny", "shop/open")
    assert [str(one) for one in answer.admitted_by] == ["shop/db ingress[0]", "shop/open ingress[0]"]
    assert answer.near_misses == ()


def test_each_direction_has_its_verdict() -> None:
    cluster = view(egress(rule(pods(app="db"), ports=SQL)), ingress(rule(pods(app="admin"))))
    answer = ask(cluster, "shop/web", "shop/db")
    assert answer.verdict == "deny"
    assert side(answer, Direction.EGRESS).admitted_by
    assert not side(answer, Direction.INGRESS).allowed


def test_ip_versions_may_differ() -> None:
    answer = ask(view(ingress(rule(block("10.244.0.0/16")))), "shop/web", "shop/db")
    assert answer.verdict == "mixed"
    assert [one.allowed for one in answer.answers] == [True, False]


def test_pod_to_itself() -> None:
    answer = ask(view(ingress()), "shop/db", "shop/db", "1")
    assert (answer.verdict, first(answer).exempt) == ("allow", "a pod always reaches itself")


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("192.168.0.1", "shop/db", "node n1 and its own pods"),
        ("shop/db", "192.168.0.1", "node n1 and its own pods"),
        ("192.168.0.2", "shop/far", "node n2 and its own pods"),
        ("10.244.2.0", "shop/far", "node n2 and its own pods"),
        ("shop/host", "guest/guest", "node n2 and its own pods"),
    ],
)
def test_node_and_its_own_pods(source: str, destination: str, words: str) -> None:
    cluster = view(ingress(), ingress(name="all", app="far"))
    assert words in first(ask(cluster, source, destination)).exempt


def test_overlay_address_counts_as_its_nodes() -> None:
    cluster = view(ingress(rule(block("192.168.0.0/24"))))
    answer = ask(cluster, "10.244.2.0", "shop/db")
    assert answer.verdict == "allow"
    assert "counts as the node's address 192.168.0.2" in first(answer).source


def test_everything_of_a_family_includes_the_overlay() -> None:
    assert ask(view(ingress(rule(block("0.0.0.0/0")))), "10.244.2.0", "shop/db").verdict == "allow"


def test_finished_pod_owns_nothing() -> None:
    done = pod(Key("shop", "done"), "10.244.1.9", phase="Succeeded", labels={"app": "web"})
    answer = ask(view(ingress(rule(pods(app="web"))), more=(done,)), "shop/done", "shop/db")
    assert answer.verdict == "deny"
    assert "has finished (Succeeded); the address is nobody's now" in first(answer).source


def test_address_of_a_finished_pod_is_the_new_owners() -> None:
    done = pod(Key("shop", "done"), "10.244.1.2", phase="Failed")
    answer = ask(view(ingress(rule(pods(app="web"))), more=(done,)), "shop/done", "shop/db")
    assert answer.verdict == "allow"
    assert "now pod shop/web's" in first(answer).source


def test_local_pod_that_is_not_wired_is_not_enforced() -> None:
    store_pod = pod(Key("shop", "new"), "10.244.1.7", phase="Pending")
    answer = ask(view(ingress(name="new", app="new"), more=(store_pod,)), "shop/web", "shop/new")
    assert not side(answer).enforced_here
    assert "netagent has not wired it" in first(answer).destination


def test_pod_without_an_address_and_unknown_pod_are_refused() -> None:
    cluster = view(more=(pod(Key("shop", "new"), phase="Pending"),))
    with pytest.raises(QuestionError, match=r"has no address yet \(phase Pending\)"):
        ask(cluster, "shop/new", "shop/db")
    with pytest.raises(QuestionError, match="to = 'shop/gone': the pod is not in this agent's view"):
        ask(cluster, "shop/web", "shop/gone")


def test_broken_policy_is_shown_with_its_problem_and_denies() -> None:
    answer = side(ask(view(ingress(rule(block("10.0.0.0/99")))), "shop/web", "shop/db"))
    assert not answer.allowed
    assert "shop/db: spec.ingress[0].from[0].ipBlock" in answer.problems[0]
    assert answer.near_misses[0].missing == ("none of its peers could be understood",)


def test_namespace_without_object_matches_no_namespace_selector() -> None:
    orphan = pod(Key("lost", "x"), "10.244.2.7", node="n2")
    answer = ask(view(ingress(rule(pods(selector()))), more=(orphan,)), "lost/x", "shop/db")
    assert misses(answer) == [("ns lost is not in this agent's view",)]


def test_named_port_of_a_pod_whose_namespace_is_unknown_does_not_resolve() -> None:
    """As in the kernel's sets, which are filled by namespace."""
    orphan = pod(Key("lost", "x"), "10.244.2.7", node="n2", ports=(ContainerPort("sql", 5432, "TCP"),))
    cluster = view(egress(rule(ports=(PolicyPort(port="sql"),))), more=(orphan,))
    assert ask(cluster, "shop/web", "shop/db").verdict == "allow"
    assert ask(cluster, "shop/web", "lost/x").verdict == "deny"


def test_text_is_short_and_complete() -> None:
    text = explain.text(ask(view(ingress(rule(pods(app="admin"), ports=SQL))), "10.244.1.2", "shop/db", "80"))
    assert text.splitlines() == [
        "DENY  10.244.1.2 -> shop/db  80/TCP",
        "",
        "IPv4: denied",
        "  from 10.244.1.2: pod shop/web of this node",
        "  to   10.244.1.4: pod shop/db of this node",
        "  egress at shop/web: allowed, no policy isolates the pod for egress (enforced by this node)",
        "  ingress at shop/db: DENIED, isolated by 1 policy, and its only rule does not admit the flow "
        "(enforced by this node)",
        "    isolated by: shop/db",
        "    not shop/db ingress[0]: label app=admin wanted, pod shop/web has app=web; port 80/TCP not in 5432/TCP",
    ]


def test_mapped_addresses_are_ipv4_and_zones_are_refused() -> None:
    assert parse_question("::ffff:10.0.0.1", "a/b", "80", "tcp").source == "10.0.0.1"
    with pytest.raises(QuestionError, match="without a zone"):
        parse_question("fe80::1%eth0", "a/b", "80", "TCP")
