"""What a write cannot change, and how an object is let go: pure functions from object to object.

Source: PrepareForUpdate and CheckGracefulDelete of the kinds' strategies.
"""

from netagent.lab.apiserver.defaults import DEFAULT_GRACE_S
from netagent.lab.apiserver.resources import Resource
from netagent.lab.apiserver.store import Object

KEPT_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "resourceVersion",
)
"""Metadata that an update cannot change."""


def counts_generations(resource: Resource) -> bool:
    """metadata.generation follows the spec."""
    return resource.generation or resource.custom


def carry_over(resource: Resource, subresource: str, before: Object, obj: Object) -> Object:
    """The new object with everything that this write cannot change taken from the old one."""
    old = before["metadata"]
    merged = {**obj, "metadata": _metadata(old, obj["metadata"])}
    if subresource == "status":
        merged = _status_write(resource, before, merged)
    elif resource.has_status:
        merged.pop("status", None)
        if "status" in before:
            merged["status"] = before["status"]
    if counts_generations(resource) and _desired(merged) != _desired(before):
        merged["metadata"] = {**merged["metadata"], "generation": old.get("generation", 0) + 1}
    return merged


def _metadata(old: Object, new: Object) -> Object:
    metadata = {key: value for key, value in new.items() if key not in KEPT_METADATA}
    metadata.update({key: old[key] for key in KEPT_METADATA if key in old})
    if not metadata.get("managedFields") and "managedFields" in old:
        metadata["managedFields"] = old["managedFields"]
    return metadata


def _status_write(resource: Resource, before: Object, obj: Object) -> Object:
    """Only status, and for built-in kinds metadata other than the owners."""
    old, new = before["metadata"], obj["metadata"]
    if resource.custom:
        metadata = {**old, **({"managedFields": new["managedFields"]} if "managedFields" in new else {})}
    else:
        metadata = {key: value for key, value in new.items() if key != "ownerReferences"}
        if "ownerReferences" in old:
            metadata["ownerReferences"] = old["ownerReferences"]
    kept = {key: value for key, value in before.items() if key not in ("metadata", "status")}
    return {"metadata": metadata, **kept, **({"status": obj["status"]} if "status" in obj else {})}


def _desired(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def mark(resource: Resource, obj: Object, deletion_time: str, grace_s: int) -> Object:
    """The object with the mark of its deletion."""
    metadata = {**obj["metadata"], "deletionTimestamp": deletion_time}
    if counts_generations(resource):
        metadata["generation"] = metadata.get("generation", 0) + 1
    if resource.table == "namespaces":
        return {**obj, "metadata": metadata, "status": {**obj["status"], "phase": "Terminating"}}
    metadata["deletionGracePeriodSeconds"] = grace_s
    return {**obj, "metadata": metadata}


def is_released(obj: Object) -> bool:
    """Marked for deletion, and nothing holds it any more."""
    metadata = obj["metadata"]
    marked = metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds") == 0
    return bool(marked and not metadata.get("finalizers"))


def grace_of(resource: Resource, obj: Object, asked_s: int | None) -> int:
    """Seconds until a deletion takes effect. Only a pod that a kubelet knows of is given time."""
    if resource.table != "pods":
        return 0
    spec, status = obj["spec"], obj["status"]
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    return int(asked_s if asked_s is not None else spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))
