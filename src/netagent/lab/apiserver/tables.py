"""The columns that `kubectl get` prints. Source: pkg/printers/internalversion/printers.go."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from netagent.lab.apiserver.resources import Resource

Object = dict[str, Any]
Column = tuple[str, int]
"""Header and priority: 0 always, 1 with -o wide."""

NAME: Column = ("Name", 0)
AGE: Column = ("Age", 0)


def column_definitions(resource: Resource) -> list[dict[str, Any]]:
    """columnDefinitions of a Table."""
    columns = COLUMNS[resource.table][0] if resource.table in COLUMNS else _generic_columns(resource)
    return [
        {
            "name": name,
            "type": "string",
            "format": "name" if name == "Name" else "",
            "description": name,
            "priority": priority,
        }
        for name, priority in columns
    ]


def table_cells(resource: Resource, obj: Object, now_s: float) -> list[Any]:
    """The cells of one row."""
    if resource.table in COLUMNS:
        return COLUMNS[resource.table][1](obj, now_s)
    return [_name(obj), *(_json_path(obj, path, now_s) for _, path in resource.columns), _age(obj, now_s)]


def _generic_columns(resource: Resource) -> list[Column]:
    return [NAME, *((name, 0) for name, _ in resource.columns), AGE]


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: Object, now_s: float) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now_s)


def since(text: str | None, now_s: float) -> str:
    """How long ago, for people."""
    if not text:
        return "<unknown>"
    try:
        then_s = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return "<unknown>"
    return human_duration(int(now_s - then_s))


def human_duration(seconds: int) -> str:
    """As upstream's duration.HumanDuration: two units at most, the finer one only while it matters."""
    if seconds < 0:
        return "0s" if seconds >= -1 else "<invalid>"
    (coarse_s, coarse_unit), (fine_s, fine_unit) = next(units for below_s, *units in HUMAN_STEPS if seconds < below_s)
    whole, rest = divmod(seconds, coarse_s)
    finer = rest // fine_s if fine_s else 0
    return f"{whole}{coarse_unit}{finer}{fine_unit}" if finer else f"{whole}{coarse_unit}"


SECOND, MINUTE, HOUR, DAY, YEAR, NOTHING = (1, "s"), (60, "m"), (3600, "h"), (86400, "d"), (31_536_000, "y"), (0, "")
HUMAN_STEPS = (
    (120, SECOND, NOTHING),
    (600, MINUTE, SECOND),
    (180 * 60, MINUTE, NOTHING),
    (8 * 3600, HOUR, MINUTE),
    (48 * 3600, HOUR, NOTHING),
    (8 * 86400, DAY, HOUR),
    (730 * 86400, DAY, NOTHING),
    (8 * 31_536_000, YEAR, DAY),
    (1 << 62, YEAR, NOTHING),
)
"""Below so many seconds: the unit, and the finer unit beside it."""


def _json_path(obj: Object, path: str, now_s: float) -> Any:
    """A dotted JSONPath, as additionalPrinterColumns mostly are."""
    value: Any = obj
    for step in path.lstrip(".").split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if path.endswith("Timestamp") and isinstance(value, str):
        return since(value, now_s)
    return value


# Kinds


def _pod(obj: Object, now_s: float) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    statuses = status.get("containerStatuses") or []
    ready = sum(1 for item in statuses if item.get("ready"))
    restarts = sum(item.get("restartCount", 0) for item in statuses)
    gates = spec.get("readinessGates") or []
    ips = [item["ip"] for item in status.get("podIPs") or [] if item.get("ip")]
    return [
        _name(obj),
        f"{ready}/{len(spec.get('containers') or [])}",
        _pod_status(obj, status, statuses),
        str(restarts),
        _age(obj, now_s),
        (ips[0] if ips else "") or status.get("podIP") or "<none>",
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        f"0/{len(gates)}" if gates else "<none>",
    ]


def _pod_status(obj: Object, status: Object, statuses: list[Object]) -> str:
    """The reason that says most: of the containers where one waits or has ended, else the phase."""
    text = status.get("reason") or status.get("phase") or "Unknown"
    for item in statuses:
        state = item.get("state") or {}
        text = (state.get("waiting") or {}).get("reason") or (state.get("terminated") or {}).get("reason") or text
    if obj["metadata"].get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return str(text)


def _node(obj: Object, now_s: float) -> list[Any]:
    status, labels = obj.get("status") or {}, obj["metadata"].get("labels") or {}
    info = status.get("nodeInfo") or {}
    ready = [item for item in status.get("conditions") or [] if item.get("type") == "Ready"]
    words = ["Ready" if item.get("status") == "True" else "NotReady" for item in ready] or ["Unknown"]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    prefix = "node-role.kubernetes.io/"
    roles = sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix))
    addresses = {item.get("type"): item.get("address") for item in reversed(status.get("addresses") or [])}
    return [
        _name(obj),
        ",".join(words),
        ",".join(roles) or "<none>",
        _age(obj, now_s),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP") or "<none>",
        addresses.get("ExternalIP") or "<none>",
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _namespace(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), (obj.get("status") or {}).get("phase", ""), _age(obj, now_s)]


