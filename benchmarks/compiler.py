"""The policy compiler alone: from nothing, and what one change costs, by the size of the cluster; memory.

200 local pods among 10k to 250k, 1k and 10k policies. Each size runs in a process of its own, whose resident memory
before and after is what the view and the ruleset take. Every figure includes the store and the making of what goes to
the kernel: a script for everything, a batch for a change. No kernel is involved.

    python -m benchmarks.compiler [--quick] [--json FILE]
"""

import functools
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks import bed, workload
from benchmarks.bed import progress
from benchmarks.stats import summarise
from benchmarks.workload import NODE, Shape
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.generation import Stamp
from netagent.core.policy.render import render, replacement, small
from netagent.core.policy.store import Dirty, Store
from netagent.kernel.nfparts import batch
from netagent.kernel.nft import TABLE_NAME
from netagent.kernel.nftransaction import parts
from netagent.ports import StampChange, TableInventory
from netagent.records import Change, Endpoint, Kind, Pod, Upserted

LOCAL_PODS = 200
SIZES = tuple((pods, policies) for pods in (10_000, 100_000, 250_000) for policies in (1000, 10_000))
QUICK_SIZES = ((10_000, 1000), (30_000, 1000))


class Bench:
    """A view, a compiler and what goes to the kernel, as the agent has them."""

    def __init__(self, frame: FrameSettings = FrameSettings()) -> None:  # noqa: B008 - it is frozen
        self.store = Store()
        self.compiler = Compiler(self.store, frame, NODE)
        self._stamp = Stamp(0xFFFF0000, 1)

    def load(self, changes: list[Change]) -> int:
        """All of a cluster at once; bytes of the script."""
        dirty = Dirty()
        for change in changes:
            dirty.add(self.take(change))
        self.compiler.update(dirty)
        return len(self.whole())

    def whole(self) -> str:
        """The script that makes the table."""
        return replacement(self.compiler.ruleset.whole(), self._stamp.mark, TableInventory(exists=False))

    def change(self, change: Change) -> int:
        """One change; bytes for the kernel."""
        self.compiler.update(self.take(change))
        delta = self.compiler.ruleset.take()
        if not delta:
            return 0
        if delta.revokes:
            self._stamp = self._stamp.next()
        quick = small(delta, StampChange(self._stamp.mask, self._stamp.bits) if delta.revokes else None)
        if quick is not None:
            return len(batch(parts(TABLE_NAME, quick), 1))
        return len(render(delta, self.compiler.ruleset.chains, self._stamp.mark, new_mark=delta.revokes))

    def take(self, change: Change) -> Dirty:
        """Into the view; a local pod with its sandbox."""
        dirty = self.store.apply(change)
        record = change.record if isinstance(change, Upserted) else None
        if isinstance(record, Pod) and record.node == NODE and not self.store.sandboxes_of(record.key):
            dirty.add(self.store.admit(sandbox(record)))
        return dirty


def sandbox(pod: Pod) -> Endpoint:
    """Of a local pod."""
    container = f"c-{pod.key.namespace}-{pod.key.name}"
    return Endpoint(
        pod=pod.key, pod_uid=pod.uid, container_id=container, ifname="eth0", host_ifname=f"nap{pod.ips[0]}", ips=pod.ips
    )


def one_size(pods: int, policies: int, repeats: int) -> dict[str, Any]:
    """Series (ms), bytes of scripts, memory (MB) of one size."""
    shape = Shape(pods=pods, policies=policies, local_pods=LOCAL_PODS)
    before_mb = rss_mb()
    changes: list[Change] = list(workload.changes(shape))
    bench = Bench()
    cold_ms, size = timed(functools.partial(bench.load, changes))
    changes.clear()
    gc.collect()
    found: dict[str, Any] = {"cold compile": [cold_ms]}
    script = {"cold compile": size}
    memory = {"view and ruleset": rss_mb() - before_mb, "process": rss_mb()}
    for name, make in WORK.items():
        found[name] = []
        for number in range(repeats + 1):
            ready = make(shape, number)
            took_ms, size = timed(functools.partial(bench.change, ready))
            if number:
                found[name].append(took_ms)
                script[name] = max(size, script.get(name, 0))
    return {"series": found, "script_bytes": script, "memory_mb": memory}


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Milliseconds and result."""
    began_s = time.perf_counter()
    result = work()
    return (time.perf_counter() - began_s) * 1e3, result


def rss_mb() -> float:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * bed.PAGE_BYTES / 1e6


def pod_relabelled(shape: Shape, number: int) -> Upserted:
    """A remote pod that local policies admit by its tier turns it, and turns it back in the next."""
    obj = workload.numbered_pod(shape, (number + 1) // 2 * 4 + shape.local_pods)
    if number % 2:
        obj["metadata"]["labels"]["tier"] = "none"
    return workload.upserted(Kind.POD, obj)


def pod_untouched(shape: Shape, number: int) -> Upserted:
    """An event that changes nothing that anybody asks for."""
    return workload.upserted(Kind.POD, workload.numbered_pod(shape, shape.local_pods + 7 * number))


def namespace_relabelled(shape: Shape, number: int) -> Upserted:
    """A namespace joins another team, and comes back in the next."""
    home = (number + 1) // 2 % shape.namespaces
    team = f"team-{(home + number % 2) % workload.TEAMS}"
    return workload.upserted(Kind.NAMESPACE, workload.namespace(f"ns-{home}", team=team))


def policy_edited(shape: Shape, number: int) -> Upserted:
    """A policy of local pods gets another port, and loses it in the next."""
    obj = workload.numbered_policy(shape, (number + 1) // 2 % shape.namespaces)
    if number % 2:
        obj["spec"]["ingress"][0]["ports"].append({"protocol": "TCP", "port": 9999})
    return workload.upserted(Kind.NETWORK_POLICY, obj)


WORK: dict[str, Callable[[Shape, int], Upserted]] = {
    "one pod relabelled": pod_relabelled,
    "one pod's status": pod_untouched,
    "one namespace relabelled": namespace_relabelled,
    "one policy edited": policy_edited,
}


def measure(sizes: tuple[tuple[int, int], ...], repeats: int) -> dict[str, Any]:
    """All sizes, each in a process of its own."""
    series: dict[str, Any] = {}
    script: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    for pods, policies in sizes:
        where = f"{pods} pods, {policies} policies"
        with context.Pool(1) as pool:
            one = pool.apply(one_size, (pods, policies, repeats))
        for name, values in one["series"].items():
            series[f"{where}: {name}"] = structs.asdict(summarise(values))
        script[where], memory[where] = one["script_bytes"], one["memory_mb"]
        progress(f"{where}: cold {one['series']['cold compile'][0]:.0f} ms, {memory[where]['process']:.0f} MB")
    return {"unit": "ms", "series": series, "script_bytes": script, "memory_mb": memory}


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "two sizes, fewer changes")
    figures = measure(QUICK_SIZES, 20) if options.quick else measure(SIZES, 100)
    bed.table(list(figures["series"].items()), figures["unit"])
    for where, one in figures["memory_mb"].items():
        print(f"{where}: " + ", ".join(f"{what} {value:.0f} MB" for what, value in one.items()))
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
