"""The API servers that contract tests run against: the lab's own and a real kube-apiserver with etcd.

A test that takes `api` runs once per server. `namespace` is a fresh namespace of that server, `client` an HTTP client
and `kubectl` the real program, all three bound to it. Both servers live as long as the test session.
"""

import asyncio
import io
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from msgspec import Struct

START_S = 60.0
"""A server that does not answer within this time has failed."""
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
"""


class Api(Struct, frozen=True):
    """One API server."""

    kind: str
    """embedded or real."""
    url: str
    token: str
    kubeconfig: Path
    ca: str = ""
    """Path of the CA's certificate; empty for plain HTTP."""
    etcd: str = ""
    """URL of the real server's etcd."""
    audit: str = ""
    """Path of the real server's audit log: one line of JSON per answer to a service account."""

    def tls(self) -> ssl.SSLContext | bool:
        """What an aiohttp request wants as `ssl`."""
        return ssl.create_default_context(cafile=self.ca) if self.ca else True


class Answer(Struct, frozen=True):
    """A decoded answer."""

    status: int
    tree: Any


class Client:
    """JSON over HTTP with the server's credentials."""

    def __init__(self, api: Api, session: aiohttp.ClientSession) -> None:
        self.api = api
        self.session = session
        self._tls = api.tls()

    async def request(self, method: str, path: str, body: Any = None, media: str = "", **headers: str) -> Answer:
        """Send a tree (or bytes as they are), decode the answer."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if content is not None:
            headers = {"Content-Type": media or "application/json", **headers}
        url = self.api.url + path
        data = io.BytesIO(content) if content is not None else None
        async with self.session.request(method, url, data=data, headers=headers, ssl=self._tls) as response:
            text = await response.read()
            try:
                return Answer(response.status, json.loads(text))
            except ValueError:
                return Answer(response.status, text.decode())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, **headers)

    async def post(self, path: str, body: Any) -> Answer:
        return await self.request("POST", path, body)

    async def put(self, path: str, body: Any) -> Answer:
        return await self.request("PUT", path, body)

    async def patch(self, path: str, body: Any, media: str = "application/merge-patch+json") -> Answer:
        return await self.request("PATCH", path, body, media)

    async def delete(self, path: str, body: Any = None) -> Answer:
        return await self.request("DELETE", path, body)

    async def compact(self, revision: int) -> None:
        """Make the server forget what was before a revision."""
        if not self.api.etcd:
            assert (await self.post("/lab/compact", {"revision": revision})).status == 200
            return
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.api.etcd}/v3/kv/compaction", json={"revision": revision}) as response,
        ):
            assert response.status == 200, await response.text()

    @asynccontextmanager
    async def watch(self, path: str) -> AsyncIterator[Callable[[], Any]]:
        """Open a watch; the function inside returns the next event, None at the end of the stream."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(self.api.url + path, ssl=self._tls, timeout=timeout) as response:
            assert response.status == 200, await response.text()

            async def following() -> Any:
                async with asyncio.timeout(30):
                    line = await response.content.readline()
                return json.loads(line) if line else None

            yield following


