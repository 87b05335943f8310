"""JSON of the API server as records: what is kept, what null and absent mean, what broken input costs."""

import json
from typing import Any

import pytest

from netagent.core.policy.store import same_pod
from netagent.kube import decode, leases
from netagent.kube.wire import DecodeError
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
)

META = {"name": "x", "namespace": "ns", "uid": "u", "resourceVersion": "12"}


def read(kind: Kind, **fields: Any) -> Any:
    return decode.record(kind, json.dumps({"metadata": META, **fields}).encode())


def policy(spec: Any) -> NetworkPolicy:
    found = read(Kind.NETWORK_POLICY, spec=spec)
    assert isinstance(found, NetworkPolicy)
    return found


def rules(rule: Any) -> tuple[PolicyRule, ...]:
    found = policy({"podSelector": {}, "ingress": [rule]})
    assert found.problem == ""
    return found.ingress


def test_pod() -> None:
    found = read(
        Kind.POD,
        spec={
            "nodeName": "n1",
            "hostNetwork": True,
            "containers": [
                {"name": "a", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}]},
                {"name": "b", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 99}]},
                {"name": "c", "ports": None},
            ],
            "initContainers": [
                {"name": "once", "ports": [{"containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
            ],
        },
        status={"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}, {"ip": "FD00:0:0:0::09"}]},
    )
    assert found == Pod(
        key=Key("ns", "x"),
        uid="u",
        node="n1",
        ips=("10.0.0.9", "fd00::9"),
        phase="Running",
        host_network=True,
        ports=(
            ContainerPort("mesh", 15001, "TCP"),
            ContainerPort("http", 80, "TCP"),
            ContainerPort("", 53, "UDP"),
            ContainerPort("", 99, "TCP"),
        ),
    )


@pytest.mark.parametrize(
    ("annotations", "known_as"),
    [
        ({"kubernetes.io/config.mirror": "abc", "kubernetes.io/config.hash": "abc"}, "abc"),
        ({"kubernetes.io/config.hash": "abc", "kubernetes.io/config.source": "api"}, ""),
        ({"kubernetes.io/config.mirror": "abc"}, ""),
        (None, ""),
    ],
)
def test_a_mirror_pod_says_by_which_uid_the_runtime_knows_it(annotations: Any, known_as: str) -> None:
    raw = json.dumps({"metadata": {**META, "annotations": annotations}}).encode()
    found = decode.record(Kind.POD, raw)
    assert isinstance(found, Pod)
    assert found.mirror_of == known_as
    sandbox = Endpoint(pod=found.key, pod_uid="abc", container_id="c", ifname="eth0", host_ifname="nap1", ips=())
    assert same_pod(sandbox, found) is bool(known_as)


def test_pod_times_and_labels() -> None:
    meta = {
        **META,
        "labels": {"app": "web"},
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "deletionTimestamp": "2026-01-02T03:05:05Z",
    }
    found = decode.record(Kind.POD, json.dumps({"metadata": meta}).encode())
    assert isinstance(found, Pod)
    assert (found.labels, found.created, found.terminating) == ({"app": "web"}, "2026-01-02T03:04:05Z", True)
    assert (found.phase, found.ips, found.node) == ("Pending", (), "")


@pytest.mark.parametrize("ips", [None, []])
def test_pod_ip_stands_in_for_absent_pod_ips(ips: Any) -> None:
    assert read(Kind.POD, status={"podIPs": ips, "podIP": "10.0.0.7"}).ips == ("10.0.0.7",)


def test_label_text_is_shared_between_pods() -> None:
    def value(name: str) -> str:
        meta = {"name": name, "labels": {"app": "a-long-label-value-of-many-pods-in-this-cluster"}}
        return next(iter(decode.record(Kind.POD, json.dumps({"metadata": meta}).encode()).labels.values()))  # type: ignore[union-attr]

    assert value("a") is value("b")


def test_nulls_are_absent_fields() -> None:
    found = read(Kind.POD, spec=None, status=None)
    assert found == Pod(key=Key("ns", "x"), uid="u")
    assert read(Kind.NODE, spec={"podCIDRs": None}, status={"addresses": None}) == Node(key=Key("ns", "x"), uid="u")
    meta = {**META, "labels": None, "annotations": None, "deletionTimestamp": None, "creationTimestamp": None}
    assert decode.record(Kind.NAMESPACE, json.dumps({"metadata": meta}).encode()) == Namespace(
        key=Key("ns", "x"), uid="u"
    )


def test_node_keeps_internal_addresses_and_the_annotations_of_pod_networks() -> None:
    meta = {
        **META,
        "annotations": {"flannel.alpha.coreos.com/public-ip": "1.2.3.4", "netagent.io/x": "y", "big": "z" * 999},
    }
    addresses = [
        {"type": "Hostname", "address": "n1"},
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "n1.example.org"},
        {"type": "InternalIP", "address": "2001:DB8::0001"},
    ]
    node = {"metadata": meta, "spec": {"podCIDR": "10.1.0.0/24"}, "status": {"addresses": addresses}}
    found = decode.record(Kind.NODE, json.dumps(node).encode())
    assert isinstance(found, Node)
    assert found.annotations == {"flannel.alpha.coreos.com/public-ip": "1.2.3.4", "netagent.io/x": "y"}
    assert found.addresses == ("192.0.2.1", "2001:db8::1")
    assert found.pod_cidrs == ("10.1.0.0/24",)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ({}, None),
        ({"from": None}, None),
        ({"from": []}, ()),
        ({"from": [{"podSelector": {}}]}, (PolicyPeer(pod_selector=LabelSelector()),)),
        (
            {"from": [{"podSelector": None, "namespaceSelector": {}}]},
            (PolicyPeer(namespace_selector=LabelSelector()),),
        ),
        (
            {"from": [{"podSelector": {"matchLabels": None}, "namespaceSelector": {"matchLabels": {"a": "b"}}}]},
            (PolicyPeer(pod_selector=LabelSelector(), namespace_selector=LabelSelector(match_labels={"a": "b"})),),
        ),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.1/8", "except": ["10.1.0.0/16"]}}]},
            (PolicyPeer(ip_block=IPBlock(cidr="10.0.0.1/8", excepts=("10.1.0.0/16",))),),
        ),
        ({"from": [{"ipBlock": {"cidr": "::/0", "except": None}}]}, (PolicyPeer(ip_block=IPBlock(cidr="::/0")),)),
        (
            {"from": [{"podSelector": {}, "serviceSelector": {"x": 1}}, {"podSelector": {}}]},
            (
                PolicyPeer(pod_selector=LabelSelector(), unknown_fields=("serviceSelector",)),
                PolicyPeer(pod_selector=LabelSelector()),
            ),
        ),
    ],
)
def test_peers_keep_absent_null_and_empty_apart(rule: Any, peers: Any) -> None:
    assert rules(rule) == (PolicyRule(peers=peers),)


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, None),
        ([], ()),
        ([{}], (PolicyPort(),)),
        ([{"protocol": None, "port": None}], (PolicyPort(),)),
        ([{"port": "http", "protocol": "UDP"}], (PolicyPort(protocol="UDP", port="http"),)),
        ([{"port": 80, "endPort": 90}], (PolicyPort(port=80, end_port=90),)),
    ],
)
def test_ports(ports: Any, expected: Any) -> None:
    assert rules({"ports": ports}) == (PolicyRule(ports=expected),)


