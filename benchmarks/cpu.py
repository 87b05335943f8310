"""CPU of the agent's process: idle, and while pods change 50, 200 and 1000 times a second, 1 % of it of use here.

A cluster of 10k pods and 1k policies in the lab's API server, 110 local pods. In percent of one core.

    python -m benchmarks.cpu [--quick] [--json FILE]
"""

import asyncio
import sys
import time
from typing import Any

from msgspec import structs

from benchmarks import bed
from benchmarks.bed import Agent, progress
from benchmarks.servers import Embedded
from benchmarks.stats import summarise
from benchmarks.workload import Shape

RATES = (0, 50, 200, 1000)
SHARE = 0.01
REST_S = 0.5
"""After a change of the rate, before the clock runs."""


async def measure(shape: Shape, windows: int, window_s: float) -> dict[str, Any]:
    """All figures."""
    series: dict[str, Any] = {}
    reached: dict[str, float] = {}
    async with Embedded() as server:
        await server.load(shape)
        with bed.agent(server.kubeconfig) as agent:
            await agent.synced()
            for per_s in RATES:
                name = f"{per_s} events/s" if per_s else "idle"
                if per_s:
                    await server.churn(shape, per_s, SHARE)
                await asyncio.sleep(REST_S)
                shares = [await busy(agent, window_s) for _ in range(windows)]
                series[name] = structs.asdict(summarise(shares))
                if per_s:
                    reached[name] = await server.quiet()
                progress(f"{name}: {series[name]['median']:.1f} %")
    return {"unit": "% of a core", "series": series, "events_per_s": reached}


async def busy(agent: Agent, window_s: float) -> float:
    """Percent of one core over a window."""
    began_s, before_s = time.monotonic(), agent.cpu_s
    await asyncio.sleep(window_s)
    return (agent.cpu_s - before_s) / (time.monotonic() - began_s) * 100


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "short windows, a smaller cluster")
    bed.isolate()
    size = Shape(pods=2000 if options.quick else 10_000, policies=1000)
    figures = asyncio.run(measure(size, 1 if options.quick else 5, 1.5 if options.quick else 5.0))
    bed.table(list(figures["series"].items()), figures["unit"])
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
