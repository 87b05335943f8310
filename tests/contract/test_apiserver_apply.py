"""Server-side apply, on the embedded server and on a real one."""

from typing import Any

APPLY = "application/apply-patch+yaml"


async def apply(client: Any, path: str, tree: dict[str, Any], manager: str, *, force: bool = False) -> Any:
    return await client.patch(f"{path}?fieldManager={manager}{'&force=true' if force else ''}", tree, APPLY)


def config(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


async def test_apply_creates_changes_and_removes_what_it_dropped(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/a"
    made = await apply(client, path, config(k="1", l="1"), "me")
    assert (made.status, made.tree["data"]) == (201, {"k": "1", "l": "1"})
    entry = made.tree["metadata"]["managedFields"][0]
    assert (entry["manager"], entry["operation"], entry["apiVersion"]) == ("me", "Apply", "v1")
    assert entry["fieldsV1"] == {"f:data": {"f:k": {}, "f:l": {}}}
    changed = await apply(client, path, config(k="2"), "me")
    assert (changed.status, changed.tree["data"]) == (200, {"k": "2"})
    again = await apply(client, path, config(k="2"), "me")
    assert again.tree["metadata"]["resourceVersion"] == changed.tree["metadata"]["resourceVersion"]


async def test_two_appliers_share_an_object_and_conflict_over_a_field(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/a"
    await apply(client, path, config(k="1"), "one")
    both = await apply(client, path, config(l="1"), "two")
    assert both.tree["data"] == {"k": "1", "l": "1"}
    clash = await apply(client, path, config(k="2", l="1"), "two")
    assert (clash.status, clash.tree["reason"]) == (409, "Conflict")
    cause = clash.tree["details"]["causes"][0]
    assert (cause["reason"], cause["field"]) == ("FieldManagerConflict", ".data.k")
    assert 'conflict with "one"' in cause["message"]
    forced = await apply(client, path, config(k="2", l="1"), "two", force=True)
    assert forced.tree["data"] == {"k": "2", "l": "1"}
    dropped = await apply(client, path, config(), "one")
    assert dropped.tree["data"] == {"k": "2", "l": "1"}


async def test_same_values_are_shared_and_removed_by_the_last_owner(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/a"
    await apply(client, path, config(k="1", x="1"), "one")
    assert (await apply(client, path, config(k="1"), "two")).status == 200
    assert (await apply(client, path, config(x="1"), "one")).tree["data"] == {"k": "1", "x": "1"}
    last = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    assert (await apply(client, path, last, "two")).tree["data"] == {"x": "1"}


async def test_other_writers_own_what_they_changed(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/a"
    await apply(client, path, config(k="1"), "me")
    await client.patch(f"{path}?fieldManager=editor", {"data": {"k": "2"}})
    clash = await apply(client, path, config(k="3"), "me")
    assert clash.status == 409
    assert 'conflict with "editor"' in clash.tree["details"]["causes"][0]["message"]


async def test_items_of_a_map_list_are_owned_one_by_one(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services/a"

    def service(*ports: int) -> dict[str, Any]:
        items = [{"name": f"p{port}", "port": port, "protocol": "TCP"} for port in ports]
        spec = {"ports": items, "clusterIP": "None", "selector": {"a": "b"}}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}

    assert (await apply(client, path, service(80, 81), "one")).status == 201
    both = await apply(client, path, service(81, 82), "two")
    assert both.status == 200, both.tree
    assert [item["port"] for item in both.tree["spec"]["ports"]] == [80, 81, 82]
    fewer = await apply(client, path, service(81), "one")
    assert [item["port"] for item in fewer.tree["spec"]["ports"]] == [81, 82]


async def test_rules_of_a_policy_are_one_value(client: Any, namespace: str) -> None:
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/p"

    def policy(*ports: int) -> dict[str, Any]:
        head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}}
        return {**head, "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": port}]} for port in ports]}}

    await apply(client, path, policy(80, 81), "me")
    changed = await apply(client, path, policy(82), "me")
    assert [rule["ports"][0]["port"] for rule in changed.tree["spec"]["ingress"]] == [82]
    assert changed.tree["metadata"]["generation"] == 2


async def test_what_an_apply_must_say(client: Any, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps/a"
    unnamed = await client.patch(path, config(k="1"), APPLY)
    assert unnamed.status in (400, 422)
    other = await apply(client, path, {**config(k="1"), "metadata": {"name": "b"}}, "me")
    assert other.status == 400
