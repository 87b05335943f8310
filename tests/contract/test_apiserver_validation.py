"""Which objects are refused, with which fields named, on the embedded server and on a real one."""

from typing import Any

import pytest

SELECTOR: dict[str, Any] = {"podSelector": {}}


def ingress(**rule: Any) -> dict[str, Any]:
    return {**SELECTOR, "ingress": [rule]}


def egress(**rule: Any) -> dict[str, Any]:
    return {**SELECTOR, "egress": [rule]}


def expression(**requirement: Any) -> dict[str, Any]:
    return {"podSelector": {"matchExpressions": [requirement]}}


def block(cidr: str, *excepts: str) -> dict[str, Any]:
    return ingress(**{"from": [{"ipBlock": {"cidr": cidr, "except": list(excepts)}}]})


POLICIES = [
    ({"podSelector": {"matchLabels": {"a": "not valid"}}}, {"spec.podSelector.matchLabels"}),
    ({"podSelector": {"matchLabels": {"/a": "b"}}}, {"spec.podSelector.matchLabels"}),
    (expression(key="a", operator="Like"), {"spec.podSelector.matchExpressions[0].operator"}),
    (expression(key="a", operator="In", values=[]), {"spec.podSelector.matchExpressions[0].values"}),
    (expression(key="a", operator="Exists", values=["b"]), {"spec.podSelector.matchExpressions[0].values"}),
    (ingress(ports=[{"port": 0}]), {"spec.ingress[0].ports[0].port"}),
    (ingress(ports=[{"port": 80}, {"port": 65536}]), {"spec.ingress[0].ports[1].port"}),
    (egress(ports=[{"port": "-http"}]), {"spec.egress[0].ports[0].port"}),
    (egress(ports=[{"port": "a-name-of-17-char"}]), {"spec.egress[0].ports[0].port"}),
    (egress(ports=[{"port": "80"}]), {"spec.egress[0].ports[0].port"}),
    (ingress(ports=[{"protocol": "ICMP"}]), {"spec.ingress[0].ports[0].protocol"}),
    (block("10.0.0.1"), {"spec.ingress[0].from[0].ipBlock.cidr"}),
    (block(""), {"spec.ingress[0].from[0].ipBlock.cidr"}),
    (block("10.0.0.0/8", "11.0.0.0/16"), {"spec.ingress[0].from[0].ipBlock.except[0]"}),
    (block("10.0.0.0/8", "10.0.0.0/8"), {"spec.ingress[0].from[0].ipBlock.except[0]"}),
    (block("10.0.0.0/8", "10.1.0.0/16", "x"), {"spec.ingress[0].from[0].ipBlock.except[1]"}),
    (ingress(**{"from": [{}]}), {"spec.ingress[0].from[0]"}),
    (egress(to=[{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]), {"spec.egress[0].to[0]"}),
    ({**SELECTOR, "policyTypes": ["Sideways"]}, {"spec.policyTypes[0]"}),
    ({**SELECTOR, "policyTypes": ["Ingress", "Egress", "Ingress"]}, {"spec.policyTypes"}),
]


@pytest.mark.parametrize(("spec", "fields"), POLICIES)
async def test_impossible_policies(client: Any, namespace: str, spec: dict[str, Any], fields: set[str]) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    answer = await client.post(policies, {"metadata": {"name": "p"}, "spec": spec})
    assert (answer.status, answer.tree["reason"]) == (422, "Invalid"), answer.tree
    assert {cause["field"] for cause in answer.tree["details"]["causes"]} == fields
    assert '"p" is invalid: ' in answer.tree["message"]


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        (block("10.0.0.7/8", "10.1.2.3/16"), 201),
        (block("2001:db8::/32", "2001:db8:1::/48"), 201),
        (ingress(ports=[{"port": "http"}, {"port": 1}, {"protocol": "SCTP", "port": 65535}, {}]), 201),
        (ingress(**{"from": [{"podSelector": {}, "namespaceSelector": {}}]}), 201),
        ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": [""]}]}}, 201),
        ({"podSelector": []}, 400),
        (ingress(ports=[{"port": {}}]), 400),
        (ingress(ports={}), 400),
    ],
)
async def test_possible_policies_and_wrong_types(
    client: Any, namespace: str, spec: dict[str, Any], status: int
) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    answer = await client.post(policies, {"metadata": {"name": "p"}, "spec": spec})
    assert answer.status == status, answer.tree


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ({"port": 80, "endPort": 79}, "endPort"),
        ({"port": 80, "endPort": 65536}, "endPort"),
        ({"port": "http", "endPort": 80}, "endPort"),
        ({"endPort": 80}, "port"),
    ],
)
async def test_port_ranges(embedded: Any, embedded_namespace: str, port: dict[str, Any], field: str) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{embedded_namespace}/networkpolicies"
    answer = await embedded.post(policies, {"metadata": {"name": "p"}, "spec": ingress(ports=[port])})
    assert answer.status == 422
    assert answer.tree["details"]["causes"][0]["field"] == f"spec.ingress[0].ports[0].{field}"
    good = await embedded.post(
        policies, {"metadata": {"name": "p"}, "spec": ingress(ports=[{"port": 1, "endPort": 9}])}
    )
    assert good.status == 201


