"""What a write leaves out and the server fills in, kind by kind, as upstream does."""

import base64
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]

DEFAULT_GRACE_S = 30
"""spec.terminationGracePeriodSeconds of a Pod that does not say. Source: core/v1 defaults."""


def _network_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("podSelector", {})
    for direction in ("ingress", "egress"):
        for rule in spec.get(direction) or []:
            for port in rule.get("ports") or []:
                port.setdefault("protocol", "TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _pod(obj: Object) -> None:
    _pod_spec(obj.setdefault("spec", {}))
    obj.setdefault("status", {}).setdefault("phase", "Pending")
    obj["status"].setdefault("qosClass", "BestEffort")


def _pod_spec(spec: Object) -> None:
    defaults = {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": DEFAULT_GRACE_S,
        "securityContext": {},
        "enableServiceLinks": True,
    }
    for name, value in defaults.items():
        spec.setdefault(name, dict(value) if isinstance(value, dict) else value)
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        _container(container, host_network=bool(spec.get("hostNetwork")))


def _container(container: Object, *, host_network: bool) -> None:
    image = container.get("image", "")
    untagged = ":" not in image.rpartition("/")[2] and "@" not in image
    container.setdefault("imagePullPolicy", "Always" if untagged or image.endswith(":latest") else "IfNotPresent")
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])


def _namespace(obj: Object) -> None:
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    obj.setdefault("status", {}).setdefault("phase", "Active")
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")


def _service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        if not port.get("targetPort"):
            port["targetPort"] = port.get("port", 0)
    obj.setdefault("status", {"loadBalancer": {}})


def _secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    for key, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _event(obj: Object) -> None:
    obj.setdefault("type", "Normal")


def _workload(obj: Object) -> None:
    template = obj.setdefault("spec", {}).setdefault("template", {})
    template.setdefault("metadata", {})
    _pod_spec(template.setdefault("spec", {}))
    obj.setdefault("status", {})


def _deployment(obj: Object) -> None:
    _workload(obj)
    obj["spec"].setdefault("replicas", 1)


def _definition(obj: Object) -> None:
    """A CustomResourceDefinition is served as soon as it is stored."""
    spec = obj.setdefault("spec", {})
    names = spec.setdefault("names", {})
    kind = str(names.get("kind", ""))
    names.setdefault("singular", kind.lower())
    names.setdefault("listKind", f"{kind}List")
    stored = [version.get("name", "") for version in spec.get("versions") or [] if version.get("storage")]
    conditions = [
        {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"},
        {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "it is served"},
    ]
    obj.setdefault("status", {"acceptedNames": names, "conditions": conditions, "storedVersions": stored})


def _node(obj: Object) -> None:
    obj.setdefault("spec", {})
    obj.setdefault("status", {})


BY_TABLE: dict[str, Callable[[Object], None]] = {
    "networkpolicies.networking.k8s.io": _network_policy,
    "pods": _pod,
    "namespaces": _namespace,
    "nodes": _node,
    "services": _service,
    "secrets": _secret,
    "events": _event,
    "daemonsets.apps": _workload,
    "deployments.apps": _deployment,
    "customresourcedefinitions.apiextensions.k8s.io": _definition,
}


def fill_in(table: str, obj: Object) -> None:
    """Add the defaults of a kind to an object that nobody else holds yet."""
    default = BY_TABLE.get(table)
    if default is not None:
        default(obj)
