"""The cluster on one machine: `async with Lab(Settings(nodes=3)) as lab: ...`.

An outside namespace holds the underlay bridge; nodes are namespaces on it, each with a real agent; the API server
listens on the bridge and on this process's own loopback; one kubelet stand-in serves all nodes. Everything ends with
this process, whichever way it ends.

The API server asks nobody for credentials: kubectl sends none over plain HTTP. Whoever may connect to this machine's
loopback may change the lab's objects.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import orjson

from netagent.disk.state import SubnetMemory
from netagent.lab import plan, pods
from netagent.lab.client import ApiFailure, Client, Object
from netagent.lab.flow import Flow
from netagent.lab.kubelet import KubeletNode, KubeletSettings
from netagent.lab.namespaces import Sockets, bound, new_netns, open_netns
from netagent.lab.places import Place, pod_place
from netagent.lab.plan import NodePlan, Serving, Settings
from netagent.lab.probe import TIMEOUT_S, Target, Verdict, probe
from netagent.lab.processes import HolderSpec, LabError, Process, Spawner, clean_environment
from netagent.lab.serve import Servers

READY_TIMEOUT_S = 60.0
POLL_S = 0.03
RESTART_PAUSE_S = 0.5
PROBES_AT_ONCE = 500
LOG_TAIL_BYTES = 2000

_numbers = itertools.count()

Matrix = dict[tuple[str, str], Verdict]
"""(source, destination) -> what happened."""


def base_directory() -> Path:
    """Where labs live, one directory each."""
    base = os.environ.get("NETAGENT_LAB_DIR")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/run", "netagent-lab")


def claim(name: str) -> tuple[Path, int]:
    """Make the lab's directory and lock it: (path, locked file descriptor). Raises LabError where it is running.

    What a lab that died left there is removed.
    """
    directory = base_directory() / name
    if not name or "/" in name or name.startswith("."):
        raise LabError(f"{name!r} is no name for a lab. Accepted: one path component, e.g. lab.")
    base_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise LabError(
                f"lab {name!r} is running already. Nothing was started; end it by `netagent lab down --name {name}` "
                "or choose another --name."
            ) from None
        if [entry.name for entry in directory.iterdir()] == ["lock"]:
            return directory, lock
        shutil.rmtree(directory)
        os.close(lock)


class LabNode:
    """One node of a running lab."""

    def __init__(self, node: NodePlan, holder: Process, log: Path) -> None:
        self.plan = node
        self.holder = holder
        self.log = log
        self.agent: Process | None = None
        self.wanted = False
        """Its agent is started again when it exits."""
        self.keeper: asyncio.Task[None] | None = None
        self.netns = open_netns(f"/proc/{holder.pid}/ns/net")

    def path(self, inside: str) -> Path:
        """A file of the node, as we reach it."""
        return Path(f"/proc/{self.holder.pid}/root{inside}")

    @property
    def place(self) -> Place:
        """The node as an endpoint."""
        net = f"/proc/{self.holder.pid}/ns/net"
        return Place(name=f"node:{self.plan.index}", net=net, ips=self.plan.ips, node_pid=self.holder.pid, binds=True)


class Lab:
    """A running cluster."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.name = self.settings.name or f"lab-{os.getpid()}-{next(_numbers)}"
        self.nodes: list[LabNode] = []
        self.externals: dict[str, Place] = {}
        self.url = ""
        """The API server, from this process's network namespace."""
        self.sockets: Sockets
        self.client: Client
        self.directory: Path
        self.outside: Process
        self._lock = -1
        self._spawner: Spawner
        self._cleanup = contextlib.AsyncExitStack()
        self._essential: list[Process] = []
        self._served: dict[str, Servers] = {}
        self._kubelet: Process | None = None

    async def __aenter__(self) -> Self:
        """Up: all nodes Ready. Raises LabError; then nothing is left."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # Start and stop.

    async def _start(self) -> None:
        self.directory, self._lock = claim(self.name)
        self._cleanup.callback(self._let_go)
        (self.directory / "logs").mkdir()
        self.sockets = Sockets()
        self._cleanup.callback(self.sockets.close)
        self._spawner = Spawner()
        self._cleanup.push_async_callback(self._spawner.close)
        self.outside = await self._spawner.hold(
            HolderSpec(hostname="outside", init=True, directory=str(self.directory))
        )
        outside_ns = open_netns(f"/proc/{self.outside.pid}/ns/net")
        self._cleanup.callback(os.close, outside_ns)
        await self._start_api_server(outside_ns)
        plans = [plan.node_plan(self.settings, index) for index in range(self.settings.nodes)]
        _, *holders = await asyncio.gather(
            self._ip(self.outside.pid, plan.outside_script(self.settings)), *(self._hold(node) for node in plans)
        )
        self.nodes = [
            LabNode(node, holder, self.directory / "logs" / f"{node.name}.log")
            for node, holder in zip(plans, holders, strict=True)
            if holder is not None
        ]
        cables = [line for node in self.nodes for line in plan.plug_script(node.plan.name, str(node.holder.pid))]
        await self._ip(self.outside.pid, cables)
        await asyncio.gather(*(self._ip(node.holder.pid, plan.node_script(node.plan, ())) for node in self.nodes))
        await self.start_kubelet()
        if self.settings.agents:
            for node in self.nodes:
                await self._prepare_agent(node)
                await self.start_agent(node.plan.index)
            await self.nodes_ready()

    async def stop(self) -> None:
        """Down: nothing of the lab is left."""
        keepers = [node.keeper for node in self.nodes if node.keeper is not None]
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for servers in self._served.values():
            servers.close()
        for node in self.nodes:
            os.close(node.netns)
        for place in self.externals.values():
            os.close(int(place.net.rpartition("/")[2]))
        self.nodes, self.externals, self._served, self._essential = [], {}, {}, []
        await self._cleanup.aclose()

    def _let_go(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)

    async def _hold(self, node: NodePlan) -> Process:
        return await self._spawner.hold(HolderSpec(hostname=node.name, node=True, plugins=self.settings.plugins))

    async def _start_api_server(self, outside_ns: int) -> None:
        own = bound(("127.0.0.1", 0), kind=1)
        family_any = "::" if 6 in self.settings.families else "0.0.0.0"
        inner = await self.sockets.listen(outside_ns, (family_any, plan.API_PORT))
        self.url = f"http://127.0.0.1:{own.getsockname()[1]}"
        self.kubeconfig.write_bytes(orjson.dumps(plan.kubeconfig(self.url)))
        self.kubeconfig.chmod(0o600)
        fds = (own.fileno(), inner.fileno())
        argv = [sys.executable, "-m", "netagent.lab.apiserver"]
        for fd in fds:
            argv += ["--listen-fd", str(fd)]
        log = self.directory / "logs" / "apiserver.log"
        process = await self._spawner.spawn("apiserver", argv, log=log, pass_fds=fds)
        self._essential.append(process)
        # The server accepts what has queued up on these sockets once it runs: nobody has to wait for it.
        own.close()
        inner.close()
        self.client = Client(self.url)
        self._cleanup.push_async_callback(self.client.close)

    async def start_kubelet(self) -> None:
        """Start the kubelet stand-in."""
        url = f"http://{plan.OUTSIDE_IPS[0]}:{plan.API_PORT}"
        nodes = [KubeletNode(node.plan, node.holder.pid) for node in self.nodes]
        settings = KubeletSettings(url, str(self.directory / "sandboxes"), nodes)
        path = self.directory / "kubelet.json"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(settings))
        argv = [sys.executable, "-m", "netagent.lab.kubelet", str(path)]
        log = self.directory / "logs" / "kubelet.log"
        self._kubelet = await self._spawner.spawn("kubelet", argv, log=log, net_of=self.outside.pid)
        self._essential.append(self._kubelet)

    async def kill_kubelet(self) -> None:
        """kill -9 the kubelet stand-in; pods keep their network."""
        if self._kubelet is not None:
            self._essential.remove(self._kubelet)
            await self._kubelet.stop()
            self._kubelet = None

    async def _prepare_agent(self, node: LabNode) -> None:
        """Files of a node as an installation and an earlier run would have left them."""
        kubeconfig = plan.kubeconfig(f"http://{plan.OUTSIDE_IPS[0]}:{plan.API_PORT}")
        node.path("/run/lab/kubeconfig").write_bytes(orjson.dumps(kubeconfig))
        config = plan.agent_config(self.settings, node.plan, "/run/lab/kubeconfig")
        node.path("/run/lab/agent.json").write_bytes(orjson.dumps(config))
        # An agent asks for the subnets it held last: so node K gets the K-th subnet.
        SubnetMemory(node.path("/var/lib/netagent")).save(node.plan.subnets)

    async def start_agent(self, index: int) -> None:
        """Start the agent of node `index`, and again whenever it exits by itself."""
        node = self.nodes[index]
        if node.wanted:
            return
        node.wanted = True
        started = asyncio.Event()
        node.keeper = asyncio.create_task(self._keep_agent(node, started), name=f"agent of {node.plan.name}")
        await started.wait()

    async def _keep_agent(self, node: LabNode, started: asyncio.Event) -> None:
        argv = [sys.executable, "-m", "netagent", "agent", "--config", "/run/lab/agent.json"]
        pid = node.holder.pid
        while node.wanted:
            node.agent = await self._spawner.spawn(
                f"agent of {node.plan.name}", argv, log=node.log, net_of=pid, mnt_of=pid
            )
            started.set()
            await asyncio.shield(node.agent.exited)
            if node.wanted:
                await asyncio.sleep(RESTART_PAUSE_S)

    async def stop_agent(self, index: int, number: signal.Signals = signal.SIGTERM) -> int:
        """End the agent of node `index` by a signal and leave it down; its exit status."""
        node = self.nodes[index]
        node.wanted = False
        if node.agent is None or node.keeper is None:
            return 0
        node.agent.signal(number)
        await node.keeper
        return node.agent.exited.result()

    async def _ip(self, pid: int, lines: Sequence[str]) -> None:
        """Run `ip` commands in the network namespace of a process. Raises LabError."""
        if not lines:
            return
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net=/proc/{pid}/ns/net", "--", "ip", "-batch", "-"),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await process.communicate("\n".join(lines).encode() + b"\n")
        if process.returncode != 0:
            raise LabError(f"the lab's underlay could not be made: ip: {error.decode().strip()}")

    # Externals and servers.

    async def add_external(self, ip: str, servings: Iterable[Serving] = ()) -> Place:
        """A host outside the cluster that pods reach, and that reaches pods, without address translation."""
        netns = new_netns()
        place = Place(name=f"external:{ip}", net=f"/proc/{os.getpid()}/fd/{netns}", ips=(ip,))
        self.externals[ip] = place
        await self._ip(self.outside.pid, plan.plug_script(f"ext-{len(self.externals)}", place.net))
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={place.net}", "--", "ip", "-batch", "-"), stdin=asyncio.subprocess.PIPE
        )
        script = plan.external_script(ip, [node.plan for node in self.nodes])
        await process.communicate("\n".join(script).encode() + b"\n")
        if process.returncode != 0:
            raise LabError(f"external {ip} could not be made (ip's error is above)")
        for node in self.nodes:
            await self._ip(node.holder.pid, plan.to_external_script(node.plan, ip))
        await self.serve(place, servings)
        return place

    async def serve(self, place: Place, servings: Iterable[Serving]) -> None:
        """Listen at a node or an external, instead of what listened there before."""
        if place.name in self._served:
            self._served.pop(place.name).close()
        servers = self._served[place.name] = Servers()
        netns = place.open()
        try:
            await servers.open(self.sockets, netns, place.name, servings, place.ips)
        finally:
            os.close(netns)

    # The API.

    @property
    def kubeconfig(self) -> Path:
        """For kubectl in this process's network namespace."""
        return self.directory / "kubeconfig"

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run the real kubectl; its output. Raises LabError with its error text."""
        environment = {**clean_environment(), "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory)}
        process = await asyncio.create_subprocess_exec(
            *("kubectl", f"--cache-dir={self.directory}/kubectl", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        output, error = await process.communicate(stdin.encode())
        if process.returncode != 0:
            raise LabError(f"kubectl {' '.join(arguments)}: {error.decode().strip()}")
        return output.decode()

    async def create(self, *objects: Object) -> None:
        """POST objects, one after the other."""
        for obj in objects:
            await self.client.create(obj)

    async def put(self, *objects: Object) -> None:
        """Create objects or replace them as a whole."""
        for obj in objects:
            await self.client.put(obj)

    async def delete(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        """DELETE one object; nothing happens where it is gone."""
        try:
            await self.client.request("DELETE", await self.client.path(api_version, kind, namespace, name))
        except ApiFailure as failure:
            if failure.status != 404:
                raise

    async def pods(self) -> list[Object]:
        """All pods."""
        return await self.client.list("/api/v1/pods")

    async def nodes_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until every node is Ready. Raises LabError."""

        async def missing() -> str:
            ready = {
                node["metadata"]["name"]
                for node in await self.client.list("/api/v1/nodes")
                for condition in (node.get("status") or {}).get("conditions") or ()
                if condition["type"] == "Ready" and condition["status"] == "True"
            }
            return ", ".join(node.plan.name for node in self.nodes if node.plan.name not in ready)

        await self._until_none(missing, "nodes are not Ready", timeout_s)

    async def pods_ready(self, timeout_s: float = READY_TIMEOUT_S) -> list[Object]:
        """Wait until every pod runs, is finished or is held, and none is terminating; all pods. Raises LabError."""

        async def missing() -> str:
            waiting = [
                pods.full_name(pod)
                for pod in await self.pods()
                if pod["metadata"].get("deletionTimestamp")
                or not (
                    pods.is_ready(pod) or pods.phase(pod) in pods.FINISHED or pods.annotation(pod, pods.HOLD) == "true"
                )
            ]
            return ", ".join(waiting)

        await self._until_none(missing, "pods are not settled", timeout_s)
        return await self.pods()

    async def _until_none(self, missing: Callable[[], Awaitable[str]], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                names = await missing()
            except aiohttp.ClientError as error:
                names = f"not known, {error}"
            if not names:
                return
            for process in self._essential:
                if not process.running:
                    raise LabError(f"the lab's {process.name} has exited. {self.log_tail(process.name)}")
            if time.monotonic() > deadline:
                raise LabError(f"{what} after {timeout_s:.0f} s: {names}. {self._log_tails()}")
            await asyncio.sleep(POLL_S)

    def log_tail(self, name: str) -> str:
        """The end of one process's log: `apiserver`, `kubelet` or a node's name."""
        path = self.directory / "logs" / f"{name}.log"
        text = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if path.exists() else ""
        return f"--- {name}.log ---\n{text}"

    def _log_tails(self) -> str:
        return "\n".join(self.log_tail(path.stem) for path in sorted((self.directory / "logs").iterdir()))

    # Traffic.

    async def places(self) -> dict[str, Place]:
        """Every endpoint of this moment by name: nodes, externals, pods that are not finished and have an address."""
        found = {place.name: place for place in (*(node.place for node in self.nodes), *self.externals.values())}
        by_name = {node.plan.name: (node.holder.pid, node.place) for node in self.nodes}
        for pod in await self.pods():
            place = pod_place(pod, by_name)
            if place is not None and place.ips and pods.phase(pod) not in pods.FINISHED:
                found[place.name] = place
        return found

    async def place(self, name: str) -> Place:
        """One endpoint: `namespace/pod`, `node:K`, `external:ADDRESS`. Raises LabError."""
        found = await self.places()
        if name not in found:
            raise LabError(f"no endpoint {name!r}. There are: {', '.join(sorted(found))}.")
        return found[name]

    async def probe(
        self,
        source: str,
        destination: str,
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        timeout_s: float = TIMEOUT_S,
    ) -> Verdict:
        """Can `source` reach `destination`? Raises LabError for unknown endpoints."""
        begin, end = await self.place(source), await self.place(destination)
        return await self.probe_from(begin, Target(end.ip(family), port, protocol), timeout_s=timeout_s)

    async def probe_from(self, source: Place, target: Target, *, timeout_s: float = TIMEOUT_S) -> Verdict:
        """Can `source` reach an address?"""
        netns = source.open()
        source_ip = source.ip(plan.family_of(target.ip)) if source.binds else ""
        try:
            return await probe(self.sockets, netns, target, timeout_s=timeout_s, source_ip=source_ip)
        finally:
            os.close(netns)

    async def matrix(
        self,
        sources: Sequence[str],
        destinations: Sequence[str],
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        timeout_s: float = TIMEOUT_S,
    ) -> Matrix:
        """Every source to every destination, all at once, without those to themselves. Raises LabError."""
        found = await self.places()
        for name in (*sources, *destinations):
            if name not in found:
                raise LabError(f"no endpoint {name!r}. There are: {', '.join(sorted(found))}.")
        cells = [(begin, end) for begin in sources for end in destinations if begin != end]
        gate = asyncio.Semaphore(PROBES_AT_ONCE)

        async def one(begin: str, end: str) -> Verdict:
            async with gate:
                target = Target(found[end].ip(family), port, protocol)
                return await self.probe_from(found[begin], target, timeout_s=timeout_s)

        verdicts = await asyncio.gather(*(one(*cell) for cell in cells))
        return dict(zip(cells, verdicts, strict=True))

    async def flow(
        self,
        source: str,
        destination: str,
        port: int,
        protocol: str = "TCP",
        *,
        family: int = 4,
        interval_ms: float = 1.0,
    ) -> Flow:
        """Start a continuous exchange; the caller stops it. Raises LabError, OSError, TimeoutError."""
        begin, end = await self.place(source), await self.place(destination)
        netns = begin.open()
        try:
            flow = Flow(self.sockets, netns, Target(end.ip(family), port, protocol), interval_ms=interval_ms)
            await flow.start()
        finally:
            os.close(netns)
        return flow

    def state(self) -> Mapping[str, Any]:
        """What other processes need to find their way in."""
        return {
            "name": self.name,
            "supervisor": os.getpid(),
            "init": self.outside.pid,
            "url": self.url,
            "kubeconfig": str(self.kubeconfig),
            "nodes": [
                {
                    "name": node.plan.name,
                    "ips": node.plan.ips,
                    "subnets": node.plan.subnets,
                    "pid": node.holder.pid,
                    "agent": node.agent.pid if node.agent is not None and node.agent.running else None,
                }
                for node in self.nodes
            ],
            "externals": sorted(self.externals),
        }
