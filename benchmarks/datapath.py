"""What rules cost a packet: throughput, packets and connections per second, round trips, by the number of policies.

Two pods in network namespaces, joined by a third one over two veth pairs, whose kernel forwards between them; the
server is one of 110 isolated local pods. There are as many such triples as sets of rules, side by side, and they are
measured in turns: no rules at all (twice, so that the second one tells how much of a difference is chance); connection
tracking alone (one rule for established flows); that and the kernel's NAT (one rule that never matches), which every
node with kube-proxy has; netagent's table for 0 to 10k policies, and with masquerading and the VXLAN filter too; the
layout of kube-router for the same policies (an emulation: what its controller would leave in the kernel, not
kube-router itself). The policy that admits the traffic is the last one. A ratio is the median, over all turns, of the
figure divided by that without rules of the same turn. Processor time is that of the client, in whose system calls the
kernel forwards: the figure that other programs disturb least.

    python -m benchmarks.datapath [--quick] [--json FILE]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct, structs

from benchmarks import bed, kuberouter, workload
from benchmarks.bed import progress
from benchmarks.compiler import Bench
from benchmarks.routers import Router, forget_closed, router
from benchmarks.stats import summarise
from benchmarks.workload import Object, Shape
from netagent.core.policy.frame import FrameSettings
from netagent.records import Change, Kind

POLICIES = (0, 1, 100, 1000, 10_000)
QUICK_POLICIES = (0, 1, 1000)
LOCAL_PODS, REMOTE_PODS = 110, 1000
PORT = 5201
WHOLE = FrameSettings(masquerade=True, vxlan_port=8472, pools=("10.0.0.0/8",), own_subnets=("10.0.0.0/24",))
"""All that the agent's table has in a cluster of its own."""
BARE, AGAIN = "no rules", "no rules, again"
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

    def policies(self, count: int) -> list[Object]:
        """That many; the last one admits the client."""
        if not count:
            return []
        others = list(workload.policies(structs.replace(self.shape, policies=count - 1)))
        ports = [{"protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")]
        door = {"from": [{"podSelector": {"matchLabels": {"tier": "web"}}}], "ports": ports}
        selector = {"matchLabels": {"app": self.server["metadata"]["labels"]["app"]}}
        return [*others, workload.policy("ns-0", "door", selector, ingress=[door])]

    def script(self, count: int, frame: FrameSettings) -> str:
        """Our table."""
        objects = [(Kind.NAMESPACE, one) for one in workload.namespaces(self.shape)]
        objects += [(Kind.POD, one) for one in self.pods]
        objects += [(Kind.NETWORK_POLICY, one) for one in self.policies(count)]
        bench = Bench(frame)
        changes: list[Change] = [workload.upserted(kind, obj) for kind, obj in objects]
        bench.load(changes)
        return bench.whole()


def all_rules(cluster: Cluster, counts: tuple[int, ...], *, quick: bool) -> list[Rules]:
    """What is compared."""
    made = [Rules(BARE, _nothing), Rules("conntrack only", _script(TRACKING))]
    made.append(Rules("conntrack and NAT", _script(TRACKING + NAT)))
    for count in counts:
        script = _script(cluster.script(count, FrameSettings()))
        made.append(Rules(f"netagent, {count} policies", script, count > 0))
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
        forget_closed(one)

    return Rules(name, enter, True)


def _nothing(_: Router) -> None:
    pass


def _script(text: str) -> Callable[[Router], None]:
    def enter(one: Router) -> None:
        one.run("nft", "-f", "-", text=text)
        forget_closed(one)

    return enter


class Meter:
    """The loads; each returns its figures in their units."""

    def __init__(self, ip: str, netload: Path, seconds: float) -> None:
        self._ip, self._netload, self._seconds = ip, netload, seconds

    def check(self, one: Router, isolates: bool) -> None:
        """The rules do what they are measured for. Raises RuntimeError."""
        self._load("connections", one, seconds=0.05)
        try:
            self._load("connections", one, PORT + 1, 0.05)
        except RuntimeError:
            if isolates:
                return
            raise
        if isolates:
            raise RuntimeError("a port that no policy admits is open")

    def throughput(self, one: Router) -> tuple[float, ...]:
        """One TCP stream for a second, Gbit/s received."""
        command = ["ip", "netns", "exec", Path(one.server).name, "iperf3", "-s", "-p", str(PORT)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                return (self._iperf(one)["sum_received"]["bits_per_second"] / 1e9,)
            finally:
                server.kill()

    def packets(self, one: Router) -> tuple[float, ...]:
        """64-byte UDP: thousand packets per second received, microseconds of the sender for each."""
        return tuple(figure / 1e3 for figure in self._load("packets", one))

    def connections(self, one: Router) -> tuple[float, ...]:
        """TCP connections opened and reset: thousand per second, microseconds of the client for each."""
        return tuple(figure / 1e3 for figure in self._load("connections", one))

    def roundtrip(self, one: Router) -> tuple[float, ...]:
        """64 bytes over UDP and back, microseconds."""
        return (self._load("roundtrip", one)[0] / 1e3,)

    def _load(self, what: str, one: Router, port: int = PORT, seconds: float = 0.0) -> list[float]:
        duration = str(seconds or self._seconds)
        output = bed.run(str(self._netload), what, duration, one.client, one.server, self._ip, str(port))
        return [float(line) for line in output.split()]

    def _iperf(self, one: Router) -> Any:
        client = ["ip", "netns", "exec", Path(one.client).name, "iperf3", "-c", self._ip, "-p", str(PORT), "-J"]
        deadline_s = time.monotonic() + bed.DEADLINE_S
        while True:
            done = subprocess.run([*client, "-t", "1"], capture_output=True, check=False)
            answer = orjson.loads(done.stdout)
            if "error" not in answer:
                return answer["end"]
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"iperf3: {answer['error']}")
            time.sleep(0.02)


