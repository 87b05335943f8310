"""How long the pod network takes for thousands of peers: all from empty, one more, one less, read-back.

The clock runs from `update` (leases known) until the kernel holds a neighbour, a forwarding entry and a route for each
peer. Runs in a network namespace of its own. Needs root.

    python benchmarks/routes.py [--quick] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from netagent.agent.network import PodNetwork
from netagent.config import NetworkConfig
from netagent.core.podnet import vtep_mac
from netagent.records import Key, SubnetLease

ISOLATED = "NETAGENT_BENCH_ISOLATED"
BUDGET_MS = {("from empty", 5000): 1000.0, ("one in", 5000): 20.0, ("one out", 5000): 20.0}
"""Of the agent's own time: CPU of the process, the kernel's work on its behalf included. Wall time is shown beside it;
on a busy machine, or where others hold the kernel's rtnl lock, it is longer."""
Samples = list[tuple[float, float]]
"""(wall ms, CPU ms)."""
CONFIG = NetworkConfig(pools=("10.0.0.0/8",))
OWN_ADDRESS = "192.168.0.1"


def lease(number: int, holder: str = "") -> SubnetLease:
    """The lease of node `number`; 0 is ours."""
    subnet = f"10.{number >> 8}.{number & 255}.0/24"
    holder = holder or f"node-{number}"
    return SubnetLease(
        key=Key("kube-system", subnet.replace("/", "-")),
        uid=str(number),
        resource_version="1",
        subnet=subnet,
        holder=holder,
        duration_s=3600,
        backend="vxlan",
        vtep_mac=vtep_mac(holder, 4) if number else "",
        public_ip=f"192.168.{100 + (number >> 8)}.{number & 255}" if number else "",
    )


class Run:
    """One agent's pod network in this namespace."""

    def __init__(self) -> None:
        self.network = PodNetwork(CONFIG, "node-0", on_vtep=lambda *_: None)
        self._own = (lease(0),)

    async def timed(self, peers: tuple[SubnetLease, ...]) -> tuple[float, float]:
        """Milliseconds, wall and CPU, until these peers, and no others, have their routes."""
        await asyncio.sleep(0.15)  # an idle agent: its window under churn has closed
        before = self.network.rounds
        started, cpu = time.perf_counter(), time.process_time()
        self.network.update(self._own, peers, (OWN_ADDRESS,))
        while self.network.rounds == before or self.network.status.peers != len(peers):  # noqa: ASYNC110
            await asyncio.sleep(0.0002)
        return (time.perf_counter() - started) * 1000, (time.process_time() - cpu) * 1000


async def measure(count: int, repeats: int) -> dict[str, Samples]:
    """Samples in ms by work, for this many peers."""
    samples: dict[str, Samples] = {"from empty": [], "one in": [], "one out": [], "restart": []}
    peers = tuple(lease(number) for number in range(1, count + 1))
    for _ in range(max(3, repeats // 10)):
        await running(lambda run: from_empty(run, peers, samples["from empty"]))
    await running(lambda run: churn(run, peers, repeats, samples))
    for _ in range(max(3, repeats // 10)):
        await running(lambda run: restart(run, peers, samples["restart"]))
    return samples


async def running(work: Callable[[Run], Awaitable[None]]) -> None:
    """Run `work` beside an agent; what it made is there for the next one, as after a restart."""
    run = Run()
    task = asyncio.create_task(run.network.run())
    try:
        await work(run)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def from_empty(run: Run, peers: tuple[SubnetLease, ...], samples: Samples) -> None:
    await run.timed(())
    samples.append(await run.timed(peers))
    held = int(subprocess.run("ip route show proto 78 | wc -l", shell=True, capture_output=True, check=True).stdout)  # noqa: S602, ASYNC221
    assert held == len(peers) + 1, f"{held} routes for {len(peers)} peers"
    await run.timed(())


async def churn(run: Run, peers: tuple[SubnetLease, ...], repeats: int, samples: dict[str, Samples]) -> None:
    await run.timed(peers)
    for number in range(repeats):
        joined = (*peers, lease(len(peers) + 1 + number % 50))
        samples["one in"].append(await run.timed(joined))
        samples["one out"].append(await run.timed(peers))


async def restart(run: Run, peers: tuple[SubnetLease, ...], samples: Samples) -> None:
    samples.append(await run.timed(peers))


def isolate() -> None:
    """Go on in a network namespace of our own, with an underlay."""
    if os.environ.get(ISOLATED):
        for command in (
            "ip link set lo up",
            "ip link add under0 type bridge",
            "ip link set under0 up",
            f"ip address add {OWN_ADDRESS}/16 dev under0",
        ):
            subprocess.run(command.split(), check=True)
        return
    os.environ[ISOLATED] = "1"
    os.execvp("unshare", ["unshare", "-n", "-m", sys.executable, *sys.argv])  # noqa: S606


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    isolate()
    rows: list[dict[str, object]] = []
    print(f"{'peers':>6} {'work':<12} {'median ms':>10} {'p99 ms':>10} {'CPU median':>11} {'n':>4}  budget (CPU)")
    for count in (100, 1000, 5000):
        samples = asyncio.run(measure(count, 20 if options.quick else 100))
        for work, found in samples.items():
            rows.append(row(count, work, found))
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of the process: {rss_mib:.0f} MiB")
    if options.json:
        Path(options.json).write_text(json.dumps({"routes": rows, "max_rss_mib": rss_mib}, indent=1) + "\n")
    return 0


def row(count: int, work: str, found: Samples) -> dict[str, object]:
    """Print one line; the same as data."""
    budget = BUDGET_MS.get((work, count))
    walls, cpus = [wall for wall, _ in found], [cpu for _, cpu in found]
    median, p99, cpu = statistics.median(walls), quantile(walls, 0.99), statistics.median(cpus)
    verdict = "" if budget is None else f"{budget:g} ms: {'met' if cpu <= budget else 'MISSED'}"
    print(f"{count:>6} {work:<12} {median:>10.2f} {p99:>10.2f} {cpu:>11.2f} {len(found):>4}  {verdict}")
    return {
        "peers": count,
        "work": work,
        "median_ms": median,
        "p99_ms": p99,
        "cpu_median_ms": cpu,
        "samples": len(found),
        "budget_cpu_ms": budget,
    }


def quantile(samples: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    sys.exit(main())
