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
