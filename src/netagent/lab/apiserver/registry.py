"""The verbs: what create, update, patch, delete do to an object before and after the store takes it.

The way of a write: shape (types, nulls, unknown fields) -> defaults -> what the writer may not change -> validation ->
managedFields -> store. Source: apiserver/pkg/registry/generic and the kinds' strategies.
"""

import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

import orjson
from msgspec import Struct

from netagent.lab.apiserver import ssa, validation
from netagent.lab.apiserver.defaults import DEFAULT_GRACE_S, fill_in
from netagent.lab.apiserver.faults import (
    ApiFault,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
    wrong,
)
from netagent.lab.apiserver.patch import json_patch, merge_patch, strategic_merge
from netagent.lab.apiserver.resources import Catalogue, Resource
from netagent.lab.apiserver.schema import Misshapen, Obj, conform
from netagent.lab.apiserver.selectors import Predicate
from netagent.lab.apiserver.shapes import METADATA
from netagent.lab.apiserver.store import Key, Object, Store, Stored

PatchType = Literal["json", "merge", "strategic", "apply"]

CREATED_BY_UPDATE = frozenset({"leases.coordination.k8s.io", "endpoints", "events"})
"""Kinds that a PUT creates. Source: AllowCreateOnUpdate of the strategies."""
NEEDS_REVISION = frozenset({"leases.coordination.k8s.io"})
"""Built-in kinds whose PUT must carry a resourceVersion. Source: AllowUnconditionalUpdate; custom resources also do."""
GENERATED_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
KEPT_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
)
"""Metadata that an update cannot change."""


class Options(Struct, frozen=True):
    """What the query says of a write."""

    manager: str = "unknown"
    dry_run: bool = False
    strict: bool = False
    """Unknown fields are refused rather than dropped."""
    force: bool = False
    """An apply takes fields from other managers."""


class Deletion(Struct, frozen=True):
    """metav1.DeleteOptions."""

    grace_s: int | None = None
    uid: str = ""
    resource_version: str = ""
    orphan: bool = False
    dry_run: bool = False


class Outcome(Struct, frozen=True):
    """What a write left: the object, whether it is new, whether it still exists, and the names of dropped fields."""

    stored: Stored
    created: bool = False
    gone: bool = False
    dropped: tuple[str, ...] = ()


