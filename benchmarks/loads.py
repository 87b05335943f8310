"""Traffic between the pods of several routers, in turns as short as tens of milliseconds.

All clients and servers stand ready for the whole measurement; whose turn it is goes on, the others wait. Each kind of
traffic is a context, and in it `turn` gives the figures of one turn.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Self

from benchmarks import bed
from benchmarks.routers import Router, steer

CLIENT_PROCESSOR, SERVER_PROCESSOR = 0, 1 % (os.cpu_count() or 1)
WARM_UP = 0.2
"""Of a turn's time, before it: caches are filled with what this router needs. tools/netload.c has the same."""
SECONDS_WITHOUT_END = 86_400
CONGESTION_CONTROL = "cubic"
"""The kernel's own default. BBR, the default of some distributions, sends no faster than it thinks the path is, and
what rules cost is lost in that."""


class Netload:
    """Connections, packets or round trips of tools/netload.c."""

    def __init__(self, program: Path, what: str, ip: str, port: int, routers: Sequence[Router]) -> None:
        ends = [netns for one in routers for netns in (one.client, one.server)]
        self._argv = [str(program), what, ip, str(port), *ends]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def turn(self, number: int, seconds: float) -> tuple[float, ...]:
        """Both figures of a router. Raises RuntimeError where nothing came through."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(number, seconds, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self._argv[:4])}: nothing came through router {number}")
        first, second = answer.split()
        return float(first) / 1e3, float(second) / 1e3


class Streams:
    """One TCP stream of iperf3 each, stopped between its turns; what arrives is read from the server's link.

    The receiver's acknowledgements leave from its processor, and what they let the sender send would too, beside what
    the sender sends itself: packets overtake each other, and throughput is a matter of luck. So all packets are
    processed where the sender is, as if they came from a network card with one queue for the flow.
    """

    def __init__(self, ip: str, port: int, routers: Sequence[Router]) -> None:
        self._ip, self._port, self._routers = ip, str(port), routers
        self._servers: list[subprocess.Popen[bytes]] = []
        self._clients: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for one in self._routers:
            steer(one, 1 << CLIENT_PROCESSOR)
            self._servers.append(self._iperf(one.server, "-s"))
            self._clients.append(self._connected(one))
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._clients, *self._servers):
            process.kill()
            process.wait()
        for one in self._routers:
            steer(one, 0)

    def turn(self, number: int, seconds: float) -> tuple[float, ...]:
        """Gbit/s on the server's link."""
        client = self._clients[number]
        client.send_signal(SIGCONT)
        time.sleep(seconds * WARM_UP)
        began_s, before = time.monotonic(), self._received(number)
        time.sleep(seconds)
        took_s, received = time.monotonic() - began_s, self._received(number) - before
        client.send_signal(SIGSTOP)
        if not received or client.poll() is not None:
            raise RuntimeError(f"iperf3: nothing came through router {number}; run iperf3 in its namespaces and see")
        return (received * 8 / took_s / 1e9,)

    def _connected(self, one: Router) -> subprocess.Popen[bytes]:
        """A client that has begun, and is stopped."""
        affinity = f"{CLIENT_PROCESSOR},{SERVER_PROCESSOR}"
        options = ("-t", str(SECONDS_WITHOUT_END), "-i", "0", "-A", affinity, "-C", CONGESTION_CONTROL)
        number = len(self._clients)
        before, deadline_s = self._received(number), time.monotonic() + bed.DEADLINE_S
        client = self._iperf(one.client, "-c", self._ip, *options)
        while self._received(number) - before < 1 << 20:
            if client.poll() is not None:  # the server was not ready
                client = self._iperf(one.client, "-c", self._ip, *options)
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"iperf3: no stream through {one.name}; run iperf3 in its namespaces and see")
            time.sleep(0.01)
        client.send_signal(SIGSTOP)
        return client

    def _iperf(self, netns: str, *options: str) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", Path(netns).name, "iperf3", "-p", self._port, *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _received(self, number: int) -> int:
        """Bytes, by the server's link."""
        links = Path(f"/proc/{self._servers[number].pid}/net/dev").read_text()
        counters = links.partition("eth0:")[2].split(maxsplit=1)
        return int(counters[0]) if counters else 0  # it is not in its namespace yet
