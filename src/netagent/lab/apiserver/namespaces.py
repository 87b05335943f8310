"""Namespace deletion: a terminating namespace is emptied, then removed."""

from netagent.lab.apiserver.registry import Deletion, Registry
from netagent.lab.apiserver.store import Event


class NamespaceDeletion:
    """Empties terminating namespaces."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._terminating: set[str] = set()

    def react(self, event: Event) -> None:
        """Start to empty a namespace when it is marked; remove it after the last object has gone."""
        if event.table == "namespaces":
            self._react_to_namespace(event)
        elif event.type == "DELETED" and event.key[0] in self._terminating:
            self._finish_if_empty(event.key[0])

    def _react_to_namespace(self, event: Event) -> None:
        name = event.key[1]
        if event.type == "DELETED":
            self._terminating.discard(name)
        elif event.now.obj["metadata"].get("deletionTimestamp") and name not in self._terminating:
            self._terminating.add(name)
            for resource in self._registry.catalogue:
                if resource.namespaced:
                    self._registry.delete_collection(resource, name, None, Deletion())
            self._finish_if_empty(name)

    def _finish_if_empty(self, name: str) -> None:
        store = self._registry.store
        namespaced = [resource.table for resource in self._registry.catalogue if resource.namespaced]
        if any(next(store.scan(table, name), None) is not None for table in namespaced):
            return
        self._registry.finish("namespaces", ("", name))