def test_policy_head() -> None:
    expressions = [{"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "Exists"}]
    found = policy(
        {
            "podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": expressions},
            "policyTypes": ["Egress"],
            "ingress": None,
            "egress": [{"to": [{"podSelector": {}}]}],
        }
    )
    assert found.pod_selector == LabelSelector(
        match_labels={"app": "db"},
        match_expressions=(Requirement("tier", "In", ("a", "b")), Requirement("x", "Exists")),
    )
    assert found.policy_types == ("Egress",)
    assert found.ingress == ()
    assert found.egress == (PolicyRule(peers=(PolicyPeer(pod_selector=LabelSelector()),)),)


@pytest.mark.parametrize("spec", [None, {}, {"podSelector": None}, {"podSelector": {}, "ingress": []}])
def test_a_policy_without_rules_selects_the_namespace(spec: Any) -> None:
    assert policy(spec) == NetworkPolicy(key=Key("ns", "x"), uid="u")
    assert read(Kind.NETWORK_POLICY) == NetworkPolicy(key=Key("ns", "x"), uid="u")


@pytest.mark.parametrize(
    "broken",
    [
        {"ingress": {"from": []}},
        {"ingress": [None]},
        {"ingress": [{"ports": [{"port": 80.5}]}]},
        {"ingress": [{"ports": [{"port": 80, "fromTheFuture": 1}]}]},
        {"ingress": [{"sources": []}]},
        {"egress": [{"to": [{"ipBlock": "10.0.0.0/8"}]}]},
        {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "only": "10.1.0.0/16"}}]}]},
        {"egress": [{"to": [{"podSelector": {"matchFields": {}}}]}]},
        {"policyTypes": "Ingress"},
    ],
)
def test_a_policy_that_reads_in_part_keeps_its_selector_and_allows_nothing(broken: Any) -> None:
    good: list[Any] = [{"from": [{"podSelector": {}}]}]
    found = policy({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": good, "egress": good, **broken})
    assert found.problem.startswith("spec: ")
    assert found.pod_selector == LabelSelector(match_labels={"app": "db"})
    assert found.policy_types == ("Ingress", "Egress")
    assert (found.ingress, found.egress) == ((), ())


def test_a_policy_that_reads_in_part_isolates_where_it_says_so() -> None:
    found = policy({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 80, "newField": 1}]}]})
    assert found.problem.startswith("spec: ")
    assert found.policy_types == ("Egress",)


