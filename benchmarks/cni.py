"""CNI ADD and DEL: netagent, policy included, beside the reference plugins ptp and bridge, both with host-local.

What is measured is what a container runtime waits for: start of the executable to its end. Each plugin has a node of
its own (a network namespace) on which 1, 50 or 110 pods stand while one more comes and goes (serial), or ten at once;
the plugins take turns, in another order each time. netagent is the whole agent: it watches 10k pods and 1k policies in
the lab's API server, and an ADD answers when the policies that select the pod are in the kernel. The others have no
policy to wait for, and they masquerade nothing. IPv4.

    python -m benchmarks.cni [--quick] [--json FILE]
"""

import asyncio
import itertools
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from benchmarks import bed, wiring, workload
from benchmarks.bed import progress
from benchmarks.servers import Embedded
from benchmarks.stats import summarise
from benchmarks.wiring import Sandbox, WiringAgent
from benchmarks.workload import Object, Shape
from netagent.cni import install
from netagent.kernel.netns import CLONE_NEWNET
from netagent.lab.namespaces import setns

STANDING = (1, 50, 110)
"""Pods on the node."""
AT_ONCE = 10
PODS = STANDING[-1] + AT_ONCE
"""Network namespaces of each plugin."""
WARM_UP = 1
"""Rounds that do not count."""
MTU = 1450


class Rounds(Struct, frozen=True):
    """How often a pod comes and goes beside the standing ones, and how often ten do."""

    serial: int
    at_once: int


class Node:
    """One plugin and its pods."""

    def __init__(self, name: str, executable: Path, conf: Object, shape: Shape, netns: int) -> None:
        """`netns`: descriptor of the network namespace that is the node."""
        self.name = name
        self._executable, self._conf, self._shape = executable, conf, shape
        # A thread's children are where the thread is.
        self.pool = ThreadPoolExecutor(AT_ONCE, initializer=setns, initargs=(netns, CLONE_NEWNET))
        self._containers = itertools.count()
        self._sandboxes: dict[int, Sandbox] = {}
        """Of a pod's number."""
        self.found: dict[str, list[float]] = {}

    def netns(self, number: int) -> str:
        """Of a pod."""
        return f"{self.name.partition('+')[0]}-{number}"

    async def call(self, command: str, numbers: range) -> list[float]:
        """Milliseconds of each, all at once."""
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self.pool, self._call, command, one) for one in numbers))

    def _call(self, command: str, number: int) -> float:
        if command == "ADD":
            pod = workload.numbered_pod(self._shape, number)
            self._sandboxes[number] = Sandbox(f"c{next(self._containers)}", self.netns(number), pod)
        return wiring.call(self._executable, self._conf, command, self._sandboxes[number])


@contextmanager
def nodes(root: Path, socket: Path, shape: Shape) -> Iterator[list[Node]]:
    """netagent's node is where the agent runs; the others are beside it."""
    with ExitStack() as stack:

        def node(name: str, netns: str, executable: Path, **conf: Any) -> Node:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            made = Node(name, executable, {"type": executable.name, **conf}, shape, descriptor)
            stack.callback(made.pool.shutdown)
            wiring.make_netns([made.netns(number) for number in range(PODS)])
            return made

        def reference(plugin: str, **conf: Any) -> Node:
            bed.run("ip", "netns", "add", plugin)
            bed.run("ip", "-n", plugin, "link", "set", "lo", "up")
            ranges, routes = [[{"subnet": "10.81.0.0/24"}]], [{"dst": "0.0.0.0/0"}]
            ipam = {"type": "host-local", "dataDir": str(root / plugin), "ranges": ranges, "routes": routes}
            executable = wiring.PLUGINS_DIR / plugin
            return node(f"{plugin}+host-local", f"/run/netns/{plugin}", executable, mtu=MTU, ipam=ipam, **conf)

        ours = node("netagent", "/proc/self/ns/net", install.SHIM, socket=str(socket))
        yield [ours, reference("ptp"), reference("bridge", bridge="cni0", isGateway=True)]


@asynccontextmanager
async def agent(shape: Shape, root: Path) -> AsyncIterator[WiringAgent]:
    """An agent that takes calls, at a filled API server."""
    async with Embedded() as server:
        await wiring.fill(server, shape)
        one = WiringAgent(server.kubeconfig, root)
        try:
            one.start()
            await one.wires()
            progress(f"the agent wires pods; {shape.pods} pods, {shape.policies} policies")
            yield one
        finally:
            one.close()


async def measure(shape: Shape, rounds: Rounds) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as text:
        async with agent(shape, Path(text)) as one:
            with nodes(Path(text), one.socket, shape) as plugins:
                found = [await beside(plugins, *pods, rounds) for pods in itertools.pairwise((0, *STANDING))]
    series = {name: structs.asdict(summarise(values)) for some in found for name, values in some.items()}
    return {"unit": "ms", "series": series}


async def beside(plugins: list[Node], before: int, standing: int, rounds: Rounds) -> dict[str, list[float]]:
    """Samples beside a number of pods, of which some stand already."""
    for plugin in plugins:
        for number in range(before, standing):
            await plugin.call("ADD", range(number, number + 1))
    found: dict[str, list[float]] = {}
    for title, at_once, count in (("serial", 1, rounds.serial), (f"{AT_ONCE} at once", AT_ONCE, rounds.at_once)):
        await turns(plugins, range(standing, standing + at_once), count)
        for plugin in plugins:
            found |= {f"{standing} pods, {title}, {plugin.name}: {what}": some for what, some in plugin.found.items()}
    progress(f"{standing} pods on the node")
    return found


async def turns(plugins: list[Node], numbers: range, count: int) -> None:
    """Pods come and go; the plugins take turns."""
    for plugin in plugins:
        plugin.found = {"ADD": [], "DEL": []}
    chance = random.Random(count)  # noqa: S311 - nobody need be unable to guess it
    for turn in range(WARM_UP + count):
        for plugin in chance.sample(plugins, len(plugins)):
            for command, values in plugin.found.items():
                took_ms = await plugin.call(command, numbers)
                if turn >= WARM_UP:
                    values.extend(took_ms)


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "a smaller cluster, fewer pods come and go")
    if not (wiring.PLUGINS_DIR / "ptp").exists():
        raise SystemExit(f"{wiring.PLUGINS_DIR}/ptp is missing: apt install containernetworking-plugins")
    bed.isolate()
    wiring.add_underlay()
    shape = Shape(pods=1000 if options.quick else 10_000, policies=1000, local_pods=PODS)
    figures = asyncio.run(measure(shape, Rounds(8, 1) if options.quick else Rounds(100, 20)))
    bed.table(list(figures["series"].items()), figures["unit"])
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