def _network_policy(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), selector_text(obj["spec"].get("podSelector") or {}), _age(obj, now_s)]


def selector_text(selector: Object) -> str:
    """As metav1.FormatLabelSelector."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for item in selector.get("matchExpressions") or []:
        key, values = item["key"], ",".join(sorted(item.get("values") or []))
        text = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        parts.append(text.get(item["operator"], key))
    return ",".join(parts) or "<none>"


def _lease(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), (obj.get("spec") or {}).get("holderIdentity", ""), _age(obj, now_s)]


def _service(obj: Object, now_s: float) -> list[Any]:
    spec = obj["spec"]
    ports = ",".join(
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port['protocol']}"
        for port in spec.get("ports") or []
    )
    external = ",".join(spec.get("externalIPs") or []) or "<none>"
    selector = ",".join(f"{key}={value}" for key, value in sorted((spec.get("selector") or {}).items()))
    cluster_ip = spec.get("clusterIP") or "<none>"
    return [_name(obj), spec["type"], cluster_ip, external, ports or "<none>", _age(obj, now_s), selector or "<none>"]


def _event(obj: Object, now_s: float) -> list[Any]:
    involved, source = obj.get("involvedObject") or {}, obj.get("source") or {}
    first = since(obj.get("firstTimestamp") or obj.get("eventTime"), now_s)
    last = since(obj.get("lastTimestamp"), now_s) if obj.get("lastTimestamp") else first
    origin = ", ".join(part for part in (source.get("component"), source.get("host")) if part)
    message = (obj.get("message") or "").strip()
    what = f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"
    head = [last, obj.get("type", ""), obj.get("reason", ""), what]
    return [*head, involved.get("fieldPath", ""), origin, message, first, str(obj.get("count") or 1), _name(obj)]


def _config_map(obj: Object, now_s: float) -> list[Any]:
    size = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
    return [_name(obj), str(size), _age(obj, now_s)]


def _secret(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), obj.get("type", ""), str(len(obj.get("data") or {})), _age(obj, now_s)]


def _service_account(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), str(len(obj.get("secrets") or [])), _age(obj, now_s)]


def _crd(obj: Object, _now_s: float) -> list[Any]:
    return [_name(obj), obj["metadata"].get("creationTimestamp", "")]


def _deployment(obj: Object, now_s: float) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}"
    updated, available = str(status.get("updatedReplicas", 0)), str(status.get("availableReplicas", 0))
    return [_name(obj), ready, updated, available, _age(obj, now_s)]


def _daemon_set(obj: Object, now_s: float) -> list[Any]:
    status = obj.get("status") or {}
    fields = (
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    )
    template = (obj["spec"].get("template") or {}).get("spec") or {}
    node_selector = ",".join(f"{key}={value}" for key, value in sorted((template.get("nodeSelector") or {}).items()))
    counts = [str(status.get(field, 0)) for field in fields]
    return [_name(obj), *counts, node_selector or "<none>", _age(obj, now_s)]


def _columns(always: str, wide: str = "") -> list[Column]:
    named = [(name, 0) for name in always.split("|")]
    return [*named, *((name, 1) for name in wide.split("|") if name)]


Cells = Callable[[Object, float], list[Any]]
COLUMNS: dict[str, tuple[list[Column], Cells]] = {
    "pods": (_columns("Name|Ready|Status|Restarts|Age", "IP|Node|Nominated Node|Readiness Gates"), _pod),
    "nodes": (
        _columns("Name|Status|Roles|Age|Version", "Internal-IP|External-IP|OS-Image|Kernel-Version|Container-Runtime"),
        _node,
    ),
    "namespaces": (_columns("Name|Status|Age"), _namespace),
    "networkpolicies.networking.k8s.io": (_columns("Name|Pod-Selector|Age"), _network_policy),
    "leases.coordination.k8s.io": (_columns("Name|Holder|Age"), _lease),
    "services": (_columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age", "Selector"), _service),
    "events": (
        [
            ("Last Seen", 0),
            ("Type", 0),
            ("Reason", 0),
            ("Object", 0),
            ("Subobject", 1),
            ("Source", 1),
            ("Message", 0),
            ("First Seen", 1),
            ("Count", 1),
            ("Name", 1),
        ],
        _event,
    ),
    "configmaps": (_columns("Name|Data|Age"), _config_map),
    "secrets": (_columns("Name|Type|Data|Age"), _secret),
    "serviceaccounts": (_columns("Name|Secrets|Age"), _service_account),
    "customresourcedefinitions.apiextensions.k8s.io": (_columns("Name|Created At"), _crd),
    "deployments.apps": (_columns("Name|Ready|Up-to-date|Available|Age"), _deployment),
    "daemonsets.apps": (
        _columns("Name|Desired|Current|Ready|Up-to-date|Available|Node Selector|Age"),
        _daemon_set,
    ),
}
