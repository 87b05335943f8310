"""The way to the API server changes while the agent runs: hosts that die, names, addresses, certificates, tokens."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from netagent.config import ApiConfig
from netagent.kube.client import ApiClient, Silent, Unreachable, connect
from netagent.kube.reflector import Reflector, resources
from netagent.records import Change, Kind, Removed, Upserted
from support.certificates import make_certificate
from support.cnibed import sh
from support.faultbed import Cluster, until
from support.faultyapi import FaultyApi, server_context

PEER_TIMEOUT_S = 2.0


class Access:
    """A kubeconfig, and a reflector of pods behind it."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.kubeconfig = directory / "kubeconfig"
        self.seen: set[str] = set()
        self.api: ApiClient
        self.reflector: Reflector

    def write(self, server: str, cluster: dict[str, Any] | None = None, **user: Any) -> None:
        """The kubeconfig, as a whole."""
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
            "users": [{"name": "u", "user": user}],
        }
        draft = self.kubeconfig.with_suffix(".new")
        draft.write_text(json.dumps(tree))
        draft.replace(self.kubeconfig)

    def emit(self, change: Change) -> None:
        if isinstance(change, Upserted):
            self.seen.add(change.record.key.name)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[None]:
        config = ApiConfig(kubeconfig=str(self.kubeconfig), **{"backoff_cap_s": 0.5, **settings})
        async with connect(config) as api:
            self.api = api
            self.reflector = Reflector(api, resources("kube-system")[Kind.POD], self.emit, config)
            task = asyncio.create_task(self.reflector.run())
            try:
                yield
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def sees_news(self) -> None:
        """A pod that is made now arrives."""
        name = f"p{len(self.seen)}"
        meta = {"namespace": "default", "name": name}
        self.cluster.put("pods", {"metadata": meta, "spec": {"containers": [{"name": "c", "image": "x"}]}})
        await until(lambda: name in self.seen, lambda: self.reflector.status)

    async def fails(self, *words: str) -> None:
        await until(
            lambda: any(word in self.reflector.status.last_error for word in words), lambda: self.reflector.status
        )


@pytest.fixture
async def access(tmp_path: Path) -> AsyncIterator[Access]:
    cluster = Cluster()
    await cluster.start()
    yield Access(tmp_path, cluster)
    await cluster.stop()


@asynccontextmanager
async def serving(access: Access, **options: Any) -> AsyncIterator[FaultyApi]:
    proxy = FaultyApi(access.cluster.url, **options)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


@pytest.fixture
def drop_port() -> Iterator[Callable[[int], None]]:
    """From now on nothing passes to or from a TCP port: no data, no acknowledgement, no FIN, no reset."""

    def drop(port: int) -> None:
        rules = f"""table inet dead_peer {{
            chain in {{ type filter hook input priority -400; tcp dport {port} drop; tcp sport {port} drop; }}
        }}"""
        subprocess.run(["nft", "-f-"], input=rules.encode(), check=True)

    yield drop
    with contextlib.suppress(subprocess.CalledProcessError):
        sh("nft", "delete", "table", "inet", "dead_peer")


@pytest.mark.kernel
async def test_a_host_that_died_is_noticed_by_the_kernel_long_before_the_silence(
    access: Access, drop_port: Callable[[int], None]
) -> None:
    async with serving(access) as proxy:
        access.write(proxy.url)
        async with access.running(watch_silence_s=600.0, peer_timeout_s=PEER_TIMEOUT_S, request_timeout_s=600.0):
            await access.sees_news()
            drop_port(proxy.port)
            await access.fails("stream broke")
            await access.fails("timed out", "Connection timeout")
            sh("nft", "delete", "table", "inet", "dead_peer")
            await access.sees_news()


@pytest.mark.kernel
async def test_without_it_only_the_silence_would_tell(access: Access, drop_port: Callable[[int], None]) -> None:
    async with serving(access) as proxy:
        access.write(proxy.url)
        config = ApiConfig(kubeconfig=str(access.kubeconfig), peer_timeout_s=600.0)
        async with connect(config) as api:
            stream = api.stream("/api/v1/pods", silence_s=3.0, watch="true")
            assert await anext(stream) == []
            drop_port(proxy.port)
            with pytest.raises(Silent):
                await anext(stream)


