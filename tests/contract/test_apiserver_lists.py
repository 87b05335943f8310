"""Lists, pages, selectors and watches, on the embedded server and on a real one."""

from typing import Any
from urllib.parse import quote

import pytest


async def fill(client: Any, namespace: str, count: int) -> str:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    for number in range(count):
        labels = {"parity": "odd" if number % 2 else "even", "number": str(number)}
        answer = await client.post(maps, {"metadata": {"name": f"m-{number:02}", "labels": labels}})
        assert answer.status == 201
    return maps + "?fieldSelector=metadata.name!%3Dkube-root-ca.crt"


def names(answer: Any) -> list[str]:
    return [item["metadata"]["name"] for item in answer.tree["items"]]


async def test_pages_show_one_moment(client: Any, namespace: str) -> None:
    maps = await fill(client, namespace, 7)
    first = await client.get(f"{maps}&limit=3")
    await client.delete(f"{maps.partition('?')[0]}/m-05")
    await client.post(maps.partition("?")[0], {"metadata": {"name": "m-99"}})
    second = await client.get(f"{maps}&limit=3&continue={first.tree['metadata']['continue']}")
    third = await client.get(f"{maps}&limit=3&continue={second.tree['metadata']['continue']}")
    assert names(first) + names(second) + names(third) == [f"m-{number:02}" for number in range(7)]
    assert "continue" not in third.tree["metadata"]
    revisions = {page.tree["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(revisions) == 1
    assert names(await client.get(maps))[-1] == "m-99"


async def test_a_continue_token_that_makes_no_sense(client: Any, namespace: str) -> None:
    answer = await client.get(f"/api/v1/namespaces/{namespace}/configmaps?limit=1&continue=bm9uc2Vuc2U")
    assert answer.status == 400


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("parity=odd", [1, 3]),
        ("parity==odd", [1, 3]),
        ("parity!=odd", [0, 2, 4]),
        ("parity in (odd,other)", [1, 3]),
        ("number notin (0, 1)", [2, 3, 4]),
        ("parity,number!=0", [1, 2, 3, 4]),
        ("!parity", []),
        ("number>2", [3, 4]),
        ("number<1", [0]),
    ],
)
async def test_label_selectors(client: Any, namespace: str, selector: str, expected: list[int]) -> None:
    maps = await fill(client, namespace, 5)
    quoted = quote(selector, safe="")
    assert names(await client.get(f"{maps}&labelSelector={quoted}")) == [f"m-{number:02}" for number in expected]


