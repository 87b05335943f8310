"""What-if, without a kernel: which verdicts change, which open flows would be cut, and where the report stops."""

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from netagent.core.policy.meaning import Policy, PortRange, compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions import simulate
from netagent.core.questions.judgement import Flow
from netagent.core.questions.parties import Cluster, cluster_of, parties
from netagent.core.questions.simulate import OpenFlow, Proposal, Simulation
from netagent.records import Endpoint, Key, NetworkPolicy, Pod, Record
from support import words
from support.histories import LABELS, NAMES, State, policy_records, states, steps, take
from support.words import block, pods, policy, port, rule, selector

SQL = [("sql", 5432, "TCP")]
DB_FROM_WEB = policy("shop/db", selector(app="db"), ingress=[rule([pods(app="web")], [port("sql")])])
DENY_ALL = policy("shop/deny", types=["Ingress", "Egress"])


def cluster(*policies: NetworkPolicy, more: tuple[Pod, ...] = ()) -> Cluster:
    """web, admin and db in shop, all on this node; other in another namespace."""
    store = Store()
    everyone = [
        words.pod("shop/web", "10.244.0.1", "fd00::1", labels={"app": "web"}),
        words.pod("shop/admin", "10.244.0.2", labels={"app": "admin"}),
        words.pod("shop/db", "10.244.0.3", "fd00::3", labels={"app": "db"}, ports=SQL),
        words.pod("other/x", "10.244.0.4"),
        *more,
    ]
    records: list[Record] = [words.namespace("shop"), words.namespace("other"), *everyone, *policies]
    for record in records:
        store.apply(words.put(record))
    for pod in everyone:
        sandbox = Endpoint(
            pod=pod.key, pod_uid=pod.uid, container_id=pod.uid, ifname="eth0", host_ifname="", ips=pod.ips
        )
        store.admit(sandbox)
    return of_store(store)


def of_store(store: Store) -> Cluster:
    return cluster_of(store, map(compile_policy, store.policies.values()), "node-0", overlay=True)


def applied(*policies: NetworkPolicy) -> Proposal:
    return Proposal(applied=tuple(map(compile_policy, policies)))


def rows(report: Simulation) -> dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    return {(one.source, one.destination): (one.opened, one.closed) for one in report.pairs if one.versions[0] == 4}


def flow(client: str, server: str, server_port: int | None, *, protocol: str = "TCP", state: str = "") -> OpenFlow:
    return OpenFlow(
        protocol=protocol,
        client=client,
        client_port=40000 if server_port else None,
        service=server,
        service_port=server_port,
        server=server,
        server_port=server_port,
        mark=0,
        state=state,
    )


def test_new_policy_closes_all_but_what_it_admits() -> None:
    found = rows(simulate.simulate(cluster(), applied(DB_FROM_WEB), ()))
    rest = ("any other TCP port", "any other UDP port", "ICMP")
    assert found["shop/web", "shop/db"] == ((), rest)
    assert found["shop/admin", "shop/db"] == ((), ("5432/TCP", *rest))
    assert found["other/x", "shop/db"] == ((), ("5432/TCP", *rest))
    assert found["192.0.2.1", "shop/db"] == ((), ("5432/TCP", *rest))
    assert {destination for _, destination in found} == {"shop/db"}


def test_ip_versions_that_change_alike_are_one_row() -> None:
    report = simulate.simulate(cluster(), applied(DB_FROM_WEB), ())
    (row,) = [one for one in report.pairs if one.source == "shop/web"]
    assert row.versions == (4, 6)


def test_deletion_opens_what_it_closed() -> None:
    report = simulate.simulate(cluster(DB_FROM_WEB), Proposal(deleted=(Key("shop", "db"),)), ())
    assert [(one.action, one.policy, one.selects) for one in report.policies] == [("delete", "shop/db", 1)]
    assert rows(report)["shop/admin", "shop/db"][0][0] == "5432/TCP"
    assert all(not one.closed for one in report.pairs)


def test_replacement_reports_only_the_difference() -> None:
    wider = policy("shop/db", selector(app="db"), ingress=[rule([pods(app="web"), pods(app="admin")], [port("sql")])])
    report = simulate.simulate(cluster(DB_FROM_WEB), applied(wider), ())
    assert rows(report) == {("shop/admin", "shop/db"): (("5432/TCP",), ())}
    assert report.policies[0].action == "replace"


