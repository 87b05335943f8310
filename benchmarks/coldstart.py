"""From the start of the agent's process to a kernel that enforces; and what a restart does to traffic.

Cold: the kernel has no table; a flow that a policy of the cluster denies passes until the agent enforces. Restart: the
agent is ended (by SIGTERM and by SIGKILL in turns) and started with the kernel populated; a packet each 0.2 ms on an
allowed flow must never be missed for longer than the prober's own hiccups, and a denied flow must never be answered.

    python -m benchmarks.coldstart [--quick] [--json FILE]
"""

import asyncio
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks import bed, workload
from benchmarks.bed import Agent, Probe, progress
from benchmarks.servers import Embedded, Server
from benchmarks.stats import summarise
from benchmarks.workload import Shape
from netagent.records import Kind

PEER = ("peer", "10.255.0.1")
OPEN, SHUT = ("open", "10.255.1.1"), ("shut", "10.255.1.2")
"""Local pods: one that the peer may talk to, one that it may not."""
HERE, THERE = "probe-local", "probe-peer"
SIZES = (1000, 10_000, 50_000)
QUICK_SIZES = (1000, 5000)
POLICIES = 1000
WARM_UP = 1
"""Starts that do not count: the first one reads the program from the disk."""
AFTER_S = 1.0
"""For so long after a restart's first commit packets are counted too."""


async def set_up(server: Server, shape: Shape) -> None:
    """The cluster, the three pods and the policy between them."""
    await server.load(structs.replace(shape, local_pods=shape.local_pods - 2))
    for name in (HERE, THERE):
        await server.create(Kind.NAMESPACE, workload.namespace(name))
    await server.create(Kind.POD, workload.pod(THERE, "peer", PEER[1], "node-1", {"app": "peer"}))
    for name, ip in (OPEN, SHUT):
        await server.create(Kind.POD, workload.pod(HERE, name, ip, workload.NODE, {"app": name}))
    door = [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": THERE}}}]}]
    for name, rules in (("open", door), ("shut", [])):
        policy = workload.policy(HERE, name, {"matchLabels": {"app": name}}, ingress=rules)
        await server.create(Kind.NETWORK_POLICY, policy)


async def measure(sizes: tuple[int, ...], repeats: int, restarts: int) -> dict[str, Any]:
    """All figures."""
    series: dict[str, Any] = {}
    outcome: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        program = bed.compiled("probe", Path(directory))
        for pods in sizes:
            async with Embedded() as server:
                await set_up(server, Shape(pods=pods, policies=POLICIES))
                agent = Agent(server.kubeconfig)
                try:
                    cold = [await cold_start(agent, program) for _ in range(WARM_UP + repeats)][WARM_UP:]
                    for name, values in transposed(cold).items():
                        series[f"{pods} pods, {name}"] = structs.asdict(summarise(values))
                    outcome[f"{pods} pods"] = await restart(agent, program, restarts)
                finally:
                    agent.close()
                    forget_table()
    return {"unit": "ms", "series": series, "restart": outcome}


async def cold_start(agent: Agent, program: Path) -> dict[str, float]:
    """One start without a table; milliseconds from the start of the process."""
    agent.stop()
    forget_table()
    async with Probe(program, PEER, SHUT) as probe:
        await probe.turned(True, 0)
        agent.start()
        first = await agent.synced()
        enforced_s = await probe.turned(False, agent.started_s)
    progress(f"cold start: enforced after {enforced_s - agent.started_s:.2f} s")
    return {
        "start -> first packet obeys": (enforced_s - agent.started_s) * 1e3,
        "start -> commit": (first["done_s"] - agent.started_s) * 1e3,
        "of it, decode": first["decode"] * 1e3,
        "of it, store": first["store"] * 1e3,
        "of it, compile": first["compile"] * 1e3,
        "of it, diff": first["diff"] * 1e3,
        "of it, commit": first["commit"] * 1e3,
    }


async def restart(agent: Agent, program: Path, times: int) -> dict[str, float]:
    """What the packets of an allowed and a denied flow meet while the agent is restarted."""
    async with AsyncExitStack() as stack:
        allowed = await stack.enter_async_context(Probe(program, PEER, OPEN, 7001))
        denied = await stack.enter_async_context(Probe(program, PEER, SHUT, 7002))
        await allowed.turned(True, 0)
        await denied.turned(False, 0)
        await allowed.count()
        await denied.count()
        await asyncio.sleep(1)
        baseline = await allowed.count()
        for number in range(times):
            agent.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
            agent.start()
            await agent.synced()
            await asyncio.sleep(AFTER_S)
        passed, leaked = await allowed.count(), await denied.count()
    progress(f"restart: {passed.sent - passed.arrived} of {passed.sent} packets lost, {leaked.arrived} leaked")
    return {
        "restarts": times,
        "packets": passed.sent,
        "lost": passed.sent - passed.arrived,
        "leaked": leaked.arrived,
        "longest_gap_ms": passed.silence_ms,
        "longest_gap_without_restart_ms": baseline.silence_ms,
    }


def transposed(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Values by name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def forget_table() -> None:
    """The kernel as after a reboot."""
    bed.run("nft", "-f", "-", text="add table inet netagent\ndelete table inet netagent\n")


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "smaller clusters, fewer starts")
    bed.isolate()
    for name, ip in (PEER, OPEN, SHUT):
        bed.place(name, ip)
    sizes, repeats, restarts = (QUICK_SIZES, 1, 1) if options.quick else (SIZES, 5, 5)
    figures = asyncio.run(measure(sizes, repeats, restarts))
    bed.table(list(figures["series"].items()), figures["unit"])
    for name, one in figures["restart"].items():
        print(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in one.items()))
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