@pytest.mark.kernel
async def test_a_network_that_swallows_everything_does_not_make_pages_small(
    access: Access, drop_port: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netagent.kube.client.CONNECT_TIMEOUT_S", 0.2)
    async with serving(access) as proxy:
        access.write(proxy.url)
        drop_port(proxy.port)
        async with access.running(page_size=64):
            await until(lambda: access.reflector.status.failures >= 3, lambda: access.reflector.status)
            sh("nft", "delete", "table", "inet", "dead_peer")
            await access.sees_news()
        assert {one.query["limit"] for one in proxy.asked if one.verb == "list"} == {"64"}


async def test_a_new_address_in_the_kubeconfig_is_followed(access: Access) -> None:
    async with serving(access) as old, serving(access) as new:
        access.write(old.url)
        async with access.running():
            await access.sees_news()
            await old.stop()
            await access.fails("no answer")
            access.write(new.url)
            await access.sees_news()


@pytest.mark.kernel
async def test_a_name_that_leads_elsewhere_is_followed(access: Access, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 api.test\n")
    sh("mount", "--bind", str(hosts), "/etc/hosts")
    try:
        async with (
            serving(access, host="127.0.0.2") as old,
            serving(access, host="127.0.0.3", port=old.port) as new,
        ):
            access.write(f"http://api.test:{old.port}")
            async with access.running():
                await access.sees_news()
                assert not new.asked
                hosts.write_text("127.0.0.3 api.test\n")
                await old.stop()
                await access.sees_news()
                assert new.asked
    finally:
        sh("umount", "/etc/hosts")


async def test_another_authority_is_trusted_as_soon_as_its_file_is_there(access: Access, tmp_path: Path) -> None:
    """The server's certificate changes first. The authority before is trusted no more."""
    old, new = make_certificate(tmp_path / "old"), make_certificate(tmp_path / "new")
    authority = tmp_path / "ca.crt"
    authority.write_bytes(old.with_suffix(".crt").read_bytes())
    before, after = (server_context(f"{stem}.crt", f"{stem}.key") for stem in (old, new))
    async with serving(access, tls=before) as proxy:
        access.write(proxy.url, {"certificate-authority": str(authority)}, token="t")
        async with access.running():
            await access.sees_news()
            await proxy.stop()
            proxy.tls = after
            await proxy.start()
            await access.fails("certificate", "CERTIFICATE")
            authority.write_bytes(new.with_suffix(".crt").read_bytes())
            await access.sees_news()
            await proxy.stop()
            proxy.tls = before
            await proxy.start()
            await access.fails("certificate", "CERTIFICATE")
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await access.api.get_json("/api/v1/pods", dict)


async def test_a_client_certificate_is_replaced(access: Access, tmp_path: Path) -> None:
    server, old, new = (make_certificate(tmp_path / name) for name in ("server", "old", "new"))
    mine = tmp_path / "mine"

    def install(stem: Path) -> None:
        for suffix in (".key", ".crt"):
            mine.with_suffix(suffix).write_bytes(stem.with_suffix(suffix).read_bytes())

    install(old)
    contexts = [server_context(f"{server}.crt", f"{server}.key", f"{stem}.crt") for stem in (old, new)]
    async with serving(access, tls=contexts[0]) as proxy:
        user = {"client-certificate": f"{mine}.crt", "client-key": f"{mine}.key"}
        access.write(proxy.url, {"certificate-authority": f"{server}.crt"}, **user)
        async with access.running():
            await access.sees_news()
            await proxy.stop()
            proxy.tls = contexts[1]
            await proxy.start()
            await access.fails("GET /api/v1/pods")
            mine.with_suffix(".crt").write_bytes(new.with_suffix(".crt").read_bytes())
            await asyncio.sleep(0.7)
            assert access.reflector.status.last_error, "certificate and key do not fit: half a rotation"
            install(new)
            await access.sees_news()


@pytest.mark.envtest
async def test_a_control_plane_rebuilt_from_a_backup(control_plane: Any, tmp_path: Path) -> None:
    """Address, certificate and token are others, and the state is the backup's: a real API server."""
    kubeconfig = tmp_path / "access.kubeconfig"
    kept: dict[str, str] = {}

    def emit(change: Change) -> None:
        if isinstance(change, Upserted):
            kept[change.record.key.name] = str(getattr(change.record, "labels", {}))
        elif isinstance(change, Removed):
            del kept[change.key.name]

    first = await asyncio.to_thread(control_plane.start)
    kubeconfig.write_bytes(Path(first.kubeconfig).read_bytes())  # noqa: ASYNC240
    await put_namespaces(first, {"same": "1", "changed": "1", "deleted-later": "1"})
    config = ApiConfig(kubeconfig=str(kubeconfig), backoff_cap_s=0.5, watch_silence_s=3.0)
    async with connect(config) as api:
        reflector = Reflector(api, resources("kube-system")[Kind.NAMESPACE], emit, config)
        task = asyncio.create_task(reflector.run())
        await until(lambda: "changed" in kept, lambda: reflector.status)
        control_plane.back_up()
        await put_namespaces(first, {"changed": "2", "new-later": "1", **{f"filler-{n}": "1" for n in range(60)}})
        await until(lambda: "filler-59" in kept and "2" in kept["changed"], lambda: reflector.status)
        await asyncio.to_thread(control_plane.stop)
        await until(lambda: reflector.status.last_error, lambda: reflector.status)
        assert len(kept) > 60
        control_plane.restore()
        second = await asyncio.to_thread(control_plane.start)
        kubeconfig.write_bytes(Path(second.kubeconfig).read_bytes())  # noqa: ASYNC240
        await until(lambda: "new-later" not in kept and "1" in kept["changed"], lambda: reflector.status)
        await put_namespaces(second, {"newest": "1"})
        await until(lambda: "newest" in kept, lambda: reflector.status)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put_namespaces(api: Any, labels: dict[str, str]) -> None:
    """Namespaces by name, each with a label v."""
    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/apply-patch+yaml"}
    async with aiohttp.ClientSession(api.url, headers=headers) as session:
        for name, value in labels.items():
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"v": value}}}
            path = f"/api/v1/namespaces/{name}?fieldManager=test"
            async with session.patch(path, data=json.dumps(body), ssl=api.tls()) as response:
                assert response.status in (200, 201), await response.text()


