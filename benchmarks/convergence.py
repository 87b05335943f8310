"""From the API server's answer to the kernel's commit and to the first packet that obeys.

An agent for policy only watches a cluster of 1k to 50k pods, 1k policies and 110 local pods in an API server that is
another process: the lab's, and kube-apiserver where KUBEBUILDER_ASSETS is set (10k pods, which it takes in in 20 s).
A packet each 0.2 ms goes from a remote pod to a local one while policies, labels, namespaces and pods are changed so
that it may pass and may not by turns; idle, and while other pods change 50 to 1000 times a second (50 and 200 at
kube-apiserver), one in ten of them so that it matters on this node.

Clocks: `watch event` is when its bytes had arrived in the agent, `API answer` when the writer had its answer (which may
be later than the watch event), `first packet` the sending of the first packet that is treated as the change wants it.
A stage's figure is its mean over the changes of a load; what was done for other changes since the commit before counts
too. The stage `receive` counts from the beginning of the write, so it holds the API server's own time: its answer and
the watch event leave it at the same moment, and which of the two arrives first is chance.

    python -m benchmarks.convergence [--quick] [--json FILE]
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from benchmarks import bed, workload
from benchmarks.bed import Agent, Probe, progress
from benchmarks.servers import Embedded, Real, Server, real_available
from benchmarks.stats import summarise
from benchmarks.workload import Object, Shape
from netagent.records import Kind

PEER, LOCAL = ("peer", "10.255.0.1"), ("local", "10.255.1.1")
"""Places and addresses of the two ends of the flow."""
HERE, THERE = "probe-local", "probe-peer"
"""Their namespaces. What begins with `probe` is marked in the agent's trace."""
SHARE = 0.1
"""Of the other events, those that change a peer set of this node."""
IDLE_S = 0.03
"""Between changes, so that each finds an idle agent."""
PROBE_S = bed.PROBE_US / 1e6
"""A packet's stamp is taken a little before it is sent."""
WARM_UP = 1
COVERED_S = 5.0
"""A commit that covers a change is in the trace long before."""
MOST_VOID = 3
"""Of all changes at one server."""
STAGES = ("receive", "decode", "store", "wait", "compile", "diff", "commit")


class Sample(Struct, frozen=True):
    """One change; milliseconds."""

    change: str
    watch_to_commit: float
    answer_to_commit: float
    answer_to_packet: float
    stages: dict[str, float]


class Load(Struct, frozen=True):
    """What else goes on, and how often everything is repeated."""

    per_s: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.per_s:.0f} events/s" if self.per_s else "idle"