def _wait_until_ready(url: str, token: str, ca: str, process: subprocess.Popen[bytes], log: Path) -> None:
    context = ssl.create_default_context(cafile=ca) if ca else None
    request = urllib.request.Request(url + "/readyz", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"{url} ended with {process.returncode}: {log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(request, context=context, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"{url} was not ready within {START_S} s: {log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_kubeconfig(path: Path, url: str, token: str, ca: str) -> None:
    cluster = {"server": url, **({"certificate-authority": ca} if ca else {})}
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="session")
def embedded_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The lab's API server in a process of its own, with a bookmark every second.

    Clients that send a token are served like those that do not: kubectl sends none over plain HTTP.
    """
    home = tmp_path_factory.mktemp("embedded-api")
    token, kubeconfig, log = secrets.token_hex(16), home / "kubeconfig", home / "log"
    url = f"http://127.0.0.1:{_free_port()}"
    _write_kubeconfig(kubeconfig, url, token, "")
    flags = ["--listen", url.removeprefix("http://"), "--bookmark-s", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "netagent.lab.apiserver", *flags],
            env={**os.environ, "NETAGENT_LAB_TOKEN": ""},
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_ready(url, "", "", process, log)
        yield Api("embedded", url, token, kubeconfig)
    finally:
        _stop(process)


@pytest.fixture(scope="session")
def real_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """kube-apiserver and etcd out of KUBEBUILDER_ASSETS."""
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    home = tmp_path_factory.mktemp("real-api")
    etcd_url = f"http://127.0.0.1:{_free_port()}"
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start_etcd(assets / "etcd", home, etcd_url))
        api, process = _start_kube_apiserver(assets / "kube-apiserver", home, etcd_url)
        started.append(process)
        _wait_until_ready(api.url, api.token, api.ca, process, home / "apiserver.log")
        yield api
    finally:
        for process in reversed(started):
            _stop(process)
        shutil.rmtree(home / "etcd", ignore_errors=True)


def _start_etcd(program: Path, home: Path, url: str) -> subprocess.Popen[bytes]:
    peer = f"http://127.0.0.1:{_free_port()}"
    flags = {
        "data-dir": home / "etcd",
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    command = [str(program), "--unsafe-no-fsync", *(f"--{name}={value}" for name, value in flags.items())]
    with (home / "etcd.log").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=home)


def _start_kube_apiserver(program: Path, home: Path, etcd_url: str) -> tuple[Api, subprocess.Popen[bytes]]:
    token, key, port = secrets.token_hex(16), home / "service-account.key", _free_port()
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=api",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(home / "tls.key"),
            "-out",
            str(home / "tls.crt"),
        ],
        check=True,
        capture_output=True,
    )
    (home / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    (home / "audit.yaml").write_text(AUDIT_POLICY)
    flags = {
        "etcd-servers": etcd_url,
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": port,
        "service-cluster-ip-range": "10.96.0.0/16",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": key,
        "service-account-signing-key-file": key,
        "token-auth-file": home / "tokens.csv",
        "authorization-mode": "RBAC",
        "feature-gates": "IPv6DualStack=true",  # on by default since 1.21; without it a Node keeps one podCIDR
        "disable-admission-plugins": "ServiceAccount",
        "tls-cert-file": home / "tls.crt",
        "tls-private-key-file": home / "tls.key",
        "cert-dir": home,
        "audit-policy-file": home / "audit.yaml",
        "audit-log-path": home / "audit.log",
    }
    url, ca = f"https://127.0.0.1:{port}", str(home / "tls.crt")
    _write_kubeconfig(home / "kubeconfig", url, token, ca)
    with (home / "apiserver.log").open("wb") as output:
        command = [str(program), *(f"--{name}={value}" for name, value in flags.items())]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=home)
    return Api("real", url, token, home / "kubeconfig", ca, etcd_url, str(home / "audit.log")), process


class ControlPlane:
    """An etcd and a kube-apiserver of a test's own, which can be set back to an earlier state.

    Each start makes an API server with another address, certificate and token.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._assets = Path(os.environ["KUBEBUILDER_ASSETS"])
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Api:
        etcd_url = f"http://127.0.0.1:{_free_port()}"
        self._processes.append(_start_etcd(self._assets / "etcd", self._home, etcd_url))
        api, process = _start_kube_apiserver(self._assets / "kube-apiserver", self._home, etcd_url)
        self._processes.append(process)
        _wait_until_ready(api.url, api.token, api.ca, process, self._home / "apiserver.log")
        return api

    def stop(self) -> None:
        for process in reversed(self._processes):
            _stop(process)
        self._processes.clear()

    def back_up(self) -> None:
        """Copy etcd's files as they are at one moment."""
        self._processes[0].send_signal(signal.SIGSTOP)
        shutil.copytree(self._home / "etcd", self._home / "backup")
        self._processes[0].send_signal(signal.SIGCONT)

    def restore(self) -> None:
        """While it is stopped: back to the copy."""
        shutil.rmtree(self._home / "etcd")
        shutil.move(self._home / "backup", self._home / "etcd")


@pytest.fixture
def control_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """Not started yet."""
    plane = ControlPlane(tmp_path)
    yield plane
    plane.stop()
    shutil.rmtree(tmp_path / "etcd", ignore_errors=True)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.envtest)])
def api(request: pytest.FixtureRequest) -> Api:
    """Each of the two servers in turn."""
    server: Api = request.getfixturevalue(f"{request.param}_api")
    return server


async def _client(stack: AsyncExitStack, api: Api) -> Client:
    headers = {"Authorization": f"Bearer {api.token}"}
    session = aiohttp.ClientSession(headers=headers, read_bufsize=1 << 20)
    return Client(api, await stack.enter_async_context(session))


@pytest.fixture
async def client(api: Api) -> AsyncIterator[Client]:
    """An HTTP client of the server under test."""
    async with AsyncExitStack() as stack:
        yield await _client(stack, api)


@pytest.fixture
async def embedded(embedded_api: Api) -> AsyncIterator[Client]:
    """An HTTP client of the embedded server, for what a real one cannot do without its controllers."""
    async with AsyncExitStack() as stack:
        yield await _client(stack, embedded_api)


@asynccontextmanager
async def _fresh_namespace(client: Client) -> AsyncIterator[str]:
    answer = await client.post("/api/v1/namespaces", {"metadata": {"generateName": "t-"}})
    assert answer.status == 201, answer
    name: str = answer.tree["metadata"]["name"]
    try:
        yield name
    finally:
        await client.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
async def namespace(client: Client) -> AsyncIterator[str]:
    """The name of a namespace that this test has to itself."""
    async with _fresh_namespace(client) as name:
        yield name


@pytest.fixture
async def embedded_namespace(embedded: Client) -> AsyncIterator[str]:
    """The same on the embedded server."""
    async with _fresh_namespace(embedded) as name:
        yield name


Kubectl = Callable[..., Any]


@pytest.fixture
def kubectl(api: Api, tmp_path: Path) -> Kubectl:
    """Run kubectl; returns its output. `stdin` is text or a tree; `fails=True` returns what it complained."""

    async def run(*words: str, stdin: Any = None, fails: bool = False) -> str:
        text = stdin if isinstance(stdin, str | None) else json.dumps(stdin)
        home = {"HOME": str(tmp_path), "KUBECACHEDIR": str(tmp_path / "cache"), "KUBECONFIG": str(api.kubeconfig)}
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **home},
        )
        out, err = await process.communicate(text.encode() if text is not None else b"")
        assert (process.returncode != 0) is fails, f"kubectl {' '.join(words)}: {process.returncode}\n{out!r}\n{err!r}"
        return err.decode() if fails else out.decode()

    return run