def test_same_policy_again_changes_nothing() -> None:
    report = simulate.simulate(cluster(DB_FROM_WEB), applied(DB_FROM_WEB), [flow("10.244.0.2", "10.244.0.3", 5432)])
    assert (report.policies[0].action, report.pairs, report.cut, report.judged) == ("unchanged", (), (), 0)


def test_deleting_what_does_not_exist_is_said() -> None:
    report = simulate.simulate(cluster(), Proposal(deleted=(Key("shop", "nothing"),)), ())
    assert report.policies[0].action == "delete, but there is none"


def test_what_the_other_end_denies_anyway_is_no_change() -> None:
    """admin may not send at all, so opening db for it changes nothing."""
    mute = policy("shop/mute", selector(app="admin"), types=["Egress"])
    open_db = policy("shop/db", selector(app="db"), ingress=[rule()])
    assert ("shop/admin", "shop/db") not in rows(simulate.simulate(cluster(DB_FROM_WEB, mute), applied(open_db), ()))


def test_both_directions_of_one_proposal_together() -> None:
    report = simulate.simulate(cluster(), applied(DENY_ALL), ())
    assert ("shop/web", "shop/db") in rows(report)
    assert ("shop/web", "other/x") in rows(report)
    assert ("other/x", "shop/web") in rows(report)
    assert not any(one.source == one.destination for one in report.pairs)


def test_ip_blocks_are_sampled_and_so_are_their_excepts() -> None:
    world = policy("shop/db", selector(app="db"), ingress=[rule([block("0.0.0.0/0", "10.9.0.0/16")], [port(80)])])
    found = rows(simulate.simulate(cluster(DB_FROM_WEB), applied(world), ()))
    assert found["192.0.2.1", "shop/db"] == (("80/TCP",), ())
    assert ("10.9.0.0", "shop/db") not in found
    assert found["shop/web", "shop/db"] == (("80/TCP",), ("5432/TCP",))


def test_open_flows_that_need_the_allow_are_cut_and_say_why() -> None:
    flows = [
        flow("10.244.0.1", "10.244.0.3", 5432, state="ESTABLISHED"),
        flow("10.244.0.2", "10.244.0.3", 5432, state="ESTABLISHED"),
        flow("10.244.0.2", "10.244.0.3", 5432, state="TIME_WAIT"),
        flow("10.244.0.2", "10.244.0.4", 5432, state="ESTABLISHED"),
        flow("fd00::1", "fd00::3", 53, protocol="UDP"),
        flow("10.244.0.4", "10.244.0.3", None, protocol="ICMP"),
        flow("10.244.0.4", "10.244.0.3", None, protocol="47"),
        flow("192.0.2.9", "192.0.2.8", 80),
    ]
    report = simulate.simulate(cluster(), applied(DB_FROM_WEB), flows)
    assert [(one.source, one.protocol, one.destination_port) for one in report.cut] == [
        ("shop/admin", "TCP", 5432),
        ("shop/web", "UDP", 53),
        ("other/x", "ICMP", None),
    ]
    assert "label app=web wanted, pod shop/admin has app=admin" in report.cut[0].why
    assert (report.cut_total, report.flows_open) == (3, 6)


def test_flow_that_is_denied_already_is_not_cut() -> None:
    stale = flow("10.244.0.2", "10.244.0.3", 5432)
    assert simulate.simulate(cluster(DB_FROM_WEB), applied(DENY_ALL), [stale]).cut == ()


def test_report_is_capped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "MAX_JUDGED", 30)
    monkeypatch.setattr(simulate, "MAX_ROWS", 1)
    report = simulate.simulate(cluster(), applied(DENY_ALL), [])
    assert report.judged == 30
    assert len(report.pairs) == 1
    assert any(note.startswith("stopped at 30 flows") for note in report.capped)
    assert any("the first 1 are listed" in note for note in report.capped)


