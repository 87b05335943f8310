"""The verbs of the API, on the embedded server and on a real one."""

from typing import Any


def pod(name: str = "web", **labels: str) -> dict[str, Any]:
    container = {"name": "main", "image": "example/web:1", "ports": [{"containerPort": 80}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}


async def test_an_object_is_created_read_replaced_and_deleted(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    created = await client.post(maps, {"metadata": {"name": "a"}, "data": {"k": "1"}})
    assert created.status == 201
    metadata = created.tree["metadata"]
    assert created.tree["kind"] == "ConfigMap"
    assert metadata["uid"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert (await client.get(f"{maps}/a")).tree == created.tree
    replaced = await client.put(f"{maps}/a", {"metadata": {"name": "a"}, "data": {"k": "2"}})
    assert replaced.status == 200
    assert int(replaced.tree["metadata"]["resourceVersion"]) > int(metadata["resourceVersion"])
    assert replaced.tree["metadata"]["uid"] == metadata["uid"]
    assert (await client.delete(f"{maps}/a")).tree["status"] == "Success"
    gone = await client.get(f"{maps}/a")
    assert (gone.status, gone.tree["reason"]) == (404, "NotFound")
    assert gone.tree["message"] == 'configmaps "a" not found'


async def test_a_watch_follows_a_list(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    listed = await client.get(maps)
    revision = listed.tree["metadata"]["resourceVersion"]
    async with client.watch(f"{maps}?watch=1&resourceVersion={revision}&timeoutSeconds=30") as following:
        await client.post(maps, {"metadata": {"name": "a"}})
        await client.patch(f"{maps}/a", {"data": {"k": "1"}})
        await client.delete(f"{maps}/a")
        events = [await following() for _ in range(3)]
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    revisions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert revisions == sorted(revisions)
    assert {event["object"]["kind"] for event in events} == {"ConfigMap"}


async def test_writes_are_refused_when_the_object_has_moved_on(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    first = (await client.post(maps, {"metadata": {"name": "a"}, "data": {"k": "1"}})).tree
    await client.patch(f"{maps}/a", {"data": {"k": "2"}})
    stale = await client.put(f"{maps}/a", {**first, "data": {"k": "3"}})
    assert (stale.status, stale.tree["reason"]) == (409, "Conflict")
    assert "the object has been modified" in stale.tree["message"]
    patch = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "3"}}
    assert (await client.patch(f"{maps}/a", patch)).status == 409
    twice = await client.post(maps, {"metadata": {"name": "a"}})
    assert (twice.status, twice.tree["reason"]) == (409, "AlreadyExists")
    wrong_uid = await client.delete(f"{maps}/a", {"preconditions": {"uid": "another"}})
    assert (wrong_uid.status, wrong_uid.tree["reason"]) == (409, "Conflict")
    assert (await client.get(f"{maps}/a")).tree["data"] == {"k": "2"}


async def test_a_write_that_changes_nothing_makes_no_version(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    first = (await client.post(maps, {"metadata": {"name": "a"}, "data": {"k": "1"}})).tree
    again = (await client.patch(f"{maps}/a", {"data": {"k": "1"}})).tree
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_lease_is_taken_by_creating_it_and_renewed_by_its_version(client: Any, namespace: str) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    spec = {"holderIdentity": "node-1", "leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:00.000000Z"}
    taken = await client.post(leases, {"metadata": {"name": "l"}, "spec": spec})
    assert taken.status == 201
    assert taken.tree["spec"] == spec
    assert (await client.post(leases, {"metadata": {"name": "l"}, "spec": spec})).status == 409
    no_version = await client.put(f"{leases}/l", {"metadata": {"name": "l"}, "spec": spec})
    assert no_version.status == 422
    renewed = await client.put(f"{leases}/l", {**taken.tree, "spec": {**spec, "leaseTransitions": 1}})
    assert renewed.status == 200
    lost = await client.put(f"{leases}/l", {**taken.tree, "spec": {**spec, "holderIdentity": "node-2"}})
    assert lost.status == 409
    by_put = await client.put(f"{leases}/new", {"metadata": {"name": "new"}, "spec": spec})
    assert by_put.status == 201


async def test_names_are_generated(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    names = {(await client.post(maps, {"metadata": {"generateName": "a-"}})).tree["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("a-") and len(name) == 7 for name in names)


async def test_a_dry_run_answers_and_changes_nothing(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    assert (await client.post(f"{maps}?dryRun=All", {"metadata": {"name": "a"}})).status == 201
    assert (await client.get(f"{maps}/a")).status == 404
    await client.post(maps, {"metadata": {"name": "a"}, "data": {"k": "1"}})
    shown = await client.patch(f"{maps}/a?dryRun=All", {"data": {"k": "2"}})
    assert shown.tree["data"] == {"k": "2"}
    await client.delete(f"{maps}/a?dryRun=All")
    assert (await client.get(f"{maps}/a")).tree["data"] == {"k": "1"}


async def test_every_kind_of_patch(client: Any, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await client.post(pods, pod(app="web"))
    merged = await client.patch(f"{pods}/web", {"metadata": {"labels": {"app": None, "tier": "1"}}})
    assert merged.tree["metadata"]["labels"] == {"tier": "1"}
    operations = [
        {"op": "test", "path": "/metadata/labels/tier", "value": "1"},
        {"op": "add", "path": "/metadata/labels/a~1b", "value": "2"},
        {"op": "replace", "path": "/spec/containers/0/image", "value": "example/web:2"},
    ]
    by_json = await client.patch(f"{pods}/web", operations, "application/json-patch+json")
    assert by_json.tree["metadata"]["labels"] == {"tier": "1", "a/b": "2"}
    strategic = {"spec": {"containers": [{"name": "main", "image": "example/web:3"}]}}
    by_name = await client.patch(f"{pods}/web", strategic, "application/strategic-merge-patch+json")
    container = by_name.tree["spec"]["containers"][0]
    assert (container["image"], container["ports"][0]["containerPort"]) == ("example/web:3", 80)
    failed = [{"op": "test", "path": "/metadata/labels/tier", "value": "9"}]
    assert (await client.patch(f"{pods}/web", failed, "application/json-patch+json")).status == 422
    assert (await client.patch(f"{pods}/web", {}, "application/x-unknown")).status == 415


async def test_conditions_merge_by_type_in_the_status_of_a_node(client: Any, namespace: str) -> None:
    node = f"node-{namespace}"
    strategic = "application/strategic-merge-patch+json"
    assert (await client.post("/api/v1/nodes", {"metadata": {"name": node}})).status == 201
    try:
        for kind, status in (("Ready", "True"), ("NetworkUnavailable", "True"), ("NetworkUnavailable", "False")):
            condition = {"type": kind, "status": status, "reason": "R", "message": "m"}
            patch = {"metadata": {"annotations": {"seen": kind}}, "status": {"conditions": [condition]}}
            answer = await client.patch(f"/api/v1/nodes/{node}/status", patch, strategic)
            assert answer.status == 200
        conditions = {item["type"]: item["status"] for item in answer.tree["status"]["conditions"]}
        assert conditions == {"Ready": "True", "NetworkUnavailable": "False"}
        assert answer.tree["metadata"]["annotations"]["seen"] == "NetworkUnavailable"
    finally:
        await client.delete(f"/api/v1/nodes/{node}")


async def test_status_and_the_rest_are_written_apart(client: Any, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    made = await client.post(pods, {**pod(), "status": {"phase": "Running"}})
    assert made.tree["status"]["phase"] == "Pending"
    status = {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}]}
    reported = await client.patch(f"{pods}/web/status", {"status": status, "spec": {"nodeName": "elsewhere"}})
    assert reported.tree["status"]["podIPs"] == [{"ip": "10.0.0.7"}]
    assert "nodeName" not in reported.tree["spec"]
    changed = await client.patch(f"{pods}/web", {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Failed"}})
    assert changed.tree["status"]["phase"] == "Running"
    assert changed.tree["metadata"]["labels"] == {"a": "b"}


async def test_a_pod_on_a_node_is_given_time_and_a_pod_elsewhere_is_not(client: Any, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    await client.post(pods, pod("loose"))
    await client.delete(f"{pods}/loose")
    assert (await client.get(f"{pods}/loose")).status == 404
    placed = pod("placed")
    placed["spec"]["nodeName"] = "node-that-is-not"
    await client.post(pods, placed)
    marked = await client.delete(f"{pods}/placed")
    assert marked.tree["metadata"]["deletionGracePeriodSeconds"] == 30
    there = await client.get(f"{pods}/placed")
    assert there.tree["metadata"]["deletionTimestamp"] > there.tree["metadata"]["creationTimestamp"]
    await client.delete(f"{pods}/placed", {"gracePeriodSeconds": 0})
    assert (await client.get(f"{pods}/placed")).status == 404


async def test_a_finalizer_holds_an_object(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    await client.post(maps, {"metadata": {"name": "a", "finalizers": ["example.com/hold"]}})
    await client.delete(f"{maps}/a")
    assert (await client.get(f"{maps}/a")).tree["metadata"]["deletionTimestamp"]
    await client.patch(f"{maps}/a", {"metadata": {"finalizers": None}})
    assert (await client.get(f"{maps}/a")).status == 404


async def test_a_collection_is_deleted_by_label(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        await client.post(maps, {"metadata": {"name": name, "labels": {"color": color}}})
    assert (await client.delete(f"{maps}?labelSelector=color%3Dred")).status == 200
    left = {item["metadata"]["name"] for item in (await client.get(maps)).tree["items"]}
    assert left - {"kube-root-ca.crt"} == {"c"}


async def test_nothing_is_created_in_a_namespace_that_is_missing_or_going(client: Any, namespace: str) -> None:
    missing = await client.post("/api/v1/namespaces/not-there/configmaps", {"metadata": {"name": "a"}})
    assert (missing.status, missing.tree["message"]) == (404, 'namespaces "not-there" not found')
    placed = pod("placed")
    placed["spec"]["nodeName"] = "node-that-is-not"
    await client.post(f"/api/v1/namespaces/{namespace}/pods", placed)
    going = await client.delete(f"/api/v1/namespaces/{namespace}")
    assert going.tree["status"]["phase"] == "Terminating"
    refused = await client.post(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "a"}})
    assert (refused.status, refused.tree["reason"]) == (403, "Forbidden")
    assert refused.tree["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await client.delete(f"/api/v1/namespaces/{namespace}/pods/placed", {"gracePeriodSeconds": 0})


async def test_generation_counts_changes_of_the_spec(client: Any, namespace: str) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    made = await client.post(policies, {"metadata": {"name": "p"}, "spec": {"podSelector": {}}})
    assert made.tree["metadata"]["generation"] == 1
    labelled = await client.patch(f"{policies}/p", {"metadata": {"labels": {"a": "b"}}})
    assert labelled.tree["metadata"]["generation"] == 1
    changed = await client.patch(f"{policies}/p", {"spec": {"policyTypes": ["Egress"]}})
    assert changed.tree["metadata"]["generation"] == 2


async def test_what_the_server_does_not_know_or_allow(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    assert (await client.get("/api/v1/unheardof")).status == 404
    assert (await client.get("/apis/nobody.example/v1/things")).status == 404
    assert (await client.put(maps, {"metadata": {"name": "a"}})).status == 405
    assert (await client.request("POST", maps, b"{not json")).status == 400
    assert (await client.post(maps, {"kind": "Pod", "metadata": {"name": "a"}})).status == 400
    assert (await client.post(maps, {"metadata": {"name": "a"}, "data": {"k": 1}})).status == 400
    elsewhere = {"metadata": {"name": "a", "namespace": "default"}}
    assert (await client.post(maps, elsewhere)).status == 400
    big = {"metadata": {"name": "a"}, "data": {"k": "x" * (3 << 20)}}
    assert (await client.post(maps, big)).status == 413


async def test_nulls_are_dropped_as_a_typed_server_does(client: Any, namespace: str) -> None:
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    spec = {"podSelector": None, "ingress": [{"from": None, "ports": [{"port": 80}]}], "egress": None, "typo": 1}
    made = await client.post(policies, {"metadata": {"name": "p", "labels": None}, "spec": spec})
    assert made.status == 201
    assert made.tree["spec"] == {
        "podSelector": {},
        "ingress": [{"ports": [{"protocol": "TCP", "port": 80}]}],
        "policyTypes": ["Ingress"],
    }
