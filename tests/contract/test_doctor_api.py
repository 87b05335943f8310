"""What `netagent doctor` hears from a real API server about rights, Nodes, Services and clocks."""

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from netagent import cli, config
from netagent.core.doctor.clusterchecks import Right, rights
from support.doctorbed import Found, sort

RENDERED = Path(__file__).resolve().parents[2] / "manifests" / "rendered"
OVERLAYS = ("lease", "node", "policy-only", "network-only")
KINDS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
DEADLINE_S = 40.0
Tree = dict[str, Any]


def manifest(overlay: str) -> tuple[list[Tree], Tree]:
    """(what concerns rights, the configuration)."""
    trees = list(yaml.safe_load_all((RENDERED / f"netagent-{overlay}.yaml").read_text()))
    (text,) = (tree["data"]["netagent.yaml"] for tree in trees if tree["kind"] == "ConfigMap")
    return [tree for tree in trees if tree["kind"] in KINDS], yaml.safe_load(text)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rights_that_are_asked_for_are_those_of_the_manifest(overlay: str) -> None:
    trees, settings = manifest(overlay)
    granted = {
        Right(verb, group, resource, tree["metadata"]["namespace"] if tree["kind"] == "Role" else "")
        for tree in trees
        if tree["kind"] in ("Role", "ClusterRole")
        for rule in tree["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(rights(config.decode(settings, overlay))) == granted


class Site:
    """A configuration and a kubeconfig, and the server's administrator."""

    def __init__(self, api: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.api = api
        self.kubeconfig = api.kubeconfig
        self._home = home
        self._capsys = capsys

    def kubectl(self, *words: str, trees: list[Tree] | None = None) -> str:
        command = ["kubectl", "--kubeconfig", str(self.api.kubeconfig), f"--cache-dir={self._home}/cache", *words]
        text = yaml.safe_dump_all(trees) if trees else None
        return subprocess.run(command, check=True, capture_output=True, text=True, input=text).stdout

    def sign_in(self) -> None:
        """From now on as the agent's service account."""
        tree = yaml.safe_load(Path(self.api.kubeconfig).read_text())
        token = self.kubectl("-n", "kube-system", "create", "token", "netagent").strip()
        tree["users"][0]["user"] = {"token": token}
        self.kubeconfig = self._home / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(tree))

    def examine(self, settings: Tree) -> dict[str, list[Found]]:
        places = {"socket": str(self._home / "s"), "bin_dir": "", "conf_dir": str(self._home)}
        tree = {
            **settings,
            "node_name": "doctor-0",
            "state_dir": str(self._home),
            "cni": {**settings.get("cni", {}), **places},
            "api": {"kubeconfig": str(self.kubeconfig)},
        }
        path = self._home / "config.json"
        path.write_text(json.dumps(tree))
        status = cli.main(["doctor", "--config", str(path), "--output", "json"])
        return sort(self._capsys.readouterr().out, status)[1]

    @contextlib.contextmanager
    def node(self, name: str = "doctor-0", address: str = "192.0.2.1", **spec: Any) -> Iterator[None]:
        tree = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec}
        self.kubectl("create", "-f-", trees=[tree])
        status = {"status": {"addresses": [{"type": "InternalIP", "address": address}]}}
        self.kubectl("patch", "node", name, "--subresource=status", "-p", json.dumps(status))
        try:
            yield
        finally:
            self.kubectl("delete", "node", name)


@pytest.fixture
def site(real_api: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(real_api, tmp_path, capsys)


def eventually(ask: Callable[[], Any], wanted: Any) -> None:
    """The authorizer takes note of new roles a little later."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := ask()) != wanted:
        assert time.monotonic() < deadline, (found, wanted)
        time.sleep(0.2)


@pytest.mark.envtest
@pytest.mark.kernel
def test_rights_that_are_missing_are_named(site: Site) -> None:
    trees, settings = manifest("lease")
    site.kubectl("apply", "-f-", trees=trees)
    try:
        site.sign_in()
        eventually(lambda: site.examine(settings)["api.rights"][0]["level"], "ok")
        (role,) = (tree for tree in trees if tree["kind"] == "ClusterRole")
        for rule in role["rules"]:
            if "pods" in rule["resources"]:
                rule["verbs"].remove("watch")
        (leases,) = (tree for tree in trees if tree["kind"] == "Role")
        leases["rules"][0]["verbs"].remove("update")
        site.kubectl("apply", "-f-", trees=trees)
        missing = "update leases.coordination.k8s.io in kube-system, watch namespaces, watch pods"
        wanted = f"3 of {len(rights(config.decode(settings, '')))} rights are missing: {missing}"
        eventually(lambda: site.examine(settings)["api.rights"][0]["found"], wanted)
        assert site.examine(settings)["api.rights"][0]["level"] == "error"
    finally:
        site.kubectl("delete", "-f-", trees=trees)


@pytest.mark.envtest
@pytest.mark.kernel
def test_the_node_and_its_pod_cidrs(site: Site) -> None:
    settings: Tree = {"network": {"mode": "node", "pools": ["10.244.0.0/16"]}}
    assert site.examine(settings)["node.object"][0]["level"] == "error"
    with site.node():
        found = site.examine(settings)
        assert found["api.server"][0]["level"] == found["clock.skew"][0]["level"] == "ok"
        assert found["node.object"][0]["found"] == "Node doctor-0 has the addresses 192.0.2.1"
        assert found["node.pod_cidrs"][0]["level"] == "error"
    for cidr, level in (("10.244.3.0/24", "ok"), ("10.9.3.0/24", "error")):
        with site.node(podCIDR=cidr, podCIDRs=[cidr]):
            assert site.examine(settings)["node.pod_cidrs"][0]["level"] == level


@pytest.mark.envtest
@pytest.mark.kernel
def test_pools_that_hold_addresses_of_nodes_or_services(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def overlap(pool: str) -> str:
        (found,) = site.examine({"network": {"pools": [pool]}})["network.overlap"]
        return found["found"] if found["level"] == "error" else ""

    with site.node("doctor-1", "10.77.0.5"):
        assert overlap("10.244.0.0/16") == ""
        assert "address of node doctor-1 10.77.0.5" in overlap("10.77.0.0/16")
    assert "Service" in overlap("10.96.0.0/12")
    # Without the right to see Services, as the agent: what the kubelet tells every pod.
    site.kubectl("-n", "kube-system", "create", "serviceaccount", "netagent")
    try:
        site.sign_in()
        trees: list[Tree] = [
            {"kind": "ClusterRole", "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}]},
            {
                "kind": "ClusterRoleBinding",
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "doctor"},
                "subjects": [{"kind": "ServiceAccount", "name": "netagent", "namespace": "kube-system"}],
            },
        ]
        for tree in trees:
            tree |= {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "doctor"}}
        site.kubectl("apply", "-f-", trees=trees)
        eventually(lambda: site.examine({})["node.object"][0]["level"], "error")
        assert overlap("10.96.0.0/12") == ""
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        assert "Service kubernetes 10.96.0.1" in overlap("10.96.0.0/12")
        site.kubectl("delete", "-f-", trees=trees)
    finally:
        site.kubectl("-n", "kube-system", "delete", "serviceaccount", "netagent")


class Fast(BaseHTTPRequestHandler):
    """An API server whose clock is two minutes ahead."""

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/version" else 404, {"gitVersion": "v1.99.0"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, {"status": {"allowed": True}})

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + 120, usegmt=True)

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, status: int, tree: Tree) -> None:
        content = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_a_clock_that_goes_wrong_and_a_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = HTTPServer(("127.0.0.1", 0), Fast)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    tree = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeconfig = tmp_path / "k"
    kubeconfig.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **tree}))

    def examine() -> dict[str, list[Found]]:
        status = cli.main(["doctor", "--kubeconfig", str(kubeconfig), "--output", "json"])
        assert status == 2
        return sort(capsys.readouterr().out, status)[1]

    try:
        found = examine()
        assert found["clock.skew"][0]["level"] == "error"
        assert found["clock.skew"][0]["found"] in ("119 s behind the API server", "120 s behind the API server")
        assert found["api.rights"][0]["level"] == "ok"
        assert found["node.object"][0]["level"] == "error"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    found = examine()
    assert found["api.server"][0]["level"] == "error"
    assert "clock.skew" not in found
    assert found["libnftables.version"][0]["level"] in ("ok", "unknown")
