"""Who lives in the cluster, what the policies that never change say about them, and the streams between them."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from chaos import streams
from netagent.lab.client import Object
from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from support.servers import BUFFER_BYTES, SO_RCVBUFFORCE

NAMESPACE = "chaos"
INTERVAL_S = 0.01
"""Between two records of one end: 200 packets a second and stream."""
FIRST_PORT = 9000
RESIDENTS = {
    "server-0": ("server", "", 0),
    "server-1": ("server", "", 1),
    "well-1": ("well", "", 1),
    "open-1": ("open", "", 1),
    "friend-0": ("friend", "friend", 0),
    "friend-1": ("friend", "friend", 1),
    "stranger-0": ("stranger", "none", 0),
    "stranger-1": ("stranger", "none", 1),
    "captive-0": ("captive", "friend", 0),
    "captive-1": ("captive", "friend", 1),
    "fickle-0": ("fickle", "fickle", 0),
    "fickle-1": ("fickle", "fickle", 1),
}
"""Name -> (label app, label role, node)."""


class Link(Struct, frozen=True):
    """A stream to be: who opens it, to whom, what becomes of it."""

    near: str
    far: str
    kind: str = "UDP"
    family: int = 4
    allowed: bool = True
    cut: bool = False
    """It is open before the policy that denies it comes."""

    @property
    def name(self) -> str:
        kind = "cut" if self.cut else "allowed" if self.allowed else "denied"
        return f"{kind} {self.near} -> {self.far} {self.kind}{self.family}"


LINKS = (
    Link("friend-0", "server-0"),
    Link("friend-0", "server-1"),
    Link("friend-1", "server-0"),
    Link("friend-1", "server-1", family=6),
    Link("friend-0", "server-1", family=6),
    Link("captive-1", "server-0"),
    Link("captive-1", "server-1"),
    Link("friend-0", "server-0", "TCP"),
    Link("friend-0", "server-1", "TCP"),
    Link("captive-1", "server-0", "TCP", family=6),
    Link("stranger-0", "server-0", allowed=False),
    Link("stranger-0", "server-1", allowed=False),
    Link("stranger-1", "server-0", allowed=False, family=6),
    Link("captive-0", "open-1", allowed=False),
    Link("captive-1", "open-1", allowed=False),
    Link("stranger-0", "well-1", allowed=False, cut=True),
    Link("stranger-1", "well-1", allowed=False, cut=True),
    Link("stranger-0", "well-1", "TCP", allowed=False, cut=True),
    Link("stranger-1", "well-1", "TCP", allowed=False, cut=True, family=6),
)


def pod(name: str, app: str, role: str, node: int, **annotations: str) -> Object:
    """A Pod bound to a node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "labels": {"app": app, "role": role},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": f"node-{node}",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "test", "ports": [{"containerPort": 80}]}],
        },
    }


def policy(name: str, app: str | None = None, **spec: Any) -> Object:
    """A NetworkPolicy for the pods of an app (None: all pods of the namespace)."""
    selector = {"matchLabels": {"app": app}} if app else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"podSelector": selector, **spec},
    }


def peer(**labels: str) -> Object:
    """Pods of the same namespace."""
    return {"podSelector": {"matchLabels": labels}}


STANDING = (
    # Both ways, so that it does not matter who sends first.
    policy(
        "servers", "server", ingress=[{"from": [peer(role="friend")]}], egress=[{"to": [peer(role="friend")]}],
        policyTypes=["Ingress", "Egress"],
    ),
    policy("captives", "captive", egress=[{"to": [peer(app="server")]}], policyTypes=["Egress"]),
    policy("guests", "guest", ingress=[{"from": [peer(role="friend")]}], policyTypes=["Ingress"]),
    policy("open", "open", egress=[], policyTypes=["Egress"]),
)  # fmt: skip
CUT = policy("well", "well", ingress=[{"from": [peer(role="friend")]}], policyTypes=["Ingress"])
"""Denies streams that are open already."""


class Pair(Struct):
    """Both ends of a stream as its process reports them."""

    link: Link
    near: dict[str, Any]
    far: dict[str, Any]

    @property
    def sent(self) -> int:
        return int(self.near["sent"] + self.far["sent"])

    @property
    def received(self) -> int:
        """Distinct records."""
        return sum(int(end["received"] - end["twice"]) for end in (self.near, self.far))

    @property
    def overflows(self) -> int:
        """Arrived, but the reader was late."""
        return int(self.near["overflows"] + self.far["overflows"])

    @property
    def lost(self) -> int:
        return self.sent - self.received - self.overflows


class StreamProcess:
    """The process with all streams."""

    def __init__(self, process: asyncio.subprocess.Process, links: tuple[Link, ...]) -> None:
        self._process = process
        self._links = links
        self.late_s = 0.0
        """Most that the process was behind its time."""

    async def ask(self, command: str) -> list[Pair]:
        """`report` or `stop`; what the process counted."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(command.encode() + b"\n")
        answer = json.loads(await self._process.stdout.readline())
        self.late_s = answer["late_s"]
        return [Pair(link, **answer["streams"][link.name]) for link in self._links]

    async def close(self) -> None:
        """End it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
        self._process._transport.close()  # type: ignore[attr-defined]


async def inside(lab: Lab, place: Place, build: Callable[[], socket.socket]) -> socket.socket:
    """A socket made in a place's network namespace."""
    netns = place.open()
    try:
        return await lab.sockets.build(netns, build)
    finally:
        os.close(netns)


def udp(ip: str, port: int = 0) -> socket.socket:
    """A bound UDP socket with room for whatever arrives while its reader is away."""
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.bind((ip, port))
    sock.setblocking(False)
    return sock


async def connect(lab: Lab, link: Link, port: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a stream."""
    places = await lab.places()
    near, far = (places[f"{NAMESPACE}/{name}"] for name in (link.near, link.far))
    near_ip, far_ip = near.ip(link.family), far.ip(link.family)
    if link.kind == "UDP":
        ends = (await inside(lab, near, lambda: udp(near_ip, port)), await inside(lab, far, lambda: udp(far_ip, port)))
        ends[0].connect((far_ip, port))
        ends[1].connect((near_ip, port))
        return ends
    return await _connect_tcp(lab, near, far, far_ip, port)


async def _connect_tcp(
    lab: Lab, near: Place, far: Place, far_ip: str, port: int
) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in far_ip else socket.AF_INET

    def listen() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind((far_ip, port))
        sock.listen(1)
        sock.setblocking(False)
        return sock

    def client() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    loop = asyncio.get_running_loop()
    with await inside(lab, far, listen) as listener:
        begin = await inside(lab, near, client)
        async with asyncio.timeout(20):
            await loop.sock_connect(begin, (far_ip, port))
            end, _ = await loop.sock_accept(listener)
    for sock in (begin, end):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return begin, end


async def start_streams(lab: Lab, links: tuple[Link, ...]) -> StreamProcess:
    """Open all streams and hand them to a process."""
    pairs = [await connect(lab, link, FIRST_PORT + number) for number, link in enumerate(links)]
    spec = {
        "interval_s": INTERVAL_S,
        "streams": [
            {"name": link.name, "kind": link.kind, "near": near.fileno(), "far": far.fileno()}
            for link, (near, far) in zip(links, pairs, strict=True)
        ],
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(Path(streams.__file__)), json.dumps(spec)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[sock.fileno() for pair in pairs for sock in pair],
        limit=1 << 24,
    )
    for near, far in pairs:
        near.close()
        far.close()
    return StreamProcess(process, links)
