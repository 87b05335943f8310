"""The kubelet stand-in: one process for all nodes of a lab.

`python -m netagent.lab.kubelet SETTINGS.json`. It registers the nodes, and for each pod of theirs makes a network
namespace, has it wired through CNI as a container runtime would, opens the pod's servers and reports its status.
What it must still undo is on disk before it is done, so that a stand-in that starts again picks up where the last was.
"""

import asyncio
import hashlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import orjson
from msgspec import Struct

from netagent.lab import pods, runtime
from netagent.lab.client import ApiFailure, Client, Object
from netagent.lab.namespaces import Inside, Sockets, open_netns, pin_new_netns, unpin_netns
from netagent.lab.plan import NodePlan, node_object, ready_condition
from netagent.lab.runtime import CniError, Sandbox
from netagent.lab.serve import ANY, Servers

log = logging.getLogger("netagent.lab.kubelet")

RETRY_FIRST_S = 0.2
RETRY_CAP_S = 5.0
"""Pauses after a failed sandbox. A real kubelet waits some seconds; tests do not want to."""
READY_POLL_S = 0.03
CNI_THREADS = 8
"""Plugin executions per node at a time."""
TRANSIENT = (CniError, ApiFailure, aiohttp.ClientError, OSError, TimeoutError)


class KubeletNode(Struct, frozen=True):
    """A node to stand in for."""

    plan: NodePlan
    pid: int
    """A process that lives in the node's namespaces, as this process's /proc shows it."""


class KubeletSettings(Struct, frozen=True):
    """What the process is told."""

    url: str
    state_dir: str
    """Holds one file per sandbox."""
    nodes: list[KubeletNode]


class Station:
    """One node, as the stand-in works on it."""

    def __init__(self, node: KubeletNode) -> None:
        self.plan = node.plan
        self.inside = Inside(node.pid, CNI_THREADS)
        self.netns = open_netns(f"/proc/{node.pid}/ns/net")
        self._conf_dir = Path(f"/proc/{node.pid}/root{runtime.CONF_DIR}")

    def has_network(self) -> bool:
        """A configuration list exists."""
        return any(entry.suffix in (".conflist", ".conf", ".json") for entry in self._conf_dir.iterdir())


class PodWorker:
    """Brings one pod to what its object asks for, one step at a time."""

    def __init__(self, kubelet: "Kubelet", station: Station, pod: Object, sandbox: Sandbox | None) -> None:
        self._kubelet = kubelet
        self._station = station
        self._sandbox = sandbox
        self._servers: Servers | None = None
        self._wake = asyncio.Event()
        self.pod = pod
        self.gone = False
        """The object is gone from the API server."""

    def update(self, pod: Object, *, gone: bool = False) -> None:
        """Take the object's new state."""
        self.pod = pod
        self.gone = self.gone or gone
        self._wake.set()

    async def run(self) -> None:
        """Until the pod is gone and nothing of it is left."""
        pause_s = RETRY_FIRST_S
        while True:
            self._wake.clear()
            try:
                if await self._step():
                    return
            except TRANSIENT as error:
                log.warning("%s: %s; next try in %.1f s", pods.full_name(self.pod), error, pause_s)
                await self._report(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_CAP_S)
            else:
                pause_s = RETRY_FIRST_S
                await self._wake.wait()

    async def _step(self) -> bool:
        """Do what is due now. True: done for good."""
        pod = self.pod
        if self.gone or pod["metadata"].get("deletionTimestamp"):
            await self._teardown()
            if not self.gone:
                await self._kubelet.remove(pod)
            return True
        if pods.phase(pod) in pods.FINISHED:
            await self._teardown()
        elif pods.annotation(pod, pods.HOLD) != "true":
            await self._bring_up(pod)
        return False

    async def _bring_up(self, pod: Object) -> None:
        if pods.is_host_network(pod):
            ips, netns = self._station.plan.ips, os.dup(self._station.netns)
            addresses = ips
        else:
            sandbox = await self._ensure_sandbox(pod)
            ips, addresses = sandbox.ips, ANY
            netns = await self._station.inside.run(open_netns, sandbox.netns)
        try:
            if self._servers is None:
                servers = Servers()
                await servers.open(self._kubelet.sockets, netns, pods.full_name(pod), pods.servings(pod), addresses)
                self._servers = servers
        finally:
            os.close(netns)
        if not pods.is_ready(pod) or pods.ips(pod) != ips:
            await self._kubelet.patch_status(pod, pods.running_status(pod, ips, self._station.plan.ips))

    async def _ensure_sandbox(self, pod: Object) -> Sandbox:
        if self._sandbox is not None and self._sandbox.result is not None:
            return self._sandbox
        if self._sandbox is not None:
            await self._teardown()
        meta = pod["metadata"]
        sandbox = self._sandbox = Sandbox(
            namespace=meta["namespace"],
            name=meta["name"],
            uid=meta["uid"],
            static_uid=pods.static_uid(pod),
            node=self._station.plan.name,
            container_id=hashlib.sha256(os.urandom(32)).hexdigest(),
            requested_ips=pods.requested_ips(pod),
            port_mappings=pods.port_mappings(pod),
        )
        # A DEL after a crash in the middle of ADD needs the configuration: it is on disk before ADD begins.
        sandbox.config = await self._station.inside.run(runtime.load_config)
        self._kubelet.save(sandbox)
        await self._station.inside.run(pin_new_netns, sandbox.netns)
        await self._station.inside.run(runtime.add, sandbox)
        self._kubelet.save(sandbox)
        return sandbox

    async def _teardown(self) -> None:
        if self._servers is not None:
            self._servers.close()
            self._servers = None
        if self._sandbox is not None:
            await self._station.inside.run(runtime.delete, self._sandbox)
            await self._station.inside.run(unpin_netns, self._sandbox.netns)
            self._kubelet.forget(self._sandbox)
            self._sandbox = None

    async def _report(self, error: BaseException) -> None:
        if isinstance(error, CniError) and not self.gone:
            await self._kubelet.post_event(self.pod, "FailedCreatePodSandBox", str(error))


