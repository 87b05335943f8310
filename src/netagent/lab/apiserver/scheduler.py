"""Scheduling, as far as a lab needs it: pods go round robin to Ready nodes that their nodeSelector accepts."""

from typing import Any

from netagent.lab.apiserver.registry import Registry
from netagent.lab.apiserver.store import Event, Key

DEFAULT_SCHEDULER = "default-scheduler"


class Scheduling:
    """Binds pods that have no node."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: dict[Key, None] = {}
        """Pods without a node, oldest first."""
        self._turn = ""
        """The node that was chosen last."""

    def react(self, event: Event) -> None:
        """Bind a new pod, or those that wait when nodes change."""
        if event.table == "pods":
            if event.type != "DELETED" and _wants_node(event.now.obj):
                self._waiting[event.key] = None
                self._bind(event.key)
            else:
                self._waiting.pop(event.key, None)
        elif event.table == "nodes" and event.type != "DELETED":
            for key in tuple(self._waiting):
                self._bind(key)

    def _bind(self, key: Key) -> None:
        pod = self._registry.store.get("pods", key)
        if pod is None or not _wants_node(pod.obj):
            self._waiting.pop(key, None)
            return
        node = self._choose(pod.obj["spec"].get("nodeSelector") or {})
        if node:
            self._turn = node
            del self._waiting[key]
            self._registry.bind(key, node)

    def _choose(self, selector: dict[str, str]) -> str:
        """The next fitting node by name after the last choice; "" if there is none."""
        nodes = self._registry.store.scan("nodes")
        fitting: list[str] = [node.obj["metadata"]["name"] for node in nodes if _fits(node.obj, selector)]
        later = [name for name in fitting if name > self._turn]
        return (later or fitting or [""])[0]


def _wants_node(pod: dict[str, Any]) -> bool:
    spec = pod["spec"]
    return (
        not spec.get("nodeName")
        and not pod["metadata"].get("deletionTimestamp")
        and not spec.get("schedulingGates")
        and spec.get("schedulerName", DEFAULT_SCHEDULER) == DEFAULT_SCHEDULER
    )


def _fits(node: dict[str, Any], selector: dict[str, str]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)
    labels = {"kubernetes.io/hostname": node["metadata"]["name"], **(node["metadata"].get("labels") or {})}
    return (
        ready
        and not (node.get("spec") or {}).get("unschedulable")
        and all(labels.get(key) == value for key, value in selector.items())
    )
