"""A node with an agent process and two pods, whose API server stands behind a proxy that has bad days.

agent process --HTTP--> FaultyApi --HTTP--> the lab's API server, in this process
client, server: pods that the agent's CNI wired; whether one reaches the other is asked by packets
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from netagent.cni import install
from netagent.lab.apiserver.__main__ import write_kubeconfig
from netagent.lab.apiserver.registry import Options
from netagent.lab.apiserver.server import ApiServer, Settings
from support import probes
from support.cnibed import execute, sh
from support.faultyapi import FaultyApi
from support.places import Place
from support.servers import Servers

DEADLINE_S = 40.0
NODE, NODE_IP = "n1", "192.0.2.21"
NAMESPACE = "default"
BACKOFF_CAP_S = 0.5
SILENCE_S = 2.0
REQUEST_TIMEOUT_S = 2.0
COLLECTIONS = {
    "pods": ("", "v1"),
    "namespaces": ("", "v1"),
    "nodes": ("", "v1"),
    "networkpolicies": ("networking.k8s.io", "v1"),
    "leases": ("coordination.k8s.io", "v1"),
}


async def until(condition: Callable[[], Any], what: Callable[[], Any]) -> None:
    """Wait for a condition, which may be a coroutine function."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        holds = condition()
        if await holds if asyncio.iscoroutine(holds) else holds:
            return
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what()}")
        await asyncio.sleep(0.03)


def listening_socket() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


class Cluster:
    """The lab's API server on a socket of its own; also what an operator and a kubelet write there."""

    def __init__(self) -> None:
        self.server = ApiServer(Settings(bookmark_s=0.5, schedule=False))
        listener = listening_socket()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener

    async def start(self) -> None:
        await self.server.start([self._listener])

    async def stop(self) -> None:
        await self.server.stop()

    def copy(self) -> "Cluster":
        """Another API server with the same objects, which counts from the beginning."""
        copied = Cluster()
        for table in self.server.store.tables():
            for row in self.server.store.scan(table):
                meta = row.obj["metadata"]
                copied.server.store.put(table, (meta.get("namespace", ""), meta["name"]), row.obj)
        return copied

    def put(self, plural: str, tree: dict[str, Any]) -> dict[str, Any]:
        """Create it, or bring it to this spec and status; the object as stored."""
        registry = self.server.registry
        resource = registry.catalogue.find(*COLLECTIONS[plural], plural)
        assert resource is not None
        namespace, name = tree["metadata"].get("namespace", ""), tree["metadata"]["name"]
        there = self.server.store.get(resource.table, (namespace, name))
        if there is None:
            registry.create(resource, namespace, tree, Options(manager="test"))
            there = self.server.store.get(resource.table, (namespace, name))
            assert there is not None
        merged = {**there.obj, **tree, "metadata": {**there.obj["metadata"], **tree["metadata"]}}
        return self.server.store.put(resource.table, (namespace, name), merged).obj

    def delete(self, plural: str, namespace: str, name: str) -> None:
        resource = self.server.registry.catalogue.find(*COLLECTIONS[plural], plural)
        assert resource is not None
        self.server.store.remove(resource.table, (namespace, name))


def policy(*clients: str) -> dict[str, Any]:
    """Only these pods reach the server."""
    peers = [{"podSelector": {"matchLabels": {"app": client}}} for client in clients or ("nobody",)]
    return {
        "metadata": {"namespace": NAMESPACE, "name": "server"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": peers}],
        },
    }