def container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": "c", "image": "i", **fields}]}


PODS = [
    ({"containers": []}, {"spec.containers"}),
    (container(name="Bad_Name"), {"spec.containers[0].name"}),
    (container(image=""), {"spec.containers[0].image"}),
    (container(ports=[{"containerPort": 70000}]), {"spec.containers[0].ports[0].containerPort"}),
    (container(ports=[{"name": "http"}]), {"spec.containers[0].ports[0].containerPort"}),
    (container(ports=[{"containerPort": 1, "protocol": "X"}]), {"spec.containers[0].ports[0].protocol"}),
    (
        container(ports=[{"name": "a", "containerPort": 1}, {"name": "a", "containerPort": 2}]),
        {"spec.containers[0].ports[1].name"},
    ),
    ({"containers": [{"name": "c", "image": "i"}] * 2}, {"spec.containers[1].name"}),
    ({**container(), "restartPolicy": "Perhaps"}, {"spec.restartPolicy"}),
]


@pytest.mark.parametrize(("spec", "fields"), PODS)
async def test_impossible_pods(client: Any, namespace: str, spec: dict[str, Any], fields: set[str]) -> None:
    answer = await client.post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": "p"}, "spec": spec})
    assert (answer.status, answer.tree["reason"]) == (422, "Invalid"), answer.tree
    assert {cause["field"] for cause in answer.tree["details"]["causes"]} == fields


async def test_a_pod_stays_what_it_was_created_as(client: Any, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await client.post(pods, {"metadata": {"name": "p"}, "spec": container()})
    patch = {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}}
    answer = await client.patch(f"{pods}/p", patch)
    assert (answer.status, answer.tree["details"]["causes"][0]["field"]) == (422, "spec")


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"name": "Upper"}, "metadata.name"),
        ({"name": "a_b"}, "metadata.name"),
        ({"name": "-a"}, "metadata.name"),
        ({"name": "x" * 254}, "metadata.name"),
        ({}, "metadata.name"),
        ({"name": "a", "labels": {"k": "x" * 64}}, "metadata.labels"),
        ({"name": "a", "labels": {"bad key": "x"}}, "metadata.labels"),
        ({"name": "a", "annotations": {"bad key": "x"}}, "metadata.annotations"),
    ],
)
async def test_impossible_metadata(client: Any, namespace: str, metadata: dict[str, Any], field: str) -> None:
    answer = await client.post(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": metadata})
    assert (answer.status, answer.tree["reason"]) == (422, "Invalid"), answer.tree
    assert field in {cause["field"] for cause in answer.tree["details"]["causes"]}


async def test_namespaces_are_named_by_labels(client: Any) -> None:
    assert (await client.post("/api/v1/namespaces", {"metadata": {"name": "a.b"}})).status == 422
    assert (await client.post("/api/v1/namespaces", {"metadata": {"name": "x" * 64}})).status == 422


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"leaseDurationSeconds": 0}, "spec.leaseDurationSeconds"),
        ({"leaseDurationSeconds": -5}, "spec.leaseDurationSeconds"),
        ({"leaseTransitions": -1}, "spec.leaseTransitions"),
    ],
)
async def test_impossible_leases(client: Any, namespace: str, spec: dict[str, Any], field: str) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    answer = await client.post(leases, {"metadata": {"name": "l"}, "spec": spec})
    assert (answer.status, answer.tree["details"]["causes"][0]["field"]) == (422, field)


async def test_unknown_fields_are_refused_only_when_asked(embedded: Any, embedded_namespace: str) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{embedded_namespace}/networkpolicies"
    policy = {"metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingres": []}}
    strict = await embedded.post(f"{policies}?fieldValidation=Strict", policy)
    assert strict.status == 400
    assert 'unknown field "spec.ingres"' in strict.tree["message"]
    lenient = await embedded.post(policies, policy)
    assert lenient.status == 201
    assert "ingres" not in lenient.tree["spec"]
