"""Pods that come and go: each is wired through CNI, tries at once what it may and may not, and leaves in some way."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator

import aiohttp

from chaos.ledger import Ledger
from chaos.runtime import Runtime, Sandbox
from chaos.town import NAMESPACE, inside, pod, udp
from netagent.lab import pods
from netagent.lab.client import ApiFailure, Object
from netagent.lab.cluster import Lab

SINK_PORT = 8999
GUEST_PORT = 8998
GREETINGS = 5
ARRIVAL_S = 10.0
"""Until what must arrive has arrived, on a busy machine."""
RETRY_S = 0.2
STEADY_RETRY_S = 0.05


class Sinks:
    """Sockets at the servers and in new pods that note who has reached them."""

    def __init__(self, lab: Lab, ledger: Ledger) -> None:
        self._lab = lab
        self._ledger = ledger
        self._sockets: list[socket.socket] = []
        self.arrived: dict[str, int] = {}
        """Token -> datagrams."""

    async def open(self) -> None:
        """At both servers."""
        places = await self._lab.places()
        for name in ("server-0", "server-1"):
            place = places[f"{NAMESPACE}/{name}"]
            for ip in place.ips:
                self.read(await inside(self._lab, place, lambda ip=ip: udp(ip, SINK_PORT)))  # type: ignore[misc]

    def read(self, sock: socket.socket) -> None:
        """Note what arrives here from now on."""
        self._sockets.append(sock)
        asyncio.get_running_loop().add_reader(sock, self._note, sock)

    def drop(self, sock: socket.socket) -> None:
        """No more."""
        self._note(sock)
        asyncio.get_running_loop().remove_reader(sock)
        self._sockets.remove(sock)
        sock.close()

    def _note(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while token := sock.recv(256).decode():
                self.arrived[token] = self.arrived.get(token, 0) + 1
                if token.startswith("forbidden"):
                    self._ledger.blame(f"a denied packet passed: {token}")

    def close(self) -> None:
        """All."""
        for sock in list(self._sockets):
            self.drop(sock)


class Tenant:
    """One name on one node under which pods come and go, one after the other."""

    def __init__(
        self, lab: Lab, runtime: Runtime, sinks: Sinks, ledger: Ledger, *, seed: str, node: int, silent: bool
    ) -> None:
        """`silent`: some of its pods go without any DEL."""
        self._silent = silent
        self._lab = lab
        self._runtime = runtime
        self._sinks = sinks
        self._ledger = ledger
        self._random = random.Random(seed)  # noqa: S311
        self._node = node
        self._name = f"guest-{seed.rpartition('/')[2]}"
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`; then nothing of it is left."""
        while not self.stopping:
            role = self._random.choice(("friend", "none"))
            made = await self._create(role)
            sandbox = await self._wire(made)
            await self._live(sandbox, role, made)
            await self._leave(sandbox, made)

    async def _create(self, role: str) -> Object:
        wanted = pod(self._name, "guest", role, self._node, **{pods.HOLD: "true"})
        while True:
            try:
                return await self._lab.client.create(wanted)
            except (ApiFailure, aiohttp.ClientError):
                await asyncio.sleep(STEADY_RETRY_S)  # the last one of this name goes just now

    async def _wire(self, made: Object) -> Sandbox:
        """ADD until it is done, as kubelet and runtime do it: a failed sandbox is removed before there is a new one."""
        while True:
            sandbox = Sandbox(
                node=self._node,
                name=self._name,
                uid=made["metadata"]["uid"],
                container=self._random.randbytes(32).hex(),
            )
            await self._runtime.create(sandbox)
            hasty = self._random.random() < 0.3
            ips = await self._runtime.add(sandbox, *((self._random.uniform(0.001, 0.2),) if hasty else ()))
            if ips is not None:
                sandbox.ips = ips
                self._ledger.given(sandbox.container, ips)
                return sandbox
            await self._remove(sandbox)
            await self._runtime.remove(sandbox)

    async def _remove(self, sandbox: Sandbox) -> None:
        """DEL until it is done."""
        while True:
            hasty = self._random.random() < 0.2
            if await self._runtime.delete(sandbox, *((self._random.uniform(0.001, 0.1),) if hasty else ())):
                return
            await asyncio.sleep(RETRY_S)

    async def _live(self, sandbox: Sandbox, role: str, made: Object) -> None:
        async with self._sockets(sandbox) as (near, listening):
            await self._greet(sandbox, role, near, listening)
            await self._publish(sandbox, made)
            if self._random.random() < 0.2:
                await self._repeat(sandbox)
            if role == "friend" and self._random.random() < 0.2:
                await self._reach_far(sandbox, near)
            await asyncio.sleep(self._random.uniform(0.0, 0.6))

    @contextlib.asynccontextmanager
    async def _sockets(self, sandbox: Sandbox) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
        """One to send from, one that listens; in the pod, in one of its families."""
        place, ip = self._runtime.place(sandbox), self._random.choice(sandbox.ips)
        near = await inside(self._lab, place, lambda: udp(ip))
        listening = await inside(self._lab, place, lambda: udp(ip, GUEST_PORT))
        self._sinks.read(listening)
        try:
            yield near, listening
        finally:
            self._sinks.drop(listening)
            near.close()

    async def _greet(self, sandbox: Sandbox, role: str, near: socket.socket, listening: socket.socket) -> None:
        """First packets, at once after ADD: what is allowed arrives, what is denied does not."""
        ip = near.getsockname()[0]
        family = 6 if ":" in ip else 4
        places = await self._lab.places()
        server = places[f"{NAMESPACE}/server-{self._node}"].ip(family)
        far = places[f"{NAMESPACE}/server-{1 - self._node}"].ip(family)
        must: list[str] = []
        tag = f"{self._name} {role} {sandbox.container[:12]} {ip}"
        if role == "friend":
            must.append(f"allowed {tag} -> server here")
            self._send(near, (server, SINK_PORT), must[0])
        else:
            self._send(near, (server, SINK_PORT), f"forbidden {tag} -> server here")
            self._send(near, (far, SINK_PORT), f"forbidden {tag} -> server there")
        for resident, word in ((f"friend-{self._node}", "allowed"), (f"stranger-{self._node}", "forbidden")):
            place = places[f"{NAMESPACE}/{resident}"]
            token = f"{word} {resident} -> {tag}"
            with await inside(self._lab, place, lambda place=place: udp(place.ip(family))) as sock:  # type: ignore[misc]
                self._send(sock, (ip, GUEST_PORT), token)
            if word == "allowed":
                must.append(token)
        for token in must:
            await self._arrives(token)

    def _send(self, sock: socket.socket, target: tuple[str, int], token: str) -> None:
        for _ in range(GREETINGS):
            with contextlib.suppress(OSError):
                sock.sendto(token.encode(), target)
        self._ledger.counts[f"{token.partition(' ')[0]} first packets"] += GREETINGS

    async def _arrives(self, token: str) -> None:
        deadline_s = time.monotonic() + ARRIVAL_S
        while self._sinks.arrived.get(token, 0) < GREETINGS:
            if time.monotonic() > deadline_s:
                self._ledger.blame(f"{self._sinks.arrived.get(token, 0)} of {GREETINGS} arrived: {token}")
                return
            await asyncio.sleep(0.01)

    async def _repeat(self, sandbox: Sandbox) -> None:
        """The same ADD once more gets the same answer."""
        ips = await self._runtime.add(sandbox)
        self._ledger.counts["ADD repeated"] += 1
        if ips is not None and ips != sandbox.ips:
            self._ledger.blame(f"a repeated ADD of {sandbox.name} gave {ips} instead of {sandbox.ips}")

    async def _reach_far(self, sandbox: Sandbox, near: socket.socket) -> None:
        """The other node's agent learns of the pod in its own time."""
        family = 6 if ":" in near.getsockname()[0] else 4
        target = (await self._lab.place(f"{NAMESPACE}/server-{1 - self._node}")).ip(family)
        token = f"allowed {self._name} {sandbox.container[:12]} -> server there"
        deadline_s = time.monotonic() + 6 * ARRIVAL_S
        while token not in self._sinks.arrived:
            if time.monotonic() > deadline_s:
                self._ledger.blame(f"not within {6 * ARRIVAL_S:g} s: {token}")
                return
            with contextlib.suppress(OSError):
                near.sendto(token.encode(), (target, SINK_PORT))
            await asyncio.sleep(0.05)
        self._ledger.counts["other node reached"] += 1

    async def _publish(self, sandbox: Sandbox, made: Object) -> None:
        """status.podIPs, as the kubelet writes it."""
        status = pods.running_status(made, sandbox.ips, self._lab.nodes[self._node].plan.ips)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{self._name}/status"
        with contextlib.suppress(ApiFailure):
            await self._lab.client.patch(path, {"status": status}, "strategic-merge")

    async def _leave(self, sandbox: Sandbox, made: Object) -> None:
        way = self._random.choices(("orderly", "forced", "twice", "silent"), (5, 2, 2, int(self._silent)))[0]
        self._ledger.counts[f"pods left {way}"] += 1
        if way == "forced":
            await self._erase(made)
        if way != "silent":
            await self._remove(sandbox)
        if way == "twice":
            await self._remove(sandbox)
        await self._runtime.remove(sandbox)
        await self._erase(made)

    async def _erase(self, made: Object) -> None:
        """The object, without grace."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}}
        with contextlib.suppress(ApiFailure):
            await self._lab.client.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{self._name}", body)


def tenants(
    lab: Lab, runtimes: list[Runtime], sinks: Sinks, ledger: Ledger, *, seed: int, each: int, silent: bool
) -> list[Tenant]:
    """`each` on every node. `silent`: some of them go without any DEL."""
    return [
        Tenant(lab, runtime, sinks, ledger, seed=f"{seed}/{node}-{number}", node=node, silent=silent)
        for node, runtime in enumerate(runtimes)
        for number in range(each)
    ]
