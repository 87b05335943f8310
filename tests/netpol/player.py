"""Plays one case in a lab: its steps as API requests, its expectations as real connections."""

import asyncio
import ipaddress
import re
import urllib.parse
from typing import Any

from msgspec import Struct

from netagent.lab.cluster import Lab
from netagent.lab.places import Place
from netagent.lab.plan import Serving, node_plan, pools
from netagent.lab.pods import HOLD, IP, SERVES
from netagent.lab.probe import Target, Verdict
from netpol import model
from netpol.model import Cell, Object, Pod

PLACEHOLDER = re.compile(
    r"\{\{(?:(?P<word>ip|nodeip|podcidr)(?P<six>6)?|cidr6-(?P<length6>\d+)|cidr(?P<length>\d+))"
    r"(?::(?P<name>[^}#]+))?(?:#(?P<life>\d+))?\}\}"
)
SETTLE_S = 0.25
"""After a step, before the first look: far more than the agents need, so that the old state is not judged."""
ROUND_TIMEOUT_S = 0.5
"""No answer for so long is a denial; doubled in later rounds for who was expected to answer."""
PATIENCE_S = 6.0
"""Wrong answers are asked again for so long, all of them at the same time."""
AT_ONCE = 200


class Mismatch(Struct, frozen=True):
    """A cell that came out wrong."""

    step: int
    cell: Cell
    got: str
    explanation: str


class Outcome(Struct):
    """What came of a case."""

    mismatches: list[Mismatch]
    probes: int = 0


