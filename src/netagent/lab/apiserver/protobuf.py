"""Objects as kubectl posts them in protobuf: what its imperative `create` commands make, as plain trees.

Read by tables of the fields of these kinds, by their numbers in the API's generated.proto files. Fields that are not in
a table are left out: no command of kubectl sets them.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from netagent.lab.apiserver.faults import bad_request, unsupported_media

MAGIC = b"k8s\x00"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Decode = Callable[[Any], Any]
"""A field's wire value (int or bytes) -> its JSON value."""


class Field:
    """One field of a message."""

    def __init__(self, name: str, decode: Decode, *, repeated: bool = False, mapped: bool = False) -> None:
        self.name = name
        self.decode = decode
        self.repeated = repeated
        self.mapped = mapped


Table = Mapping[int, Field]


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, bytes):
        raise bad_request("protobuf: a number where text is expected")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise bad_request("protobuf: text that is not UTF-8") from None


def blob(value: Any) -> str:
    """Bytes, as JSON has them."""
    return base64.b64encode(value if isinstance(value, bytes) else b"").decode()


def number(value: Any) -> int:
    """A signed integer."""
    if not isinstance(value, int):
        raise bad_request("protobuf: text where a number is expected")
    return value - (1 << 64) if value >= 1 << 63 else value


def truth(value: Any) -> bool:
    """A boolean."""
    return bool(number(value))


def message(table: Table) -> Decode:
    """A message by its table."""
    return lambda value: read(value, table)


def int_or_string(value: Any) -> int | str:
    """intstr.IntOrString: type 0 is a number, 1 a string."""
    found = read(value, {1: Field("type", number), 2: Field("number", number), 3: Field("text", text)})
    return str(found.get("text", "")) if found.get("type") else int(found.get("number", 0))


def read(data: Any, table: Table) -> dict[str, Any]:
    """The fields of one message. Raises ApiFault 400."""
    tree: dict[str, Any] = {}
    for key, value in _fields(data):
        field = table.get(key)
        if field is None:
            continue
        if field.mapped:
            entry = read(value, {1: Field("key", text), 2: Field("value", field.decode)})
            tree.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", "")
        elif field.repeated:
            tree.setdefault(field.name, []).append(field.decode(value))
        else:
            tree[field.name] = field.decode(value)
    return tree


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    if not isinstance(data, bytes):
        raise bad_request("protobuf: a number where a message is expected")
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
        if kind == BYTES:
            length, position = _varint(data, position)
        if length < 0 or position + length > len(data):
            raise bad_request("protobuf: the body is cut off or no message")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise bad_request("protobuf: the body is cut off or no message")


METADATA: Table = {
    1: Field("name", text),
    2: Field("generateName", text),
    3: Field("namespace", text),
    11: Field("labels", text, mapped=True),
    12: Field("annotations", text, mapped=True),
}
PORT: Table = {
    1: Field("name", text),
    2: Field("protocol", text),
    3: Field("port", number),
    4: Field("targetPort", int_or_string),
    5: Field("nodePort", number),
    6: Field("appProtocol", text),
}
SERVICE_SPEC: Table = {
    1: Field("ports", message(PORT), repeated=True),
    2: Field("selector", text, mapped=True),
    3: Field("clusterIP", text),
    4: Field("type", text),
    5: Field("externalIPs", text, repeated=True),
    10: Field("externalName", text),
}
CONTENT: dict[str, Table] = {
    "Namespace": {},
    "ConfigMap": {
        2: Field("data", text, mapped=True),
        3: Field("binaryData", blob, mapped=True),
        4: Field("immutable", truth),
    },
    "Secret": {2: Field("data", blob, mapped=True), 3: Field("type", text), 5: Field("immutable", truth)},
    "ServiceAccount": {},
    "Service": {2: Field("spec", message(SERVICE_SPEC))},
}
TYPE: Table = {1: Field("apiVersion", text), 2: Field("kind", text)}
UNKNOWN: Table = {1: Field("type", message(TYPE)), 2: Field("raw", lambda value: value)}


def decode(body: bytes) -> dict[str, Any]:
    """An object in the envelope runtime.Unknown. Raises ApiFault 400, or 415 for a kind without a table."""
    if not body.startswith(MAGIC):
        raise bad_request("protobuf: the body does not begin as an object of Kubernetes does")
    envelope = read(body[len(MAGIC) :], UNKNOWN)
    kind = envelope.get("type", {}).get("kind", "")
    if kind not in CONTENT:
        raise unsupported_media("application/json, application/yaml")
    tree = read(envelope.get("raw", b""), {1: Field("metadata", message(METADATA)), **CONTENT[kind]})
    return {**envelope["type"], **_without_empty(tree)}


def _without_empty(tree: dict[str, Any]) -> dict[str, Any]:
    """Protobuf writes empty text where JSON writes nothing. Entries of maps are kept as they are."""
    cleaned = {key: _inner(key, value) for key, value in tree.items()}
    return {key: one for key, one in cleaned.items() if one not in ("", [], {}) and (key, one) != ("nodePort", 0)}


def _inner(key: str, value: Any) -> Any:
    if isinstance(value, dict) and key in ("metadata", "spec"):
        return _without_empty(value)
    if isinstance(value, list):
        return [_without_empty(one) if isinstance(one, dict) else one for one in value]
    return value
