"""What rules cost a packet: throughput, packets and connections per second, round trips, by the number of policies.

Two pods in network namespaces, joined by a third one over two veth pairs, whose kernel forwards between them; the
server is one of 110 isolated local pods. There are as many such triples as sets of rules, side by side, and they are
measured in turns: no rules at all (twice, so that the second one tells how much of a difference is chance); connection
tracking alone (one rule for established flows); that and the kernel's NAT (one rule that never matches), which every
node with kube-proxy has; netagent's table for 0 to 10k policies on a few ports, for 1000 policies of which each has a
port of its own (a tenth of them select the server), and with masquerading and the VXLAN filter too; the layout of
kube-router for the same policies (an emulation: what its controller would leave in the kernel, not kube-router itself).
The policy that admits the traffic is the last one. Processor time is that of the client, in whose system calls the
kernel forwards: the figure that other programs disturb least.

Turns are short (10 or 20 ms), many, and each time in another order, so that neither what else the machine does nor who
was before hits one set of rules more than another. A ratio is the median, over all turns, of the figure divided by that
without rules of the same turn; "from" and "to" are an interval of 95 % for it, from the medians of the rounds, which
have new clients and servers each. "of tracked" is the same of conntrack and NAT alone. Of a rate, p95, p99 and max are
what 95 %, 99 % and all of the turns reach.

All the namespaces have one conntrack table, the kernel's, and its timeouts are the kernel's defaults: the table has as
many entries of closed connections as that of one node on which connections are opened at this rate all the time.
A connection here is the shortest there is, four packets. The more a connection carries, the less conntrack and rules
cost it. A TCP stream has one processor for its client, all forwarding and its server, so nothing that is done for it is
hidden on another.

    python -m benchmarks.datapath [--quick] [--json FILE]
"""

import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, structs

from benchmarks import bed, kuberouter, workload
from benchmarks.bed import progress
from benchmarks.compiler import Bench
from benchmarks.loads import Netload, Streams
from benchmarks.routers import Router, router
from benchmarks.stats import summarise
from benchmarks.workload import Object, Shape
from netagent.core.policy.frame import FrameSettings
from netagent.records import Change, Kind

POLICIES = (0, 1, 100, 1000, 10_000)
QUICK_POLICIES = (0, 1, 1000)
LOCAL_PODS, REMOTE_PODS = 110, 1000
PORT = 5201
OWN_PORTS, FIRST_OWN_PORT = 1000, 20_000
"""Policies that share no port: a chain has a rule for each list of ports, so this is what lengthens it."""
WHOLE = FrameSettings(masquerade=True, vxlan_port=8472, pools=("10.0.0.0/8",), own_subnets=("10.0.0.0/24",))
"""All that the agent's table has in a cluster of its own."""
BARE, AGAIN = "no rules", "no rules, again"
TRACKED, TRACKED_NAT = "conntrack only", "conntrack and NAT"
TRACKING = (
    "table inet tracking { chain forward { type filter hook forward priority 0; ct state established accept; }; }\n"
)
NAT = "table inet nat { chain out { type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; }; }\n"


class Rules(Struct, frozen=True):
    """One set of rules."""

    name: str
    enter: Callable[[Router], None]
    isolates: bool = False
    """Whether only what a policy admits may pass."""


