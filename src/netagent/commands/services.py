"""A Service as the pods behind it: policies judge after kube-proxy's DNAT, so it is as reachable as its endpoints.

The agent does not watch Services; the command reads one from the API server when it is asked about it.
"""

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from netagent.config import ApiConfig
from netagent.kube.client import connect
from netagent.ports import NetagentError

NAME_LABEL = "kubernetes.io/service-name"
ENDPOINTS_MAX = 20
"""Endpoints asked about; a Service with more is told by the first."""


class ServiceError(NetagentError):
    """A Service does not lead to an endpoint."""


class Target(Struct, frozen=True):
    """One endpoint: what to ask instead of the Service."""

    destination: str
    """namespace/pod, or an address that is no pod's."""
    port: str


class _ServicePort(Struct):
    port: int
    name: str | None = None
    protocol: str | None = None


class _ServiceSpec(Struct):
    ports: list[_ServicePort] | None = None


class _Service(Struct):
    spec: _ServiceSpec


class _Reference(Struct):
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None


class _Conditions(Struct):
    ready: bool | None = None


class _Endpoint(Struct, rename="camel"):
    addresses: list[str] | None = None
    conditions: _Conditions | None = None
    target_ref: _Reference | None = None


class _SlicePort(Struct):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None


class _Slice(Struct):
    endpoints: list[_Endpoint] | None = None
    ports: list[_SlicePort] | None = None


class _Slices(Struct):
    items: list[_Slice] = msgspec.field(default_factory=list)


async def resolve(service: str, port: str, protocol: str, kubeconfig: str) -> list[Target]:
    """The ready endpoints of `svc/NAMESPACE/NAME` behind one of its ports. Raises NetagentError."""
    _, namespace, name = service.split("/")
    async with connect(ApiConfig(kubeconfig=kubeconfig)) as api:
        found = await api.get_json(f"/api/v1/namespaces/{namespace}/services/{name}", _Service)
        slices = await api.get_json(
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            _Slices,
            labelSelector=f"{NAME_LABEL}={name}",
        )
    targets = list(dict.fromkeys(_targets(_port(found, service, port, protocol), slices, protocol)))
    if not targets:
        raise ServiceError(
            f"{service} has no ready endpoint on {port}/{protocol}: nothing answers, whatever policy says."
        )
    return targets[:ENDPOINTS_MAX]


def _port(found: _Service, service: str, port: str, protocol: str) -> _ServicePort:
    ports = found.spec.ports or []
    for one in ports:
        if str(one.port) == port and (one.protocol or "TCP") == protocol:
            return one
    accepted = ", ".join(f"{one.port}/{one.protocol or 'TCP'}" for one in ports) or "none, it has no ports"
    raise ServiceError(f"--port = {port!r} with protocol {protocol}: {service} has no such port. Accepted: {accepted}.")


def _targets(wanted: _ServicePort, slices: _Slices, protocol: str) -> Iterator[Target]:
    for one in slices.items:
        numbers = [
            port.port
            for port in one.ports or ()
            if (port.name or "") == (wanted.name or "") and (port.protocol or "TCP") == protocol and port.port
        ]
        for endpoint in one.endpoints or ():
            if endpoint.conditions is None or endpoint.conditions.ready is not False:
                for number in numbers:
                    yield from (Target(text, str(number)) for text in _names(endpoint))


def _names(endpoint: _Endpoint) -> list[str]:
    pod = endpoint.target_ref
    if pod is not None and pod.kind == "Pod" and pod.namespace and pod.name:
        return [f"{pod.namespace}/{pod.name}"]
    return endpoint.addresses or []
