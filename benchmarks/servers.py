"""API servers to measure against, each a process of its own: the lab's, and kube-apiserver with etcd.

The real one is used where KUBEBUILDER_ASSETS names a directory with `etcd` and `kube-apiserver`, as envtest has it.
"""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import orjson
import yaml

from benchmarks import workload
from benchmarks.bed import DEADLINE_S, ROOT, run
from benchmarks.workload import Object, Shape
from netagent.records import Kind

PARALLEL = 16
"""Requests at once while a real server is filled."""
PATHS = {
    Kind.NAMESPACE: "/api/v1/namespaces",
    Kind.POD: "/api/v1/namespaces/{}/pods",
    Kind.NETWORK_POLICY: "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}


def path_of(kind: Kind, namespace: str = "", name: str = "") -> str:
    """Of a collection or an object."""
    return PATHS[kind].format(namespace) + (f"/{name}" if name else "")


def real_available() -> bool:
    """Whether there is a kube-apiserver to run."""
    return bool(os.environ.get("KUBEBUILDER_ASSETS"))


class Server(ABC):
    """An API server and a client of it."""

    name = ""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bench-api-")
        self.home = Path(self._directory.name)
        self.kubeconfig = self.home / "kubeconfig"
        self._token, self._ca, self._url = "", "", ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            tls: ssl.SSLContext | bool = ssl.create_default_context(cafile=self._ca) if self._ca else True
            connector = aiohttp.TCPConnector(limit=PARALLEL, ssl=tls)
            self._session = aiohttp.ClientSession(self._url, headers=headers, connector=connector)
            await self._ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._directory.cleanup()

    @abstractmethod
    async def _start(self) -> None:
        """Start what serves."""

    @abstractmethod
    async def load(self, shape: Shape) -> None:
        """Fill it with a workload."""

    @abstractmethod
    async def churn(self, shape: Shape, per_s: float, share: float) -> None:
        """Pods change from now on, a share of them so that it matters on the node under test."""

    @abstractmethod
    async def quiet(self) -> float:
        """End of the churn; events per second that there were."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._url

    async def _ready(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                await self.request("GET", "/readyz", plain=True)
            except (aiohttp.ClientError, RuntimeError):
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def request(
        self, method: str, path: str, body: Any = None, media: str = "application/json", *, plain: bool = False
    ) -> Any:
        """The decoded answer. Raises RuntimeError where the server refuses."""
        assert self._session is not None
        data = orjson.dumps(body) if body is not None else None
        headers = {"Content-Type": media} if data is not None else {}
        async with self._session.request(method, path, data=data, headers=headers) as response:
            text = await response.read()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {text[:300]!r}")
            return None if plain else orjson.loads(text)

    # Changes; each returns the moment (monotonic, seconds) of the answer to its last request

    async def create(self, kind: Kind, obj: Object) -> float:
        """Create an object; a pod with its status."""
        meta = obj["metadata"]
        await self.request("POST", path_of(kind, meta.get("namespace", "")), obj)
        if kind is Kind.POD:
            path = path_of(kind, meta["namespace"], meta["name"])
            await self.request("PATCH", f"{path}/status", {"status": obj["status"]}, "application/merge-patch+json")
        return time.monotonic()

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> float:
        """A merge patch."""
        await self.request("PATCH", path_of(kind, namespace, name), patch, "application/merge-patch+json")
        return time.monotonic()

    async def delete(self, kind: Kind, namespace: str, name: str) -> float:
        """At once."""
        await self.request("DELETE", path_of(kind, namespace, name), {"gracePeriodSeconds": 0})
        return time.monotonic()


class Embedded(Server):
    """The lab's API server."""

    name = "lab API server"

    async def _start(self) -> None:
        self._spawn_source()
        self._url = (await self._answer())["url"]

    def _spawn_source(self) -> None:
        command = [sys.executable, "-m", "benchmarks.apiserver", str(self.kubeconfig)]
        pipe = subprocess.PIPE
        self._processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT))

    async def _answer(self) -> Any:
        stdout = self._processes[0].stdout
        assert stdout is not None
        line = await asyncio.to_thread(stdout.readline)
        if not line:
            raise RuntimeError("the API server ended; its error is above")
        return orjson.loads(line)

    async def tell(self, what: str, **more: Any) -> Any:
        """One command of `benchmarks.apiserver`."""
        stdin = self._processes[0].stdin
        assert stdin is not None
        stdin.write(orjson.dumps({"do": what, **more}) + b"\n")
        stdin.flush()
        return await self._answer()

    async def load(self, shape: Shape) -> None:
        await self.tell("load", shape=msgspec.to_builtins(shape))

    async def churn(self, shape: Shape, per_s: float, share: float) -> None:
        await self.tell("churn", shape=msgspec.to_builtins(shape), per_s=per_s, share=share)

    async def quiet(self) -> float:
        done = await self.tell("quiet")
        return float(done["events"] / done["took_s"])