class Cluster:
    """The pods, and any number of policies for them, all in one namespace."""

    def __init__(self) -> None:
        self.shape = Shape(pods=LOCAL_PODS + REMOTE_PODS, policies=0, namespaces=1, local_pods=LOCAL_PODS)
        self.pods = list(workload.pods(self.shape))
        self.server = self.pods[0]
        self.client = next(pod for pod in self.pods[LOCAL_PODS:] if pod["metadata"]["labels"]["tier"] == "web")

    def policies(self, count: int, *, own_ports: bool = False) -> list[Object]:
        """That many; the last one admits the client. `own_ports`: each has a port that no other has."""
        if not count:
            return []
        others = list(workload.policies(structs.replace(self.shape, policies=count - 1)))
        for number, one in enumerate(others if own_ports else ()):
            one["spec"]["ingress"][0]["ports"][0]["port"] = FIRST_OWN_PORT + number
        ports = [{"protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")]
        door = {"from": [{"podSelector": {"matchLabels": {"tier": "web"}}}], "ports": ports}
        selector = {"matchLabels": {"app": self.server["metadata"]["labels"]["app"]}}
        return [*others, workload.policy("ns-0", "door", selector, ingress=[door])]

    def script(self, count: int, frame: FrameSettings, *, own_ports: bool = False) -> str:
        """Our table."""
        objects = [(Kind.NAMESPACE, one) for one in workload.namespaces(self.shape)]
        objects += [(Kind.POD, one) for one in self.pods]
        objects += [(Kind.NETWORK_POLICY, one) for one in self.policies(count, own_ports=own_ports)]
        bench = Bench(frame)
        changes: list[Change] = [workload.upserted(kind, obj) for kind, obj in objects]
        bench.load(changes)
        return bench.whole()


def all_rules(cluster: Cluster, counts: tuple[int, ...], *, quick: bool) -> list[Rules]:
    """What is compared."""
    made = [Rules(BARE, _nothing), Rules(TRACKED, _script(TRACKING))]
    made.append(Rules(TRACKED_NAT, _script(TRACKING + NAT)))
    for count in counts:
        script = _script(cluster.script(count, FrameSettings()))
        made.append(Rules(f"netagent, {count} policies", script, count > 0))
    own = _script(cluster.script(OWN_PORTS, FrameSettings(), own_ports=True))
    made.append(Rules(f"netagent, {OWN_PORTS} policies, each with a port of its own", own, True))
    whole = _script(cluster.script(counts[-1], WHOLE))
    made.append(Rules(f"netagent, {counts[-1]} policies, masquerading, VXLAN filter", whole, True))
    made += [emulation(cluster, count) for count in (counts[-1:] if quick else counts[1:])]
    return [*made, Rules(AGAIN, _nothing)]


def emulation(cluster: Cluster, count: int) -> Rules:
    """kube-router's layout."""
    policies, local = cluster.policies(count), cluster.pods[:LOCAL_PODS]
    name = f"kube-router layout (emulation), {count} policies"

    def enter(one: Router) -> None:
        kuberouter.apply(one, local, cluster.pods, policies)

    return Rules(name, enter, True)


def _nothing(_: Router) -> None:
    pass


def _script(text: str) -> Callable[[Router], None]:
    def enter(one: Router) -> None:
        one.run("nft", "-f", "-", text=text)

    return enter


class Turns(Protocol):
    """Traffic that is ready."""

    def turn(self, number: int, seconds: float) -> tuple[float, ...]:
        """The figures of the router of that number."""


Begin = Callable[[Path, str, Sequence[Router]], AbstractContextManager[Turns]]
"""Traffic by netload's program and the server's address."""


class Load(Struct, frozen=True):
    """One kind of traffic."""

    units: dict[str, str]
    """Of its figures, by name."""
    begin: Begin
    rounds: int
    """Each begins with new clients and servers: where their memory lies can make 2 % of the throughput."""
    turns: int
    """Of one round, after one that warms up."""
    turn_s: float


def _netload(what: str) -> Begin:
    def begin(program: Path, ip: str, routers: Sequence[Router]) -> Netload:
        return Netload(program, what, ip, PORT, routers)

    return begin


def _streams(_: Path, ip: str, routers: Sequence[Router]) -> Streams:
    return Streams(ip, PORT, routers)


PROCESSOR = "processor time per"
LOADS = (
    Load({"TCP throughput": "Gbit/s"}, _streams, 15, 30, 0.01),
    Load({"64-byte UDP": "kpackets/s", f"{PROCESSOR} packet": "us"}, _netload("packets"), 12, 18, 0.02),
    Load({"TCP connections": "k/s", f"{PROCESSOR} connection": "us"}, _netload("connections"), 12, 40, 0.02),
    Load({"round trip": "us", "round trip, p99 of a turn": "us"}, _netload("roundtrip"), 12, 10, 0.02),
)
RATES = ("TCP throughput", "64-byte UDP", "TCP connections")
"""The more, the better."""
QUICK_ROUNDS = 1
CHECK_S = 0.05
Samples = dict[str, dict[str, list[float]]]
"""By figure and rules."""


