"""The manifests: current, accepted by a real API server, and true to the program that they run."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from netagent import config
from netagent.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = ("lease", "network-only", "node", "policy-only")
CAPABILITIES = {
    "lease": ["NET_ADMIN", "SYS_ADMIN"],
    "network-only": ["NET_ADMIN", "SYS_ADMIN"],
    "node": ["NET_ADMIN", "SYS_ADMIN"],
    "policy-only": ["NET_ADMIN"],
}
SUFFIXES = ("_total", "_bucket", "_count", "_sum", "_info")


class Alert(msgspec.Struct, forbid_unknown_fields=True):
    """A rule of a PrometheusRule."""

    alert: str
    expr: str
    labels: dict[str, str]
    annotations: dict[str, str]
    for_: str = msgspec.field(name="for", default="")


class AlertGroup(msgspec.Struct, forbid_unknown_fields=True):
    """A group of rules."""

    name: str
    rules: list[Alert]


class AlertGroups(msgspec.Struct, forbid_unknown_fields=True):
    """spec of a PrometheusRule."""

    groups: list[AlertGroup]


class Relabeling(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """An element of relabelings."""

    source_labels: list[str]
    target_label: str


class MetricsEndpoint(msgspec.Struct, forbid_unknown_fields=True):
    """An element of podMetricsEndpoints."""

    port: str
    path: str
    interval: str
    relabelings: list[Relabeling]


class PodMonitorSpec(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """spec of a PodMonitor."""

    selector: dict[str, dict[str, str]]
    pod_metrics_endpoints: list[MetricsEndpoint]


def documents(name: str) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all((MANIFESTS / "rendered" / name).read_text()) if tree]


def of_kind(trees: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (tree for tree in trees if tree["kind"] == kind)
    return found


@pytest.mark.parametrize(
    ("directory", "rendered"),
    [
        *((f"overlays/{name}", f"netagent-{name}.yaml") for name in OVERLAYS),
        ("monitoring", "monitoring.yaml"),
        ("cleanup", "cleanup.yaml"),
    ],
)
def test_rendered_files_are_current(directory: str, rendered: str) -> None:
    command = ["kubectl", "kustomize", str(MANIFESTS / directory)]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert list(yaml.safe_load_all(made)) == documents(rendered), "run `make manifests`"


@pytest.mark.parametrize("name", OVERLAYS)
def test_configuration_is_accepted(name: str, tmp_path: Path) -> None:
    trees = documents(f"netagent-{name}.yaml")
    path = tmp_path / "netagent.yaml"
    path.write_text(of_kind(trees, "ConfigMap")["data"]["netagent.yaml"])
    loaded = config.load(str(path), {}, {})
    modes = {"lease": "lease", "network-only": "lease", "node": "node", "policy-only": "off"}
    assert loaded.network.mode == modes[name]
    assert loaded.policy.enabled is (name != "network-only")
    assert loaded.cni.enabled is (name != "policy-only")


@pytest.mark.parametrize("name", OVERLAYS)
def test_agent_is_confined(name: str) -> None:
    pod = of_kind(documents(f"netagent-{name}.yaml"), "DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert (security["privileged"], security["allowPrivilegeEscalation"]) == (False, False)
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"], "add": CAPABILITIES[name]}
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostPID", "hostIPC"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_files_of_the_configuration_are_mounted(name: str, tmp_path: Path) -> None:
    trees = documents(f"netagent-{name}.yaml")
    path = tmp_path / "netagent.yaml"
    path.write_text(of_kind(trees, "ConfigMap")["data"]["netagent.yaml"])
    loaded = config.load(str(path), {}, {})
    (container,) = of_kind(trees, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert loaded.state_dir in mounts
    if loaded.cni.enabled:
        wanted = {loaded.cni.bin_dir, loaded.cni.conf_dir, str(Path(loaded.cni.socket).parent), "/run/netns"}
        assert wanted <= mounts
        assert not loaded.network.host_local_dir or loaded.network.host_local_dir in mounts


@pytest.mark.parametrize("name", [*(f"netagent-{name}.yaml" for name in OVERLAYS), "cleanup.yaml"])
def test_images_are_of_this_version(name: str) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    pod = of_kind(documents(name), "DaemonSet")["spec"]["template"]["spec"]
    images = {container["image"] for container in (*pod["containers"], *pod.get("initContainers", ()))}
    assert images == {f"localhost/netagent:{version[1]}"}


def test_probes_and_scrapes_find_the_port() -> None:
    trees = documents("netagent-lease.yaml")
    (container,) = of_kind(trees, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [
        {"name": "metrics", "containerPort": config.HttpConfig().port, "hostPort": 9099, "protocol": "TCP"}
    ]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    monitor = msgspec.convert(of_kind(documents("monitoring.yaml"), "PodMonitor")["spec"], PodMonitorSpec)
    assert [(one.port, one.path) for one in monitor.pod_metrics_endpoints] == [("metrics", "/metrics")]
    labels = of_kind(trees, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert monitor.selector["matchLabels"].items() <= labels.items()


def test_alerts_and_dashboard_use_metrics_that_exist() -> None:
    trees = documents("monitoring.yaml")
    rules = msgspec.convert(of_kind(trees, "PrometheusRule")["spec"], AlertGroups)
    dashboard = json.loads(of_kind(trees, "ConfigMap")["data"]["netagent.json"])
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    alerts = [rule for group in rules.groups for rule in group.rules]
    assert len({rule.alert for rule in alerts}) == len(alerts) > 5
    assert all(rule.labels["severity"] in ("warning", "critical") and rule.annotations["summary"] for rule in alerts)
    assert len({panel["id"] for panel in panels}) == len(panels)
    known = {metric.name for metric in Metrics().registry.collect()}
    for query in (*(rule.expr for rule in alerts), *queries):
        assert query.count("(") == query.count(")"), query
        for name in re.findall(r"\bnetagent_[a-z_]+", query):
            bare = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
            assert {bare, name} & known, f"{name} in {query}"


@pytest.mark.envtest
@pytest.mark.parametrize("name", [*(f"netagent-{name}.yaml" for name in OVERLAYS), "cleanup.yaml", "monitoring.yaml"])
def test_a_real_api_server_accepts_them(name: str, real_api: Any, tmp_path: Path) -> None:
    """But for the Prometheus operator's kinds, which it does not know: their shapes are checked above."""
    trees = [tree for tree in documents(name) if "coreos" not in tree["apiVersion"]]
    for template in [tree["spec"]["template"] for tree in trees if tree["kind"] == "DaemonSet"]:
        metadata = {**template["metadata"], "name": "one", "namespace": "kube-system"}
        trees.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    done = subprocess.run(
        [
            "kubectl",
            "--kubeconfig",
            str(real_api.kubeconfig),
            f"--cache-dir={tmp_path}",
            "apply",
            "--dry-run=server",
            "-f-",
        ],
        input=yaml.safe_dump_all(trees),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == len(trees), done.stdout