def test_text_says_that_nothing_was_applied() -> None:
    wider = policy("shop/db", selector(app="db"), ingress=[rule([pods(app="admin")], [port("sql")])])
    cut = flow("fd00::1", "fd00::3", 5432, state="ESTABLISHED")
    report = simulate.simulate(cluster(DB_FROM_WEB), applied(wider), [cut])
    assert simulate.text(report).splitlines() == [
        "Nothing was applied.",
        "replace shop/db (selects 1 pod)",
        "",
        "2 pairs change verdict:",
        "  opens   shop/admin -> shop/db  5432/TCP",
        "  CLOSES  shop/web -> shop/db  5432/TCP  (IPv4, IPv6)",
        "",
        "1 of 1 open flows of this node would be cut.",
        "  CUT  TCP shop/web ([fd00::1]:40000) -> shop/db ([fd00::3]:5432)  ESTABLISHED",
        "       ingress at shop/db: isolated by 1 policy, and its only rule does not admit the flow; closest: shop/db "
        "ingress[0]: label app=admin wanted, pod shop/web has app=web",
    ]


PROPOSED = (
    st.sampled_from(NAMES)
    .flatmap(policy_records)
    .flatmap(lambda one: st.sampled_from((one, structs.replace(one, pod_selector=selector()))))
)


def asked_ports(touched: list[Policy], pod: Pod) -> set[tuple[str, int]]:
    found = {(one.protocol, one.number) for one in pod.ports}
    for policy_ in touched:
        for rules in policy_.rules.values():
            for one in rules:
                for item in one.ports or ():
                    if isinstance(item, PortRange) and item.first:
                        found |= {(item.protocol, item.first), (item.protocol, item.last)}
    return found


def differences(
    before: Cluster, after: Cluster, touched: list[Policy]
) -> Mapping[tuple[str, str], set[tuple[str, bool]]]:
    """Every pair of pods on every port, one by one."""
    found: dict[tuple[str, str], set[tuple[str, bool]]] = {}
    ends = [party for key in before.pods if before.owned_ips(key) for party in parties(before, key, part="").values()]
    for source in ends:
        for destination in ends:
            if (":" in source.ip) != (":" in destination.ip) or destination.subject is None:
                continue
            if source.name == destination.name:
                continue  # two lives of one pod share a name, so a row could be about either
            for protocol, number in asked_ports(touched, destination.subject):
                one = Flow(source=source, destination=destination, protocol=protocol, port=number)
                was, now = simulate.allowed(before, one), simulate.allowed(after, one)
                if was != now:
                    found.setdefault((source.name, destination.name), set()).add((f"{number}/{protocol}", now))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    state=states(), labels=st.lists(LABELS, min_size=2, max_size=5), changed=st.lists(PROPOSED, min_size=1, max_size=2)
)
def test_no_pair_is_missed_and_none_is_made_up(
    state: State, labels: list[dict[str, str]], changed: list[NetworkPolicy]
) -> None:
    store = Store()
    for step in steps(State(), state):
        take(store, step)
    for number, (key, one) in enumerate(zip(NAMES, labels, strict=False)):
        ports = [("http", 80 + number % 2, "TCP")]
        take(store, words.put(words.pod(str(key), f"10.244.0.{number + 1}", labels=one, ports=ports, uid=f"new-{key}")))
    before = of_store(store)
    proposal = Proposal(
        applied=tuple({one.key: compile_policy(one) for one in changed}.values()),
        deleted=tuple(key for key in list(store.policies)[:1] if key not in {one.key for one in changed}),
    )
    old = {one.key: one for several in before.policies.values() for one in several}
    new = proposal.on(old)
    touched = [one for key in old | new if old.get(key) != new.get(key) for one in (old.get(key), new.get(key)) if one]
    after = cluster_of(store, new.values(), "node-0", overlay=True)
    expected = differences(before, after, touched)
    report = simulate.simulate(before, proposal, ())
    got: dict[tuple[str, str], set[tuple[str, bool]]] = {}
    for row in report.pairs:
        changes = {(one, True) for one in row.opened} | {(one, False) for one in row.closed}
        numbered = {(one, now) for one, now in changes if one[0].isdigit()}
        if row.source != row.destination and numbered and not {row.source[0], row.destination[0]} & set("0123456789f"):
            got.setdefault((row.source, row.destination), set()).update(numbered)
    assert got == expected
