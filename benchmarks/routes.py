"""How long the pod network takes for thousands of peers: all from empty, one more, one less, one with another address,
read-back; and to repair what others break.

The clock runs from `update` (leases known) until the kernel holds a neighbour, a forwarding entry and a route for each
peer; of a repair, from the end of the command that did the damage until it is undone, among a thousand peers. Runs in a
network namespace of its own. Needs root.

    python -m benchmarks.routes [--quick] [--json FILE]
"""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from msgspec import structs

from benchmarks import bed
from benchmarks.bed import progress
from benchmarks.stats import Summary, summarise
from netagent.agent.network.podnetwork import PodNetwork
from netagent.config import NetworkConfig
from netagent.core.network.podnet import vtep_mac
from netagent.records import Key, SubnetLease

DRIFT_PEERS = 1000
DRIFT_SPACING_S = 0.4
"""Between two damages: the agent reads back at most a few times a second."""
DAMAGE = {
    "link down": "ip link set netagent.1 down",
    "link deleted": "ip link delete netagent.1",
    "address removed": "ip address flush dev netagent.1",
    "route removed": "ip route delete 10.0.7.0/24",
    "route altered": "ip route replace 10.0.7.0/24 via 192.168.9.9",
    "neighbour removed": "ip neighbour delete 10.0.7.0 dev netagent.1",
    "neighbour altered": "ip neighbour replace 10.0.7.0 lladdr 02:00:00:00:00:99 dev netagent.1 nud permanent",
    "forwarding entry removed": "bridge fdb delete {mac} dev netagent.1",
    "forwarding entry altered": "bridge fdb replace {mac} dev netagent.1 dst 192.168.9.9 self permanent",
    "MTU altered": "ip link set netagent.1 mtu 1300",
    "MAC altered": "ip link set netagent.1 address 02:00:00:00:00:98",
}
Samples = list[tuple[float, float]]
"""(wall ms, CPU ms)."""
CONFIG = NetworkConfig(pools=("10.0.0.0/8",))
OWN_ADDRESS = "192.168.0.1"
MOVED = "192.168.99.9"
"""The first peer's other address."""


def lease(number: int, public_ip: str = "") -> SubnetLease:
    """The lease of node `number`, which may have another address than it has at first; 0 is ours."""
    subnet = f"10.{number >> 8}.{number & 255}.0/24"
    holder = f"node-{number}"
    first = f"192.168.{100 + (number >> 8)}.{number & 255}" if number else ""
    return SubnetLease(
        key=Key("kube-system", subnet.replace("/", "-")),
        uid=str(number),
        resource_version="1",
        subnet=subnet,
        holder=holder,
        duration_s=3600,
        backend="vxlan",
        vtep_mac=vtep_mac(holder, 4) if number else "",
        public_ip=public_ip or first,
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

    async def repaired(self, command: str) -> float:
        """Milliseconds from the end of the command until the agent has put right what it did."""
        await asyncio.sleep(DRIFT_SPACING_S)
        network = self.network
        repairs = network.status.repairs
        await asyncio.to_thread(subprocess.run, command.split(), check=True)
        started = time.perf_counter()
        rounds = network.rounds
        while network.status.repairs == repairs:
            rounds = network.rounds  # of before the round that repairs, which may be over at the next look
            await asyncio.sleep(0.0005)
        while network.rounds == rounds or network.status.failures:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        return (time.perf_counter() - started) * 1000


async def measure(count: int, repeats: int) -> dict[str, Samples]:
    """Samples in ms by work, for this many peers."""
    samples: dict[str, Samples] = {
        work: [] for work in ("from empty", "one in", "one out", "address changed", "restart")
    }
    peers = tuple(lease(number) for number in range(1, count + 1))
    for _ in range(max(2, repeats // 10)):
        await running(lambda run: from_empty(run, peers, samples["from empty"]))
    await running(lambda run: churn(run, peers, repeats, samples))
    for _ in range(max(2, repeats // 10)):
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
    first, *others = peers
    for number in range(repeats):
        moved = lease(1, "" if number % 2 else MOVED)
        samples["address changed"].append(await run.timed((moved, *others)))
        held = bed.run("bridge", "fdb", "show", "dev", "netagent.1")
        assert f"{first.vtep_mac} dst {moved.public_ip} self" in held, f"{first.vtep_mac} is not at {moved.public_ip}"
    await run.timed(peers)


async def restart(run: Run, peers: tuple[SubnetLease, ...], samples: Samples) -> None:
    samples.append(await run.timed(peers))


async def drift(repeats: int) -> dict[str, list[float]]:
    """Wall times of repairs in ms by kind of damage."""
    found: dict[str, list[float]] = {kind: [] for kind in DAMAGE}
    peers = tuple(lease(number) for number in range(1, DRIFT_PEERS + 1))

    async def work(run: Run) -> None:
        await run.timed(peers)
        for kind, command in DAMAGE.items():
            for _ in range(repeats):
                found[kind].append(await run.repaired(command.format(mac=lease(7).vtep_mac)))

    await running(work)
    return found


def add_underlay() -> None:
    """The link to the other nodes."""
    bed.run("ip", "link", "add", "under0", "type", "bridge")
    bed.run("ip", "link", "set", "under0", "up")
    bed.run("ip", "address", "add", f"{OWN_ADDRESS}/16", "dev", "under0")


def main() -> int:
    options = bed.arguments(__doc__, "fewer repetitions")
    bed.isolate()
    add_underlay()
    # The agent says what it repairs; here that is the benchmark's own doing.
    logging.getLogger("netagent").setLevel(logging.ERROR)
    series: dict[str, Summary] = {}
    for count in (100, 1000, 5000):
        samples = asyncio.run(measure(count, 3 if options.quick else 100))
        for work, found in samples.items():
            wall, cpu = (summarise(times) for times in zip(*found, strict=True))
            series |= {f"{count} peers: {work}": wall, f"{count} peers, CPU: {work}": cpu}
        progress(f"{count} peers")
    for kind, times in asyncio.run(drift(1 if options.quick else 10)).items():
        series[f"{kind}: repair"] = summarise(times)
    figures = {name: structs.asdict(one) for name, one in series.items()}
    bed.table(list(figures.items()), "ms")
    bed.write({"unit": "ms", "series": figures}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
