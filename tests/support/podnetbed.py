"""Nodes as network namespaces on a bridge, each with a real PodNetwork in a thread of that namespace, and pods behind
them as the CNI plugin wires them."""

import asyncio
import ctypes
import functools
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from netagent.agent.network.podnetwork import PodNetStatus, PodNetwork
from netagent.config import NetworkConfig
from netagent.ports import PodNetState
from netagent.records import Key, SubnetLease

CLONE_NEWNET = 0x40000000
DEADLINE_S = 10.0
ECHO_PORT = 7
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 23, 2
T = TypeVar("T")
DUAL_STACK = NetworkConfig(pools=("10.244.0.0/16", "fd44::/48"))


def sh(command: str, *, check: bool = True) -> str:
    """Run a command line (no quoting needed here). Returns what it printed."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}{done.stdout}")
    return done.stdout


def wait_until(what: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Wait until `what()` is true."""
    end = time.monotonic() + deadline_s
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.02)


def in_netns(name: str, make: Callable[[], T]) -> T:
    """Call `make` in a thread of a network namespace; a socket that it opens stays in there."""
    made: list[T] = []

    def work() -> None:
        enter(name)
        made.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def enter(name: str) -> None:
    """Move this thread into a network namespace."""
    with Path(f"/run/netns/{name}").open() as file:
        assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0


