"""What work in bulk does to work that has nothing to do with it.

One agent with everything on: 50k pods and 10k policies in the lab's API server, 110 local pods wired through CNI. A
policy of a local pod is created, edited and deleted, and pods come and go through the plugin's executable, socket and
the kernel: idle; while all pods are listed again, unchanged, and with a label turned that a policy here asks for in all
namespaces; while all policies are listed again, changed, and so compiled anew; and while all namespaces turn a label
that another policy here asks for, so that a peer set of all pods comes or goes. An interrupted watch makes the agent
list: what it would resume from has expired.

A policy change is clocked from the moment when its event is at an idle watcher, a process beside the agent, to the end
of the transaction that covers it. Beside bulk work only those samples count during which the agent was at it: a slice
of a list was delivered, or a portion of what it brought was committed that was not the last. `stall` is what the
agent's event loop was late by, of what was 1 ms or more.

    python -m benchmarks.bulk [--quick] [--json FILE]
"""

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct, structs

from benchmarks import bed, wiring, workload
from benchmarks.bed import progress
from benchmarks.servers import Embedded
from benchmarks.stats import summarise
from benchmarks.wiring import Sandbox, WiringAgent
from benchmarks.workload import Shape
from netagent.cni import install
from netagent.records import Kind

APART_S = 0.03
"""Between two samples."""
BACKOFF_CAP_S = 0.1
"""So that the agent spends its time on lists, not on waiting for the next one."""
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
STAGES = ("decode", "store", "compile", "diff", "commit")
"""Of the commit that covers a policy change, and of all that came since the one before it."""
PROBED = "ns-3"
"""Namespace of the policy that is changed; a local pod is in it."""
TURNING = {"matchLabels": {"turn": "1"}}
"""Of a label whose value bulk work turns between 0 and 1."""
TURNED = {
    "pods": ("ns-5", {"namespaceSelector": {}, "podSelector": TURNING}),
    "namespaces": ("ns-6", {"namespaceSelector": TURNING}),
}
"""Namespaces and peers of the policies that ask for it."""
LONGEST = 6
"""Times the samples that are asked for are taken, until enough of them were beside bulk work."""


class Bulk(Struct, frozen=True):
    """Work that the agent is given in the background, again and again."""

    name: str
    kind: Kind | None = None
    changed: str = ""
    """What changes of every object, before it is listed again."""


BULKS = (
    Bulk("idle"),
    Bulk("relist of all pods", Kind.POD),
    Bulk("relist of all pods, relabelled", Kind.POD, "labels"),
    Bulk("relist of all policies, edited", Kind.NETWORK_POLICY, "spec"),
    Bulk("all namespaces relabelled", Kind.NAMESPACE, "labels"),
)


class Sample(Struct, frozen=True):
    """From when to when something took, monotonic seconds."""

    began_s: float
    ended_s: float

    @property
    def ms(self) -> float:
        """How long."""
        return (self.ended_s - self.began_s) * 1e3


class MeteredAgent(WiringAgent):
    """An agent with a meter of its event loop."""

    module = "benchmarks.stalls"

    def stalls(self, since_s: float) -> list[float]:
        """Milliseconds of each, since a moment."""
        lines = Path(f"{self.trace.path}.stalls").read_text().splitlines()
        found = [tuple(map(float, line.split())) for line in lines]
        return [late_ms for at_s, late_ms in found if at_s >= since_s]

    def busy(self, sample: "Sample") -> bool:
        """Whether it was at bulk work then."""
        at = [float(line) for line in Path(f"{self.trace.path}.bulk").read_text().split()]
        return bisect_left(at, sample.began_s) < bisect_right(at, sample.ended_s)


class Watcher:
    """When events of the policy `probe` are at one who has nothing else to do."""

    def __init__(self, server: Embedded) -> None:
        self._server = server
        self.seen: asyncio.Queue[float] = asyncio.Queue()

    async def run(self) -> None:
        """Until cancelled."""
        url = self._server.url + POLICIES
        timeout = aiohttp.ClientTimeout(total=None)
        query = {"watch": "true", "fieldSelector": f"metadata.name={workload.PROBE}"}
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, params=query) as answer:
            async for _ in answer.content:
                self.seen.put_nowait(time.monotonic())


