"""The catalogue: which resources the server has, and the discovery documents that tell clients so."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from netagent.lab.apiserver import shapes
from netagent.lab.apiserver.schema import Obj

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Resource(Struct, frozen=True, eq=False):
    """One kind of object, as clients address it; compared by identity, since a redefined custom resource is another."""

    group: str
    """"" for the core group."""
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    has_status: bool = False
    """There is a /status subresource: writes to the object leave status alone, and the other way round."""
    shape: Obj = shapes.OPEN
    generation: bool = False
    """metadata.generation counts the changes of spec."""
    custom: bool = False
    """Defined by a CustomResourceDefinition."""
    columns: tuple[tuple[str, str], ...] = ()
    """Name and JSONPath of a custom resource's additionalPrinterColumns."""

    @property
    def api_version(self) -> str:
        """v1, networking.k8s.io/v1, ..."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def table(self) -> str:
        """The name of the store's table."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def head(self) -> bytes:
        """What an encoded object starts with."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()

    @property
    def path(self) -> str:
        """Of the group's version: /api/v1 or /apis/GROUP/VERSION."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"


BUILT_IN = (
    Resource("", "v1", "Namespace", "namespaces", False, ("ns",), has_status=True, shape=shapes.NAMESPACE),
    Resource("", "v1", "Pod", "pods", True, ("po",), ("all",), has_status=True, shape=shapes.POD),
    Resource("", "v1", "Node", "nodes", False, ("no",), has_status=True, shape=shapes.NODE),
    Resource("", "v1", "Service", "services", True, ("svc",), ("all",), has_status=True, shape=shapes.SERVICE),
    Resource("", "v1", "Endpoints", "endpoints", True, ("ep",)),
    Resource("", "v1", "ConfigMap", "configmaps", True, ("cm",), shape=shapes.CONFIG_MAP),
    Resource("", "v1", "Secret", "secrets", True, shape=shapes.SECRET),
    Resource("", "v1", "ServiceAccount", "serviceaccounts", True, ("sa",)),
    Resource("", "v1", "Event", "events", True, ("ev",), shape=shapes.EVENT),
    Resource(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        True,
        ("netpol",),
        shape=shapes.NETWORK_POLICY,
        generation=True,
    ),
    Resource("coordination.k8s.io", "v1", "Lease", "leases", True, shape=shapes.LEASE),
    Resource("events.k8s.io", "v1", "Event", "events", True, ("ev",)),
    Resource(
        "apps", "v1", "DaemonSet", "daemonsets", True, ("ds",), ("all",), True, shape=shapes.WORKLOAD, generation=True
    ),
    Resource(
        "apps",
        "v1",
        "Deployment",
        "deployments",
        True,
        ("deploy",),
        ("all",),
        True,
        shape=shapes.WORKLOAD,
        generation=True,
    ),
    Resource("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", False),
    Resource("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", False),
    Resource("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    Resource(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        False,
        ("crd", "crds"),
        ("api-extensions",),
        has_status=True,
        shape=shapes.DEFINITION,
        generation=True,
    ),
)


class Catalogue:
    """The resources that exist now; custom ones come and go."""

    def __init__(self) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        for resource in BUILT_IN:
            self.add(resource)

    def __iter__(self) -> Iterator[Resource]:
        return iter(tuple(self._resources.values()))

    def add(self, resource: Resource) -> None:
        """Serve a resource, in place of an earlier one of the same address."""
        self._resources[resource.group, resource.version, resource.plural] = resource

    def remove(self, resource: Resource) -> None:
        """Serve a resource no longer."""
        self._resources.pop((resource.group, resource.version, resource.plural), None)

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """By address."""
        return self._resources.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """By what an object or an owner reference says of itself."""
        for resource in self._resources.values():
            if resource.kind == kind and resource.api_version == api_version:
                return resource
        return None

    def of_table(self, table: str) -> Resource | None:
        """One resource whose objects are in a table of the store."""
        return next((resource for resource in self._resources.values() if resource.table == table), None)

    def groups(self) -> dict[str, list[str]]:
        """Versions per named group."""
        groups: dict[str, list[str]] = {}
        for group, version, _ in self._resources:
            if group and version not in groups.setdefault(group, []):
                groups[group].append(version)
        return groups

    def group_versions(self) -> list[tuple[str, str]]:
        """Every group and version, the core group first."""
        return [("", "v1"), *((group, version) for group, versions in self.groups().items() for version in versions)]


def api_versions(address: str) -> dict[str, Any]:
    """The answer to /api."""
    by_client = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": by_client}


def api_group_list(catalogue: Catalogue) -> dict[str, Any]:
    """The answer to /apis."""
    groups = [api_group(group, versions) for group, versions in catalogue.groups().items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_group(group: str, versions: list[str]) -> dict[str, Any]:
    """One named group."""
    named = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": named, "preferredVersion": named[0]}


def api_resource_list(catalogue: Catalogue, group: str, version: str) -> dict[str, Any]:
    """The answer to /api/v1 and /apis/GROUP/VERSION."""
    resources: list[dict[str, Any]] = []
    for resource in catalogue:
        if (resource.group, resource.version) == (group, version):
            resources.extend(_api_resources(resource))
    group_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _api_resources(resource: Resource) -> Iterator[dict[str, Any]]:
    common = {"namespaced": resource.namespaced, "kind": resource.kind}
    singular = {"singularName": resource.kind.lower()}
    optional = {"shortNames": list(resource.short_names), "categories": list(resource.categories)}
    named = {key: value for key, value in optional.items() if value}
    yield {"name": resource.plural, **singular, **common, "verbs": list(VERBS), **named}
    if resource.has_status:
        yield {"name": f"{resource.plural}/status", "singularName": "", **common, "verbs": ["get", "patch", "update"]}
    if resource.plural == "pods":
        binding = {"namespaced": True, "kind": "Binding", "verbs": ["create"]}
        yield {"name": "pods/binding", "singularName": "", **binding}