class Real(Server):
    """kube-apiserver and etcd."""

    name = "kube-apiserver"

    def __init__(self) -> None:
        super().__init__()
        self._churning: list[asyncio.Task[None]] = []
        self._labels: dict[tuple[str, str], dict[str, str]] = {}
        self._events = 0
        self._began_s = 0.0

    async def _start(self) -> None:
        assets = Path(os.environ["KUBEBUILDER_ASSETS"])
        self._token, self._ca = secrets.token_hex(16), str(self.home / "tls.crt")
        (self.home / "tokens.csv").write_text(f'{self._token},admin,admin,"system:masters"\n')
        client, peer, port = free_port(), free_port(), free_port()
        self._url = f"https://127.0.0.1:{port}"
        self._certificates()
        self._write_kubeconfig()
        self._spawn(
            assets / "etcd",
            {
                "data-dir": self.home / "etcd",
                "listen-client-urls": f"http://127.0.0.1:{client}",
                "advertise-client-urls": f"http://127.0.0.1:{client}",
                "listen-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
                "initial-cluster": f"default=http://127.0.0.1:{peer}",
            },
            "--unsafe-no-fsync",
        )
        self._spawn(
            assets / "kube-apiserver",
            {
                "etcd-servers": f"http://127.0.0.1:{client}",
                "bind-address": "127.0.0.1",
                "advertise-address": "127.0.0.1",
                "secure-port": port,
                "service-cluster-ip-range": "10.96.0.0/16",
                "service-account-issuer": "https://kubernetes.default.svc",
                "service-account-key-file": self.home / "tls.key",
                "service-account-signing-key-file": self.home / "tls.key",
                "token-auth-file": self.home / "tokens.csv",
                "authorization-mode": "RBAC",
                "disable-admission-plugins": "ServiceAccount",
                "tls-cert-file": self._ca,
                "tls-private-key-file": self.home / "tls.key",
                "cert-dir": self.home,
                "max-requests-inflight": 3000,
                "max-mutating-requests-inflight": 1000,
            },
        )

    def _spawn(self, program: Path, flags: dict[str, Any], *more: str) -> None:
        command = [str(program), *more, *(f"--{name}={value}" for name, value in flags.items())]
        with (self.home / f"{program.name}.log").open("wb") as output:
            self._processes.append(subprocess.Popen(command, stdout=output, stderr=output, cwd=self.home))

    def _certificates(self) -> None:
        key, name = self.home / "tls.key", ("-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1")
        run("openssl", "genrsa", "-out", str(key), "2048")
        run("openssl", "req", "-x509", "-new", "-key", str(key), "-days", "2", *name, "-out", self._ca)

    def _write_kubeconfig(self) -> None:
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self._url, "certificate-authority": self._ca}}],
            "users": [{"name": "u", "user": {"token": self._token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(tree))

    async def load(self, shape: Shape) -> None:
        by_kind: dict[Kind, list[Object]] = {}
        for kind, obj in workload.objects(shape):
            by_kind.setdefault(kind, []).append(obj)
        for kind, objects in by_kind.items():
            rest = iter(objects)

            async def work(kind: Kind = kind, rest: Any = rest) -> None:
                for obj in rest:
                    await self.create(kind, obj)

            await asyncio.gather(*(work() for _ in range(PARALLEL)))

    async def churn(self, shape: Shape, per_s: float, share: float) -> None:
        self._events, self._began_s = 0, time.monotonic()
        if not self._labels:
            made = (pod["metadata"] for pod in workload.pods(shape))
            self._labels = {(meta["namespace"], meta["name"]): dict(meta["labels"]) for meta in made}
        rng = random.Random(1)  # noqa: S311 - the same events in every run
        workers = min(PARALLEL // 2, max(1, int(per_s // 50)))
        self._churning = [asyncio.create_task(self._change(shape, per_s / workers, share, rng)) for _ in range(workers)]

    async def _change(self, shape: Shape, per_s: float, share: float, rng: random.Random) -> None:
        events = 0
        while True:
            if rng.random() < share:
                namespace, name, tier = workload.turned(shape, rng, self._labels_of)
                self._labels_of(namespace, name)["tier"] = tier
                change = {"labels": {"tier": tier}}
            else:
                meta = workload.numbered_pod(shape, rng.randrange(shape.local_pods, shape.pods))["metadata"]
                namespace, name, change = meta["namespace"], meta["name"], {"annotations": {"at": str(rng.random())}}
            await self.patch(Kind.POD, namespace, name, {"metadata": change})
            self._events += 1
            events += 1
            await asyncio.sleep(max(0.0, self._began_s + events / per_s - time.monotonic()))

    def _labels_of(self, namespace: str, name: str) -> dict[str, str]:
        """As they were left by the changes so far."""
        return self._labels[namespace, name]

    async def quiet(self) -> float:
        took_s = time.monotonic() - self._began_s
        for task in self._churning:
            task.cancel()
        for ended in await asyncio.gather(*self._churning, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        return self._events / took_s

    async def __aexit__(self, *_: object) -> None:
        for task in self._churning:
            task.cancel()
        await super().__aexit__()


def free_port() -> int:
    """A TCP port of loopback that nobody has."""
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