class Load(Struct, frozen=True):
    """One kind of traffic."""

    units: dict[str, str]
    """Of its figures, by name."""
    measure: Callable[[Meter, Router], tuple[float, ...]]
    turns: int
    quick_turns: int


PROCESSOR = "processor time per"
LOADS = (
    Load({"TCP throughput": "Gbit/s"}, Meter.throughput, 8, 1),
    Load({"64-byte UDP": "kpackets/s", f"{PROCESSOR} packet": "us"}, Meter.packets, 25, 4),
    Load({"TCP connections": "k/s", f"{PROCESSOR} connection": "us"}, Meter.connections, 45, 8),
    Load({"round trip": "us"}, Meter.roundtrip, 10, 3),
)
SLOT_S, QUICK_SLOT_S = 0.25, 0.1
"""Of one set of rules in one turn; short, so that what else the machine does hits all of them alike."""
Samples = dict[str, dict[str, list[float]]]
"""By figure and rules."""


def measure(counts: tuple[int, ...], *, quick: bool) -> dict[str, Any]:
    """All figures."""
    cluster = Cluster()
    ips = cluster.client["status"]["podIP"], cluster.server["status"]["podIP"]
    made_s: dict[str, float] = {}
    series: dict[str, Any] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        meter = Meter(ips[1], bed.compiled("netload", Path(directory)), QUICK_SLOT_S if quick else SLOT_S)
        stands: dict[str, Router] = {}
        for rules in all_rules(cluster, counts, quick=quick):
            one = stands[rules.name] = router(len(stands), *ips)
            began_s = time.monotonic()
            rules.enter(one)
            made_s[rules.name] = time.monotonic() - began_s
            meter.check(one, rules.isolates)
            progress(f"{rules.name}: in the kernel after {made_s[rules.name]:.1f} s")
        for load in LOADS:
            turns = load.quick_turns if quick else load.turns
            for figure, samples in in_turns(load, meter, stands, turns).items():
                series |= {f"{figure}: {name}": structs.asdict(summarise(values)) for name, values in samples.items()}
                found |= {f"{figure}: {name}": ratio(values, samples[BARE]) for name, values in samples.items()}
            progress(f"{', '.join(load.units)}: {turns} turns")
    units = {figure: unit for load in LOADS for figure, unit in load.units.items()}
    return {"unit": "as named", "units": units, "series": series, "ratios": found, "rules_made_s": made_s}


def in_turns(load: Load, meter: Meter, stands: dict[str, Router], turns: int) -> Samples:
    """Figures by rules; the first of several turns warms up, and each begins with another one."""
    names = list(stands)
    samples: Samples = {figure: {name: [] for name in names} for figure in load.units}
    warm_ups = 1 if turns > 1 else 0
    for turn in range(warm_ups + turns):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            figures = load.measure(meter, stands[name])
            for figure, value in zip(load.units, figures, strict=True):
                if turn >= warm_ups:
                    samples[figure][name].append(value)
    return samples


def ratio(values: list[float], bare: list[float]) -> dict[str, float]:
    """Of the values to those without rules, turn by turn."""
    ratios = sorted(value / base for value, base in zip(values, bare, strict=True))
    quarter = len(ratios) // 4
    return {
        "median": statistics.median(ratios),
        "lower quartile": ratios[quarter],
        "upper quartile": ratios[-1 - quarter],
    }


def main() -> int:
    """Run and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sets of rules, few turns")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    bed.isolate()
    figures = measure(QUICK_POLICIES if options.quick else POLICIES, quick=options.quick)
    bed.table(list(figures["series"].items()), ", ".join(f"{name} {unit}" for name, unit in figures["units"].items()))
    for name, one in figures["ratios"].items():
        print(f"{name}: {one['median']:.1%} of that without rules")
    if options.json:
        Path(options.json).write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
