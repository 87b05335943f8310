"""A NetworkPolicy case: its cluster with defaults filled in, and what its steps expect, cell by cell."""

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, field

Object = dict[str, Any]
FINISHED = ("Succeeded", "Failed")


class Pod(Struct):
    """A pod of the case at this moment."""

    namespace: str
    name: str
    spec: Object
    """As the case writes it, defaults filled in."""
    phase: str
    ips: list[str] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def serves(self) -> list[tuple[int, str]]:
        """What listens; without a word of its own, exactly what is declared."""
        ports = self.spec.get("serves")
        if ports is not None:
            return [(one["port"], one.get("protocol", "TCP")) for one in ports]
        return sorted({(one["containerPort"], one.get("protocol", "TCP")) for one in self.spec.get("ports") or ()})


class Cell(Struct, frozen=True, order=True):
    """One question of an expectation and its answer."""

    source: str
    destination: str
    port: int
    protocol: str
    family: int
    allowed: bool

    def __str__(self) -> str:
        version = "" if self.family == 4 else " over IPv6"
        return f"{self.source} -> {self.destination} {self.port}/{self.protocol}{version}"


def load(directory: Path, wanted: str) -> list[Object]:
    """The cases of a directory, those of one id or tag where that is asked for, clusters resolved."""
    clusters = json.loads((directory / "clusters.json").read_text())
    cases = [case for path in sorted((directory / "cases").glob("*.json")) for case in json.loads(path.read_text())]
    chosen = [case for case in cases if not wanted or wanted == case["id"] or wanted in case["tags"]]
    return [{**case, "cluster": resolve(case["cluster"], clusters)} for case in chosen]


def resolve(cluster: Any, clusters: Object) -> Object:
    """A cluster that stands for itself."""
    if isinstance(cluster, str):
        return resolve(clusters[cluster], clusters)
    if "use" not in cluster:
        return copy.deepcopy(cluster)
    base = resolve(clusters[cluster["use"]], clusters)
    for key, value in cluster.items():
        if key == "namespaces":
            base["namespaces"] = {**base.get("namespaces", {}), **value}
        elif key in ("pods", "externals"):
            base[key] = [*base.get(key, []), *value]
        elif key != "use":
            base[key] = value
    return base


def node_count(cluster: Object, steps: Iterable[Object]) -> int:
    """Nodes that a case needs."""
    pods = [*cluster.get("pods", []), *(pod for step in steps for pod in (step.get("create") or {}).get("pods", []))]
    highest = max((pod.get("node", 0) for pod in pods), default=0)
    return max(len(cluster.get("nodes", [])), highest + 1)


def cells(expect: Object, pods: Iterable[Pod], serves: dict[str, list[tuple[int, str]]]) -> Iterator[Cell]:
    """Every question of a step. `serves`: what nodes and externals listen on."""
    living = [pod for pod in pods if pod.phase == "Running"]
    listening = {pod.full_name: pod.serves for pod in living} | serves
    everyone = [pod.full_name for pod in living if not pod.spec.get("hostNetwork")]
    for probe in expect.get("probes", ()):
        yield Cell(
            probe["from"],
            probe["to"],
            probe["port"],
            probe.get("protocol", "TCP"),
            probe.get("family", 4),
            probe["allowed"],
        )
    for table in expect.get("tables", ()):
        yield from _table(table, everyone, listening)


def _table(table: Object, everyone: list[str], listening: dict[str, list[tuple[int, str]]]) -> Iterator[Cell]:
    sources = table.get("from") or table.get("pods") or everyone
    destinations = table.get("to") or table.get("pods") or everyone
    denied = _denied(table)
    for port, protocol in table["ports"]:
        key = f"{port}/{protocol}"
        for destination in destinations:
            if (port, protocol) not in listening.get(destination, ()):
                continue
            refused = denied.get((key, destination), set()) | denied.get((key, "*"), set())
            for source in sources:
                if source != destination:
                    allowed = not ("*" in refused or source in refused)
                    family = table.get("family", 4)
                    yield Cell(source, destination, port, protocol, family, allowed)


def _denied(table: Object) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for ports, by_destination in table.get("denied", {}).items():
        for key in ports.split(","):
            for destination, sources in by_destination.items():
                found.setdefault((key, destination), set()).update([sources] if sources == "*" else sources)
    return found
