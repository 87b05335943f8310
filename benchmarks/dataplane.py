"""What one change costs at the kernel's end, by the size of the ruleset: Felix's grid of sets and chains.

A table of the agent's form, with S sets of M members and C class chains of R rules that pods' map elements lead to.
Each change is made three ways in turn: as the agent does it (a netlink batch), as a script through libnftables, and by
an `nft -f` process; and taken back. What takes something away brings a new generation with it, as in the agent. Time is
that until the kernel has taken the transaction; CPU is that of the process, the kernel's work on its behalf included.
Runs in private namespaces; needs root.

    python -m benchmarks.dataplane [--quick] [--json FILE]
"""

import asyncio
import functools
import gc
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct, structs

from benchmarks import bed
from benchmarks.bed import progress
from benchmarks.stats import summarise
from netagent.core.policy.compiler import Compiler
from netagent.core.policy.frame import FrameSettings
from netagent.core.policy.generation import Stamp
from netagent.core.policy.render import render, replacement, small
from netagent.core.policy.ruleset import ChainDecl, Delta, SetDecl
from netagent.core.policy.store import Store
from netagent.kernel.nft import TABLE, LibNftables
from netagent.ports import SmallTransaction, StampChange, TableInventory

GRID = ((100, 20, 100, 10), (500, 50, 500, 10), (2000, 100, 2000, 10))
"""Sets, members of each, chains, rules of each."""
WARM_UP = 2
THERE_AND_BACK = ("in", "out")
"""What takes an allow away costs a generation more."""
Series = list[tuple[float, float]]
"""Wall and CPU, milliseconds."""
Samples = dict[str, Series]
ALL_REPEATS = {"netagent": 250, "libnftables": 50, "nft -f": 25}
QUICK_REPEATS = {"netagent": 20, "libnftables": 3, "nft -f": 3}
"""Changes, each taken back."""


class Size(Struct, frozen=True):
    """One point of the grid."""

    sets: int
    members: int
    chains: int
    rules: int

    def __str__(self) -> str:
        return f"{self.sets}x{self.members}/{self.chains}x{self.rules}"


class Node:
    """A desired ruleset and the kernel's table."""

    def __init__(self, size: Size) -> None:
        self.nft = LibNftables()
        self.ruleset = Compiler(Store(), FrameSettings(vxlan_port=8472), "node-0").ruleset
        self.stamp = Stamp(0xFFFF0000, 1)
        self._size = size
        self._versions = [0] * size.chains
        for number in range(size.sets):
            self.ruleset.declare(f"p4_{number}", SetDecl("ipv4_addr"))
            for member in range(size.members):
                self.ruleset.put(f"p4_{number}", f"10.{number >> 8}.{number & 255}.{member}")
        for number in range(size.chains):
            self.ruleset.put_chain(self._chain(number), self._rules(number))
            self.lead(number, number)

    def whole(self) -> str:
        """The script that makes the table."""
        return replacement(self.ruleset.whole(), self.stamp.mark, TableInventory(exists=False))

    def lead(self, pod: int, chain: int) -> None:
        """A pod is of a class."""
        self.ruleset.put("ingress4", f"10.200.{pod >> 8}.{pod & 255}", f"goto {self._chain(chain)}")

    def change_rule(self, number: int) -> None:
        """A chain with one other rule: another chain, as its name is its content."""
        old = self._chain(number)
        self._versions[number] += 1
        self.ruleset.put_chain(self._chain(number), self._rules(number))
        self.lead(number, number)
        self.ruleset.drop_chain(old)

    def take(self) -> tuple[Delta, Stamp]:
        """What changed, and the generation it comes with."""
        delta = self.ruleset.take()
        if delta.revokes:
            self.stamp = self.stamp.next()
        return delta, self.stamp

    def _chain(self, number: int) -> str:
        return f"in_{number}_{self._versions[number]}"

    def _rules(self, number: int) -> ChainDecl:
        port = 10_000 + self._versions[number] % 10_000
        made = []
        for rule in range(self._size.rules):
            name = f"p4_{(number * self._size.rules + rule) % self._size.sets}"
            match = f"ct reply proto-src {port if rule == 0 else rule}"
            made.append(f"meta l4proto tcp ct original ip saddr @{name} {match} goto admitted")
        return ChainDecl((*made, "counter name denied_ingress goto denied_ingress"))


Way = Callable[[Node, Delta, Stamp], Awaitable[None]]


