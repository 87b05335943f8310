"""Clusters of any size, the same in every run: namespaces, pods and policies as the API server would show them.

Pods are spread evenly over the namespaces, and in each over apps and tiers; the first `local_pods`, of all apps and
namespaces, run on the node under test, whatever else there is on others. Each carries the labels that real ones do: an
app, a tier, and two that no policy asks for. A policy selects one app of its namespace and admits a tier of it, a
team's namespaces or a network, by turns, on one of a few ports. With ten policies to a namespace each pod is selected
by one.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import orjson
from msgspec import Struct

from netagent.kube import decode
from netagent.records import Kind, Listed, Record, Upserted

Object = dict[str, Any]
NODE = "node-0"
"""The node under test."""
PODS_PER_NODE = 110
APPS = 10
"""Per namespace."""
REPLICAS = 5
"""Pods of one app and namespace that are equal but for name and address."""
TIERS = ("web", "app", "db", "cache")
TEAMS = 8
PEER_KINDS = 3
"""That policies admit by turns; the first is a tier of their own namespace."""
PORTS = (80, 443, 5432, 6379, 8080, 8443, 9090, 9200)
CREATED = "2026-01-01T00:00:00Z"
PLURALS = {Kind.NAMESPACE: "namespaces", Kind.POD: "pods", Kind.NETWORK_POLICY: "networkpolicies"}
PROBE = "probe"
"""Name of the policy that a benchmark changes; no load changes it."""
LISTED = (Kind.NAMESPACE, Kind.POD, Kind.NETWORK_POLICY)


class Shape(Struct, frozen=True, kw_only=True):
    """How large a cluster is."""

    pods: int
    """All of them, the local ones included."""
    policies: int
    namespaces: int = 100
    local_pods: int = 110


def namespaces(shape: Shape) -> Iterator[Object]:
    """Namespace objects."""
    for number in range(shape.namespaces):
        yield namespace(f"ns-{number}", team=f"team-{number % TEAMS}")


def namespace(name: str, **labels: str) -> Object:
    """One Namespace."""
    found = {"kubernetes.io/metadata.name": name, **labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta("", name, found), "status": {"phase": "Active"}}


def pods(shape: Shape) -> Iterator[Object]:
    """Pod objects, running, with addresses."""
    for number in range(shape.pods):
        yield numbered_pod(shape, number)


def numbered_pod(shape: Shape, number: int) -> Object:
    """The pod of a number; local where it is less than shape.local_pods."""
    turn = number if number < shape.local_pods else number // shape.namespaces
    app = turn % APPS
    labels = {
        "app": f"app-{app}",
        "tier": TIERS[turn // APPS % len(TIERS)],
        "pod-template-hash": f"{number // (shape.namespaces * APPS * REPLICAS):010x}",
        "app.kubernetes.io/managed-by": "workload",
    }
    node = NODE if number < shape.local_pods else f"node-{1 + (number - shape.local_pods) // PODS_PER_NODE}"
    return pod(f"ns-{number % shape.namespaces}", f"app-{app}-{number}", pod_ip(shape, number), node, labels)


def pod_ip(shape: Shape, number: int) -> str:
    """10.0.0.0/8, a /24 for each node; the node under test has the first."""
    if number < shape.local_pods:
        return f"10.0.{number // 250}.{2 + number % 250}"
    node, index = divmod(number - shape.local_pods, PODS_PER_NODE)
    return f"10.{1 + (node >> 8)}.{node & 255}.{2 + index}"


def pod(namespace_name: str, name: str, ip: str, node: str, labels: dict[str, str]) -> Object:
    """One running Pod, with as much around what the agent reads as a small real one has."""
    container = {
        "name": "main",
        "image": "registry.example.org/team/image:1.2.3",
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{index}", "value": "x" * 24} for index in range(8)],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    spec = {
        "nodeName": node,
        "containers": [container],
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {},
        "enableServiceLinks": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta(namespace_name, name, labels),
        "spec": spec,
        "status": status(ip),
    }


def status(ip: str) -> Object:
    """Of a running pod."""
    return {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1", "startTime": CREATED}


def policies(shape: Shape) -> Iterator[Object]:
    """NetworkPolicy objects."""
    for number in range(shape.policies):
        yield numbered_policy(shape, number)


def numbered_policy(shape: Shape, number: int) -> Object:
    """The policy of a number."""
    round_, home = divmod(number, shape.namespaces)
    network = f"172.{16 + round_ % 16}.{home % 256}"
    peers = (
        [{"podSelector": {"matchLabels": {"tier": TIERS[round_ % len(TIERS)]}}}],
        [
            {
                "namespaceSelector": {"matchLabels": {"team": f"team-{number % TEAMS}"}},
                "podSelector": {"matchLabels": {"app": f"app-{round_ % APPS}"}},
            }
        ],
        [{"ipBlock": {"cidr": f"{network}.0/24", "except": [f"{network}.8/29"]}}],
    )[round_ % PEER_KINDS]
    port = {"protocol": "TCP", "port": PORTS[round_ % len(PORTS)]}
    return policy(
        f"ns-{home}",
        f"policy-{number}",
        {"matchLabels": {"app": f"app-{round_ % APPS}"}},
        ingress=[{"from": peers, "ports": [port]}],
    )


def turned(shape: Shape, rng: Random, labels_of: Callable[[str, str], dict[str, str]]) -> tuple[str, str, str]:
    """Namespace and name of a pod of another node, and another tier for it, so that a peer set of this node changes.

    `labels_of(namespace, name)` gives those that it has now.
    """
    while True:
        number = rng.randrange(shape.local_pods, shape.pods)
        home = number % shape.namespaces
        # The app of the first local pod there, and so the policy that selects it, says which peers matter here.
        if home >= shape.local_pods or home % APPS % PEER_KINDS:
            continue
        meta = numbered_pod(shape, number)["metadata"]
        wanted = TIERS[home % APPS % len(TIERS)]
        has = labels_of(meta["namespace"], meta["name"])["tier"]
        other = TIERS[(TIERS.index(wanted) + 1) % len(TIERS)]
        return meta["namespace"], meta["name"], other if has == wanted else wanted


def policy(
    namespace_name: str, name: str, selector: Object, *, ingress: list[Object] | None = None, direction: str = "Ingress"
) -> Object:
    """One NetworkPolicy; without rules it closes its pods."""
    rules = {direction.lower(): ingress} if ingress else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(namespace_name, name, {}),
        "spec": {"podSelector": selector, "policyTypes": [direction], **rules},
    }


def meta(namespace_name: str, name: str, labels: dict[str, str]) -> Object:
    """metadata, as one who creates the object writes it, but for the UID."""
    where = {"namespace": namespace_name} if namespace_name else {}
    return {"name": name, **where, "labels": labels, "uid": f"{namespace_name}:{name}", "creationTimestamp": CREATED}


def objects(shape: Shape) -> Iterator[tuple[Kind, Object]]:
    """The whole cluster, in an order in which it can be created."""
    for kind, made in (
        (Kind.NAMESPACE, namespaces(shape)),
        (Kind.NETWORK_POLICY, policies(shape)),
        (Kind.POD, pods(shape)),
    ):
        for obj in made:
            yield kind, obj


def record(kind: Kind, obj: Object) -> Record:
    """As the agent keeps it: through its own decoder, so that memory is shared as in real life."""
    return decode.record(kind, orjson.dumps(obj))


def upserted(kind: Kind, obj: Object) -> Upserted:
    """As a watch tells it."""
    return Upserted(kind, record(kind, obj))


def changes(shape: Shape) -> Iterator[Upserted | Listed]:
    """The whole cluster as the watches would tell it at start."""
    for kind, obj in objects(shape):
        yield upserted(kind, obj)
    for kind in LISTED:
        yield Listed(kind)
