"""What the targets need around a decoder: a small cluster, a node's devices, a server, a directory in memory."""

import asyncio
import atexit
import contextlib
import functools
import logging
import selectors
import shutil
import struct
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from aiohttp import web

from netagent.agent.pods.cni import CniServer
from netagent.config import ApiConfig, CniConfig
from netagent.core.policy.meaning import compile_policy
from netagent.core.policy.store import Store
from netagent.core.questions.parties import Cluster, cluster_of, frozen
from netagent.disk.allocations import Allocations
from netagent.kernel.entries import Devices
from netagent.kernel.links import Link
from netagent.kernel.nflog import PACKET
from netagent.kernel.nfnetlink import attribute, message
from netagent.kernel.nfwatch import NEWGEN
from netagent.kernel.wiring import Wiring
from netagent.kube.client import ApiClient
from netagent.kube.reflector import Reflector, resources
from netagent.kube.wire import ListMeta, Page
from netagent.ports import NetagentError, PodNetState
from netagent.records import Change, Endpoint, Kind, Upserted
from support import words

MEMORY = "/dev/shm"
PATIENCE_S = 0.02
"""For an answer to what may be half a request."""
T = TypeVar("T")
NEWTABLE = 10 << 8


@contextmanager
def silence() -> Iterator[None]:
    """What is refused is also told to the log, a thousand times."""
    loggers = [logging.getLogger(name) for name in ("aiohttp", "netagent")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _stamped(raw: bytes, portid: int) -> bytes:
    return raw[:12] + struct.pack("=I", portid) + raw[16:]


TOUCH = _stamped(message(NEWTABLE, 0, 1, family=1, body=attribute(1, b"netagent\0")), 7)
"""Somebody (port ID 7) changes our table; GENERATION ends the change."""
GENERATION = _stamped(message(NEWGEN, 0, 1, family=0, body=attribute(1, struct.pack("!I", 9))), 7)
LOGGED = message(PACKET, 0, 0, family=0, body=attribute(10, b"spoofed\0") + attribute(9, b"\x45" + bytes(19)))


@contextmanager
def directory() -> Iterator[Path]:
    """An empty one in memory."""
    root = tempfile.mkdtemp(dir=MEMORY)
    try:
        yield Path(root)
    finally:
        shutil.rmtree(root)


@functools.cache
def cluster() -> Cluster:
    """Two pods, one of them isolated."""
    store = Store()
    policy = words.policy("x/p", words.selector(app="web"), ingress=[words.rule([words.pods(app="db")])])
    pods = (words.pod("x/web", "10.244.0.10", labels={"app": "web"}), words.pod("x/db", "10.244.1.11", "fd00::b"))
    for record in (words.namespace("x"), *pods, policy):
        store.apply(words.put(record))
    return frozen(cluster_of(store, [compile_policy(policy)], "node-0", overlay=True))


@functools.cache
def devices() -> Devices:
    """Of a node with flannel's device as its seventh link."""
    found = Devices(flannel=True)
    link = Link(index=7, name="flannel.1", flags=1, mtu=1450, mac="02:00:00:00:00:01", kind="vxlan", parent=2, info=b"")
    found.know([link])
    return found


class _Skipping(selectors.DefaultSelector):
    """Where nothing happens, time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0
        self.skip = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0 if self.skip else timeout)
        if not found and timeout:
            self.skipped_s += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, selector: _Skipping) -> None:
        super().__init__(selector)
        self._skipping = selector

    def time(self) -> float:
        return super().time() + self._skipping.skipped_s


def one_loop(question: Callable[["Node", bytes], Awaitable[T]], data: bytes) -> T:
    """Ask the node in its event loop."""
    node = _node()
    node.selector.skip = question is Node.watched
    return node.loop.run_until_complete(question(node, data))


@functools.cache
def _node() -> "Node":
    return Node()


class _Api:
    """Serves one list, then the bytes as a watch, then a watch with one more pod."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    async def get_json(self, path: str, into: type[Page], **params: object) -> Page:
        return into(kind="PodList", metadata=ListMeta(resource_version="50"))

    async def stream(self, path: str, **params: object) -> AsyncGenerator[list[bytes], None]:
        yield []
        data, self._data = self._data, None
        if data is not None:
            yield data.split(b"\n")
            return
        late = b'{"metadata":{"name":"late-7f3a","namespace":"ns","resourceVersion":"77"}}'
        yield [b'{"type":"ADDED","object":' + late + b"}"]
        await asyncio.Event().wait()


class Node:
    """An agent's sockets in a loop of their own."""

    def __init__(self) -> None:
        self.selector = _Skipping()
        self.loop = _Loop(self.selector)
        self._socket = ""

    async def watched(self, data: bytes) -> set[str]:
        """Keys of the pods that a reflector delivers whose first watch sends this."""
        seen: set[str] = set()
        done = asyncio.Event()

        def emit(change: Change) -> None:
            if isinstance(change, Upserted):
                seen.add(str(change.record.key))
                if change.record.key.name == "late-7f3a":
                    done.set()

        resource = resources("kube-system")[Kind.POD]
        reflector = Reflector(
            cast(ApiClient, _Api(data)), resource, emit, ApiConfig(), clock=self.loop.time, rng=lambda: 0.5
        )
        running = asyncio.ensure_future(reflector.run())
        waiting = asyncio.ensure_future(done.wait())
        await asyncio.wait((running, waiting), timeout=3600, return_when=asyncio.FIRST_COMPLETED)
        failure = running.exception() if running.done() and not running.cancelled() else None
        for task in (running, waiting):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        if failure is not None:
            raise failure
        return seen

    async def called(self, data: bytes) -> tuple[bytes, bytes]:
        """The answer to these bytes on the CNI socket, and the one to a good call after it."""
        if not self._socket:
            await self._serve()
        good = b'{"cniVersion":"1.0.0","name":"n","type":"t"}'
        head = (
            b"POST /cni HTTP/1.1\r\nHost: n\r\nConnection: close\r\nCNI-Command: VERSION\r\nContent-Length: %d\r\n\r\n"
        )
        return await self._ask(data, PATIENCE_S), await self._ask(head % len(good) + good, 30.0)

    async def _ask(self, data: bytes, patience_s: float) -> bytes:
        """All that is answered until the server closes or the patience ends."""
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            answer = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                writer.write(data)
                await writer.drain()
                async with asyncio.timeout(patience_s):
                    while part := await reader.read(1 << 16):
                        answer += part
            return answer
        finally:
            writer.close()

    async def _serve(self) -> None:
        root = Path(tempfile.mkdtemp(dir=MEMORY))
        atexit.register(shutil.rmtree, root)
        settings = CniConfig(socket=str(root / "s"), bin_dir="", conf_dir=str(root), admit_timeout_s=0.001)
        server = CniServer(
            settings, pod_net=_NoNet(), policy=_NoGate(), store=Allocations(root, "boot"), wiring=_NoWiring()
        )
        application = web.Application(client_max_size=1 << 20)
        application.router.add_post("/cni", server._answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, settings.socket).start()
        self._socket = settings.socket


class _NoNet:
    def state(self) -> PodNetState | None:
        raise NetagentError("this node has no network")


class _NoGate:
    async def admit(self, endpoint: Endpoint) -> None:
        raise NetagentError("nobody is admitted")

    def withdraw(self, endpoint: Endpoint) -> None:
        """Nothing was admitted."""

    def restore(self, endpoints: Sequence[Endpoint]) -> None:
        """There are none."""


class _NoWiring(Wiring):
    """The decoders are the target, not the kernel's links."""

    async def unwire(self, host_ifname: str) -> None:
        if len(host_ifname) != 15 or not host_ifname.isalnum():
            raise AssertionError(host_ifname)
