"""The agent of each overlay on a real API server, with the rights of its manifest and no others."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from netagent.config import ApiConfig
from netagent.kube.client import ApiClient, connect
from netagent.kube.events import SUPPRESS_S, EventWriter, Note
from netagent.kube.leasestore import LeaseStore
from netagent.records import Key, Kind
from support.leasebed import DEADLINE_S
from support.waiting import until

pytestmark = [pytest.mark.envtest, pytest.mark.kernel]

RENDERED = Path(__file__).resolve().parents[2] / "manifests" / "rendered"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
USER = "system:serviceaccount:kube-system:netagent"
NODE_ADDRESS = "192.0.2.10"
Right = tuple[str, str]
"""Verb, and resource with its subresource."""
RARE: set[Right] = {("create", "events"), ("patch", "events"), ("get", "leases"), ("delete", "leases")}
"""Used only when something goes wrong or nodes go."""


class Site:
    """A real API server with the rights of one overlay's manifest."""

    def __init__(self, api: Any, session: aiohttp.ClientSession, overlay: str, tmp_path: Path) -> None:
        self.api = api
        self.overlay = overlay
        self.tmp_path = tmp_path
        self._session = session
        self._tls = api.tls()
        trees = list(yaml.safe_load_all((RENDERED / f"netagent-{overlay}.yaml").read_text()))
        self.rights = [tree for tree in trees if tree["kind"] in RIGHTS]
        (config,) = (tree["data"]["netagent.yaml"] for tree in trees if tree["kind"] == "ConfigMap")
        self.config = tmp_path / "netagent.yaml"
        self.config.write_text(config)
        self.kubeconfig = tmp_path / "kubeconfig"
        self._skip = len(Path(api.audit).read_text().splitlines()) if Path(api.audit).exists() else 0

    def granted(self) -> set[Right]:
        """What the manifest grants."""
        roles = [tree for tree in self.rights if tree["kind"] in ("ClusterRole", "Role")]
        return {
            (verb, resource)
            for role in roles
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def asked(self) -> dict[Right, set[int]]:
        """What the service account asked since, with the answers' status codes."""
        found: dict[Right, set[int]] = {}
        for line in Path(self.api.audit).read_text().splitlines()[self._skip :]:
            entry = json.loads(line)
            if entry["user"]["username"] != USER or "objectRef" not in entry:
                continue
            ref = entry["objectRef"]
            what = "/".join(filter(None, (ref["resource"], ref.get("subresource"))))
            if ref.get("apiGroup") != "authorization.k8s.io":
                found.setdefault((entry["verb"], what), set()).add(entry["responseStatus"]["code"])
        return found

    async def admin(self, method: str, path: str, body: Any = None) -> Any:
        """A request with all rights."""
        async with self._session.request(method, self.api.url + path, json=body, ssl=self._tls) as response:
            tree = await response.json()
            assert response.status < 300, (path, tree)
            return tree

    def kubectl(self, *words: str) -> None:
        command = ["kubectl", "--kubeconfig", str(self.api.kubeconfig), f"--cache-dir={self.tmp_path}/cache", *words]
        subprocess.run(command, check=True, capture_output=True, input=yaml.safe_dump_all(self.rights), text=True)

    async def sign_in(self) -> None:
        """A token of the ServiceAccount, and a kubeconfig with it."""
        path = "/api/v1/namespaces/kube-system/serviceaccounts/netagent/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = (await self.admin("POST", path, request))["status"]["token"]
        tree = yaml.safe_load(self.api.kubeconfig.read_text())
        tree["users"][0]["user"] = {"token": token}
        self.kubeconfig.write_text(yaml.safe_dump(tree))

    async def may(self, verb: str, resource: str) -> bool:
        """What the server's authorizer says: it takes note of new roles a little later."""
        resource, _, subresource = resource.partition("/")
        groups = {"leases": "coordination.k8s.io", "networkpolicies": "networking.k8s.io"}
        attributes = {
            "verb": verb,
            "resource": resource,
            "subresource": subresource,
            "group": groups.get(resource, ""),
            "namespace": "kube-system" if resource == "leases" else "",
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": USER, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes},
        }
        answer = await self.admin("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])


@pytest.fixture(scope="module")
def underlay() -> Iterator[None]:
    """A link with the node's address."""
    run = ["ip", "link", "add", "rbac0", "type", "veth", "peer", "name", "rbac1"]
    subprocess.run(run, check=True)
    for words in (f"addr add {NODE_ADDRESS}/24 dev rbac0", "link set rbac0 up", "link set rbac1 up"):
        subprocess.run(["ip", *words.split()], check=True)
    yield
    subprocess.run(["ip", "link", "del", "rbac0"], check=True)


@asynccontextmanager
async def site(api: Any, overlay: str, tmp_path: Path) -> AsyncIterator[Site]:
    headers = {"Authorization": f"Bearer {api.token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        made = Site(api, session, overlay, tmp_path)
        made.kubectl("apply", "-f-")
        every = {
            (verb, resource)
            for resource in ("pods", "nodes", "leases", "networkpolicies", "nodes/status", "events")
            for verb in ("get", "list", "watch", "create", "update", "patch", "delete")
        }
        async with asyncio.timeout(DEADLINE_S):
            while {right for right in every | made.granted() if await made.may(*right)} != made.granted():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await made.sign_in()
        node = {"metadata": {"name": f"rbac-{overlay}"}, "spec": {"podCIDR": "10.244.9.0/24"}}
        node["spec"]["podCIDRs"] = [node["spec"]["podCIDR"]]  # type: ignore[assignment]
        path = f"/api/v1/nodes/rbac-{overlay}"
        await made.admin("POST", "/api/v1/nodes", node)
        addresses = {"status": {"addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}]}}
        async with session.patch(
            api.url + path + "/status",
            data=json.dumps(addresses),
            headers={"Content-Type": "application/merge-patch+json"},
            ssl=api.tls(),
        ) as response:
            assert response.status == 200, await response.text()
        try:
            yield made
        finally:
            await made.admin("DELETE", path)
            made.kubectl("delete", "-f-")


@asynccontextmanager
async def agent(site: Site, port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The program of the DaemonSet with the overlay's configuration."""
    here = site.tmp_path
    environ = {
        "NODE_NAME": f"rbac-{site.overlay}",
        "STATE_DIR": here / "state",
        "API_KUBECONFIG": site.kubeconfig,
        "NETWORK_LEASE_DURATION_S": 3,
        "CNI_SOCKET": here / "run/cni.sock",
        "CNI_BIN_DIR": here / "bin",
        "CNI_CONF_DIR": here / "net.d",
        "NETWORK_HOST_LOCAL_DIR": "",
        "NETWORK_SUBNET_ENV": here / "subnet.env",
        "HTTP_PORT": port,
        "HTTP_DEBUG_PORT": port + 1,
    }
    variables = {**os.environ, **{f"NETAGENT_{name}": str(value) for name, value in environ.items()}}
    command = [sys.executable, "-m", "netagent"]
    with (here / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [*command, "agent", "--config", str(site.config)], env=variables, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        clean = [*command, "cleanup", "--config", str(site.config), "--state", "--flannel"]
        subprocess.run(clean, env=variables, check=True, capture_output=True)  # noqa: ASYNC221 - nothing else runs


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("overlay", "port"), [("lease", 19101), ("node", 19103), ("policy-only", 19105), ("network-only", 19107)]
)
async def test_the_rights_are_those_that_are_used(
    overlay: str, port: int, real_api: Any, tmp_path: Path, underlay: None
) -> None:
    async with site(real_api, overlay, tmp_path) as bed:
        async with agent(bed, port) as process:
            await until(lambda: process.poll() is not None or is_ready(port), f"ready: {tmp_path / 'log'}")
            assert process.poll() is None, (tmp_path / "log").read_text()
            # A watch enters the log when its first byte is sent, or at its end.
            regular = {right for right in bed.granted() if right[0] != "watch" and right not in RARE}
            await until(lambda: regular <= bed.asked().keys(), f"{regular} in {real_api.audit}")
        async with connect(ApiConfig(kubeconfig=str(bed.kubeconfig))) as api:
            await _say_twice(bed, api)
            if overlay in ("lease", "network-only"):
                store = LeaseStore(api, "kube-system")
                (lease,) = (await store.all()).leases
                assert await store.get(lease.subnet)
                (lease,) = (await store.all()).leases
                await store.delete(lease)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while set(bed.asked()) != bed.granted():  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.1)
    asked = bed.asked()
    refused = {right: codes for right, codes in asked.items() if codes & {401, 403}}
    assert not refused
    assert set(asked) == bed.granted()
    assert "403" not in (tmp_path / "log").read_text()


async def _say_twice(bed: Site, api: ApiClient) -> None:
    """An Event, and the same again later: a clock that runs fast."""
    writer = EventWriter(api, f"rbac-{bed.overlay}", clock=itertools.count(time.time(), 2 * SUPPRESS_S).__next__)
    note = Note(Kind.NODE, Key("", f"rbac-{bed.overlay}"), "", "Tried", "twice")
    running = asyncio.create_task(writer.run())
    async with asyncio.timeout(DEADLINE_S):
        while ("patch", "events") not in bed.asked():
            writer.post(note)
            await asyncio.sleep(0.1)
    running.cancel()