class Bench:
    """One agent at one API server."""

    def __init__(self, server: Server, agent: Agent, probe: Probe, ruleset: dict[str, int]) -> None:
        self._server, self._agent, self._probe = server, agent, probe
        self.ruleset = ruleset
        """What is enforced from the beginning on."""
        self.samples: list[Sample] = []
        self.void = 0
        """Changes whose moment the prober missed."""

    async def change(self, name: str, kind: Kind, work: Awaitable[float], up: bool) -> None:
        """One change that lets packets pass, or not."""
        await asyncio.sleep(IDLE_S)
        self._agent.trace.forget()
        began_s = time.monotonic()
        answered_s = await work
        obeyed_s = await self._probe.turned(up, began_s)
        # Several events may tell of one change (a pod's creation and its status): the commit that did it is the last
        # one that had begun when the first packet obeyed.
        try:
            commit = await self._agent.trace.last(lambda one: _covers(one, kind, obeyed_s), COVERED_S)
        except TimeoutError:  # the prober itself lost packets just before they had to stop
            self.void += 1
            return
        mark = [one for one in commit["marks"] if one["kind"] == kind][-1]
        stages = {
            "receive": mark["received_s"] - began_s,
            "decode": commit["decode"],
            "store": commit["store"],
            "wait": commit["compiling_s"] - mark["applied_s"],
            **{stage: commit[stage] for stage in ("compile", "diff", "commit")},
        }
        self.samples.append(
            Sample(
                name,
                (commit["done_s"] - mark["received_s"]) * 1e3,
                (commit["done_s"] - answered_s) * 1e3,
                (obeyed_s - answered_s) * 1e3,
                {stage: took_s * 1e3 for stage, took_s in stages.items()},
            )
        )

    async def round(self) -> None:
        """Every kind of change."""
        await self._policies()
        await self._labels()
        await self._namespaces()

    async def _policies(self) -> None:
        kind, server = Kind.NETWORK_POLICY, self._server
        door = {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "peer"}}}]}

        def edit(rules: list[Object]) -> Awaitable[float]:
            return server.patch(kind, HERE, "probe", {"spec": {"ingress": rules}})

        await self.change("policy created", kind, server.create(kind, _policy([])), False)
        await self.change("policy edited", kind, edit([door]), True)
        await self.change("policy edited", kind, edit([]), False)
        await self.change("policy deleted", kind, server.delete(kind, HERE, "probe"), True)

    async def _labels(self) -> None:
        kind, server = Kind.POD, self._server
        door = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"door": "open"}}}
        await self._given([{"from": [door]}])

        def label(value: str | None) -> Awaitable[float]:
            return server.patch(kind, THERE, "probe-peer", {"metadata": {"labels": {"door": value}}})

        await self.change("pod labelled", kind, label("open"), True)
        await self.change("pod labelled", kind, label(None), False)
        await self.change("pod labelled", kind, label("open"), True)
        await self.change("remote pod removed", kind, server.delete(kind, THERE, "probe-peer"), False)
        await self.change("remote pod added", kind, server.create(kind, peer_pod(door="open")), True)
        await server.patch(kind, THERE, "probe-peer", {"metadata": {"labels": {"door": None}}})
        await self._probe.turned(False, 0)
        await self._free()

    async def _namespaces(self) -> None:
        kind, server = Kind.NAMESPACE, self._server
        await self._given([{"from": [{"namespaceSelector": {"matchLabels": {"door": "open"}}}]}])

        def label(value: str | None) -> Awaitable[float]:
            return server.patch(kind, "", THERE, {"metadata": {"labels": {"door": value}}})

        await self.change("namespace labelled", kind, label("open"), True)
        await self.change("namespace labelled", kind, label(None), False)
        await self._free()

    async def _given(self, rules: list[Object]) -> None:
        await self._server.create(Kind.NETWORK_POLICY, _policy(rules))
        await self._probe.turned(False, 0)

    async def _free(self) -> None:
        await self._server.delete(Kind.NETWORK_POLICY, HERE, "probe")
        await self._probe.turned(True, 0)


def _covers(commit: dict[str, Any], kind: Kind, obeyed_s: float) -> bool:
    """Whether a commit tells of the change and had begun when packets obeyed."""
    marked = any(mark["kind"] == kind for mark in commit["marks"])
    return bool(marked and commit["running_s"] <= obeyed_s + PROBE_S)


def _policy(rules: list[Object]) -> Object:
    return workload.policy(HERE, "probe", {"matchLabels": {"app": "local"}}, ingress=rules)


def peer_pod(**labels: str) -> Object:
    """The pod of another node from which the packets come."""
    return workload.pod(THERE, "probe-peer", PEER[1], "node-1", {"app": "peer", **labels})


async def set_up(server: Server, shape: Shape) -> None:
    """The cluster, and the two pods of the flow."""
    begin_s = time.monotonic()
    await server.load(structs.replace(shape, local_pods=shape.local_pods - 1))
    for name in (HERE, THERE):
        await server.create(Kind.NAMESPACE, workload.namespace(name))
    await server.create(Kind.POD, peer_pod())
    await server.create(Kind.POD, workload.pod(HERE, "probe-local", LOCAL[1], workload.NODE, {"app": "local"}))
    progress(
        f"{server.name}: {shape.pods} pods, {shape.policies} policies loaded in {time.monotonic() - begin_s:.1f} s"
    )


@asynccontextmanager
async def bench(make: Callable[[], Server], shape: Shape, program: Path) -> AsyncIterator[tuple[Server, Bench]]:
    """A filled server, a synced agent, a prober."""
    async with make() as server:
        await set_up(server, shape)
        with bed.agent(server.kubeconfig) as agent:
            first = await agent.synced()
            progress(f"{server.name}: agent enforces {first['done_s'] - agent.started_s:.2f} s after its start")
            async with Probe(program, PEER, LOCAL) as probe:
                await probe.turned(True, 0)
                yield server, Bench(server, agent, probe, bed.ruleset(first))