def measure(counts: tuple[int, ...], *, quick: bool) -> dict[str, Any]:
    """All figures."""
    cluster = Cluster()
    ips = cluster.client["status"]["podIP"], cluster.server["status"]["podIP"]
    series: dict[str, Any] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        netload = bed.compiled("netload", Path(directory))
        stands: dict[str, Router] = {}
        for rules in all_rules(cluster, counts, quick=quick):
            one = stands[rules.name] = router(len(stands), *ips)
            rules.enter(one)
            check(netload, ips[1], one, rules.isolates)
            progress(f"{rules.name}: in the kernel")
        for load in LOADS:
            rounds = QUICK_ROUNDS if quick else load.rounds
            for figure, samples in in_rounds(load, netload, ips[1], stands, rounds).items():
                rate = figure in RATES
                for name, values in samples.items():
                    label = f"{figure}: {name}"
                    series[label] = structs.asdict(summarise(values, more_is_better=rate))
                    found[label] = ratios(values, samples, rounds)
            progress(", ".join(load.units))
    units = {figure: unit for load in LOADS for figure, unit in load.units.items()}
    return {"unit": "as named", "units": units, "series": series, "ratios": found}


def check(netload: Path, ip: str, one: Router, isolates: bool) -> None:
    """The rules do what they are measured for. Raises RuntimeError."""
    with Netload(netload, "connections", ip, PORT, [one]) as admitted:
        admitted.turn(0, CHECK_S)
    with Netload(netload, "connections", ip, PORT + 1, [one]) as other:
        try:
            other.turn(0, CHECK_S)
        except RuntimeError:
            if isolates:
                return
            raise
    if isolates:
        raise RuntimeError("a port that no policy admits is open")


def in_rounds(load: Load, netload: Path, ip: str, stands: dict[str, Router], rounds: int) -> Samples:
    """Figures by rules."""
    names = list(stands)
    samples: Samples = {figure: {name: [] for name in names} for figure in load.units}
    chance = random.Random(rounds)  # noqa: S311 - nobody need be unable to guess it
    for _ in range(rounds):
        with load.begin(netload, ip, list(stands.values())) as traffic:
            for turn in range(1 + load.turns):
                for number in chance.sample(range(len(names)), len(names)):
                    figures = traffic.turn(number, load.turn_s)
                    for figure, value in zip(load.units, figures, strict=False):
                        if turn:
                            samples[figure][names[number]].append(value)
    return samples


def ratios(values: list[float], samples: dict[str, list[float]], rounds: int) -> dict[str, float]:
    """Of the values to those without rules, turn by turn, and to those of a node that has kube-proxy and no policy.

    The interval is that of the sign test over the medians of the rounds, which have clients and servers of their own.
    """
    of_bare = [value / base for value, base in zip(values, samples[BARE], strict=True)]
    of_tracked = statistics.median(value / base for value, base in zip(values, samples[TRACKED_NAT], strict=True))
    turns = len(of_bare) // rounds
    medians = sorted(statistics.median(of_bare[at : at + turns]) for at in range(0, len(of_bare), turns))
    first = max(0, math.floor((rounds - 1.96 * math.sqrt(rounds)) / 2))
    interval = {"from": medians[first], "to": medians[-1 - first]}
    return {"median": statistics.median(of_bare), **interval, "of_tracked": of_tracked}


def main() -> int:
    """Run and print; write JSON where asked to."""
    options = bed.arguments(__doc__, "fewer sets of rules, few turns")
    bed.isolate()
    figures = measure(QUICK_POLICIES if options.quick else POLICIES, quick=options.quick)
    bed.table(list(figures["series"].items()), ", ".join(f"{name} {unit}" for name, unit in figures["units"].items()))
    for name, one in figures["ratios"].items():
        print(f"{name}: {one['median']:.1%} of that without rules")
    bed.write(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
