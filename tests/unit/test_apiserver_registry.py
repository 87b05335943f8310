"""The API server's insides: hostile bodies, patches, field sets, ages."""

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netagent.lab.apiserver.drafts import shape_of
from netagent.lab.apiserver.faults import ApiFault
from netagent.lab.apiserver.patch import json_patch, merge_patch, strategic_merge
from netagent.lab.apiserver.registry import Options, Registry, Target
from netagent.lab.apiserver.resources import BUILT_IN, Catalogue, Resource
from netagent.lab.apiserver.shapes import POD
from netagent.lab.apiserver.ssa import differences, from_trie, leaves, to_trie
from netagent.lab.apiserver.store import Store
from netagent.lab.apiserver.tables import human_duration, table_cells

PORT = {"name": "http", "containerPort": 80, "protocol": "TCP"}
SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}
RULE_PORT = {"port": 80, "endPort": 90, "protocol": "TCP"}
SPECS: dict[str, Any] = {
    "pods": {"nodeName": "n", "nodeSelector": {"a": "b"}, "containers": [{"name": "c", "image": "i", "ports": [PORT]}]},
    "networkpolicies": {
        "podSelector": SELECTOR,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [RULE_PORT]}],
        "egress": [{"to": [{"podSelector": SELECTOR, "namespaceSelector": {}}]}],
    },
    "leases": {"holderIdentity": "n", "leaseDurationSeconds": 5, "leaseTransitions": 1},
    "nodes": {"podCIDRs": ["10.0.0.0/24"], "taints": [{"key": "k", "effect": "NoSchedule"}]},
    "services": {"type": "ClusterIP", "ports": [{"name": "a", "port": 80, "protocol": "TCP"}], "selector": {"a": "b"}},
    "customresourcedefinitions": {
        "group": "g.io",
        "scope": "Cluster",
        "names": {"plural": "ks", "kind": "K"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
    "deployments": {"selector": SELECTOR, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
}
NAMES = {"customresourcedefinitions": "ks.g.io"}
METADATA = {"labels": {"a": "b"}, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]}


def registry() -> Registry:
    made = Registry(Store(), Catalogue(), lambda: 1_700_000_000.0)
    made.create(resource("namespaces"), "", {"metadata": {"name": "ns"}}, Options())
    return made


def resource(plural: str) -> Resource:
    return next(item for item in BUILT_IN if item.plural == plural)


def sample(plural: str) -> dict[str, Any]:
    metadata = {"name": NAMES.get(plural, "x"), **METADATA}
    return copy.deepcopy({"metadata": metadata, "spec": SPECS[plural], "status": {"phase": "Pending"}})


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [*([path] if path else []), *itertools.chain.from_iterable(places(v, (*path, k)) for k, v in items)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 63) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize("plural", SPECS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_stored_or_refused_with_a_status(plural: str, data: st.DataObject) -> None:
    made, kind = registry(), resource(plural)
    tree = sample(plural)
    path = data.draw(st.sampled_from(places(tree)))
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = data.draw(VALUES)
    namespace = "ns" if kind.namespaced else ""
    refused = None
    try:
        stored = made.create(kind, namespace, tree, Options()).stored
    except ApiFault as fault:
        refused = fault.status()
    if refused is not None:
        assert refused["code"] in (400, 422)
        assert refused["message"]
    else:
        table_cells(kind, stored.obj, 1_700_000_100.0)
        target = Target(kind, namespace, stored.obj["metadata"]["name"])
        made.patch(target, "merge", {"metadata": {"labels": {"z": "1"}}}, Options())


@pytest.mark.parametrize("plural", SPECS)
def test_the_samples_are_good(plural: str) -> None:
    made, kind = registry(), resource(plural)
    namespace = "ns" if kind.namespaced else ""
    assert made.create(kind, namespace, sample(plural), Options()).created


@given(document=VALUES, patch=VALUES)
def test_a_merge_patch_leaves_no_null_and_changes_no_input(document: Any, patch: Any) -> None:
    before = copy.deepcopy((document, patch))
    once = merge_patch(document, patch)
    assert merge_patch(once, patch) == once
    assert (document, patch) == before


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/1", "value": 9}, {"a": [1, 9, 2], "b/c": 3}),
        ({"op": "add", "path": "/a/-", "value": 9}, {"a": [1, 2, 9], "b/c": 3}),
        ({"op": "remove", "path": "/b~1c"}, {"a": [1, 2]}),
        ({"op": "replace", "path": "/a/0", "value": 9}, {"a": [9, 2], "b/c": 3}),
        ({"op": "move", "from": "/a/0", "path": "/d"}, {"a": [2], "b/c": 3, "d": 1}),
        ({"op": "copy", "from": "/a", "path": "/d"}, {"a": [1, 2], "b/c": 3, "d": [1, 2]}),
        ({"op": "test", "path": "/a/1", "value": 2}, {"a": [1, 2], "b/c": 3}),
        ({"op": "remove", "path": "/a/2"}, None),
        ({"op": "replace", "path": "/x", "value": 1}, None),
        ({"op": "add", "path": "/a/7", "value": 1}, None),
        ({"op": "test", "path": "/a/1", "value": 3}, None),
        ({"op": "dance", "path": "/a"}, None),
        ({"op": "add", "path": "a", "value": 1}, None),
    ],
)
def test_json_patch_operations(operation: dict[str, Any], expected: Any) -> None:
    document = {"a": [1, 2], "b/c": 3}
    if expected is None:
        with pytest.raises(ApiFault) as caught:
            json_patch(document, [operation])
        assert caught.value.code == 422
    else:
        assert json_patch(document, [operation]) == expected
    assert document == {"a": [1, 2], "b/c": 3}


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ([{"name": "b", "image": "2"}], [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]),
        ([{"name": "a", "$patch": "delete"}], []),
        ([{"$patch": "replace"}, {"name": "c"}], [{"name": "c"}]),
        ([{"name": "a", "image": None}], [{"name": "a"}]),
    ],
)
def test_strategic_merge_of_lists_with_names(patch: Any, expected: Any) -> None:
    document = {"spec": {"containers": [{"name": "a", "image": "1"}]}}
    merged = strategic_merge(document, {"spec": {"containers": patch}}, POD)
    assert merged["spec"]["containers"] == expected


