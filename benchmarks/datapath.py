"""What rules cost a packet: throughput, packets and connections per second, round trips, by the number of policies.

Two pods in network namespaces, joined by this one over two veth pairs; the kernel forwards between them. The server is
one of 110 isolated local pods. Compared in turns: no rules at all; connection tracking alone (one rule for established
flows); netagent's table for 0 to 10k policies; the layout of kube-router for the same policies (an emulation, see
`kuberouter`). The policy that admits the traffic is the last one.

    python -m benchmarks.datapath [--quick] [--json FILE]
"""

import argparse
import asyncio
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
from benchmarks.stats import summarise
from benchmarks.workload import Object, Shape
from netagent.kernel.nft import LibNftables
from netagent.records import Change, Kind

POLICIES = (0, 1, 100, 1000, 10_000)
QUICK_POLICIES = (0, 100, 1000)
LOCAL_PODS, REMOTE_PODS = 110, 1000
PORT = 5201
UDP_BYTES = 64
SLOW_S = 20.0
"""Rules that take longer than this to be made are measured in the first turn only."""
TRACKING = (
    "table inet tracking { chain forward { type filter hook forward priority 0; ct state established accept; }; }\n"
)


class Setup(Struct, frozen=True):
    """One set of rules."""

    name: str
    isolates: bool
    """Whether only what a policy admits may pass."""
    enter: Callable[[], None]
    leave: Callable[[], None]


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

    def script(self, count: int) -> str:
        """Our table."""
        objects = [(Kind.NAMESPACE, one) for one in workload.namespaces(self.shape)]
        objects += [(Kind.POD, one) for one in self.pods]
        objects += [(Kind.NETWORK_POLICY, one) for one in self.policies(count)]
        bench = Bench()
        changes: list[Change] = [workload.upserted(kind, obj) for kind, obj in objects]
        bench.load(changes)
        return bench.whole()


def setups(cluster: Cluster, counts: tuple[int, ...]) -> list[Setup]:
    """All of them, in the order of a turn."""
    made = [
        Setup("no rules", False, _nothing, _nothing),
        Setup("conntrack only", False, lambda: _nft(TRACKING), lambda: _nft("delete table inet tracking\n")),
    ]
    for count in counts:
        made.append(netagent(cluster.script(count), count))
    for count in counts[1:]:
        made.append(emulation(cluster, count))
    return made


def netagent(script: str, count: int) -> Setup:
    """Our table through our own adapter."""

    def enter() -> None:
        nft = LibNftables()
        try:
            asyncio.run(nft.run(script))
        finally:
            nft.close()

    return Setup(f"netagent, {count} policies", count > 0, enter, lambda: _nft("delete table inet netagent\n"))


def emulation(cluster: Cluster, count: int) -> Setup:
    """kube-router's layout."""
    policies = cluster.policies(count)
    local = cluster.pods[:LOCAL_PODS]
    name = f"kube-router layout (emulation), {count} policies"
    return Setup(name, True, lambda: kuberouter.apply(local, cluster.pods, policies), kuberouter.clear)


def _nothing() -> None:
    pass


def _nft(script: str) -> None:
    bed.run("nft", "-f", "-", text=script)


