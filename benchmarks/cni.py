"""CNI ADD and DEL: netagent's plugin beside the reference plugins ptp + host-local, in the same run.

What is measured is what a container runtime waits for: start of the executable to its end, one pod after the other,
IPv4, the two plugins taking turns. The agent is a process of its own whose policy gate answers at once, so this is the
CNI path without the policy commit. Runs in private namespaces; needs root and Debian's containernetworking-plugins.

    python -m benchmarks.cni [--pods 50] [--quick] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks import bed
from benchmarks.stats import summarise
from netagent.agent.cni import CniServer
from netagent.cni import install
from netagent.config import CniConfig
from netagent.disk.allocations import Allocations
from netagent.ports import PodNetState
from netagent.records import Endpoint

REFERENCE_DIR = Path("/usr/lib/cni")
START_DEADLINE_S = 30.0
Times = dict[str, dict[str, list[float]]]
"""Plugin -> command -> milliseconds."""


class OpenGate:
    """Policy that is always in force already."""

    async def admit(self, endpoint: Endpoint) -> None:
        pass

    def withdraw(self, endpoint: Endpoint) -> None:
        pass

    def restore(self, endpoints: tuple[Endpoint, ...]) -> None:
        pass


class FixedNet:
    """A pod network with one subnet."""

    def state(self) -> PodNetState:
        return PodNetState(subnets=("10.80.0.0/24",), mtu=1450)


def serve(root: Path) -> None:
    """The agent process."""
    config = CniConfig(socket=str(root / "run" / "cni.sock"), bin_dir="", conf_dir=str(root / "net.d"), chained=())
    server = CniServer(config, pod_net=FixedNet(), policy=OpenGate(), store=Allocations(root / "state"))
    asyncio.run(server.run())


def call(executable: Path, command: str, name: str, conf: bytes) -> float:
    """Duration of one execution in milliseconds."""
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": f"/run/netns/{name}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(REFERENCE_DIR),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}",
    }
    started_s = time.perf_counter()
    done = subprocess.run([str(executable)], input=conf, env=environ, capture_output=True, check=False)
    duration_ms = (time.perf_counter() - started_s) * 1e3
    if done.returncode != 0:
        raise SystemExit(f"{executable.name} {command} {name}: {done.stdout.decode()} {done.stderr.decode()}")
    return duration_ms


def netns_name(plugin: str, number: int) -> str:
    return f"{plugin[:3]}{number}"


def measure(root: Path, pods: int) -> Times:
    """All ADDs, then all DELs; the plugins take turns."""
    common: dict[str, object] = {"cniVersion": "1.0.0", "name": "bench"}
    ranges = [[{"subnet": "10.81.0.0/24"}]]
    ipam = {"type": "host-local", "dataDir": str(root / "hl"), "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    plugins: dict[str, tuple[Path, dict[str, object]]] = {
        "netagent": (install.SHIM, common | {"type": "netagent", "socket": str(root / "run" / "cni.sock")}),
        "ptp+host-local": (REFERENCE_DIR / "ptp", common | {"type": "ptp", "mtu": 1450, "ipam": ipam}),
    }
    for prefix in plugins:
        for number in range(pods + 1):
            subprocess.run(["ip", "netns", "add", netns_name(prefix, number)], check=True)
    times: Times = {plugin: {"ADD": [], "DEL": []} for plugin in plugins}
    for command in ("ADD", "DEL"):
        for number in range(pods + 1):
            for plugin, (executable, conf) in plugins.items():
                duration_ms = call(executable, command, netns_name(plugin, number), json.dumps(conf).encode())
                if number:  # the first one warms the caches
                    times[plugin][command].append(duration_ms)
    return times


def summary(times: Times) -> dict[str, Any]:
    """Plugin and command -> figures."""
    series = {
        f"{plugin} {command}": structs.asdict(summarise(values))
        for plugin, commands in times.items()
        for command, values in commands.items()
    }
    return {"unit": "ms", "series": series}


def isolate() -> None:
    """Start again in private namespaces, unless that was done."""
    if os.environ.get("NETAGENT_BENCH_ISOLATED"):
        return
    os.environ["NETAGENT_BENCH_ISOLATED"] = "1"
    setup = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up"
    again = ["sh", "-c", f'{setup} && exec "$@"', "sh", sys.executable, *sys.orig_argv[1:]]
    os.execvp("unshare", ["unshare", "-n", "-m", *again])  # noqa: S606 - no shell reads what the user typed


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_DEADLINE_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit("the agent does not come up")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=50, help="pods of each plugin")
    parser.add_argument("--quick", action="store_true", help="10 pods")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    if not (REFERENCE_DIR / "ptp").exists():
        raise SystemExit(f"{REFERENCE_DIR}/ptp is missing: apt install containernetworking-plugins")
    isolate()
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        agent = os.fork()
        if agent == 0:
            serve(root)
        try:
            wait_until((root / "run" / "cni.sock").exists)
            figures = summary(measure(root, 10 if arguments.quick else arguments.pods))
        finally:
            os.kill(agent, signal.SIGKILL)
            os.waitpid(agent, 0)
    bed.table(list(figures["series"].items()), figures["unit"])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