@pytest.mark.parametrize("spec", [{"podSelector": {"matchLabels": {"a": 1}}}, {"podSelector": []}, [], "all", 7])
def test_a_policy_without_readable_selector_closes_its_namespace(spec: Any) -> None:
    found = policy(spec)
    assert found.problem
    assert found.pod_selector == LabelSelector()
    assert found.policy_types == ("Ingress", "Egress")


@pytest.mark.parametrize(
    ("kind", "fields", "hint"),
    [
        (Kind.POD, {"status": {"podIPs": [{"ip": "10.0.0.256"}]}}, "10.0.0.256"),
        (Kind.POD, {"spec": {"containers": [{"ports": [{"containerPort": "eighty"}]}]}}, "containerPort"),
        (Kind.POD, {"spec": []}, "spec"),
        (Kind.NODE, {"spec": {"podCIDRs": ["10.0.0.0/33"]}}, "10.0.0.0/33"),
        (Kind.LEASE, {}, "netagent.io/subnet"),
    ],
)
def test_what_cannot_be_read_is_named(kind: Kind, fields: Any, hint: str) -> None:
    with pytest.raises(DecodeError, match=hint.replace(".", r"\.")):
        read(kind, **fields)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"metadata": {}}', b"\xff", b'{"metadata": {"name": ""}}']
)
def test_an_object_without_a_name_has_no_head(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode.head(raw)


def test_lease_names_are_unique_and_valid() -> None:
    assert leases.name("10.244.3.0/24") == "netagent-10.244.3.0-24"
    assert leases.name("fd00:1::/64") == "netagent-fd00-0001-0000-0000-0000-0000-0000-0000-64"
    assert leases.name("10.24.43.0/24") != leases.name("10.244.3.0/24")


def test_a_lease_is_read_as_it_was_written() -> None:
    notes = leases.notes("vxlan", "0A:58:00:00:00:01", "192.0.2.7")
    body = leases.body("fd00::/64", "kube-system", leases.Tenant("n1", "uid-1", 60), 1_700_000_000.25, notes)
    body["metadata"].update(uid="u", resourceVersion="5")
    assert decode.record(Kind.LEASE, json.dumps(body).encode()) == SubnetLease(
        key=Key("kube-system", leases.name("fd00::/64")),
        uid="u",
        resource_version="5",
        subnet="fd00::/64",
        holder="n1",
        duration_s=60,
        renewed_s=1_700_000_000.25,
        backend="vxlan",
        vtep_mac="0a:58:00:00:00:01",
        public_ip="192.0.2.7",
    )
    assert body["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-1"}]
    assert body["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "netagent"}


def test_a_lease_whose_name_is_not_its_subnets_is_refused() -> None:
    body = leases.body("10.0.1.0/24", "kube-system", leases.Tenant("n1", "u", 60), 0.0, {})
    body["metadata"]["annotations"]["netagent.io/subnet"] = "10.0.2.0/24"
    with pytest.raises(DecodeError, match=r"10\.0\.2\.0"):
        decode.record(Kind.LEASE, json.dumps(body).encode())