class Meter:
    """The loads; each returns samples in its unit."""

    def __init__(self, ip: str, netload: Path, seconds: float) -> None:
        self._ip, self._netload, self._seconds = ip, netload, seconds

    def check(self, isolates: bool) -> None:
        """The rules do what they are measured for. Raises RuntimeError."""
        try:
            self._load("connections", PORT + 1, 0.1)
        except RuntimeError:
            if isolates:
                return
            raise
        if isolates:
            raise RuntimeError("a port that no policy admits is open")

    def throughput(self) -> list[float]:
        """One TCP stream, Gbit/s received."""
        return [self._iperf()["sum_received"]["bits_per_second"] / 1e9]

    def packets(self) -> list[float]:
        """64-byte UDP, thousand packets per second received."""
        found = self._iperf("-u", "-b", "0", "-l", str(UDP_BYTES))["sum"]
        return [(found["packets"] - found["lost_packets"]) / found["seconds"] / 1e3]

    def connections(self) -> list[float]:
        """TCP connections opened and reset, thousand per second."""
        return [number / 1e3 for number in self._load("connections")]

    def roundtrip(self) -> list[float]:
        """64 bytes over UDP and back, microseconds."""
        return [number / 1e3 for number in self._load("roundtrip")]

    def _load(self, what: str, port: int = PORT, seconds: float = 0.0) -> list[float]:
        places = ("/run/netns/client", "/run/netns/server")
        duration = str(seconds or self._seconds)
        output = bed.run(str(self._netload), what, duration, *places, self._ip, str(port))
        return [float(line) for line in output.split()]

    def _iperf(self, *more: str) -> Any:
        with subprocess.Popen(
            ["ip", "netns", "exec", "server", "iperf3", "-s", "-p", str(PORT)], stdout=subprocess.DEVNULL
        ) as server:
            try:
                return self._ask(more)
            finally:
                server.kill()

    def _ask(self, more: tuple[str, ...]) -> Any:
        client = ["ip", "netns", "exec", "client", "iperf3", "-c", self._ip, "-p", str(PORT), "-J", *more]
        deadline_s = time.monotonic() + 10
        while True:
            done = subprocess.run([*client, "-t", str(max(1, round(self._seconds)))], capture_output=True, check=False)
            answer = orjson.loads(done.stdout)
            if "error" not in answer:
                return answer["end"]
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"iperf3: {answer['error']}")
            time.sleep(0.05)


METERS: dict[str, tuple[str, Callable[[Meter], list[float]]]] = {
    "TCP throughput": ("Gbit/s", Meter.throughput),
    "64-byte UDP": ("kpackets/s", Meter.packets),
    "TCP connections": ("k/s", Meter.connections),
    "round trip": ("us", Meter.roundtrip),
}


def measure(counts: tuple[int, ...], turns: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    cluster = Cluster()
    ips = {"client": cluster.client["status"]["podIP"], "server": cluster.server["status"]["podIP"]}
    for name, ip in ips.items():
        bed.place(name, ip)
        bed.run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
    # Connections that were reset leave the tracking table before it is full.
    Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close").write_text("1")
    samples: dict[str, list[float]] = {}
    made_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        meter = Meter(ips["server"], bed.compiled("netload", Path(directory)), seconds)
        todo = setups(cluster, counts)
        for turn in range(turns):
            for setup in todo:
                if made_s.get(setup.name, 0.0) > SLOW_S:
                    continue
                began_s = time.monotonic()
                setup.enter()
                made_s[setup.name] = time.monotonic() - began_s
                try:
                    meter.check(setup.isolates)
                    for name, (_, load) in METERS.items():
                        samples.setdefault(f"{name}: {setup.name}", []).extend(load(meter))
                finally:
                    setup.leave()
                progress(f"turn {turn + 1} of {turns}: {setup.name} (rules made in {made_s[setup.name]:.1f} s)")
    series = {
        f"{name}: {setup.name}": structs.asdict(summarise(samples[f"{name}: {setup.name}"]))
        for name in METERS
        for setup in todo
    }
    units = {name: unit for name, (unit, _) in METERS.items()}
    return {"unit": "as named", "units": units, "series": series, "ratios": ratios(series), "rules_made_s": made_s}


def ratios(series: dict[str, Any]) -> dict[str, float]:
    """Median over that without rules."""
    return {
        name: one["median"] / series[f"{name.split(': ')[0]}: no rules"]["median"]
        for name, one in series.items()
        if not name.endswith(": no rules")
    }


def main() -> int:
    """Run and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sets of rules, one short turn")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    bed.isolate()
    figures = measure(QUICK_POLICIES, 1, 1.0) if options.quick else measure(POLICIES, 5, 2.0)
    bed.table(list(figures["series"].items()), ", ".join(f"{name} {unit}" for name, unit in figures["units"].items()))
    for name, ratio in figures["ratios"].items():
        print(f"{name}: {ratio:.1%} of that without rules")
    if options.json:
        Path(options.json).write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
