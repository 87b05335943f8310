"""The matrix says of every pair, port and protocol what explain says of that one flow."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netagent.core.policy.meaning import PROTOCOLS, compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions import explain, reachability
from netagent.core.questions.openings import EVERYTHING, NOTHING, Openings, both, either, openings
from netagent.core.questions.parties import ASKABLE, ICMP, Cluster, QuestionError, cluster_of, parse_question
from netagent.core.questions.reachability import HERE, NODE, REMOTE, Reachability
from netagent.records import Endpoint, NetworkPolicy, Record, Upserted
from support import words
from support.views import views

T = TypeVar("T")
PORTS = (1, 80, 81, 8080, 65535)


def finished(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result


def cluster_with(view: Iterable[Record | Upserted | Endpoint]) -> Cluster:
    store = Store()
    for one in view:
        if isinstance(one, Endpoint):
            store.admit(one)
        else:
            store.apply(one if isinstance(one, Upserted) else words.put(one))
    return cluster_of(store, map(compile_policy, store.policies.values()), "n1", overlay=True)


def matrix_of(cluster: Cluster) -> Reachability:
    return finished(reachability.reachability(cluster))


def asked() -> Iterator[tuple[str, int | None]]:
    for protocol in ASKABLE:
        for port in PORTS if protocol != ICMP else (None,):
            yield protocol, port


def explained(cluster: Cluster, source: str, destination: str) -> dict[tuple[int, str, int | None], bool]:
    """(IP version, protocol, port) -> allowed; empty where there is no flow to judge."""
    found: dict[tuple[int, str, int | None], bool] = {}
    for protocol, port in asked():
        question = parse_question(source, destination, str(port or ""), protocol)
        try:
            answers = explain.explain(cluster, question).answers
        except QuestionError:
            return {}
        found |= {(one.version, protocol, port): one.allowed for one in answers}
    return found


def said(matrix: Reachability, source: int, destination: int) -> dict[tuple[int, str, int | None], bool]:
    number = matrix.cells[source][destination]
    assert number is not None
    return {
        (version, *what): opened.holds(*what)
        for version, opened in matrix.verdicts[number].by_version.items()
        for what in asked()
    }


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(view=views())
def test_every_cell_is_what_explain_says(view: list[Upserted | Endpoint]) -> None:
    cluster = cluster_with(view)
    matrix = matrix_of(cluster)
    for at, source in enumerate(matrix.ends):
        for beside, destination in enumerate(matrix.ends):
            number = matrix.cells[at][beside]
            if number is None:
                assert HERE not in (source.kind, destination.kind)
            elif at == beside:
                assert matrix.verdicts[number].kind == "itself"
                assert all(explained(cluster, source.name, source.name).values())
            else:
                assert said(matrix, at, beside) == explained(cluster, source.name, destination.name), (
                    source,
                    destination,
                )


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(view=views())
def test_nobody_is_left_out_and_a_row_speaks_for_all_that_it_counts(view: list[Upserted | Endpoint]) -> None:
    cluster = cluster_with(view)
    matrix = matrix_of(cluster)
    pods_here = [at for at, end in enumerate(matrix.ends) if end.kind == HERE]
    names_here = {matrix.ends[at].name for at in pods_here}
    assert all(names_here & {ip, str(one.key)} for ip, one in cluster.wired.items())
    remote = [
        key
        for key in cluster.pods
        if (owned := set(cluster.owned_ips(key))) and str(key) not in names_here and not owned & cluster.wired.keys()
    ]
    outsiders = {ip for ip in cluster.node_at if ip not in cluster.wired and cluster.owner(ip) is None}
    counted = Counter[str]()
    for end in matrix.ends:
        counted[end.kind] += end.count
    assert (counted[REMOTE], counted[NODE]) == (len(remote), len(outsiders))
    if not pods_here:
        return
    for kind, names in ((REMOTE, list(map(str, remote))), (NODE, sorted(outsiders))):
        rows = [
            [[said(matrix, at, pod), said(matrix, pod, at)] for pod in pods_here]
            for at, end in enumerate(matrix.ends)
            if end.kind == kind
        ]
        for name in names:
            own = [
                [explained(cluster, *pair) for pair in ((name, matrix.ends[pod].name), (matrix.ends[pod].name, name))]
                for pod in pods_here
            ]
            assert own in rows, name


def endpoint(key: str, *ips: str) -> Endpoint:
    return Endpoint(pod=words.key(key), pod_uid="", container_id=f"c-{key}", ifname="eth0", host_ifname="", ips=ips)


def shop(*policies: NetworkPolicy) -> list[Record | Endpoint]:
    """Web and db are here, far is remote; dual-stack but for far."""
    view: list[Record | Endpoint] = [words.namespace("shop"), *policies]
    for number, name in enumerate(("db", "web", "web2"), start=2):
        ips = (f"10.244.1.{number}", f"fd00::{number}")
        ports = [("sql", 5432, "TCP")] if name == "db" else []
        view += [words.pod(f"shop/{name}", *ips, node="n1", labels={"app": name.rstrip("2")}, ports=ports)]
        view += [endpoint(f"shop/{name}", *ips)]
    return [*view, words.pod("shop/far", "10.244.2.9", node="n2", labels={"app": "web"})]


def text(matrix: Reachability, source: str, destination: str) -> str:
    names = [end.name for end in matrix.ends]
    number = matrix.cells[names.index(source)][names.index(destination)]
    assert number is not None
    return matrix.verdicts[number].text


def test_cells_in_words() -> None:
    policy = words.policy(
        "shop/db",
        words.selector(app="db"),
        ingress=[
            words.rule([words.pods(app="web")], [words.port("sql"), words.port(80, end=90), words.port(53, "UDP")]),
            words.rule([words.block("fd00::/16")]),
        ],
    )
    matrix = matrix_of(cluster_with(shop(policy)))
    assert text(matrix, "shop/web", "shop/db") == "IPv4: TCP 80-90,5432; UDP 53; IPv6: all"
    assert text(matrix, "shop/far", "shop/db") == "TCP 80-90,5432; UDP 53"
    assert text(matrix, "192.0.2.1", "shop/db") == "none"
    assert text(matrix, "2001:db8::1", "shop/db") == "none"
    assert text(matrix, "shop/db", "shop/web") == "all"
    assert text(matrix, "shop/db", "shop/db") == "itself"
    alike = {end.name: end.alike for end in matrix.ends}
    assert alike["shop/web"] == alike["shop/web2"] != alike["shop/db"]


def test_example_of_a_cell_with_some_ports_is_open() -> None:
    policy = words.policy("shop/db", words.selector(app="db"), ingress=[words.rule(None, [words.port(443, "UDP")])])
    matrix = matrix_of(cluster_with(shop(policy)))
    some = [one for one in matrix.verdicts if one.kind == "some"]
    assert some
    assert {one.example for one in some} == {("UDP", 443)}


def test_thousands_of_remote_pods_are_a_few_rows() -> None:
    crowd = [
        words.pod(f"ns{number % 50}/p{number}", f"10.244.{3 + number // 250}.{number % 250}", node="n3", labels=labels)
        for number in range(3000)
        for labels in [{"hash": str(number), "team": "a" if number % 3 else "b"}]
    ]
    spaces = [words.namespace(f"ns{number}") for number in range(50)]
    policy = words.policy(
        "shop/db",
        words.selector(app="db"),
        ingress=[words.rule([words.namespaces(words.selector(), words.selector(team="a"))])],
    )
    matrix = matrix_of(cluster_with([*shop(policy), *spaces, *crowd]))
    remote = [(end.count, text(matrix, end.name, "shop/db")) for end in matrix.ends if end.kind == REMOTE]
    assert sorted(remote) == [(1001, "none"), (2000, "all")]


def test_where_policies_tell_too_many_apart_the_rarest_are_left_out_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = {number: words.selector(team=str(number % 7)) for number in range(20)}
    crowd = [
        words.pod(f"shop/p{number}", f"10.244.3.{number}", node="n3", labels=one.match_labels)
        for number, one in team.items()
    ]
    rules = [words.rule([words.pods(team=str(number))], [words.port(number + 1)]) for number in range(7)]
    view = [*shop(words.policy("shop/db", words.selector(app="db"), ingress=rules)), *crowd]
    whole = matrix_of(cluster_with(view))
    assert whole.notes == ()
    monkeypatch.setattr(reachability, "MAX_PAIRS", 40)
    short = matrix_of(cluster_with(view))
    assert len(short.ends) < len(whole.ends)
    assert "are left out" in short.notes[0]
    monkeypatch.undo()
    monkeypatch.setattr(reachability, "MAX_ELSEWHERE", 3)
    few = matrix_of(cluster_with(view))
    assert len(few.ends) == 3 + 3
    assert "have no row" in few.notes[0]


def test_a_node_of_110_pods_that_all_differ_is_judged_in_small_steps() -> None:
    """No step is long, whatever the size: the count of steps grows with the work."""
    view: list[Record | Endpoint] = [words.namespace("x")]
    for number in range(110):
        ip = f"10.244.1.{number}"
        view += [
            words.pod(f"x/p{number:03}", ip, node="n1", labels={"app": str(number)}),
            endpoint(f"x/p{number:03}", ip),
        ]
        peers = [words.pods(app=str((number + step) % 110)) for step in range(3)]
        view.append(words.policy(f"x/p{number:03}", words.selector(app=str(number)), ingress=[words.rule(peers)]))
    steps = 0
    work = reachability.reachability(cluster_with(view))
    try:
        while True:
            next(work)
            steps += 1
    except StopIteration as done:
        matrix = done.value
    assert steps > 110 * 110
    kinds = Counter(matrix.verdicts[number or 0].kind for row in matrix.cells[:110] for number in row[:110])
    assert kinds == {"all": 220, "none": 110 * 107, "itself": 110}


sets = st.builds(
    lambda parts, icmp: openings(parts, icmp=icmp),
    st.lists(
        st.tuples(st.sampled_from(PROTOCOLS), st.integers(0, 60).flatmap(lambda n: st.just((n, n + 7)))), max_size=5
    ),
    st.booleans(),
)


@given(sets, sets)
def test_sets_of_ports(one: Openings, other: Openings) -> None:
    for what in [(protocol, port) for protocol in PROTOCOLS for port in range(1, 80)] + [(ICMP, None)]:
        assert both(one, other).holds(*what) == (one.holds(*what) and other.holds(*what))
        assert either((one, other)).holds(*what) == (one.holds(*what) or other.holds(*what))
    assert both(one, EVERYTHING) == one == either((one, NOTHING))
    assert str(either((one, EVERYTHING))) == "all"


def test_long_lists_of_ports_are_cut_short() -> None:
    many = openings(("TCP", (port, port)) for port in range(10, 40, 3))
    assert str(many) == "TCP 10,13,16,19,22,25 and 4 more"