class Site:
    """One node; `start` runs the agent, `serve` brings the pods up."""

    def __init__(self, root: Path, skew: Path | None = None) -> None:
        self.root = root
        self.cluster = Cluster()
        self.proxy = FaultyApi(self.cluster.url)
        self.servers = Servers()
        self.places: dict[str, Place] = {}
        self.kubeconfig = root / "kubeconfig"
        self.skew = root / "skew"
        """Seconds by which the agent's wall clock is wrong."""
        self._preload = skew
        self._http = aiohttp.ClientSession()
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._debug_port = (_free_port() for _ in range(2))

    async def open(self) -> None:
        """API server, proxy and the node's own address; no agent yet."""
        await self.cluster.start()
        await self.proxy.start()
        write_kubeconfig(self.kubeconfig, self.proxy.url, "")
        self.write_clock(0)
        for words in (
            "link add flt0 type veth peer name flt1",
            f"address add {NODE_IP}/24 dev flt0",
            "link set flt0 up",
            "link set flt1 up",
        ):
            sh("ip", *words.split())
        sh("sysctl", "-qw", "net.ipv4.ip_forward=1")
        address = {"type": "InternalIP", "address": NODE_IP}
        self.cluster.put("nodes", {"metadata": {"name": NODE}, "status": {"addresses": [address]}})
        self.cluster.put("networkpolicies", policy())

    async def close(self) -> None:
        for name in list(self.places):
            await self.delete(name)
        await self.stop()
        command = [sys.executable, "-m", "netagent", "cleanup", "--state"]
        subprocess.run(command, env=self._environ(), check=False, capture_output=True)  # noqa: ASYNC221 - nothing else runs
        sh("ip", "link", "del", "flt0")
        self.servers.close()
        await self._http.close()
        await self.proxy.close()
        await self.cluster.stop()

    async def replace(self, cluster: Cluster) -> None:
        """Behind the proxy another API server answers from now on; this one ends."""
        before, self.cluster = self.cluster, cluster
        self.proxy.upstream = cluster.url
        self.proxy.break_off()
        await before.stop()

    # The agent

    def _environ(self) -> dict[str, str]:
        options = {
            "NODE_NAME": NODE,
            "STATE_DIR": self.root / "state",
            "API_KUBECONFIG": self.kubeconfig,
            "API_BACKOFF_CAP_S": BACKOFF_CAP_S,
            "API_WATCH_SILENCE_S": SILENCE_S,
            "API_REQUEST_TIMEOUT_S": REQUEST_TIMEOUT_S,
            "API_PAGE_SIZE": 2,
            "NETWORK_POOLS": "10.88.0.0/16",
            "NETWORK_LEASE_DURATION_S": 12,
            "NETWORK_TAKEOVER_GRACE_S": 20,
            "CNI_SOCKET": self.root / "run/cni.sock",
            "CNI_BIN_DIR": self.root / "bin",
            "CNI_CONF_DIR": self.root / "net.d",
            "CNI_PLUGIN_DIR": "",
            "CNI_ADMIT_TIMEOUT_S": 1.5,
            "HTTP_ADDRESS": "127.0.0.1",
            "HTTP_PORT": self._port,
            "HTTP_DEBUG_PORT": self._debug_port,
        }
        environ = {**os.environ, **{f"NETAGENT_{name}": str(value) for name, value in options.items()}}
        if self._preload is not None:
            environ |= {"LD_PRELOAD": str(self._preload), "CLOCK_SKEW": str(self.skew)}
        return environ

    def start(self) -> None:
        with (self.root / "log").open("ab") as log:
            command = [sys.executable, "-m", "netagent", "agent"]
            self._process = subprocess.Popen(command, env=self._environ(), stderr=log)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._process.wait, 30)
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return (self.root / "log").read_text()

    def peak_bytes(self) -> int:
        """The most memory that the agent had so far."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def write_clock(self, seconds: int) -> None:
        """The agent's wall clock is off by this from now on."""
        draft = self.skew.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self.skew)

    # What it says

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /readyz; 0 while nothing listens."""
        url, headers = f"http://127.0.0.1:{self._port}/readyz", {"Accept": "application/json"}
        try:
            async with self._http.get(url, headers=headers) as response:
                return response.status, await response.json()
        except aiohttp.ClientConnectionError:
            return 0, {"parts": {}, "remarks": {}}

    async def ready(self) -> None:
        last: list[Any] = []

        async def is_ready() -> bool:
            assert self.running, self.log()
            last[:] = await self.readiness()
            return last[0] == 200 and not last[1]["remarks"]

        await until(is_ready, lambda: f"{last}\n{self.log()[-3000:]}")

    async def remarks(self, pattern: str) -> dict[str, str]:
        """Wait for a remark that has the pattern; all remarks then. The agent is ready meanwhile."""
        last: list[Any] = []

        async def said() -> bool:
            last[:] = await self.readiness()
            return any(re.search(pattern, f"{name}: {text}") for name, text in last[1]["remarks"].items())

        await until(said, lambda: f"{pattern!r} in {last}\n{self.log()[-2000:]}")
        assert last[0] == 200, last
        found: dict[str, str] = last[1]["remarks"]
        return found

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        async with self._http.get(f"http://127.0.0.1:{self._port}/metrics") as response:
            lines = (await response.text()).splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if re.match(rf"{name}[{{ ]", line) and all(one in line for one in wanted)
        )

    # Pods

    async def call(self, command: str, name: str, uid: str = "") -> tuple[int, Any]:
        """The CNI plugin's exit status and answer."""
        conf = {"cniVersion": "1.0.0", "name": "t", "type": "netagent", "socket": str(self.root / "run/cni.sock")}
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"box-{name}",
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={name};K8S_POD_UID={uid}",
            "CNI_PATH": str(self.root / "bin"),
        }
        return await execute(environ, json.dumps({**conf, "waitSeconds": 20}).encode(), str(install.SHIM))

    def create_pod(self, name: str) -> str:
        """The Pod object; its UID."""
        spec = {"nodeName": NODE, "containers": [{"name": "main", "image": "x"}]}
        tree = {"metadata": {"namespace": NAMESPACE, "name": name, "labels": {"app": name}}, "spec": spec}
        uid: str = self.cluster.put("pods", tree)["metadata"]["uid"]
        return uid

    async def add(self, name: str) -> None:
        """A pod from the API object to a socket that answers on port 80."""
        uid = self.create_pod(name)
        sh("ip", "netns", "add", name)
        status, result = await self.call("ADD", name, uid)
        assert status == 0, result
        ip = result["ips"][0]["address"].partition("/")[0]
        place = Place(name, (ip,), os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC))
        self.servers.open(place, [(80, "TCP")])
        self.places[name] = place
        self.cluster.put(
            "pods", {"metadata": {"namespace": NAMESPACE, "name": name}, "status": {"podIPs": [{"ip": ip}]}}
        )

    async def delete(self, name: str) -> None:
        place = self.places.pop(name)
        await self.call("DEL", name)
        assert place.netns is not None
        os.close(place.netns)
        sh("ip", "netns", "del", name)

    def allow(self, allowed: bool) -> None:
        """In the API; whether the kernel follows is the question."""
        self.cluster.put("networkpolicies", policy("client") if allowed else policy())

    async def reaches(self) -> bool:
        """Whether the client reaches the server, by a packet."""
        probe = probes.Probe(self.places["client"], self.places["server"].ip(), 80, "TCP")
        (found,) = await asyncio.to_thread(probes.run, [probe], self.servers, probes.DENIED_S)
        return found is probes.Answer.YES

    async def follows(self, allowed: bool) -> None:
        """Wait until the kernel judges so."""

        async def agrees() -> bool:
            return await self.reaches() is allowed

        await until(agrees, lambda: f"allowed={allowed} in the kernel\n{self.log()[-2000:]}")


def _free_port() -> int:
    with listening_socket() as probe:
        port: int = probe.getsockname()[1]
        return port
