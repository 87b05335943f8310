"""The verbs: what create, update, patch, delete do to an object before and after the store takes it.

The way of a write: shape (types, nulls, unknown fields) -> defaults -> what the writer may not change -> validation ->
managedFields -> store. Source: apiserver/pkg/registry/generic and the kinds' strategies.
"""

import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from msgspec import Struct

from netagent.lab.apiserver import ssa, validation
from netagent.lab.apiserver.defaults import fill_in
from netagent.lab.apiserver.drafts import Draft, check_name, check_namespace, decode, shape_of, without_revision
from netagent.lab.apiserver.faults import (
    ApiFault,
    Cause,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
    unsupported_media,
    wrong,
)
from netagent.lab.apiserver.lifecycle import carry_over, counts_generations, grace_of, is_released, mark
from netagent.lab.apiserver.patch import json_patch, merge_patch, strategic_merge
from netagent.lab.apiserver.resources import Catalogue, Resource
from netagent.lab.apiserver.selectors import Predicate
from netagent.lab.apiserver.store import Key, Object, Store, Stored

PatchType = Literal["json", "merge", "strategic", "apply"]

CREATED_BY_UPDATE = frozenset({"leases.coordination.k8s.io", "endpoints", "events"})
"""Kinds that a PUT creates. Source: AllowCreateOnUpdate of the strategies."""
NEEDS_REVISION = frozenset({"leases.coordination.k8s.io"})
"""Built-in kinds whose PUT must carry a resourceVersion. Source: AllowUnconditionalUpdate; custom resources also do."""
IMMORTAL = ("default", "kube-system", "kube-public")
"""Namespaces that stay."""
GENERATED_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
MAX_GENERATED_PREFIX = 58


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
    """Dependents stay, without this owner."""
    dry_run: bool = False


