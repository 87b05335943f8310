"""Who owns which field: managedFields for every write, and server-side apply on top of it.

A field set is a frozen set of paths in the notation of FieldsV1: `f:name` a field, `k:{"name":"web"}` an item of a
list that is a map, `v:"x"` an item of a set. Source: KEP-555 and the structured-merge-diff it describes.
"""

import json
from typing import Any

import orjson
from msgspec import Struct

from netagent.lab.apiserver.faults import ApiFault
from netagent.lab.apiserver.schema import Dict, List, Obj, Type, child

Object = dict[str, Any]
Path = tuple[str, ...]
Fields = frozenset[Path]

SERVER_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
)
UNTRACKED = frozenset({("f:apiVersion",), ("f:kind",), *(("f:metadata", f"f:{name}") for name in SERVER_METADATA)})
"""Fields that the server keeps itself."""


class Owner(Struct, frozen=True):
    """One entry of managedFields, without its fields."""

    manager: str
    operation: str
    """Apply or Update."""
    subresource: str = ""


def leaves(value: Any, shape: Type) -> dict[Path, Any]:
    """Every path that can be owned, with its value (None for an item of a map, which is owned beside its fields)."""
    found: dict[Path, Any] = {}
    _collect(value, shape, (), found)
    return {path: item for path, item in found.items() if _is_tracked(path)}


def _is_tracked(path: Path) -> bool:
    return path[:1] not in UNTRACKED and path[:2] not in UNTRACKED


def _collect(value: Any, shape: Type, path: Path, found: dict[Path, Any]) -> None:
    if isinstance(value, dict) and value and not (isinstance(shape, Obj) and shape.atomic):
        for key, item in value.items():
            _collect(item, child(shape, key), (*path, f"f:{key}"), found)
    elif isinstance(value, list) and value and isinstance(shape, List) and (shape.keys or shape.set):
        for item in value:
            where = (*path, _item_step(item, shape))
            found[where] = None
            if shape.keys and isinstance(item, dict):
                _collect(item, shape.item, where, found)
    else:
        found[path] = value


def _item_step(item: Any, shape: List) -> str:
    if shape.set or not isinstance(item, dict):
        return "v:" + orjson.dumps(item).decode()
    keys = {key: item.get(key, "TCP" if key == "protocol" else None) for key in sorted(shape.keys)}
    return "k:" + orjson.dumps(keys).decode()


def differences(old: Object, new: Object, shape: Type) -> tuple[Fields, Fields]:
    """The paths whose value is new or another, and those that are gone. What is equal is not looked into."""
    changed: dict[Path, Any] = {}
    gone: dict[Path, Any] = {}
    _differ(old, new, shape, (), changed=changed, gone=gone)
    return (
        frozenset(path for path in changed if _is_tracked(path)),
        frozenset(path for path in gone.keys() - changed.keys() if _is_tracked(path)),
    )


def _differ(old: Any, new: Any, shape: Type, path: Path, *, changed: dict[Path, Any], gone: dict[Path, Any]) -> None:
    if old == new:
        return
    old_parts, new_parts = _parts(old, shape), _parts(new, shape)
    if not old_parts or not new_parts:
        _collect(old, shape, path, gone)
        _collect(new, shape, path, changed)
        return
    for step, (part, part_shape) in new_parts.items():
        if step in old_parts:
            _differ(old_parts[step][0], part, part_shape, (*path, step), changed=changed, gone=gone)
        else:
            _collect_part(part, part_shape, (*path, step), changed)
    for step, (part, part_shape) in old_parts.items():
        if step not in new_parts:
            _collect_part(part, part_shape, (*path, step), gone)


