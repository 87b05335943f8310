"""Garbage collection: an object goes when the last of its owners is gone (background propagation)."""

from typing import Any

from netagent.lab.apiserver.registry import Deletion, Registry
from netagent.lab.apiserver.store import Event, Key

Place = tuple[str, Key]
"""Table and key."""


class GarbageCollection:
    """Knows who is owned by whom, by uid."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._alive: set[str] = set()
        self._owned: dict[str, set[Place]] = {}
        """Dependents by the uid of each of their owners."""

    def react(self, event: Event) -> None:
        """Follow a write; delete what lost its last owner by it."""
        place = (event.table, event.key)
        before = _owners(event.before.obj) if event.before is not None else set()
        uid = event.now.obj["metadata"]["uid"]
        if event.type == "DELETED":
            self._alive.discard(uid)
            self._unlink(place, before)
            for dependent in sorted(self._owned.pop(uid, ())):
                self._collect(dependent)
            return
        now = _owners(event.now.obj)
        self._alive.add(uid)
        self._unlink(place, before - now)
        for owner in now:
            self._owned.setdefault(owner, set()).add(place)
        if now != before:
            self._collect(place)

    def _unlink(self, place: Place, owners: set[str]) -> None:
        for owner in owners:
            dependents = self._owned.get(owner)
            if dependents is not None:
                dependents.discard(place)
                if not dependents:
                    del self._owned[owner]

    def _collect(self, place: Place) -> None:
        """Delete an object that has owners, none of which is alive."""
        table, key = place
        stored = self._registry.store.get(table, key)
        resource = self._registry.catalogue.of_table(table)
        if stored is None or resource is None:
            return
        owners = _owners(stored.obj)
        if owners and not owners & self._alive:
            self._registry.delete(resource, key, Deletion())


def _owners(obj: dict[str, Any]) -> set[str]:
    return {owner["uid"] for owner in obj["metadata"].get("ownerReferences") or []}