class Echo:
    """Answers datagrams until it is closed."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._sock.bind(("::", ECHO_PORT))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            payload, sender = self._sock.recvfrom(65535)
            if payload == b"stop":
                return
            with suppress(OSError):
                self._sock.sendto(payload, sender)

    def close(self, netns: str) -> None:
        with in_netns(netns, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"stop", ("::1", ECHO_PORT))
        self._thread.join()
        self._sock.close()


@dataclass
class Node:
    """One node: its namespace, its agent and one pod."""

    number: int
    config: NetworkConfig
    netns: str = ""
    told: dict[str, tuple[str, str]] = field(default_factory=dict)
    leases: tuple[SubnetLease, ...] = ()
    addresses: tuple[str, ...] = ()
    overrides: dict[int, str] = field(default_factory=dict)
    network: PodNetwork | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _task: asyncio.Task[None] | None = None
    _thread: threading.Thread | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        n = self.number
        self.netns = f"node{n}"
        self.addresses = (f"192.168.77.{n}", f"fd77::{n}")
        sh(f"ip netns add {self.netns}")
        self.ip("link set lo up")
        self.plug()
        self.leases = tuple(self.lease(subnet) for subnet in (f"10.244.{n}.0/24", f"fd44:0:0:{n}::/64"))
        self._pod()

    def lease(self, subnet: str, mac: str = "", public_ip: str = "", version: str = "1") -> SubnetLease:
        return SubnetLease(
            key=Key("kube-system", subnet.replace("/", "-").replace(":", "-")),
            uid=subnet,
            resource_version=version,
            subnet=subnet,
            holder=f"node-{self.number}",
            duration_s=3600,
            backend=self.config.backend,
            vtep_mac=mac,
            public_ip=public_ip,
        )

    def ip(self, arguments: str, *, check: bool = True) -> str:
        return sh(f"ip -n {self.netns} {arguments}", check=check)

    def harm(self, commands: Sequence[str]) -> None:
        """Run `ip` commands; all again where a repair came in between, so that the last of them found what it wants."""
        for _ in range(50):
            errors = [self.ip_error(command) for command in commands]
            if not errors[-1]:
                return
        raise AssertionError(f"{commands}: {errors}")

    def ip_error(self, arguments: str) -> str:
        command = f"ip -n {self.netns} {arguments}".split()
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    def bridge(self, arguments: str, *, check: bool = True) -> str:
        return sh(f"bridge -n {self.netns} {arguments}", check=check)

    def plug(self) -> None:
        """Connect it to the underlay."""
        sh(f"ip link add up{self.number} type veth peer name eth0 netns {self.netns}")
        sh(f"ip link set up{self.number} master bridge up")
        self.ip("link set eth0 up")
        for address, length in zip(self.addresses, (24, 64), strict=True):
            self.ip(f"address add {address}/{length} dev eth0 nodad")

    def pod_ips(self) -> tuple[str, str]:
        return f"10.244.{self.number}.10", f"fd44:0:0:{self.number}::10"

    def _pod(self) -> None:
        pod = self.pod = f"pod{self.number}"
        sh(f"ip netns add {pod}")
        self.ip(
            f"link add nap0 address ee:ee:ee:ee:ee:ee type veth peer name eth0 address 0a:00:00:00:00:01 netns {pod}"
        )
        self.ip("link set nap0 up")
        sh(f"ip -n {pod} link set lo up")
        sh(f"ip -n {pod} link set eth0 up")
        for address, length, gateway in zip(self.pod_ips(), (32, 128), ("169.254.1.1", "fe80::1"), strict=True):
            sh(f"ip -n {pod} address add {address}/{length} dev eth0 nodad")
            sh(f"ip -n {pod} neighbour add {gateway} lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
            sh(f"ip -n {pod} route add default via {gateway} dev eth0 onlink")
            self.ip(f"neighbour add {address} lladdr 0a:00:00:00:00:01 dev nap0 nud permanent")
            self.ip(f"route add {address}/{length} dev nap0 proto 78")
        self.echo = in_netns(pod, Echo)

    def start(self) -> None:
        """Run the agent's pod network in this node's namespace."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._main, args=(ready,), name=self.netns)
        self._thread.start()
        assert ready.wait(DEADLINE_S)

    def _main(self, ready: threading.Event) -> None:
        enter(self.netns)

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self.network = PodNetwork(
                self.config,
                f"node-{self.number}",
                on_vtep=lambda subnet, mac, ip: self.told.update({subnet: (mac, ip)}),
            )
            self._task = asyncio.create_task(self.network.run())
            ready.set()
            await self._task

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # shown by stop
            self.error = error

    def restart(self, peers: tuple[SubnetLease, ...], **options: object) -> None:
        """Stop the agent and start it with these options; it finds its leases as it left them."""
        self.stop()
        self.config = msgspec.structs.replace(self.config, **options)
        self.start()
        self.update(peers)

    def stop(self) -> None:
        """Stop the agent; what it made stays."""
        if self._thread and self._loop and self._task:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(DEADLINE_S)
        self._thread = None
        if self.error:
            raise self.error

    def call(self, work: Callable[[], Coroutine[None, None, T]]) -> T:
        """Run a coroutine in this node's namespace."""
        return in_netns(self.netns, lambda: asyncio.run(work()))

    def update(self, peers: tuple[SubnetLease, ...], addresses: tuple[str, ...] | None = None) -> None:
        assert self.network
        assert self._loop
        addresses = self.addresses if addresses is None else addresses
        self._loop.call_soon_threadsafe(self.network.update, self.leases, peers, addresses, dict(self.overrides))

    def published(self) -> tuple[SubnetLease, ...]:
        """Its leases as other nodes read them."""
        return tuple(self.lease(lease.subnet, *self.told.get(lease.subnet, ("", ""))) for lease in self.leases)

    def reaches(self, address: str, *, size_bytes: int = 56) -> bool:
        """Whether a datagram from this node's pod to a pod comes back, unfragmented."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with in_netns(self.pod, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
            sock.settimeout(0.3)
            for _ in range(3):
                try:
                    sock.sendto(bytes(size_bytes), (address, ECHO_PORT))
                    return len(sock.recv(65535)) == size_bytes
                except OSError:
                    continue
        return False

    @contextmanager
    def stream(self, address: str) -> Iterator["Stream"]:
        """Datagrams from this node's pod to another, a few hundred per second, while the block runs."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = in_netns(self.pod, lambda: socket.socket(family, socket.SOCK_DGRAM))
        stream = Stream(sock, address)
        try:
            yield stream
        finally:
            stream.stop()

    def exchanges(self, server: "Node", address: str, size_bytes: int) -> bool:
        """Whether so many bytes go over TCP to a pod of `server` and come back whole."""
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        payload = os.urandom(size_bytes)
        with (
            in_netns(server.pod, lambda: socket.create_server((address, 0), family=kind)) as listener,
            in_netns(self.pod, lambda: socket.socket(kind)) as client,
        ):
            client.settimeout(DEADLINE_S)
            listener.settimeout(DEADLINE_S)
            client.connect(listener.getsockname()[:2])
            with listener.accept()[0] as served:
                mirror = threading.Thread(target=_mirror, args=(served,))
                mirror.start()
                sender = threading.Thread(target=client.sendall, args=(payload,))
                sender.start()
                back = _receive(client, size_bytes)
                sender.join()
                client.shutdown(socket.SHUT_WR)
                mirror.join()
        return back == payload

    @property
    def status(self) -> PodNetStatus:
        assert self.network
        return self.network.status

    @property
    def state(self) -> PodNetState | None:
        assert self.network
        return self.network.state()

    def mtu(self) -> int:
        return self.state.mtu if self.state else 0

    def has_told(self) -> bool:
        """Whether all of its VTEPs are up."""
        return len(self.told) == len(self.leases)

    def has_peers(self, count: int) -> bool:
        """Whether so many subnets of others have their route."""
        return self.status.peers == count

    def ours(self) -> str:
        """All of our state in the kernel as text, without counters."""
        parts = [self.ip(f"-{f} route show table main proto 78") for f in (4, 6)]
        parts += [self.ip(f"neighbour show dev {d} nud permanent", check=False) for d in ("netagent.1", "netagent6.1")]
        parts += [
            re.sub(r"used \S+ ", "", self.bridge(f"fdb show dev {d}", check=False))
            for d in ("netagent.1", "netagent6.1")
        ]
        parts += [self.ip(f"address show dev {d} scope global", check=False) for d in ("netagent.1", "netagent6.1")]
        # The kernel's order is that of its hash tables.
        return "\n".join(sorted(re.sub(r"^\d+: ", "", line.strip()) for part in parts for line in part.splitlines()))