class Bench:
    """One agent under one load after the other."""

    def __init__(self, server: Embedded, agent: MeteredAgent, watcher: Watcher, shape: Shape) -> None:
        self._shape = shape
        self._containers_of: dict[int, str] = {}
        """Number of a wired pod -> its container ID."""
        self._server, self._agent, self._watcher = server, agent, watcher
        self._containers = itertools.count()
        self._pods = itertools.count()
        self.commits: list[dict[str, Any]] = []
        """Of the policy changes under the present load."""
        self.stages: dict[str, dict[str, float]] = {}
        """Load -> medians, milliseconds."""
        self.found: dict[str, list[float]] = {}

    async def under(self, bulk: Bulk, samples: int) -> None:
        """Samples of everything under one load."""
        works = [("policy change -> commit", self.policy), ("CNI ADD", self.pod)]
        # A policy that changes while all policies are listed is a part of that list.
        for what, sample in works[bulk.kind is Kind.NETWORK_POLICY :]:
            began_s, values = time.monotonic(), list[float]()
            enough = asyncio.Event()
            busy = asyncio.create_task(self._again_and_again(bulk, enough))
            for _ in range(samples * LONGEST):
                if len(values) >= samples:
                    break
                await asyncio.sleep(APART_S)
                values += [one.ms for one in await sample() if bulk.kind is None or self._agent.busy(one)]
            enough.set()
            rounds = await busy
            self.found[f"{bulk.name}: {what}"] = values
            stalls = self._agent.stalls(began_s) or [0.0]
            self.found.setdefault(f"{bulk.name}: stall", []).extend(stalls)
            if self.commits:
                self.stages[bulk.name] = {
                    stage: statistics.median(commit[stage] for commit in self.commits) * 1e3 for stage in STAGES
                }
                self.commits = []
            took_s = time.monotonic() - began_s
            progress(f"{bulk.name}: {what} {len(values)} times beside {rounds} of it, {took_s:.1f} s")

    async def _again_and_again(self, bulk: Bulk, enough: asyncio.Event) -> int:
        """How often; at least once."""
        done = 0
        while bulk.kind is not None and not (done and enough.is_set()):
            await self._server.tell("relist", kind=bulk.kind, changed=bulk.changed)
            done += 1
        return done

    async def policy(self) -> list["Sample"]:
        """A policy comes, changes and goes."""
        kind, server = Kind.NETWORK_POLICY, self._server
        door = {"from": [{"podSelector": {"matchLabels": {"door": "open"}}}]}
        made = workload.policy(PROBED, workload.PROBE, {}, ingress=[door])
        changes: list[Callable[[], Awaitable[float]]] = [
            lambda: server.create(kind, made),
            lambda: server.patch(kind, PROBED, workload.PROBE, {"spec": {"ingress": []}}),
            lambda: server.delete(kind, PROBED, workload.PROBE),
        ]
        found = []
        for change in changes:
            await asyncio.sleep(APART_S)
            self._agent.trace.forget()
            await change()
            seen_s = await asyncio.wait_for(self._watcher.seen.get(), bed.DEADLINE_S)
            commit = await self._agent.trace.last(lambda one: bool(one["marks"]))
            found.append(Sample(seen_s, commit["done_s"]))
            self.commits.append(commit)
        return found

    async def pod(self) -> list["Sample"]:
        """A pod goes and comes again as another container."""
        number = next(self._pods) % len(self._containers_of)
        await asyncio.to_thread(self._call, "DEL", number)
        return [await self.add(number)]

    async def add(self, number: int) -> "Sample":
        """An ADD of a local pod."""
        self._containers_of[number] = f"c{next(self._containers)}"
        began_s = time.monotonic()
        took_ms = await asyncio.to_thread(self._call, "ADD", number)
        return Sample(began_s, began_s + took_ms / 1e3)

    def _call(self, command: str, number: int) -> float:
        pod = workload.numbered_pod(self._shape, number)
        sandbox = Sandbox(self._containers_of[number], f"pod{number}", pod)
        conf = {"type": "netagent", "socket": str(self._agent.socket)}
        return wiring.call(install.SHIM, conf, command, sandbox)


@asynccontextmanager
async def bench(shape: Shape, root: Path) -> AsyncIterator[Bench]:
    """A filled server, a synced agent, its pods wired."""
    async with Embedded() as server:
        begin_s = time.monotonic()
        await wiring.fill(server, shape)
        for name, (namespace, peer) in TURNED.items():
            made = workload.policy(namespace, f"turned-{name}", {}, ingress=[{"from": [peer]}])
            await server.create(Kind.NETWORK_POLICY, made)
        progress(f"{shape.pods} pods, {shape.policies} policies loaded in {time.monotonic() - begin_s:.1f} s")
        watcher = Watcher(server)
        agent = MeteredAgent(server.kubeconfig, root, backoff_cap_s=BACKOFF_CAP_S)
        watching = asyncio.create_task(watcher.run())
        try:
            agent.start()
            first = await agent.wires()
            progress(f"agent enforces {first['done_s'] - agent.started_s:.2f} s after its start")
            one = Bench(server, agent, watcher, shape)
            wiring.make_netns([f"pod{number}" for number in range(shape.local_pods)])
            for number in range(shape.local_pods):
                await one.add(number)
            progress(f"{shape.local_pods} pods wired")
            yield one
        finally:
            agent.close()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def measure(shape: Shape, samples: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as text:
        async with bench(shape, Path(text)) as one:
            for bulk in BULKS:
                await one.under(bulk, samples)
    series = {name: structs.asdict(summarise(values)) for name, values in one.found.items()}
    return {"unit": "ms", "series": series, "median_by_stage": one.stages}


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "a smaller cluster, fewer samples")
    bed.isolate()
    wiring.add_underlay()
    shape = Shape(pods=5000, policies=1000, local_pods=20) if options.quick else Shape(pods=50_000, policies=10_000)
    figures = asyncio.run(measure(shape, 5 if options.quick else 100))
    bed.table(list(figures["series"].items()), figures["unit"])
    for name, found in figures["median_by_stage"].items():
        print(f"{name}: " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in found.items()))
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
