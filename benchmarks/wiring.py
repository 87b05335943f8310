"""A node that wires pods: an agent with everything on, and the call of a CNI executable as a runtime makes it."""

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from benchmarks import bed, workload
from benchmarks.bed import Agent
from benchmarks.servers import Embedded
from benchmarks.workload import Object, Shape

UNDERLAY = "192.0.2.1"
POOL = "10.254.0.0/16"
PLUGINS_DIR = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins are."""
NODES = "/api/v1/nodes"


class WiringAgent(Agent):
    """An agent with everything on."""

    def __init__(self, kubeconfig: Path, root: Path, **api: object) -> None:
        """`api`: settings of that section of the configuration."""
        self.socket = root / "run" / "cni.sock"
        network = {"mode": "lease", "pools": [POOL], "backend": "host-gw", "interface": "underlay"}
        cni = {"socket": str(self.socket), "bin_dir": "", "conf_dir": str(root / "net.d"), "chained": []}
        super().__init__(kubeconfig, {"api": {"kubeconfig": str(kubeconfig), **api}, "network": network, "cni": cni})

    async def wires(self) -> dict[str, Any]:
        """The stamps of its first commit, once it takes calls."""
        first = await self.synced()
        while not self.socket.exists():
            self.check()
            await asyncio.sleep(0.02)
        return first


class Sandbox(Struct, frozen=True):
    """A pod as its runtime knows it."""

    container: str
    netns: str
    """Name of its network namespace."""
    pod: Object
    """The Pod of the API."""


def call(executable: Path, conf: Object, command: str, sandbox: Sandbox) -> float:
    """Milliseconds from the start of a CNI executable to its end. Raises RuntimeError where it fails."""
    meta = sandbox.pod["metadata"]
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container,
        "CNI_NETNS": f"/run/netns/{sandbox.netns}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS_DIR),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={meta['namespace']};K8S_POD_NAME={meta['name']}",
    }
    text = orjson.dumps({"cniVersion": "1.0.0", "name": "bench", **conf})
    began_s = time.perf_counter()
    done = subprocess.run([str(executable)], input=text, env=environ, capture_output=True, check=False)
    took_ms = (time.perf_counter() - began_s) * 1e3
    if done.returncode != 0:
        raise RuntimeError(f"{executable.name} {command}: {done.stdout.decode()} {done.stderr.decode()}")
    return took_ms


def make_netns(names: list[str]) -> None:
    """Network namespaces."""
    bed.run("ip", "-batch", "-", text="".join(f"netns add {name}\n" for name in names))


def add_underlay() -> None:
    """The link to the other nodes."""
    bed.run("ip", "link", "add", "underlay", "type", "veth", "peer", "name", "far")
    bed.run("ip", "address", "add", f"{UNDERLAY}/24", "dev", "underlay")
    for name in ("underlay", "far"):
        bed.run("ip", "link", "set", name, "up")


async def fill(server: Embedded, shape: Shape) -> None:
    """A cluster, and the Node object of the node under test."""
    await server.load(shape)
    status = {"addresses": [{"type": "InternalIP", "address": UNDERLAY}]}
    await server.request("POST", NODES, {"metadata": {"name": workload.NODE}})
    path = f"{NODES}/{workload.NODE}/status"
    await server.request("PATCH", path, {"status": status}, "application/merge-patch+json")