def _parts(value: Any, shape: Type) -> dict[str, tuple[Any, Type]]:
    """The parts that are owned one by one, with their shapes; none for what is one value."""
    if isinstance(value, dict) and not (isinstance(shape, Obj) and shape.atomic):
        return {f"f:{key}": (item, child(shape, key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(shape, List) and (shape.keys or shape.set):
        return {_item_step(item, shape): (item, shape.item) for item in value}
    return {}


def _collect_part(part: Any, shape: Type, path: Path, found: dict[Path, Any]) -> None:
    """A field's paths; those of an item with the item itself, which is owned beside its fields."""
    if not path[-1].startswith("f:"):
        found[path] = None
    if path[-1].startswith(("f:", "k:")):
        _collect(part, shape, path, found)


def to_trie(fields: Fields) -> Object:
    """FieldsV1."""
    trie: Object = {}
    for path in sorted(fields):
        node = trie
        for step in path:
            node = node.setdefault(step, {})
        node["."] = {}
    return _fold(trie)


def _fold(node: Object) -> Object:
    if set(node) == {"."}:
        return {}
    return {step: below if step == "." else _fold(below) for step, below in node.items()}


def from_trie(trie: Any, path: Path = ()) -> Fields:
    """The field set of a FieldsV1; what is not one owns nothing."""
    if not isinstance(trie, dict):
        return frozenset()
    if not trie:
        return frozenset((path,)) if path else frozenset()
    found: set[Path] = set()
    for step, below in trie.items():
        found |= {path} if step == "." else from_trie(below, (*path, step))
    return frozenset(found)


def owners(obj: Object) -> dict[Owner, Fields]:
    """The owners that managedFields names."""
    found: dict[Owner, Fields] = {}
    for entry in obj["metadata"].get("managedFields") or []:
        if isinstance(entry, dict) and entry.get("manager"):
            found[_owner(entry)] = from_trie(entry.get("fieldsV1"))
    return found


def _with_owners(obj: Object, held: dict[Owner, Fields], api_version: str, now: str) -> Object:
    """The object with these owners; an entry whose fields stay the same stays as it is."""
    before = owners(obj)
    previous = {_owner(entry): entry for entry in obj["metadata"].get("managedFields") or [] if isinstance(entry, dict)}
    entries = []
    for owner, fields in held.items():
        if fields and fields == before.get(owner):
            entries.append(previous[owner])
        elif fields:
            entries.append(_entry(owner, fields, api_version, now))
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    if entries:
        metadata["managedFields"] = entries
    return {**obj, "metadata": metadata}


def _owner(entry: Object) -> Owner:
    return Owner(entry.get("manager", ""), entry.get("operation", "Update"), entry.get("subresource", ""))


def _entry(owner: Owner, fields: Fields, api_version: str, now: str) -> Object:
    entry: Object = {
        "manager": owner.manager,
        "operation": owner.operation,
        "apiVersion": api_version,
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": to_trie(fields),
    }
    if owner.subresource:
        entry["subresource"] = owner.subresource
    return entry


def track_update(
    before: Object | None, obj: Object, shape: Type, writer: Owner, *, api_version: str, now: str
) -> Object:
    """The object after a write that is not an apply: the writer owns what changed, nobody owns what is gone."""
    changed, gone = differences(before or {}, obj, shape)
    if not changed and not gone and before is not None:
        return obj
    held = {owner: fields - gone - changed for owner, fields in owners(obj).items()}
    held[writer] = held.get(writer, frozenset()) | changed
    return _with_owners(obj, held, api_version, now)


class Applied(Struct, frozen=True):
    """The outcome of an apply."""

    obj: Object
    applier: Owner
    owned: Fields
    taken: Fields
    """Fields that were somebody else's and had another value."""


def apply(live: Object | None, config: Object, shape: Type, me: Owner, *, force: bool, api_version: str) -> Applied:
    """Merge an applied configuration into the live object and remove what this manager no longer applies.

    Raises ApiFault 409 when another manager owns a field with another value and `force` is not given.
    """
    wanted = leaves(config, shape)
    owned = frozenset(wanted)
    if live is None:
        return Applied(config, me, owned, frozenset())
    held = owners(live)
    others = {owner: fields for owner, fields in held.items() if owner != me}
    clashes = _clashes(wanted, leaves(live, shape), others)
    if clashes and not force:
        raise _conflicts(clashes, api_version)
    merged = _merge(live, config, shape)
    dropped = held.get(me, frozenset()) - owned
    kept = owned.union(*others.values())
    for path in sorted(dropped - kept, key=len):
        if not any(other[: len(path)] == path for other in kept):
            merged = _without(merged, path, shape)
    return Applied(merged, me, owned, frozenset(path for _, path in clashes))


def track_apply(obj: Object, applied: Applied, *, api_version: str, now: str) -> Object:
    """The object with the ownership that an apply leaves behind."""
    held = {owner: fields - applied.taken for owner, fields in owners(obj).items()}
    held[applied.applier] = applied.owned
    return _with_owners(obj, held, api_version, now)


def _clashes(
    wanted: dict[Path, Any], current: dict[Path, Any], others: dict[Owner, Fields]
) -> list[tuple[Owner, Path]]:
    return [
        (owner, path)
        for owner, fields in others.items()
        for path in sorted(fields & wanted.keys())
        if path not in current or current[path] != wanted[path]
    ]


def _conflicts(clashes: list[tuple[Owner, Path]], api_version: str) -> ApiFault:
    causes = []
    for owner, path in clashes:
        using = f' with subresource "{owner.subresource}"' if owner.subresource else ""
        message = f'conflict with "{owner.manager}"{using} using {api_version}'
        causes.append({"reason": "FieldManagerConflict", "message": message, "field": _dotted(path)})
    plural = "" if len(causes) == 1 else "s"
    texts = [f"{cause['message']}: {cause['field']}" for cause in causes]
    shown = texts[0] if len(texts) == 1 else "conflicts:\n" + "\n".join(f"- {text}" for text in texts)
    message = f"Apply failed with {len(causes)} conflict{plural}: {shown}"
    return ApiFault(409, "Conflict", message, causes=causes)


def _dotted(path: Path) -> str:
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "v":
            text += f"[={rest}]"
        else:
            pairs = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items())
            text += f"[{pairs}]"
    return text


def _merge(live: Any, config: Any, shape: Type) -> Any:
    if isinstance(config, dict) and isinstance(live, dict) and not (isinstance(shape, Obj) and shape.atomic):
        merged = dict(live)
        for key, value in config.items():
            merged[key] = _merge(live[key], value, child(shape, key)) if key in live else value
        return merged
    if isinstance(config, list) and isinstance(live, list) and isinstance(shape, List) and (shape.keys or shape.set):
        return _merge_items(live, config, shape)
    return config


def _merge_items(live: list[Any], config: list[Any], shape: List) -> list[Any]:
    places = {_item_step(item, shape): index for index, item in enumerate(live)}
    merged = list(live)
    for item in config:
        at = places.get(_item_step(item, shape))
        if at is None:
            merged.append(item)
        elif shape.keys:
            merged[at] = _merge(merged[at], item, shape.item)
    return merged


def _without(value: Any, path: Path, shape: Type) -> Any:
    """The value without what is at the path; containers that become empty by it go too."""
    step, rest = path[0], path[1:]
    if isinstance(value, list) and isinstance(shape, List):
        kept = []
        for item in value:
            if _item_step(item, shape) != step:
                kept.append(item)
            elif rest:
                kept.append(_without(item, rest, shape.item))
        return kept
    key = step.removeprefix("f:")
    if not isinstance(value, dict) or key not in value:
        return value
    others = {name: item for name, item in value.items() if name != key}
    if not rest:
        return others
    below = _without(value[key], rest, child(shape, key))
    is_user_map = isinstance(child(shape, key), Dict | List)
    return others if not below and is_user_map else {**value, key: below}
