"""The API server: whether it answers, its clock, rights, this node's object, addresses of nodes and Services."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from netagent.config import Config
from netagent.core.doctor import clusterchecks
from netagent.core.doctor.clusterchecks import Right
from netagent.core.doctor.findings import Finding, unknown
from netagent.kube import decode
from netagent.kube.client import ApiClient, ApiError, Unreachable, connect
from netagent.kube.wire import DecodeError
from netagent.ports import NetagentError
from netagent.records import Kind, Node

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
TIMEOUT_S = 15.0
"""For everything that is asked of the API server together; a server that needs longer is as good as away."""
NODES = 500
"""Nodes whose addresses are compared with the pools: one page."""
T = TypeVar("T")


class Cluster(Struct, frozen=True):
    """What the API server said."""

    findings: tuple[Finding, ...]
    node: Node | None = None
    others: dict[str, str] = {}
    """CIDR or address of nodes and Services -> what it is."""


class _Attributes(Struct, omit_defaults=True):
    verb: str
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""


class _Spec(Struct, rename="camel"):
    resource_attributes: _Attributes


class _Status(Struct, frozen=True):
    allowed: bool = False


class _Review(Struct, rename="camel"):
    """authorization.k8s.io/v1 SelfSubjectAccessReview."""

    spec: _Spec
    status: _Status = _Status()
    kind: str = "SelfSubjectAccessReview"
    api_version: str = "authorization.k8s.io/v1"


class _Answer(Struct):
    status: _Status = _Status()


class _Version(Struct, rename="camel"):
    git_version: str = "of unknown version"


class _ServiceSpec(Struct, frozen=True):
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cidrs: tuple[str, ...] = ()
    """Of a ServiceCIDR."""


class _Service(Struct):
    spec: _ServiceSpec = _ServiceSpec()


class _Services(Struct):
    items: list[_Service] = []


class _Nodes(Struct):
    items: list[Raw] = []


async def examine(config: Config) -> Cluster:
    """Everything; what it needs of the rest is in the answer."""
    try:
        async with asyncio.timeout(TIMEOUT_S), connect(config.api) as api:
            return await _examine(api, config)
    except TimeoutError:
        return Cluster((_away(config, f"no answer within {TIMEOUT_S:g} s"),))
    except NetagentError as error:
        return Cluster((_away(config, str(error)),))


def _away(config: Config, reason: str) -> Finding:
    return Finding(
        "api.server",
        "error",
        reason,
        "The agent cannot start here; one that runs keeps the last state, and new pods wait. Rights, clock, Node and "
        "addresses were not looked at.",
        "in a pod: are the service account's token and the Service kubernetes reachable? By hand: give "
        f"{'one that works with ' if config.api.kubeconfig else ''}--kubeconfig, or --no-api",
    )


async def _examine(api: ApiClient, config: Config) -> Cluster:
    version = await api.get_json("/version", _Version)
    found = [Finding("api.server", "ok", f"{api.server} answers, {version.git_version}")]
    found.append(clusterchecks.clock(_ahead_s(api)))
    found.append(await _rights(api, config))
    if config.network.mode == "off":
        return Cluster(tuple(found))
    name = config.node_name or socket.gethostname()
    try:
        node = await _node(api, name)
    except NetagentError as error:
        return Cluster((*found, unknown("node.object", str(error), "see api.rights")))
    found += clusterchecks.node_object(node, name, config)
    return Cluster(tuple(found), node, {**await _nodes(api), **await _services(api)})


def _ahead_s(api: ApiClient) -> float:
    return time.time() - api.clock.now_s()


async def _rights(api: ApiClient, config: Config) -> Finding:
    wanted = clusterchecks.rights(config)
    try:
        granted = await asyncio.gather(*(_may(api, right) for right in wanted))
    except NetagentError as error:
        if isinstance(error, ApiError) and error.not_found:
            return Finding("api.rights", "info", "this API server has no access reviews, so it refuses nobody")
        return unknown("api.rights", str(error), "ask by hand: kubectl auth can-i --list")
    return clusterchecks.permissions(
        [right for right, allowed in zip(wanted, granted, strict=True) if not allowed], len(wanted)
    )


async def _may(api: ApiClient, right: Right) -> bool:
    """The server's own authorizer decides."""
    resource, _, subresource = right.resource.partition("/")
    attributes = _Attributes(right.verb, right.group, resource, subresource, right.namespace)
    return (await api.create(REVIEWS, _Review(_Spec(attributes)), _Answer)).status.allowed


async def _node(api: ApiClient, name: str) -> Node | None:
    """Raises NetagentError where the server does not say."""
    try:
        found = decode.record(Kind.NODE, await api.get_json(f"/api/v1/nodes/{name}", Raw))
    except ApiError as error:
        if error.not_found:
            return None
        raise
    return found if isinstance(found, Node) else None


async def _nodes(api: ApiClient) -> dict[str, str]:
    answer = await _or_nothing(api.get_json("/api/v1/nodes", _Nodes, limit=NODES), _Nodes())
    found: dict[str, str] = {}
    for raw in answer.items:
        with contextlib.suppress(DecodeError):
            node = decode.record(Kind.NODE, raw)
            if isinstance(node, Node):
                found |= dict.fromkeys(node.addresses, f"address of node {node.key.name}")
    return found


async def _services(api: ApiClient) -> dict[str, str]:
    """Services' networks where the server tells them, else the addresses of single ones that are known."""
    networks = await _or_nothing(api.get_json("/apis/networking.k8s.io/v1/servicecidrs", _Services), _Services())
    cidrs = {cidr: "Services' network" for one in networks.items for cidr in one.spec.cidrs}
    if cidrs:
        return cidrs
    service = await _or_nothing(api.get_json("/api/v1/namespaces/default/services/kubernetes", _Service), _Service())
    known = service.spec.cluster_ip or os.environ.get("KUBERNETES_SERVICE_HOST", "")
    return {known: "Service kubernetes"} if _is_address(known) else {}


async def _or_nothing(answer: Coroutine[Any, Any, T], nothing: T) -> T:
    """What the server says, where it wants to."""
    try:
        return await answer
    except (ApiError, Unreachable):
        return nothing


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, text)
            return True
    return False
