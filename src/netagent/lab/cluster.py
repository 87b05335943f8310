"""The cluster on one machine: `async with Lab(Settings(nodes=3)) as lab: ...`.

An outside namespace holds the underlay bridge; nodes are namespaces on it, each with a real agent; the API server
listens on the bridge and on this process's own loopback; one kubelet stand-in serves all nodes. Everything ends with
this process, whichever way it ends.

The API server asks nobody for credentials: kubectl sends none over plain HTTP. Whoever may connect to this machine's
loopback may change the lab's objects.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import sys
import time
import zlib
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
from netagent.lab.directory import claim
from netagent.lab.kubelet import KubeletNode, KubeletSettings
from netagent.lab.namespaces import Sockets, bound, new_netns, open_netns
from netagent.lab.nodes import LabNode
from netagent.lab.places import Place
from netagent.lab.plan import NodePlan, Serving, Settings
from netagent.lab.processes import HolderSpec, LabError, Process, Spawner, clean_environment
from netagent.lab.serve import Servers
from netagent.lab.traffic import Traffic

READY_TIMEOUT_S = 60.0
POLL_S = 0.03
RESTART_PAUSE_S = 0.5
SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
LOG_TAIL_BYTES = 2000

_numbers = itertools.count()


class Lab(Traffic):
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
        for node in self.nodes:
            await self._prepare_agent(node)
        if self.settings.agents:
            for node in self.nodes:
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
        await self._ip(self.outside.pid, plan.plug_script(self._external_port(ip), place.net))
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

    async def remove_externals(self) -> None:
        """Take all externals away again."""
        for ip, place in list(self.externals.items()):
            if place.name in self._served:
                self._served.pop(place.name).close()
            for node in self.nodes:
                script = plan.to_external_script(node.plan, ip)
                await self._ip(node.holder.pid, [line.replace("replace", "del", 1) for line in script])
            # The end in the external goes with its namespace, but only a while after the last descriptor is closed.
            await self._ip(self.outside.pid, [f"link del {self._external_port(ip)}"])
            os.close(int(place.net.rpartition("/")[2]))
            del self.externals[ip]

    @staticmethod
    def _external_port(ip: str) -> str:
        """Name of the bridge port of an external, at most 15 characters."""
        return f"ext{zlib.crc32(ip.encode()):08x}"

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

    async def clear(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Back to an empty cluster: no externals, no servers on nodes, no namespaces or pods but the system's own."""
        await self.remove_externals()
        while self._served:
            self._served.popitem()[1].close()

        def foreign(objects: list[Object]) -> list[str]:
            names = [obj["metadata"]["name"] for obj in objects]
            return [name for name in names if name not in SYSTEM_NAMESPACES]

        for name in foreign(await self.client.list("/api/v1/namespaces")):
            await self.delete("v1", "Namespace", name)
        policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
        for path in (policies, "/api/v1/namespaces/default/pods"):
            for obj in await self.client.list(path):
                await self.client.request("DELETE", f"{path}/{obj['metadata']['name']}")

        async def left() -> str:
            spaces = foreign(await self.client.list("/api/v1/namespaces"))
            return ", ".join([*spaces, *(pods.full_name(pod) for pod in await self.pods())])

        await self._until_none(left, "objects are still there", timeout_s)

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
