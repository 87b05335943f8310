"""Which values the server refuses, kind by kind, with upstream's words.

Sources: apimachinery's validation of names, labels and selectors; pkg/apis/{core,networking,coordination}/validation.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any

from netagent.lab.apiserver.faults import Cause, duplicate, not_allowed, required, unsupported, wrong
from netagent.lab.apiserver.resources import Resource

Object = dict[str, Any]
Causes = Iterator[Cause]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_RE = re.compile(rf"{_LABEL}\Z")
_SUBDOMAIN_RE = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_SERVICE_RE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_QUALIFIED_RE = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_VALUE_RE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_PORT_NAME_RE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])*\Z")

LABEL_NAMED = frozenset({"namespaces"})
"""Kinds named by a DNS-1123 label; the others are named by a subdomain."""
SERVICE_NAMED = frozenset({"services"})
PATH_NAMED = frozenset(
    f"{kind}.rbac.authorization.k8s.io" for kind in ("clusterroles", "clusterrolebindings", "roles", "rolebindings")
)
PROTOCOLS = ("SCTP", "TCP", "UDP")
MAX_ANNOTATIONS_BYTES = 256 * 1024

LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
SERVICE_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is"
    " '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation"
    " is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def check(resource: Resource, obj: Object) -> list[Cause]:
    """What is wrong with an object about to be stored."""
    causes = list(_metadata(resource, obj["metadata"]))
    kind_check = BY_TABLE.get(resource.table)
    if kind_check is not None:
        causes.extend(kind_check(obj))
    return causes


def check_update(resource: Resource, obj: Object, before: Object) -> list[Cause]:
    """What is wrong with an object about to replace another."""
    causes = check(resource, obj)
    if resource.table == "pods":
        causes.extend(_pod_update(obj, before))
    elif resource.table == "nodes":
        causes.extend(_node_update(obj, before))
    return causes


# Metadata


def name_problem(resource: Resource, name: str) -> str:
    """Why a name cannot be; "" if it can."""
    if resource.table in PATH_NAMED:
        return "may not contain '/' or '%'" if "/" in name or "%" in name else ""
    if resource.table in SERVICE_NAMED:
        return _length(name, 63) or ("" if _SERVICE_RE.match(name) else SERVICE_TEXT)
    if resource.table in LABEL_NAMED:
        return _length(name, 63) or ("" if _LABEL_RE.match(name) else LABEL_TEXT)
    return _length(name, 253) or ("" if _SUBDOMAIN_RE.match(name) else SUBDOMAIN_TEXT)


def _length(text: str, limit: int) -> str:
    return f"must be no more than {limit} characters" if len(text) > limit else ""


def _metadata(resource: Resource, metadata: Object) -> Causes:
    name = metadata.get("name", "")
    if not name:
        yield required("metadata.name", "name or generateName is required")
    elif problem := name_problem(resource, name):
        yield wrong("metadata.name", name, problem)
    yield from _labels(metadata.get("labels") or {}, "metadata.labels")
    yield from _annotations(metadata.get("annotations") or {})
    for index, finalizer in enumerate(metadata.get("finalizers") or []):
        if problem := _qualified(finalizer):
            yield wrong(f"metadata.finalizers[{index}]", finalizer, problem)
    for index, owner in enumerate(metadata.get("ownerReferences") or []):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield wrong(f"metadata.ownerReferences[{index}].{field}", "", f"{field} must not be empty")


def _qualified(name: str) -> str:
    prefix, slash, rest = name.rpartition("/")
    if slash and (not prefix or _length(prefix, 253) or not _SUBDOMAIN_RE.match(prefix)):
        return f"prefix part {SUBDOMAIN_TEXT}"
    if not rest:
        return "name part must be non-empty"
    if len(rest) > 63:
        return "name part must be no more than 63 characters"
    return "" if _QUALIFIED_RE.match(rest) else QUALIFIED_TEXT


def _label_value(value: str) -> str:
    return _length(value, 63) or ("" if _VALUE_RE.match(value) else VALUE_TEXT)


def _labels(labels: Object, field: str) -> Causes:
    for key, value in labels.items():
        if problem := _qualified(key):
            yield wrong(field, key, problem)
        if problem := _label_value(value):
            yield wrong(field, value, problem)


def _annotations(annotations: Object) -> Causes:
    for key in annotations:
        if problem := _qualified(key.lower()):
            yield wrong("metadata.annotations", key, problem)
    if sum(len(key) + len(value.encode()) for key, value in annotations.items()) > MAX_ANNOTATIONS_BYTES:
        why = f"must have at most {MAX_ANNOTATIONS_BYTES} bytes"
        yield Cause("FieldValueTooLong", f"Too long: {why}", "metadata.annotations")


# NetworkPolicy


def _network_policy(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from _selector(spec["podSelector"], "spec.podSelector")
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            where = f"spec.{direction}[{index}]"
            for number, port in enumerate(rule.get("ports") or []):
                yield from _policy_port(port, f"{where}.ports[{number}]")
            for number, peer in enumerate(rule.get(side) or []):
                yield from _policy_peer(peer, f"{where}.{side}[{number}]")
    types = spec.get("policyTypes") or []
    if len(types) > 2:
        yield wrong("spec.policyTypes", types, "may not specify more than two policyTypes")
        return
    for index, policy_type in enumerate(types):
        if policy_type not in ("Ingress", "Egress"):
            yield unsupported(f"spec.policyTypes[{index}]", policy_type, ("Egress", "Ingress"))


def _policy_port(port: Object, where: str) -> Causes:
    protocol = port.get("protocol", "TCP")
    if protocol not in PROTOCOLS:
        yield unsupported(f"{where}.protocol", protocol, PROTOCOLS)
    value = port.get("port")
    if isinstance(value, int):
        yield from _port_number(value, f"{where}.port")
    elif isinstance(value, str) and (problem := _port_name(value)):
        yield wrong(f"{where}.port", value, problem)
    yield from _end_port(port, where)


def _end_port(port: Object, where: str) -> Causes:
    end, start = port.get("endPort"), port.get("port")
    if end is None:
        return
    if start is None:
        yield required(f"{where}.port", "must be specified when endPort is specified")
    elif isinstance(start, str):
        yield wrong(f"{where}.endPort", end, "may not be specified when `port` is non-numeric")
    else:
        if end < start:
            yield wrong(f"{where}.endPort", end, "must be greater than or equal to `port`")
        yield from _port_number(end, f"{where}.endPort")


def _port_number(value: Any, field: str) -> Causes:
    if not 1 <= value <= 65535:
        yield wrong(field, value, "must be between 1 and 65535, inclusive")


def _port_name(name: str) -> str:
    """IANA_SVC_NAME of RFC 6335."""
    if len(name) > 15:
        return "must be no more than 15 characters"
    if not _PORT_NAME_RE.match(name):
        return "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    if "--" in name:
        return "must not contain consecutive hyphens"
    return "" if re.search("[a-z]", name) else "must contain at least one letter (a-z)"


def _policy_peer(peer: Object, where: str) -> Causes:
    kinds = [name for name in ("podSelector", "namespaceSelector", "ipBlock") if peer.get(name) is not None]
    for name in kinds:
        if name != "ipBlock":
            yield from _selector(peer[name], f"{where}.{name}")
        elif len(kinds) > 1:
            yield not_allowed(where, "may not specify both ipBlock and another peer")
        else:
            yield from _ip_block(peer["ipBlock"], f"{where}.ipBlock")
    if not kinds:
        yield required(where, "must specify a peer")


def _ip_block(block: Object, where: str) -> Causes:
    text = block.get("cidr", "")
    if not text:
        yield required(f"{where}.cidr")
        return
    network = _cidr(text)
    if network is None:
        yield wrong(f"{where}.cidr", text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
        return
    for index, inner_text in enumerate(block.get("except") or []):
        field = f"{where}.except[{index}]"
        inner = _cidr(inner_text)
        if inner is None:
            yield wrong(field, inner_text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
        elif inner.version != network.version or not _strictly_within(inner, network):
            yield wrong(field, inner_text, f'must be a strict subset of `cidr` ("{text}")')


def _cidr(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _strictly_within(inner: Any, outer: Any) -> bool:
    return inner.prefixlen > outer.prefixlen and bool(inner.subnet_of(outer))


def _selector(selector: Object, where: str) -> Causes:
    yield from _labels(selector.get("matchLabels") or {}, f"{where}.matchLabels")
    for index, expression in enumerate(selector.get("matchExpressions") or []):
        yield from _requirement(expression, f"{where}.matchExpressions[{index}]")


def _requirement(expression: Object, where: str) -> Causes:
    operator, values = expression.get("operator", ""), expression.get("values") or []
    if operator in ("In", "NotIn"):
        if not values:
            yield required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            yield not_allowed(f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    else:
        yield wrong(f"{where}.operator", operator, "not a valid selector operator")
    if problem := _qualified(expression.get("key", "")):
        yield wrong(f"{where}.key", expression.get("key", ""), problem)
    for number, value in enumerate(values):
        if problem := _label_value(value):
            yield wrong(f"{where}.values[{number}]", value, problem)


# Pod, Node, Lease, Service


def _pod(obj: Object) -> Causes:
    spec = obj["spec"]
    yield from _containers(spec.get("containers") or [], "spec.containers", must_have=True)
    yield from _containers(spec.get("initContainers") or [], "spec.initContainers", must_have=False)
    if spec["restartPolicy"] not in ("Always", "OnFailure", "Never"):
        yield unsupported("spec.restartPolicy", spec["restartPolicy"], ("Always", "Never", "OnFailure"))
    if spec["dnsPolicy"] not in ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"):
        choices = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
        yield unsupported("spec.dnsPolicy", spec["dnsPolicy"], choices)
    if spec.get("nodeName") and not _SUBDOMAIN_RE.match(spec["nodeName"]):
        yield wrong("spec.nodeName", spec["nodeName"], SUBDOMAIN_TEXT)
    yield from _labels(spec.get("nodeSelector") or {}, "spec.nodeSelector")


def _containers(containers: list[Object], where: str, *, must_have: bool) -> Causes:
    if must_have and not containers:
        yield required(where)
    names: set[str] = set()
    for index, container in enumerate(containers):
        at = f"{where}[{index}]"
        name = container.get("name", "")
        if not name:
            yield required(f"{at}.name")
        elif _length(name, 63) or not _LABEL_RE.match(name):
            yield wrong(f"{at}.name", name, _length(name, 63) or LABEL_TEXT)
        elif name in names:
            yield duplicate(f"{at}.name", name)
        names.add(name)
        if not container.get("image"):
            yield required(f"{at}.image")
        yield from _container_ports(container.get("ports") or [], f"{at}.ports")


def _container_ports(ports: list[Object], where: str) -> Causes:
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{where}[{index}]"
        name = port.get("name")
        if name:
            if problem := _port_name(name):
                yield wrong(f"{at}.name", name, problem)
            elif name in names:
                yield duplicate(f"{at}.name", name)
            names.add(name)
        if not port.get("containerPort"):
            yield required(f"{at}.containerPort")
        else:
            yield from _port_number(port["containerPort"], f"{at}.containerPort")
        if port.get("hostPort"):
            yield from _port_number(port["hostPort"], f"{at}.hostPort")
        if port.get("protocol", "TCP") not in PROTOCOLS:
            yield unsupported(f"{at}.protocol", port["protocol"], PROTOCOLS)


MUTABLE_POD_FIELDS = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")


def _pod_update(obj: Object, before: Object) -> Causes:
    if _frozen_pod_spec(obj["spec"]) != _frozen_pod_spec(before["spec"]):
        why = (
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        )
        yield not_allowed("spec", why)


def _frozen_pod_spec(spec: Object) -> Object:
    """The part of a Pod's spec that stays as it was created."""
    kept = {key: value for key, value in spec.items() if key not in MUTABLE_POD_FIELDS}
    for field in ("containers", "initContainers"):
        if field in kept:
            kept[field] = [
                {key: value for key, value in container.items() if key not in ("image", "imagePullPolicy")}
                for container in kept[field]
            ]
    return kept