class Player:
    """One case on one lab; the lab is clean before and after."""

    def __init__(self, lab: Lab, case: Object) -> None:
        self._lab = lab
        self._case = case
        self._cluster = case["cluster"]
        self._families = tuple(self._cluster.get("families", [4]))
        self._pods: dict[str, Pod] = {}
        self._addresses: dict[str, list[list[str]]] = {}
        """Pod -> the addresses of each of its lives."""
        self._namespaces: set[str] = set()
        self._serves: dict[str, list[tuple[int, str]]] = {}
        self._node_labels: dict[int, dict[str, str | None]] = {}

    async def play(self) -> Outcome:
        """All steps in order."""
        outcome = Outcome([])
        try:
            await self._build()
            for number, step in enumerate(self._case["steps"], 1):
                await self._change(step)
                if "expect" in step:
                    await self._judge(number, step["expect"], outcome)
        finally:
            await self._clear()
        return outcome

    # The cluster

    async def _build(self) -> None:
        for index, node in enumerate(self._cluster.get("nodes", [])):
            if node.get("labels"):
                await self._label_node(index, node["labels"])
            await self._serve(self._lab.nodes[index].place, node.get("serves", []))
        for external in self._cluster.get("externals", []):
            place = self._lab.externals.get(external["ip"]) or await self._lab.add_external(external["ip"])
            await self._serve(place, external.get("serves", []))
        await self._create(self._cluster.get("namespaces", {}), self._cluster.get("pods", []))

    async def _serve(self, place: Place, serves: list[Object]) -> None:
        ports = [(one["port"], one.get("protocol", "TCP")) for one in serves]
        self._serves[place.name] = ports
        await self._lab.serve(place, [Serving(port, protocol) for port, protocol in ports])

    async def _create(self, namespaces: Object, pods: list[Object]) -> None:
        for name, namespace in namespaces.items():
            labels = {**(namespace.get("labels") or {}), "kubernetes.io/metadata.name": name}
            self._namespaces.add(name)
            await self._lab.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        for pod in pods:
            await self._create_pod({**self._cluster.get("podDefaults", {}), **pod})
        await self._learn_addresses()
        for pod in pods:
            if pod.get("phase") in model.FINISHED:
                await self._set_phase(self._pods[f"{pod['ns']}/{pod['name']}"], pod["phase"])

    async def _create_pod(self, spec: Object) -> None:
        pod = Pod(spec["ns"], spec["name"], spec, "Pending" if spec.get("phase") == "Pending" else "Running")
        self._pods[pod.full_name] = pod
        annotations = {SERVES: ",".join(f"{port}/{protocol}" for port, protocol in pod.serves)}
        if wanted := self._wanted_ips(spec):
            annotations[IP] = wanted
        if pod.phase == "Pending":
            annotations[HOLD] = "true"
        containers: dict[str, list[Object]] = {"main": []}
        for port in spec.get("ports") or ():
            declared = {key: value for key, value in port.items() if key != "container"}
            containers.setdefault(port.get("container", "main"), []).append(declared)
        await self._lab.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "labels": spec.get("labels") or {},
                    "annotations": annotations,
                },
                "spec": {
                    "nodeName": f"node-{spec.get('node', 0)}",
                    "hostNetwork": bool(spec.get("hostNetwork")),
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {"name": name, "image": "none", "ports": ports} for name, ports in containers.items()
                    ],
                },
            }
        )

    def _wanted_ips(self, spec: Object) -> str:
        if "ip" in spec:
            fixed = self._fill(spec["ip"])
            lives = [life for all_of_one in self._addresses.values() for life in all_of_one if fixed in life]
            return ",".join(lives[-1] if lives else [fixed])
        if "ipIndex" in spec:
            subnets = node_plan(self._lab.settings, spec.get("node", 0)).subnets
            return ",".join(str(ipaddress.ip_network(subnet)[spec["ipIndex"]]) for subnet in subnets)
        return ""

    async def _learn_addresses(self) -> None:
        for obj in await self._lab.pods_ready():
            pod = self._pods.get(f"{obj['metadata']['namespace']}/{obj['metadata']['name']}")
            if pod is not None and not pod.ips:
                pod.ips = [entry["ip"] for entry in obj.get("status", {}).get("podIPs") or ()]
                if pod.ips:
                    self._addresses.setdefault(pod.full_name, []).append(pod.ips)

    # Steps

    async def _change(self, step: Object) -> None:
        for gone in step.get("delete", ()):
            await self._delete(gone)
        create = step.get("create") or {}
        await self._create(create.get("namespaces", {}), create.get("pods", []))
        for change in step.get("phase", ()):
            await self._set_phase(self._pods[f"{change['ns']}/{change['name']}"], change["phase"])
        for change in step.get("relabel", ()):
            await self._relabel(change)
        for manifest in step.get("apply", ()):
            await self._lab.put(self._fill(manifest))

    async def _delete(self, gone: Object) -> None:
        kind, name, namespace = gone["kind"], gone["name"], gone.get("ns", "")
        api_version = gone.get("apiVersion") or ("v1" if kind in ("Pod", "Namespace") else "networking.k8s.io/v1")
        await self._lab.delete(api_version, kind, name, namespace)
        if kind == "Namespace":
            self._namespaces.discard(name)
            self._pods = {key: pod for key, pod in self._pods.items() if pod.namespace != name}
        elif kind == "Pod":
            self._pods.pop(f"{namespace}/{name}", None)
        await self._until_gone(api_version, kind, name, namespace)

    async def _until_gone(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        path = await self._lab.client.path(api_version, kind, namespace)
        for _ in range(600):
            params = {"fieldSelector": f"metadata.name={name}"}
            if not (await self._lab.client.request("GET", path, params=params))["items"]:
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{kind} {namespace}/{name} is still there after 30 s")

    async def _set_phase(self, pod: Pod, phase: str) -> None:
        path = await self._lab.client.path("v1", "Pod", pod.namespace, pod.name)
        if phase == "Running":
            await self._lab.client.patch(path, {"metadata": {"annotations": {HOLD: None}}})
            pod.phase = phase
            await self._learn_addresses()
        else:
            await self._lab.client.patch(f"{path}/status", {"status": {"phase": phase}})
            pod.phase = phase

    async def _relabel(self, change: Object) -> None:
        kind = change["kind"]
        if kind == "Node":
            await self._label_node(change["node"], change["labels"])
            return
        namespace = "" if kind == "Namespace" else change["ns"]
        path = await self._lab.client.path("v1", kind, namespace, change["name"])
        await self._lab.client.patch(path, {"metadata": {"labels": change["labels"]}})

    async def _label_node(self, index: int, labels: dict[str, Any]) -> None:
        self._node_labels.setdefault(index, {}).update(dict.fromkeys(labels))
        path = await self._lab.client.path("v1", "Node", "", f"node-{index}")
        await self._lab.client.patch(path, {"metadata": {"labels": labels}})

    def _fill(self, value: Any) -> Any:
        """Placeholders replaced by the addresses of this moment."""
        if isinstance(value, dict):
            return {key: self._fill(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._fill(one) for one in value]
        return PLACEHOLDER.sub(self._placeholder, value) if isinstance(value, str) else value

    def _placeholder(self, match: re.Match[str]) -> str:
        word, name, life = match["word"], match["name"], match["life"]
        length = match["length6"] or match["length"]
        family = 6 if match["six"] or match["length6"] else 4
        if word == "podcidr":
            return _of_family(list(pools(self._lab.settings)), family)
        if word == "nodeip":
            return _of_family(list(node_plan(self._lab.settings, int(name)).ips), family)
        lives = self._addresses[name]
        address = _of_family(lives[int(life) - 1] if life else lives[-1], family)
        return str(ipaddress.ip_network(f"{address}/{length}", strict=False)) if length else address

    # Expectations

    async def _judge(self, number: int, expect: Object, outcome: Outcome) -> None:
        cells = list(model.cells(expect, self._pods.values(), self._serves))
        outcome.probes += len(cells)
        await asyncio.sleep(SETTLE_S)
        places = await self._lab.places()
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        timeout_s = ROUND_TIMEOUT_S
        wrong: dict[Cell, Verdict] = {}
        while True:
            whole_round = not wrong
            wrong = await self._wrong(list(wrong) or cells, places, timeout_s)
            if not wrong and whole_round:
                return
            if wrong and asyncio.get_running_loop().time() > deadline_s:
                break
            timeout_s = 2 * ROUND_TIMEOUT_S
        for cell, verdict in sorted(wrong.items()):
            got = f"{'allowed' if verdict.allowed else 'denied'} ({verdict.detail})"
            outcome.mismatches.append(Mismatch(number, cell, got, await self._explain(cell, places)))

    async def _wrong(self, cells: list[Cell], places: dict[str, Place], timeout_s: float) -> dict[Cell, Verdict]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def ask(cell: Cell) -> Verdict:
            async with gate:
                if cell.source not in places or cell.destination not in places:
                    return Verdict(allowed=False, detail="no such endpoint", latency_ms=0.0)
                target = Target(places[cell.destination].ip(cell.family), cell.port, cell.protocol)
                return await self._lab.probe_from(places[cell.source], target, timeout_s=timeout_s)

        verdicts = await asyncio.gather(*map(ask, cells))
        return {cell: verdict for cell, verdict in zip(cells, verdicts, strict=True) if not self._right(cell, verdict)}

    def _right(self, cell: Cell, verdict: Verdict) -> bool:
        """Denied is what is dropped: a socket that is not there, or an end that should be, denies nothing."""
        if verdict.allowed or cell.allowed:
            return verdict.allowed == cell.allowed
        ends = (self._pods.get(name) for name in (cell.source, cell.destination))
        return verdict.detail == "timeout" or any(pod is not None and pod.phase != "Running" for pod in ends)

    async def _explain(self, cell: Cell, places: dict[str, Place]) -> str:
        """What the agents at both ends say."""
        nodes = {node.holder.pid: node for node in self._lab.nodes}
        query = urllib.parse.urlencode(
            {
                "from": _endpoint(cell.source, places),
                "to": _endpoint(cell.destination, places),
                "port": cell.port,
                "protocol": cell.protocol,
                "format": "text",
            }
        )
        texts = []
        for name in (cell.source, cell.destination):
            node = nodes.get(places[name].node_pid) if name in places else None
            if node is not None:
                texts.append(f"{node.plan.name}: " + await _get(self._lab, node.place, f"/debug/explain?{query}"))
        return "\n".join(texts)

    async def _clear(self) -> None:
        for name in self._namespaces - {"default"}:
            await self._lab.delete("v1", "Namespace", name)
        if "default" in self._namespaces:
            await self._empty_default()
        for index, labels in self._node_labels.items():
            await self._label_node(index, dict(labels))
        for node in self._lab.nodes:
            await self._lab.serve(node.place, ())
        for external in self._lab.externals.values():
            await self._lab.serve(external, ())
        for name in self._namespaces - {"default"}:
            await self._until_gone("v1", "Namespace", name)

    async def _empty_default(self) -> None:
        """The namespace that no API server lets anybody delete."""
        for api_version, kind in (("networking.k8s.io/v1", "NetworkPolicy"), ("v1", "Pod")):
            collection = await self._lab.client.path(api_version, kind, "default")
            for obj in (await self._lab.client.request("GET", collection))["items"]:
                await self._lab.delete(api_version, kind, obj["metadata"]["name"], "default")
                await self._until_gone(api_version, kind, obj["metadata"]["name"], "default")
        labels = {"kubernetes.io/metadata.name": "default"}
        await self._lab.put(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": labels}}
        )


def _of_family(addresses: list[str], family: int) -> str:
    return next(address for address in addresses if (":" in address) == (family == 6))


def _endpoint(name: str, places: dict[str, Place]) -> str:
    return places[name].ip() if ":" in name and name in places else name


async def _get(lab: Lab, place: Place, path: str) -> str:
    """GET from the debug listener of a node's agent."""
    command = ("nsenter", f"--net={place.net}", "--", "curl", "-s", "-m", "5", f"http://127.0.0.1:9098{path}")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode(errors="replace").strip() or f"no answer (curl exited with {process.returncode})"
