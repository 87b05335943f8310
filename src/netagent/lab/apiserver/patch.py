"""JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch, as functions from document to document.

The document that comes in is never changed: what is returned shares what was left alone.
"""

import copy
from typing import Any

from netagent.lab.apiserver.faults import ApiFault, bad_request
from netagent.lab.apiserver.schema import List, Type, child

ORDER_PREFIX = "$setElementOrder/"
DELETE_PREFIX = "$deleteFromPrimitiveList/"


def merge_patch(document: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(document: Any, operations: Any) -> Any:
    """RFC 6902: all of the operations or, with ApiFault 422, none."""
    if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    result = copy.deepcopy(document)
    for operation in operations:
        try:
            result = _operate(result, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiFault(
                422,
                "Invalid",
                f"the server rejected our request due to an error in our request: {operation.get('op')} "
                f"operation does not apply at {operation.get('path')!r}: {error}",
            ) from None
    return result


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    path = _pointer(operation["path"])
    match operation["op"]:
        case "add":
            return _add(document, path, copy.deepcopy(operation["value"]))
        case "remove":
            return _remove(document, path)
        case "replace":
            _get(document, path)
            return _replace(document, path, copy.deepcopy(operation["value"]))
        case "test":
            if _get(document, path) != operation.get("value"):
                raise ValueError("the value differs")
            return document
        case "move":
            value = _get(document, _pointer(operation["from"]))
            return _add(_remove(document, _pointer(operation["from"])), path, value)
        case "copy":
            return _add(document, path, copy.deepcopy(_get(document, _pointer(operation["from"]))))
    raise ValueError(f"unknown operation {operation['op']!r}")


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise ValueError(f"not a JSON pointer: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _index(items: list[Any], step: str, limit: int) -> int:
    index = int(step)
    if not 0 <= index < limit:
        raise IndexError(f"index {step} of a list of {len(items)}")
    return index


def _get(document: Any, path: list[str]) -> Any:
    for step in path:
        document = document[_index(document, step, len(document))] if isinstance(document, list) else document[step]
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        index = len(parent) if path[-1] == "-" else _index(parent, path[-1], len(parent) + 1)
        parent.insert(index, value)
    else:
        parent[path[-1]] = value
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        parent[int(path[-1])] = value
    else:
        parent[path[-1]] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        del parent[_index(parent, path[-1], len(parent))]
    else:
        del parent[path[-1]]
    return document


def strategic_merge(document: Any, patch: Any, shape: Type) -> Any:
    """Kubernetes' own: as a merge patch, but lists that are maps or sets merge by item. Raises ApiFault 400."""
    if not isinstance(patch, dict):
        return patch
    match patch.get("$patch"):
        case "replace":
            return _without_directives(patch)
        case "delete":
            return {}
    merged = dict(document) if isinstance(document, dict) else {}
    if "$retainKeys" in patch:
        merged = {key: value for key, value in merged.items() if key in patch["$retainKeys"]}
    for key, value in patch.items():
        if not key.startswith("$"):
            _merge_field(merged, key, value, child(shape, key))
    for key, value in patch.items():
        _list_directive(merged, key, value, shape)
    return merged


def _without_directives(patch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in patch.items() if not key.startswith("$") and value is not None}


def _merge_field(merged: dict[str, Any], key: str, value: Any, shape: Type) -> None:
    if value is None:
        merged.pop(key, None)
    elif isinstance(value, dict):
        merged[key] = strategic_merge(merged.get(key), value, shape)
    elif isinstance(value, list) and isinstance(shape, List) and (shape.keys or shape.set):
        merged[key] = _merge_list(merged.get(key) or [], value, shape)
    else:
        merged[key] = value


def _list_directive(merged: dict[str, Any], key: str, value: Any, shape: Type) -> None:
    if key.startswith(DELETE_PREFIX):
        field = key.removeprefix(DELETE_PREFIX)
        merged[field] = [item for item in merged.get(field) or [] if item not in value]
    elif key.startswith(ORDER_PREFIX):
        field = key.removeprefix(ORDER_PREFIX)
        if isinstance(merged.get(field), list):
            merged[field] = _ordered(merged[field], value, child(shape, field))


def _merge_list(items: list[Any], patch: list[Any], shape: List) -> list[Any]:
    if shape.set:
        return items + [item for item in patch if item not in items]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" and len(item) == 1 for item in patch):
        return [item for item in patch if item != {"$patch": "replace"}]
    key = shape.keys[0]
    merged = list(items)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        _merge_item(merged, item, key, shape)
    return merged


def _merge_item(merged: list[Any], item: dict[str, Any], key: str, shape: List) -> None:
    at = next((index for index, old in enumerate(merged) if old.get(key) == item[key]), None)
    if item.get("$patch") == "delete":
        if at is not None:
            del merged[at]
    elif at is None:
        merged.append(strategic_merge({}, item, shape.item))
    else:
        merged[at] = strategic_merge(merged[at], item, shape.item)


def _ordered(items: list[Any], order: list[Any], shape: Type) -> list[Any]:
    """Items named in the order first and in it, the others after them."""
    key = shape.keys[0] if isinstance(shape, List) and shape.keys else ""
    names = [item.get(key) if key and isinstance(item, dict) else item for item in order]
    ranks = {str(name): rank for rank, name in enumerate(names)}

    def rank(item: Any) -> int:
        name = item.get(key) if key and isinstance(item, dict) else item
        return ranks.get(str(name), len(ranks))

    return sorted(items, key=rank)
