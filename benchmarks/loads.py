"""Traffic between the pods of several routers, in turns of some milliseconds.

All clients and servers stand ready for the whole measurement; whose turn it is goes on, the others wait. Each kind of
traffic is a context, and in it `turn` gives the figures of one turn.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Self

from benchmarks import bed
from benchmarks.routers import Router

WARM_UP = 0.2
"""Of a turn's time, before it: caches are filled with what this router needs. tools/netload.c has the same."""
SECONDS_WITHOUT_END = 86_400
BEGUN_BYTES = 1 << 20
"""More than iperf3 says before its stream."""
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

    Client and server have the same processor, so all that is done for a byte is done there, and it bounds the
    throughput. With two of them, acknowledgements let packets leave from the one while the client sends from the
    other; packets overtake each other, and throughput is a matter of luck.
    """

    def __init__(self, ip: str, port: int, routers: Sequence[Router]) -> None:
        self._ip, self._port, self._routers = ip, str(port), routers
        self._servers: list[subprocess.Popen[bytes]] = []
        self._clients: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            for one in self._routers:
                self._servers.append(self._listening(one))
                self._clients.append(self._connected(one))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._clients, *self._servers):
            process.kill()
            process.wait()

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

    def _listening(self, one: Router) -> subprocess.Popen[bytes]:
        """A server; once this returns, its link is the one that /proc shows."""
        server = self._iperf(one.server, "-s")
        _wait(lambda: Path(f"/proc/{server.pid}/ns/net").samefile(one.server), one)
        return server

    def _connected(self, one: Router) -> subprocess.Popen[bytes]:
        """A client that has begun, and is stopped."""
        number = len(self._clients)
        before = self._received(number)
        options = ("-t", str(SECONDS_WITHOUT_END), "-i", "0", "-A", "0,0", "-C", CONGESTION_CONTROL)
        client = self._iperf(one.client, "-c", self._ip, *options)

        def flows() -> bool:
            nonlocal client
            if client.poll() is not None:  # the server was not ready
                client = self._iperf(one.client, "-c", self._ip, *options)
            return self._received(number) - before > BEGUN_BYTES

        _wait(flows, one)
        client.send_signal(SIGSTOP)
        return client

    def _iperf(self, netns: str, *options: str) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", Path(netns).name, "iperf3", "-p", self._port, *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _received(self, number: int) -> int:
        """Bytes, by the server's link."""
        links = Path(f"/proc/{self._servers[number].pid}/net/dev").read_text()
        return int(links.partition("eth0:")[2].split(maxsplit=1)[0])


def _wait(done: Callable[[], bool], one: Router) -> None:
    deadline_s = time.monotonic() + bed.DEADLINE_S
    while not done():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"iperf3: no stream through {one.name}; run iperf3 in its namespaces and see")
        time.sleep(0.01)
