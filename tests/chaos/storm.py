"""One run: set up, make trouble, count, let it settle, judge."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec import Struct

from chaos import judge
from chaos.killer import Agent, Killer
from chaos.ledger import Ledger
from chaos.pods import Sinks, Tenant, tenants
from chaos.policies import Weather
from chaos.runtime import Runtime
from chaos.town import CUT, LINKS, NAMESPACE, RESIDENTS, STANDING, Pair, StreamProcess, pod, start_streams
from netagent.lab.cluster import Lab
from netagent.lab.plan import Settings

NODES = 2
CALM_S = 1.5
"""Of policies and pods after the last kill: the last agents get something to do too."""
CUT_S = 30.0


class Order(Struct, frozen=True, kw_only=True):
    """What is asked of a run."""

    kills: int
    seed: int
    tenants_per_node: int = 3
    silent: bool = True
    """Pods also go without any DEL; then the judge waits for the agents' next audit, half a minute at most."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What a run saw."""

    order: Order
    ledger: Ledger
    duration_s: float
    streams: list[Pair]
    late_s: float
    """Most that the process with the streams was behind its time."""

    def text(self) -> str:
        """For people."""
        ledger = self.ledger
        lines = [f"seed {self.order.seed}: {len(ledger.kills)} kills in {self.duration_s:.0f} s"]
        lines += [f"  killed, {moment}: {count}" for moment, count in ledger.moments().items()]
        lines += [f"  {name}: {count}" for name, count in sorted(ledger.counts.items())]
        pauses = [end["longest_pause_s"] for pair in self.streams if pair.link.allowed for end in (pair.near, pair.far)]
        lines.append(f"  longest pause of an allowed stream: {max(pauses):.3f} s (sender late by {self.late_s:.3f} s)")
        return "\n".join([*lines, *(f"WRONG {text}" for text in ledger.wrong), f"{len(ledger.wrong)} wrong"])


async def play(order: Order) -> Outcome:
    """A whole run in a lab of its own."""
    began_s = time.monotonic()
    async with Lab(Settings(nodes=NODES, families=(4, 6))) as lab, _peopled(lab) as streams:
        ledger = Ledger()
        before = await streams.ask("report")
        weather = Weather(lab, ledger, order.seed)
        await _storm(lab, ledger, weather, order)
        after = await streams.ask("stop")
        await judge.judge_streams(ledger, before, after)
        await judge.judge_fickle(lab, ledger, weather)
        await judge.judge_addresses(lab, ledger)
        await judge.judge_rulesets(lab, ledger)
        judge.judge_state(lab, ledger)
        judge.judge_logs(lab, ledger)
        return Outcome(
            order=order, ledger=ledger, duration_s=time.monotonic() - began_s, streams=after, late_s=streams.late_s
        )


@asynccontextmanager
async def _peopled(lab: Lab) -> AsyncIterator[StreamProcess]:
    """Residents, standing policies and streams; those to be cut have been cut."""
    await lab.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    await lab.create(*STANDING, *(pod(name, *what) for name, what in RESIDENTS.items()))
    await lab.pods_ready()
    for name, (app, _, _) in RESIDENTS.items():
        if app in ("friend", "captive"):
            for server in ("server-0", "server-1"):
                assert (await lab.probe(f"{NAMESPACE}/{name}", f"{NAMESPACE}/{server}", 80, timeout_s=10.0)).allowed
    streams = await start_streams(lab, LINKS)
    try:
        await _cut(lab, streams)
        yield streams
    finally:
        await streams.close()


async def _cut(lab: Lab, streams: StreamProcess) -> None:
    """The policy that ends streams which are open; back when nothing passes any more."""
    deadline_s = time.monotonic() + CUT_S
    while not all(pair.received > 100 for pair in await streams.ask("report") if pair.link.allowed or pair.link.cut):
        assert time.monotonic() < deadline_s, "streams do not start"
        await asyncio.sleep(0.1)
    await lab.put(CUT)
    passed = -1
    while passed != (passed := sum(pair.received for pair in await streams.ask("report") if pair.link.cut)):
        assert time.monotonic() < deadline_s, "streams are not cut"
        await asyncio.sleep(1.0)


async def _storm(lab: Lab, ledger: Ledger, weather: Weather, order: Order) -> None:
    async with AsyncExitStack() as stack:
        sinks = Sinks(lab, ledger)
        await sinks.open()
        stack.callback(sinks.close)
        runtimes = [Runtime(lab, node, ledger) for node in range(NODES)]
        for runtime in runtimes:
            stack.callback(runtime.close)
        guests = tenants(
            lab, runtimes, sinks, ledger, seed=order.seed, each=order.tenants_per_node, silent=order.silent
        )
        killers = [
            Killer(lab, node, ledger, order.seed, lambda: len(ledger.kills) < order.kills) for node in range(NODES)
        ]
        workers: list[Weather | Tenant] = [weather, *guests]
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(worker.run())
            await asyncio.gather(*(killer.run() for killer in killers))
            await asyncio.sleep(CALM_S)
            for worker in workers:
                worker.stopping = True
        for node in range(NODES):
            await Agent(lab, node).ready()