def test_strategic_merge_orders_and_deletes() -> None:
    document = {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "metadata": {"finalizers": ["x", "y"]}}
    patch = {
        "spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]},
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]},
    }
    merged = strategic_merge(document, patch, POD)
    assert [item["name"] for item in merged["spec"]["containers"]] == ["b", "a"]
    assert merged["metadata"]["finalizers"] == ["y"]


@pytest.mark.parametrize("plural", SPECS)
def test_field_sets_survive_their_notation(plural: str) -> None:
    kind = resource(plural)
    fields = frozenset(leaves(sample(plural), kind.shape))
    assert from_trie(to_trie(fields)) == fields


def test_managed_fields_forget_what_is_gone() -> None:
    made, maps = registry(), resource("configmaps")
    target = Target(maps, "ns", "m")
    made.create(maps, "ns", {"metadata": {"name": "m"}, "data": {"a": "1", "b": "1"}}, Options("first"))
    made.patch(target, "merge", {"data": {"a": "2", "b": None}}, Options("second"))
    stored = made.get(maps, target.key)
    entries = {entry["manager"]: entry["fieldsV1"] for entry in stored.obj["metadata"]["managedFields"]}
    assert entries == {"second": {"f:data": {"f:a": {}}}}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (48 * 3600, "2d"),
        (49 * 3600, "2d1h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
        (-5, "<invalid>"),
    ],
)
def test_ages_read_as_kubectl_prints_them(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def _storable(value: Any) -> bool:
    """Stored objects have no nulls, which the shapes drop, and no two items with one key, which validation refuses."""
    if isinstance(value, dict):
        return all(map(_storable, value.values()))
    if isinstance(value, list):
        return len(value) < 2 and all(map(_storable, value))
    return value is not None


@pytest.mark.parametrize("plural", SPECS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_differences_are_those_of_all_paths(plural: str, data: st.DataObject) -> None:
    """The fast comparison, which skips what is equal, against the plain one over every path."""
    shape, old, new = shape_of(resource(plural)), sample(plural), sample(plural)
    for tree in (old, new):
        path = data.draw(st.sampled_from(places(tree)))
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        if data.draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = data.draw(VALUES.filter(_storable))
    before, after = leaves(old, shape), leaves(new, shape)
    changed, gone = differences(old, new, shape)
    assert changed == {path for path, value in after.items() if path not in before or before[path] != value}
    assert gone == before.keys() - after.keys()