@pytest.mark.envtest
async def test_a_revoked_token_is_replaced_by_the_one_in_its_file(real_api: Any, tmp_path: Path) -> None:
    """Tokens of a service account on a real API server; the old one ends with the Secret that it is bound to."""
    headers = {"Authorization": f"Bearer {real_api.token}"}
    async with aiohttp.ClientSession(real_api.url, headers=headers) as admin:
        tokens = [await bound_token(admin, real_api.tls(), name) for name in ("rotate-a", "rotate-b")]
        file = tmp_path / "token"
        file.write_text(tokens[0])
        access = Access(tmp_path, Cluster())
        user = {"tokenFile": str(file)}
        access.write(real_api.url, {"certificate-authority": real_api.ca}, **user)
        async with connect(ApiConfig(kubeconfig=str(access.kubeconfig))) as api:
            await api.get_json("/api/v1/pods", dict, limit=1)
            file.write_text(tokens[1])
            await admin.delete("/api/v1/namespaces/default/secrets/rotate-a", ssl=real_api.tls())

            async def is_revoked() -> bool:
                url, bearer = f"{real_api.url}/api/v1/pods", {"Authorization": f"Bearer {tokens[0]}"}
                async with admin.get(url, headers=bearer, ssl=real_api.tls(), params={"limit": "1"}) as response:
                    return response.status == 401

            await until(is_revoked, lambda: "the first token is refused")
            answers = await asyncio.gather(*(api.get_json("/api/v1/pods", dict, limit=1) for _ in range(5)))
            assert all(answer["kind"] == "PodList" for answer in answers)
            assert 1 <= api.answers["list", "401"] <= 5
            assert api.answers["list", "200"] == 6
        for path in ("/api/v1/namespaces/default/secrets/rotate-b", BINDING):
            await admin.delete(path, ssl=real_api.tls())
        access.cluster._listener.close()


BINDING = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/rotate"


async def bound_token(admin: aiohttp.ClientSession, tls: Any, secret: str) -> str:
    """A token of the service account `default` that lives as long as the Secret."""

    async def post(path: str, body: Any) -> Any:
        async with admin.post(path, json=body, ssl=tls) as response:
            assert response.status in (200, 201, 409), await response.text()
            return await response.json()

    await post("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "rotate"}})
    binding = {
        "metadata": {"name": "rotate"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "rotate", "namespace": "default"}],
    }
    await post(BINDING.rpartition("/")[0], binding)
    made = await post("/api/v1/namespaces/default/secrets", {"metadata": {"name": secret}})
    bound = {"kind": "Secret", "apiVersion": "v1", "name": secret, "uid": made["metadata"]["uid"]}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}}
    token = await post("/api/v1/namespaces/default/serviceaccounts/rotate/token", request)
    text: str = token["status"]["token"]
    return text
