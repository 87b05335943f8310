"""The lab's API server as a process that fills itself and makes its own events, so that it can be large and busy.

Objects of a workload and churn go straight into its store, past HTTP and validation; what is measured goes over HTTP.
Commands are JSON lines on standard input, each is answered by one JSON line:

    {"do": "load", "shape": {...}}                              fill the store
    {"do": "churn", "shape": {...}, "per_s": N, "share": S}     change pods, a share S of them so that it matters here
    {"do": "quiet"}                                             end of the churn; {"events": n, "took_s": s}
    {"do": "come", "shape": {...}, "first": N, "count": N}      more pods appear
    {"do": "go", "shape": {...}, "first": N, "count": N}        they go
    {"do": "relist", "kind": K, "changed": C}                   watches of all of a kind have to list again, to find
                                                                that C ("spec", "labels") of every object has changed;
                                                                answered when the watches are back
"""

import asyncio
import contextlib
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import orjson

from benchmarks import workload
from benchmarks.workload import PLURALS, Object, Shape
from netagent.lab.apiserver.__main__ import url_of, write_kubeconfig
from netagent.lab.apiserver.server import ApiServer, Settings
from netagent.lab.apiserver.store import Stored
from netagent.records import Kind

EDIT = 20_000
"""A policy's port is edited by so much, there and back."""
SLICE = 100
"""Writes between two looks at the network, so that watches are served while much is written."""


class Source:
    """Writes into the store of a server in this process."""

    def __init__(self, server: ApiServer) -> None:
        self._store = server.store
        self._tables = {}
        for kind, plural in PLURALS.items():
            group = "networking.k8s.io" if kind is Kind.NETWORK_POLICY else ""
            resource = server.registry.catalogue.find(group, "v1", plural)
            assert resource is not None
            self._tables[kind] = resource.table
        self._churn: asyncio.Task[None] | None = None
        self._events = 0
        self._began_s = 0.0

    async def obey(self, command: Object) -> Object:
        """One command."""
        shape = msgspec.convert(command["shape"], Shape) if "shape" in command else Shape(pods=0, policies=0)
        match command["do"]:
            case "load":
                for count, (kind, obj) in enumerate(workload.objects(shape)):
                    await self._put(kind, obj, count)
            case "come":
                for count in range(command["count"]):
                    await self._put(Kind.POD, workload.numbered_pod(shape, command["first"] + count), count)
            case "go":
                for count in range(command["count"]):
                    meta = workload.numbered_pod(shape, command["first"] + count)["metadata"]
                    self._store.remove(self._tables[Kind.POD], (meta["namespace"], meta["name"]))
                    await _breathe(count)
            case "relist":
                await self._relist(Kind(command["kind"]), command["changed"])
            case "churn":
                self._events, self._began_s = 0, time.monotonic()
                self._churn = asyncio.create_task(self._change(shape, command["per_s"], command["share"]))
            case "quiet":
                if self._churn is not None:
                    self._churn.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._churn
                return {"events": self._events, "took_s": time.monotonic() - self._began_s}
        return {}

    async def _put(self, kind: Kind, obj: Object, count: int) -> None:
        meta = obj["metadata"]
        body = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind")}
        self._store.put(self._tables[kind], (meta.get("namespace", ""), meta["name"]), body)
        await _breathe(count)

    async def _relist(self, kind: Kind, changed: str) -> None:
        """Nothing of what changes here is told to a watch; what is behind it has expired."""
        name = self._tables[kind]
        table = self._store._tables[name]
        watches = {watch for watch in table.watches if watch.matches is None}
        for watch in watches:
            self._store.unwatch(watch)
        for count, key in enumerate(list(table.order) if changed else ()):
            if key in table.objects and key[1] != workload.PROBE:
                self._store.put(name, key, edited(table.objects[key], changed))
            await _breathe(count)
        self._store.compact(self._store.revision)
        for watch in watches:
            watch.close()
        while sum(watch.matches is None for watch in table.watches) < len(watches):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)

    async def _change(self, shape: Shape, per_s: float, share: float) -> None:
        """Events at an even pace; a share of them turns a pod's tier, the others only its annotation."""
        rng = random.Random(1)  # noqa: S311 - the same events in every run
        while True:
            due = int((time.monotonic() - self._began_s) * per_s)
            while self._events < due:
                self._one_change(shape, rng, share)
                self._events += 1
            await asyncio.sleep(1 / per_s)

    def _one_change(self, shape: Shape, rng: random.Random, share: float) -> None:
        """Another tier, so that it matters, or another annotation."""
        if rng.random() < share:
            namespace, name, tier = workload.turned(shape, rng, lambda *key: self._pod(key)["metadata"]["labels"])
            more = {"labels": {**self._pod((namespace, name))["metadata"]["labels"], "tier": tier}}
        else:
            meta = workload.numbered_pod(shape, rng.randrange(shape.local_pods, shape.pods))["metadata"]
            namespace, name, more = meta["namespace"], meta["name"], {"annotations": {"at": str(rng.random())}}
        old = self._pod((namespace, name))
        self._store.put(self._tables[Kind.POD], (namespace, name), {**old, "metadata": {**old["metadata"], **more}})

    def _pod(self, key: tuple[str, str]) -> Object:
        stored = self._store.get(self._tables[Kind.POD], key)
        assert stored is not None
        return stored.obj


def edited(stored: Stored, changed: str) -> dict[str, Any]:
    """The object with something else in its first rule's first port, or in a label; and back."""
    old = stored.obj
    if changed == "labels":
        labels = old["metadata"]["labels"]
        return {**old, "metadata": {**old["metadata"], "labels": {**labels, "turn": "01"[labels.get("turn") == "0"]}}}
    first, *rest = old["spec"]["ingress"]
    port, *more = first.get("ports") or [{"protocol": "TCP", "port": 1}]
    number = port["port"] + (EDIT if port["port"] < EDIT else -EDIT)
    ingress = [{**first, "ports": [{**port, "port": number}, *more]}, *rest]
    return {**old, "spec": {**old["spec"], "ingress": ingress}}


async def _breathe(count: int) -> None:
    if count % SLICE == SLICE - 1:
        await asyncio.sleep(0)


async def serve(kubeconfig: Path) -> None:
    """Until the end of standard input."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = url_of(listener)
    server = ApiServer(Settings(schedule=False, bookmark_s=30.0, watch_queue_events=1_000_000))
    source = Source(server)
    await server.start([listener])
    write_kubeconfig(kubeconfig, url, "")
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _answer({"url": url})
    async for line in commands:
        _answer(await source.obey(orjson.loads(line)))
    await server.stop()


def _answer(tree: Object) -> None:
    sys.stdout.buffer.write(orjson.dumps(tree) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
