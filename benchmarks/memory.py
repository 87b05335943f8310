"""Resident memory of the agent's process by the size of the cluster, and over cycles of pods that come and go.

An agent with everything on (lease, pod network, CNI, policy) and 1k policies, the pods in the lab's API server; 110 of
them are of its node. `largest` is the most that the process ever had. The slope is that of a line through the cycles
after warm-up, over all of them, in percent of the memory at its beginning.

    python -m benchmarks.memory [--quick] [--json FILE]
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from benchmarks import bed, wiring
from benchmarks.bed import Agent, progress
from benchmarks.servers import Embedded
from benchmarks.stats import summarise
from benchmarks.wiring import WiringAgent
from benchmarks.workload import Shape

SIZES = (0, 1000, 10_000, 100_000)
QUICK_SIZES = (0, 10_000)
CYCLES, QUICK_CYCLES = 20, 2
CYCLE_PODS, QUICK_CYCLE_PODS = 10_000, 1000
BASE_PODS = 1000
"""That stay through all cycles."""
WARM_UP_SHARE = 0.25
"""Of the cycles."""
SETTLE_S = 0.5
POLICIES = 1000


async def measure(sizes: tuple[int, ...], cycles: int, cycle_pods: int) -> dict[str, Any]:
    """All figures, MB."""
    return {"unit": "MB", "series": await sized(sizes)} | await cycled(cycles, cycle_pods)


async def sized(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Memory by the number of pods."""
    series: dict[str, Any] = {}
    for pods in sizes:
        shape = Shape(pods=pods, policies=POLICIES if pods else 0, local_pods=min(110, pods))
        async with Embedded() as server:
            await wiring.fill(server, shape)
            with running(server) as agent:
                await agent.wires()
                await settled(agent)
                series[f"{pods} pods"] = structs.asdict(summarise([agent.rss_mb]))
                series[f"{pods} pods, largest"] = structs.asdict(summarise([agent.largest_rss_mb]))
                progress(f"{pods} pods: {agent.rss_mb:.1f} MB, largest {agent.largest_rss_mb:.1f} MB")
    return series


@contextmanager
def running(server: Embedded) -> Iterator[WiringAgent]:
    """A whole agent, just started."""
    with tempfile.TemporaryDirectory() as root:
        agent = WiringAgent(server.kubeconfig, Path(root))
        try:
            agent.start()
            yield agent
        finally:
            agent.close()


async def cycled(cycles: int, count: int) -> dict[str, Any]:
    """Memory after each cycle in which pods came and went."""
    shape = Shape(pods=BASE_PODS, policies=POLICIES)
    after: list[float] = []
    async with Embedded() as server:
        await wiring.fill(server, shape)
        with running(server) as agent:
            await agent.wires()
            for number in range(cycles):
                for what in ("come", "go"):
                    await server.tell(what, shape=msgspec.to_builtins(shape), first=BASE_PODS, count=count)
                    await settled(agent)
                after.append(agent.rss_mb)
                progress(f"cycle {number + 1} of {cycles}: {after[-1]:.1f} MB")
    return {"cycles_mb": after, "growth_percent": growth(after[int(cycles * WARM_UP_SHARE) :])}


async def settled(agent: Agent) -> None:
    """Until the agent has nothing more to do."""
    async with asyncio.timeout(bed.DEADLINE_S):
        while True:
            before_s = agent.cpu_s
            await asyncio.sleep(SETTLE_S)
            if agent.cpu_s - before_s < 0.1 * SETTLE_S:
                return


def growth(values: list[float]) -> float:
    """Of a line through the values (least squares): its rise from end to end, percent of its beginning."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    slope = sum((at - middle) * (value - mean) for at, value in enumerate(values)) / sum(
        (at - middle) ** 2 for at in range(count)
    )
    return slope * (count - 1) / (mean - slope * middle) * 100


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "smaller clusters, fewer cycles")
    bed.isolate()
    wiring.add_underlay()
    quick = options.quick
    size = (QUICK_SIZES, QUICK_CYCLES, QUICK_CYCLE_PODS) if quick else (SIZES, CYCLES, CYCLE_PODS)
    figures = asyncio.run(measure(*size))
    bed.table(list(figures["series"].items()), figures["unit"])
    print(f"growth over the cycles after warm-up: {figures['growth_percent']:.2f} %")
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
