"""Reflectors, Events and node conditions against API servers, also across outages."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from netagent.agent.network.lease import LeaseKeeper
from netagent.config import ApiConfig, NetworkConfig
from netagent.kube.client import ApiClient, ApiError, connect
from netagent.kube.events import EventWriter, Note, set_network_available
from netagent.kube.reflector import Reflector, Resource, resources
from netagent.records import Change, Key, Kind, Listed, Node, Pod, Removed, Upserted
from support.waiting import running, until

DEADLINE_S = 40.0


class Relay:
    """A TCP relay in front of the API server that can be cut and mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close the listener and every connection, with resets where data is in flight."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
        self._writers -= {writer, far_writer}

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


@pytest.fixture
async def relay(api: Any) -> AsyncIterator[Relay]:
    parts = urlsplit(api.url)
    relay = Relay(parts.hostname or "", parts.port or 0)
    await relay.mend()
    yield relay
    await relay.cut()


@pytest.fixture
async def settings(api: Any, relay: Relay, tmp_path: Path) -> ApiConfig:
    """A kubeconfig that goes through the relay."""
    tree = yaml.safe_load(Path(api.kubeconfig).read_text())  # noqa: ASYNC240
    cluster = tree["clusters"][0]["cluster"]
    cluster["server"] = f"{urlsplit(api.url).scheme}://127.0.0.1:{relay.port}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(tree))
    return ApiConfig(kubeconfig=str(path), backoff_cap_s=0.5, page_size=3)


@pytest.fixture
async def access(settings: ApiConfig) -> AsyncIterator[ApiClient]:
    async with connect(settings) as access:
        yield access


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def pod(name: str, **labels: str) -> dict[str, Any]:
    container = {"name": "main", "image": "example/web:1", "ports": [{"containerPort": 80, "name": "http"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container]}}