async def test_selectors_that_make_no_sense(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    assert (await client.get(f"{maps}?labelSelector=a%20b%20c")).status == 400
    assert (await client.get(f"{maps}?fieldSelector=data.k%3D1")).status == 400


async def test_pods_by_node_and_phase(client: Any, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for name, node in (("a", "n1"), ("b", "n2"), ("c", "n1")):
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
        await client.post(pods, {"metadata": {"name": name}, "spec": spec})
    await client.patch(f"{pods}/c/status", {"status": {"phase": "Failed"}})
    here = "spec.nodeName%3Dn1"
    assert names(await client.get(f"{pods}?fieldSelector={here}")) == ["a", "c"]
    assert names(await client.get(f"{pods}?fieldSelector={here},status.phase!%3DFailed")) == ["a"]
    for name in "abc":
        await client.delete(f"{pods}/{name}", {"gracePeriodSeconds": 0})


async def test_a_watch_without_a_version_starts_with_what_is_there(client: Any, namespace: str) -> None:
    maps = await fill(client, namespace, 3)
    async with client.watch(f"{maps}&watch=true&timeoutSeconds=30") as following:
        seen = [await following() for _ in range(3)]
        await client.delete(f"{maps.partition('?')[0]}/m-01")
        gone = await following()
    assert sorted(event["object"]["metadata"]["name"] for event in seen) == ["m-00", "m-01", "m-02"]
    assert {event["type"] for event in seen} == {"ADDED"}
    assert (gone["type"], gone["object"]["metadata"]["name"]) == ("DELETED", "m-01")


async def test_an_object_enters_and_leaves_a_selector(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    revision = (await client.get(maps)).tree["metadata"]["resourceVersion"]
    path = f"{maps}?watch=1&labelSelector=on&resourceVersion={revision}&timeoutSeconds=30"
    async with client.watch(path) as following:
        await client.post(maps, {"metadata": {"name": "a"}})
        for labels in ({"on": "1"}, {"on": "2"}, {"on": None}):
            await client.patch(f"{maps}/a", {"metadata": {"labels": labels}})
        events = [await following() for _ in range(3)]
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_ends_after_its_time(client: Any, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    revision = (await client.get(maps)).tree["metadata"]["resourceVersion"]
    async with client.watch(f"{maps}?watch=1&resourceVersion={revision}&timeoutSeconds=1") as following:
        assert await following() is None


async def test_one_object_is_watched_by_name(client: Any, namespace: str) -> None:
    await fill(client, namespace, 2)
    path = f"/api/v1/namespaces/{namespace}/configmaps?watch=1&fieldSelector=metadata.name%3Dm-01&timeoutSeconds=30"
    async with client.watch(path) as following:
        assert (await following())["object"]["metadata"]["name"] == "m-01"
        await client.patch(f"/api/v1/namespaces/{namespace}/configmaps/m-00", {"data": {"k": "1"}})
        await client.patch(f"/api/v1/namespaces/{namespace}/configmaps/m-01", {"data": {"k": "1"}})
        assert (await following())["object"]["metadata"]["name"] == "m-01"


async def test_versions_of_lists(client: Any, namespace: str) -> None:
    maps = await fill(client, namespace, 2)
    then = (await client.get(maps)).tree["metadata"]["resourceVersion"]
    await client.delete(f"{maps.partition('?')[0]}/m-00")
    exact = await client.get(f"{maps}&resourceVersion={then}&resourceVersionMatch=Exact&limit=5")
    assert names(exact) == ["m-00", "m-01"]
    assert names(await client.get(maps)) == ["m-01"]
    assert (await client.get(f"{maps}&resourceVersion=0")).status == 200
    assert (await client.get(f"{maps}&resourceVersionMatch=Exact")).status == 422
    assert (await client.get(f"{maps}&resourceVersion=nonsense")).status in (400, 500)


async def test_a_table_has_rows_and_columns(client: Any, namespace: str) -> None:
    await fill(client, namespace, 2)
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    path = f"/api/v1/namespaces/{namespace}/configmaps?labelSelector=parity"
    table = (await client.get(path, Accept=accept)).tree
    assert table["kind"] == "Table"
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert [row["cells"][0] for row in table["rows"]] == ["m-00", "m-01"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


async def test_compaction_ends_old_pages(client: Any, namespace: str) -> None:
    maps = await fill(client, namespace, 4)
    first = await client.get(f"{maps}&limit=2")
    token, revision = first.tree["metadata"]["continue"], first.tree["metadata"]["resourceVersion"]
    newest = await client.post(maps.partition("?")[0], {"metadata": {"name": "m-99"}})
    await client.compact(int(newest.tree["metadata"]["resourceVersion"]))
    late = await client.get(f"{maps}&limit=2&continue={token}")
    assert (late.status, late.tree["reason"]) == (410, "Expired")
    rest = await client.get(f"{maps}&limit=5&continue={late.tree['metadata']['continue']}")
    assert names(rest) == ["m-02", "m-03", "m-99"]
    exact = await client.get(f"{maps}&resourceVersion={revision}&resourceVersionMatch=Exact&limit=5")
    assert exact.status == 410


# What only the embedded server has, or does soon enough for a test


async def test_bookmarks_tell_the_version_of_a_quiet_watch(embedded: Any, embedded_namespace: str) -> None:
    maps = f"/api/v1/namespaces/{embedded_namespace}/configmaps"
    revision = (await embedded.get(maps)).tree["metadata"]["resourceVersion"]
    path = f"{maps}?watch=1&allowWatchBookmarks=true&resourceVersion={revision}"
    async with embedded.watch(path) as following:
        await embedded.post("/api/v1/namespaces/default/events", {"metadata": {"generateName": "e-"}})
        event = await following()
        while int(event["object"]["metadata"]["resourceVersion"]) <= int(revision):
            event = await following()
    assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "ConfigMap")


async def test_a_streamed_list_ends_with_a_marked_bookmark(embedded: Any, embedded_namespace: str) -> None:
    await fill(embedded, embedded_namespace, 3)
    path = f"/api/v1/namespaces/{embedded_namespace}/configmaps?watch=1&sendInitialEvents=true"
    refused = await embedded.get(path)
    assert refused.status == 422
    path += "&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    async with embedded.watch(path) as following:
        seen = [await following() for _ in range(4)]
        await embedded.delete(f"/api/v1/namespaces/{embedded_namespace}/configmaps/m-00")
        gone = await following()
        while gone["type"] == "BOOKMARK":
            gone = await following()
    assert [event["type"] for event in seen] == ["ADDED", "ADDED", "ADDED", "BOOKMARK"]
    assert seen[3]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert gone["type"] == "DELETED"


async def test_a_watch_from_before_the_window_is_told_so(embedded: Any, embedded_namespace: str) -> None:
    maps = f"/api/v1/namespaces/{embedded_namespace}/configmaps"
    revision = (await embedded.get(maps)).tree["metadata"]["resourceVersion"]
    await embedded.post(maps, {"metadata": {"name": "a"}})
    await embedded.post("/lab/compact", {})
    async with embedded.watch(f"{maps}?watch=1&resourceVersion={revision}") as following:
        event = await following()
        assert await following() is None
    assert event["type"] == "ERROR"
    assert (event["object"]["kind"], event["object"]["code"], event["object"]["reason"]) == ("Status", 410, "Expired")


async def test_a_version_that_is_still_to_come(embedded: Any, embedded_namespace: str) -> None:
    answer = await embedded.get(f"/api/v1/namespaces/{embedded_namespace}/configmaps?resourceVersion=999999999")
    assert (answer.status, answer.tree["reason"]) == (504, "Timeout")
