"""From the body of a request to an object that can be stored: its shape, and what it must say of itself."""

from functools import lru_cache
from typing import Any

from msgspec import Struct

from netagent.lab.apiserver.faults import bad_request
from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.schema import Misshapen, Obj, conform
from netagent.lab.apiserver.shapes import METADATA
from netagent.lab.apiserver.store import Object


class Draft(Struct, frozen=True):
    """An object on its way into the store."""

    obj: Object
    """In its shape, without kind and apiVersion; what the shape names is nobody else's and may be changed."""
    dropped: tuple[str, ...] = ()
    """Names of the fields that the shape has no place for."""


@lru_cache(maxsize=256)
def shape_of(resource: Resource) -> Obj:
    """The whole object's shape."""
    head = {"apiVersion": "string", "kind": "string", "metadata": METADATA}
    return Obj({**resource.shape.fields, **head}, open=resource.shape.open)  # type: ignore[dict-item]


def decode(resource: Resource, tree: Any, *, strict: bool = False) -> Draft:
    """The draft of a body, or with `strict` a refusal of unknown fields. Raises ApiFault 400."""
    if not isinstance(tree, dict):
        raise bad_request("the object provided is unrecognized: a JSON object is expected")
    _check_kind(resource, tree)
    unknown: list[str] = []
    cannot = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
    try:
        obj = conform(tree, shape_of(resource), "", unknown)
    except Misshapen as error:
        raise bad_request(f"{cannot}: {error.text}") from None
    if unknown and strict:
        fields = ", ".join(f'unknown field "{name}"' for name in unknown)
        raise bad_request(f"{cannot}: strict decoding error: {fields}")
    metadata = obj.pop("metadata", {})
    body = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
    return Draft({"metadata": metadata, **body}, tuple(unknown))


def _check_kind(resource: Resource, tree: Object) -> None:
    api_version, kind = tree.get("apiVersion"), tree.get("kind")
    if api_version not in (None, "", resource.api_version):
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if kind not in (None, "", resource.kind):
        raise bad_request(f"{kind} in the data does not match the expected kind {resource.kind}")


def check_namespace(resource: Resource, namespace: str, metadata: Object) -> None:
    """Set the namespace that the path names. Raises ApiFault 400 when the object names another."""
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return
    if metadata.get("namespace", namespace) not in (namespace, ""):
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    metadata["namespace"] = namespace


def check_name(name: str, metadata: Object) -> None:
    """Raises ApiFault 400 when the object names itself otherwise than the path does."""
    if metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")


def without_revision(tree: Object) -> Object:
    """The body without metadata.resourceVersion."""
    metadata = {key: value for key, value in (tree.get("metadata") or {}).items() if key != "resourceVersion"}
    return {**tree, "metadata": metadata}