class Seen:
    """What a reflector has delivered of one namespace's pods."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.changes: list[Change] = []

    def emit(self, change: Change) -> None:
        match change:
            case Upserted(_, record) if record.key.namespace != self.namespace:
                return
            case Removed(_, key) if key.namespace != self.namespace:
                return
        self.changes.append(change)

    def said(self) -> list[str]:
        words = {Upserted: "+", Removed: "-"}
        return [
            "listed"
            if isinstance(change, Listed)
            else words[type(change)] + (change.record.key.name if isinstance(change, Upserted) else change.key.name)
            for change in self.changes
        ]

    async def until(self, *expected: str) -> None:
        await until(lambda: self.said() == list(expected), lambda: f"{self.said()} is not {list(expected)}")


def pods(namespace: str) -> Resource:
    return Resource(Kind.POD, f"/api/v1/namespaces/{namespace}/pods")


async def test_a_list_in_pages_then_what_happens(
    client: Any, access: ApiClient, settings: ApiConfig, namespace: str, stack: AsyncExitStack
) -> None:
    path = pods(namespace).path
    for index in range(7):
        assert (await client.post(path, pod(f"p{index}"))).status == 201
    seen = Seen(namespace)
    reflector = Reflector(access, pods(namespace), seen.emit, settings)
    await stack.enter_async_context(running(reflector.run()))
    listed = [*(f"+p{index}" for index in range(7)), "listed"]
    await seen.until(*listed)
    await client.patch(f"{path}/p0", {"metadata": {"labels": {"app": "web"}}})
    await seen.until(*listed, "+p0")
    change = seen.changes[-1]
    assert isinstance(change, Upserted)
    assert isinstance(change.record, Pod)
    assert change.record.labels == {"app": "web"}
    assert [(port.name, port.number, port.protocol) for port in change.record.ports] == [("http", 80, "TCP")]
    await client.delete(f"{path}/p1?gracePeriodSeconds=0")
    await until(lambda: seen.said()[-1] == "-p1", seen.said)
    assert reflector.status.lists == 1


async def test_all_kinds_are_watched_over_the_whole_cluster(
    client: Any, access: ApiClient, settings: ApiConfig, namespace: str, stack: AsyncExitStack
) -> None:
    changes: list[Change] = []
    for resource in resources(namespace).values():
        await stack.enter_async_context(running(Reflector(access, resource, changes.append, settings).run()))
    await until(lambda: sum(isinstance(change, Listed) for change in changes) == 5, changes)
    policy = {"metadata": {"name": "np"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}
    answer = await client.post(f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies", policy)
    assert answer.status == 201, answer
    wanted = {(Kind.NAMESPACE, Key("", namespace)), (Kind.NETWORK_POLICY, Key(namespace, "np"))}

    def found() -> set[tuple[Kind, Key]]:
        return {(change.kind, change.record.key) for change in changes if isinstance(change, Upserted)}

    await until(lambda: wanted <= found(), found)


async def test_after_an_outage_the_watch_resumes_without_a_list(  # noqa: PLR0917 - fixtures
    client: Any, access: ApiClient, settings: ApiConfig, namespace: str, relay: Relay, stack: AsyncExitStack
) -> None:
    path = pods(namespace).path
    await client.post(path, pod("a"))
    seen = Seen(namespace)
    reflector = Reflector(access, pods(namespace), seen.emit, settings)
    await stack.enter_async_context(running(reflector.run()))
    await seen.until("+a", "listed")
    for round_ in range(3):
        await until(lambda: reflector.status.connected, "connected")
        await relay.cut()
        await client.post(path, pod(f"b{round_}"))
        await until(lambda: reflector.status.last_error, "the failure is shown")
        await relay.mend()
    await seen.until("+a", "listed", "+b0", "+b1", "+b2")
    assert reflector.status.lists == 1
    await until(lambda: reflector.status.last_error == "", "the failure is over")


async def test_history_lost_while_away_is_made_good_by_a_difference(
    embedded: Any, embedded_api: Any, embedded_namespace: str, stack: AsyncExitStack
) -> None:
    settings = ApiConfig(kubeconfig=str(embedded_api.kubeconfig), backoff_cap_s=0.5, page_size=3)
    path = pods(embedded_namespace).path
    for name in ("same", "changed", "gone"):
        await embedded.post(path, pod(name))
    access = await stack.enter_async_context(connect(settings))
    seen = Seen(embedded_namespace)
    reflector = Reflector(access, pods(embedded_namespace), seen.emit, settings)
    async with running(reflector.run()):
        await until(lambda: reflector.status.connected, "connected")
    start = seen.said()
    await embedded.patch(f"{path}/changed", {"metadata": {"labels": {"v": "2"}}})
    await embedded.delete(f"{path}/gone?gracePeriodSeconds=0")
    await embedded.post(path, pod("new"))
    assert (await embedded.post("/lab/compact", {})).status < 300
    async with running(reflector.run()):
        await until(lambda: reflector.status.lists == 2 and reflector.status.connected, lambda: reflector.status)
    assert seen.said()[len(start) :] == ["+changed", "+new", "-gone"]


async def test_a_keeper_outlives_an_outage_and_keeps_its_subnet(
    client: Any, access: ApiClient, namespace: str, relay: Relay, stack: AsyncExitStack
) -> None:
    node = f"{namespace}-n1"
    await client.post("/api/v1/nodes", {"metadata": {"name": node}})
    network = NetworkConfig(lease_namespace=namespace, lease_duration_s=3, takeover_grace_s=4.0)
    told: list[Any] = []
    await relay.cut()
    keeper = LeaseKeeper(access, network, node, on_change=told.append)
    await stack.enter_async_context(running(keeper.run()))
    await until(lambda: "no answer" in keeper.problem, "the keeper says what it waits for")
    await relay.mend()
    await until(lambda: not keeper.problem, lambda: keeper.problem)
    held = keeper.held
    await relay.cut()
    await until(lambda: keeper.allocatable == (), "past its duration nothing may be given out any more")
    assert keeper.problem
    assert [lease.subnet for lease in keeper.held] == [lease.subnet for lease in held], "its pods go on"
    await relay.mend()
    await until(lambda: not keeper.problem, lambda: keeper.problem)
    assert len(told) == 1
    await client.delete(f"/api/v1/nodes/{node}")


async def test_errors_say_what_was_refused_and_never_the_token(api: Any, access: ApiClient, namespace: str) -> None:
    with pytest.raises(ApiError) as caught:
        await access.get_json(f"/api/v1/namespaces/{namespace}/pods/nobody", dict)
    assert caught.value.not_found
    assert caught.value.reason == "NotFound"
    assert f"GET /api/v1/namespaces/{namespace}/pods/nobody" in str(caught.value)
    body = {"metadata": {"name": "a"}, "data": {}}
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    created = await access.create(maps, body, dict)
    with pytest.raises(ApiError) as caught:
        await access.create(maps, body, dict)
    assert caught.value.already_exists
    assert not caught.value.conflict
    changed = await access.patch(f"{maps}/a", {"data": {"k": "1"}}, dict)
    assert changed["data"] == {"k": "1"}
    with pytest.raises(ApiError) as caught:
        await access.update(f"{maps}/a", created, dict)
    assert caught.value.conflict
    with pytest.raises(ApiError) as caught:
        await access.delete(f"{maps}/a", resource_version=created["metadata"]["resourceVersion"])
    assert caught.value.conflict
    await access.delete(f"{maps}/a", uid=created["metadata"]["uid"])
    assert api.token not in str(caught.value)


async def test_an_event_is_posted_once_and_then_counted(
    client: Any, access: ApiClient, namespace: str, stack: AsyncExitStack
) -> None:
    now_s = time.time()
    writer = EventWriter(access, "n1", clock=lambda: now_s)
    await stack.enter_async_context(running(writer.run()))
    path = f"/api/v1/namespaces/{namespace}/events"
    note = Note(Kind.NETWORK_POLICY, Key(namespace, "np"), "uid-1", "PolicyUnreadable", "spec: no such field")

    async def counts() -> list[int]:
        return [item["count"] for item in (await client.get(path)).tree["items"]]

    async def reaches(expected: list[int]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await counts() != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    writer.post(note)
    await reaches([1])
    for _ in range(4):
        writer.post(note)
    await asyncio.sleep(0.2)
    assert await counts() == [1], "said once within ten minutes"
    now_s += 601
    writer.post(note)
    await reaches([6])
    item = (await client.get(path)).tree["items"][0]
    assert item["involvedObject"] == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "name": "np",
        "namespace": namespace,
        "uid": "uid-1",
    }
    assert (item["type"], item["reason"], item["source"]) == (
        "Warning",
        "PolicyUnreadable",
        {"component": "netagent", "host": "n1"},
    )
    await client.delete(f"{path}/{item['metadata']['name']}")
    now_s += 601
    writer.post(note)
    await reaches([1])


async def test_events_wait_for_the_server_and_a_refused_one_holds_up_nothing(
    client: Any, access: ApiClient, namespace: str, relay: Relay, stack: AsyncExitStack
) -> None:
    writer = EventWriter(access, "n1")
    await stack.enter_async_context(running(writer.run()))
    await relay.cut()
    writer.post(Note(Kind.POD, Key(f"{namespace}-absent", "p"), "", "Nowhere", "no such namespace"))
    writer.post(Note(Kind.POD, Key(namespace, "p"), "", "Somewhere", "a message"))
    for index in range(100):
        writer.post(Note(Kind.POD, Key(namespace, "p"), "", "Flood", f"message {index}"))
    assert writer.dropped == 38
    await relay.mend()

    async def reasons() -> set[str]:
        answer = await client.get(f"/api/v1/namespaces/{namespace}/events")
        return {item["reason"] for item in answer.tree["items"]}

    async with asyncio.timeout(DEADLINE_S):
        while await reasons() != {"Somewhere", "Flood"}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert writer.dropped == 39


async def test_network_unavailable_is_written_only_when_it_differs(
    client: Any, access: ApiClient, namespace: str
) -> None:
    name = f"{namespace}-n1"
    await client.post("/api/v1/nodes", {"metadata": {"name": name}})
    path = f"/api/v1/nodes/{name}"
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    await client.patch(f"{path}/status", {"status": {"conditions": [ready]}})

    async def conditions() -> dict[str, Any]:
        return {item["type"]: item for item in (await client.get(path)).tree["status"]["conditions"]}

    assert await set_network_available(access, name, False, "NetagentStarting", "no subnet yet", now_s=1000.0)
    first = await conditions()
    assert first["NetworkUnavailable"]["status"] == "True"
    assert first["Ready"]["status"] == "True"
    assert not await set_network_available(access, name, False, "NetagentStarting", "no subnet yet", now_s=2000.0)
    assert await set_network_available(access, name, True, "NetagentIsUp", "pods have routes", now_s=3000.0)
    second = (await conditions())["NetworkUnavailable"]
    assert (second["status"], second["reason"]) == ("False", "NetagentIsUp")
    assert second["lastTransitionTime"] == "1970-01-01T00:50:00Z"
    await client.delete(path)


async def test_node_records(
    client: Any, access: ApiClient, settings: ApiConfig, namespace: str, stack: AsyncExitStack
) -> None:
    name = f"{namespace}-n1"
    node = {"metadata": {"name": name}, "spec": {"podCIDRs": ["10.9.0.0/24"], "podCIDR": "10.9.0.0/24"}}
    assert (await client.post("/api/v1/nodes", node)).status == 201
    addresses = [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": name}]
    await client.patch(f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses}})
    changes: list[Change] = []
    resource = resources("kube-system")[Kind.NODE]
    await stack.enter_async_context(running(Reflector(access, resource, changes.append, settings).run()))
    await until(lambda: any(isinstance(change, Listed) for change in changes), changes)
    found = [
        change.record
        for change in changes
        if isinstance(change, Upserted) and isinstance(change.record, Node) and change.record.key.name == name
    ]
    assert (found[-1].addresses, found[-1].pod_cidrs) == (("192.0.2.1",), ("10.9.0.0/24",))
    await client.delete(f"/api/v1/nodes/{name}")
