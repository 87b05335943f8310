"""Pod objects as the kubelet stand-in reads and writes them: plain functions on API JSON."""

from datetime import UTC, datetime
from typing import Any

from netagent.lab.client import Object
from netagent.lab.plan import Serving
from netagent.lab.processes import LabError

HOLD = "lab.netagent.io/hold"
"""Annotation: "true" keeps the pod Pending, without an address."""
IP = "lab.netagent.io/ip"
"""Annotation: addresses to ask CNI for, comma-separated."""
SERVES = "lab.netagent.io/serves"
"""Annotation: what to listen on instead of the declared ports, e.g. "80/TCP,81/UDP"; may be empty."""
FINISHED = ("Succeeded", "Failed")


def annotation(pod: Object, name: str) -> str | None:
    """One annotation."""
    text: str | None = (pod["metadata"].get("annotations") or {}).get(name)
    return text


def phase(pod: Object) -> str:
    """status.phase."""
    text: str = (pod.get("status") or {}).get("phase") or "Pending"
    return text


def ips(pod: Object) -> tuple[str, ...]:
    """status.podIPs."""
    return tuple(entry["ip"] for entry in (pod.get("status") or {}).get("podIPs") or ())


def full_name(pod: Object) -> str:
    """namespace/name."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def is_host_network(pod: Object) -> bool:
    """It uses its node's network namespace."""
    return bool(pod["spec"].get("hostNetwork"))


def is_ready(pod: Object) -> bool:
    """Running, and its Ready condition holds."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return phase(pod) == "Running" and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def parse_servings(text: str) -> tuple[Serving, ...]:
    """ "80/TCP,81/UDP" -> Servings. Raises LabError."""
    servings = []
    for part in filter(None, (item.strip() for item in text.split(","))):
        port, _, protocol = part.partition("/")
        if not port.isascii() or not port.isdigit() or protocol.upper() not in ("", "TCP", "UDP", "SCTP"):
            raise LabError(f"{part!r} names no port. Accepted: a list such as 80/TCP,81/UDP.")
        servings.append(Serving(int(port), protocol.upper() or "TCP"))
    return tuple(servings)


def servings(pod: Object) -> tuple[Serving, ...]:
    """The ports to listen on: those of the annotation, else those its containers declare."""
    text = annotation(pod, SERVES)
    if text is not None:
        return parse_servings(text)
    declared = {
        Serving(port["containerPort"], port.get("protocol") or "TCP")
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or ()
    }
    return tuple(sorted(declared))


def port_mappings(pod: Object) -> tuple[dict[str, Any], ...]:
    """Host ports, as CNI's portMappings capability wants them."""
    return tuple(
        {"hostPort": port["hostPort"], "containerPort": port["containerPort"], "protocol": port["protocol"].lower()}
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    )


def static_uid(pod: Object) -> str:
    """The UID by which the runtime knows a static pod, of which this is the mirror; "" of any other."""
    annotations = pod["metadata"].get("annotations") or {}
    mirror = "kubernetes.io/config.mirror" in annotations
    return str(annotations.get("kubernetes.io/config.hash", "")) if mirror else ""


def requested_ips(pod: Object) -> tuple[str, ...]:
    """Addresses that the pod asks for."""
    return tuple(filter(None, (annotation(pod, IP) or "").split(",")))


def running_status(pod: Object, pod_ips: tuple[str, ...], host_ips: tuple[str, ...]) -> Object:
    """The status of a pod whose containers all run."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    started = (pod.get("status") or {}).get("startTime") or now
    conditions = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "podIP": pod_ips[0],
        "podIPs": [{"ip": ip} for ip in pod_ips],
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": ip} for ip in host_ips],
        "startTime": started,
        "conditions": [{"type": name, "status": "True", "lastTransitionTime": now} for name in conditions],
        "containerStatuses": [_container(container, now) for container in pod["spec"]["containers"]],
    }


def _container(container: Object, now: str) -> Object:
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }


def failure_event(pod: Object, reason: str, message: str) -> Object:
    """An Event about the pod, as the kubelet posts it when a sandbox cannot be made."""
    now = datetime.now(UTC)
    meta = pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta["namespace"], "name": f"{meta['name']}.{now.timestamp():.6f}".replace(".", "-")},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:1000],
        "count": 1,
        "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "source": {"component": "kubelet", "host": pod["spec"]["nodeName"]},
    }
