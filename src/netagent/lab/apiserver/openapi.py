"""OpenAPI documents, made from the shapes: enough for kubectl to validate on the server and to explain.

kubectl looks in the v3 document of a group's version for the PATCH operation of a kind and its `fieldValidation` and
`dryRun` parameters, and leaves validation to the server when it finds them. Version 2 is asked for in protobuf, by
kubectl before 1.27 and as a fall-back; an empty document there means "nothing known, nothing to check".
"""

import hashlib
from typing import Any

import orjson

from netagent.lab.apiserver.drafts import shape_of
from netagent.lab.apiserver.resources import Catalogue, Resource
from netagent.lab.apiserver.schema import to_openapi

PATCH_MEDIA = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")


def v2_protobuf() -> bytes:
    """gnostic's openapi.v2.Document: swagger = 1, info = 2 {title = 1, version = 2}, paths = 8."""
    info = _field(1, b"netagent lab") + _field(2, b"v1")
    return _field(1, b"2.0") + _field(2, info) + _field(8, b"")


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field; contents stay below 128 bytes."""
    return bytes(((number << 3) | 2, len(content))) + content


def index_document(catalogue: Catalogue) -> dict[str, Any]:
    """The answer to /openapi/v3: where each group's version is described."""
    paths = {}
    for group, version in catalogue.group_versions():
        name = f"apis/{group}/{version}" if group else f"api/{version}"
        content = orjson.dumps(group_document(catalogue, name))
        digest = hashlib.sha256(content).hexdigest()[:32].upper()
        paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={digest}"}
    return {"paths": paths}


def group_document(catalogue: Catalogue, name: str) -> dict[str, Any] | None:
    """The OpenAPI v3 document of one group's version, named `api/v1` or `apis/GROUP/VERSION`."""
    resources = [resource for resource in catalogue if resource.path == f"/{name}"]
    if not resources:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "netagent lab", "version": "v1"},
        "paths": {path: item for resource in resources for path, item in _paths(resource).items()},
        "components": {"schemas": {_schema_name(resource): _schema(resource) for resource in resources}},
    }


def _schema_name(resource: Resource) -> str:
    return ".".join(part for part in (resource.group or "core", resource.version, resource.kind) if part)


def _identity(resource: Resource) -> dict[str, str]:
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


def _schema(resource: Resource) -> dict[str, Any]:
    described = {"description": f"{resource.kind} of {resource.api_version}, as far as the lab knows it."}
    return {**to_openapi(shape_of(resource)), **described, "x-kubernetes-group-version-kind": [_identity(resource)]}


def _paths(resource: Resource) -> dict[str, Any]:
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    collection = f"{resource.path}{scope}/{resource.plural}"
    reference = {"$ref": f"#/components/schemas/{_schema_name(resource)}"}
    answer = {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}}

    def operation(verb: str, media: tuple[str, ...] = ()) -> dict[str, Any]:
        described: dict[str, Any] = {
            "operationId": f"{verb}{resource.group.title().replace('.', '')}{resource.version.title()}{resource.kind}",
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": _identity(resource),
            "responses": answer,
        }
        if media:
            names = ("dryRun", "fieldManager", "fieldValidation", *(("force",) if verb == "patch" else ()))
            described["parameters"] = [{"name": n, "in": "query", "schema": {"type": "string"}} for n in names]
            described["requestBody"] = {"content": {kind: {"schema": reference} for kind in media}}
        return described

    return {
        collection: {"get": operation("list"), "post": operation("post", ("application/json",))},
        f"{collection}/{{name}}": {
            "get": operation("get"),
            "put": operation("put", ("application/json",)),
            "patch": operation("patch", PATCH_MEDIA),
            "delete": operation("delete"),
        },
    }
