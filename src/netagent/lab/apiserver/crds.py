"""Custom resources: a CustomResourceDefinition makes the server serve a resource, its deletion takes it away."""

from typing import Any

from netagent.lab.apiserver.registry import Registry
from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.schema import Obj, from_openapi
from netagent.lab.apiserver.store import Event

TABLE = "customresourcedefinitions.apiextensions.k8s.io"


class CustomResources:
    """Keeps the catalogue in step with the definitions."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        registry.store.listen(self._follow)

    def _follow(self, event: Event) -> None:
        """Before the write's answer goes out, so that the resource is there for the next request."""
        if event.table != TABLE:
            return
        catalogue = self._registry.catalogue
        for resource in _resources(event.before.obj) if event.before is not None else ():
            catalogue.remove(resource)
        if event.type != "DELETED":
            for resource in _resources(event.now.obj):
                catalogue.add(resource)

    def react(self, event: Event) -> None:
        """Remove the objects of a resource whose definition is gone."""
        if event.table != TABLE or event.type != "DELETED":
            return
        table = event.key[1]
        for stored in tuple(self._registry.store.scan(table)):
            metadata = stored.obj["metadata"]
            self._registry.finish(table, (metadata.get("namespace", ""), metadata["name"]))


def _resources(definition: dict[str, Any]) -> list[Resource]:
    """One resource per served version."""
    spec = definition["spec"]
    return [_resource(spec, version) for version in spec["versions"] if version.get("served")]


def _resource(spec: dict[str, Any], version: dict[str, Any]) -> Resource:
    names = spec["names"]
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    shape = from_openapi(schema)
    columns = version.get("additionalPrinterColumns") or []
    return Resource(
        spec["group"],
        version["name"],
        names["kind"],
        names["plural"],
        spec["scope"] == "Namespaced",
        tuple(names.get("shortNames") or ()),
        tuple(names.get("categories") or ()),
        has_status="status" in (version.get("subresources") or {}),
        shape=shape if isinstance(shape, Obj) else Obj(open=True),
        custom=True,
        columns=tuple((column["name"], column["jsonPath"]) for column in columns if not column.get("priority")),
    )