def timestamp(now_s: float) -> str:
    """RFC 3339 in UTC with whole seconds."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Registry:
    """Objects by their resources."""

    def __init__(self, store: Store, catalogue: Catalogue, clock: Callable[[], float]) -> None:
        self.store = store
        self.catalogue = catalogue
        self._clock = clock

    def now(self) -> str:
        """The server's time."""
        return timestamp(self._clock())

    def get(self, resource: Resource, key: Key) -> Stored:
        """Raises ApiFault 404."""
        stored = self.store.get(resource.table, key)
        if stored is None:
            raise not_found(resource.plural, resource.group, key[1])
        return stored

    # Create

    def create(self, resource: Resource, namespace: str, tree: Any, options: Options) -> Outcome:
        """Store a new object."""
        obj, dropped = self._decoded(resource, tree, options)
        metadata = obj["metadata"]
        self._check_namespace(resource, namespace, metadata)
        if metadata.get("resourceVersion"):
            raise ApiFault(500, "", "resourceVersion should not be set on objects to be created")
        self._stamp(resource, metadata)
        self._admit(resource, namespace, metadata.get("name", ""))
        self._reset_status(resource, obj)
        fill_in(resource.table, obj)
        self._refuse(resource, obj, validation.check(resource, obj))
        key = (namespace, metadata["name"])
        if self.store.get(resource.table, key) is not None:
            raise already_exists(resource.plural, resource.group, key[1])
        return self._put_new(resource, key, obj, dropped, options)

    def _put_new(
        self, resource: Resource, key: Key, obj: Object, dropped: tuple[str, ...], options: Options
    ) -> Outcome:
        writer = ssa.Owner(options.manager, "Update")
        obj = ssa.track_update(None, obj, shape_of(resource), writer, resource.api_version, self.now())
        return Outcome(self._put(resource, key, obj, options), created=True, dropped=dropped)

    def _decoded(self, resource: Resource, tree: Any, options: Options) -> tuple[Object, tuple[str, ...]]:
        """The object in its shape, without kind and apiVersion; and the names of dropped fields."""
        if not isinstance(tree, dict):
            raise bad_request("the object provided is unrecognized: a JSON object is expected")
        self._check_kind(resource, tree)
        unknown: list[str] = []
        try:
            obj = conform(tree, shape_of(resource), "", unknown)
        except Misshapen as error:
            raise bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {error.text}'
            ) from None
        if unknown and options.strict:
            fields = ", ".join(f'unknown field "{name}"' for name in unknown)
            raise bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {fields}"
            )
        metadata = obj.pop("metadata", {})
        body = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
        return {"metadata": metadata, **body}, tuple(unknown)

    def _check_kind(self, resource: Resource, tree: Object) -> None:
        api_version, kind = tree.get("apiVersion"), tree.get("kind")
        if api_version not in (None, "", resource.api_version):
            raise bad_request(
                f"the API version in the data ({api_version}) does not match the expected API version "
                f"({resource.api_version})"
            )
        if kind not in (None, "", resource.kind):
            raise bad_request(f"{kind} in the data does not match the expected kind {resource.kind}")

    def _check_namespace(self, resource: Resource, namespace: str, metadata: Object) -> None:
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        if metadata.get("namespace", namespace) not in (namespace, ""):
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        metadata["namespace"] = namespace

    def _stamp(self, resource: Resource, metadata: Object) -> None:
        prefix = metadata.get("generateName", "")
        if prefix and not metadata.get("name"):
            tail = "".join(random.choices(GENERATED_ALPHABET, k=5))  # noqa: S311 a name, not a secret
            metadata["name"] = prefix[:58] + tail
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"):
            metadata.pop(field, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()
        if resource.generation or resource.custom:
            metadata["generation"] = 1

    def _admit(self, resource: Resource, namespace: str, name: str) -> None:
        """Nothing is created in a namespace that is not there or on its way out."""
        if not resource.namespaced:
            return
        home = self.store.get("namespaces", ("", namespace))
        if home is None:
            raise not_found("namespaces", "", namespace)
        if home.obj["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            raise forbidden(resource.plural, resource.group, name, why, causes=[cause])

    def _reset_status(self, resource: Resource, obj: Object) -> None:
        if resource.has_status and resource.table != "nodes":
            obj.pop("status", None)

    def _refuse(self, resource: Resource, obj: Object, causes: list[Any]) -> None:
        if causes:
            raise invalid(resource.kind, resource.group, obj["metadata"].get("name", ""), causes)

    def _put(self, resource: Resource, key: Key, obj: Object, options: Options) -> Stored:
        if options.dry_run:
            return Stored(obj, _encode(obj), 0)
        return self.store.put(resource.table, key, obj)

    # Update and patch

    def update(self, resource: Resource, key: Key, subresource: str, tree: Any, options: Options) -> Outcome:
        """Replace an object, or with subresource `status` its status."""
        obj, dropped = self._decoded(resource, tree, options)
        metadata = obj["metadata"]
        self._check_namespace(resource, key[0], metadata)
        if metadata.get("name", key[1]) != key[1]:
            raise bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({key[1]})"
            )
        current = self.store.get(resource.table, key)
        if current is None:
            if resource.table in CREATED_BY_UPDATE and not subresource and not metadata.get("uid"):
                return self.create(resource, key[0], _without_revision(tree), options)
            raise not_found(resource.plural, resource.group, key[1])
        if not metadata.get("resourceVersion") and (resource.custom or resource.table in NEEDS_REVISION):
            cause = wrong("metadata.resourceVersion", "0x0", "must be specified for an update")
            self._refuse(resource, current.obj, [cause])
        writer = ssa.Owner(options.manager, "Update", subresource)
        return self._replace(resource, key, current, obj, writer, options, dropped)

    def patch(
        self, resource: Resource, key: Key, subresource: str, kind: PatchType, patch: Any, options: Options
    ) -> Outcome:
        """Change an object by a patch document; an apply also creates it."""
        current = self.store.get(resource.table, key)
        if kind == "apply":
            return self._apply(resource, key, subresource, current, patch, options)
        if current is None:
            raise not_found(resource.plural, resource.group, key[1])
        document = {"kind": resource.kind, "apiVersion": resource.api_version, **current.obj}
        if kind == "json":
            tree = json_patch(document, patch)
        elif not isinstance(patch, dict):
            raise bad_request("error decoding patch: a JSON object is expected")
        elif kind == "merge":
            tree = merge_patch(document, patch)
        elif resource.custom:
            raise ApiFault(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )
        else:
            tree = strategic_merge(document, patch, shape_of(resource))
        return self._patched(resource, key, subresource, current, tree, options)

    def _patched(
        self, resource: Resource, key: Key, subresource: str, current: Stored, tree: Any, options: Options
    ) -> Outcome:
        obj, dropped = self._decoded(resource, tree, options)
        metadata = obj["metadata"]
        if (metadata.get("name"), metadata.get("namespace", "")) != (key[1], key[0]):
            cause = wrong("metadata.name", metadata.get("name", ""), "field is immutable")
            self._refuse(resource, current.obj, [cause])
        writer = ssa.Owner(options.manager, "Update", subresource)
        return self._replace(resource, key, current, obj, writer, options, dropped)

    def _apply(
        self, resource: Resource, key: Key, subresource: str, current: Stored | None, patch: Any, options: Options
    ) -> Outcome:
        config, dropped = self._decoded(resource, patch, options)
        metadata = config["metadata"]
        if metadata.pop("managedFields", None):
            raise bad_request("metadata.managedFields must be nil")
        if metadata.get("name", key[1]) != key[1]:
            raise bad_request(f"metadata.name {metadata['name']!r} does not match the name on the URL ({key[1]})")
        if resource.has_status and not subresource and resource.table != "nodes":
            config.pop("status", None)
        live = current.obj if current is not None else None
        outcome = ssa.apply(
            live, config, shape_of(resource), options.manager, force=options.force, versions=resource.api_version
        )
        if current is None:
            return self._apply_new(resource, key, outcome, dropped, options)
        asked = metadata.get("resourceVersion")
        merged = {**outcome.obj, "metadata": {**outcome.obj["metadata"], "resourceVersion": asked}}
        return self._replace(resource, key, current, self._reshaped(resource, merged), outcome, options, dropped)

    def _apply_new(
        self, resource: Resource, key: Key, applied: ssa.Applied, dropped: tuple[str, ...], options: Options
    ) -> Outcome:
        draft = {**applied.obj, "metadata": {**applied.obj["metadata"], "name": key[1]}}
        made = self.create(resource, key[0], draft, Options(options.manager, dry_run=True))
        obj = {**made.stored.obj}
        obj["metadata"] = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        obj = ssa.track_apply(obj, applied, options.manager, resource.api_version, self.now())
        return Outcome(self._put(resource, key, obj, options), created=True, dropped=dropped)

    def _reshaped(self, resource: Resource, obj: Object) -> Object:
        """A copy whose known parts are nobody else's."""
        return self._decoded(resource, obj, Options())[0]

    def _replace(
        self,
        resource: Resource,
        key: Key,
        current: Stored,
        obj: Object,
        writer: ssa.Owner | ssa.Applied,
        options: Options,
        dropped: tuple[str, ...],
    ) -> Outcome:
        """Put a changed object in the place of the current one."""
        before = current.obj
        self._check_preconditions(resource, key[1], current, obj["metadata"])
        subresource = writer.subresource if isinstance(writer, ssa.Owner) else ""
        fill_in(resource.table, obj)
        obj = _carried_over(resource, subresource, before, obj)
        self._refuse(resource, obj, validation.check_update(resource, obj, before))
        if isinstance(writer, ssa.Owner):
            obj = ssa.track_update(before, obj, shape_of(resource), writer, resource.api_version, self.now())
        else:
            obj = ssa.track_apply(obj, writer, options.manager, resource.api_version, self.now())
        if obj == before:
            return Outcome(current, dropped=dropped)
        if _released(obj["metadata"]) and not options.dry_run:
            self.store.put(resource.table, key, obj)
            return Outcome(self.store.remove(resource.table, key), gone=True, dropped=dropped)
        return Outcome(self._put(resource, key, obj, options), dropped=dropped)

    def _check_preconditions(self, resource: Resource, name: str, current: Stored, metadata: Object) -> None:
        uid, wanted = current.obj["metadata"]["uid"], metadata.get("uid")
        if wanted and wanted != uid:
            why = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
            raise conflict(resource.plural, resource.group, name, why)
        asked = metadata.get("resourceVersion")
        if asked and asked != str(current.revision):
            raise conflict(resource.plural, resource.group, name)

    # Delete

    def delete(self, resource: Resource, key: Key, options: Deletion) -> Outcome:
        """Remove an object, or mark it where a kubelet or a finalizer has to act first."""
        current = self.get(resource, key)
        if options.resource_version or options.uid:
            asked = {"resourceVersion": options.resource_version, "uid": options.uid}
            self._check_preconditions(resource, key[1], current, asked)
        if resource.table == "namespaces" and key[1] in ("default", "kube-system", "kube-public"):
            raise forbidden("namespaces", "", key[1], "this namespace may not be deleted")
        grace_s = _grace_s(resource, current.obj, options)
        metadata = current.obj["metadata"]
        waits = bool(grace_s or metadata.get("finalizers") or resource.table == "namespaces")
        if options.dry_run:
            return Outcome(current, gone=not waits)
        if not waits:
            return Outcome(self.store.remove(resource.table, key), gone=True)
        if metadata.get("deletionTimestamp") and grace_s >= metadata.get("deletionGracePeriodSeconds", 0):
            return Outcome(current)
        marked = self._marked(resource, current.obj, grace_s)
        return Outcome(self.store.put(resource.table, key, marked))

    def _marked(self, resource: Resource, obj: Object, grace_s: int) -> Object:
        metadata = {
            **obj["metadata"],
            "deletionTimestamp": timestamp(self._clock() + grace_s),
            "deletionGracePeriodSeconds": grace_s,
        }
        if resource.generation or resource.custom:
            metadata["generation"] = metadata.get("generation", 0) + 1
        if resource.table != "namespaces":
            return {**obj, "metadata": metadata}
        del metadata["deletionGracePeriodSeconds"]
        return {**obj, "metadata": metadata, "status": {**obj["status"], "phase": "Terminating"}}

    def delete_collection(
        self, resource: Resource, namespace: str, matches: Predicate | None, options: Deletion
    ) -> list[Outcome]:
        """Delete what matches."""
        rows = [stored for stored in self.store.scan(resource.table, namespace) if not matches or matches(stored.obj)]
        keys = [(row.obj["metadata"].get("namespace", ""), row.obj["metadata"]["name"]) for row in rows]
        return [self.delete(resource, key, options) for key in keys]

    # What the controllers in this process do

    def finish(self, table: str, key: Key) -> None:
        """Remove an object whose deletion nothing holds up any more."""
        if self.store.get(table, key) is not None:
            self.store.remove(table, key)

    def bind(self, key: Key, node: str) -> None:
        """Give a pod its node."""
        pod = self.store.get("pods", key)
        if pod is None or pod.obj["spec"].get("nodeName"):
            return
        condition = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": self.now()}
        status = pod.obj["status"]
        others = [item for item in status.get("conditions") or [] if item.get("type") != "PodScheduled"]
        spec = {**pod.obj["spec"], "nodeName": node}
        self.store.put("pods", key, {**pod.obj, "spec": spec, "status": {**status, "conditions": [*others, condition]}})


@cache
def shape_of(resource: Resource) -> Obj:
    """The whole object's shape."""
    fields = {"apiVersion": "string", "kind": "string", "metadata": METADATA, **resource.shape.fields}
    return Obj(fields, open=resource.shape.open)


def _encode(obj: Object) -> bytes:
    return orjson.dumps(obj)


def _without_revision(tree: Any) -> Any:
    metadata = {key: value for key, value in (tree.get("metadata") or {}).items() if key != "resourceVersion"}
    return {**tree, "metadata": metadata}


def _carried_over(resource: Resource, subresource: str, before: Object, obj: Object) -> Object:
    """The new object with everything that this write cannot change taken from the old one."""
    old, new = before["metadata"], dict(obj["metadata"])
    for field in (*KEPT_METADATA, "resourceVersion"):
        new.pop(field, None)
        if field in old:
            new[field] = old[field]
    if not new.get("managedFields") and "managedFields" in old:
        new["managedFields"] = old["managedFields"]
    merged = {**obj, "metadata": new}
    if subresource == "status":
        kept = {key: value for key, value in before.items() if key not in ("metadata", "status")}
        merged = {"metadata": _status_metadata(resource, old, new), **kept}
        if "status" in obj:
            merged["status"] = obj["status"]
    elif resource.has_status:
        merged.pop("status", None)
        if "status" in before:
            merged["status"] = before["status"]
    counts = resource.generation or resource.custom
    if counts and _desired(merged) != _desired(before):
        merged["metadata"] = {**merged["metadata"], "generation": old.get("generation", 0) + 1}
    return merged


def _status_metadata(resource: Resource, old: Object, new: Object) -> Object:
    if resource.custom:
        return {**old, **({"managedFields": new["managedFields"]} if "managedFields" in new else {})}
    owners = {"ownerReferences": old["ownerReferences"]} if "ownerReferences" in old else {}
    return {**{key: value for key, value in new.items() if key != "ownerReferences"}, **owners}


def _desired(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _released(metadata: Object) -> bool:
    """Marked for deletion, and the last finalizer is gone."""
    marked = metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds") == 0
    return bool(marked and not metadata.get("finalizers"))


def _grace_s(resource: Resource, obj: Object, options: Deletion) -> int:
    """Only a pod that a kubelet knows of is given time. Source: podStrategy.CheckGracefulDelete."""
    if resource.table != "pods":
        return 0
    spec, status = obj["spec"], obj["status"]
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    return (
        options.grace_s if options.grace_s is not None else spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
    )