class Target(Struct, frozen=True):
    """What a request is about."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    """"" for the whole collection."""
    subresource: str = ""

    @property
    def key(self) -> Key:
        """Where the store has it."""
        return (self.namespace, self.name)


class Outcome(Struct, frozen=True):
    """What a write left: the object, whether it is new, whether it is gone, and the names of dropped fields."""

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
        draft = self._new(resource, namespace, decode(resource, tree, strict=options.strict))
        writer = ssa.Owner(options.manager, "Update")
        obj = ssa.track_update(
            None, draft.obj, shape_of(resource), writer, api_version=resource.api_version, now=self.now()
        )
        return Outcome(self._put(resource, obj, options), created=True, dropped=draft.dropped)

    def _new(self, resource: Resource, namespace: str, draft: Draft) -> Draft:
        """The draft as it is stored, but for its owners."""
        obj = draft.obj
        metadata = obj["metadata"]
        check_namespace(resource, namespace, metadata)
        if metadata.get("resourceVersion"):
            raise ApiFault(500, "", "resourceVersion should not be set on objects to be created")
        self._stamp(resource, metadata)
        self._admit(resource, namespace, metadata.get("name", ""))
        if resource.has_status and resource.table != "nodes":
            obj.pop("status", None)
        fill_in(resource.table, obj)
        _refuse(resource, obj, validation.check(resource, obj))
        if self.store.get(resource.table, (namespace, metadata["name"])) is not None:
            raise already_exists(resource.plural, resource.group, metadata["name"])
        return draft

    def _stamp(self, resource: Resource, metadata: Object) -> None:
        prefix = metadata.get("generateName", "")
        if prefix and not metadata.get("name"):
            tail = "".join(random.choices(GENERATED_ALPHABET, k=5))  # noqa: S311 a name, not a secret
            metadata["name"] = prefix[:MAX_GENERATED_PREFIX] + tail
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"):
            metadata.pop(field, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()
        if counts_generations(resource):
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
            message = f"namespace {namespace} is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}
            raise forbidden(resource.plural, resource.group, name, why, causes=[cause])

    def _put(self, resource: Resource, obj: Object, options: Options) -> Stored:
        if options.dry_run:
            return Stored(obj, orjson.dumps(obj), 0)
        return self.store.put(resource.table, key_of(obj), obj)

    # Update and patch

    def update(self, target: Target, tree: Any, options: Options) -> Outcome:
        """Replace an object, or with subresource `status` its status."""
        resource = target.resource
        draft = decode(resource, tree, strict=options.strict)
        metadata = draft.obj["metadata"]
        check_namespace(resource, target.namespace, metadata)
        check_name(target.name, metadata)
        metadata["name"] = target.name
        current = self.store.get(resource.table, target.key)
        if current is None:
            if resource.table in CREATED_BY_UPDATE and not target.subresource and not metadata.get("uid"):
                return self.create(resource, target.namespace, without_revision(tree), options)
            raise not_found(resource.plural, resource.group, target.name)
        if not metadata.get("resourceVersion") and (resource.custom or resource.table in NEEDS_REVISION):
            cause = wrong("metadata.resourceVersion", "0x0", "must be specified for an update")
            _refuse(resource, current.obj, [cause])
        return self._replace(target, current, draft, None, options)

    def patch(self, target: Target, kind: PatchType, patch: Any, options: Options) -> Outcome:
        """Change an object by a patch document; an apply also creates it."""
        resource = target.resource
        current = self.store.get(resource.table, target.key)
        if kind == "apply":
            return self._apply(target, current, patch, options)
        if current is None:
            raise not_found(resource.plural, resource.group, target.name)
        draft = decode(resource, _patched(resource, current.obj, kind, patch), strict=options.strict)
        if key_of(draft.obj) != target.key:
            name = draft.obj["metadata"].get("name", "")
            _refuse(resource, current.obj, [wrong("metadata.name", name, "field is immutable")])
        return self._replace(target, current, draft, None, options)

    def _apply(self, target: Target, current: Stored | None, patch: Any, options: Options) -> Outcome:
        resource = target.resource
        config = decode(resource, patch, strict=options.strict)
        metadata = config.obj["metadata"]
        if metadata.pop("managedFields", None):
            raise bad_request("metadata.managedFields must be nil")
        check_namespace(resource, target.namespace, metadata)
        check_name(target.name, metadata)
        if resource.has_status and not target.subresource and resource.table != "nodes":
            config.obj.pop("status", None)
        applied = ssa.apply(
            current.obj if current is not None else None,
            config.obj,
            shape_of(resource),
            ssa.Owner(options.manager, "Apply", target.subresource),
            force=options.force,
            api_version=resource.api_version,
        )
        if current is None:
            return self._apply_new(target, applied, config.dropped, options)
        asked = {"resourceVersion": metadata.get("resourceVersion"), "name": target.name}
        merged = {**applied.obj, "metadata": {**applied.obj["metadata"], **asked}}
        draft = Draft(decode(resource, merged).obj, config.dropped)
        return self._replace(target, current, draft, applied, options)

    def _apply_new(self, target: Target, applied: ssa.Applied, dropped: tuple[str, ...], options: Options) -> Outcome:
        resource = target.resource
        if target.subresource:
            raise not_found(resource.plural, resource.group, target.name)
        named = {**applied.obj, "metadata": {**applied.obj["metadata"], "name": target.name}}
        draft = self._new(resource, target.namespace, decode(resource, named))
        obj = ssa.track_apply(draft.obj, applied, api_version=resource.api_version, now=self.now())
        return Outcome(self._put(resource, obj, options), created=True, dropped=dropped)

    def _replace(
        self, target: Target, current: Stored, draft: Draft, applied: ssa.Applied | None, options: Options
    ) -> Outcome:
        """Put a changed object in the place of the current one."""
        resource, before = target.resource, current.obj
        _check_preconditions(target, current, draft.obj["metadata"])
        fill_in(resource.table, draft.obj)
        obj = carry_over(resource, target.subresource, before, draft.obj)
        _refuse(resource, obj, validation.check_update(resource, obj, before))
        shape, version, now = shape_of(resource), resource.api_version, self.now()
        if applied is None:
            writer = ssa.Owner(options.manager, "Update", target.subresource)
            obj = ssa.track_update(before, obj, shape, writer, api_version=version, now=now)
        else:
            obj = ssa.track_apply(obj, applied, api_version=version, now=now)
        if obj == before:
            return Outcome(current, dropped=draft.dropped)
        if is_released(obj) and not options.dry_run:
            self.store.put(resource.table, target.key, obj)
            return Outcome(self.store.remove(resource.table, target.key), gone=True, dropped=draft.dropped)
        return Outcome(self._put(resource, obj, options), dropped=draft.dropped)

    # Delete

    def delete(self, resource: Resource, key: Key, options: Deletion) -> Outcome:
        """Remove an object, or mark it where a kubelet or a finalizer has to act first."""
        current = self.get(resource, key)
        asked = {"resourceVersion": options.resource_version, "uid": options.uid}
        _check_preconditions(Target(resource, *key), current, asked)
        if resource.table == "namespaces" and key[1] in IMMORTAL:
            raise forbidden("namespaces", "", key[1], "this namespace may not be deleted")
        grace_s = grace_of(resource, current.obj, options.grace_s)
        metadata = current.obj["metadata"]
        waits = bool(grace_s or metadata.get("finalizers") or resource.table == "namespaces")
        if options.dry_run:
            return Outcome(current, gone=not waits)
        if options.orphan:
            self._orphan(metadata["uid"])
        if not waits:
            return Outcome(self.store.remove(resource.table, key), gone=True)
        if metadata.get("deletionTimestamp") and grace_s >= metadata.get("deletionGracePeriodSeconds", 0):
            return Outcome(current)
        marked = mark(resource, current.obj, timestamp(self._clock() + grace_s), grace_s)
        return Outcome(self.store.put(resource.table, key, marked))

    def _orphan(self, uid: str) -> None:
        """Take an owner out of its dependents."""
        for table in self.store.tables():
            for stored in tuple(self.store.scan(table)):
                metadata = stored.obj["metadata"]
                owners = metadata.get("ownerReferences") or []
                kept = [owner for owner in owners if owner["uid"] != uid]
                if len(kept) != len(owners):
                    others = {name: value for name, value in metadata.items() if name != "ownerReferences"}
                    changed = {**others, "ownerReferences": kept} if kept else others
                    self.store.put(table, key_of(stored.obj), {**stored.obj, "metadata": changed})

    def delete_collection(
        self, resource: Resource, namespace: str, matches: Predicate | None, options: Deletion
    ) -> list[Outcome]:
        """Delete what matches."""
        rows = [stored for stored in self.store.scan(resource.table, namespace) if not matches or matches(stored.obj)]
        return [self.delete(resource, key_of(row.obj), options) for row in rows]

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


def key_of(obj: Object) -> Key:
    """Where the store has an object."""
    metadata = obj["metadata"]
    return (metadata.get("namespace", ""), metadata.get("name", ""))


def _refuse(resource: Resource, obj: Object, causes: list[Cause]) -> None:
    if causes:
        raise invalid(resource.kind, resource.group, obj["metadata"].get("name", ""), causes)


def _patched(resource: Resource, obj: Object, kind: PatchType, patch: Any) -> Any:
    """The object after a patch document. Raises ApiFault 400, 415 or 422."""
    document = {"kind": resource.kind, "apiVersion": resource.api_version, **obj}
    if kind == "json":
        return json_patch(document, patch)
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: a JSON object is expected")
    if kind == "merge":
        return merge_patch(document, patch)
    if resource.custom:
        accepted = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
        raise unsupported_media(", ".join(accepted))
    return strategic_merge(document, patch, shape_of(resource))


def _check_preconditions(target: Target, current: Stored, asked: Object) -> None:
    """Raises ApiFault 409 when the object is another one, or at another version."""
    resource = target.resource
    uid, wanted = current.obj["metadata"]["uid"], asked.get("uid")
    if wanted and wanted != uid:
        why = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        raise conflict(resource.plural, resource.group, target.name, why)
    revision = asked.get("resourceVersion")
    if revision and revision != str(current.revision):
        raise conflict(resource.plural, resource.group, target.name)
