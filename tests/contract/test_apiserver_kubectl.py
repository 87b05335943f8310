"""kubectl itself, on the embedded server and on a real one."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import yaml

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: main, image: "example/web:1", ports: [{containerPort: 80, name: http}]}
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: a}}}]
    ports: [{port: 80, protocol: TCP}]
"""
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: "


async def test_apply_get_and_delete(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    out = await kubectl("apply", *ns, "-f", "-", stdin=POD + "---" + POLICY)
    assert out == "pod/web created\nnetworkpolicy.networking.k8s.io/allow-web created\n"
    assert "pod/web unchanged" in await kubectl("apply", *ns, "-f", "-", stdin=POD)
    changed = POD.replace("web:1", "web:2")
    assert "pod/web configured" in await kubectl("apply", *ns, "-f", "-", stdin=changed)
    tree = yaml.safe_load(await kubectl("get", *ns, "pod", "web", "-o", "yaml"))
    assert tree["spec"]["containers"][0]["image"] == "example/web:2"
    tree = json.loads(await kubectl("get", *ns, "pods,networkpolicies", "-o", "json"))
    assert [item["kind"] for item in tree["items"]] == ["Pod", "NetworkPolicy"]
    assert "deleted" in await kubectl("delete", *ns, "netpol/allow-web", "pod/web", "--wait=true")
    assert "NotFound" in await kubectl("get", *ns, "pod", "web", fails=True)


async def test_tables_have_the_columns_of_the_kind(kubectl: Any, client: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    placed = POD + "  nodeName: node-7\n"
    await kubectl("create", *ns, "-f", "-", stdin=placed + "---" + POLICY)
    status = {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}
    state = {"name": "main", "ready": True, "restartCount": 0, "image": "i", "imageID": "", "state": {"running": {}}}
    await client.patch(
        f"/api/v1/namespaces/{namespace}/pods/web/status", {"status": {**status, "containerStatuses": [state]}}
    )
    header, row = (await kubectl("get", *ns, "pods", "-o", "wide")).splitlines()
    assert header.split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    cells = row.split()
    assert cells[:4] + cells[5:7] == ["web", "1/1", "Running", "0", "10.1.2.3", "node-7"]
    assert (await kubectl("get", *ns, "pods")).splitlines()[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    netpol = await kubectl("get", *ns, "netpol")
    assert netpol.splitlines()[0].split() == ["NAME", "POD-SELECTOR", "AGE"]
    assert netpol.splitlines()[1].split()[:2] == ["allow-web", "app=web"]
    everywhere = await kubectl("get", "pods", "-A", "-l", "app=web")
    assert any(line.split()[:2] == [namespace, "web"] for line in everywhere.splitlines())
    assert "No resources found" not in await kubectl("get", *ns, "pods", "-l", "app in (web)", "--show-labels")
    await kubectl("delete", *ns, "pod", "web", "--force", "--grace-period=0")


async def test_server_side_apply_creates_changes_and_drops(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)

    async def applied(data: str, *more: str, fails: bool = False) -> str:
        out: str = await kubectl("apply", *ns, "--server-side", *more, "-f", "-", stdin=MAP + data, fails=fails)
        return out

    async def stored() -> Any:
        return json.loads(await kubectl("get", *ns, "cm", "m", "-o", "json"))["data"]

    assert "serverside-applied" in await applied("{a: '1', b: '1'}")
    await applied("{a: '2', b: '1'}")
    assert await stored() == {"a": "2", "b": "1"}
    await applied("{a: '2'}")
    assert await stored() == {"a": "2"}
    assert "conflict" in await applied("{a: '3'}", "--field-manager=other", fails=True)
    await applied("{a: '3'}", "--field-manager=other", "--force-conflicts")
    assert await stored() == {"a": "3"}


async def test_server_side_apply_takes_over_from_client_side_apply(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    await kubectl("apply", *ns, "-f", "-", stdin=MAP + "{a: '1', b: '1'}")
    await kubectl("apply", *ns, "--server-side", "--force-conflicts", "-f", "-", stdin=MAP + "{a: '2'}")
    tree = json.loads(await kubectl("get", *ns, "cm", "m", "-o", "json"))
    assert tree["data"]["a"] == "2"


async def test_client_side_apply_drops_a_field(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    await kubectl("apply", *ns, "-f", "-", stdin=MAP + "{a: '1', b: '1'}")
    await kubectl("apply", *ns, "-f", "-", stdin=MAP + "{a: '1'}")
    assert json.loads(await kubectl("get", *ns, "cm", "m", "-o", "json"))["data"] == {"a": "1"}


async def test_label_annotate_and_three_kinds_of_patch(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    await kubectl("create", *ns, "-f", "-", stdin=POD)
    await kubectl("label", *ns, "pod", "web", "tier=front")
    assert "already has a value" in await kubectl("label", *ns, "pod", "web", "tier=back", fails=True)
    await kubectl("label", *ns, "pod", "web", "tier=back", "--overwrite")
    await kubectl("label", *ns, "pod", "web", "app-")
    await kubectl("annotate", *ns, "pod", "web", "note=hello")
    strategic = '{"spec":{"containers":[{"name":"main","image":"example/web:2"}]}}'
    await kubectl("patch", *ns, "pod", "web", "-p", strategic)
    await kubectl("patch", *ns, "pod", "web", "--type=merge", "-p", '{"metadata":{"labels":{"m":"1"}}}')
    operation = '[{"op":"add","path":"/metadata/labels/j","value":"1"}]'
    await kubectl("patch", *ns, "pod", "web", "--type=json", "-p", operation)
    tree = json.loads(await kubectl("get", *ns, "pod", "web", "-o", "json"))
    assert tree["metadata"]["labels"] == {"tier": "back", "m": "1", "j": "1"}
    assert tree["metadata"]["annotations"]["note"] == "hello"
    assert tree["spec"]["containers"][0]["ports"][0]["containerPort"] == 80


async def test_describe(kubectl: Any, client: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    node = f"node-{namespace}"
    addresses = [{"type": "InternalIP", "address": "172.30.0.12"}]
    await client.post("/api/v1/nodes", {"metadata": {"name": node}, "status": {"addresses": addresses}})
    try:
        await kubectl("create", *ns, "-f", "-", stdin=POD + f"  nodeName: {node}\n---" + POLICY)
        pod = json.loads(await kubectl("get", *ns, "pod", "web", "-o", "json"))["metadata"]
        involved = {"kind": "Pod", "namespace": namespace, "name": "web", "uid": pod["uid"]}
        event = {"metadata": {"name": "e"}, "involvedObject": involved, "reason": "Wired", "message": "has an address"}
        assert (await client.post(f"/api/v1/namespaces/{namespace}/events", event)).status == 201
        shown = await kubectl("describe", *ns, "pod", "web")
        assert "app=web" in shown
        assert "has an address" in shown
        policy = await kubectl("describe", *ns, "netpol", "allow-web")
        assert "PodSelector:     app=web" in policy
        assert "To Port: 80/TCP" in policy
        described = await kubectl("describe", "node", node)
        assert "172.30.0.12" in described
        assert f"{namespace} " in described
        assert "Wired" in await kubectl("get", *ns, "events")
        await kubectl("delete", *ns, "pod", "web", "--force", "--grace-period=0")
    finally:
        await client.delete(f"/api/v1/nodes/{node}")


async def test_api_resources_and_versions(kubectl: Any, api: Any) -> None:
    listed = await kubectl("api-resources", "--no-headers")
    names = {line.split()[0] for line in listed.splitlines()}
    assert {"pods", "nodes", "namespaces", "networkpolicies", "leases", "customresourcedefinitions"} <= names
    assert "networking.k8s.io/v1" in await kubectl("api-versions")
    assert "ok" in await kubectl("get", "--raw", "/readyz")


async def test_get_watch_prints_what_happens(
    kubectl: Any, client: Any, api: Any, namespace: str, tmp_path: Path
) -> None:
    await kubectl("create", "-n", namespace, "-f", "-", stdin=POD)
    process = await asyncio.create_subprocess_exec(
        *("kubectl", "get", "pods", "-n", namespace, "-w", "--show-labels"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "KUBECONFIG": str(api.kubeconfig), "HOME": str(tmp_path)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).split()[0] == b"NAME"
            assert (await process.stdout.readline()).split()[0] == b"web"
            await client.patch(f"/api/v1/namespaces/{namespace}/pods/web", {"metadata": {"labels": {"seen": "yes"}}})
            assert b"seen=yes" in await process.stdout.readline()
    finally:
        process.terminate()
        await process.communicate()


async def test_complaints_reach_the_user(kubectl: Any, namespace: str) -> None:
    ns = ("-n", namespace)
    await kubectl("create", *ns, "-f", "-", stdin=POD)
    assert "AlreadyExists" in await kubectl("create", *ns, "-f", "-", stdin=POD, fails=True)
    bad = POLICY.replace("port: 80", "port: 99999")
    complaint = await kubectl("apply", *ns, "-f", "-", stdin=bad, fails=True)
    assert "spec.ingress[0].ports[0].port: Invalid value: 99999" in complaint
    stale = '{"metadata":{"resourceVersion":"1"}}'
    conflict = await kubectl("patch", *ns, "pod", "web", "--type=merge", "-p", stale, fails=True)
    assert "the object has been modified" in conflict
    typo = POLICY.replace("podSelector: {matchLabels", "podSelektor: {matchLabels")
    assert "podSelektor" in await kubectl("apply", *ns, "-f", "-", stdin=typo, fails=True)


async def test_big_lists_come_in_chunks(kubectl: Any, client: Any, namespace: str) -> None:
    for number in range(12):
        labels = {"chunk": "yes"}
        body = {"metadata": {"name": f"m-{number:02}", "labels": labels}}
        await client.post(f"/api/v1/namespaces/{namespace}/configmaps", body)
    out = await kubectl("get", "cm", "-n", namespace, "-l", "chunk", "--chunk-size=5", "-o", "name")
    assert out.split() == [f"configmap/m-{number:02}" for number in range(12)]


async def test_server_dry_run(kubectl: Any, namespace: str) -> None:
    out = await kubectl("apply", "-n", namespace, "--dry-run=server", "-f", "-", stdin=POD)
    assert "created (server dry run)" in out
    assert "NotFound" in await kubectl("get", "-n", namespace, "pod", "web", fails=True)


async def test_imperative_create(kubectl: Any, namespace: str) -> None:
    """These commands send protobuf where the client is new enough."""
    ns = ("-n", namespace)
    await kubectl("create", *ns, "configmap", "c", "--from-literal=a=b")
    await kubectl("create", *ns, "secret", "generic", "s", "--from-literal=a=b")
    await kubectl("create", *ns, "serviceaccount", "robot")
    await kubectl("create", *ns, "service", "clusterip", "web", "--tcp=80:8080")
    assert await kubectl("get", *ns, "configmap", "c", "-o", "jsonpath={.data.a}") == "b"
    assert await kubectl("get", *ns, "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
    assert await kubectl("get", *ns, "service", "web", "-o", "jsonpath={.spec.ports[0].targetPort}") == "8080"
    assert "AlreadyExists" in await kubectl("create", "namespace", namespace, fails=True)