async def measure(plan: list[tuple[Callable[[], Server], Shape, list[Load]]]) -> dict[str, Any]:
    """All figures."""
    series: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    rulesets: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        program = bed.compiled("probe", Path(directory))
        for make, shape, loads in plan:
            async with bench(make, shape, program) as (server, one):
                for load in loads:
                    where = f"{server.name}, {shape.pods} pods, {load}"
                    rate = await under(server, one, shape, load)
                    report(where, one.samples, series, stages, detailed=not load.per_s)
                    progress(
                        f"{where}: {len(one.samples)} changes" + (f", {rate:.0f} events/s reached" if rate else "")
                    )
                    if rate:
                        stages[where]["events_per_s"] = rate
                rulesets[f"{server.name}, {shape.pods} pods"] = {**one.ruleset, "changes_not_clocked": one.void}
                if one.void > MOST_VOID:
                    raise RuntimeError(f"{one.void} changes were seen by the prober before the agent committed them")
    return {"unit": "ms", "series": series, "mean_by_stage": stages, "enforced": rulesets}


async def under(server: Server, one: Bench, shape: Shape, load: Load) -> float:
    """Samples of one load into `one.samples`; the rate of other events that was reached."""
    loaded = structs.replace(shape, local_pods=shape.local_pods - 1)
    if load.per_s:
        await server.churn(loaded, load.per_s, SHARE)
        await asyncio.sleep(0.5)
    for number in range(WARM_UP + load.rounds):
        if number == WARM_UP:
            one.samples = []
        await one.round()
    return await server.quiet() if load.per_s else 0.0


def report(
    where: str, samples: list[Sample], series: dict[str, Any], stages: dict[str, Any], *, detailed: bool
) -> None:
    """Enter the samples of one load."""
    for name in ("watch_to_commit", "answer_to_commit", "answer_to_packet"):
        title = {
            "watch_to_commit": "watch event -> commit",
            "answer_to_commit": "API answer -> commit",
            "answer_to_packet": "API answer -> first packet",
        }[name]
        series[f"{where}: {title}"] = structs.asdict(summarise([getattr(one, name) for one in samples]))
        for change in dict.fromkeys(one.change for one in samples) if detailed else ():
            values = [getattr(one, name) for one in samples if one.change == change]
            series[f"{where}, {change}: {title}"] = structs.asdict(summarise(values))
    means = {stage: statistics.mean(one.stages[stage] for one in samples) for stage in STAGES}
    total = statistics.mean(one.watch_to_commit for one in samples)
    # Some of the work on the changes beside it is done before this one arrives, so the rest may be below 0.
    rest = total - sum(ms for stage, ms in means.items() if stage != "receive")
    stages[where] = {**means, "rest": rest, "watch event -> commit": total}


def plan(quick: bool) -> list[tuple[Callable[[], Server], Shape, list[Load]]]:
    """What runs: server, size, loads."""
    if quick:
        small = Shape(pods=2000, policies=200)
        made: list[Any] = [(Embedded, small, [Load(0, 2), Load(200, 2)])]
        return [*made, (Real, Shape(pods=1000, policies=100), [Load(0, 2)])] if real_available() else made
    loads = [Load(per_s, 20) for per_s in (0, 50, 200, 1000)]
    full: list[Any] = [
        (Embedded, Shape(pods=1000, policies=1000), loads[:1]),
        (Embedded, Shape(pods=10_000, policies=1000), loads),
        (Embedded, Shape(pods=50_000, policies=1000), loads[:1]),
    ]
    return [*full, (Real, Shape(pods=10_000, policies=1000), loads[:3])] if real_available() else full


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "smaller clusters, fewer changes")
    bed.isolate()
    bed.place(*PEER)
    bed.place(*LOCAL)
    figures = asyncio.run(measure(plan(options.quick)))
    bed.table(list(figures["series"].items()), figures["unit"])
    for where, one in figures["mean_by_stage"].items():
        print(f"{where}: " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in one.items()))
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
