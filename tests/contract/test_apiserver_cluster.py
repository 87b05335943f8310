"""What the embedded server does beyond a bare API server: controllers, custom resources, faults on demand."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from netagent.lab.apiserver import ApiServer, Settings
from netagent.lab.apiserver.__main__ import _bound, url_of
from support.waiting import until


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A server of this test's own, in this process; its URL."""
    listener = _bound("127.0.0.1:0")
    server = ApiServer(settings)
    url = url_of(listener)
    await server.start([listener])
    try:
        yield url
    finally:
        await server.stop()


def node(name: str, ready: str = "True") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


async def test_a_namespace_goes_with_what_is_in_it(embedded: Any) -> None:
    await embedded.post("/api/v1/namespaces", {"metadata": {"name": "doomed"}})
    home = "/api/v1/namespaces/doomed"
    assert (await embedded.get(home)).tree["metadata"]["labels"] == {"kubernetes.io/metadata.name": "doomed"}
    await embedded.post(f"{home}/configmaps", {"metadata": {"name": "a"}})
    await embedded.post(f"{home}/pods", pod("placed", nodeName="n1"))
    await embedded.delete(home)

    async def is_emptied() -> bool:
        return bool((await embedded.get(f"{home}/configmaps/a")).status == 404)

    await until(is_emptied, "the config map goes")
    left = await embedded.get(f"{home}/pods/placed")
    assert left.tree["metadata"]["deletionTimestamp"]
    assert (await embedded.get(home)).tree["status"]["phase"] == "Terminating"
    await embedded.delete(f"{home}/pods/placed?gracePeriodSeconds=0")

    async def is_gone() -> bool:
        return bool((await embedded.get(home)).status == 404)

    await until(is_gone, "the namespace goes after its last pod")


async def test_the_namespaces_of_a_new_cluster(embedded: Any) -> None:
    for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
        assert (await embedded.get(f"/api/v1/namespaces/{name}")).tree["status"]["phase"] == "Active"
    assert (await embedded.delete("/api/v1/namespaces/default")).status == 403


