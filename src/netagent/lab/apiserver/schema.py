"""The shape of objects: what a typed server knows of a kind, in a small language of our own.

One description serves four readers: decoding (wrong types are refused, nulls and unknown fields are dropped),
strategic merge patch and server-side apply (which lists are maps or sets), and the OpenAPI documents. An *open*
object keeps fields that the description does not name; that is how kinds that we only store get by with a few lines.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

Scalar = Literal["string", "integer", "boolean", "number", "int-or-string", "quantity", "any"]


class Obj(Struct, frozen=True):
    """An object with named fields."""

    fields: Mapping[str, "Type"] = {}
    open: bool = False
    """Keeps fields that are not named."""
    atomic: bool = False
    """Server-side apply owns it as a whole."""


class Dict(Struct, frozen=True):
    """An object whose keys are the user's, such as labels."""

    value: "Type" = "string"


class List(Struct, frozen=True):
    """A list: atomic, or a map by the items' keys, or a set."""

    item: "Type" = "any"
    keys: tuple[str, ...] = ()
    """Names the items of a map; the first is strategic merge patch's merge key."""
    set: bool = False


Type = Obj | Dict | List | Scalar


class Misshapen(Exception):
    """A value has the wrong type."""

    def __init__(self, path: str, expected: str, value: Any) -> None:
        super().__init__(path, expected, value)
        self.text = f"cannot unmarshal {_kind(value)} into field {path or 'the object'} of type {expected}"


def _kind(value: Any) -> str:
    for kind, name in ((bool, "bool"), (str, "string"), (int, "number"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def conform(value: Any, shape: Type, path: str, unknown: list[str]) -> Any:
    """The value as a typed server keeps it; names of dropped fields go to `unknown`. Raises Misshapen."""
    if isinstance(shape, str):
        return _scalar(value, shape, path)
    if isinstance(shape, List):
        if not isinstance(value, list):
            raise Misshapen(path, "array", value)
        return [_item(item, shape.item, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        raise Misshapen(path, "object", value)
    if isinstance(shape, Dict):
        return {
            key: conform(item, shape.value, f"{path}.{key}", unknown) for key, item in value.items() if item is not None
        }
    return _fields(value, shape, path, unknown)


def _item(item: Any, shape: Type, path: str, unknown: list[str]) -> Any:
    """A null among objects is an empty object, as a typed server reads it."""
    if item is None:
        item = {} if isinstance(shape, Obj | Dict) else [] if isinstance(shape, List) else _ZERO.get(shape)
    return conform(item, shape, path, unknown)


_ZERO: dict[str, Any] = {"string": "", "integer": 0, "boolean": False, "number": 0, "int-or-string": 0, "quantity": "0"}


def _fields(value: dict[str, Any], shape: Obj, path: str, unknown: list[str]) -> dict[str, Any]:
    kept = {}
    for name, item in value.items():
        field = shape.fields.get(name)
        where = f"{path}.{name}" if path else name
        if field is None and not shape.open:
            unknown.append(where)
        elif item is not None:
            kept[name] = item if field is None else conform(item, field, where, unknown)
    return kept


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "number": (int, float),
    "int-or-string": (int, str),
    "quantity": (int, float, str),
}


def _scalar(value: Any, shape: str, path: str) -> Any:
    if shape == "any":
        return value
    is_stray_bool = isinstance(value, bool) and shape != "boolean"
    if is_stray_bool or not isinstance(value, _ACCEPTED[shape]):
        raise Misshapen(path, shape, value)
    return str(value) if shape == "quantity" else value


def child(shape: Type | None, name: str) -> Type:
    """The shape of a field; `any` where nothing is known."""
    if isinstance(shape, Obj):
        return shape.fields.get(name, "any")
    return shape.value if isinstance(shape, Dict) else "any"


def from_openapi(schema: Mapping[str, Any]) -> Type:
    """The shape that a CustomResourceDefinition's openAPIV3Schema describes."""
    if schema.get("x-kubernetes-int-or-string"):
        return "int-or-string"
    kind = schema.get("type")
    if kind == "array":
        keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        return List(from_openapi(schema.get("items") or {}), keys, schema.get("x-kubernetes-list-type") == "set")
    if kind == "object":
        return _object_from_openapi(schema)
    return kind if kind in ("string", "integer", "boolean", "number") else "any"


def _object_from_openapi(schema: Mapping[str, Any]) -> Type:
    fields = {name: from_openapi(item) for name, item in (schema.get("properties") or {}).items()}
    more = schema.get("additionalProperties")
    if isinstance(more, dict) and not fields:
        return Dict(from_openapi(more))
    is_open = bool(schema.get("x-kubernetes-preserve-unknown-fields") or more)
    return Obj(fields, open=is_open, atomic=schema.get("x-kubernetes-map-type") == "atomic")


def to_openapi(shape: Type) -> dict[str, Any]:
    """The OpenAPI v3 schema of a shape."""
    if isinstance(shape, Obj):
        schema: dict[str, Any] = {"type": "object"}
        if shape.fields:
            schema["properties"] = {name: to_openapi(field) for name, field in shape.fields.items()}
        if shape.open:
            schema["x-kubernetes-preserve-unknown-fields"] = True
        return schema
    if isinstance(shape, Dict):
        return {"type": "object", "additionalProperties": to_openapi(shape.value)}
    if isinstance(shape, List):
        return {"type": "array", "items": to_openapi(shape.item), **_list_type(shape)}
    if shape in ("int-or-string", "quantity"):
        return {"oneOf": [{"type": "string"}, {"type": "integer" if shape == "int-or-string" else "number"}]}
    return {} if shape == "any" else {"type": shape}


def _list_type(shape: List) -> dict[str, Any]:
    if shape.keys:
        return {
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": list(shape.keys),
            "x-kubernetes-patch-strategy": "merge",
            "x-kubernetes-patch-merge-key": shape.keys[0],
        }
    return {"x-kubernetes-list-type": "set" if shape.set else "atomic"}
