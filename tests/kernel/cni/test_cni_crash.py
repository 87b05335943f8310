"""kill -9 of the agent at every step of ADD and DEL: no address is lost or given twice, and no caller notices."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from netagent.cni import install
from netagent.core.cni import host_ifname

pytestmark = pytest.mark.kernel

SUBNETS = ("10.79.0.0/28", "fd79::/64")
DEADLINE_S = 60

AGENT = """
import asyncio, os, signal, sys
from netagent.agent.pods.cni import CniServer
from netagent.config import CniConfig
from netagent.disk.allocations import Allocations
from netagent.kernel.wiring import Wiring
from netagent.ports import PodNetState

root, subnets, step = sys.argv[1], tuple(sys.argv[2].split(",")), sys.argv[3]

class Gate:
    async def admit(self, endpoint): pass
    def withdraw(self, endpoint): pass
    def restore(self, endpoints): pass

class Net:
    def state(self): return PodNetState(subnets=subnets, mtu=1450)

def die(): os.kill(os.getpid(), signal.SIGKILL)

def fatal(owner, name):
    real = getattr(owner, name)
    if asyncio.iscoroutinefunction(real):
        async def wrapped(self, *rest):
            if when == "before": die()
            await real(self, *rest)
            die()
    else:
        def wrapped(self, *rest):
            if when == "before": die()
            real(self, *rest)
            die()
    setattr(owner, name, wrapped)

if step != "none":
    when, what = step.split(" ")
    owner = {"save": Allocations, "free": Allocations, "_append": Allocations, "admit": Gate, "wire": Wiring,
             "unwire": Wiring}[what]
    fatal(owner, what)

config = CniConfig(socket=root + "/run/cni.sock", bin_dir="", conf_dir=root + "/net.d", chained=())
asyncio.run(CniServer(config, pod_net=Net(), policy=Gate(), store=Allocations(root + "/state")).run())
"""

STEPS = {
    "ADD": ("before save", "after save", "before admit", "after admit", "before wire", "after wire"),
    "DEL": ("before unwire", "after unwire", "before free", "after _append", "after free"),
}


class Node:
    """Starts and watches agent processes, calls the plugin."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.agents: list[subprocess.Popen[bytes]] = []

    def agent(self, step: str = "none") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", AGENT, str(self.root), ",".join(SUBNETS), step]
        self.agents.append(subprocess.Popen(command))
        return self.agents[-1]

    def stop(self) -> None:
        for agent in self.agents:
            with suppress(ProcessLookupError):
                agent.terminate()
            agent.wait(DEADLINE_S)

    def begin(self, command: str, name: str) -> subprocess.Popen[bytes]:
        conf = {"cniVersion": "1.0.0", "name": "t", "type": "netagent", "socket": str(self.root / "run/cni.sock")}
        environ = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}",
        }
        shim = subprocess.Popen([str(install.SHIM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)
        assert shim.stdin
        shim.stdin.write(json.dumps(conf).encode())
        shim.stdin.close()
        return shim

    def finish(self, shim: subprocess.Popen[bytes]) -> Any:
        assert shim.stdout
        with shim.stdout:
            out = shim.stdout.read()
        assert shim.wait(DEADLINE_S) == 0, out
        return json.loads(out) if out else None

    def claims(self) -> list[str]:
        return sorted(path.name for path in (self.root / "state/endpoints").iterdir())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def kill_during(node: Node, command: str, name: str, step: str) -> Any:
    """The call meets an agent that dies at the step, and is answered by the next one."""
    doomed = node.agent(step)
    shim = node.begin(command, name)
    assert doomed.wait(DEADLINE_S) == -signal.SIGKILL
    successor = node.agent()
    answer = node.finish(shim)
    successor.terminate()
    successor.wait(DEADLINE_S)
    return answer


def addresses(result: Any) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


@pytest.mark.timeout(300)
def test_kill_at_every_step(node: Node) -> None:
    names = {step: f"pod{number}" for number, step in enumerate(STEPS["ADD"])}
    for name in names.values():
        subprocess.run(["ip", "netns", "add", name], check=True)
    held = {name: addresses(kill_during(node, "ADD", name, step)) for step, name in names.items()}
    assert len({ip for ips in held.values() for ip in ips}) == 2 * len(names)
    expected = sorted("+".join((host_ifname(name, "eth0"), *ips)) + ".json" for name, ips in held.items())
    assert node.claims() == expected

    deletions = dict(zip(STEPS["DEL"], names.values(), strict=False))
    for step, name in deletions.items():
        kill_during(node, "DEL", name, step)
        assert not any(host_ifname(name, "eth0") in claim for claim in node.claims())
    assert len(node.claims()) == len(names) - len(deletions)

    freed = (node.root / "state/freed.log").read_text().split()
    assert {ip for name in deletions.values() for ip in held[name]} <= set(freed)
    node.agent()
    left = next(name for name in names.values() if name not in deletions.values())
    assert addresses(node.finish(node.begin("ADD", left))) == held[left]
    fresh = addresses(node.finish(node.begin("ADD", next(iter(deletions.values())))))
    assert not set(fresh) & set(freed)
    for name in names.values():
        node.finish(node.begin("DEL", name))
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert node.claims() == []
    assert not [name for name in os.listdir(node.root / "state/endpoints") if name.startswith(".")]