async def as_agent(node: Node, delta: Delta, stamp: Stamp) -> None:
    """As `agent.dataplane.sync` does."""
    few = small(delta, StampChange(stamp.mask, stamp.bits) if delta.revokes else None)
    if isinstance(few, SmallTransaction):
        await node.nft.run_small(few)
    else:
        await by_library(node, delta, stamp)


async def by_library(node: Node, delta: Delta, stamp: Stamp) -> None:
    await node.nft.run(render(delta, node.ruleset.chains, stamp.mark, new_mark=delta.revokes))


async def by_program(node: Node, delta: Delta, stamp: Stamp) -> None:
    nft_program(render(delta, node.ruleset.chains, stamp.mark, new_mark=delta.revokes))


def nft_program(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)


WAYS: dict[str, Way] = {"netagent": as_agent, "libnftables": by_library, "nft -f": by_program}


async def full_load(node: Node, samples: Samples, repeats: int) -> None:
    """From no table; the last one stays."""
    script = node.whole()

    async def library() -> None:
        await node.nft.run(script)

    async def program() -> None:
        nft_program(script)

    for _ in range(repeats):
        for name, load in (("full load: nft -f", program), ("full load: netagent", library)):
            nft_program(f"add table {TABLE}\ndelete table {TABLE}\n")
            samples.setdefault(name, []).append(await timed(load))


async def changes(node: Node, samples: Samples, repeats: dict[str, int]) -> None:
    """Each kind of change and taking it back, the ways taking turns."""
    kinds: dict[str, Callable[[bool], None]] = {
        "one member": lambda back: (node.ruleset.discard if back else node.ruleset.put)("p4_7", "10.99.0.1"),
        "one class moved": lambda back: node.lead(7, 7 if back else 8),
        "one rule": lambda back: node.change_rule(7),
    }
    for kind, change in kinds.items():
        for number in range(WARM_UP + max(repeats.values())):
            for way, run in WAYS.items():
                if number < WARM_UP + repeats[way]:
                    await there_and_back(node, run, change, samples if number >= WARM_UP else {}, f"{kind}{{}}: {way}")


async def there_and_back(node: Node, run: Way, change: Callable[[bool], None], samples: Samples, name: str) -> None:
    for back, word in enumerate(THERE_AND_BACK):
        change(bool(back))
        delta, stamp = node.take()
        assert delta
        took = await timed(functools.partial(run, node, delta, stamp))
        samples.setdefault(name.format(f", {word}"), []).append(took)


async def timed(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Wall and CPU, milliseconds."""
    cpu_s, began_s = cpu_time_s(), time.perf_counter()
    await work()
    took_s = time.perf_counter() - began_s
    return took_s * 1e3, (cpu_time_s() - cpu_s) * 1e3


def cpu_time_s() -> float:
    """Of this process and its children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


async def one_size(size: Size, *, quick: bool) -> Samples:
    """All series of one size."""
    samples: Samples = {}
    node = Node(size)
    try:
        await full_load(node, samples, 1 if quick else 5)
        gc.collect()
        gc.freeze()  # the desired ruleset of a benchmark's size is not the agent's to be walked through
        await changes(node, samples, QUICK_REPEATS if quick else ALL_REPEATS)
        await check(node)
    finally:
        gc.unfreeze()
        nft_program(f"add table {TABLE}\ndelete table {TABLE}\n")
        node.nft.close()
    return samples


async def check(node: Node) -> None:
    """All those transactions did what they should. Raises RuntimeError."""
    held = await node.nft.inventory()
    wanted = node.ruleset.chains.keys()
    if held.chains != wanted or held.mark != node.stamp.bits:
        raise RuntimeError(f"the kernel has {len(held.chains)} chains and mark {held.mark}; {len(wanted)} were wanted")


def measure(*, quick: bool) -> dict[str, Any]:
    """The whole grid."""
    series: dict[str, Any] = {}
    for numbers in GRID:
        size = Size(*numbers)
        samples = asyncio.run(one_size(size, quick=quick))
        for name, found in samples.items():
            series[f"{size} {name}"] = structs.asdict(summarise([wall for wall, _ in found]))
            series[f"{size} {name}, CPU"] = structs.asdict(summarise([cpu for _, cpu in found]))
        medians = [series[f"{size} one member, {word}: netagent"]["median"] for word in THERE_AND_BACK]
        progress(f"{size}: one member in {medians[0]:.3f} ms, out {medians[1]:.3f} ms")
    return {"unit": "ms", "series": series}


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "fewer changes")
    bed.isolate()
    figures = measure(quick=options.quick)
    bed.table(list(figures["series"].items()), figures["unit"])
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