class Stream:
    """Counts the datagrams that an echo sends back."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock, self._address = sock, address
        self._sent = 0
        self._back: set[int] = set()
        self._ending = threading.Event()
        sock.settimeout(0.5)
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def lost(self) -> int:
        """End it; how many never came back."""
        self.stop()
        return self._sent - len(self._back)

    def passed(self) -> int:
        """How many came back so far."""
        return len(self._back)

    def has_passed(self, count: int) -> bool:
        return self.passed() >= count

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._sock.close()

    def _send(self) -> None:
        while not self._ending.wait(0.004):
            self._sent += 1
            with suppress(OSError):  # no route for a moment: counted as lost
                self._sock.sendto(self._sent.to_bytes(4, "big"), (self._address, ECHO_PORT))

    def _receive(self) -> None:
        while True:
            try:
                self._back.add(int.from_bytes(self._sock.recv(16), "big"))
            except TimeoutError:
                if self._ending.is_set():
                    return
            except OSError:  # an ICMP error
                continue


def _mirror(sock: socket.socket) -> None:
    while chunk := sock.recv(1 << 16):
        sock.sendall(chunk)


def _receive(sock: socket.socket, size_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < size_bytes and (chunk := sock.recv(1 << 16)):
        found += chunk
    return bytes(found)


@dataclass
class Cluster:
    nodes: list[Node]

    def sync(self) -> None:
        """Every node learns what the others have published."""
        leases = {node.number: node.published() for node in self.nodes}
        for node in self.nodes:
            peers = tuple(lease for number, own in leases.items() if number != node.number for lease in own)
            node.update(peers)

    def join(self) -> None:
        """Start all agents and wait until every node knows every other."""
        for node in self.nodes:
            node.start()
            node.update(())
        for node in self.nodes:
            wait_until(node.has_told)
        self.sync()
        peers = sum(len(node.leases) for node in self.nodes)
        for node in self.nodes:
            wait_until(functools.partial(node.has_peers, peers - len(node.leases)))


def nodes(count: int, config: NetworkConfig) -> Iterator[Cluster]:
    sh("ip link add bridge type bridge")
    sh("ip link set bridge up")
    cluster = Cluster([])
    try:
        for number in range(1, count + 1):
            cluster.nodes.append(Node(number, config))
        yield cluster
    finally:
        try:
            for node in cluster.nodes:
                node.stop()
        finally:
            for node in cluster.nodes:
                node.echo.close(node.pod)
                sh(f"ip link delete up{node.number}")  # a namespace takes its own time to go, and its links with it
            for name in os.listdir("/run/netns"):
                sh(f"ip netns delete {name}")
            sh("ip link delete bridge")


class Until:
    """Wait for something; fails after some seconds."""

    def __call__(self, what: Callable[[], object]) -> None:
        """Until `what()` is true."""
        wait_until(what)

    def steady(self, what: Callable[[], str]) -> str:
        """Until a text stays as it is for a while; the text."""
        seen = [""]

        def same() -> bool:
            seen.append(what())
            time.sleep(0.15)
            return seen[-1] == seen[-2] == what()

        wait_until(same)
        return seen[-1]

    def equal(self, what: Callable[[], str], expected: str) -> None:
        """Until a text is as expected."""
        with suppress(AssertionError):
            wait_until(lambda: what() == expected)
        now = what()
        if now != expected:
            differing = sorted(set(now.splitlines()) ^ set(expected.splitlines()))
            raise AssertionError("\n".join(differing))

    def reaches(self, node: Node, address: str) -> None:
        """Until the node's pod reaches an address."""
        wait_until(lambda: node.reaches(address))