async def test_a_lease_goes_with_its_node(embedded: Any, embedded_namespace: str) -> None:
    owner = (await embedded.post("/api/v1/nodes", node("short-lived"))).tree
    reference = {"apiVersion": "v1", "kind": "Node", "name": "short-lived", "uid": owner["metadata"]["uid"]}
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{embedded_namespace}/leases"
    await embedded.post(leases, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    await embedded.post(leases, {"metadata": {"name": "free"}})
    await embedded.delete("/api/v1/nodes/short-lived")

    async def is_collected() -> bool:
        return bool((await embedded.get(f"{leases}/owned")).status == 404)

    await until(is_collected, "the lease goes with its node")
    await embedded.post(leases, {"metadata": {"name": "late", "ownerReferences": [reference]}})

    async def is_late_collected() -> bool:
        return bool((await embedded.get(f"{leases}/late")).status == 404)

    await until(is_late_collected, "a lease of a node that is gone goes")
    assert (await embedded.get(f"{leases}/free")).status == 200


async def test_orphans_stay_without_their_owner(embedded: Any, embedded_namespace: str) -> None:
    maps = f"/api/v1/namespaces/{embedded_namespace}/configmaps"
    owner = (await embedded.post(maps, {"metadata": {"name": "owner"}})).tree
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    await embedded.post(maps, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    await embedded.delete(f"{maps}/owner", {"propagationPolicy": "Orphan"})
    await embedded.post(maps, {"metadata": {"name": "later"}})
    assert "ownerReferences" not in (await embedded.get(f"{maps}/owned")).tree["metadata"]


async def test_pods_are_spread_over_ready_nodes() -> None:
    async with serving(Settings()) as url, aiohttp.ClientSession(url) as session:
        for name, ready in (("n1", "True"), ("n2", "True"), ("n3", "False")):
            await session.post("/api/v1/nodes", json=node(name, ready))
        pods = "/api/v1/namespaces/default/pods"
        for name in ("a", "b", "c", "d"):
            await session.post(pods, json=pod(name))
        await session.post(pods, json=pod("picky", nodeSelector={"kubernetes.io/hostname": "n3"}))

        async def nodes() -> dict[str, str]:
            async with session.get(pods) as answer:
                items = (await answer.json())["items"]
            return {item["metadata"]["name"]: item["spec"].get("nodeName", "") for item in items}

        async def spread() -> bool:
            return sorted(node for name, node in (await nodes()).items() if name != "picky") == ["n1", "n1", "n2", "n2"]

        await until(spread, "four pods on the two ready nodes")
        assert (await nodes())["picky"] == ""
        conditions = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        media = {"Content-Type": "application/strategic-merge-patch+json"}
        await session.patch("/api/v1/nodes/n3/status", data=json.dumps(conditions), headers=media)

        async def is_placed() -> bool:
            return (await nodes())["picky"] == "n3"

        await until(is_placed, "the picky pod goes to its node once that is ready")


DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gadgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "shortNames": ["gd"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {"type": "integer"},
                                    "parts": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {"name": {"type": "string"}},
                                        },
                                    },
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


async def test_custom_resources_are_served(api: Any, client: Any, kubectl: Any, namespace: str) -> None:
    await kubectl("apply", "-f", "-", stdin=DEFINITION)
    try:
        gadgets = f"/apis/example.com/v1/namespaces/{namespace}/gadgets"

        async def is_served() -> bool:
            return bool((await client.get(gadgets)).status == 200)

        await until(is_served, "the resource appears")
        gadget = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}}
        made = await client.post(gadgets, {**gadget, "spec": {"size": 1, "typo": 2}, "status": {"seen": True}})
        assert (made.status, made.tree["spec"]) == (201, {"size": 1})
        assert "status" not in made.tree
        assert made.tree["metadata"]["generation"] == 1
        reported = await client.patch(f"{gadgets}/g/status", {"status": {"seen": True}})
        assert reported.tree["status"] == {"seen": True}
        assert (await client.patch(f"{gadgets}/g", {"spec": {"size": 2}})).tree["metadata"]["generation"] == 2
        assert (await client.put(f"{gadgets}/g", {**gadget, "spec": {"size": 3}})).status == 422
        parts = {**gadget, "spec": {"parts": [{"name": "a"}]}}
        media = "application/apply-patch+yaml"
        await client.patch(f"{gadgets}/g?fieldManager=one", parts, media)
        parts["spec"] = {"parts": [{"name": "b"}]}
        both = await client.patch(f"{gadgets}/g?fieldManager=two", parts, media)
        assert [part["name"] for part in both.tree["spec"]["parts"]] == ["a", "b"]
        listed = (await client.get(gadgets)).tree
        assert (listed["kind"], listed["items"][0]["kind"]) == ("GadgetList", "Gadget")
        assert "g " in await kubectl("get", "-n", namespace, "gd")
    finally:
        await client.delete(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{DEFINITION['metadata']['name']}")  # type: ignore[index]

    async def is_away() -> bool:
        return bool((await client.get(gadgets)).status == 404)

    await until(is_away, "the resource goes with its definition")


async def test_a_token_is_demanded_where_one_is_set() -> None:
    async with serving(Settings(token="right")) as url, aiohttp.ClientSession(url) as session:
        for header, status in (("", 401), ("Bearer wrong", 401), ("Basic right", 401), ("Bearer right", 200)):
            async with session.get("/api/v1/pods", headers={"Authorization": header}) as answer:
                assert answer.status == status
                tree = await answer.json()
        assert tree["kind"] == "PodList"
        async with session.get("/readyz") as answer:
            assert answer.status == 200


async def test_faults_come_and_go() -> None:
    async with serving(Settings()) as url, aiohttp.ClientSession(url) as session:
        await session.post("/lab/faults", json={"status": 503, "for_s": 600})
        async with session.get("/api/v1/pods") as answer:
            assert answer.status == 503
            assert (await answer.json())["kind"] == "Status"
        await session.post("/lab/faults", json={})
        async with session.get("/api/v1/pods?watch=1") as watch:
            assert watch.status == 200
            async with session.post("/lab/faults", json={"close_watches": True}) as answer:
                assert await answer.json() == {"watches_closed": 1}
            assert await watch.content.read() == b""
        await session.post("/lab/faults", json={"hang": True, "for_s": 600})
        with pytest.raises(TimeoutError):
            await session.get("/api/v1/pods", timeout=aiohttp.ClientTimeout(total=0.3))
        async with session.post("/lab/faults", json={"for_s": "nonsense"}) as answer:
            assert answer.status == 400


async def test_a_watch_that_does_not_keep_up_is_ended() -> None:
    async with serving(Settings(watch_queue_events=20)) as url, aiohttp.ClientSession(url) as session:
        maps = "/api/v1/namespaces/default/configmaps"
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(url, read_bufsize=1024) as slow, slow.get(f"{maps}?watch=1") as watch:
            body = {"data": {"k": "x" * 500_000}}
            for number in range(60):
                answer = await session.post(maps, json={"metadata": {"name": f"m-{number}"}, **body}, timeout=timeout)
                assert answer.status == 201
            lines = (await watch.content.read()).splitlines()
        last = json.loads(lines[-1])
        assert (last["type"], last["object"]["code"]) == ("ERROR", 410)


async def test_many_watches_see_every_event_in_order(embedded: Any, embedded_namespace: str) -> None:
    maps = f"/api/v1/namespaces/{embedded_namespace}/configmaps"
    await embedded.post(maps, {"metadata": {"name": "a"}})
    revision = (await embedded.get(maps)).tree["metadata"]["resourceVersion"]

    async def follow() -> list[str]:
        async with embedded.watch(f"{maps}?watch=1&resourceVersion={revision}") as following:
            return [(await following())["object"]["data"]["k"] for _ in range(50)]

    watches = [asyncio.create_task(follow()) for _ in range(8)]
    for number in range(50):
        await embedded.patch(f"{maps}/a", {"data": {"k": str(number)}})
    expected = [str(number) for number in range(50)]
    assert await asyncio.gather(*watches) == [expected] * 8


async def test_the_program_listens_writes_a_kubeconfig_and_stops_on_sigterm(tmp_path: Path) -> None:
    listener = _bound("127.0.0.1:0")
    kubeconfig = tmp_path / "kubeconfig"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "netagent.lab.apiserver", "--listen", "127.0.0.1:0"),
        *("--listen-fd", str(listener.fileno()), "--kubeconfig", str(kubeconfig)),
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env={**os.environ, "NETAGENT_LAB_TOKEN": ""},
    )
    inherited = url_of(listener)
    listener.close()
    assert process.stdout is not None
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        urls = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
        assert urls[1] == inherited
        assert urls[0] in kubeconfig.read_text()
        assert kubeconfig.stat().st_mode & 0o777 == 0o600
        for url in urls:
            async with session.get(f"{url}/api/v1/namespaces/default") as answer:
                assert answer.status == 200
        watch = await session.get(f"{urls[0]}/api/v1/pods?watch=1")
        process.terminate()
        assert await watch.content.read() == b""
        assert await process.wait() == 0
        await process.stdout.read()