class Kubelet:
    """The process: watches, and keeps one worker per pod."""

    def __init__(self, settings: KubeletSettings, client: Client) -> None:
        self._client = client
        self._state_dir = Path(settings.state_dir)
        self._stations = {node.plan.name: Station(node) for node in settings.nodes}
        self._workers: dict[str, PodWorker] = {}
        self._left: dict[str, Sandbox] = {}
        """Sandboxes of an earlier process that no listed pod has claimed yet, by pod UID."""
        self._tasks: asyncio.TaskGroup | None = None
        self.sockets = Sockets()

    async def run(self) -> None:
        """Until cancelled."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._state_dir.glob("*.json"):
            sandbox = msgspec.json.decode(path.read_bytes(), type=Sandbox)
            self._left[sandbox.uid] = sandbox
        async with asyncio.TaskGroup() as self._tasks:
            for station in self._stations.values():
                self._tasks.create_task(self._keep_node(station), name=station.plan.name)
            await self._client.watch("/api/v1/pods", self._seen, self._gone, self._listed)

    def _start(self, station: Station, pod: Object, sandbox: Sandbox | None) -> PodWorker:
        assert self._tasks is not None  # noqa: S101 - set before anything can arrive
        worker = PodWorker(self, station, pod, sandbox)
        uid = pod["metadata"]["uid"]
        self._workers[uid] = worker
        task = self._tasks.create_task(worker.run(), name=pods.full_name(pod))
        task.add_done_callback(lambda _: self._workers.pop(uid, None))
        return worker

    def _seen(self, pod: Object) -> None:
        station = self._stations.get(pod["spec"].get("nodeName") or "")
        if station is None:
            return
        uid = pod["metadata"]["uid"]
        if worker := self._workers.get(uid):
            worker.update(pod)
        else:
            self._start(station, pod, self._left.pop(uid, None))

    def _gone(self, pod: Object) -> None:
        if worker := self._workers.get(pod["metadata"]["uid"]):
            worker.update(pod, gone=True)

    async def _listed(self) -> None:
        """Pods that went away while no stand-in ran still have a sandbox to take down."""
        while self._left:
            _, sandbox = self._left.popitem()
            pod = {"metadata": {"namespace": sandbox.namespace, "name": sandbox.name, "uid": sandbox.uid}}
            self._start(self._stations[sandbox.node], pod, sandbox).update(pod, gone=True)

    async def _keep_node(self, station: Station) -> None:
        """Register the node and keep its Ready condition true to the network's state."""
        await self._until_done(lambda: self._register(station))
        reported = False
        while True:
            ready = station.has_network()
            if ready != reported:
                await self._until_done(partial(self._report_ready, station, ready))
                reported = ready
            await asyncio.sleep(READY_POLL_S if not ready else 1.0)

    async def _report_ready(self, station: Station, ready: bool) -> None:
        patch = {"status": {"conditions": [ready_condition(ready)]}}
        await self._client.patch(f"/api/v1/nodes/{station.plan.name}/status", patch, "strategic-merge")

    async def _register(self, station: Station) -> None:
        try:
            await self._client.create(node_object(station.plan))
        except ApiFailure as failure:
            if failure.status != 409:
                raise
            return
        # As for a real server, a POST does not set the status.
        status = {"status": node_object(station.plan)["status"]}
        await self._client.patch(f"/api/v1/nodes/{station.plan.name}/status", status, "strategic-merge")

    async def _until_done(self, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await work()
            except (ApiFailure, aiohttp.ClientError, OSError) as error:
                log.warning("API server: %s; next try in %.1f s", error, RETRY_FIRST_S)
                await asyncio.sleep(RETRY_FIRST_S)
            else:
                return

    async def patch_status(self, pod: Object, status: Object) -> None:
        """Merge into the pod's status."""
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": status}
        try:
            await self._client.patch(f"{_path(pod)}/status", patch, "strategic-merge")
        except ApiFailure as failure:
            # The pod was deleted meanwhile (or another one has its name): the watch will say so.
            if failure.status not in (404, 409):
                raise

    async def remove(self, pod: Object) -> None:
        """Delete the object for good, this very pod only."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        try:
            await self._client.request("DELETE", _path(pod), body)
        except ApiFailure as failure:
            if failure.status not in (404, 409):
                raise

    async def post_event(self, pod: Object, reason: str, message: str) -> None:
        """Best effort: an event that cannot be posted is lost."""
        try:
            await self._client.create(pods.failure_event(pod, reason, message))
        except (ApiFailure, aiohttp.ClientError, OSError) as error:
            log.warning("event about %s not posted: %s", pods.full_name(pod), error)

    def save(self, sandbox: Sandbox) -> None:
        """Remember what must be undone one day."""
        path = self._state_dir / f"{sandbox.uid}.json"
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(sandbox))
        draft.rename(path)

    def forget(self, sandbox: Sandbox) -> None:
        """It is undone."""
        (self._state_dir / f"{sandbox.uid}.json").unlink(missing_ok=True)


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


async def serve(settings: KubeletSettings) -> None:
    """Run until SIGTERM."""
    client = Client(settings.url)
    task = asyncio.create_task(Kubelet(settings, client).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped; the pods' network stays")
    finally:
        await client.close()


def main() -> None:
    """The process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = msgspec.convert(orjson.loads(Path(sys.argv[1]).read_bytes()), KubeletSettings)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