def _node(obj: Object) -> Causes:
    spec = obj["spec"]
    cidrs = spec.get("podCIDRs") or []
    for index, text in enumerate(cidrs):
        if _cidr(text) is None:
            yield wrong(
                f"spec.podCIDRs[{index}]", text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            )
    for index, taint in enumerate(spec.get("taints") or []):
        if taint.get("effect") not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            effects = ("NoExecute", "NoSchedule", "PreferNoSchedule")
            yield unsupported(f"spec.taints[{index}].effect", taint.get("effect", ""), effects)


def _node_update(obj: Object, before: Object) -> Causes:
    old, new = before["spec"].get("podCIDRs") or [], obj["spec"].get("podCIDRs") or []
    if old and old != new:
        yield not_allowed("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')


def _lease(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    duration = spec.get("leaseDurationSeconds")
    if duration is not None and duration <= 0:
        yield wrong("spec.leaseDurationSeconds", duration, "must be greater than 0")
    transitions = spec.get("leaseTransitions")
    if transitions is not None and transitions < 0:
        yield wrong("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def _service(obj: Object) -> Causes:
    spec = obj["spec"]
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec["type"] != "ExternalName":
        yield required("spec.ports")
    for index, port in enumerate(ports):
        yield from _port_number(port.get("port", 0), f"spec.ports[{index}].port")
        if port["protocol"] not in PROTOCOLS:
            yield unsupported(f"spec.ports[{index}].protocol", port["protocol"], PROTOCOLS)
        if len(ports) > 1 and not port.get("name"):
            yield required(f"spec.ports[{index}].name")


def _event(obj: Object) -> Causes:
    involved = (obj.get("involvedObject") or {}).get("namespace", "")
    if involved != obj["metadata"].get("namespace") and (involved or obj["metadata"].get("namespace") != "default"):
        yield wrong("involvedObject.namespace", involved, "does not match event.namespace")


def _crd(obj: Object) -> Causes:
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    if not spec.get("group"):
        yield required("spec.group")
    for field in ("plural", "kind"):
        if not names.get(field):
            yield required(f"spec.names.{field}")
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        yield unsupported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced"))
    if not spec.get("versions"):
        yield required("spec.versions")
    for index, version in enumerate(spec.get("versions") or []):
        if not version.get("name"):
            yield required(f"spec.versions[{index}].name")
        for number, column in enumerate(version.get("additionalPrinterColumns") or []):
            for field in ("name", "jsonPath"):
                if not column.get(field):
                    yield required(f"spec.versions[{index}].additionalPrinterColumns[{number}].{field}")
    wanted = f"{names.get('plural')}.{spec.get('group')}"
    if obj["metadata"].get("name") != wanted:
        yield wrong("metadata.name", obj["metadata"].get("name"), 'must be spec.names.plural+"."+spec.group')


BY_TABLE: dict[str, Callable[[Object], Causes]] = {
    "networkpolicies.networking.k8s.io": _network_policy,
    "pods": _pod,
    "nodes": _node,
    "leases.coordination.k8s.io": _lease,
    "services": _service,
    "events": _event,
    "customresourcedefinitions.apiextensions.k8s.io": _crd,
}
